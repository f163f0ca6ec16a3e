//! What a cache is made of: shape, limits.

use super::dtype::{DtypeError, KvDtype};
use super::table::{LayerTable, TableError};
use crate::event::{BlockId, Head, Layer, SeqId};

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
    /// Blocks may be sent to the host, K and V ([`Cache::send_to_host`](super::Cache::send_to_host)): exact pages of
    /// layers whose V is on the device.
    pub far_blocks: bool,
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
    /// Rows that cannot be written over.
    #[error("layer {layer}: the rows of position {position} cannot be altered: {why}")]
    Unalterable {
        /// Decoder layer.
        layer: Layer,
        /// The token.
        position: u32,
        /// Why not.
        why: &'static str,
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
