//! What the first lane's decision looked like, whether it was made here or where the sums are.

use std::ops::Range;

use crate::event::crush::{BitRow, Fate};
use crate::event::{Crush, Head, Layer, Position};

/// What the first lane's decision looked like, of as many units as are recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrushPicture {
    /// Units of the lane.
    pub(super) units: usize,
    /// Those that compete.
    pub(super) competing: Range<usize>,
    /// Bits of each signature.
    pub(super) bits: usize,
    pub(super) anchor: BitRow,
    pub(super) anchor_per_unit: bool,
    /// The first units.
    pub(super) shown: Vec<Shown>,
}

/// A unit of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) first: Position,
    pub(super) signature: BitRow,
    pub(super) distance: u32,
    /// Stays for its score.
    pub(super) important: bool,
    /// Stands for its like.
    pub(super) picked: bool,
    /// Would stay if there were no representatives.
    pub(super) by_score: bool,
}

impl CrushPicture {
    /// From words as `crush_verdicts` leaves them (`kernels/crush.cu`): a column has `shown` units, a row of bits
    /// `shown_words` words, all rows but an empty one are `width` bits.
    pub fn of_words(words: &[u32], width: usize, shown: usize, shown_words: usize) -> Self {
        let row = |first: usize| {
            let pairs = words[first..first + shown_words].as_chunks::<2>().0.iter();
            let words: Vec<u64> = pairs.map(|&[low, high]| u64::from(high) << 32 | u64::from(low)).collect();
            BitRow::of_words(&words, width)
        };
        let [units, first, end] = [0, 1, 2].map(|i| words[i] as usize);
        let competing = first..end;
        let (anchor, columns) = (3, 3 + shown_words);
        let unit = |unit: usize| {
            let [position, distance, flags] = [0, 1, 2].map(|column| words[columns + column * shown + unit]);
            let competes = competing.contains(&unit);
            Shown {
                first: position,
                signature: if competes {
                    row(columns + 3 * shown + unit * shown_words)
                } else {
                    BitRow::default()
                },
                distance,
                important: flags & 1 > 0,
                picked: flags & 2 > 0,
                by_score: flags & 4 > 0,
            }
        };
        let shown = (0..units.min(shown)).map(unit).collect();
        let (bits, anchor) = if competing.is_empty() { (0, BitRow::default()) } else { (width, row(anchor)) };
        Self { units, competing, bits, anchor, anchor_per_unit: false, shown }
    }

    fn fate(&self, unit: usize) -> Fate {
        let Shown { important, picked, .. } = self.shown[unit];
        match () {
            () if unit < self.competing.start && !self.competing.is_empty() => Fate::Start,
            () if !self.competing.contains(&unit) => Fate::Recent,
            () if important => Fate::Important,
            () if picked => Fate::Representative,
            () => Fate::Lost,
        }
    }

    /// As it is recorded. `head`: whose units these are, where each head has its own.
    pub fn recorded(self, layer: Layer, head: Option<Head>) -> Crush {
        let fates = (0..self.shown.len()).map(|unit| self.fate(unit).letter()).collect();
        let by_score: Vec<bool> = self.shown.iter().map(|unit| unit.by_score).collect();
        Crush {
            layer,
            head,
            units: self.units as u32,
            bits: self.bits as u32,
            anchor: self.anchor,
            anchor_per_unit: self.anchor_per_unit,
            first: self.shown.iter().map(|unit| unit.first).collect(),
            fates,
            distances: self.shown.iter().map(|unit| unit.distance).collect(),
            signatures: self.shown.into_iter().map(|unit| unit.signature).collect(),
            by_score: BitRow::new(&by_score),
        }
    }
}
