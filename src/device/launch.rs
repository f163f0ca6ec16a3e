//! The kernels of `kernels/` as functions: arguments in their order, grids from the sizes, and the limits that each file's
//! header states. Shapes and meanings are told there.

mod crush;
mod decode;
mod errors;
mod fill;
mod patch;
mod picture;
mod prefill;
mod rows;
mod select;
mod sums;

pub use crush::{Crush, CrushAnchor, CrushSizes};
pub use decode::{Cell, Decode};
pub use errors::CodingErrors;
pub use fill::FillRows;
pub use patch::PatchWords;
pub use picture::{Cells, PictureRows, TopSlots};
pub use prefill::Softmax;
pub use rows::{Append, CompactRows, CountReused, GatherKept, GatherPages, GatherRows, KeptRows, RopeRows};
pub use select::{SelectTop, Union, Weighted};
pub use sums::{Accumulate, SelectKeep, SumLanes, Sums};

use super::gpu::{Arg, DeviceError, Result};

/// Slots per partial result, as in `base.cuh`.
pub const SPLIT: usize = 256;
/// Words of a lane, as in `base.cuh`.
pub const LANE_WORDS: usize = 8;
/// Of these the two with the slots whose keys and whose values are in codes, where rows go there later.
pub const LANE_CODED: usize = 4;
/// The one with the position of the (first) query.
pub const LANE_QUERY: usize = 6;
/// The one with the beginning of the table of exact pages, where rows go into codes later.
pub const LANE_EXACT: usize = 7;
/// Most elements of a row.
pub const MAX_HEAD_DIM: usize = 256;
/// Elements that a thread takes at a time: rows are whole numbers of them.
pub const CHUNK: usize = 8;
/// Blocks that a grid has in its second and third dimension.
const MAX_GRID: usize = 65_535;

/// Heads of a layer as every kernel is told of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Elements of a row.
    pub head_dim: usize,
}

impl Heads {
    /// Query heads per KV head.
    pub const fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// Whether the kernels take rows of this length.
    ///
    /// # Errors
    /// They do not.
    pub fn check(self) -> Result<()> {
        let Self { head_dim, .. } = self;
        if head_dim == 0 || !head_dim.is_multiple_of(CHUNK) || head_dim > MAX_HEAD_DIM {
            return Err(DeviceError::Limit(format!(
                "heads of {head_dim} elements cannot be read: they must be a multiple of {CHUNK}, at most {MAX_HEAD_DIM}; \
                 use --device cpu"
            )));
        }
        Ok(())
    }
}

/// How a layer's scores are bent between products and softmax.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bend {
    /// Positions that a query sees, its own included; all of them where there is none.
    pub window: Option<u32>,
    /// A score `s` becomes `cap * tanh(s / cap)`.
    pub cap: Option<f32>,
}

impl Bend {
    fn window(self) -> Arg {
        self.window.unwrap_or(u32::MAX).into()
    }

    fn cap(self) -> Arg {
        self.cap.unwrap_or(0.0).into()
    }
}

/// A size as a kernel's `int`.
fn word(n: usize) -> Result<Arg> {
    match i32::try_from(n) {
        Ok(n) => Ok(Arg::Word(n as u32)),
        Err(_) => Err(DeviceError::Limit(format!("a size of {n} is more than a kernel takes"))),
    }
}

/// Sizes as a kernel's `int`s.
fn words<const N: usize>(sizes: [usize; N]) -> Result<[Arg; N]> {
    let mut all = [Arg::Word(0); N];
    for (arg, size) in all.iter_mut().zip(sizes) {
        *arg = word(size)?;
    }
    Ok(all)
}

/// A grid that a device can start.
fn grid([x, y, z]: [usize; 3]) -> Result<[u32; 3]> {
    if x > i32::MAX as usize || y > MAX_GRID || z > MAX_GRID {
        return Err(DeviceError::Limit(format!(
            "a grid of {x} x {y} x {z} blocks is more than there can be"
        )));
    }
    Ok([x as u32, y as u32, z as u32])
}
