//! Pages that begin exact and go into codes row by row (V) or as a whole (K), as KIVI has it (arXiv 2402.02750).
//!
//! A page's leading rows are in codes and the others exact, and a lane's coded rows come before its exact ones. Both parts
//! are as long as what they hold, so a page takes the bytes that are counted for it.

use super::shelf::Shelf;
use super::table::LaneView;
use crate::event::BlockId;
use crate::quant::{Codec, CodedRows, Grouping};

/// Pages of one kind (K or V) in one tier.
#[derive(Clone, Debug)]
pub(super) struct KiviStore {
    pages: Shelf<Page>,
    codec: Codec,
    /// Elements per row.
    row: usize,
    /// Rows per page.
    width: usize,
}

#[derive(Clone, Debug)]
struct Page {
    coded: Box<[u8]>,
    exact: Box<[f32]>,
}

impl KiviStore {
    pub(super) const fn new(codec: Codec, row: usize, width: usize) -> Self {
        Self { pages: Shelf::new(), codec, row, width }
    }

    pub(super) fn allocate(&mut self, id: BlockId) {
        self.pages.put(id, Page { coded: Box::default(), exact: vec![0.0; self.row * self.width].into() });
    }

    pub(super) fn free(&mut self, id: BlockId) {
        self.pages.free(id);
    }

    pub(super) fn copy_page(&mut self, from: BlockId, to: BlockId) {
        self.pages.copy(from, to);
    }

    pub(super) fn rows(&self, id: BlockId) -> CodedRows<'_> {
        let page = self.pages.page(id);
        CodedRows::new(self.codec, &page.coded, &page.exact)
    }

    /// Rows of a page that are in codes.
    pub(super) fn in_codes(&self, id: BlockId) -> usize {
        self.pages.page(id).coded.len() / self.codec.row_bytes()
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.pages.iter().map(|p| p.coded.len() + size_of_val(&*p.exact)).sum()
    }

    /// Writes `n` exact rows from slot `slot` on; row `i` starts at `rows[i * stride]`.
    pub(super) fn write(&mut self, lane: LaneView<'_>, slot: usize, n: usize, rows: &[f32], stride: usize) {
        for i in 0..n {
            let (id, at) = (lane.block((slot + i) / self.width), (slot + i) % self.width);
            let at = (at - self.in_codes(id)) * self.row;
            let page = self.pages.page_mut(id);
            page.exact[at..at + self.row].copy_from_slice(&rows[i * stride..][..self.row]);
        }
    }

    /// Puts the rows of a page up to `end` into codes; `live` has a flag for each of the page's slots in use. Every live
    /// row is shown to `seen` as it was and as it will be read.
    pub(super) fn code(
        &mut self,
        id: BlockId,
        end: usize,
        live: &[bool],
        mut seen: impl FnMut(&[f32], &[f32]),
    ) {
        let from = self.in_codes(id);
        let page = self.pages.page_mut(id);
        let live = &live[from..end];
        let (rows, rest) = page.exact.split_at(live.len() * self.row);
        let mut fresh = vec![0; live.len() * self.codec.row_bytes()];
        self.codec.encode(rows, live, &mut fresh);
        let mut back = vec![0.0; rows.len()];
        CodedRows::new(self.codec, &fresh, &[]).decode(&mut back);
        let each = rows.chunks_exact(self.row).zip(back.chunks_exact(self.row)).zip(live);
        for ((was, is), _) in each.filter(|(_, live)| **live) {
            seen(was, is);
        }
        let coded = [&*page.coded, &*fresh].concat().into();
        let exact = rest.into();
        *page = Page { coded, exact };
    }

    /// Lays the rows `kept` of a lane (slots as they were, ascending) into its pages from `first` on, `blocks` being the
    /// lane's pages as they were. Codes grouped by token move as they are. Codes grouped by channel are of their page: the
    /// rows are decoded, and the pages that come out full of such rows get codes again. Returns the rows decoded.
    pub(super) fn gather(&mut self, blocks: &[BlockId], first: usize, kept: &[usize]) -> u64 {
        let (mut coded, mut exact) = (Vec::new(), Vec::new());
        let mut decoded = 0;
        for &slot in kept {
            let id = blocks[slot / self.width];
            let row = self.rows(id).cut(slot % self.width, slot % self.width + 1);
            match self.codec.grouping() {
                Grouping::Token(_) => row.copy_stored(&mut coded, &mut exact),
                Grouping::Channel(_) => {
                    decoded += usize::from(self.in_codes(id) > 0);
                    let at = exact.len();
                    exact.resize(at + self.row, 0.0);
                    row.decode(&mut exact[at..]);
                }
            }
        }
        for &id in &blocks[first..first + kept.len().div_ceil(self.width)] {
            let page = match self.codec.grouping() {
                Grouping::Token(_) => self.next_page(&mut coded, &mut exact),
                Grouping::Channel(_) => self.next_page(&mut Vec::new(), &mut exact),
            };
            self.pages.replace(id, page);
        }
        if let Grouping::Channel(_) = self.codec.grouping() {
            let live = vec![true; self.width];
            for &id in &blocks[first..first + decoded / self.width] {
                self.code(id, self.width, &live, |_, _| ());
            }
        }
        decoded as u64
    }

    /// Cuts one page off the front of rows in codes and rows that are exact.
    fn next_page(&self, coded: &mut Vec<u8>, exact: &mut Vec<f32>) -> Page {
        let bytes = coded.len().min(self.width * self.codec.row_bytes());
        let room = (self.width - bytes / self.codec.row_bytes()) * self.row;
        let mut page: Vec<f32> = exact.drain(..exact.len().min(room)).collect();
        page.resize(room, 0.0);
        Page { coded: coded.drain(..bytes).collect(), exact: page.into() }
    }
}
