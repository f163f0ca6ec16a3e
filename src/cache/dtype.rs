//! What a page's rows are stored as.

use std::fmt;
use std::str::FromStr;

use super::pool::Part;
use crate::quant::{Codec, Grouping, NuqLayout, OUTLIER_BYTES};

/// Slots per block, and so tokens per group of keys, of [`KvDtype::Kivi`]; channels per group of its values.
pub const KIVI_GROUP: usize = 32;

/// Type of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// 4 bytes, exact on a CPU run.
    #[default]
    F32,
    /// 2 bytes, rounded to nearest even; beyond 65504 infinite.
    F16,
    /// 8-bit codes, each row of K and of V a group of its own with f16 scale and zero ([`quant`](crate::quant)). Rows go
    /// into codes as they are written, so attention within a prefill chunk reads codes too.
    Int8,
    /// 4 or 2 bits as KIVI has them (arXiv 2402.02750): K per channel with the page as the group, V per token in groups
    /// of [`KIVI_GROUP`] channels; the newest rows stay exact (f32) until [`Cache::quantise`](super::Cache::quantise). A
    /// prefill chunk reads its own rows exactly, and earlier chunks as they lie in the pages: KIVI's prompt in one piece is
    /// a chunk as long as the prompt. Both window and codes of V have the layer's home.
    Kivi {
        /// Bits per code: 4 or 2.
        bits: u8,
        /// Tokens of the exact window: V keeps exactly so many, K grows to so many and goes into codes all at once.
        residual: u32,
    },
    /// Non-uniform codes with sparse outliers as KVQuant has them (arXiv 2401.18079): K per channel and before RoPE, V per
    /// token. Rows stay exact (f32) until the calibration; from then on they go into codes as they are written.
    Nuq(Nuq),
}

/// Parameters of [`KvDtype::Nuq`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nuq {
    /// Bits per code: 4, 3 or 2.
    pub bits: u8,
    /// Millionths of the calibrated values that are outliers, kept as f16; 0 cuts all off at the least and the largest.
    pub outliers_ppm: u32,
    /// First tokens that stay exact.
    pub first: u32,
    /// Tokens that the thresholds and codebooks are made of, at most: the calibrated span ends with the prompt's
    /// compressed span too ([`Cache::end_calibration`](super::Cache::end_calibration)). Counted from position 0 on.
    pub calibrate: u32,
}

impl Nuq {
    /// Fewest tokens that a codebook is made of, the exact ones aside.
    pub const LEAST_TOKENS: u32 = 32;
    /// Most tokens that are kept back for it.
    const MOST_TOKENS: u32 = 1 << 16;
    /// Most first tokens that stay exact.
    const MOST_FIRST: u32 = 1 << 10;
    /// Most outliers.
    const MOST_PPM: u32 = 200_000;
    const PARAMS: &str = "outliers=0..0.2, first=0..1024, calibrate=32..65536 (32 more than first)";

    /// As KVQuant has it: 1 % outliers, the first token exact; calibrated on one span of 2048 tokens where the source
    /// has sixteen.
    const fn usual(bits: u8) -> Self {
        Self { bits, outliers_ppm: 10_000, first: 1, calibrate: 2_048 }
    }

    /// Share of the calibrated values that are outliers.
    pub fn outliers(self) -> f64 {
        f64::from(self.outliers_ppm) / 1e6
    }

    /// The same in percent, as short as it was spelled.
    pub fn outlier_percent(self) -> f64 {
        f64::from(self.outliers_ppm) / 1e4
    }

    /// What a row is made of.
    pub(super) fn layout(self, part: Part, head_dim: usize) -> NuqLayout {
        NuqLayout {
            bits: usize::from(self.bits),
            row: head_dim,
            sparse: self.outliers_ppm > 0,
            by_token: part == Part::V,
        }
    }

    fn set(&mut self, param: &str) -> Option<()> {
        let (name, value) = param.split_once('=')?;
        let whole =
            |range: std::ops::RangeInclusive<u32>| value.parse().ok().filter(|value| range.contains(value));
        match name {
            "outliers" => {
                let share = value.parse::<f64>().ok()? * 1e6;
                self.outliers_ppm =
                    (0.0..=f64::from(Self::MOST_PPM)).contains(&share).then(|| share.round() as u32)?;
            }
            "first" => self.first = whole(0..=Self::MOST_FIRST)?,
            "calibrate" => self.calibrate = whole(Self::LEAST_TOKENS..=Self::MOST_TOKENS)?,
            _ => return None,
        }
        Some(())
    }

    fn parse(bits: u8, params: Option<&str>) -> Result<Self, String> {
        let mut nuq = Self::usual(bits);
        for param in params.iter().flat_map(|params| params.split(',')) {
            nuq.set(param)
                .ok_or_else(|| format!("'{param}' is none of its parameters: use {}", Self::PARAMS))?;
        }
        if nuq.calibrate < nuq.first + Self::LEAST_TOKENS {
            return Err(format!(
                "calibrate={} leaves fewer than 32 tokens: use {}",
                nuq.calibrate,
                Self::PARAMS
            ));
        }
        Ok(nuq)
    }
}

impl fmt::Display for Nuq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = Self::usual(self.bits);
        let mut mark = ':';
        let mut param = |differs: bool, name: &str, value: &dyn fmt::Display| {
            if differs {
                write!(f, "{mark}{name}={value}")?;
                mark = ',';
            }
            Ok(())
        };
        param(self.outliers_ppm != usual.outliers_ppm, "outliers", &self.outliers())?;
        param(self.first != usual.first, "first", &self.first)?;
        param(self.calibrate != usual.calibrate, "calibrate", &self.calibrate)
    }
}

/// A page type that does not go with the model or the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DtypeError {
    /// Keys are grouped by page.
    #[error(
        "{dtype} pages with blocks of {block_size} slots: a page is one group of keys, use --block-size 32"
    )]
    BlockSize {
        /// Page type.
        dtype: KvDtype,
        /// Slots per block asked for.
        block_size: u32,
    },
    /// Keys go into codes by whole groups.
    #[error("{dtype} pages: residual must be a positive multiple of the group, 32 tokens")]
    Residual {
        /// Page type.
        dtype: KvDtype,
    },
    /// Values are grouped by channels.
    #[error(
        "{dtype} pages: the model's heads have {head_dim} elements, not a multiple of the value group of 32; use int8"
    )]
    HeadDim {
        /// Page type.
        dtype: KvDtype,
        /// Elements per head.
        head_dim: usize,
    },
    /// Eight codes fill whole bytes.
    #[error("{dtype} pages: the model's heads have {head_dim} elements, not a multiple of 8; use int8")]
    NuqHeadDim {
        /// Page type.
        dtype: KvDtype,
        /// Elements per head.
        head_dim: usize,
    },
}

impl KvDtype {
    /// Every name; a type has its usual parameters then.
    pub const NAMES: [&'static str; 8] = ["f32", "f16", "int8", "int4", "int2", "nuq4", "nuq3", "nuq2"];

    /// The name on the command line and in recordings, without parameters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Kivi { bits: 2, .. } => "int2",
            Self::Kivi { .. } => "int4",
            Self::Nuq(Nuq { bits: 2, .. }) => "nuq2",
            Self::Nuq(Nuq { bits: 3, .. }) => "nuq3",
            Self::Nuq(_) => "nuq4",
        }
    }

    /// This type with what it has in common with another one: its exact window, its outliers and first tokens.
    #[must_use]
    pub const fn taking_over(self, other: Self) -> Self {
        match (self, other) {
            (Self::Kivi { bits, .. }, Self::Kivi { residual, .. }) => Self::Kivi { bits, residual },
            (Self::Nuq(own), Self::Nuq(other)) => Self::Nuq(Nuq { bits: own.bits, ..other }),
            _ => self,
        }
    }

    /// Whether what is stored is not what was computed, beyond a rounding of each element for itself. Such pages are
    /// never shared between sequences.
    pub const fn is_coded(self) -> bool {
        matches!(self, Self::Int8 | Self::Kivi { .. } | Self::Nuq(_))
    }

    /// Whether rows are written exact, and go into codes together with others once they are [told to](super::Cache::quantise).
    pub const fn goes_into_codes_later(self) -> bool {
        matches!(self, Self::Kivi { .. } | Self::Nuq(_))
    }

    /// The block size that goes with the type where a person names none.
    pub const fn usual_block_size(self) -> u32 {
        if let Self::Kivi { .. } = self { KIVI_GROUP as u32 } else { 16 }
    }

    /// Whether keys are kept before RoPE whatever the policy, and rotated as they are read.
    pub const fn keeps_keys_before_rope(self) -> bool {
        matches!(self, Self::Nuq(_))
    }

    /// Bytes of a row of `head_dim` elements as it is written, or ([`Self::Nuq`]) as long as nothing is calibrated.
    pub const fn written_row_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 | Self::Kivi { .. } | Self::Nuq(_) => 4 * head_dim,
            Self::F16 => 2 * head_dim,
            Self::Int8 => head_dim + 4,
        }
    }

    /// Bytes of a row in codes that was written exact, outliers aside.
    pub(super) fn settled_row_bytes(self, part: Part, head_dim: usize) -> usize {
        match self {
            Self::Kivi { bits, .. } => head_dim * bits as usize / 8 + head_dim * 4 / KIVI_GROUP,
            Self::Nuq(nuq) => nuq.layout(part, head_dim).row_bytes(),
            _ => self.written_row_bytes(head_dim),
        }
    }

    /// Bytes of a key and a value of so many elements once no exact window holds them; outliers at the share that they
    /// have of the calibrated values, to whole bytes. A size of 0 has no row.
    pub fn token_bytes(self, key_size: usize, value_size: usize) -> u64 {
        let row = |part, size: usize| if size == 0 { 0 } else { self.settled_row_bytes(part, size) };
        let outliers = match self {
            Self::Nuq(nuq) => (key_size + value_size) as f64 * nuq.outliers() * OUTLIER_BYTES as f64,
            _ => 0.0,
        };
        (row(Part::K, key_size) + row(Part::V, value_size)) as u64 + outliers.round() as u64
    }

    /// Whether pages of this type can hold such rows in such blocks.
    ///
    /// # Errors
    /// One line for a person.
    pub fn check(self, block_size: u32, head_dim: usize) -> Result<(), DtypeError> {
        let residual = match self {
            Self::Nuq(_) if !head_dim.is_multiple_of(8) => {
                return Err(DtypeError::NuqHeadDim { dtype: self, head_dim });
            }
            Self::Kivi { residual, .. } => residual,
            _ => return Ok(()),
        };
        if residual == 0 || !residual.is_multiple_of(KIVI_GROUP as u32) {
            return Err(DtypeError::Residual { dtype: self });
        }
        if block_size != KIVI_GROUP as u32 {
            return Err(DtypeError::BlockSize { dtype: self, block_size });
        }
        if !head_dim.is_multiple_of(KIVI_GROUP) {
            return Err(DtypeError::HeadDim { dtype: self, head_dim });
        }
        Ok(())
    }

    /// How a row of K (`by_channel`) or V goes into uniform codes; `None` where none does.
    pub(super) fn codec(self, by_channel: bool, head_dim: usize) -> Option<Codec> {
        match self {
            Self::F32 | Self::F16 | Self::Nuq(_) => None,
            Self::Int8 => Some(Codec::new(8, Grouping::Token(head_dim), head_dim)),
            Self::Kivi { bits, .. } => {
                let grouping =
                    if by_channel { Grouping::Channel(KIVI_GROUP) } else { Grouping::Token(KIVI_GROUP) };
                Some(Codec::new(usize::from(bits), grouping, head_dim))
            }
        }
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Kivi { residual, .. } if *residual as usize != KIVI_GROUP => {
                write!(f, ":residual={residual}")
            }
            Self::Nuq(nuq) => fmt::Display::fmt(nuq, f),
            _ => Ok(()),
        }
    }
}

impl FromStr for KvDtype {
    /// What to use instead.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, params) = match text.split_once(':') {
            Some((name, params)) => (name, Some(params)),
            None => (text, None),
        };
        let kivi = |bits| match params.map(|params| params.strip_prefix("residual=").map(str::parse)) {
            None => Ok(Self::Kivi { bits, residual: KIVI_GROUP as u32 }),
            Some(Some(Ok(residual))) => Ok(Self::Kivi { bits, residual }),
            _ => Err("the one parameter is residual=TOKENS, a multiple of 32".to_owned()),
        };
        match (name, params) {
            ("f32", None) => Ok(Self::F32),
            ("f16", None) => Ok(Self::F16),
            ("int8", None) => Ok(Self::Int8),
            ("int4", _) => kivi(4),
            ("int2", _) => kivi(2),
            ("nuq4", _) => Nuq::parse(4, params).map(Self::Nuq),
            ("nuq3", _) => Nuq::parse(3, params).map(Self::Nuq),
            ("nuq2", _) => Nuq::parse(2, params).map(Self::Nuq),
            _ => Err("use f32, f16, int8, int4 or int2 (also with :residual=TOKENS), nuq4, nuq3 or nuq2 (also with \
                      :outliers=SHARE,first=TOKENS,calibrate=TOKENS)"
                .to_owned()),
        }
    }
}
