//! Points on a line where values lie dense: thresholds by percentile, codebooks by k-means.
//!
//! Everything here is a function of the values alone: they are sorted, sums run in that order in f64, and k-means starts
//! at quantiles instead of drawing.

use half::f16;

/// Largest finite f16.
const LARGEST: f32 = 65_504.0;

/// Most rounds of k-means, as KVQuant has it.
const ROUNDS: usize = 50;

/// Between which values a channel's keys, or a token's values, are in codes. Both are values of f16.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Thresholds {
    pub(super) lower: f32,
    pub(super) upper: f32,
}

impl Thresholds {
    /// The percentiles that leave `share` of the values outside, half of it on each side (linear between neighbours,
    /// rounded to f16). `values` come back sorted; no value gives 0 and 0.
    pub fn of(values: &mut [f32], share: f64) -> Self {
        for x in values.iter_mut() {
            *x = finite(*x);
        }
        values.sort_unstable_by(f32::total_cmp);
        let side = share / 2.0;
        Self { lower: percentile(values, side), upper: percentile(values, 1.0 - side) }
    }

    /// The middle, and half of the distance.
    pub(super) fn middle_and_half(self) -> (f32, f32) {
        (f32::midpoint(self.lower, self.upper), (self.upper - self.lower) / 2.0)
    }

    /// Where a value lies between the thresholds, -1 to 1; `None` for an outlier, which its value in f16 decides.
    pub fn normalised(self, x: f32) -> Option<f32> {
        let half = f16::from_f32(finite(x)).to_f32();
        (self.lower <= half && half <= self.upper).then(|| self.place(x))
    }

    /// The same of any value, outliers at the end that they lie beyond.
    pub(super) fn place(self, x: f32) -> f32 {
        let (middle, half) = self.middle_and_half();
        if half > 0.0 { ((finite(x) - middle) / half).clamp(-1.0, 1.0) } else { 0.0 }
    }
}

/// What lies beyond f16's range is cut off at it, what is no number counts as 0.
pub(super) const fn finite(x: f32) -> f32 {
    if x.is_nan() { 0.0 } else { x.clamp(-LARGEST, LARGEST) }
}

fn percentile(sorted: &[f32], at: f64) -> f32 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = at * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[(at.floor() as usize + 1).min(last)]);
    let value = f64::from(low) + (f64::from(high) - f64::from(low)) * at.fract();
    f16::from_f64(value).to_f32()
}

/// `points` centres of the values by Lloyd's iteration, ascending: it starts at the quantiles `(i + 1/2) / points`, runs
/// until no value changes sides or fifty rounds are over, and a centre without values stays where it is. A value halfway
/// belongs to the lower centre. `values` come back sorted; without any the points are spread evenly over -1 to 1.
pub fn k_means(values: &mut [f32], points: usize) -> Vec<f32> {
    values.sort_unstable_by(f32::total_cmp);
    let n = values.len();
    if n == 0 {
        return (0..points).map(|i| (2 * i + 1) as f32 / points as f32 - 1.0).collect();
    }
    let mut sums = Vec::with_capacity(n + 1);
    sums.push(0.0f64);
    for &x in &*values {
        sums.push(sums[sums.len() - 1] + f64::from(x));
    }
    let mut centres: Vec<f64> =
        (0..points).map(|i| f64::from(values[(2 * i + 1) * n / (2 * points)])).collect();
    let mut ends = Vec::new();
    for _ in 0..ROUNDS {
        let edges = centres.windows(2).map(|pair| f64::midpoint(pair[0], pair[1]));
        let mut next: Vec<usize> =
            edges.map(|edge| values.partition_point(|&x| f64::from(x) <= edge)).collect();
        next.push(n);
        if next == ends {
            break;
        }
        let mut start = 0;
        for (centre, &end) in centres.iter_mut().zip(&next) {
            if end > start {
                *centre = (sums[end] - sums[start]) / (end - start) as f64;
                start = end;
            }
        }
        ends = next;
    }
    centres.into_iter().map(|c| c as f32).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_clouds_have_their_means_for_centres() {
        // Starts at the quantiles 1/4 and 3/4: 0.1 and 0.9. Both clouds keep their own.
        let mut values = [0.9, 0.0, 1.0, 0.1, 0.8, 0.2];
        assert_eq!(k_means(&mut values, 2), [0.1, 0.9]);
        // By hand: starts at 1 and 4, the edge 2.5 leaves {0, 1, 2} and {3, 4, 20}: 1 and 9. The edge 5 then leaves
        // {0, 1, 2, 3, 4} and {20}: 2 and 20. Nothing changes sides at 11.
        let mut values = [0.0, 1.0, 2.0, 3.0, 4.0, 20.0];
        assert_eq!(k_means(&mut values, 2), [2.0, 20.0]);
        assert_eq!(k_means(&mut [], 4), [-0.75, -0.25, 0.25, 0.75]);
        assert_eq!(k_means(&mut [0.5; 9], 4), [0.5; 4]);
    }

    #[test]
    fn thresholds_are_percentiles_in_f16() {
        // 101 values: percentile p is the value p.
        let mut values: Vec<f32> = (0..=100).rev().map(|i| i as f32).collect();
        assert_eq!(Thresholds::of(&mut values, 0.1), Thresholds { lower: 5.0, upper: 95.0 });
        assert_eq!(Thresholds::of(&mut values, 0.0), Thresholds { lower: 0.0, upper: 100.0 });
        // 0.5 and 99.5 of 0..=100 lie halfway between neighbours.
        assert_eq!(Thresholds::of(&mut values, 0.01), Thresholds { lower: 0.5, upper: 99.5 });
        let t = Thresholds::of(&mut values, 0.1);
        let places = [4.0, 5.0, 50.0, 72.5, 95.0, 95.1].map(|x| t.normalised(x));
        assert_eq!(places, [None, Some(-1.0), Some(0.0), Some(0.5), Some(1.0), None]);
        assert_eq!(Thresholds::of(&mut [], 0.1), Thresholds::default());
        let odd = Thresholds::of(&mut [f32::INFINITY, f32::NAN, f32::NEG_INFINITY], 0.0);
        assert_eq!(odd, Thresholds { lower: -65_504.0, upper: 65_504.0 });
        assert_eq!([f32::NAN, f32::INFINITY].map(|x| odd.normalised(x)), [Some(0.0), Some(1.0)]);
    }

    proptest! {
        #[test]
        fn centres_ascend_within_the_values_and_order_does_not_matter(
            values in prop::collection::vec(-1.0..1.0f32, 1..300),
            points in prop::sample::select(vec![4usize, 8, 16]),
        ) {
            let mut sorted = values.clone();
            let centres = k_means(&mut sorted, points);
            prop_assert!(centres.is_sorted());
            prop_assert!(centres[0] >= sorted[0] && centres[points - 1] <= sorted[values.len() - 1]);
            let mut reversed: Vec<f32> = values.into_iter().rev().collect();
            prop_assert_eq!(k_means(&mut reversed, points), centres);
        }
    }
}
