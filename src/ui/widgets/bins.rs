//! Many values in few columns: every cell stands for the same number of values, and says how many.

use std::ops::Range;

/// How the values of one cell become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Binning {
    /// The largest: nothing that stands out is lost.
    #[default]
    Max,
    /// The mean of those present.
    Mean,
}

impl Binning {
    /// The word beside the number of values in a cell.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Max => "max",
            Self::Mean => "mean",
        }
    }

    /// One value for many; `None` if there is none. NaN counts as missing.
    pub fn join(self, values: impl Iterator<Item = Option<f32>>) -> Option<f32> {
        let present = values.flatten().filter(|value| !value.is_nan());
        match self {
            Self::Max => present.reduce(f32::max),
            Self::Mean => {
                let (sum, n) = present.fold((0.0, 0_u32), |(sum, n), value| (sum + f64::from(value), n + 1));
                (n > 0).then(|| (sum / f64::from(n)) as f32)
            }
        }
    }
}

/// `len` values over at most `width` cells: the same whole number of values in each cell, the last possibly fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bins {
    len: usize,
    per_cell: usize,
}

impl Bins {
    /// Spreads values over cells.
    pub fn new(len: usize, width: u16) -> Self {
        Self { len, per_cell: len.div_ceil(usize::from(width).max(1)).max(1) }
    }

    /// Values in a cell.
    pub const fn per_cell(self) -> usize {
        self.per_cell
    }

    /// Cells in use.
    pub const fn cells(self) -> usize {
        self.len.div_ceil(self.per_cell)
    }

    /// The values of a cell; empty beyond the last.
    pub fn values(self, cell: usize) -> Range<usize> {
        let start = cell.saturating_mul(self.per_cell).min(self.len);
        start..start.saturating_add(self.per_cell).min(self.len)
    }

    /// The cell of a value.
    pub fn cell(self, value: usize) -> Option<usize> {
        (value < self.len).then_some(value / self.per_cell)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn joining() {
        let values = [Some(1.0), None, Some(3.0), Some(f32::NAN)];
        assert_eq!(Binning::Max.join(values.into_iter()), Some(3.0));
        assert_eq!(Binning::Mean.join(values.into_iter()), Some(2.0));
        assert_eq!(Binning::Mean.join([None, Some(f32::NAN)].into_iter()), None);
        assert_eq!(Binning::Max.join(std::iter::empty()), None);
    }

    proptest! {
        #[test]
        fn every_value_is_in_exactly_one_cell(len in 0_usize..500, width in 0_u16..80) {
            let bins = Bins::new(len, width);
            prop_assert!(bins.cells() <= usize::from(width.max(1)));
            let all: Vec<usize> = (0..bins.cells()).flat_map(|cell| bins.values(cell)).collect();
            prop_assert_eq!(all, (0..len).collect::<Vec<_>>());
            for value in 0..len {
                let cell = bins.cell(value).unwrap();
                prop_assert!(bins.values(cell).contains(&value));
            }
            prop_assert_eq!(bins.cell(len), None);
            prop_assert!(bins.values(bins.cells()).is_empty());
        }
    }
}
