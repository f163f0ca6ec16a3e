//! Randomness as a pure function of where it is used: no generator to advance, so neither chunking nor threads nor the
//! order of heads changes a draw.

/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (the finaliser of SplitMix64).
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// 64 random bits of a seed at a place, such as `[layer, head, query, token]`.
pub(super) fn bits<const N: usize>(seed: u64, place: [u64; N]) -> u64 {
    place.into_iter().fold(mix(seed), |state, part| mix(state ^ part))
}

/// Uniform in the open interval (0, 1).
pub(super) fn uniform<const N: usize>(seed: u64, place: [u64; N]) -> f64 {
    ((bits(seed, place) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// Standard Gumbel: location 0, scale 1.
pub(super) fn gumbel<const N: usize>(seed: u64, place: [u64; N]) -> f64 {
    -(-uniform(seed, place).ln()).ln()
}

/// Marks a use apart from the others of the same seed.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(super) enum Use {
    RandomScore = 1,
    KeyformerNoise = 2,
    NaclDraw = 3,
    CrushAnchor = 4,
    CamCoin = 5,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_differ_by_seed_and_by_every_part_of_the_place() {
        let draws = [
            bits(0, [0, 0]),
            bits(1, [0, 0]),
            bits(0, [1, 0]),
            bits(0, [0, 1]),
            bits(0, [1, 1]),
            bits(0, [0]),
            bits(0, [0, 0, 0]),
        ];
        for (i, a) in draws.iter().enumerate() {
            assert!(draws[..i].iter().all(|b| a != b));
        }
        assert_eq!(bits(7, [3, 4]), bits(7, [3, 4]));
    }

    #[test]
    fn uniform_and_gumbel_have_their_means() {
        let n = 20_000u64;
        let mean = |draw: &dyn Fn(u64) -> f64| (0..n).map(draw).sum::<f64>() / n as f64;
        assert!((mean(&|i| uniform(1, [i])) - 0.5).abs() < 0.01);
        // The Euler-Mascheroni constant.
        assert!((mean(&|i| gumbel(1, [i])) - 0.577_215_7).abs() < 0.03);
        assert!(
            (0..n).all(|i| (f64::MIN_POSITIVE..1.0).contains(&uniform(2, [i])) && gumbel(2, [i]).is_finite())
        );
    }
}
