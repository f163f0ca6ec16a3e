//! Floor 2: attention over pages, decode and chunked prefill.
//!
//! One trait, [`Attention`], and two backends, [`cpu::CpuAttention`] and [`gpu::GpuAttention`]. A decode step is cut into stages that are
//! called one after the other and can each be clocked, because a read set pulls V rows between them:
//!
//! ```text
//! scores ─▶ select_top ─▶ (V rows are pulled) ─▶ weighted_sum_selected
//!        └──────────────────────────────────────▶ weighted_sum
//! select_pages ─▶ scores_of_pages ─▶ weighted_sum_of_pages
//! ```
//!
//! # Shapes
//!
//! Queries and outputs are `[token][head][head_dim]`. Query head `i` reads KV head `i / group`, with `group` query heads
//! per KV head ([`Shape`]). A query at position `p` sees the live slots whose position is at most `p`; scores are scaled
//! by `1 / sqrt(head_dim)`. A lane may narrow what is seen to a window and cap the scores ([`Scoring`]).
//!
//! # Same bits
//!
//! A sum over slots is made of partial sums over fixed ranges of [`RANGE_SLOTS`] slots, each in ascending slot order,
//! combined in ascending order. Over the same slots neither the number of threads nor the size of a prefill chunk changes an output's bits,
//! and a selection that holds every live slot gives the bits of the full sum. Nor does the processor: the innermost loops
//! have one order on all of them ([`crate::device::simd`]). A GPU has an order of its own, the same on every device, and
//! [`gpu`] says where it differs.

mod bounds;
mod cells;
pub mod cpu;
pub mod gpu;
mod kernel;
mod lane;
mod observe;
mod pages;
mod probabilities;
mod rope;
mod scoring;
mod select;
#[cfg(test)]
mod tests;
mod tile;
mod window;

use crate::device::gpu::DeviceError;
use crate::event::Position;

pub use bounds::PageBounds;
pub use lane::{HOLE, HeadLane, Pages, Rotation, Rows, Shape, ShapeError};
pub use observe::{PictureCells, PictureRow, observe, picture_group};
pub use pages::{LanePages, PageSelection};
pub use probabilities::Probabilities;
pub use rope::{Rope, Ropes, Scaling};
pub use scoring::Scoring;
pub use select::{LaneSelection, Selection};
pub use tile::RANGE_SLOTS;

/// Consecutive queries of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[token][head][head_dim]`; rotated, unless the lanes hold keys before RoPE ([`HeadLane::rotation`]).
    pub rows: &'a [f32],
    /// Position of the first token; the others follow.
    pub first: Position,
}

/// What a prefill hands out beside its output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// Attention received by each slot, for [`Attention::column_sums`].
    pub column_sums: bool,
    /// The last query's rows, for [`Attention::probabilities`].
    pub last_row: bool,
}

/// Takes the rows of a prefill while they are at hand: one sink per KV head, each called from one thread.
pub trait RowSink: Send {
    /// The row of the query at a position: the mean over the group's query heads, one probability per slot up to the
    /// last that the query sees, 0 at holes. Queries come in order.
    fn row(&mut self, query: Position, row: &[f32]);
}

/// Where the time of a prefill went (measured), added up over the KV heads: with several threads it exceeds the wall
/// clock, so a caller uses it to split the time that it clocked itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefillTime {
    /// Query times keys, softmax.
    pub score_ns: u64,
    /// Probabilities times values.
    pub weighted_sum_ns: u64,
    /// Column sums, the copy of the last row and the sinks: what was asked for.
    pub probe_ns: u64,
}

/// A backend: the stages of attention of one (sequence, layer), over one [`HeadLane`] per KV head.
///
/// The backend keeps the probabilities of its latest [`scores`](Self::scores) and the selection of its latest
/// [`select_top`](Self::select_top); the later stages use them. Buffers are reused from call to call.
///
/// # Panics
///
/// All stages panic when slices do not have the lengths that [`Shape`] and the lanes imply, or when a later stage comes
/// with lanes of other lengths than `scores` had: both are faults of the caller, never of an input.
pub trait Attention: Send {
    /// Heads and head size this backend was made for.
    fn shape(&self) -> Shape;

    /// Decode, first stage: the softmax probabilities of the newest token's query over every lane's slots, 0 at holes.
    fn scores(&mut self, query: Queries<'_>, lanes: &[HeadLane<'_>]);

    /// Decode, read set: the `n` slots of largest probability for each query head, ties going to the earlier position
    /// (KCache, arXiv 2404.18057). `include_self` adds the query's own token to them where it is not among them.
    fn select_top(&mut self, lanes: &[HeadLane<'_>], n: usize, include_self: bool) -> &Selection;

    /// Decode, last stage over all slots; V is read from the lanes. `out` is `[head][head_dim]`.
    fn weighted_sum(&mut self, lanes: &[HeadLane<'_>], out: &mut [f32]);

    /// Decode, on the way to the last stage: brings the rows of the latest selection to where they are summed, so that the
    /// time of that can be clocked. A backend that sums them where they lie has nothing to do.
    fn stage(&mut self, values: &[Rows<'_>]) {
        let _ = values;
    }

    /// Decode, last stage over the latest selection. `values` has per KV head the V rows of its union, ascending as in
    /// [`LaneSelection::slots`]. Every query head uses the rows that it asked for itself; the probabilities are not
    /// scaled up for what was left out. `out` is `[head][head_dim]`.
    fn weighted_sum_selected(&mut self, values: &[Rows<'_>], out: &mut [f32]);

    /// Decode, first stage of a read set by pages: each query head chooses the page of the newest slot, and of the
    /// others the `most` of largest bound (Quest, arXiv 2406.10774). `bounds` are one per KV head, up to date with the
    /// lanes, whose keys come rotated.
    fn select_pages(
        &mut self,
        query: Queries<'_>,
        lanes: &[HeadLane<'_>],
        bounds: &[PageBounds],
        most: usize,
    ) -> &PageSelection;

    /// Second stage: as [`scores`](Self::scores), over the slots of each head's pages alone; the others have
    /// probability 0.
    fn scores_of_pages(&mut self, query: Queries<'_>, lanes: &[HeadLane<'_>]);

    /// Last stage: as [`weighted_sum`](Self::weighted_sum), reading V of the chosen pages alone.
    fn weighted_sum_of_pages(&mut self, lanes: &[HeadLane<'_>], out: &mut [f32]);

    /// The latest choice of pages as a selection from the present probabilities: after a [`scores`](Self::scores) over
    /// everything, what the pages hold of them.
    fn select_chosen_pages(&mut self, lanes: &[HeadLane<'_>]) -> &Selection;

    /// As [`select_chosen_pages`](Self::select_chosen_pages) where every head read the same slots: `read`, one per slot.
    fn select_slots(&mut self, lanes: &[HeadLane<'_>], read: &[bool]) -> &Selection;

    /// A chunk of queries against lanes that already hold the chunk's own rows. `out` is `[token][head][head_dim]`.
    /// `sinks` are one per KV head, or none where nobody asks for rows.
    fn prefill(
        &mut self,
        queries: Queries<'_>,
        lanes: &[HeadLane<'_>],
        wants: Wants,
        sinks: &mut [&mut dyn RowSink],
        out: &mut [f32],
    ) -> PrefillTime;

    /// The rows of the latest `scores`, or of the last query of the latest `prefill` that wanted them.
    fn probabilities(&self) -> &Probabilities;

    /// The latest choice of pages.
    fn pages(&self) -> &PageSelection;

    /// The latest selection.
    fn selection(&self) -> &Selection;

    /// Attention that each slot of a KV head received from the latest prefill's queries: the mean over the group's
    /// query heads, summed over the queries (the accumulator of H2O, arXiv 2306.14048). Empty unless wanted.
    fn column_sums(&self, kv_head: usize) -> &[f32];

    /// The copy of the cache's pages that this backend reads, where it does not read the cache's own: it is to be told of
    /// every change before a stage.
    fn copies(&mut self) -> Option<&mut dyn gpu::PageCopies> {
        None
    }

    /// This backend over pages that it has alone, where it can: rows do not pass the host then, and the cache has no pages.
    fn resident(&mut self) -> Option<&mut dyn gpu::Resident> {
        None
    }

    /// Why a stage since the last call failed. What it left means nothing then.
    fn take_fault(&mut self) -> Option<DeviceError> {
        None
    }
}
