//! What a merge rule did: rows that went into others before they were lost, and rows of two layers that became alike.

use serde::{Deserialize, Serialize};

use super::crush::BitRow;
use super::ids::{Head, Layer, Position};

/// Most arcs of one step that are all recorded; above it only [`NEAREST_ARCS`] of each (layer, KV head) are.
pub const MAX_STEP_ARCS: usize = 16_384;
/// Arcs kept of one (layer, KV head), those of the newest victims, once a step exceeds [`MAX_STEP_ARCS`].
pub const NEAREST_ARCS: usize = 64;

/// What one (layer, KV head) merged in one step: state that is altered, not lost.
///
/// Either of victims, which the policy's [`Eviction`](super::Eviction) of this (layer, KV head) names: those merged went
/// into kept tokens of the same head, the others are lost. Or of two layers ([`Merge::with`]), in which nothing is lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Merge {
    /// Decoder layer whose rows were altered.
    pub layer: Layer,
    /// KV head.
    pub head: Head,
    /// The layer whose rows became like this one's; `None` where victims were merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<Layer>,
    /// Tokens merged.
    pub merged: u32,
    /// Tokens that were not: victims lost, or tokens too unlike in the two layers.
    pub apart: u32,
    /// One bit per victim, positions ascending, set where it was merged; empty between layers.
    #[serde(default, skip_serializing_if = "is_blank")]
    pub fates: BitRow,
    /// The similarity that a victim had to reach, where the rule has such a threshold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
    /// Change of the K rows that were altered.
    #[serde(default, skip_serializing_if = "Drift::is_none")]
    pub k: Drift,
    /// Change of the V rows that were altered.
    #[serde(default, skip_serializing_if = "Drift::is_none")]
    pub v: Drift,
    /// Which victim went where, positions ascending; see [`MAX_STEP_ARCS`]. Empty between layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arcs: Vec<MergeArc>,
    /// Bytes that storing both layers' rows as one would save (modelled: the pages here hold both). Of a pair of layers
    /// the upper one tells it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub saved_bytes: u64,
}

/// One victim and where its row went.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "ArcRepr", into = "ArcRepr")]
pub struct MergeArc {
    /// The victim.
    pub from: Position,
    /// The kept token, or the first of several.
    pub into: Position,
    /// How many kept tokens in a row.
    pub targets: u32,
    /// Weight of the victim's row in each.
    pub weight: f32,
}

/// `[from, into, targets, weight]` in JSON.
type ArcRepr = (Position, Position, u32, f32);

impl From<ArcRepr> for MergeArc {
    fn from((from, into, targets, weight): ArcRepr) -> Self {
        Self { from, into, targets, weight }
    }
}

impl From<MergeArc> for ArcRepr {
    fn from(MergeArc { from, into, targets, weight }: MergeArc) -> Self {
        (from, into, targets, weight)
    }
}

/// How far rows were moved by merging (measured, as they were and as they were computed to be).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// Rows altered.
    pub rows: u64,
    /// Sum over their elements of the squared change; elements that were not finite do not count.
    pub squared_change: f64,
    /// Sum over their elements of the squared value before.
    pub squares: f64,
}

impl Drift {
    /// Takes in one row.
    pub fn measure(&mut self, was: &[f32], is: &[f32]) {
        self.rows += 1;
        for (&was, &is) in was.iter().zip(is).filter(|&(was, is)| was.is_finite() && is.is_finite()) {
            self.squared_change += (f64::from(is) - f64::from(was)).powi(2);
            self.squares += f64::from(was).powi(2);
        }
    }

    /// Norm of the change over the norm before. `None` where no row was altered, or none had a length.
    pub fn relative(&self) -> Option<f64> {
        Some((self.squared_change / self.squares).sqrt()).filter(|share| share.is_finite())
    }

    /// These rows and others.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self {
            rows: self.rows.saturating_add(other.rows),
            squared_change: self.squared_change + other.squared_change,
            squares: self.squares + other.squares,
        }
    }

    // The signature is serde's.
    fn is_none(&self) -> bool {
        self.rows == 0
    }

    fn is_sound(&self) -> bool {
        let is_sum = |x: f64| x.is_finite() && x >= 0.0;
        self.rows < 1 << 53 && is_sum(self.squared_change) && is_sum(self.squares)
    }
}

fn is_blank(bits: &BitRow) -> bool {
    bits.0.is_empty()
}

// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Merge {
    /// Whether the `i`-th victim was merged; `None` beyond the last.
    pub fn is_merged(&self, i: usize) -> Option<bool> {
        let victims = (self.merged + self.apart) as usize;
        if i >= victims || self.with.is_some() {
            return None;
        }
        Some(self.fates.bit(i))
    }

    /// Leaves only the arcs of the newest victims.
    pub fn thin_arcs(&mut self) {
        self.arcs.drain(..self.arcs.len().saturating_sub(NEAREST_ARCS));
    }

    /// Whether it keeps its own rules: counts that agree, arcs in order, numbers that are numbers.
    pub fn is_sound(&self) -> bool {
        let Some(tokens) = self.merged.checked_add(self.apart) else { return false };
        let bits = if self.with.is_some() { 0 } else { tokens as usize };
        let digits: Option<u32> = self.fates.0.chars().map(|c| c.to_digit(16).map(u32::count_ones)).sum();
        let ones = if self.with.is_some() { 0 } else { self.merged };
        let arcs_fit = self.arcs.len() <= MAX_STEP_ARCS
            && self.arcs.len() <= ones as usize
            && self.arcs.is_sorted_by(|a, b| a.from < b.from)
            && self.arcs.iter().all(|arc| arc.targets > 0 && arc.weight.is_finite());
        self.fates.0.len() == bits.div_ceil(4)
            && digits == Some(ones)
            && arcs_fit
            && self.threshold.is_none_or(f32::is_finite)
            && self.k.is_sound()
            && self.v.is_sound()
            && self.saved_bytes < 1 << 53
            && self.with != Some(self.layer)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Five victims, of which the second and the last were merged.
    pub(crate) fn sample() -> Merge {
        Merge {
            layer: 1,
            head: 0,
            merged: 2,
            apart: 3,
            fates: BitRow::whole(&[false, true, false, false, true]),
            threshold: Some(0.25),
            v: Drift { rows: 3, squared_change: 0.5, squares: 2.0 },
            arcs: vec![
                MergeArc { from: 4, into: 6, targets: 2, weight: 0.5 },
                MergeArc { from: 9, into: 10, targets: 1, weight: 1.0 },
            ],
            ..Merge::default()
        }
    }

    #[test]
    fn a_victim_is_merged_or_not() {
        let merge = sample();
        let fates: Vec<_> = (0..6).map(|i| merge.is_merged(i)).collect();
        assert_eq!(fates, [Some(false), Some(true), Some(false), Some(false), Some(true), None]);
        assert_eq!(Merge { with: Some(2), merged: 2, ..Merge::default() }.is_merged(0), None);
    }

    #[test]
    fn drift_is_the_length_of_the_change_over_the_length_before() {
        let mut drift = Drift::default();
        assert_eq!(drift.relative(), None);
        drift.measure(&[3.0, 4.0], &[3.0, 1.0]);
        assert_eq!(drift.relative(), Some(0.6));
        drift.measure(&[f32::INFINITY, 0.0], &[0.0, 0.0]);
        assert_eq!((drift.rows, drift.relative()), (2, Some(0.6)));
    }

    #[test]
    fn the_newest_arcs_stay() {
        let arc = |from| MergeArc { from, into: 900, targets: 1, weight: 1.0 };
        let mut merge = Merge { arcs: (0..200).map(arc).collect(), ..Merge::default() };
        merge.thin_arcs();
        assert_eq!((merge.arcs.len(), merge.arcs[0].from), (NEAREST_ARCS, 136));
        merge.thin_arcs();
        assert_eq!(merge.arcs.len(), NEAREST_ARCS);
    }

    #[test]
    fn what_breaks_its_own_rules_is_seen() {
        let between = Merge { with: Some(2), merged: 5, apart: 1, saved_bytes: 9, ..Merge::default() };
        assert!(sample().is_sound() && between.is_sound() && Merge::default().is_sound());
        let breaks = |change: &dyn Fn(&mut Merge)| {
            let mut bad = sample();
            change(&mut bad);
            !bad.is_sound()
        };
        assert!(breaks(&|m| m.merged = 1));
        assert!(breaks(&|m| m.apart = u32::MAX));
        assert!(breaks(&|m| m.fates = BitRow("g".into())));
        assert!(breaks(&|m| m.fates = BitRow(String::new())));
        assert!(breaks(&|m| m.with = Some(0)));
        assert!(breaks(&|m| m.arcs.swap(0, 1)));
        assert!(breaks(&|m| m.arcs.push(MergeArc { from: 11, into: 12, targets: 1, weight: 1.0 })));
        assert!(breaks(&|m| m.arcs[0].targets = 0));
        assert!(breaks(&|m| m.arcs[0].weight = f32::NAN));
        assert!(breaks(&|m| m.threshold = Some(f32::INFINITY)));
        assert!(breaks(&|m| m.v.squares = -1.0));
        assert!(!Merge { layer: 2, ..between }.is_sound());
    }
}
