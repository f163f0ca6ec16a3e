//! Counts and means with the interval in which the truth lies with 95 %.

use serde::Serialize;

/// Standard deviations of a normal distribution that hold 95 % around its mean.
const Z: f64 = 1.959_964;

/// A measured number with its 95 % interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Measure {
    /// Share or mean.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// How many were counted.
    pub n: u64,
    /// How many of these were right, where it is a share.
    pub hits: Option<u64>,
}

impl Measure {
    /// A share, with Wilson's interval: it stays inside 0 and 1, and says something where all or none were right.
    pub fn share(hits: u64, n: u64) -> Self {
        if n == 0 {
            return Self { high: 1.0, hits: Some(0), ..Self::default() };
        }
        let (count, p) = (n as f64, hits as f64 / n as f64);
        let spread = Z * Z / count;
        let middle = (p + spread / 2.0) / (1.0 + spread);
        let half = Z / (1.0 + spread) * (p * (1.0 - p) / count + spread / (4.0 * count)).sqrt();
        Self { value: p, low: (middle - half).max(0.0), high: (middle + half).min(1.0), n, hits: Some(hits) }
    }

    /// The share of what is true.
    pub fn share_of(outcomes: impl IntoIterator<Item = bool>) -> Self {
        let (mut hits, mut n) = (0, 0);
        for right in outcomes {
            n += 1;
            hits += u64::from(right);
        }
        Self::share(hits, n)
    }

    /// A mean, with the normal interval; without spread where there is one value only, and nothing is known of it.
    pub fn mean(values: &[f64]) -> Self {
        let n = values.len() as f64;
        if values.is_empty() {
            return Self { low: f64::NEG_INFINITY, high: f64::INFINITY, ..Self::default() };
        }
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        let half = if values.len() > 1 { Z * (variance / n).sqrt() } else { f64::INFINITY };
        Self { value: mean, low: mean - half, high: mean + half, n: values.len() as u64, hits: None }
    }

    /// What an exponential makes of a mean and its interval: of losses in nats, the perplexity.
    #[must_use]
    pub fn exp(self) -> Self {
        Self { value: self.value.exp(), low: self.low.exp(), high: self.high.exp(), ..self }
    }

    /// The value alone, shown without an interval.
    #[must_use]
    pub const fn plain(self) -> Self {
        Self { n: 1, hits: None, ..self }
    }

    /// The mean of paired differences, `a - b`.
    pub fn difference(a: &[f64], b: &[f64]) -> Self {
        Self::mean(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_wilsons_interval() {
        // Known values: 0 of 10, 8 of 10, 50 of 50 (Brown, Cai and DasGupta 2001, formula 4).
        for (hits, n, low, high) in [(0, 10, 0.0, 0.2775), (8, 10, 0.4902, 0.9433), (50, 50, 0.9287, 1.0)] {
            let share = Measure::share(hits, n);
            assert!((share.low - low).abs() < 1e-4 && (share.high - high).abs() < 1e-4, "{share:?}");
            assert_eq!(share.value, hits as f64 / n as f64);
        }
        let unknown = Measure::share(0, 0);
        assert_eq!((unknown.low, unknown.high), (0.0, 1.0));
        assert_eq!(Measure::share_of([true, false, true]), Measure::share(2, 3));
    }

    #[test]
    fn means_have_the_normal_interval() {
        let mean = Measure::mean(&[1.0, 2.0, 3.0, 4.0]);
        let half = 1.959_964 * (5.0f64 / 3.0 / 4.0).sqrt();
        assert!((mean.value - 2.5).abs() < 1e-12 && (mean.high - 2.5 - half).abs() < 1e-9, "{mean:?}");
        assert_eq!(Measure::mean(&[3.0]).high, f64::INFINITY);
        assert_eq!(Measure::mean(&[]).n, 0);
        let pairs = Measure::difference(&[3.0, 4.0], &[1.0, 2.0]);
        assert_eq!((pairs.value, pairs.low, pairs.high), (2.0, 2.0, 2.0));
    }
}
