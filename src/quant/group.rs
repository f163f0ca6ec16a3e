//! One group: its scale and zero, its codes.

use half::f16;

/// Largest finite f16.
const LARGEST: f32 = 65_504.0;

/// Scale and zero of a group; both are values of f16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Affine {
    scale: f16,
    zero: f16,
}

impl Affine {
    /// Fits codes `0..=levels` to the values. Values that are no numbers do not count; a group without any gets 0 and 0.
    pub(super) fn fit(values: impl Iterator<Item = f32>, levels: u8) -> Self {
        let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
        for x in values.filter(|x| !x.is_nan()) {
            (min, max) = (min.min(x), max.max(x));
        }
        if min > max {
            return Self { scale: f16::ZERO, zero: f16::ZERO };
        }
        let zero = at_most(min.clamp(-LARGEST, LARGEST));
        let scale = at_least((max.clamp(-LARGEST, LARGEST) - zero.to_f32()) / f32::from(levels));
        Self { scale, zero }
    }

    /// The code of a value. A scale of 0 has one value only, and one code.
    pub(super) fn code(self, x: f32, levels: u8) -> u8 {
        let scale = self.scale.to_f32();
        if scale == 0.0 {
            return 0;
        }
        // A NaN becomes 0 in the cast.
        ((x - self.zero.to_f32()) / scale).round().clamp(0.0, f32::from(levels)) as u8
    }

    /// Bytes of the scale, bytes of the zero.
    pub(super) fn to_bytes(self) -> ([u8; 2], [u8; 2]) {
        (self.scale.to_le_bytes(), self.zero.to_le_bytes())
    }
}

/// The largest f16 that is not above `x`, which lies within f16's range.
fn at_most(x: f32) -> f16 {
    let near = f16::from_f32(x);
    if near.to_f32() <= x {
        return near;
    }
    match near.to_bits() {
        // Below +0 and -0 comes the smallest negative number.
        0 | 0x8000 => f16::from_bits(0x8001),
        bits if near.is_sign_negative() => f16::from_bits(bits + 1),
        bits => f16::from_bits(bits - 1),
    }
}

/// The smallest f16 that is not below `x`, for `x` from 0 up to f16's largest.
fn at_least(x: f32) -> f16 {
    let near = f16::from_f32(x);
    if near.to_f32() >= x { near } else { f16::from_bits(near.to_bits() + 1) }
}

/// f16 numbers out of bytes.
pub(super) fn f16s(bytes: &[u8]) -> impl ExactSizeIterator<Item = f32> + '_ {
    let (pairs, _) = bytes.as_chunks::<2>();
    pairs.iter().map(|&pair| f16::from_le_bytes(pair).to_f32())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_directed_at_every_boundary() {
        for bits in (0..0x7c00u16).step_by(7).flat_map(|b| [b, b | 0x8000]) {
            let exact = f16::from_bits(bits).to_f32();
            for x in [exact.next_down(), exact, exact.next_up()] {
                if x.abs() > LARGEST {
                    continue;
                }
                let low = at_most(x).to_f32();
                assert!(low <= x && f16::from_f32(low).to_f32() == low, "{x:e} {low:e}");
                if x >= 0.0 {
                    let high = at_least(x).to_f32();
                    assert!(high >= x, "{x:e} {high:e}");
                    assert!(high == low || x != exact, "{x:e} is an f16");
                }
            }
        }
    }

    #[test]
    fn odd_values_have_a_code_and_flat_groups_one() {
        let flat = Affine::fit([0.5, 0.5].into_iter(), 3);
        assert_eq!((flat.scale, flat.zero.to_f32(), flat.code(0.5, 3)), (f16::ZERO, 0.5, 0));
        assert_eq!(Affine::fit([f32::NAN].into_iter(), 3), Affine { scale: f16::ZERO, zero: f16::ZERO });
        let wide = Affine::fit([f32::NEG_INFINITY, 1.0, f32::NAN, f32::INFINITY].into_iter(), 15);
        assert!(wide.scale.is_finite() && wide.zero.is_finite());
        assert_eq!([f32::NEG_INFINITY, f32::INFINITY, f32::NAN].map(|x| wide.code(x, 15)), [0, 15, 0]);
    }
}
