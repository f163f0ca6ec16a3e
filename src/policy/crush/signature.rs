//! Bits, anchors, distances and picks: the arithmetic that the three implementations share or do each their way.

use crate::event::Layer;
use crate::event::crush::BitRow;
use crate::policy::noise::{self, Use};

/// What signatures are measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    /// The majority of each column, strictly above one half.
    Mean,
    /// Strictly below one half.
    InverseMean,
    /// 0, 1, 0, 1 …
    Alternating,
    /// Coin flips from the seed.
    Random,
    Zeros,
    Ones,
}

impl Anchor {
    /// A bit of it, where it is known without any signature, from the seed and the layer.
    pub(super) fn fixed(self, i: usize, seed: (u64, Layer)) -> Option<bool> {
        match self {
            Self::Mean | Self::InverseMean => None,
            Self::Alternating => Some(i % 2 == 1),
            Self::Random => {
                Some(noise::bits(seed.0, [Use::CrushAnchor as u64, seed.1.into(), i as u64]) & 1 == 1)
            }
            Self::Zeros => Some(false),
            Self::Ones => Some(true),
        }
    }
}

/// A row of bits per unit, the first bit highest in the first word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Signatures {
    /// Bits of a row.
    width: usize,
    /// Words of a row.
    words: usize,
    /// Row after row, and one more that nobody reads.
    bits: Vec<u64>,
    /// Whether a unit has a row at all.
    takes_part: Vec<bool>,
}

impl Signatures {
    /// Rows of zeros for the units that take part.
    pub(super) fn new(width: usize, takes_part: Vec<bool>) -> Self {
        let words = width.div_ceil(64);
        Self { width, words, bits: vec![0; words * (takes_part.len() + 1)], takes_part }
    }

    /// Where a unit's bits begin, for [`set`](Self::set). `None` takes bits that count for nothing.
    pub(super) fn place(&self, unit: Option<usize>) -> usize {
        unit.unwrap_or(self.takes_part.len()) * self.words * 64
    }

    /// Sets a bit if `one`, without a branch.
    pub(super) fn set(&mut self, at: usize, one: bool) {
        self.bits[at / 64] |= u64::from(one) << (63 - at % 64);
    }

    /// The row of a unit; empty for one that takes no part.
    fn row(&self, unit: usize) -> &[u64] {
        if self.takes_part[unit] { &self.bits[unit * self.words..][..self.words] } else { &[] }
    }

    fn ones(&self, unit: usize) -> u32 {
        self.row(unit).iter().map(|word| word.count_ones()).sum()
    }

    /// Bits of every row, 0 where no unit takes part.
    pub(super) fn width(&self) -> usize {
        if self.takes_part.contains(&true) { self.width } else { 0 }
    }

    /// The row as it is recorded.
    pub(super) fn recorded(&self, unit: usize) -> BitRow {
        BitRow::of_words(self.row(unit), if self.takes_part[unit] { self.width } else { 0 })
    }
}

/// Signatures with their anchor and distances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Signed {
    pub(super) signatures: Signatures,
    /// One bit per column, or one per unit.
    pub(super) anchor: Vec<bool>,
    pub(super) anchor_per_unit: bool,
    /// Per unit; 0 for one that takes no part.
    pub(super) distances: Vec<u32>,
}

impl Signed {
    /// Anchor and distances for the rows that take part. With `per_unit` the anchor has one bit per unit, and the
    /// distance is how many bits of the unit differ from it; the mean is then the majority inside the unit.
    pub(super) fn new(signatures: Signatures, anchor: Anchor, per_unit: bool, seed: (u64, Layer)) -> Self {
        let s = &signatures;
        let units = s.takes_part.len();
        // Ones among how many, for the majority at each place of the anchor.
        let share = |i: usize| {
            if per_unit {
                (s.ones(i) as usize, if s.takes_part[i] { s.width } else { 0 })
            } else {
                let ones: u64 =
                    (0..units).filter_map(|u| s.row(u).get(i / 64)).map(|w| w >> (63 - i % 64) & 1).sum();
                (ones as usize, s.takes_part.iter().filter(|&&takes_part| takes_part).count())
            }
        };
        let bit = |i: usize| {
            anchor.fixed(i, seed).unwrap_or_else(|| {
                let (ones, of) = share(i);
                if anchor == Anchor::InverseMean { 2 * ones < of } else { 2 * ones > of }
            })
        };
        let anchor: Vec<bool> = (0..if per_unit { units } else { s.width() }).map(bit).collect();
        let words = words(&anchor);
        let distance = |unit: usize| match per_unit {
            true if anchor[unit] && s.takes_part[unit] => s.width as u32 - s.ones(unit),
            true => s.ones(unit),
            false => s.row(unit).iter().zip(&words).map(|(row, anchor)| (row ^ anchor).count_ones()).sum(),
        };
        let distances = (0..units).map(distance).collect();
        Self { signatures, anchor, anchor_per_unit: per_unit, distances }
    }
}

/// Bits as words, the first highest.
pub(super) fn words(bits: &[bool]) -> Vec<u64> {
    let word =
        |bits: &[bool]| bits.iter().enumerate().fold(0, |word, (i, &bit)| word | u64::from(bit) << (63 - i));
    bits.chunks(64).map(word).collect()
}

/// These units by distance, the nearest first; of equal distances in the order given.
pub(super) fn by_distance(units: &[usize], distance: impl Fn(usize) -> u32) -> Vec<usize> {
    let most = units.iter().map(|&u| distance(u)).max().unwrap_or(0) as usize;
    // Distances are small numbers: counted, every unit has its place.
    let mut next = vec![0; most + 2];
    for &u in units {
        next[distance(u) as usize + 1] += 1;
    }
    for d in 1..next.len() {
        next[d] += next[d - 1];
    }
    let mut order = vec![0; units.len()];
    for &u in units {
        let place = &mut next[distance(u) as usize];
        order[*place] = u;
        *place += 1;
    }
    order
}

/// Every (n div m)-th of n units in order, m of them: so many as the budget, or all.
pub(super) fn pick_stepped(order: &[usize], budget: usize) -> Vec<usize> {
    let m = order.len().min(budget);
    let Some(step) = order.len().checked_div(m) else { return Vec::new() };
    order.iter().copied().step_by(step).take(m).collect()
}

/// `budget` of the units in order, evenly spread from the first to the last: the whole parts of
/// `linspace(0, n - 1, budget)`.
pub(super) fn pick_spread(order: &[usize], budget: usize) -> Vec<usize> {
    let m = order.len().min(budget);
    (0..m).map(|i| order[i * (order.len() - 1) / (m - 1).max(1)]).collect()
}
