//! Rows on their way: into pages, out of pages, turned.

use super::super::gpu::{Array, DeviceError, Gpu, Launch, Result};
use super::{Cell, Heads, grid, words};

/// Warps of a block, each with a row.
const ROWS: usize = 8;

/// New rows into their slots: `append_*`. Every (token, KV head) is a row of its own, so that heads whose lanes have parted
/// differ in their slots.
#[derive(Clone, Copy, Debug)]
pub struct Append {
    /// How the pages store rows.
    pub cell: Cell,
    /// Rows, `[row][head_dim]` each.
    pub rows: usize,
    /// Elements of a row.
    pub head_dim: usize,
    /// Slots per block.
    pub block_size: usize,
    /// Slabs; K and V are appended alike.
    pub k: Array,
    /// Slab of values.
    pub v: Array,
    /// f32, as they are to be stored.
    pub keys: Array,
    /// f32.
    pub values: Array,
    /// Of each row, the lane that it belongs to.
    pub lane_of: Array,
    /// Of each row, its slot in the lane.
    pub slots: Array,
    /// Block tables.
    pub blocks: Array,
    /// Eight words each.
    pub lanes: Array,
    /// Keys alone: what would be written of values is left out.
    pub keys_only: bool,
}

impl Append {
    /// Starts it.
    ///
    /// # Errors
    /// Rows that are too long, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        Heads { heads: 1, kv_heads: 1, head_dim: self.head_dim }.check()?;
        if self.rows == 0 {
            return Ok(());
        }
        let [rows, head_dim, block_size] = words([self.rows, self.head_dim, self.block_size])?;
        let args = [
            self.k.into(),
            self.v.into(),
            self.keys.into(),
            self.values.into(),
            // The keys come turned.
            Array::NONE.into(),
            Array::NONE.into(),
            self.lane_of.into(),
            self.slots.into(),
            self.blocks.into(),
            self.lanes.into(),
            rows,
            1u32.into(),
            head_dim,
            0u32.into(),
            block_size,
            0u32.into(),
        ];
        // Values are the second layer of the grid.
        let grid = grid([self.rows.div_ceil(ROWS), 1, if self.keys_only { 1 } else { 2 }])?;
        let kernel = format!("append_{}", self.cell.name());
        gpu.launch(&Launch { file: "append", kernel: &kernel, grid, block: 256, args: &args })
    }
}

/// Rows turned in place, each by an angle of its own: `rope_rows`.
#[derive(Clone, Copy, Debug)]
pub struct RopeRows {
    /// Rows, `[row][head_dim]` each.
    pub rows: usize,
    /// Elements of a row.
    pub head_dim: usize,
    /// Pairs that turn.
    pub half: usize,
    /// f32.
    pub array: Array,
    /// `[index][2 * half]`: cosines, then sines.
    pub turns: Array,
    /// Of each row, its index.
    pub angles: Array,
}

impl RopeRows {
    /// Starts it.
    ///
    /// # Errors
    /// A device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        if self.rows == 0 || self.half == 0 {
            return Ok(());
        }
        let [rows, head_dim, half] = words([self.rows, self.head_dim, self.half])?;
        let args =
            [self.array.into(), self.turns.into(), self.angles.into(), rows, 1u32.into(), head_dim, half];
        let grid = grid([self.rows.div_ceil(ROWS), 1, 1])?;
        gpu.launch(&Launch { file: "append", kernel: "rope_rows", grid, block: 256, args: &args })
    }
}

/// A layer's pages as one matrix of f32 per KV head: `gather_pages_*_to_f32`.
#[derive(Clone, Copy, Debug)]
pub struct GatherPages {
    /// How the pages store rows.
    pub cell: Cell,
    /// Heads and row length.
    pub heads: Heads,
    /// Slots per block.
    pub block_size: usize,
    /// Most slots of a lane.
    pub slots: usize,
    /// `[kv_head][row_stride][head_dim]`; only rows of a lane's slots are written.
    pub out: Array,
    /// Rows from one KV head to the next.
    pub row_stride: usize,
    /// The slab.
    pub slab: Array,
    /// The slab of rows that are not in codes yet; none where rows are stored in one way.
    pub exact: Array,
    /// Whether the slabs are of values.
    pub values: bool,
    /// Block tables.
    pub blocks: Array,
    /// Of every slot.
    pub positions: Array,
    /// Of one sequence.
    pub lanes: Array,
}

impl GatherPages {
    /// Starts it.
    ///
    /// # Errors
    /// Rows of a length that the kernels do not take, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        self.heads.check()?;
        if self.slots == 0 {
            return Ok(());
        }
        let [head_dim, block_size, row_stride] =
            words([self.heads.head_dim, self.block_size, self.row_stride])?;
        let args = [
            self.out.into(),
            self.slab.into(),
            self.exact.into(),
            self.blocks.into(),
            self.positions.into(),
            self.lanes.into(),
            head_dim,
            block_size,
            row_stride,
            u32::from(self.values).into(),
        ];
        let grid = grid([self.slots.div_ceil(ROWS), self.heads.kv_heads, 1])?;
        let kernel = format!("gather_pages_{}_to_f32", self.cell.name());
        gpu.launch(&Launch { file: "gather", kernel: &kernel, grid, block: 256, args: &args })
    }
}

/// Rows that were chosen, out of pages into one stretch per KV head: `gather_rows`.
#[derive(Clone, Copy, Debug)]
pub struct GatherRows {
    /// KV heads.
    pub kv_heads: usize,
    /// Sequences.
    pub sequences: usize,
    /// Bytes of a row, a multiple of 4.
    pub row_bytes: usize,
    /// Slots per block.
    pub block_size: usize,
    /// Most rows of a KV head.
    pub rows: usize,
    /// `[sequence][kv_head][row_stride]` rows; only those that were chosen are written.
    pub staged: Array,
    /// Rows from one KV head's first to the next's.
    pub row_stride: usize,
    /// The slab; it may lie in the host's memory, where the device reaches that.
    pub slab: Array,
    /// `[sequence][kv_head][slot_stride]`: the slots that were chosen.
    pub slots: Array,
    /// From one KV head's slots to the next's.
    pub slot_stride: usize,
    /// `[sequence][kv_head]`: how many.
    pub counts: Array,
    /// Block tables.
    pub blocks: Array,
    /// `[sequence][kv_head]`, eight words each.
    pub lanes: Array,
}

impl GatherRows {
    /// Starts it.
    ///
    /// # Errors
    /// Rows that are no whole number of words, sizes that are too large, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        check_words(self.row_bytes)?;
        if self.rows == 0 || self.sequences == 0 {
            return Ok(());
        }
        let [block_size, row_bytes, slot_stride, row_stride] =
            words([self.block_size, self.row_bytes, self.slot_stride, self.row_stride])?;
        let args = [
            self.staged.into(),
            self.slab.into(),
            self.slots.into(),
            self.counts.into(),
            self.blocks.into(),
            self.lanes.into(),
            block_size,
            row_bytes,
            slot_stride,
            row_stride,
        ];
        let grid = grid([self.rows.div_ceil(ROWS), self.kv_heads, self.sequences])?;
        gpu.launch(&Launch { file: "gather", kernel: "gather_rows", grid, block: 256, args: &args })
    }
}

/// Rows that were pulled, and their positions: what a later [`GatherKept`] finds them by.
#[derive(Clone, Copy, Debug)]
pub struct KeptRows {
    /// `[sequence][kv_head][stride]` rows.
    pub rows: Array,
    /// `[sequence][kv_head][stride]`, ascending.
    pub positions: Array,
    /// `[sequence][kv_head]`: how many.
    pub counts: Array,
    /// Rows from one KV head's first to the next's.
    pub stride: usize,
}

/// As [`GatherRows`], but rows that were pulled before come from there: `gather_rows_kept`.
#[derive(Clone, Copy, Debug)]
pub struct GatherKept {
    /// What to pull; rows go to `staged.rows`.
    pub of: GatherRows,
    /// Of every slot.
    pub positions: Array,
    /// What is pulled, and its positions.
    pub staged: KeptRows,
    /// What was pulled before.
    pub before: Option<KeptRows>,
}

impl GatherKept {
    /// Starts it.
    ///
    /// # Errors
    /// As [`GatherRows::launch`].
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        let of = &self.of;
        check_words(of.row_bytes)?;
        if of.rows == 0 || of.sequences == 0 {
            return Ok(());
        }
        let nothing = KeptRows { rows: Array::NONE, positions: Array::NONE, counts: Array::NONE, stride: 0 };
        let before = self.before.unwrap_or(nothing);
        let [block_size, row_bytes, slot_stride, row_stride, before_stride] =
            words([of.block_size, of.row_bytes, of.slot_stride, self.staged.stride, before.stride])?;
        let args = [
            self.staged.rows.into(),
            self.staged.positions.into(),
            self.staged.counts.into(),
            of.slab.into(),
            of.slots.into(),
            of.counts.into(),
            of.blocks.into(),
            self.positions.into(),
            of.lanes.into(),
            before.rows.into(),
            before.positions.into(),
            before.counts.into(),
            block_size,
            row_bytes,
            slot_stride,
            row_stride,
            before_stride,
        ];
        let grid = grid([of.rows.div_ceil(ROWS), of.kv_heads, of.sequences])?;
        gpu.launch(&Launch { file: "gather", kernel: "gather_rows_kept", grid, block: 256, args: &args })
    }
}

/// How many of the rows that were chosen had been chosen by the query before: `count_reused`.
#[derive(Clone, Copy, Debug)]
pub struct CountReused {
    /// KV heads.
    pub kv_heads: usize,
    /// Sequences.
    pub sequences: usize,
    /// `[sequence][kv_head]`: how many.
    pub reused: Array,
    /// `[owner][kv_head][pulled_stride]`: positions that were chosen before, and then those chosen now.
    pub pulled: Array,
    /// `[owner][kv_head]`: how many.
    pub pulled_counts: Array,
    /// From one KV head's positions to the next's.
    pub pulled_stride: usize,
    /// `[sequence][kv_head][slot_stride]`: the slots that were chosen.
    pub slots: Array,
    /// From one KV head's slots to the next's.
    pub slot_stride: usize,
    /// `[sequence][kv_head]`: how many.
    pub counts: Array,
    /// `[sequence]`: which of the owners it is.
    pub owners: Array,
    /// Of every slot.
    pub positions: Array,
    /// `[sequence][kv_head]`, eight words each.
    pub lanes: Array,
}

impl CountReused {
    /// Starts it.
    ///
    /// # Errors
    /// Sizes that are too large, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        if self.sequences == 0 {
            return Ok(());
        }
        let [slot_stride, pulled_stride] = words([self.slot_stride, self.pulled_stride])?;
        let args = [
            self.reused.into(),
            self.pulled.into(),
            self.pulled_counts.into(),
            self.slots.into(),
            self.counts.into(),
            self.owners.into(),
            self.positions.into(),
            self.lanes.into(),
            slot_stride,
            pulled_stride,
        ];
        let grid = grid([self.kv_heads, self.sequences, 1])?;
        gpu.launch(&Launch { file: "gather", kernel: "count_reused", grid, block: 256, args: &args })
    }
}

/// Survivors moved together within their lanes, order kept: `compact_rows`.
#[derive(Clone, Copy, Debug)]
pub struct CompactRows {
    /// KV heads.
    pub kv_heads: usize,
    /// Sequences.
    pub sequences: usize,
    /// Slots per block.
    pub block_size: usize,
    /// Slab of keys.
    pub k: Array,
    /// Slab of values by the same tables; none where they do not lie beside the keys.
    pub v: Array,
    /// Bytes of a key's row and of a value's, multiples of 4.
    pub row_bytes: [usize; 2],
    /// `[sequence][kv_head][kept_stride]`: the slots that move, ascending.
    pub kept: Array,
    /// From one KV head's slots to the next's.
    pub kept_stride: usize,
    /// `[sequence][kv_head]`: how many.
    pub counts: Array,
    /// `[sequence][kv_head]`: the slot that the first of them moves to; none of them moves up.
    pub first: Array,
    /// Block tables.
    pub blocks: Array,
    /// `[sequence][kv_head]`, eight words each.
    pub lanes: Array,
}

impl CompactRows {
    /// Starts it.
    ///
    /// # Errors
    /// Rows that are no whole number of words, sizes that are too large, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        self.row_bytes.into_iter().try_for_each(check_words)?;
        if self.sequences == 0 {
            return Ok(());
        }
        let [block_size, k_row_bytes, v_row_bytes, kept_stride] =
            words([self.block_size, self.row_bytes[0], self.row_bytes[1], self.kept_stride])?;
        let args = [
            self.k.into(),
            self.v.into(),
            self.kept.into(),
            self.counts.into(),
            self.first.into(),
            self.blocks.into(),
            self.lanes.into(),
            block_size,
            k_row_bytes,
            v_row_bytes,
            kept_stride,
        ];
        let slabs = if self.v == Array::NONE { 1 } else { 2 };
        let grid = grid([self.kv_heads, slabs, self.sequences])?;
        gpu.launch(&Launch { file: "compact", kernel: "compact_rows", grid, block: 256, args: &args })
    }
}

/// Rows are moved word by word.
fn check_words(row_bytes: usize) -> Result<()> {
    if row_bytes.is_multiple_of(4) {
        return Ok(());
    }
    Err(DeviceError::Limit(format!(
        "rows of {row_bytes} bytes cannot be moved: they must be a multiple of 4"
    )))
}
