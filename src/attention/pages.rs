//! Pages of the cache as the unit of what is read: which ones each query head chose, and how attention asks.

use super::bounds::PageBounds;
use super::lane::HOLE;
use super::select::largest;
use crate::event::Position;

/// What of a lane a tile reads. Monomorphised, so that reading everything costs nothing to ask.
pub(super) trait Reads {
    /// Whether every head reads every slot.
    const ALL: bool = false;
    /// Whether any query head reads a slot.
    fn any(&self, slot: usize) -> bool;
    /// Whether a query head of the group reads it.
    fn head(&self, head: usize, slot: usize) -> bool;
}

/// Every slot, by every head.
pub(super) struct Everything;

impl Reads for Everything {
    const ALL: bool = true;

    fn any(&self, _slot: usize) -> bool {
        true
    }

    fn head(&self, _head: usize, _slot: usize) -> bool {
        true
    }
}

/// The pages chosen for one query, all heads (Quest, arXiv 2406.10774).
#[derive(Clone, Debug, Default)]
pub struct PageSelection {
    pub(super) lanes: Vec<LanePages>,
}

/// The pages chosen for one query by the query heads of one KV head.
#[derive(Clone, Debug, Default)]
pub struct LanePages {
    page: usize,
    pages: usize,
    /// `[head of the group][page]`.
    heads: Vec<bool>,
    union: Vec<bool>,
    order: Vec<(f32, usize)>,
}

impl PageSelection {
    /// The choice of a KV head's group.
    pub fn lane(&self, kv_head: usize) -> &LanePages {
        &self.lanes[kv_head]
    }

    /// One per KV head, in order.
    pub fn lanes(&self) -> &[LanePages] {
        &self.lanes
    }
}

impl LanePages {
    /// Pages of the lane with a live slot or without.
    pub const fn pages(&self) -> usize {
        self.pages
    }

    /// Whether a slot is in the union of the group's choices.
    pub fn reads(&self, slot: usize) -> bool {
        self.union[slot / self.page]
    }

    /// Pages in the union of the group's choices.
    pub fn union_pages(&self) -> usize {
        self.union.iter().filter(|&&read| read).count()
    }

    /// Sum over the group's query heads of the pages that each chose.
    pub fn asked_pages(&self) -> usize {
        self.heads.iter().filter(|&&read| read).count()
    }

    /// Of the `k` slots of largest probability in `row`, a query head's exact one, how many there are and how many of
    /// them its pages hold.
    pub fn recall(&self, head: usize, row: &[f32], slots: &[Position], k: usize) -> (usize, usize) {
        let (mut keys, mut chosen) = (Vec::new(), Vec::new());
        largest(row, slots, k, &mut keys, &mut chosen);
        (chosen.len(), chosen.iter().filter(|&&slot| self.head(head, slot as usize)).count())
    }

    /// Chooses per query (`[head of the group][head_dim]`) the page of the newest slot, and of the others that hold
    /// something the `most` whose bound is largest; ties go to the earlier page, a bound that is no number goes first.
    pub(super) fn choose(&mut self, queries: &[f32], bounds: &PageBounds, head_dim: usize, most: usize) {
        (self.page, self.pages) = (bounds.page_slots().max(1), bounds.pages());
        self.heads.clear();
        self.union.clear();
        self.union.resize(self.pages, false);
        let Some(newest) = self.pages.checked_sub(1) else { return };
        for query in queries.chunks_exact(head_dim) {
            self.order.clear();
            for page in (0..newest).filter(|&page| bounds.is_live(page)) {
                let upper = bounds.upper(page, query);
                self.order.push((if upper.is_nan() { f32::INFINITY } else { upper }, page));
            }
            if most < self.order.len() {
                self.order
                    .select_nth_unstable_by(most, |a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
                self.order.truncate(most);
            }
            let first = self.heads.len();
            self.heads.resize(first + self.pages, false);
            for page in self.order.iter().map(|&(_, page)| page).chain([newest]) {
                self.heads[first + page] = true;
                self.union[page] = true;
            }
        }
    }

    /// The live slots of a head's pages, ascending.
    pub(super) fn slots(&self, head: usize, slots: &[Position], chosen: &mut Vec<u32>) {
        let read = (0..slots.len()).filter(|&slot| slots[slot] != HOLE && self.head(head, slot));
        chosen.clear();
        chosen.extend(read.map(|slot| slot as u32));
    }
}

impl Reads for LanePages {
    fn any(&self, slot: usize) -> bool {
        self.reads(slot)
    }

    fn head(&self, head: usize, slot: usize) -> bool {
        self.heads[head * self.pages + slot / self.page]
    }
}
