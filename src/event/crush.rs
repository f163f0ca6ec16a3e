//! What KVCrush saw when it decided: signatures, anchor, distances, and what became of each unit.

use serde::{Deserialize, Serialize};

use super::ids::{Head, Layer, Position};

/// Most units of one layer that are recorded: those at the end are left out, and [`Crush::units`] says how many there
/// were.
pub const MAX_UNITS: usize = 256;
/// Most bits of a signature that are recorded, the first ones.
pub const MAX_BITS: usize = 256;

/// The decision of one layer. Units are tokens or groups of consecutive tokens, in the order of their positions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crush {
    /// Decoder layer.
    pub layer: Layer,
    /// KV head whose units these are where each head keeps its own important ones; `None` where the layer is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
    /// Units there were, recorded or not.
    pub units: u32,
    /// Bits of each signature, recorded or not.
    pub bits: u32,
    /// The anchor, or one anchor bit per unit where each unit has its own ([`Crush::anchor_per_unit`]).
    pub anchor: BitRow,
    /// Whether the anchor has a bit per unit that stands for the unit's whole signature.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anchor_per_unit: bool,
    /// First position of each unit.
    pub first: Vec<Position>,
    /// What became of each unit, see [`Fate`]: one letter each.
    pub fates: String,
    /// Signature of each unit that competed, in order; the others have an empty one.
    pub signatures: Vec<BitRow>,
    /// Hamming distance to the anchor of each unit; 0 where it has no signature.
    pub distances: Vec<u32>,
    /// A bit per unit: whether it would have stayed had the whole budget gone by score. Empty where it was not recorded.
    #[serde(default, skip_serializing_if = "BitRow::is_empty")]
    pub by_score: BitRow,
}

/// What became of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// Kept: among the first tokens.
    Start,
    /// Kept: among the newest.
    Recent,
    /// Kept for its score.
    Important,
    /// Kept because it stands for tokens with signatures near its own.
    Representative,
    /// Lost.
    Lost,
}

impl Fate {
    /// All fates.
    pub const ALL: [Self; 5] = [Self::Start, Self::Recent, Self::Important, Self::Representative, Self::Lost];

    /// The letter in a recording.
    pub const fn letter(self) -> char {
        match self {
            Self::Start => 's',
            Self::Recent => 'n',
            Self::Important => 'i',
            Self::Representative => 'r',
            Self::Lost => 'x',
        }
    }

    /// The letter back to the fate.
    pub fn from_letter(letter: char) -> Option<Self> {
        Self::ALL.into_iter().find(|fate| fate.letter() == letter)
    }

    /// The words shown to a person.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Start => "kept: first tokens",
            Self::Recent => "kept: newest tokens",
            Self::Important => "kept: score",
            Self::Representative => "kept: represents its like",
            Self::Lost => "lost",
        }
    }
}

/// A row of bits, written as hexadecimal digits: the first bit is the highest of the first digit, the last digit is
/// filled up with zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BitRow(pub String);

impl BitRow {
    /// The first [`MAX_BITS`] of these bits.
    pub fn new(bits: &[bool]) -> Self {
        Self::whole(&bits[..bits.len().min(MAX_BITS)])
    }

    /// All of these bits.
    pub fn whole(bits: &[bool]) -> Self {
        let digit = |four: &[bool]| {
            let value = (0..4).fold(0, |v, i| v << 1 | u32::from(four.get(i).copied().unwrap_or(false)));
            char::from_digit(value, 16).expect("four bits are below 16")
        };
        Self(bits.chunks(4).map(digit).collect())
    }

    /// The `i`-th bit; none beyond the last digit is set.
    pub fn bit(&self, i: usize) -> bool {
        let digit = self.0.as_bytes().get(i / 4).and_then(|&byte| char::from(byte).to_digit(16));
        digit.is_some_and(|digit| digit >> (3 - i % 4) & 1 == 1)
    }

    /// Whether there are no bits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same for the first `bits` of words, each with its first bit highest; those beyond are zeros.
    pub fn of_words(words: &[u64], bits: usize) -> Self {
        let digit = |i: usize| {
            let value = words[i / 16] >> (60 - i % 16 * 4) & 0xf;
            char::from_digit(value as u32, 16).expect("four bits are below 16")
        };
        Self((0..bits.min(MAX_BITS).div_ceil(4)).map(digit).collect())
    }

    /// The bits, with those that fill up the last digit.
    pub fn bits(&self) -> impl Iterator<Item = bool> + '_ {
        let digits = self.0.chars().filter_map(|c| c.to_digit(16));
        digits.flat_map(|digit| (0..4).rev().map(move |i| digit >> i & 1 == 1))
    }
}

impl Crush {
    /// What became of each recorded unit.
    pub fn fates(&self) -> impl Iterator<Item = Fate> + '_ {
        self.fates.chars().filter_map(Fate::from_letter)
    }

    /// Leaves out the units beyond [`MAX_UNITS`].
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.first.truncate(MAX_UNITS);
        self.fates.truncate(MAX_UNITS);
        self.signatures.truncate(MAX_UNITS);
        self.distances.truncate(MAX_UNITS);
        self.by_score.0.truncate(MAX_UNITS / 4);
        self
    }

    /// Whether it keeps its own rules: no more than the bounds, columns of one length, known letters.
    pub fn is_sound(&self) -> bool {
        let n = self.first.len();
        let digits =
            |row: &BitRow| row.0.len() <= MAX_BITS / 4 && row.0.bytes().all(|b| b.is_ascii_hexdigit());
        n <= MAX_UNITS
            && n <= self.units as usize
            && [self.fates.len(), self.signatures.len(), self.distances.len()] == [n; 3]
            && self.fates().count() == n
            && digits(&self.anchor)
            && self.signatures.iter().all(digits)
            && self.distances.iter().all(|&distance| distance <= self.bits)
            && digits(&self.by_score)
            && [0, n.div_ceil(4)].contains(&self.by_score.0.len())
            && self.first.is_sorted_by(|a, b| a < b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_back_in_order() {
        let bits = [true, false, true, false, true, true];
        let row = BitRow::new(&bits);
        assert_eq!(row.0, "ac");
        assert_eq!(row.bits().take(6).collect::<Vec<_>>(), bits);
        assert_eq!((0..6).map(|i| row.bit(i)).collect::<Vec<_>>(), bits);
        assert!(!row.bit(100) && !BitRow("?".into()).bit(0));
        assert_eq!(BitRow::whole(&[true; 1000]).0.len(), 250);
        assert_eq!(BitRow::new(&[true; 1000]).0.len(), MAX_BITS / 4);
    }

    #[test]
    fn letters_stand_for_fates() {
        for fate in Fate::ALL {
            assert_eq!(Fate::from_letter(fate.letter()), Some(fate));
        }
        assert_eq!(Fate::from_letter('?'), None);
    }

    #[test]
    fn what_breaks_its_own_rules_is_seen() {
        let sound = Crush {
            units: 2,
            bits: 4,
            anchor: BitRow("a".into()),
            first: vec![0, 4],
            fates: "ix".into(),
            signatures: vec![BitRow::default(), BitRow("f".into())],
            distances: vec![0, 2],
            ..Crush::default()
        };
        assert!(sound.is_sound() && Crush::default().is_sound());
        let breaks = |change: &dyn Fn(&mut Crush)| {
            let mut bad = sound.clone();
            change(&mut bad);
            !bad.is_sound()
        };
        assert!(breaks(&|c| c.units = 1));
        assert!(breaks(&|c| c.first = vec![4, 4]));
        assert!(breaks(&|c| c.fates = "i?".into()));
        assert!(breaks(&|c| c.fates = "i\u{20ac}".into()));
        assert!(breaks(&|c| c.anchor = BitRow("g".into())));
        assert!(breaks(&|c| c.distances.clear()));
        assert!(breaks(&|c| c.distances[1] = 5));
        assert!(breaks(&|c| c.by_score = BitRow("80".into())));
        assert!(breaks(&|c| c.by_score = BitRow("?".into())));
    }
}
