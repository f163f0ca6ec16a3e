//! How models that outgrew the context they were first trained on bend the frequencies of their rotation.

use std::f64::consts::TAU;

/// A rule that changes the frequencies of a rotation.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Scaling {
    /// The plain rotation.
    #[default]
    None,
    /// All frequencies divided: positions are interpolated (arXiv 2306.15595).
    Linear {
        /// By what.
        factor: f64,
    },
    /// Llama 3.1: wavelengths beyond the first context are divided, those well within it stay, between them it is a blend.
    Llama3 {
        /// By what the long wavelengths are divided.
        factor: f64,
        /// Wavelengths above `original / low` are long.
        low: f64,
        /// Wavelengths below `original / high` stay.
        high: f64,
        /// The first context.
        original: f64,
    },
    /// YaRN (arXiv 2309.00071): as a blend by how often a pair turns within the first context, and hotter scores.
    Yarn {
        /// By what slow pairs are divided.
        factor: f64,
        /// A pair that turns more often than this stays.
        fast: f64,
        /// A pair that turns less often than this is divided in full.
        slow: f64,
        /// The first context.
        original: f64,
        /// Factor on cosines and sines.
        amplitude: f64,
        /// Whether the ends of the blend are whole pairs.
        truncates: bool,
    },
    /// LongRoPE (arXiv 2402.13753): every pair has its own divisor, one for sequences that stay within the first context
    /// and one for those that do not.
    LongRope {
        /// Divisors, one per pair, for sequences within the first context.
        short: Vec<f64>,
        /// Divisors for longer ones.
        long: Vec<f64>,
        /// The first context.
        original: f64,
        /// Factor on cosines and sines.
        amplitude: f64,
    },
}

impl Scaling {
    /// Frequencies of a rotation of `width` elements around the base `theta`, one per pair, for sequences of at most
    /// `longest` positions.
    ///
    /// LongRoPE is defined by the length of the whole sequence; keys that were cached under one set of divisors cannot
    /// change to the other, so the choice is made once, for the longest that a sequence may become.
    pub fn frequencies(&self, width: usize, theta: f64, longest: usize) -> Vec<f64> {
        let plain = (0..width / 2).map(|i| theta.powf(-2.0 * i as f64 / width as f64));
        match self {
            Self::None => plain.collect(),
            Self::Linear { factor } => plain.map(|f| f / factor).collect(),
            Self::Llama3 { factor, low, high, original } => plain
                .map(|f| {
                    let turns = original * f / TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    f * kept + f / factor * (1.0 - kept)
                })
                .collect(),
            Self::Yarn { factor, fast, slow, original, truncates, .. } => {
                // The pair that turns so many times within the first context.
                let pair = |turns: f64| width as f64 * (original / (turns * TAU)).ln() / (2.0 * theta.ln());
                let (mut low, mut high) = (pair(*fast), pair(*slow));
                if *truncates {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, high) = (low.max(0.0), high.min(width as f64 - 1.0));
                let span = if low == high { 0.001 } else { high - low };
                (0..)
                    .zip(plain)
                    .map(|(i, f)| {
                        let divided = ((f64::from(i) - low) / span).clamp(0.0, 1.0);
                        f / factor * divided + f * (1.0 - divided)
                    })
                    .collect()
            }
            Self::LongRope { short, long, original, .. } => {
                let divisors = if longest as f64 > *original { long } else { short };
                plain.zip(divisors).map(|(f, divisor)| f / divisor).collect()
            }
        }
    }

    /// Factor on cosines and sines.
    pub const fn amplitude(&self) -> f64 {
        match self {
            Self::Yarn { amplitude, .. } | Self::LongRope { amplitude, .. } => *amplitude,
            _ => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA31: Scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };

    fn plain(width: usize, theta: f64) -> Vec<f64> {
        Scaling::None.frequencies(width, theta, 0)
    }

    /// Written as Hugging Face and candle have it, by wavelengths.
    #[test]
    fn llama3_leaves_short_waves_divides_long_ones_and_blends_between() {
        let scaled = LLAMA31.frequencies(128, 5e5, 0);
        let mut kinds = [0; 3];
        for (f, got) in plain(128, 5e5).into_iter().zip(scaled) {
            let wave = TAU / f;
            let want = if wave < 8192.0 / 4.0 {
                kinds[0] += 1;
                f
            } else if wave > 8192.0 {
                kinds[1] += 1;
                f / 8.0
            } else {
                kinds[2] += 1;
                let smooth = (8192.0 / wave - 1.0) / 3.0;
                (1.0 - smooth) * f / 8.0 + smooth * f
            };
            assert!((got / want - 1.0).abs() < 1e-12, "{got} {want}");
        }
        assert!(kinds.iter().all(|&n| n > 0), "{kinds:?}");
    }

    #[test]
    fn yarn_leaves_fast_pairs_divides_slow_ones_and_falls_between() {
        let yarn = Scaling::Yarn {
            factor: 4.0,
            fast: 32.0,
            slow: 1.0,
            original: 32768.0,
            amplitude: 1.0,
            truncates: true,
        };
        let scaled = yarn.frequencies(128, 1e6, 0);
        let ratio: Vec<f64> = plain(128, 1e6).iter().zip(&scaled).map(|(f, s)| f / s).collect();
        // 64 ln(32768 / (2 pi 32)) / ln(1e6) = 23.6, and of one turn 39.7.
        assert!(ratio[..=23].iter().all(|r| *r == 1.0) && ratio[24] > 1.0, "{ratio:?}");
        assert!(ratio[40..].iter().all(|r| (r - 4.0).abs() < 1e-12) && ratio[39] < 4.0, "{ratio:?}");
        assert!(ratio.is_sorted());
    }

    #[test]
    fn longrope_takes_the_divisors_of_the_length_a_sequence_may_reach() {
        let rule = Scaling::LongRope {
            short: vec![1.0, 2.0],
            long: vec![4.0, 8.0],
            original: 100.0,
            amplitude: 1.5,
        };
        assert_eq!(rule.frequencies(4, 100.0, 100), [1.0, 0.1 / 2.0]);
        assert_eq!(rule.frequencies(4, 100.0, 101), [0.25, 0.1 / 8.0]);
        assert_eq!(rule.amplitude(), 1.5);
    }
}
