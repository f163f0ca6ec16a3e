//! The extent of the keys of each page, channel by channel, and the largest score that a key within it can have.
//!
//! Quest, arXiv 2406.10774, section 3.2: with `m` and `M` the smallest and largest value of each channel over a page,
//! `u = sum_c max(q_c * m_c, q_c * M_c)` is at least `q . k` for every key `k` of the page.

use crate::device::Isa;
use crate::event::Position;
use crate::quant::CodedRows;

use super::lane::{HOLE, HeadLane, Pages};

/// Channel-wise minimum and maximum of the keys of each page of one lane, a page being some consecutive slots of the
/// table: it need not be a block.
///
/// The bounds follow the lane: an append widens the last page, and whatever changed otherwise (rows lost, moved together
/// or put into codes) is bounded anew from there on. So they hold for the keys as attention reads them.
#[derive(Clone, Debug, Default)]
pub struct PageBounds {
    /// The lane's slots as they were bounded.
    slots: Vec<Position>,
    /// Leading slots whose keys were in codes.
    in_codes: usize,
    /// `[page][minimum, maximum][head_dim]`; an empty interval where no slot of a page is live.
    rows: Vec<f32>,
    page: usize,
    head_dim: usize,
    scratch: Vec<f32>,
}

impl PageBounds {
    /// Brings the bounds up to date with a lane whose keys come rotated. `page` is in slots.
    ///
    /// # Panics
    /// `page` is 0.
    pub fn follow(&mut self, lane: &HeadLane<'_>, page: usize, head_dim: usize) {
        if (self.page, self.head_dim) != (page, head_dim) {
            *self = Self { page, head_dim, ..Self::default() };
        }
        let in_codes = in_codes(lane);
        let same = self.slots.iter().zip(lane.slots).take_while(|(was, is)| was == is).count();
        if same < self.slots.len() || in_codes != self.in_codes {
            let changed =
                if in_codes == self.in_codes { same } else { same.min(in_codes).min(self.in_codes) };
            // Codes are shared by the rows of a block: a change in it may have changed rows before.
            let changed = changed - changed % lane.block_size;
            self.truncate(changed - changed % page);
            self.in_codes = in_codes;
        }
        let (d, known) = (head_dim, self.slots.len());
        self.slots.extend_from_slice(&lane.slots[known..]);
        let pages = self.slots.len().div_ceil(page);
        for _ in self.rows.len() / (2 * d)..pages {
            self.rows.extend(std::iter::repeat_n(f32::INFINITY, d));
            self.rows.extend(std::iter::repeat_n(f32::NEG_INFINITY, d));
        }
        let mut slot = known;
        while slot < self.slots.len() {
            let (block, row) = (slot / lane.block_size, slot % lane.block_size);
            let end = (slot - row + lane.block_size).min(self.slots.len());
            let rows = end - slot;
            let keys = lane.k.page(block, (row + rows) * d).cut(row * d, (row + rows) * d);
            for (key, at) in keys.widen(&mut self.scratch).chunks_exact(d).zip(slot..end) {
                if self.slots[at] != HOLE {
                    widen(&mut self.rows[at / page * 2 * d..][..2 * d], key);
                }
            }
            slot = end;
        }
    }

    fn truncate(&mut self, slots: usize) {
        self.slots.truncate(slots);
        self.rows.truncate(slots / self.page * 2 * self.head_dim);
    }

    /// Number of pages, the last of which may be filled in part.
    pub fn pages(&self) -> usize {
        self.slots.len().div_ceil(self.page.max(1))
    }

    /// Slots per page.
    pub const fn page_slots(&self) -> usize {
        self.page
    }

    /// Whether a page has a live slot.
    pub fn is_live(&self, page: usize) -> bool {
        self.slots.chunks(self.page).nth(page).is_some_and(|slots| slots.iter().any(|&p| p != HOLE))
    }

    /// At least the product of `query` with every key of a page, in the arithmetic of attention; for a page without a
    /// live slot, nothing that means anything.
    pub fn upper(&self, page: usize, query: &[f32]) -> f32 {
        let (low, high) = self.rows[page * 2 * self.head_dim..][..2 * self.head_dim].split_at(self.head_dim);
        Isa::best().upper_bound(query, low, high)
    }

    /// Bytes of the bounds: two rows of f32 per page.
    pub fn bytes(&self) -> u64 {
        size_of_val(&*self.rows) as u64
    }
}

fn widen(bounds: &mut [f32], key: &[f32]) {
    let (low, high) = bounds.split_at_mut(key.len());
    for ((low, high), &x) in low.iter_mut().zip(high).zip(key) {
        *low = low.min(x);
        *high = high.max(x);
    }
}

/// Leading slots whose keys are in codes: pages are so from the front of the lane on, the last of them in part.
fn in_codes(lane: &HeadLane<'_>) -> usize {
    match lane.k {
        Pages::Coded(pages) => pages.iter().map(CodedRows::coded_rows).sum(),
        Pages::F32(_) | Pages::F16(_) | Pages::Placed(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attention::{Rotation, Scoring};

    /// Slots with their keys, cut into blocks.
    fn follow(
        bounds: &mut PageBounds,
        slots: &[Position],
        keys: &[f32],
        d: usize,
        block: usize,
        page: usize,
    ) {
        let pages: Vec<&[f32]> = keys.chunks(block * d).collect();
        let k = Pages::F32(&pages);
        let (v, rotation, scoring) = (Pages::F32(&[]), Rotation::None, Scoring::default());
        let lane = HeadLane { slots, block_size: block, k, v, rotation, scoring };
        bounds.follow(&lane, page, d);
    }

    fn check(bounds: &PageBounds, slots: &[Position], keys: &[f32], query: &[f32]) {
        let d = query.len();
        for (slot, key) in keys.chunks_exact(d).enumerate().filter(|&(slot, _)| slots[slot] != HOLE) {
            let page = slot / bounds.page_slots();
            assert!(bounds.is_live(page));
            let (upper, score) = (bounds.upper(page, query), Isa::best().dot(query, key));
            assert!(upper >= score, "page {page}: {upper} is below {score}");
        }
    }

    proptest! {
        /// Append, evict, compact, append: no key ever passes the bound of its page, and what was followed on the way
        /// bounds as tightly as what was bounded at once.
        #[test]
        fn no_key_passes_the_bound_of_its_page(
            d in 1usize..20, block in 1usize..9, page in 1usize..9,
            values in prop::collection::vec(-3.0f32..3.0, 20 * 40),
            lost in any::<u64>(), query in prop::collection::vec(-3.0f32..3.0, 20), first in 1usize..30,
        ) {
            let (query, more) = (&query[..d], 40 - first);
            let mut slots: Vec<Position> = (0..40).collect();
            let mut keys = values[..40 * d].to_vec();
            let mut bounds = PageBounds::default();
            for n in [first, first + more / 2, 40] {
                follow(&mut bounds, &slots[..n], &keys[..n * d], d, block, page);
                check(&bounds, &slots[..n], &keys[..n * d], query);
            }
            for slot in (0..40).filter(|slot| lost >> slot & 1 == 1) {
                slots[slot] = HOLE;
            }
            follow(&mut bounds, &slots, &keys, d, block, page);
            check(&bounds, &slots, &keys, query);
            let kept: Vec<usize> = (0..40).filter(|&slot| slots[slot] != HOLE).collect();
            keys = kept.iter().flat_map(|&slot| keys[slot * d..][..d].to_vec()).collect();
            slots = kept.iter().map(|&slot| slots[slot]).collect();
            follow(&mut bounds, &slots, &keys, d, block, page);
            check(&bounds, &slots, &keys, query);
            let mut anew = PageBounds::default();
            follow(&mut anew, &slots, &keys, d, block, page);
            prop_assert_eq!(&anew.rows, &bounds.rows);
            prop_assert_eq!(bounds.bytes(), (slots.len().div_ceil(page) * 2 * d * 4) as u64);
        }
    }
}
