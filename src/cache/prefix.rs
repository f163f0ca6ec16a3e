//! Which full pages can be shared: an index from the content of a prefix to the blocks that hold it.
//!
//! A page's key chains over its parent's, its token ids and a salt (model, page type, RoPE mode, block size), so equal
//! keys mean equal prefixes from position 0 on. An entry lives as long as a sequence that holds its blocks and never lost
//! or approximated anything: such a sequence neither frees nor moves a row, so the index needs no reference of its own.

use std::collections::{BTreeSet, HashMap};

use super::config::CacheConfig;
use crate::event::{BlockId, SeqId};

pub(super) type Key = [u8; 32];

#[derive(Clone, Debug)]
struct Entry {
    /// The gang entry of each layer.
    blocks: Vec<BlockId>,
    /// Lossless sequences whose tables hold these blocks.
    holders: BTreeSet<SeqId>,
}

#[derive(Clone, Debug)]
pub(super) struct PrefixIndex {
    /// Parent of every first page.
    pub(super) root: Key,
    width: usize,
    entries: HashMap<Key, Entry>,
}

/// A sequence's side of the index.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    /// Key of each full page so far.
    pub(super) keys: Vec<Key>,
    /// Keys of entries that the sequence holds up.
    held: Vec<Key>,
}

impl PrefixIndex {
    pub(super) fn new(config: &CacheConfig) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&config.salt);
        hasher.update(config.dtype.name().as_bytes());
        hasher.update(config.rope.name().as_bytes());
        hasher.update(&config.block_size.to_le_bytes());
        let width = config.block_size as usize;
        Self { root: hasher.finalize().into(), width, entries: HashMap::new() }
    }

    /// Pages on offer.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn key(&self, parent: Option<&Key>, page: &[u32]) -> Key {
        let mut hasher = blake3::Hasher::new();
        hasher.update(parent.unwrap_or(&self.root));
        for id in page {
            hasher.update(&id.to_le_bytes());
        }
        hasher.finalize().into()
    }

    /// The longest known prefix of `tokens`, page by page: key, and one gang entry per layer.
    pub(super) fn find(&self, tokens: &[u32]) -> Vec<(Key, &[BlockId])> {
        let mut found: Vec<(Key, &[BlockId])> = Vec::new();
        for page in tokens.chunks_exact(self.width) {
            let key = self.key(found.last().map(|(key, _)| key), page);
            let Some(entry) = self.entries.get(&key) else { break };
            found.push((key, &entry.blocks));
        }
        found
    }

    /// A lossless sequence that adopted the pages of `keys` holds them up from now on.
    pub(super) fn hold(&mut self, seq: SeqId, chain: &mut Chain, keys: Vec<Key>) {
        for key in &keys {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.holders.insert(seq);
            }
        }
        chain.held.extend_from_slice(&keys);
        chain.keys = keys;
    }

    /// Offers the full pages of `tokens`, from position 0 on, beyond those already in the chain. `blocks_of` gives the
    /// gang entry per layer of a page. A page that another sequence offers already is not offered twice.
    pub(super) fn offer(
        &mut self,
        seq: SeqId,
        chain: &mut Chain,
        tokens: &[u32],
        blocks_of: impl Fn(usize) -> Vec<BlockId>,
    ) {
        for (i, page) in tokens.chunks_exact(self.width).enumerate().skip(chain.keys.len()) {
            let key = self.key(chain.keys.last(), page);
            chain.keys.push(key);
            if let std::collections::hash_map::Entry::Vacant(place) = self.entries.entry(key) {
                place.insert(Entry { blocks: blocks_of(i), holders: BTreeSet::from([seq]) });
                chain.held.push(key);
            }
        }
    }

    /// The sequence holds nothing up any more: it lost something, or it goes.
    pub(super) fn leave(&mut self, seq: SeqId, chain: &mut Chain) {
        for key in chain.held.drain(..) {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.holders.remove(&seq);
                if entry.holders.is_empty() {
                    self.entries.remove(&key);
                }
            }
        }
    }
}
