//! Floor 1: rows of K and V in codes of a few bits, and back. Pure: slices in, slices out.
//!
//! A group of elements shares a scale `s` and a zero `z`, both f16: `code = round((x - z) / s)`, `x~ = code * s + z`
//! (asymmetric, by the group's minimum and maximum; KIVI, arXiv 2402.02750). What a group is, [`Grouping`] says: some
//! consecutive channels of one token, or one channel of all the tokens of a page.
//!
//! Deviation from KIVI's code, which computes in f16 throughout: `z` is the minimum rounded *down* to f16 and `s` the
//! step rounded *up*, so that the codes always reach from the minimum to the maximum, and `|x - x~| <= s / 2` holds for
//! every finite element within f16's range. What lies beyond that range is cut off at it, what is no number is
//! coded as the zero.

//!
//! [`NuqCodec`] has codes that are not uniform, with outliers beside them (KVQuant, arXiv 2401.18079).

mod codebook;
mod codec;
mod group;
mod nuq;
mod rows;

pub use codebook::{Thresholds, k_means};
pub use codec::{Codec, Grouping};
pub use nuq::{NuqCodec, NuqLayout, OUTLIER_BYTES};
pub use rows::{CodedRows, StoredRows};
