//! The backend's copy of the pages, where it keeps one, brought up to date before a layer attends.

use super::EngineError;
use super::core::Engine;
use super::sequence::Work;
use crate::attention::Rows;
use crate::attention::gpu::{NewTokens, Stretch};
use crate::cache::{ChangedRows, KvDtype, Pages};
use crate::event::{BlockId, Layer, SeqId, Tier};

/// Rows of a block as attention takes them.
fn rows<'a>(pages: &Pages<'a>, block: usize, from: usize, to: usize, head_dim: usize) -> Rows<'a> {
    match pages {
        Pages::F32(list) => Rows::F32(&list.page(block)[from * head_dim..to * head_dim]),
        Pages::F16(list) => Rows::F16(&list.page(block)[from * head_dim..to * head_dim]),
        Pages::Coded(list) => Rows::Coded(list.page(block).cut(from, to)),
    }
}

/// Leading rows of a block that are in codes, where rows go there later.
fn in_codes(pages: &Pages<'_>, block: usize) -> usize {
    if let Pages::Coded(list) = pages { list.page(block).coded_rows() } else { 0 }
}

impl Engine {
    /// Copies what changed in the pages of a (sequence, layer) since it last attended: rows that moved together, were
    /// altered or went into codes.
    pub(super) fn bring_copies(&mut self, seq: SeqId, layer: Layer) -> Result<(), EngineError> {
        let Some(copies) = self.attention.copies() else { return Ok(()) };
        copies.free(&self.cache.take_freed());
        let changes = self.cache.take_changes(seq, layer);
        let width = self.cache.config().block_size as usize;
        let head_dim = self.cache.config().shape.head_dim;
        let on_host = self.cache.config().v_on_host(layer);
        let mut stretches = Vec::new();
        for ChangedRows { head, slots, keys: has_keys, values: has_values } in changes {
            let lane = self.cache.table(seq, layer).lane(head);
            let (keys, values) = self.cache.pages(seq, layer, head);
            for block in slots.start / width..slots.end.div_ceil(width) {
                let first = block * width;
                let (from, to) = (slots.start.max(first) - first, slots.end.min(first + width) - first);
                stretches.push(Stretch {
                    block: lane.block(block),
                    row: from,
                    keys: has_keys.then(|| rows(&keys, block, from, to, head_dim)),
                    values: (has_values && !on_host).then(|| rows(&values, block, from, to, head_dim)),
                    in_codes: [&keys, &values].map(|pages| in_codes(pages, block)),
                });
            }
        }
        copies.put(&stretches, on_host)?;
        Ok(())
    }

    /// Hands the rows that were just written to the copy too.
    pub(super) fn append_copies(
        &mut self,
        layer: Layer,
        w: &Work,
        k: &[f32],
        v: &[f32],
    ) -> Result<(), EngineError> {
        let Some(copies) = self.attention.copies() else { return Ok(()) };
        let seq = self.sequences[w.index].id;
        // Those very rows.
        self.cache.take_changes(seq, layer);
        let width = self.cache.config().block_size as usize;
        let table = self.cache.table(seq, layer);
        let places: Vec<(usize, Vec<BlockId>)> = (0..table.heads())
            .map(|head| {
                let lane = table.lane(head);
                let first = lane.slots.len() - w.computed().len();
                (first, (first / width..lane.block_count()).map(|i| lane.block(i)).collect())
            })
            .collect();
        let values = (!self.cache.config().v_on_host(layer)).then_some(v);
        copies.append(NewTokens { keys: k, values, places: &places })?;
        Ok(())
    }

    /// Counts the pages of the host that the device has too: policies, merge rules and bounds of keys read those. Where rows
    /// go into codes later, whole pages of the device hold codes and exact rows apart: what they take beyond what the rows
    /// do counts among its copies.
    pub(super) fn note_pages_of_host(&mut self) {
        if self.rows_stay() {
            return;
        }
        let Some(copies) = self.attention.copies() else { return };
        copies.free(&self.cache.take_freed());
        let held_bytes = copies.held_bytes();
        let [device, _] = self.cache.usage();
        let pages_bytes = device.allocated_bytes() - device.copies_bytes;
        self.cache.note_copies(Tier::Host, pages_bytes);
        if let KvDtype::Kivi { .. } = self.cache.config().dtype {
            let apart = held_bytes.saturating_sub(pages_bytes);
            self.cache.note_copies(Tier::Device, device.copies_bytes + apart);
        }
    }

    /// Whether the device failed in the latest stages.
    pub(super) fn check_device(&mut self) -> Result<(), EngineError> {
        self.attention.take_fault().map_or(Ok(()), |fault| Err(fault.into()))
    }
}
