//! What attention reads: one lane of slots per KV head, its pages, and the shape they share.

use half::f16;
use thiserror::Error;

use crate::device::{Isa, Stored};
use crate::event::{BlockId, Position};
use crate::quant::CodedRows;

use super::rope::Rope;
use super::scoring::Scoring;

/// Stands in [`HeadLane::slots`] for a slot whose token was evicted.
pub const HOLE: Position = Position::MAX;

/// Heads of a layer and their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// A shape that attention cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ShapeError {
    /// The query heads cannot be shared out evenly.
    #[error(
        "attention with {heads} query heads over {kv_heads} KV heads: the first must be a positive multiple of the \
         second, check the model's configuration"
    )]
    Heads {
        /// Query heads.
        heads: usize,
        /// KV heads.
        kv_heads: usize,
    },
    /// Heads of no size, or sizes that no model has.
    #[error(
        "attention with {heads} query heads of {head_dim} elements: at least 1 and at most 65535 of each, check the \
         model's configuration"
    )]
    Size {
        /// Query heads.
        heads: usize,
        /// Elements per head.
        head_dim: usize,
    },
}

impl Shape {
    /// A shape of `heads` query heads over `kv_heads` KV heads of `head_dim` elements.
    pub const fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Result<Self, ShapeError> {
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(ShapeError::Heads { heads, kv_heads });
        }
        // Heads are numbered by u16 ([`Head`](crate::event::Head)); so small, no product of sizes can overflow.
        if head_dim == 0 || head_dim > u16::MAX as usize || heads > u16::MAX as usize {
            return Err(ShapeError::Size { heads, head_dim });
        }
        Ok(Self { heads, kv_heads, head_dim })
    }

    /// Query heads.
    pub const fn heads(self) -> usize {
        self.heads
    }

    /// KV heads.
    pub const fn kv_heads(self) -> usize {
        self.kv_heads
    }

    /// Elements per head.
    pub const fn head_dim(self) -> usize {
        self.head_dim
    }

    /// Query heads per KV head.
    pub const fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// Elements of one token's queries: all query heads.
    pub const fn width(self) -> usize {
        self.heads * self.head_dim
    }

    /// The factor on scores, `1 / sqrt(head_dim)`.
    pub fn scale(self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }
}

/// The slots of one (sequence, layer, KV head) in table order, and the pages they lie in.
#[derive(Clone, Copy, Debug)]
pub struct HeadLane<'a> {
    /// Position per slot, ascending; [`HOLE`] for an evicted one. As long as the table is filled.
    pub slots: &'a [Position],
    /// Slots per block.
    pub block_size: usize,
    /// Keys.
    pub k: Pages<'a>,
    /// Values; may be empty where they lie elsewhere and are staged for
    /// [`weighted_sum_selected`](super::Attention::weighted_sum_selected).
    pub v: Pages<'a>,
    /// How keys and queries are rotated at read.
    pub rotation: Rotation<'a>,
    /// What becomes of scores before the softmax.
    pub scoring: Scoring,
}

/// By what keys that were stored *before* RoPE are rotated at read, and queries with them.
#[derive(Clone, Copy, Debug)]
pub enum Rotation<'a> {
    /// By nothing: keys and queries come rotated.
    None,
    /// A key by the rank of its slot among the live ones, a query by the rank of its own slot, so positions restart inside
    /// the cache (StreamingLLM, arXiv 2309.17453).
    ByRank(&'a Rope),
    /// Key and query by their positions, as they would have been before they were stored.
    ByPosition(&'a Rope),
    /// A key less than `window` positions before a query by its own position, as the query; any other is attended as if it
    /// were `window` positions away (InfLLM, arXiv 2402.04617).
    Windowed {
        /// The model's rotation.
        rope: &'a Rope,
        /// Positions, at least 1.
        window: Position,
    },
}

impl<'a> Rotation<'a> {
    /// The rotation and its angle for a row at a live slot's rank and position; `None` where rows are read as they lie, or
    /// a key is turned for each query anew.
    pub(super) fn at(self, rank: usize, position: Position) -> Option<(&'a Rope, usize)> {
        match self {
            Self::None | Self::Windowed { .. } => None,
            Self::ByRank(rope) => Some((rope, rank)),
            Self::ByPosition(rope) => Some((rope, position as usize)),
        }
    }

    /// Rotates a key as it is read.
    pub fn turn(self, key: &mut [f32], rank: usize, position: Position) {
        if let Some((rope, index)) = self.at(rank, position) {
            rope.apply(key, index);
        }
    }
}

impl HeadLane<'_> {
    /// Number of live slots.
    pub fn live(&self) -> usize {
        self.slots.iter().filter(|&&p| p != HOLE).count()
    }

    /// Number of leading slots that hold every position up to `query`, and how many of them are live. `from` is such a
    /// pair for an earlier query, or `(0, 0)`.
    pub(super) fn visible(&self, query: Position, from: (usize, usize)) -> (usize, usize) {
        let (mut slots, mut live) = from;
        for (i, &position) in self.slots.iter().enumerate().skip(slots) {
            if position == HOLE {
                continue;
            }
            if position > query {
                break;
            }
            (slots, live) = (i + 1, live + 1);
        }
        (slots, live)
    }
}

/// Pages of one lane in table order, each `[slot][head_dim]`; the last one may be cut off after its last slot in use.
#[derive(Clone, Copy, Debug)]
pub enum Pages<'a> {
    /// Full precision.
    F32(&'a [&'a [f32]]),
    /// Half precision.
    F16(&'a [&'a [f16]]),
    /// In codes, all or the leading rows; decoded a block at a time.
    Coded(&'a [CodedRows<'a>]),
    /// In a GPU's memory, by the block's id ([`super::gpu::PageCopies`]); no processor reads them.
    Placed(&'a [BlockId]),
}

impl<'a> Pages<'a> {
    /// Number of pages.
    pub const fn len(&self) -> usize {
        match self {
            Self::F32(pages) => pages.len(),
            Self::F16(pages) => pages.len(),
            Self::Coded(pages) => pages.len(),
            Self::Placed(blocks) => blocks.len(),
        }
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `len` elements of a page.
    pub(super) fn page(&self, index: usize, len: usize) -> Rows<'a> {
        match *self {
            Self::F32(pages) => Rows::F32(&pages[index][..len]),
            Self::F16(pages) => Rows::F16(&pages[index][..len]),
            Self::Coded(pages) => Rows::Coded(pages[index].cut(0, len / pages[index].row())),
            Self::Placed(_) => unreachable!("the backend reads the pages of its own device"),
        }
    }

    /// The first `len` elements of a page that may be read soon, if it is there and not in codes.
    pub(super) fn ahead(&self, index: usize, len: usize) -> Stored<'a> {
        match *self {
            Self::F32(pages) => pages.get(index).and_then(|page| page.get(..len)).map(Stored::F32),
            Self::F16(pages) => pages.get(index).and_then(|page| page.get(..len)).map(Stored::F16),
            Self::Coded(_) | Self::Placed(_) => None,
        }
        .unwrap_or(Stored::NONE)
    }
}

/// Rows in one piece, `[row][head_dim]`.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Full precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// In codes, all or the leading rows.
    Coded(CodedRows<'a>),
}

impl<'a> Rows<'a> {
    /// Number of elements.
    pub const fn len(&self) -> usize {
        match self {
            Self::F32(rows) => rows.len(),
            Self::F16(rows) => rows.len(),
            Self::Coded(rows) => rows.rows() * rows.row(),
        }
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements `from..to`, whole rows.
    pub(super) fn cut(self, from: usize, to: usize) -> Self {
        match self {
            Self::F32(rows) => Self::F32(&rows[from..to]),
            Self::F16(rows) => Self::F16(&rows[from..to]),
            Self::Coded(rows) => Self::Coded(rows.cut(from / rows.row(), to / rows.row())),
        }
    }

    /// As f32: as they are, or converted into `scratch`.
    pub(super) fn widen<'s>(self, scratch: &'s mut Vec<f32>) -> &'s [f32]
    where
        'a: 's,
    {
        match self {
            Self::F32(rows) => rows,
            Self::F16(_) | Self::Coded(_) => self.copy_into(scratch),
        }
    }

    /// As f32 in `scratch`.
    pub(super) fn copy_into(self, scratch: &mut Vec<f32>) -> &mut [f32] {
        scratch.resize(self.len(), 0.0);
        match self {
            Self::F32(rows) => scratch.copy_from_slice(rows),
            Self::F16(rows) => Isa::best().widen(Stored::F16(rows), scratch),
            Self::Coded(rows) => rows.decode(scratch),
        }
        scratch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_needs_heads_that_share_out_evenly() {
        assert_eq!(Shape::new(9, 3, 64).unwrap().group(), 3);
        assert!(matches!(Shape::new(9, 2, 64), Err(ShapeError::Heads { .. })));
        assert!(Shape::new(0, 1, 64).is_err() && Shape::new(4, 0, 64).is_err());
        assert!(matches!(Shape::new(4, 4, 0), Err(ShapeError::Size { .. })));
        assert!(Shape::new(1 << 16, 1, 1).is_err() && Shape::new(1, 1, usize::MAX).is_err());
    }

    #[test]
    fn visible_stops_before_the_first_later_position_and_goes_on_from_there() {
        let slots = [0, HOLE, 4, 5, HOLE, 9];
        let lane = HeadLane {
            slots: &slots,
            block_size: 4,
            k: Pages::F32(&[]),
            v: Pages::F32(&[]),
            rotation: Rotation::None,
            scoring: Scoring::default(),
        };
        assert_eq!(lane.visible(4, (0, 0)), (3, 2));
        assert_eq!(lane.visible(8, (3, 2)), (4, 3));
        assert_eq!(lane.visible(9, (4, 3)), (6, 4));
        assert_eq!(lane.live(), 4);
    }
}
