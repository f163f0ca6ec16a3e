//! Batches: documents of the demo model's language, positions with jumps, masks.

use kvista::model::demo::{DocumentKind, document};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::attention::Mask;
use super::net::Places;

/// Sequences are spread over positions up to this one, so that short ones teach long distances (positional skip-wise
/// training, arXiv 2309.10400).
const POSITIONS: u32 = 5000;
/// Share of the batches that are stories seen through a window and the first four tokens.
const WINDOWED: f64 = 0.1;
const SINKS: usize = 4;

/// Shares of the kinds of documents, in short sequences and in long ones.
type Mixture = [(DocumentKind, f64); 7];
const SHORT: Mixture = [
    (DocumentKind::Story, 0.20),
    (DocumentKind::Pass, 0.24),
    (DocumentKind::Facts, 0.22),
    (DocumentKind::Lists, 0.09),
    (DocumentKind::Table, 0.12),
    (DocumentKind::Repeated, 0.08),
    (DocumentKind::Votes, 0.05),
];
const LONG: Mixture = [
    (DocumentKind::Story, 0.28),
    (DocumentKind::Pass, 0.28),
    (DocumentKind::Facts, 0.18),
    (DocumentKind::Lists, 0.05),
    (DocumentKind::Table, 0.07),
    (DocumentKind::Repeated, 0.09),
    (DocumentKind::Votes, 0.05),
];
/// Sequences from here on count as long.
const LONG_FROM: usize = 2048;

/// Sequences one after the other, with what comes next and what each next token weighs in the loss.
pub(crate) struct Batch {
    pub(crate) ids: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    pub(crate) weights: Vec<f32>,
    pub(crate) answers: Vec<bool>,
    pub(crate) places: Places,
}

impl Batch {
    /// The batch in `n` parts of whole sequences, fewer where it has fewer.
    pub(crate) fn split(&self, n: usize) -> Vec<Self> {
        let sequences = self.ids.len() / self.places.len;
        let rows = sequences.div_ceil(n) * self.places.len;
        let part = |first: usize| {
            let range = first..(first + rows).min(self.ids.len());
            Self {
                ids: self.ids[range.clone()].to_vec(),
                targets: self.targets[range.clone()].to_vec(),
                weights: self.weights[range.clone()].to_vec(),
                answers: self.answers[range.clone()].to_vec(),
                places: Places { positions: self.places.positions[range].to_vec(), ..self.places },
            }
        };
        (0..self.ids.len()).step_by(rows).map(part).collect()
    }

    /// Sum of the weights.
    pub(crate) fn weight(&self) -> f64 {
        self.weights.iter().map(|&w| f64::from(w)).sum()
    }
}

/// The batch of a step: the same seed and step give the same batch, whatever came before.
pub(crate) fn batch(seed: u64, step: usize, len: usize, tokens: usize) -> Batch {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(step as u64 + 1);
    let windowed = len >= 256 && rng.random_bool(WINDOWED);
    let mask = if windowed {
        Mask::Window { window: rng.random_range(64..=256.min(len / 2)), sinks: SINKS }
    } else {
        Mask::Causal
    };
    let mixture = if len >= LONG_FROM { &LONG } else { &SHORT };
    let kinds: Vec<DocumentKind> = (0..(tokens / len).max(1))
        .map(|_| {
            let drawn = mixture.choose_weighted(&mut rng, |m| m.1).expect("the shares are positive").0;
            if windowed { DocumentKind::Story } else { drawn }
        })
        .collect();
    let positions = kinds.iter().flat_map(|_| positions(len, &mut rng)).collect();
    gather(&kinds, len, rng.random(), Places { len, positions, mask })
}

/// A batch of `n` documents of one kind at their own positions, for measuring.
pub(crate) fn probe(kind: DocumentKind, len: usize, n: usize) -> Batch {
    let positions = (0..n).flat_map(|_| 0..len as u32).collect();
    gather(&vec![kind; n], len, 0x005E_ED0F_A11C_E5ED, Places { len, positions, mask: Mask::Causal })
}

fn gather(kinds: &[DocumentKind], len: usize, seed: u64, places: Places) -> Batch {
    let documents: Vec<_> = kinds
        .iter()
        .enumerate()
        .map(|(i, &kind)| document(&mut ChaCha8Rng::seed_from_u64(seed ^ (i as u64) << 32), kind, len + 1))
        .collect();
    Batch {
        ids: documents.iter().flat_map(|d| d.ids[..len].iter().copied()).collect(),
        targets: documents.iter().flat_map(|d| d.ids[1..].iter().copied()).collect(),
        weights: documents.iter().flat_map(|d| d.weights[1..].iter().copied()).collect(),
        answers: documents.iter().flat_map(|d| d.answers[1..].iter().copied()).collect(),
        places,
    }
}

/// 0, 1, 2, … with one to four jumps.
fn positions(len: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let least = len as u32;
    let most = POSITIONS.max(least);
    let span = match rng.random_range(0..3) {
        0 => least,
        1 => rng.random_range(least..=most),
        _ => most,
    };
    let jumps: Vec<(usize, f64)> = (0..rng.random_range(1..=4))
        .map(|_| (rng.random_range(1..len), rng.random::<f64>() + 1e-3))
        .collect();
    let total: f64 = jumps.iter().map(|j| j.1).sum();
    let extra = f64::from(span - least);
    (0..len)
        .map(|i| {
            let jumped: f64 = jumps.iter().filter(|j| i >= j.0).map(|j| (extra * j.1 / total).floor()).sum();
            i as u32 + jumped as u32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_rise_and_stay_in_range() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut far = 0;
        for _ in 0..200 {
            let p = positions(128, &mut rng);
            assert!(p[0] == 0 && p.windows(2).all(|w| w[0] < w[1]));
            assert!(p[127] < POSITIONS);
            far = far.max(p[127]);
        }
        assert!(far > 4000);
    }

    #[test]
    fn a_step_has_its_batch() {
        let (a, b, c) = (batch(7, 3, 128, 512), batch(7, 3, 128, 512), batch(7, 4, 128, 512));
        assert_eq!(a.ids, b.ids);
        assert_ne!(a.ids, c.ids);
        assert_eq!((a.ids.len(), a.targets.len(), a.places.positions.len()), (512, 512, 512));
        assert_eq!(a.ids[1..128], a.targets[..127]);
    }
}
