//! What InfLLM (arXiv 2402.04617) keeps of a layer beside its pages: who stands for a block, and copies of blocks.

use super::lanes::Copied;

/// What a layer of a sequence remembers beside its pages.
#[derive(Clone, Debug, Default)]
pub(super) struct LayerMemory {
    /// Per KV head and position, the attention received so far; of no use once a position is in a block.
    received: Vec<Vec<f32>>,
    /// Per block, the mean of its representative keys before RoPE, `[kv_head][head_dim]`.
    representatives: Vec<Vec<f32>>,
    copies: Vec<BlockCopy>,
    /// Steps so far: what use is measured in.
    tick: u64,
}

/// A block's rows on the device, their home being the host.
#[derive(Clone, Debug)]
pub(super) struct BlockCopy {
    pub(super) block: usize,
    pub(super) used: u64,
    /// Per KV head.
    pub(super) keys: Vec<Copied>,
    pub(super) values: Vec<Copied>,
}

impl BlockCopy {
    fn bytes(&self) -> u64 {
        self.keys.iter().chain(&self.values).map(Copied::bytes).sum()
    }
}

impl LayerMemory {
    /// Blocks there are.
    pub(super) fn blocks(&self) -> usize {
        self.representatives.len()
    }

    /// Bytes of the copies on the device.
    pub(super) fn copies_bytes(&self) -> u64 {
        self.copies.iter().map(BlockCopy::bytes).sum()
    }

    /// Bytes of the representatives.
    pub(super) fn index_bytes(&self) -> u64 {
        self.representatives.iter().map(|mean| size_of_val(&**mean) as u64).sum()
    }

    /// The `n` blocks whose representatives fit the query best, ascending; ties go to the earlier block. `query` is
    /// `[head][head_dim]`, and `group` query heads share a KV head.
    pub(super) fn choose(&self, query: &[f32], head_dim: usize, group: usize, n: usize) -> Vec<usize> {
        let relevance = |mean: &Vec<f32>| -> f64 {
            let keys = mean.chunks_exact(head_dim).flat_map(|key| std::iter::repeat_n(key, group));
            let product = |(q, k): (&[f32], &[f32])| -> f64 {
                q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            query.chunks_exact(head_dim).zip(keys).map(product).sum()
        };
        let mut order: Vec<(f64, usize)> =
            self.representatives.iter().enumerate().map(|(i, mean)| (relevance(mean), i)).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut chosen: Vec<usize> = order.into_iter().take(n).map(|(_, block)| block).collect();
        chosen.sort_unstable();
        chosen
    }

    /// Sees to it that the chosen blocks lie on the device, at most `most` in all. Returns those that were copied.
    pub(super) fn bring(
        &mut self,
        chosen: &[usize],
        most: usize,
        mut copy: impl FnMut(usize) -> BlockCopy,
    ) -> usize {
        self.tick += 1;
        let mut brought = 0;
        for &block in chosen {
            let held = self.copies.iter().position(|c| c.block == block);
            let at = held.unwrap_or_else(|| {
                brought += 1;
                self.copies.push(copy(block));
                self.copies.len() - 1
            });
            self.copies[at].used = self.tick;
        }
        // The newest use last: what goes is at the front, and never of this step, as no more are chosen than may stay.
        self.copies.sort_by_key(|c| (c.used, c.block));
        let surplus = self.copies.len().saturating_sub(most.max(chosen.len()));
        self.copies.drain(..surplus);
        brought
    }

    pub(super) fn copy_of(&self, block: usize) -> Option<&BlockCopy> {
        self.copies.iter().find(|c| c.block == block)
    }

    /// The `n` positions of a block that received the most in one KV head, the earlier ones first among equals.
    pub(super) fn most_received(
        &self,
        head: usize,
        positions: std::ops::Range<usize>,
        n: usize,
    ) -> Vec<usize> {
        let received = &self.received[head];
        let mut order: Vec<usize> = positions.collect();
        order.sort_by(|&a, &b| received[b].total_cmp(&received[a]).then(a.cmp(&b)));
        order.truncate(n);
        order
    }

    /// A new block, which follows the last.
    pub(super) fn remember(&mut self, representative: Vec<f32>) {
        self.representatives.push(representative);
    }

    /// Adds what the newest queries paid to one KV head's positions.
    pub(super) fn receive(&mut self, head: usize, kv_heads: usize, sums: &[f32]) {
        self.received.resize(kv_heads, Vec::new());
        let received = &mut self.received[head];
        received.resize(sums.len().max(received.len()), 0.0);
        received.iter_mut().zip(sums).for_each(|(sum, x)| *sum += x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(block: usize) -> BlockCopy {
        let rows = || vec![Copied::F32(vec![0.0; 4])];
        BlockCopy { block, used: 0, keys: rows(), values: rows() }
    }

    #[test]
    fn the_least_recently_used_copy_goes_first_and_never_one_of_this_step() {
        let mut memory = LayerMemory::default();
        assert_eq!(memory.bring(&[0, 1], 3, copy), 2);
        assert_eq!(memory.bring(&[1, 2], 3, copy), 1);
        assert_eq!(memory.bring(&[1, 3], 3, copy), 1);
        let held = |memory: &LayerMemory| [0, 1, 2, 3].map(|block| memory.copy_of(block).is_some());
        assert_eq!(held(&memory), [false, true, true, true]);
        assert_eq!(memory.copies_bytes(), 3 * 2 * 16);
        assert_eq!(memory.bring(&[0, 1, 2, 3], 1, copy), 1);
        assert_eq!(held(&memory), [true; 4]);
    }

    #[test]
    fn blocks_are_chosen_by_all_heads_together_and_ties_go_to_the_earlier() {
        let mut memory = LayerMemory::default();
        for mean in [[1.0, 0.0], [0.0, 3.0], [2.0, 0.0], [2.0, 0.0]] {
            memory.remember(mean.to_vec());
        }
        // Two KV heads of one element, each with two query heads.
        assert_eq!(memory.choose(&[1.0, 1.0, 0.0, 0.0], 1, 2, 2), [2, 3]);
        assert_eq!(memory.choose(&[0.5, 0.5, 1.0, 1.0], 1, 2, 2), [1, 2]);
        assert_eq!(memory.choose(&[0.0; 4], 1, 2, 9), [0, 1, 2, 3]);
        assert_eq!(memory.index_bytes(), 4 * 8);
    }

    #[test]
    fn representatives_are_who_received_most() {
        let mut memory = LayerMemory::default();
        memory.receive(1, 2, &[0.5, 0.1, 0.1, 0.3]);
        memory.receive(1, 2, &[0.0, 0.4, 0.1, 0.3, 0.2]);
        assert_eq!(memory.most_received(1, 1..5, 2), [3, 1]);
    }
}
