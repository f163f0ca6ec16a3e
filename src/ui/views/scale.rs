//! Values between 0 and 1 for heat, by the scale a person chose.

use crate::app::Scale;

/// Decades a logarithmic scale spans below its largest value.
const DECADES: f32 = 4.0;

/// Maps the values it was made from to 0 to 1. Values that are not finite or not above 0 map to 0.
pub(super) struct Scaled {
    scale: Scale,
    most: f32,
    ranked: Vec<f32>,
}

impl Scaled {
    pub(super) fn new(scale: Scale, values: impl Iterator<Item = f32>) -> Self {
        let positive = values.filter(|v| v.is_finite() && *v > 0.0);
        if scale == Scale::Rank {
            let mut ranked: Vec<f32> = positive.collect();
            ranked.sort_by(f32::total_cmp);
            ranked.dedup();
            Self { scale, most: 0.0, ranked }
        } else {
            Self { scale, most: positive.fold(0.0, f32::max), ranked: Vec::new() }
        }
    }

    pub(super) fn at(&self, value: f32) -> f32 {
        if !value.is_finite() || value <= 0.0 {
            return 0.0;
        }
        match self.scale {
            Scale::Linear if self.most > 0.0 => value / self.most,
            Scale::Log if self.most > 0.0 => (1.0 + (value / self.most).log10() / DECADES).clamp(0.0, 1.0),
            Scale::Rank if !self.ranked.is_empty() => {
                self.ranked.partition_point(|&v| v <= value) as f32 / self.ranked.len() as f32
            }
            _ => 0.0,
        }
    }

    /// The largest value; 0 without any.
    pub(super) fn most(&self) -> f32 {
        self.ranked.last().copied().unwrap_or(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_is_one_and_nothing_is_zero() {
        for scale in [Scale::Linear, Scale::Log, Scale::Rank] {
            let scaled = Scaled::new(scale, [0.0, f32::NAN, 0.5, 0.001].into_iter());
            assert_eq!(scaled.at(0.5), 1.0, "{scale:?}");
            assert_eq!(scaled.at(0.0), 0.0, "{scale:?}");
            assert_eq!(scaled.at(f32::NAN), 0.0, "{scale:?}");
            assert!(scaled.at(0.001) < 0.6, "{scale:?}");
            assert_eq!(Scaled::new(scale, std::iter::empty()).at(1.0), 0.0);
        }
    }

    #[test]
    fn logarithms_span_four_decades() {
        let scaled = Scaled::new(Scale::Log, [1.0].into_iter());
        assert!((scaled.at(0.01) - 0.5).abs() < 1e-6);
        assert_eq!(scaled.at(1e-6), 0.0);
    }
}
