//! What a cache is made of: shape, page type, limits.

use std::fmt;
use std::str::FromStr;

use super::table::{LayerTable, TableError};
use crate::event::{BlockId, Head, Layer, SeqId};
use crate::quant::{Codec, Grouping};

/// Most blocks of one pool, also where `blocks` is 0.
pub const MAX_BLOCKS: BlockId = 1 << 24;
/// Largest head dimension.
pub const MAX_HEAD_DIM: usize = 1 << 14;

/// Shape of the K and V state of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub layers: Layer,
    /// KV heads per layer.
    pub kv_heads: Head,
    /// Elements of one row: one head's K or V of one token.
    pub head_dim: usize,
}

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
}

impl KvDtype {
    /// Every name, with an exact window of [`KIVI_GROUP`] tokens where there is one.
    pub const NAMES: [&'static str; 5] = ["f32", "f16", "int8", "int4", "int2"];

    /// The name on the command line and in recordings, without parameters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Kivi { bits: 2, .. } => "int2",
            Self::Kivi { .. } => "int4",
        }
    }

    /// Whether what is stored is not what was computed, beyond a rounding of each element for itself. Such pages are
    /// never shared between sequences.
    pub const fn is_coded(self) -> bool {
        matches!(self, Self::Int8 | Self::Kivi { .. })
    }

    /// The block size that goes with the type where a person names none.
    pub const fn usual_block_size(self) -> u32 {
        if let Self::Kivi { .. } = self { KIVI_GROUP as u32 } else { 16 }
    }

    /// Bytes of a row of `head_dim` elements as it is written.
    pub const fn written_row_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 | Self::Kivi { .. } => 4 * head_dim,
            Self::F16 => 2 * head_dim,
            Self::Int8 => head_dim + 4,
        }
    }

    /// Bytes of a row that has left the exact window; K and V are alike.
    pub const fn settled_row_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::Kivi { bits, .. } => head_dim * bits as usize / 8 + head_dim * 4 / KIVI_GROUP,
            _ => self.written_row_bytes(head_dim),
        }
    }

    /// Whether pages of this type can hold such rows in such blocks.
    ///
    /// # Errors
    /// One line for a person.
    pub fn check(self, block_size: u32, head_dim: usize) -> Result<(), DtypeError> {
        let Self::Kivi { residual, .. } = self else { return Ok(()) };
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

    /// How a row of K (`by_channel`) or V goes into codes; `None` where none does.
    pub(super) fn codec(self, by_channel: bool, head_dim: usize) -> Option<Codec> {
        match self {
            Self::F32 | Self::F16 => None,
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
            _ => Ok(()),
        }
    }
}

impl FromStr for KvDtype {
    /// What to use instead.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, residual) = match text.split_once(':') {
            Some((name, params)) => (name, Some(params)),
            None => (text, None),
        };
        let kivi = |bits| match residual.map(|params| params.strip_prefix("residual=").map(str::parse)) {
            None => Ok(Self::Kivi { bits, residual: KIVI_GROUP as u32 }),
            Some(Some(Ok(residual))) => Ok(Self::Kivi { bits, residual }),
            _ => Err("the one parameter is residual=TOKENS, a multiple of 32".to_owned()),
        };
        match (name, residual) {
            ("f32", None) => Ok(Self::F32),
            ("f16", None) => Ok(Self::F16),
            ("int8", None) => Ok(Self::Int8),
            ("int4", _) => kivi(4),
            ("int2", _) => kivi(2),
            _ => Err("use f32, f16, int8, int4 or int2 (the last two also with :residual=TOKENS)".to_owned()),
        }
    }
}

/// Whether the keys in the pages were rotated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RopeMode {
    /// Stored as projected; rotated when read. For policies that rotate anew.
    Pre,
    /// Stored after rotation.
    #[default]
    Post,
}

impl RopeMode {
    /// The tag shown: `pre` or `post`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pre => "pre",
            Self::Post => "post",
        }
    }
}

/// How to build a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Layers, heads, row length.
    pub shape: KvShape,
    /// Slots per block.
    pub block_size: u32,
    /// Blocks in the pool, each of one (layer, KV head); 0 for no limit but [`MAX_BLOCKS`]. Used in rows of `kv_heads`: a
    /// remainder is left idle.
    pub blocks: u32,
    /// Type of pages.
    pub dtype: KvDtype,
    /// Whether keys are stored rotated.
    pub rope: RopeMode,
    /// V of this layer and all above lives on the host tier; `None` keeps it on the device.
    pub host_v_from_layer: Option<Layer>,
    /// Stands for the model in prefix hashes: pages are shared only under equal salts.
    pub salt: [u8; 32],
}

impl CacheConfig {
    /// Blocks the pool may use: whole rows of `kv_heads`.
    pub(super) fn capacity_blocks(&self) -> BlockId {
        let asked = if self.blocks == 0 { MAX_BLOCKS } else { self.blocks };
        asked - asked % BlockId::from(self.shape.kv_heads)
    }

    /// Whether V of a layer lives on the host tier.
    pub fn v_on_host(&self, layer: Layer) -> bool {
        self.host_v_from_layer.is_some_and(|from| layer >= from)
    }

    pub(super) fn check(&self) -> Result<(), CacheError> {
        let KvShape { layers, kv_heads, head_dim } = self.shape;
        if layers == 0 || kv_heads == 0 || head_dim == 0 || head_dim > MAX_HEAD_DIM {
            return Err(CacheError::Shape(self.shape));
        }
        LayerTable::new(kv_heads, self.block_size)?;
        self.dtype.check(self.block_size, head_dim)?;
        let least = u32::from(layers) * u32::from(kv_heads);
        if self.blocks > MAX_BLOCKS || least > MAX_BLOCKS || (self.blocks > 0 && self.blocks < least) {
            return Err(CacheError::BlockCount { blocks: self.blocks, least });
        }
        Ok(())
    }
}

/// What the cache refuses. It is unchanged then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// A zero in the shape, or rows that are too long.
    #[error("KV shape {} layers x {} KV heads x {} elements: none may be 0, and a row holds at most {MAX_HEAD_DIM}", .0.layers, .0.kv_heads, .0.head_dim)]
    Shape(KvShape),
    /// A pool that cannot hold one token, or is larger than any.
    #[error("{blocks} blocks: the pool needs {least} for a single token, and holds at most {MAX_BLOCKS}")]
    BlockCount {
        /// Blocks asked for.
        blocks: u32,
        /// Layers times KV heads.
        least: u32,
    },
    /// A page type that does not go with the rest.
    #[error(transparent)]
    Dtype(#[from] DtypeError),
    /// No room: evict, preempt, or stop.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The block tables refuse.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A sequence that was never added, or was removed.
    #[error("sequence {0} is not in the cache")]
    NoSequence(SeqId),
    /// A layer that the model does not have.
    #[error("layer {0} is not in the cache")]
    NoLayer(Layer),
    /// Rows for positions that were not reserved, or of the wrong length.
    #[error("layer {layer}: the rows from position {first} on do not fit what was reserved")]
    NotReserved {
        /// Decoder layer.
        layer: Layer,
        /// First position of the rows.
        first: u32,
    },
    /// A step appends, then decides once per layer, then compacts: that is how it is recorded.
    #[error("sequence {seq}: {what} is out of order within a step")]
    OutOfOrder {
        /// Which sequence.
        seq: SeqId,
        /// What was asked for.
        what: &'static str,
    },
}

/// The pool has no room for what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "KV pool exhausted: {needed} blocks needed, {free} of {capacity} free ({whole} of them in whole rows of all KV heads)"
)]
pub struct Exhausted {
    /// Blocks needed.
    pub needed: usize,
    /// Blocks free.
    pub free: usize,
    /// Free blocks in rows of `kv_heads`, which is what a gang needs.
    pub whole: usize,
    /// Blocks of the pool.
    pub capacity: usize,
}
