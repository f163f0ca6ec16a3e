//! From scores to probabilities. The innermost loops are the machine's ([`Isa`]), and on every machine of the same bits.

use super::tile::RANGE_SLOTS;
use crate::device::Isa;

/// Scores to probabilities in place. A row of nothing but `-inf` becomes all 0: there was nothing to attend to.
///
/// Slots that a query does not see change no bit: the sums of ranges are interleaved, so that zeros behind fall to
/// where they add nothing.
pub(super) fn softmax(row: &mut [f32]) {
    let isa = Isa::best();
    let max = isa.max(row);
    if max == f32::NEG_INFINITY {
        row.fill(0.0);
        return;
    }
    let sum = row.chunks_mut(RANGE_SLOTS).fold(0.0, |sum, range| sum + isa.exp_and_sum(range, max));
    isa.scale(row, 1.0 / sum);
}

/// `acc += part`.
pub(super) fn add(acc: &mut [f32], part: &[f32]) {
    for (sum, x) in acc.iter_mut().zip(part) {
        *sum += x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_with_nothing_to_see_stays_empty_and_unseen_slots_change_no_bit() {
        let mut nothing = [f32::NEG_INFINITY; 5];
        softmax(&mut nothing);
        assert_eq!(nothing, [0.0; 5]);
        let mut seen: Vec<f32> = (0..1030).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let mut longer = seen.clone();
        longer.extend([f32::NEG_INFINITY; 2000]);
        softmax(&mut seen);
        softmax(&mut longer);
        assert_eq!(longer[..1030], seen);
        assert!((seen.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
}
