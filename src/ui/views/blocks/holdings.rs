//! Which block of the pool belongs to whom, all sequences together.

use crate::cache::HOLE;
use crate::event::{BlockId, Head, Layer};
use crate::ui::draw::Scene;
use crate::ui::widgets::{Block, BlockKind};

/// A block that some table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) id: BlockId,
    pub(super) layer: Layer,
    pub(super) head: Head,
    /// Slots with resident tokens, and slots ever written.
    live: u32,
    written: u32,
    /// Tables that hold it.
    owners: u32,
}

/// Every held block once, by id.
pub(super) struct Holdings {
    held: Vec<Held>,
    block_size: u32,
    /// Blocks the pool may hold.
    pub(super) capacity: usize,
}

impl Holdings {
    pub(super) fn of(scene: &Scene<'_>) -> Self {
        let mut held = Vec::new();
        let mut block_size = 1;
        for seq in scene.state().into_iter().flat_map(|s| &s.seqs) {
            for (layer, table) in seq.layers.iter().enumerate() {
                block_size = table.block_size();
                for key in table.keys() {
                    let lane = table.lane(key.unwrap_or(0));
                    // The blocks of a gang are alike: their slots are counted once.
                    let heads = key.map_or(0..table.heads(), |head| head..head + 1);
                    for i in 0..lane.block_count() {
                        let slots = lane.block_slots(i);
                        let live = slots.iter().filter(|&&p| p != HOLE).count() as u32;
                        held.extend(heads.clone().map(|head| Held {
                            id: table.lane(head).block(i),
                            layer: layer as Layer,
                            head,
                            live,
                            written: slots.len() as u32,
                            owners: 1,
                        }));
                    }
                }
            }
        }
        held.sort_by_key(|h| h.id);
        held.dedup_by(|later, first| {
            let same = later.id == first.id;
            first.owners += u32::from(same);
            same
        });
        let asked = scene.run().map_or(0, |run| run.settings.blocks as usize);
        let highest = held.last().map_or(0, |h| h.id as usize + 1);
        Self { held, block_size, capacity: asked.max(highest) }
    }

    /// Blocks held.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// One more than the highest id in use.
    pub(super) fn end(&self) -> usize {
        self.held.last().map_or(0, |h| h.id as usize + 1)
    }

    /// Blocks held by more than one table.
    pub(super) fn shared(&self) -> usize {
        self.held.iter().filter(|h| h.owners > 1).count()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Held> {
        self.held.iter()
    }

    /// A block as it is drawn; free if no table holds it.
    pub(super) fn block(&self, id: BlockId) -> Block {
        let found = self.held.binary_search_by_key(&id, |h| h.id).ok();
        found.map_or(Block { kind: BlockKind::Free, occupancy: 0.0 }, |i| self.drawn(&self.held[i]))
    }

    /// A held block as it is drawn. One that is only not full yet counts as live, and shows how full it is.
    pub(super) fn drawn(&self, held: &Held) -> Block {
        let kind = match held {
            h if h.owners > 1 => BlockKind::Shared,
            h if h.live < h.written => BlockKind::Stranded,
            _ => BlockKind::Live,
        };
        Block { kind, occupancy: held.live as f32 / self.block_size as f32 }
    }
}
