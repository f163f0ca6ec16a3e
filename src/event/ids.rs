//! Plain integer ids. All of them stay under 2^53, so that a JSON reader in any language keeps them exact.

/// Ordinal of an engine step within its run, from 0. Everything is stamped with a step.
pub type StepId = u64;
/// Ordinal of a sequence within its run, from 0.
pub type SeqId = u32;
/// Index of a decoder layer, from 0.
pub type Layer = u16;
/// Index of a head within its layer: a KV head where K and V are meant, a query head where attention rows are.
pub type Head = u16;
/// Index of a token in its sequence, from 0; never reused, also after the token was evicted.
pub type Position = u32;
/// Id of a block in the pool: `block_size` slots of one (layer, KV head).
pub type BlockId = u32;
