//! Drawing a token from logits.

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};

use super::{Error, Result};

/// A token and how sure the model was of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// Vocabulary id.
    pub id: u32,
    /// Natural logarithm of its probability under the plain softmax of all logits (temperature 1).
    pub logprob: f32,
    /// Gap between the two largest logits that may be drawn; infinite where there is only one.
    pub margin: f32,
}

/// Draws tokens: the largest logit at temperature 0 (the lowest id of equals), else at random from the nucleus.
pub struct Sampler {
    /// `None` at temperature 0.
    random: Option<LogitsProcessor>,
    /// Probability that the nucleus has at least; `None` where all may be drawn.
    top_p: Option<f32>,
    /// Never drawn.
    masked: Vec<u32>,
}

impl Sampler {
    /// `temperature` 0 is greedy; `top_p` 1 is off; `masked` ids are never drawn.
    pub fn new(seed: u64, temperature: f64, top_p: f64, masked: &[u32]) -> Self {
        // Below the first the library is greedy too, with its own rule for equals; an infinite temperature makes NaN of
        // the masked; a nucleus of nothing would be taken for none at all.
        let random = (temperature >= 1e-7).then(|| {
            LogitsProcessor::from_sampling(seed, Sampling::All { temperature: temperature.min(1e6) })
        });
        let top_p = (top_p < 1.0).then_some(top_p.max(1e-6) as f32);
        Self { random, top_p, masked: masked.to_vec() }
    }

    /// Draws from one row of logits, `[vocab]`.
    ///
    /// # Errors
    /// [`Error::NoFiniteLogit`] where nothing can be drawn.
    pub fn draw(&mut self, logits: &[f32]) -> Result<Drawn> {
        let ranked = self.top_two(logits).ok_or(Error::NoFiniteLogit(logits.len()))?;
        let id = match &mut self.random {
            None => ranked.best,
            Some(random) => {
                let mut allowed: Vec<f32> = logits
                    .iter()
                    .map(|&logit| if logit.is_finite() { logit } else { f32::NEG_INFINITY })
                    .collect();
                for &id in &self.masked {
                    if let Some(logit) = allowed.get_mut(id as usize) {
                        *logit = f32::NEG_INFINITY;
                    }
                }
                let allowed = Tensor::from_vec(allowed, logits.len(), &Device::Cpu)?;
                random.sample_f(&allowed, |probabilities| {
                    if let Some(top_p) = self.top_p {
                        keep_nucleus(probabilities, top_p);
                    }
                })?
            }
        };
        Ok(Drawn { id, logprob: logprob(logits, id), margin: ranked.margin })
    }

    /// The largest logit that may be drawn, the lowest id of equals, whatever the temperature.
    ///
    /// # Errors
    /// [`Error::NoFiniteLogit`] where nothing can be drawn.
    pub fn largest(&self, logits: &[f32]) -> Result<u32> {
        self.top_two(logits).map(|ranked| ranked.best).ok_or(Error::NoFiniteLogit(logits.len()))
    }

    fn top_two(&self, logits: &[f32]) -> Option<Ranked> {
        let mut best: Option<(u32, f32)> = None;
        let mut second = f32::NEG_INFINITY;
        for (first, block) in (0u32..).step_by(SCANNED).zip(logits.chunks(SCANNED)) {
            // Few blocks have anything that would change the result.
            if largest_finite(block) <= second {
                continue;
            }
            for (id, &logit) in (first..).zip(block) {
                if !logit.is_finite() || logit <= second || self.masked.contains(&id) {
                    continue;
                }
                match best {
                    Some((_, value)) if logit <= value => second = logit,
                    _ => {
                        second = best.map_or(f32::NEG_INFINITY, |(_, value)| value);
                        best = Some((id, logit));
                    }
                }
            }
        }
        best.map(|(best, value)| Ranked { best, margin: value - second })
    }
}

struct Ranked {
    best: u32,
    margin: f32,
}

/// Logits of which the largest is looked at first.
const SCANNED: usize = 64;

/// The largest that is a number; -inf where there is none. Some at a time, so that a compiler makes vectors of it.
fn largest_finite(logits: &[f32]) -> f32 {
    const LANES: usize = 16;
    let larger = |most: f32, logit: f32| if logit > most && logit < f32::INFINITY { logit } else { most };
    let mut most = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for (most, &logit) in most.iter_mut().zip(chunk) {
            *most = larger(*most, logit);
        }
    }
    most.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, larger)
}

/// Leaves the largest probabilities that reach `top_p` together, the lower id first among equals, and makes the others 0.
fn keep_nucleus(probabilities: &mut [f32], top_p: f32) {
    // Bits of positive numbers are in their order.
    let rank = |(id, p): (usize, f32)| u64::from(!p.to_bits()) << 32 | id as u64;
    let of_rank = |rank: u64| f32::from_bits(!((rank >> 32) as u32));
    // All that are smaller sum to less than the nucleus may leave out. But for roundings it has none of them, and most
    // of a vocabulary are: only the others are sorted.
    let least = (1.0 - top_p) / probabilities.len() as f32;
    let (mut sum, mut last) = (0.0, 0);
    for is_small in [false, true] {
        let all = probabilities.iter().copied().enumerate();
        let mut ranks: Vec<u64> = all.filter(|(_, p)| (*p < least) == is_small).map(rank).collect();
        ranks.sort_unstable();
        for rank in ranks {
            if sum >= top_p {
                break;
            }
            sum += of_rank(rank);
            last = rank;
        }
        if sum >= top_p {
            break;
        }
    }
    for (id, p) in probabilities.iter_mut().enumerate() {
        if rank((id, *p)) > last {
            *p = 0.0;
        }
    }
}

/// Natural logarithm of an id's probability under the plain softmax of a row of logits.
///
/// Summed in f64: over a large vocabulary f32 loses the digits that a comparison of runs needs.
pub fn logprob(logits: &[f32], id: u32) -> f32 {
    let finite = || logits.iter().copied().filter(|logit| logit.is_finite());
    let largest = f64::from(largest_finite(logits));
    let sum: f64 = finite().map(|logit| (f64::from(logit) - largest).exp()).sum();
    (f64::from(logits[id as usize]) - largest - sum.ln()) as f32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn greedy(logits: &[f32], masked: &[u32]) -> Drawn {
        Sampler::new(0, 0.0, 1.0, masked).draw(logits).unwrap()
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let drawn = greedy(&[1.0, 3.0, 3.0, 2.0], &[]);
        assert_eq!((drawn.id, drawn.margin), (1, 0.0));
        let expected = (1.0 / (2.0 + f64::exp(-2.0) + f64::exp(-1.0))).ln() as f32;
        assert!((drawn.logprob - expected).abs() < 1e-6);
    }

    #[test]
    fn masked_and_broken_logits_are_never_drawn() {
        let logits = [9.0, f32::NAN, f32::INFINITY, 1.0, 0.5];
        let drawn = greedy(&logits, &[0]);
        assert_eq!((drawn.id, drawn.margin), (3, 0.5));
        assert!(drawn.logprob.is_finite());
        let mut sampler = Sampler::new(3, 5.0, 1.0, &[0]);
        for _ in 0..200 {
            assert!(sampler.draw(&logits).unwrap().id >= 3);
        }
        let mut hottest = Sampler::new(3, f64::INFINITY, 0.9, &[0]);
        assert!(hottest.draw(&logits).unwrap().id >= 3);
        for logits in [&[][..], &[f32::NAN, f32::INFINITY]] {
            for temperature in [0.0, 1.0] {
                let result = Sampler::new(0, temperature, 1.0, &[]).draw(logits);
                assert!(matches!(result, Err(Error::NoFiniteLogit(_))));
            }
        }
        assert_eq!(greedy(&[4.0, 5.0], &[0]).margin, f32::INFINITY);
    }

    #[test]
    fn of_a_large_vocabulary_every_place_is_looked_at() {
        let mut logits = vec![f32::NAN; 1003];
        for (best, second) in [(0, 1002), (1001, 3), (500, 501), (64, 63), (999, 1000)] {
            logits.fill(-1e30);
            (logits[best], logits[second], logits[7]) = (2.0, -3.5, f32::INFINITY);
            let drawn = greedy(&logits, &[]);
            assert_eq!((drawn.id as usize, drawn.margin), (best, 5.5));
            let expected = -f64::exp(-5.5).ln_1p();
            assert!((f64::from(drawn.logprob) - expected).abs() < 1e-7);
        }
    }

    #[test]
    fn the_nucleus_and_the_seed_hold() {
        let logits = [2.0, 1.9, -1.0, -2.0];
        let ids = |seed, top_p| {
            let mut sampler = Sampler::new(seed, 1.0, top_p, &[]);
            (0..300).map(|_| sampler.draw(&logits).unwrap().id).collect::<Vec<_>>()
        };
        assert!(ids(1, 0.5).iter().all(|id| *id == 0));
        assert!(ids(1, 0.8).iter().all(|id| *id <= 1) && ids(1, 0.8).contains(&1));
        assert!(ids(1, 0.0).iter().all(|id| *id == 0));
        assert!(ids(1, 1.0).iter().any(|id| *id >= 2));
        assert_eq!(ids(1, 1.0), ids(1, 1.0));
        assert_ne!(ids(1, 1.0), ids(2, 1.0));
    }

    proptest! {
        #[test]
        fn the_nucleus_is_what_sorting_all_would_keep(
            weights in prop::collection::vec(0u8..9, 1..200),
            skew in 0i32..6,
            top_p in 1e-6f32..1.0,
        ) {
            let weights: Vec<f32> = weights.into_iter().map(|w| f32::from(w).powi(skew)).collect();
            let all = weights.iter().sum::<f32>().max(1.0);
            let probabilities: Vec<f32> = weights.into_iter().map(|w| w / all).collect();
            let mut order: Vec<usize> = (0..probabilities.len()).collect();
            order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
            let (mut expected, mut sum) = (vec![0.0; order.len()], 0.0);
            for id in order {
                if sum < top_p {
                    expected[id] = probabilities[id];
                    sum += probabilities[id];
                }
            }
            let mut kept = probabilities;
            keep_nucleus(&mut kept, top_p);
            prop_assert_eq!(kept, expected);
        }

        #[test]
        fn greedy_is_the_first_largest(logits in prop::collection::vec(-50i8..50, 1..300), masked in prop::collection::vec(0u32..300, 0..20)) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let allowed = || (0u32..).zip(&logits).filter(|(id, _)| !masked.contains(id));
            let largest = allowed().map(|(_, x)| *x).fold(f32::NEG_INFINITY, f32::max);
            let expected = allowed().find(|(_, x)| **x == largest);
            match Sampler::new(0, 0.0, 1.0, &masked).draw(&logits) {
                Ok(drawn) => {
                    prop_assert_eq!(Some(drawn.id), expected.map(|(id, _)| id));
                    let mut sorted: Vec<f32> = allowed().map(|(_, x)| *x).collect();
                    sorted.sort_by(|a, b| b.total_cmp(a));
                    prop_assert_eq!(drawn.margin, sorted.get(1).map_or(f32::INFINITY, |x| sorted[0] - x));
                }
                Err(_) => prop_assert!(expected.is_none()),
            }
        }
    }
}
