//! Non-uniform codes with sparse outliers: KVQuant (arXiv 2401.18079, sections 3.1 to 3.4; rule read in
//! SqueezeAILab/KVQuant, `simquant_module_quantizer.py`).
//!
//! Values between two thresholds are normalised to -1..1 by the middle and half the distance, and each is told by the
//! nearest point of a codebook of `2^bits` ([`k_means`](super::k_means)). Keys have thresholds per channel, fixed by the
//! calibration, values per token. What lies outside stays beside the codes as f16 with its channel.
//!
//! Layout of a row: codes packed from the low bits up; the number of outliers (u16), where there may be any; of values
//! the thresholds (two f16). The outliers of a page follow each other row by row, [`OUTLIER_BYTES`] each.
//!
//! Deviations: the codebook is made without Fisher weights, in one pass over the run's own first tokens; k-means starts
//! at quantiles, not at points drawn by k-means++; no cap on a token's outliers; no Q-Norm. An outlier's code is 0 and
//! not read (the source keeps the difference to a zero). Thresholds and outliers are f16, and a value is an outlier by
//! its value in f16, so that going into codes again changes nothing.

use half::f16;

use super::codebook::{Thresholds, finite};

/// Bytes of an outlier: channel (u16) and value (f16).
pub const OUTLIER_BYTES: usize = 4;

/// How rows of one length go into non-uniform codes.
#[derive(Clone, Debug, PartialEq)]
pub struct NuqCodec {
    layout: NuqLayout,
    /// Ascending; empty before the calibration.
    points: Vec<f32>,
    /// Halfway between neighbouring points.
    edges: Vec<f32>,
    /// Of every channel, where rows do not bring their own.
    channels: Vec<Thresholds>,
}

/// What a row in non-uniform codes is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NuqLayout {
    /// Bits per code: 2, 3 or 4.
    pub bits: usize,
    /// Elements per row, a multiple of 8.
    pub row: usize,
    /// Whether outliers are kept beside the codes; they are cut off at the thresholds otherwise.
    pub sparse: bool,
    /// Whether every row brings its thresholds, as values do.
    pub by_token: bool,
}

impl NuqLayout {
    /// Bytes of a row without its outliers.
    pub const fn row_bytes(self) -> usize {
        self.code_bytes() + 2 * self.sparse as usize + 4 * self.by_token as usize
    }

    const fn code_bytes(self) -> usize {
        self.row * self.bits / 8
    }

    /// Outliers of a row.
    pub fn outliers(self, dense: &[u8]) -> usize {
        if self.sparse {
            let at = self.code_bytes();
            usize::from(u16::from_le_bytes([dense[at], dense[at + 1]]))
        } else {
            0
        }
    }

    /// Outliers of consecutive rows.
    pub fn outliers_of(self, dense: &[u8]) -> usize {
        dense.chunks_exact(self.row_bytes()).map(|row| self.outliers(row)).sum()
    }

    fn put(self, codes: &mut [u8], element: usize, code: u8) {
        let bit = element * self.bits;
        let spread = u16::from(code) << (bit % 8);
        codes[bit / 8] |= spread as u8;
        if bit % 8 + self.bits > 8 {
            codes[bit / 8 + 1] |= (spread >> 8) as u8;
        }
    }

    /// Codes of eight elements at a time: they take whole bytes.
    fn unpack(self, codes: &[u8], mut each: impl FnMut(usize, usize)) {
        let mask = (1 << self.bits) - 1;
        for (i, eight) in codes.chunks_exact(self.bits).enumerate() {
            let word = eight.iter().rev().fold(0u32, |word, &byte| word << 8 | u32::from(byte));
            for j in 0..8 {
                each(8 * i + j, (word >> (j * self.bits) & mask) as usize);
            }
        }
    }
}

impl NuqCodec {
    /// A codec that knows no points yet: no row can go into codes.
    ///
    /// # Panics
    /// Bits other than 2, 3 and 4, or rows whose codes do not fill whole bytes: the caller checks what a person asked for.
    pub fn blank(layout: NuqLayout) -> Self {
        assert!(matches!(layout.bits, 2..=4) && layout.row.is_multiple_of(8), "eight codes fill whole bytes");
        Self { layout, points: Vec::new(), edges: Vec::new(), channels: Vec::new() }
    }

    /// The codec with a codebook, ascending, and the thresholds of every channel unless rows bring theirs.
    ///
    /// # Panics
    /// Another number of points or channels than the layout says.
    #[must_use]
    pub fn calibrated(&self, points: Vec<f32>, channels: Vec<Thresholds>) -> Self {
        assert_eq!(points.len(), 1 << self.layout.bits, "a point per code");
        assert_eq!(channels.len(), if self.layout.by_token { 0 } else { self.layout.row }, "one per channel");
        let edges = points.windows(2).map(|pair| f32::midpoint(pair[0], pair[1])).collect();
        Self { layout: self.layout, points, edges, channels }
    }

    /// What rows are made of.
    pub const fn layout(&self) -> NuqLayout {
        self.layout
    }

    /// The codebook, ascending; empty before the calibration.
    pub fn points(&self) -> &[f32] {
        &self.points
    }

    /// Puts a row into codes: `dense` gets all but its outliers, which are appended to `sparse`. Returns how many there
    /// are. `own` are the row's thresholds, where channels have none.
    ///
    /// # Panics
    /// Lengths that do not fit the layout, or a codec without points.
    pub fn encode(&self, row: &[f32], own: Thresholds, dense: &mut [u8], sparse: &mut Vec<u8>) -> usize {
        let layout = self.layout;
        assert_eq!((row.len(), dense.len()), (layout.row, layout.row_bytes()), "one row");
        assert!(!self.points.is_empty(), "calibrated before the first row");
        dense.fill(0);
        let (codes, rest) = dense.split_at_mut(layout.code_bytes());
        let mut outliers = 0u16;
        for (i, &x) in row.iter().enumerate() {
            let thresholds = if layout.by_token { own } else { self.channels[i] };
            let place = match thresholds.normalised(x) {
                None if layout.sparse => {
                    outliers += 1;
                    sparse.extend_from_slice(&(i as u16).to_le_bytes());
                    sparse.extend_from_slice(&f16::from_f32(finite(x)).to_le_bytes());
                    continue;
                }
                _ => thresholds.place(x),
            };
            let code = self.edges.iter().filter(|&&edge| place > edge).count();
            layout.put(codes, i, code as u8);
        }
        let (count, thresholds) = rest.split_at_mut(2 * usize::from(layout.sparse));
        if layout.sparse {
            count.copy_from_slice(&outliers.to_le_bytes());
        }
        if layout.by_token {
            thresholds[..2].copy_from_slice(&f16::from_f32(own.lower).to_le_bytes());
            thresholds[2..].copy_from_slice(&f16::from_f32(own.upper).to_le_bytes());
        }
        usize::from(outliers)
    }

    /// The values of consecutive rows; `sparse` begins with their outliers.
    pub(super) fn decode(&self, dense: &[u8], mut sparse: &[u8], out: &mut [f32]) {
        let layout = self.layout;
        let each = out.chunks_exact_mut(layout.row).zip(dense.chunks_exact(layout.row_bytes()));
        for (row, dense) in each {
            let (codes, rest) = dense.split_at(layout.code_bytes());
            layout.unpack(codes, |i, code| row[i] = self.points[code]);
            if layout.by_token {
                let [.., a, b, c, d] = *rest else { unreachable!("every row ends in its thresholds") };
                let (lower, upper) = (f16::from_le_bytes([a, b]), f16::from_le_bytes([c, d]));
                let own = Thresholds { lower: lower.to_f32(), upper: upper.to_f32() };
                let (middle, half) = own.middle_and_half();
                for x in row.iter_mut() {
                    *x = *x * half + middle;
                }
            } else {
                for (x, thresholds) in row.iter_mut().zip(&self.channels) {
                    let (middle, half) = thresholds.middle_and_half();
                    *x = *x * half + middle;
                }
            }
            let (own, behind) = sparse.split_at(layout.outliers(dense) * OUTLIER_BYTES);
            sparse = behind;
            for &[a, b, c, d] in own.as_chunks::<OUTLIER_BYTES>().0 {
                row[usize::from(u16::from_le_bytes([a, b]))] = f16::from_le_bytes([c, d]).to_f32();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::k_means;
    use super::*;

    fn layouts() -> impl Strategy<Value = NuqLayout> {
        (2..=4usize, 1..5usize, any::<bool>(), any::<bool>()).prop_map(|(bits, eights, sparse, by_token)| {
            NuqLayout { bits, row: 8 * eights, sparse, by_token }
        })
    }

    /// A codec and the thresholds of each row, from the rows themselves.
    fn calibrate(layout: NuqLayout, rows: &[f32], share: f64) -> (NuqCodec, Vec<Thresholds>) {
        let column = |c: usize| rows.iter().skip(c).step_by(layout.row).copied().collect::<Vec<f32>>();
        let channels: Vec<Thresholds> =
            (0..layout.row).map(|c| Thresholds::of(&mut column(c), share)).collect();
        let own: Vec<Thresholds> =
            rows.chunks(layout.row).map(|row| Thresholds::of(&mut row.to_vec(), share)).collect();
        let of = |r: usize, c: usize| if layout.by_token { own[r] } else { channels[c] };
        let mut inside: Vec<f32> =
            (0..rows.len()).filter_map(|i| of(i / layout.row, i % layout.row).normalised(rows[i])).collect();
        let channels = if layout.by_token { Vec::new() } else { channels };
        (NuqCodec::blank(layout).calibrated(k_means(&mut inside, 1 << layout.bits), channels), own)
    }

    fn encode(codec: &NuqCodec, rows: &[f32], own: &[Thresholds]) -> (Vec<u8>, Vec<u8>) {
        let (mut dense, mut sparse) = (vec![0xa5; own.len() * codec.layout.row_bytes()], Vec::new());
        let each = rows.chunks(codec.layout.row).zip(dense.chunks_mut(codec.layout.row_bytes())).zip(own);
        for ((row, dense), own) in each {
            codec.encode(row, *own, dense, &mut sparse);
        }
        (dense, sparse)
    }

    fn values(n: usize) -> impl Strategy<Value = Vec<f32>> {
        let magnitude = prop::sample::select(vec![1e-6f32, 1e-2, 1.0, 300.0, 2e4]);
        (magnitude, -3.0..3.0f32, prop::collection::vec(-1.0..1.0f32, n))
            .prop_map(|(scale, offset, xs)| xs.into_iter().map(|x| (x * x * x + offset) * scale).collect())
    }

    proptest! {
        #[test]
        fn a_value_comes_back_as_its_nearest_point_and_an_outlier_as_f16(
            (layout, rows) in layouts().prop_flat_map(|l| (Just(l), values(40 * l.row))),
            share in prop::sample::select(vec![0.0, 0.01, 0.1]),
        ) {
            let (codec, own) = calibrate(layout, &rows, share);
            let (dense, sparse) = encode(&codec, &rows, &own);
            let mut out = vec![f32::NAN; rows.len()];
            codec.decode(&dense, &sparse, &mut out);
            let mut outliers = 0;
            for (i, (&x, &y)) in rows.iter().zip(&out).enumerate() {
                let x = finite(x);
                let own = if layout.by_token { own[i / layout.row] } else { codec.channels[i % layout.row] };
                let (middle, half) = own.middle_and_half();
                if layout.sparse && own.normalised(x).is_none() {
                    outliers += 1;
                    prop_assert_eq!(y, f16::from_f32(x).to_f32());
                    continue;
                }
                // The distance to the nearest point, and what f32 itself rounds. A value that f16 rounds onto a threshold
                // may lie half a step of f16 beyond it; what is cut off any way away.
                let nearest = codec.points.iter().map(|p| (p - own.place(x)).abs()).fold(2.0, f32::min);
                let bound = nearest * half + 8.0 * f32::EPSILON * (x.abs() + middle.abs() + half);
                let beyond = f16::EPSILON.to_f32() * x.abs() + 2f32.powi(-24);
                let cut = own.normalised(x).map_or(f32::INFINITY, |_| beyond);
                prop_assert!((x - y).abs() <= bound + cut, "{} {} {:?}", x, y, own);
            }
            prop_assert_eq!(sparse.len(), outliers * OUTLIER_BYTES);
            prop_assert_eq!(layout.outliers_of(&dense), outliers);
            // Again into codes: the same bytes.
            let (dense_again, sparse_again) = encode(&codec, &out, &own);
            let mut again = vec![f32::NAN; rows.len()];
            codec.decode(&dense_again, &sparse_again, &mut again);
            prop_assert_eq!(again, out);
        }

        #[test]
        fn packed_codes_come_back(layout in layouts(), seed in prop::collection::vec(any::<u8>(), 32)) {
            let mut codes = vec![0; layout.code_bytes()];
            let code = |i: usize| seed[i] & ((1 << layout.bits) - 1) as u8;
            (0..layout.row).for_each(|i| layout.put(&mut codes, i, code(i)));
            let mut seen = 0;
            layout.unpack(&codes, |i, c| {
                assert_eq!(c, usize::from(code(i)));
                seen += 1;
            });
            prop_assert_eq!(seen, layout.row);
        }
    }

    #[test]
    fn a_share_of_the_values_is_outliers_and_three_bits_are_three() {
        let layout = NuqLayout { bits: 3, row: 128, sparse: true, by_token: false };
        assert_eq!(layout.row_bytes(), 48 + 2);
        assert_eq!(NuqLayout { by_token: true, sparse: false, ..layout }.row_bytes(), 48 + 4);
        let rows: Vec<f32> = (0..1000 * 128).map(|i| ((i as f32 * 0.7391).sin() * 40.0).tan()).collect();
        let (codec, own) = calibrate(layout, &rows, 0.01);
        let (_, sparse) = encode(&codec, &rows, &own);
        // 5 of 1000 on each side of every channel; f16 may round one more onto a threshold.
        let share = sparse.len() as f64 / OUTLIER_BYTES as f64 / rows.len() as f64;
        assert!((0.0095..=0.01).contains(&share), "{share}");
    }

    #[test]
    fn three_bits_are_packed_from_the_low_bits_up() {
        let layout = NuqLayout { bits: 3, row: 8, sparse: false, by_token: true };
        let mut codes = [0; 3];
        [1, 2, 3, 4, 5, 6, 7, 0].iter().enumerate().for_each(|(i, &code)| layout.put(&mut codes, i, code));
        // 000 111 110 101 100 011 010 001, the last code first.
        assert_eq!(codes, [0b1101_0001, 0b0101_1000, 0b0001_1111]);
    }
}
