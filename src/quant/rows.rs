//! Rows as pages hold them: some in codes, some exact.

use super::codec::{Codec, Grouping};
use super::nuq::{NuqCodec, OUTLIER_BYTES};

/// Rows of which some are in codes and the rest exact.
#[derive(Clone, Copy, Debug)]
pub struct CodedRows<'a> {
    stored: Stored<'a>,
    exact: &'a [f32],
    /// The rows that count, out of all that are stored.
    first: usize,
    rows: usize,
}

#[derive(Clone, Copy, Debug)]
enum Stored<'a> {
    /// Come before the exact rows.
    Affine { codec: Codec, coded: &'a [u8] },
    /// Come behind them.
    Nuq { codec: &'a NuqCodec, dense: &'a [u8], sparse: &'a [u8] },
}

impl<'a> CodedRows<'a> {
    /// All rows of `coded`, then those of `exact`. Under [`Grouping::Channel`], `coded` is one page or nothing.
    pub const fn new(codec: Codec, coded: &'a [u8], exact: &'a [f32]) -> Self {
        let rows = coded.len() / codec.row_bytes() + exact.len() / codec.row();
        Self { stored: Stored::Affine { codec, coded }, exact, first: 0, rows }
    }

    /// The rows of `exact`, then those of `dense`, whose outliers are `sparse`.
    pub const fn nuq(codec: &'a NuqCodec, exact: &'a [f32], dense: &'a [u8], sparse: &'a [u8]) -> Self {
        let layout = codec.layout();
        let rows = dense.len() / layout.row_bytes() + exact.len() / layout.row;
        Self { stored: Stored::Nuq { codec, dense, sparse }, exact, first: 0, rows }
    }

    /// Number of rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Elements per row.
    pub const fn row(&self) -> usize {
        match self.stored {
            Stored::Affine { codec, .. } => codec.row(),
            Stored::Nuq { codec, .. } => codec.layout().row,
        }
    }

    /// Exact rows, of all that there are before any [`Self::cut`].
    const fn all_exact(&self) -> usize {
        self.exact.len() / self.row()
    }

    /// The rows `from..to`.
    ///
    /// # Panics
    /// There are fewer.
    #[must_use]
    pub fn cut(self, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= self.rows, "rows {from} to {to} of {}", self.rows);
        Self { first: self.first + from, rows: to - from, ..self }
    }

    /// How many of the rows are in codes.
    pub fn coded_rows(&self) -> usize {
        let exact = match self.stored {
            Stored::Affine { coded, .. } => self.affine(coded).1,
            Stored::Nuq { codec, dense, sparse } => self.nuq_parts(codec, dense, sparse).0,
        };
        self.rows - exact.len() / self.row()
    }

    /// What the rows occupy: scales and zeros shared with other rows of the page count by their share.
    pub fn bytes(&self) -> usize {
        let exact = |rows: &[f32]| size_of_val(rows);
        match self.stored {
            Stored::Affine { coded, .. } => {
                let (coded, rows) = self.affine(coded);
                coded.len() + exact(rows)
            }
            Stored::Nuq { codec, dense, sparse } => {
                let (rows, dense, sparse) = self.nuq_parts(codec, dense, sparse);
                exact(rows) + dense.len() + sparse.len()
            }
        }
    }

    /// The rows' codes (under [`Grouping::Channel`], of the page's codes and scales as many bytes) and exact rows.
    fn affine(&self, coded: &'a [u8]) -> (&'a [u8], &'a [f32]) {
        let Stored::Affine { codec, .. } = self.stored else { return (&[], &[]) };
        let (codes, end) = (coded.len() / codec.row_bytes(), self.first + self.rows);
        let coded = &coded[self.first.min(codes) * codec.row_bytes()..end.min(codes) * codec.row_bytes()];
        let exact = self.first.saturating_sub(codes) * self.row()..end.saturating_sub(codes) * self.row();
        (coded, &self.exact[exact])
    }

    /// The rows' exact ones, dense codes and outliers.
    fn nuq_parts(
        &self,
        codec: &NuqCodec,
        dense: &'a [u8],
        sparse: &'a [u8],
    ) -> (&'a [f32], &'a [u8], &'a [u8]) {
        let (layout, end) = (codec.layout(), self.first + self.rows);
        let exact = self.all_exact();
        let (from, to) = (self.first.saturating_sub(exact), end.saturating_sub(exact));
        let (before, dense) = dense[..to * layout.row_bytes()].split_at(from * layout.row_bytes());
        let skipped = layout.outliers_of(before) * OUTLIER_BYTES;
        let sparse = &sparse[skipped..skipped + layout.outliers_of(dense) * OUTLIER_BYTES];
        (&self.exact[self.first.min(exact) * layout.row..end.min(exact) * layout.row], dense, sparse)
    }

    /// Appends the rows as they are stored: codes with their scales and zeros to `coded`, the others to `exact`.
    ///
    /// # Panics
    /// The codec groups by channel, where no row stands alone, and these are rows of a page in codes but not all of them; or
    /// the codes are not uniform.
    pub fn copy_stored(&self, coded: &mut Vec<u8>, exact: &mut Vec<f32>) {
        let Stored::Affine { codec, coded: page } = self.stored else { panic!("uniform codes") };
        let (codes, rows) = self.affine(page);
        let whole = codes.is_empty() || codes.len() == page.len();
        assert!(whole || matches!(codec.grouping(), Grouping::Token(_)), "rows of a page share their scales");
        coded.extend_from_slice(codes);
        exact.extend_from_slice(rows);
    }

    /// The values, `[row][element]`.
    ///
    /// # Panics
    /// `out` is of another length.
    pub fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.rows * self.row(), "room for every row");
        match self.stored {
            Stored::Affine { codec, coded } => {
                let exact = self.affine(coded).1;
                let (from_codes, from_exact) = out.split_at_mut(out.len() - exact.len());
                if !from_codes.is_empty() {
                    codec.decode(coded, self.first, from_codes);
                }
                from_exact.copy_from_slice(exact);
            }
            Stored::Nuq { codec, dense, sparse } => {
                let (exact, dense, sparse) = self.nuq_parts(codec, dense, sparse);
                let (from_exact, from_codes) = out.split_at_mut(exact.len());
                from_exact.copy_from_slice(exact);
                codec.decode(dense, sparse, from_codes);
            }
        }
    }
}

/// Rows copied out of pages as they are stored.
#[derive(Clone, Debug, Default)]
pub struct StoredRows {
    codec: Option<OwnCodec>,
    /// Codes of whole rows, without outliers.
    coded: Vec<u8>,
    sparse: Vec<u8>,
    exact: Vec<f32>,
}

#[derive(Clone, Debug)]
enum OwnCodec {
    Affine(Codec),
    Nuq(NuqCodec),
}

impl StoredRows {
    /// Forgets all rows, and how they went into codes.
    pub fn clear(&mut self) {
        self.codec = None;
        self.coded.clear();
        self.sparse.clear();
        self.exact.clear();
    }

    /// Appends rows of one lane, in its order: the exact ones lie together there, at its end or its beginning.
    ///
    /// # Panics
    /// Codes that are grouped by channel, where no row stands alone.
    pub fn push(&mut self, rows: CodedRows<'_>) {
        match rows.stored {
            Stored::Affine { codec, .. } => {
                self.codec.get_or_insert(OwnCodec::Affine(codec));
                rows.copy_stored(&mut self.coded, &mut self.exact);
            }
            Stored::Nuq { codec, dense, sparse } => {
                self.codec.get_or_insert_with(|| OwnCodec::Nuq(codec.clone()));
                let (exact, dense, sparse) = rows.nuq_parts(codec, dense, sparse);
                self.exact.extend_from_slice(exact);
                self.coded.extend_from_slice(dense);
                self.sparse.extend_from_slice(sparse);
            }
        }
    }

    /// The rows; `None` while none was appended.
    pub fn rows(&self) -> Option<CodedRows<'_>> {
        self.codec.as_ref().map(|codec| match codec {
            OwnCodec::Affine(codec) => CodedRows::new(*codec, &self.coded, &self.exact),
            OwnCodec::Nuq(codec) => CodedRows::nuq(codec, &self.exact, &self.coded, &self.sparse),
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.coded.len() + self.sparse.len() + size_of_val(&*self.exact)
    }
}
