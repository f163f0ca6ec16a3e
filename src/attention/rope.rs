//! Rotary position embedding (RoFormer, arXiv 2104.09864), in the half-split pairing of Hugging Face's models.

mod scaling;

use std::sync::OnceLock;

pub use scaling::Scaling;

/// Angle indices per lazily filled stretch of the table.
const STRETCH: usize = 256;
/// Most stretches, whatever context a configuration claims.
const MAX_STRETCHES: usize = 1 << 14;

/// The rotation of one model: element `i` of a row pairs with `i + d / 2`, where `d` is the rotated width, and turns by
/// `index * frequency[i]`. Cosines and sines are f32, rounded from f64 angles, and kept once computed.
///
/// Keys rotated at write and keys rotated at read go through the same [`Rope::apply`], so that they have the same bits.
#[derive(Clone, Debug)]
pub struct Rope {
    frequencies: Vec<f64>,
    /// Factor on cosines and sines.
    amplitude: f64,
    stretches: Vec<OnceLock<Box<[f32]>>>,
}

impl Rope {
    /// The plain rotation: `frequency[i] = theta ^ (-2 i / head_dim)`. `positions` bounds the table, which is filled as
    /// it is used; larger indices work, but are computed anew each time.
    pub fn new(head_dim: usize, theta: f64, positions: usize) -> Self {
        let frequency = |i: usize| theta.powf(-2.0 * i as f64 / head_dim as f64);
        Self::with_frequencies((0..head_dim / 2).map(frequency).collect(), positions)
    }

    /// A rotation with given frequencies, for models that scale theirs. `2 * frequencies.len()` may be less than the
    /// head's size: only that many leading elements turn then.
    pub fn with_frequencies(frequencies: Vec<f64>, positions: usize) -> Self {
        let stretches = positions.div_ceil(STRETCH).min(MAX_STRETCHES);
        let stretches = (0..stretches).map(|_| OnceLock::new()).collect();
        Self { frequencies, amplitude: 1.0, stretches }
    }

    /// The same with cosines and sines times a factor: what turns gets longer by it, in queries and keys alike.
    #[must_use]
    pub fn amplified(self, amplitude: f64) -> Self {
        let stretches = self.stretches.iter().map(|_| OnceLock::new()).collect();
        Self { amplitude, stretches, ..self }
    }

    /// One frequency per pair of elements.
    pub fn frequencies(&self) -> &[f64] {
        &self.frequencies
    }

    /// Factor on what turns.
    pub const fn amplitude(&self) -> f64 {
        self.amplitude
    }

    /// Turns one head's row in place.
    ///
    /// # Panics
    ///
    /// When the row is shorter than the rotated width.
    pub fn apply(&self, row: &mut [f32], index: usize) {
        let half = self.frequencies.len();
        let width = 2 * half;
        if let Some(stretch) = self.stretches.get(index / STRETCH) {
            let table = stretch.get_or_init(|| self.stretch(index / STRETCH));
            turn(&mut row[..width], &table[index % STRETCH * width..][..width]);
        } else {
            let mut turns = vec![0.0; width];
            self.fill(&mut turns, index);
            turn(&mut row[..width], &turns);
        }
    }

    /// Turns consecutive rows of `head_dim` elements, all by the same index: the heads of one token.
    pub fn apply_heads(&self, rows: &mut [f32], head_dim: usize, index: usize) {
        for row in rows.chunks_exact_mut(head_dim) {
            self.apply(row, index);
        }
    }

    fn stretch(&self, stretch: usize) -> Box<[f32]> {
        let width = 2 * self.frequencies.len();
        let mut table = vec![0.0; STRETCH * width];
        if width > 0 {
            for (i, turns) in table.chunks_exact_mut(width).enumerate() {
                self.fill(turns, stretch * STRETCH + i);
            }
        }
        table.into_boxed_slice()
    }

    /// Cosines, then sines.
    pub(super) fn fill(&self, turns: &mut [f32], index: usize) {
        let (cos, sin) = turns.split_at_mut(self.frequencies.len());
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
            let (s, c) = (index as f64 * frequency).sin_cos();
            (*cos, *sin) = ((self.amplitude * c) as f32, (self.amplitude * s) as f32);
        }
    }
}

/// The rotations of a model, layer by layer: layers that look at a window may have one of their own.
#[derive(Clone, Debug)]
pub struct Ropes {
    kinds: Vec<Rope>,
    /// Per layer, which of the kinds is its own.
    layers: Vec<usize>,
}

impl Ropes {
    /// Rotations, and for each layer the index of its own.
    ///
    /// # Panics
    /// An index names none of them.
    pub fn new(kinds: Vec<Rope>, layers: Vec<usize>) -> Self {
        assert!(layers.iter().all(|&kind| kind < kinds.len()), "every layer has one of the rotations");
        Self { kinds, layers }
    }

    /// A layer's rotation.
    pub fn of(&self, layer: usize) -> &Rope {
        &self.kinds[self.layers[layer]]
    }
}

fn turn(row: &mut [f32], turns: &[f32]) {
    let half = row.len() / 2;
    let (low, high) = row.split_at_mut(half);
    let (cos, sin) = turns.split_at(half);
    for i in 0..half {
        let (a, b) = (low[i], high[i]);
        low[i] = a * cos[i] - b * sin[i];
        high[i] = b * cos[i] + a * sin[i];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_half_a_row_apart_and_turn_by_their_frequency() {
        let rope = Rope::new(4, 100.0, 8);
        let mut row = [1.0, 0.0, 0.0, 1.0];
        rope.apply(&mut row, 3);
        let expected = [3f64.cos(), -(0.3f64.sin()), 3f64.sin(), 0.3f64.cos()];
        for (got, want) in row.iter().zip(expected) {
            assert!((f64::from(*got) - want).abs() < 1e-7, "{row:?}");
        }
    }

    #[test]
    fn index_zero_changes_nothing_and_a_turn_keeps_the_norm() {
        let rope = Rope::new(64, 10_000.0, 4096);
        let start: Vec<f32> = (0..64).map(|i| (i as f32).sin()).collect();
        let mut row = start.clone();
        rope.apply(&mut row, 0);
        assert_eq!(row, start);
        rope.apply(&mut row, 3001);
        let norm = |r: &[f32]| r.iter().map(|x| x * x).sum::<f32>();
        assert_ne!(row, start);
        assert!((norm(&row) / norm(&start) - 1.0).abs() < 1e-5);
    }

    #[test]
    fn an_index_beyond_the_table_has_the_same_bits() {
        let (table, none) = (Rope::new(16, 10_000.0, 1000), Rope::new(16, 10_000.0, 0));
        let (mut a, mut b) = ([0.5; 16], [0.5; 16]);
        table.apply(&mut a, 777);
        none.apply(&mut b, 777);
        assert_eq!(a, b);
    }

    #[test]
    fn an_amplitude_lengthens_what_turns_and_nothing_else() {
        let rope = Rope::with_frequencies(vec![1.0], 8).amplified(2.0);
        let mut row = [3.0, 4.0, 5.0];
        rope.apply(&mut row, 5);
        assert!((row[0].hypot(row[1]) - 10.0).abs() < 1e-5, "{row:?}");
        assert_eq!(row[2], 5.0);
        let ropes = Ropes::new(vec![rope, Rope::new(2, 10.0, 8)], vec![1, 0]);
        assert_eq!((ropes.of(0).amplitude(), ropes.of(1).amplitude()), (1.0, 2.0));
    }

    #[test]
    fn a_partial_rotation_leaves_the_rest_of_the_row() {
        let rope = Rope::with_frequencies(vec![1.0], 8);
        let mut row = [1.0, 2.0, 3.0, 4.0];
        rope.apply(&mut row, 1);
        assert!(row[0] != 1.0 && row[1] != 2.0);
        assert_eq!(row[2..], [3.0, 4.0]);
    }
}
