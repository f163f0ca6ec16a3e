//! [`quantise`], by table: an attention picture has a cell per head and slot, and a logarithm each is too slow for that.

use std::sync::LazyLock;

use crate::event::attention::quantise;

/// Mantissa bits that pick a bucket: 64 buckets per octave, finer than the 16 cells per octave, so that at most one
/// boundary between cells lies in a bucket.
const BUCKET_BITS: u32 = 6;
const SHIFT: u32 = f32::MANTISSA_DIGITS - 1 - BUCKET_BITS;

/// The boundaries of [`quantise`], found by asking it.
pub(super) struct CellTable {
    /// Cell of each bucket's first value, buckets counted from the one before that of the smallest cell, which stands for
    /// all below it; the last one, that of 1, stands for all above it.
    first_cell: Box<[u8]>,
    first_bucket: u32,
    /// Smallest probability of each cell; that of cell 0 is 0, and nothing is as large as that of cell 256.
    lowest: [f32; 257],
}

/// The table, built on first use.
pub(super) static CELLS: LazyLock<CellTable> = LazyLock::new(CellTable::new);

impl CellTable {
    fn new() -> Self {
        let mut lowest = [0.0; 257];
        lowest[256] = f32::NAN;
        for cell in 1..=255u8 {
            lowest[usize::from(cell)] = lowest_of(cell);
        }
        let first_bucket = (lowest[1].to_bits() >> SHIFT) - 1;
        let last_bucket = 1.0f32.to_bits() >> SHIFT;
        let first_cell =
            (first_bucket..=last_bucket).map(|bucket| quantise(f32::from_bits(bucket << SHIFT))).collect();
        Self { first_cell, first_bucket, lowest }
    }

    /// The smallest probability of each cell, ascending; 0 for cell 0.
    pub(super) fn bounds(&self) -> &[f32] {
        &self.lowest[..256]
    }

    /// What [`quantise`] gives.
    #[inline]
    pub(super) fn quantise(&self, p: f32) -> u8 {
        // No branches: nearly every probability would take one that was not foreseen. NaN becomes 0 here.
        let p = if p > 0.0 { p } else { 0.0 };
        let bucket = (p.to_bits() >> SHIFT).saturating_sub(self.first_bucket) as usize;
        let first = self.first_cell[bucket.min(self.first_cell.len() - 1)];
        first + u8::from(p >= self.lowest[usize::from(first) + 1])
    }
}

/// Smallest f32 that becomes `cell` or more. Positive floats order as their bits do, so this is a search over bits.
fn lowest_of(cell: u8) -> f32 {
    let (mut below, mut at) = (0, 2.0f32.to_bits());
    while at - below > 1 {
        let middle = below + (at - below) / 2;
        if quantise(f32::from_bits(middle)) >= cell { at = middle } else { below = middle }
    }
    f32::from_bits(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_gives_what_the_formula_gives() {
        let same = |p: f32| assert_eq!(CELLS.quantise(p), quantise(p), "{p:e}");
        for p in [0.0, -0.0, -1.0, f32::NAN, 1.0, 1.5, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE] {
            same(p);
        }
        for cell in 1..=255 {
            let boundary = CELLS.lowest[cell].to_bits();
            (boundary - 200..=boundary + 200).for_each(|bits| same(f32::from_bits(bits)));
        }
        (0..1.1f32.to_bits()).step_by(4099).for_each(|bits| same(f32::from_bits(bits)));
        for bucket in 0..CELLS.first_cell.len() as u32 {
            let bits = (bucket + CELLS.first_bucket) << SHIFT;
            (bits - 2..=bits + 2).for_each(|bits| same(f32::from_bits(bits)));
        }
    }
}
