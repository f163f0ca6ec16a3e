//! First and second moments of a query head's vectors.

/// Mean and covariance of the queries of one query head, before RoPE, kept as running sums in f64.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueryMoments {
    count: u64,
    sum: Vec<f64>,
    /// Sums of products, `[i][j]` with `j <= i`, row after row.
    products: Vec<f64>,
}

impl QueryMoments {
    /// Takes in one query.
    pub fn observe(&mut self, query: &[f32]) {
        let d = query.len();
        self.sum.resize(d, 0.0);
        self.products.resize(d * (d + 1) / 2, 0.0);
        self.count += 1;
        let mut products = self.products.iter_mut();
        for (i, (&a, sum)) in query.iter().zip(&mut self.sum).enumerate() {
            *sum += f64::from(a);
            for (&b, product) in query[..=i].iter().zip(&mut products) {
                *product += f64::from(a) * f64::from(b);
            }
        }
    }

    /// Queries seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean; empty before the first query.
    pub fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|sum| sum / self.count as f64).collect()
    }

    /// The covariance with divisor n, `[head_dim][head_dim]`; empty before the first query.
    pub fn covariance(&self) -> Vec<f64> {
        let (d, n) = (self.sum.len(), self.count as f64);
        let mut covariance = vec![0.0; d * d];
        let mut products = self.products.iter();
        for i in 0..d {
            for (j, product) in (0..=i).zip(&mut products) {
                let value = product / n - self.sum[i] / n * (self.sum[j] / n);
                covariance[i * d + j] = value;
                covariance[j * d + i] = value;
            }
        }
        covariance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_by_hand() {
        let mut moments = QueryMoments::default();
        for query in [[1.0, 2.0], [3.0, 2.0], [2.0, 5.0]] {
            moments.observe(&query);
        }
        assert_eq!((moments.count(), moments.mean()), (3, vec![2.0, 3.0]));
        let expected = [2.0 / 3.0, 0.0, 0.0, 2.0];
        for (value, expected) in moments.covariance().into_iter().zip(expected) {
            assert!((value - expected).abs() < 1e-12);
        }
        assert_eq!(QueryMoments::default().covariance(), [0.0; 0]);
    }
}
