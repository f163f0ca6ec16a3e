//! Pages that become others', and rows that move together.

use super::GpuAttention;
use crate::attention::gpu::pages::Home;
use crate::attention::gpu::word_bytes;
use crate::device::gpu::{Array, Gpu, Result};
use crate::device::launch::{CompactRows, LANE_WORDS};
use crate::event::BlockId;

impl<G: Gpu> GpuAttention<G> {
    /// Waits, in the queue of the device, for values on their way to the host.
    fn after_pushes(&mut self) -> Result<()> {
        for pushed in &mut self.batch.pushed {
            if let Some(pushed) = pushed.take() {
                self.gpu.after(&pushed)?;
            }
        }
        Ok(())
    }

    pub(super) fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<()> {
        self.after_pushes()?;
        let source = self.pool.find(from)?;
        let target = self.pool.put_place(&self.gpu, to, source.home)?;
        let bytes = self.pool.page_bytes();
        for slab in self.pool.slabs(&self.gpu, source.home).into_iter().filter(|&slab| slab != Array::NONE) {
            let at = |page: u32| slab.offset(page as usize * bytes);
            self.gpu.copy(at(source.page), at(target), bytes)?;
        }
        Ok(())
    }

    pub(super) fn move_lanes(&mut self, lanes: &[(&[BlockId], &[u32], u32)]) -> Result<()> {
        self.after_pushes()?;
        for home in [Home::Device, Home::ValuesOnHost] {
            let is_here = |blocks: &[BlockId]| {
                blocks
                    .first()
                    .and_then(|&block| self.pool.place(block))
                    .is_some_and(|place| place.home == home)
            };
            let here: Vec<_> = lanes.iter().copied().filter(|(blocks, ..)| is_here(blocks)).collect();
            self.move_within(home, &here)?;
        }
        Ok(())
    }

    /// Those whose blocks are of one home, in one launch.
    fn move_within(&mut self, home: Home, lanes: &[(&[BlockId], &[u32], u32)]) -> Result<()> {
        if lanes.is_empty() {
            return Ok(());
        }
        let stride = lanes.iter().map(|(_, kept, _)| kept.len()).max().unwrap_or(0);
        let (mut heads, mut tables, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let (mut counts, mut firsts) = (Vec::new(), Vec::new());
        for &(blocks, kept, first) in lanes {
            let mut lane = [0; LANE_WORDS];
            lane[0] = tables.len() as u32;
            heads.extend(lane);
            for &block in blocks {
                tables.push(self.pool.find(block)?.page);
            }
            slots.extend_from_slice(kept);
            slots.resize(slots.len() + stride - kept.len(), 0);
            counts.push(kept.len() as u32);
            firsts.push(first);
        }
        let words = [heads, tables, slots, counts, firsts];
        let lengths = words.each_ref().map(Vec::len);
        let mut arrays = [self.rooms.words.filled(&self.gpu, word_bytes(&words.concat()))?; 5];
        for i in 1..5 {
            arrays[i] = arrays[i - 1].offset(4 * lengths[i - 1]);
        }
        let [heads, blocks, kept, counts, first] = arrays;
        let [k, v] = self.pool.slabs(&self.gpu, home);
        let compact = CompactRows {
            kv_heads: lanes.len(),
            sequences: 1,
            block_size: self.pool.block_size(),
            row_bytes: [self.pool.cell().row_bytes(self.shape.head_dim()); 2],
            k,
            v,
            kept,
            kept_stride: stride,
            counts,
            first,
            blocks,
            lanes: heads,
        };
        compact.launch(&self.gpu)
    }
}
