//! Attention of one query per sequence over pages.

use super::super::gpu::{Array, DeviceError, Gpu, Launch, Result};
use super::{Bend, Heads, SPLIT, grid, words};

/// Slots of a page of keys in codes of 4 or 2 bits, and channels of a group of such values.
const CODED_PAGE: usize = 32;

/// Largest block.
const MAX_BLOCK_SIZE: usize = 1024;

/// How pages store a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Full precision.
    F32,
    /// Half precision.
    F16,
    /// Codes of 8 bits, scale and zero behind them.
    Int8,
    /// Codes of 4 bits, of keys by channel and page, of values by token and 32 channels; rows that are not in codes yet are
    /// exact, in pages of f32 of their own.
    Int4,
    /// The same with 2 bits.
    Int2,
}

impl Cell {
    /// The part of a kernel's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Int2 => "int2",
        }
    }

    /// Whether rows are exact at first and go into codes later, keys by whole pages.
    pub const fn goes_into_codes_later(self) -> bool {
        matches!(self, Self::Int4 | Self::Int2)
    }

    /// Bytes of a row of so many elements; in codes its share of scales and zeros is among them.
    pub const fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => 4 * head_dim,
            Self::F16 => 2 * head_dim,
            Self::Int8 => head_dim + 4,
            Self::Int4 => head_dim / 2 + head_dim / CODED_PAGE * 4,
            Self::Int2 => head_dim / 4 + head_dim / CODED_PAGE * 4,
        }
    }
}

/// A decode step of one layer: `decode_*`, `decode_combine`, `decode_rows`.
#[derive(Clone, Copy, Debug)]
pub struct Decode {
    /// Heads and row length.
    pub heads: Heads,
    /// How the pages store rows.
    pub cell: Cell,
    /// Slots per block.
    pub block_size: usize,
    /// Sequences.
    pub sequences: usize,
    /// Most slots of a lane.
    pub slots: usize,
    /// The factor on scores.
    pub scale: f32,
    /// What a query sees, and how scores are bent.
    pub bend: Bend,
    /// `[sequence][head][head_dim]`.
    pub queries: Array,
    /// Slab of keys.
    pub k: Array,
    /// Slab of values; none for scores alone.
    pub v: Array,
    /// Slabs of keys and values that are not in codes yet; none where rows are stored in one way.
    pub exact: [Array; 2],
    /// Block tables, positions, and the lanes that say where theirs begin.
    pub blocks: Array,
    /// Of every slot.
    pub positions: Array,
    /// `[sequence][kv_head]`, eight words each.
    pub lanes: Array,
    /// Marks of the slots that a head reads, `[sequence][head][read_stride]` words; none for all.
    pub read: Array,
    /// Words of a row of marks.
    pub read_stride: usize,
    /// Scratch of [`partial_elements`](Self::partial_elements) and `max_sum_elements` f32.
    pub partial: Array,
    /// The same.
    pub max_sum: Array,
    /// `[sequence][head][2]`.
    pub totals: Array,
    /// `[sequence][head][head_dim]`; none where `v` is.
    pub out: Array,
    /// Probabilities, `[sequence][head][row_stride]`; none where nobody asks.
    pub rows: Array,
    /// From one row of probabilities to the next.
    pub row_stride: usize,
}

impl Decode {
    /// Ranges that the longest lane is cut into.
    pub const fn splits(slots: usize) -> usize {
        slots.div_ceil(SPLIT)
    }

    /// Elements of scratch for sums.
    pub const fn partial_elements(heads: Heads, sequences: usize, slots: usize) -> usize {
        sequences * heads.heads * Self::splits(slots) * heads.head_dim
    }

    /// Elements of scratch for maxima and sums.
    pub const fn max_sum_elements(heads: Heads, sequences: usize, slots: usize) -> usize {
        sequences * heads.heads * Self::splits(slots) * 2
    }

    /// The kernel that holds this shape, and the query heads that a block of it takes.
    fn variant(&self) -> (String, usize) {
        let of = |sizes: [usize; 3], n: usize| sizes.into_iter().find(|&s| s >= n).unwrap_or(sizes[2]);
        let (size, group) = (of([64, 128, 256], self.heads.head_dim), of([1, 4, 8], self.heads.group()));
        (format!("decode_{}_d{size}_g{group}", self.cell.name()), group)
    }

    /// Starts it.
    ///
    /// # Errors
    /// A shape outside the kernels' limits, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        self.heads.check()?;
        let Heads { heads, kv_heads, head_dim } = self.heads;
        if self.block_size == 0 || self.block_size > MAX_BLOCK_SIZE {
            return Err(DeviceError::Limit(format!(
                "blocks of {} slots cannot be read: 1 to {MAX_BLOCK_SIZE}",
                self.block_size
            )));
        }
        if self.cell.goes_into_codes_later()
            && (self.block_size != CODED_PAGE || !head_dim.is_multiple_of(CODED_PAGE))
        {
            return Err(DeviceError::Limit(format!(
                "pages of {} must have {CODED_PAGE} slots, and heads a multiple of {CODED_PAGE} elements",
                self.cell.name()
            )));
        }
        if self.slots == 0 || self.sequences == 0 {
            return Ok(());
        }
        let splits = Self::splits(self.slots);
        let (kernel, of_block) = self.variant();
        let [heads_, kv_heads_, head_dim_, block_size, splits_, row_stride, read_stride] =
            words([heads, kv_heads, head_dim, self.block_size, splits, self.row_stride, self.read_stride])?;
        // No array for block sums: they are made of the rows where they are wanted.
        let args = [
            self.partial.into(),
            self.max_sum.into(),
            self.rows.into(),
            Array::NONE.into(),
            self.read.into(),
            self.queries.into(),
            self.k.into(),
            self.v.into(),
            self.exact[0].into(),
            self.exact[1].into(),
            self.blocks.into(),
            self.positions.into(),
            self.lanes.into(),
            heads_,
            kv_heads_,
            head_dim_,
            block_size,
            splits_,
            row_stride,
            0u32.into(),
            read_stride,
            self.scale.into(),
            self.bend.window(),
            self.bend.cap(),
        ];
        let parts = self.heads.group().div_ceil(of_block);
        let file = match self.cell {
            Cell::F32 | Cell::F16 => "decode_exact",
            Cell::Int8 | Cell::Int4 | Cell::Int2 => "decode_codes",
        };
        let ranges = grid([splits, kv_heads * parts, self.sequences])?;
        gpu.launch(&Launch { file, kernel: &kernel, grid: ranges, block: 128, args: &args })?;

        let args = [
            self.out.into(),
            self.totals.into(),
            self.partial.into(),
            self.max_sum.into(),
            self.lanes.into(),
            heads_,
            kv_heads_,
            head_dim_,
            splits_,
        ];
        let rows = grid([heads, self.sequences, 1])?;
        gpu.launch(&Launch {
            file: "combine",
            kernel: "decode_combine",
            grid: rows,
            block: 256,
            args: &args,
        })?;
        if self.rows == Array::NONE {
            return Ok(());
        }
        let args = [self.rows.into(), self.totals.into(), self.lanes.into(), heads_, kv_heads_, row_stride];
        let cells = grid([self.slots.div_ceil(256), heads, self.sequences])?;
        gpu.launch(&Launch { file: "combine", kernel: "decode_rows", grid: cells, block: 256, args: &args })
    }
}
