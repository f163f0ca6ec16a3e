//! How far one distribution is from another.

/// KL(p ‖ q) in nats of the plain softmaxes of two rows of logits; infinite where q rules out what p does not. A logit
/// that is not finite stands for probability 0.
pub(super) fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p_norm, q_norm) = (log_sum_exp(p), log_sum_exp(q));
    let terms = p.iter().zip(q).filter(|(p, _)| p.is_finite()).map(|(&p, &q)| {
        let p = f64::from(p) - p_norm;
        let q = if q.is_finite() { f64::from(q) - q_norm } else { f64::NEG_INFINITY };
        // A probability too small for f64 adds nothing, whatever q says of it.
        match p.exp() {
            0.0 => 0.0,
            share => share * (p - q),
        }
    });
    // Rounding may take the sum of two equal distributions below 0.
    terms.sum::<f64>().max(0.0)
}

/// Logarithm of the sum of the exponentials of the finite logits, in f64: over a large vocabulary f32 loses digits.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let finite = || logits.iter().copied().filter(|logit| logit.is_finite());
    let largest = f64::from(finite().fold(f32::NEG_INFINITY, f32::max));
    largest + finite().map(|logit| (f64::from(logit) - largest).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn divergence_is_the_textbook_sum() {
        let logits = |shares: [f32; 3]| shares.map(f32::ln);
        let kl = kl_divergence(&logits([0.5, 0.25, 0.25]), &logits([0.25, 0.25, 0.5]));
        let expected = 0.5 * 2f64.ln() - 0.25 * 2f64.ln();
        assert!((kl - expected).abs() < 1e-6, "{kl}");
        assert_eq!(kl_divergence(&[0.0, 1.0], &[f32::NEG_INFINITY, 1.0]), f64::INFINITY);
        assert_eq!(kl_divergence(&[f32::NEG_INFINITY, 1.0], &[f32::NEG_INFINITY, 7.0]), 0.0);
        assert_eq!(kl_divergence(&[-2e4, 1.0], &[f32::NAN, 7.0]), 0.0);
    }

    proptest! {
        #[test]
        fn it_is_0_for_equals_whatever_their_offset_and_never_less(
            p in prop::collection::vec(-20f32..20.0, 1..40),
            q in prop::collection::vec(-20f32..20.0, 40),
        ) {
            let shifted: Vec<f32> = p.iter().map(|x| x + 3.0).collect();
            prop_assert!(kl_divergence(&p, &shifted) < 1e-6);
            prop_assert!(kl_divergence(&p, &q[..p.len()]) >= 0.0);
        }
    }
}
