//! Pages of rows: the layout of codes, scales and zeros, writing it and reading it.

use super::group::{Affine, f16s};

/// Channels whose scales are at hand at a time.
const STRIP: usize = 32;

/// Which elements share a scale and a zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// This many consecutive channels of one token; divides the row.
    Token(usize),
    /// One channel of this many consecutive tokens, which are a page.
    Channel(usize),
}

/// How rows of one length go into codes.
///
/// Layout. [`Grouping::Token`], per row: the codes, the groups' scales, the groups' zeros. [`Grouping::Channel`], per
/// page: the codes row by row, the channels' scales, the channels' zeros. Codes are packed from the low bits up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codec {
    bits: usize,
    grouping: Grouping,
    row: usize,
}

impl Codec {
    /// Codes of `bits` bits for rows of `row` elements.
    ///
    /// # Panics
    /// Bits other than 2, 4 and 8, rows that do not fill whole bytes, channel groups that do not divide the row, or a
    /// page whose scales and zeros do not share out evenly over its rows: the caller checks what a person asked for.
    pub fn new(bits: usize, grouping: Grouping, row: usize) -> Self {
        assert!(matches!(bits, 2 | 4 | 8) && (row * bits).is_multiple_of(8), "rows fill whole bytes");
        match grouping {
            Grouping::Token(channels) => {
                assert!(channels > 0 && row.is_multiple_of(channels), "whole groups");
            }
            Grouping::Channel(tokens) => {
                assert!(tokens > 0 && (row * 4).is_multiple_of(tokens), "an even share");
            }
        }
        Self { bits, grouping, row }
    }

    /// Which elements share a scale.
    pub const fn grouping(&self) -> Grouping {
        self.grouping
    }

    /// Elements per row.
    pub const fn row(&self) -> usize {
        self.row
    }

    /// Bytes of one row, its share of scales and zeros included.
    pub const fn row_bytes(&self) -> usize {
        let shared = match self.grouping {
            Grouping::Token(channels) => self.row / channels * 4,
            Grouping::Channel(tokens) => self.row * 4 / tokens,
        };
        self.code_bytes() + shared
    }

    const fn code_bytes(&self) -> usize {
        self.row * self.bits / 8
    }

    const fn levels(&self) -> u8 {
        ((1u16 << self.bits) - 1) as u8
    }

    /// Codes for `rows`, `[row][element]`, into `coded`. Rows that are not `live` have no part in a group's scale, and
    /// all their codes are 0.
    ///
    /// # Panics
    /// Lengths that do not fit each other; for [`Grouping::Channel`] anything but one page.
    pub fn encode(&self, rows: &[f32], live: &[bool], coded: &mut [u8]) {
        assert_eq!(rows.len(), live.len() * self.row, "one flag per row");
        assert_eq!(coded.len(), live.len() * self.row_bytes(), "room for every row");
        coded.fill(0);
        match self.grouping {
            Grouping::Token(channels) => {
                let each = rows.chunks_exact(self.row).zip(coded.chunks_exact_mut(self.row_bytes()));
                for ((row, coded), _) in each.zip(live).filter(|(_, live)| **live) {
                    self.encode_token(row, channels, coded);
                }
            }
            Grouping::Channel(tokens) => {
                assert_eq!(live.len(), tokens, "one page");
                self.encode_page(rows, live, coded);
            }
        }
    }

    fn encode_token(&self, row: &[f32], channels: usize, coded: &mut [u8]) {
        let (codes, shared) = coded.split_at_mut(self.code_bytes());
        let (scales, zeros) = shared.split_at_mut(shared.len() / 2);
        for (g, group) in row.chunks_exact(channels).enumerate() {
            let affine = Affine::fit(group.iter().copied(), self.levels());
            for (i, &x) in group.iter().enumerate() {
                self.put(codes, g * channels + i, affine.code(x, self.levels()));
            }
            put_affine(affine, g, scales, zeros);
        }
    }

    fn encode_page(&self, rows: &[f32], live: &[bool], coded: &mut [u8]) {
        let (codes, shared) = coded.split_at_mut(live.len() * self.code_bytes());
        let (scales, zeros) = shared.split_at_mut(shared.len() / 2);
        for channel in 0..self.row {
            let column = || (0..live.len()).filter(|&t| live[t]).map(|t| (t, rows[t * self.row + channel]));
            let affine = Affine::fit(column().map(|(_, x)| x), self.levels());
            for (t, x) in column() {
                let codes = &mut codes[t * self.code_bytes()..];
                self.put(codes, channel, affine.code(x, self.levels()));
            }
            put_affine(affine, channel, scales, zeros);
        }
    }

    /// Puts the code of an element, whose bits are 0.
    fn put(&self, codes: &mut [u8], element: usize, code: u8) {
        let bit = element * self.bits;
        codes[bit / 8] |= code << (bit % 8);
    }

    /// The codes of one row as numbers.
    fn unpack(&self, codes: &[u8], out: &mut [f32]) {
        match self.bits {
            8 => {
                for (x, &byte) in out.iter_mut().zip(codes) {
                    *x = f32::from(byte);
                }
            }
            4 => {
                for (pair, &byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                    *pair = [f32::from(byte & 15), f32::from(byte >> 4)];
                }
            }
            _ => {
                for (four, &byte) in out.as_chunks_mut::<4>().0.iter_mut().zip(codes) {
                    *four = [0, 2, 4, 6].map(|shift| f32::from(byte >> shift & 3));
                }
            }
        }
    }

    /// Values of the coded rows from `first` on, as many as `out` has room for.
    pub(super) fn decode(&self, coded: &[u8], first: usize, out: &mut [f32]) {
        match self.grouping {
            Grouping::Token(channels) => {
                let each = coded.chunks_exact(self.row_bytes()).skip(first);
                for (row, coded) in out.chunks_exact_mut(self.row).zip(each) {
                    let (codes, shared) = coded.split_at(self.code_bytes());
                    let (scales, zeros) = shared.split_at(shared.len() / 2);
                    self.unpack(codes, row);
                    let affine = f16s(scales).zip(f16s(zeros));
                    for (group, (scale, zero)) in row.chunks_exact_mut(channels).zip(affine) {
                        for x in group {
                            *x = *x * scale + zero;
                        }
                    }
                }
            }
            Grouping::Channel(tokens) => {
                let (codes, shared) = coded.split_at(tokens * self.code_bytes());
                let (scales, zeros) = shared.split_at(shared.len() / 2);
                let each = codes.chunks_exact(self.code_bytes()).skip(first);
                for (row, codes) in out.chunks_exact_mut(self.row).zip(each) {
                    self.unpack(codes, row);
                }
                // A strip of channels at a time: its scales and zeros stay in registers while the rows go by.
                let strips = scales.chunks(2 * STRIP).zip(zeros.chunks(2 * STRIP)).enumerate();
                for (strip, (scales, zeros)) in strips {
                    let (mut scale, mut zero) = ([0.0; STRIP], [0.0; STRIP]);
                    scale.iter_mut().zip(f16s(scales)).for_each(|(to, x)| *to = x);
                    zero.iter_mut().zip(f16s(zeros)).for_each(|(to, x)| *to = x);
                    for row in out.chunks_exact_mut(self.row) {
                        for ((x, scale), zero) in row[strip * STRIP..].iter_mut().zip(&scale).zip(&zero) {
                            *x = *x * scale + zero;
                        }
                    }
                }
            }
        }
    }
}

fn put_affine(affine: Affine, group: usize, scales: &mut [u8], zeros: &mut [u8]) {
    let (scale, zero) = affine.to_bytes();
    scales[2 * group..][..2].copy_from_slice(&scale);
    zeros[2 * group..][..2].copy_from_slice(&zero);
}

#[cfg(test)]
mod tests {
    use half::f16;
    use proptest::prelude::*;

    use super::super::CodedRows;
    use super::*;

    fn codecs() -> impl Strategy<Value = Codec> {
        let bits = prop::sample::select(vec![2, 4, 8]);
        (bits, any::<bool>(), 1..5usize).prop_map(|(bits, by_channel, groups)| {
            let grouping = if by_channel { Grouping::Channel(32) } else { Grouping::Token(32) };
            Codec::new(bits, grouping, groups * 32)
        })
    }

    /// Magnitudes from subnormal to the edge of f16, offsets included, so that zeros and scales have to round.
    fn values(n: usize) -> impl Strategy<Value = Vec<f32>> {
        let magnitude = prop::sample::select(vec![1e-8f32, 1e-3, 1.0, 30.0, 2e4]);
        (magnitude, -3.0..3.0f32, prop::collection::vec(-1.0..1.0f32, n))
            .prop_map(|(scale, offset, xs)| xs.into_iter().map(|x| (x + offset) * scale / 1.3).collect())
    }

    /// Scale and zero of an element's group, read from the bytes as the layout is documented.
    fn affine_of(codec: Codec, coded: &[u8], row: usize, element: usize) -> [f32; 2] {
        let half = |bytes: &[u8], i: usize| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32();
        let code_bytes = codec.row * codec.bits / 8;
        let (shared, group) = match codec.grouping {
            Grouping::Token(n) => {
                (&coded[row * codec.row_bytes() + code_bytes..(row + 1) * codec.row_bytes()], element / n)
            }
            Grouping::Channel(tokens) => (&coded[tokens * code_bytes..], element),
        };
        let (scales, zeros) = shared.split_at(shared.len() / 2);
        [half(scales, group), half(zeros, group)]
    }

    /// How far an element may come back from where it was: half a step, and what f32 arithmetic rounds of the numbers that
    /// it goes through.
    fn half_a_step(x: f32, [scale, zero]: [f32; 2]) -> f32 {
        scale / 2.0 + 4.0 * f32::EPSILON * (x.abs() + (x - zero).abs() + scale)
    }

    #[test]
    fn an_element_far_from_its_zero_and_between_two_codes_comes_back_within_half_a_step() {
        let codec = Codec::new(8, Grouping::Channel(32), 32);
        let mut rows = vec![0.0; 32 * 32];
        let column = [-40.907_29, 2.049_360_3, -0.562_805_9];
        for (t, x) in column.into_iter().enumerate() {
            rows[t * 32] = x;
        }
        let live: Vec<bool> = (0..32).map(|t| t < column.len()).collect();
        let mut coded = vec![0; 32 * codec.row_bytes()];
        codec.encode(&rows, &live, &mut coded);
        let mut out = vec![0.0; rows.len()];
        CodedRows::new(codec, &coded, &[]).decode(&mut out);
        let affine = affine_of(codec, &coded, 2, 0);
        assert!((out[64] - column[2]).abs() <= half_a_step(column[2], affine), "{} {affine:?}", out[64]);
    }

    proptest! {
        #[test]
        fn an_element_comes_back_within_half_a_step(
            (codec, rows) in codecs().prop_flat_map(|c| (Just(c), values(32 * c.row))),
            holes in any::<u32>(),
        ) {
            let live: Vec<bool> = (0..32).map(|t| holes >> t & 1 == 0).collect();
            let mut coded = vec![0xa5; 32 * codec.row_bytes()];
            codec.encode(&rows, &live, &mut coded);
            let mut out = vec![f32::NAN; rows.len()];
            CodedRows::new(codec, &coded, &[]).decode(&mut out);
            for (i, (&x, &y)) in rows.iter().zip(&out).enumerate().filter(|(i, _)| live[i / codec.row]) {
                let affine = affine_of(codec, &coded, i / codec.row, i % codec.row);
                prop_assert!((x - y).abs() <= half_a_step(x, affine), "{x} {y} {affine:?}");
            }
            // The dead rows have no say.
            let mut other = rows.clone();
            for (row, _) in other.chunks_exact_mut(codec.row).zip(&live).filter(|(_, live)| !**live) {
                row.fill(f32::INFINITY);
            }
            let mut again = vec![0; coded.len()];
            codec.encode(&other, &live, &mut again);
            prop_assert_eq!(again, coded);
        }

        #[test]
        fn any_cut_decodes_to_the_same_rows(
            codec in codecs(),
            seed in prop::collection::vec(-2.0..2.0f32, 128),
            exact_rows in 0..9usize,
            (a, b) in (0..41usize, 0..41usize),
        ) {
            let rows: Vec<f32> = (0..32 * codec.row).map(|i| seed[i * 7 % 128]).collect();
            let mut coded = vec![0; 32 * codec.row_bytes()];
            codec.encode(&rows, &[true; 32], &mut coded);
            let exact = &rows[..exact_rows * codec.row];
            let all = CodedRows::new(codec, &coded, exact);
            let mut whole = vec![0.0; all.rows() * codec.row];
            all.decode(&mut whole);
            let (from, to) = (a.min(b).min(all.rows()), a.max(b).min(all.rows()));
            let cut = all.cut(from, to);
            let mut part = vec![0.0; cut.rows() * codec.row];
            cut.decode(&mut part);
            prop_assert_eq!(&part, &whole[from * codec.row..to * codec.row]);
            if matches!(codec.grouping, Grouping::Token(_)) {
                let (mut codes, mut values) = (Vec::new(), Vec::new());
                cut.copy_stored(&mut codes, &mut values);
                let mut copied = vec![0.0; part.len()];
                CodedRows::new(codec, &codes, &values).decode(&mut copied);
                prop_assert_eq!(&copied, &part);
            }
            let in_codes = to.min(32).saturating_sub(from);
            prop_assert_eq!(cut.bytes(), in_codes * codec.row_bytes() + (to - from - in_codes) * codec.row * 4);
        }
    }

    #[test]
    fn bytes_per_element_are_those_of_the_paper() {
        for (bits, bytes) in [(2, 0.375), (4, 0.625)] {
            for grouping in [Grouping::Token(32), Grouping::Channel(32)] {
                assert_eq!(Codec::new(bits, grouping, 128).row_bytes() as f64 / 128.0, bytes);
            }
        }
        assert_eq!(Codec::new(8, Grouping::Token(6), 6).row_bytes(), 10);
    }
}
