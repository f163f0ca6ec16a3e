//! Weights that repeat a few random numbers, for benchmarks and tests: how long a step takes depends on how many there are.

use half::f16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::matrix::Matrix;
use super::weights::Source;
use super::{Config, Decoder, Precision, Result};

/// A prime, so that no row begins as another does.
const NUMBERS: usize = 65_521;
/// From where one matrix begins in them to where the next does.
const STRIDE: usize = 7_919;

impl Decoder {
    /// A decoder of the given shape with weights of a type, f32 and f16 ones made at the speed of a copy: uniform with the
    /// variance that keeps activations at their scale, but few of them differ; norms at one.
    ///
    /// # Errors
    /// A configuration that [`Config::parse`] would refuse, or rows that are no whole blocks of the type.
    pub fn repeating(config: Config, weights: Precision) -> Result<Self> {
        config.check("repeating")?;
        weights.check("repeating", &config)?;
        let halves = weights.is_f16();
        let source = Repeating::new(1.0 - config.arch.norm_offset, halves);
        let change = |matrix| if halves { Ok(matrix) } else { weights.apply(&matrix) };
        Self::load(config, source, ("repeating".into(), String::new()), change)
    }
}

/// Numbers between -1 and 1 that come again and again, but never from the same one on.
struct Repeating {
    numbers: Vec<f32>,
    next: usize,
    /// Elements of norms.
    norm: f32,
    halves: bool,
}

impl Repeating {
    fn new(norm: f32, halves: bool) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        Self { numbers: (0..NUMBERS).map(|_| rng.random_range(-1.0..1.0)).collect(), next: 0, norm, halves }
    }
}

/// So many elements, from the `first` on and over again.
fn repeated<T: Copy>(all: &[T], first: usize, elements: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(elements + all.len());
    out.extend_from_slice(&all[first..]);
    while out.len() < elements {
        out.extend_from_slice(all);
    }
    out.truncate(elements);
    out
}

impl Source for Repeating {
    fn check(&self, _: &str, _: &[usize]) -> Result<()> {
        Ok(())
    }

    fn matrix(&mut self, _: &str, shape @ [outputs, inputs]: [usize; 2]) -> Result<Matrix> {
        let limit = (3.0 / inputs as f32).sqrt();
        let (first, elements) = (self.next, outputs * inputs);
        self.next = (self.next + STRIDE) % NUMBERS;
        let scaled = self.numbers.iter().map(|x| x * limit);
        Ok(if self.halves {
            let halves: Vec<f16> = scaled.map(f16::from_f32).collect();
            Matrix::f16(repeated(&halves, first, elements).into(), shape)
        } else {
            Matrix::f32(repeated(&scaled.collect::<Vec<_>>(), first, elements).into(), shape)
        })
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        if name.ends_with("bias") {
            return Ok(repeated(&self.numbers, 0, len).into_iter().map(|x| 0.1 * x).collect());
        }
        Ok(vec![self.norm; len])
    }

    fn dtype(&self) -> String {
        if self.halves { "f16".into() } else { "f32".into() }
    }
}

#[cfg(test)]
mod tests {
    use crate::model::Decoder;
    use crate::model::decoder::tests::odd_config;

    #[test]
    fn halves_are_the_same_numbers_rounded() {
        let logits = |weights: &str| {
            let decoder = Decoder::repeating(odd_config(), weights.parse().unwrap()).unwrap();
            let x = decoder.embed(&[0, 299]).unwrap();
            (decoder.card().weights.clone(), decoder.logits(&x).unwrap())
        };
        let ((wide, of_wide), (half, of_half)) = (logits("f32"), logits("f16"));
        assert_eq!((wide.as_str(), half.as_str()), ("f32", "f16"));
        assert!(of_wide.iter().zip(&of_half).all(|(a, b)| (a - b).abs() < 0.02));
        assert_ne!(of_wide, of_half);
        assert_ne!(of_wide[..300], of_wide[300..]);
        assert!(Decoder::repeating(odd_config(), "q8_0".parse().unwrap()).is_err());
    }
}
