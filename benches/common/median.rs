//! What steps come to.

/// The median of `values` and a 95 % interval of it: the order statistics that a binomial with p = 1/2 leaves 2.5 %
/// beyond on each side (normal approximation).
pub(crate) fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let reach = (1.96 * (n as f64).sqrt() / 2.0).ceil() as usize;
    let at = |i: usize| values[i.min(n - 1)];
    (at(n / 2), at((n / 2).saturating_sub(reach)), at(n / 2 + reach))
}
