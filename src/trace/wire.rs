//! Bytes of the binary channels: LEB128 varints, little-endian floats, ranges of positions.

use thiserror::Error;

use super::limits::{Budget, MAX_POSITION};
use crate::event::Position;

/// Why bytes could not be decoded, or a value not encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    /// The bytes, or the value, break a rule of the format.
    #[error("{0}")]
    Malformed(&'static str),
    /// A version this build does not know.
    #[error("version {0} of the message is not known")]
    Version(u8),
    /// More elements than one step may hold ([`super::limits::MAX_ELEMENTS`]).
    #[error("more elements than a step may hold")]
    TooLarge,
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes that [`put_varint`] takes.
pub(super) const fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Ascending half-open ranges: their number, then per range the distance from the end of the one before and the
/// length less one.
pub(super) fn put_ranges(
    out: &mut Vec<u8>,
    count: usize,
    ranges: impl Iterator<Item = (Position, Position)>,
) -> Result<(), CodecError> {
    put_varint(out, count as u64);
    let mut end = 0;
    for (from, to) in ranges {
        if from < end || to <= from || to > MAX_POSITION {
            return Err(CodecError::Malformed("position ranges are not ascending, or too far"));
        }
        put_varint(out, u64::from(from - end));
        put_varint(out, u64::from(to - from - 1));
        end = to;
    }
    Ok(())
}

/// Reads what the functions above wrote. Nothing is allocated before its length was checked against the bytes left.
pub(super) struct Wire<'a> {
    rest: &'a [u8],
}

impl<'a> Wire<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], CodecError> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(CodecError::Malformed("it ends too early"))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (head, rest) =
            self.rest.split_first_chunk::<N>().ok_or(CodecError::Malformed("it ends too early"))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn byte(&mut self) -> Result<u8, CodecError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16_le(&mut self) -> Result<u16, CodecError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32_le(&mut self) -> Result<u32, CodecError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64_le(&mut self) -> Result<u64, CodecError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn f32_le(&mut self) -> Result<f32, CodecError> {
        self.array().map(f32::from_le_bytes)
    }

    pub(super) fn varint(&mut self) -> Result<u64, CodecError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(CodecError::Malformed("a number is too long"))
    }

    /// A varint that fits a narrower type.
    pub(super) fn narrow<T: TryFrom<u64>>(&mut self) -> Result<T, CodecError> {
        T::try_from(self.varint()?).map_err(|_| CodecError::Malformed("a number is too large"))
    }

    /// A number of elements that take at least `bytes_each` of the bytes left.
    pub(super) fn count(&mut self, bytes_each: usize) -> Result<usize, CodecError> {
        let count = self.narrow::<usize>()?;
        if count > self.rest.len() / bytes_each {
            return Err(CodecError::Malformed("it announces more than it holds"));
        }
        Ok(count)
    }

    /// A length and as many bytes.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], CodecError> {
        let n = self.count(1)?;
        self.take(n)
    }

    /// A length and a string.
    pub(super) fn text(&mut self) -> Result<&'a str, CodecError> {
        str::from_utf8(self.bytes()?).map_err(|_| CodecError::Malformed("a name is not UTF-8"))
    }

    /// A string as MCAP writes it: its length as u32.
    pub(super) fn mcap_text(&mut self) -> Result<&'a str, CodecError> {
        let n = self.u32_le()? as usize;
        str::from_utf8(self.take(n)?).map_err(|_| CodecError::Malformed("a name is not UTF-8"))
    }

    /// The next position of an ascending list: `gap` past the smallest that may come.
    pub(super) fn position_from(&mut self, smallest: Position) -> Result<Position, CodecError> {
        let gap = self.varint()?;
        let position = u64::from(smallest).saturating_add(gap);
        if position >= u64::from(MAX_POSITION) {
            return Err(CodecError::Malformed("a position is too large"));
        }
        Ok(position as Position)
    }

    /// What [`put_ranges`] wrote.
    pub(super) fn ranges(&mut self, budget: &mut Budget) -> Result<Vec<(Position, Position)>, CodecError> {
        let count = self.count(2)?;
        budget.spend(count)?;
        let mut ranges = Vec::with_capacity(count);
        let mut end = 0;
        for _ in 0..count {
            let from = self.position_from(end)?;
            end = self.position_from(from)? + 1;
            ranges.push((from, end));
        }
        Ok(ranges)
    }

    pub(super) const fn left(&self) -> usize {
        self.rest.len()
    }

    pub(super) const fn end(&self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(CodecError::Malformed("bytes are left over")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn varints_come_back_and_take_what_they_say(value: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            let mut wire = Wire::new(&out);
            prop_assert_eq!(wire.varint(), Ok(value));
            prop_assert_eq!(wire.end(), Ok(()));
        }
    }

    #[test]
    fn a_varint_past_64_bits_is_refused() {
        assert!(Wire::new(&[0xff; 11]).varint().is_err());
        let mut bytes = [0xff; 10];
        bytes[9] = 0x02;
        assert!(Wire::new(&bytes).varint().is_err());
        bytes[9] = 0x01;
        assert_eq!(Wire::new(&bytes).varint(), Ok(u64::MAX));
    }

    #[test]
    fn a_count_is_checked_before_anything_is_allocated() {
        let mut out = Vec::new();
        put_varint(&mut out, u64::from(u32::MAX));
        out.extend_from_slice(&[0; 100]);
        assert!(Wire::new(&out).count(1).is_err());
        assert!(Wire::new(&out).ranges(&mut Budget::of_a_step()).is_err());
    }

    #[test]
    fn ranges_that_do_not_ascend_are_refused() {
        for bad in [&[(3, 5), (4, 6)][..], &[(3, 3)], &[(5, 4)], &[(0, MAX_POSITION + 1)]] {
            assert!(put_ranges(&mut Vec::new(), bad.len(), bad.iter().copied()).is_err(), "{bad:?}");
        }
    }
}
