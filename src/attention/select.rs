//! The largest probabilities of a row, and a read set made of them.

use crate::device::Isa;
use crate::event::Position;

use super::lane::HOLE;
use super::pages::LanePages;

/// The slots chosen for one query, all heads.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub(super) lanes: Vec<LaneSelection>,
}

/// The slots chosen for one query by the query heads of one KV head.
#[derive(Clone, Debug, Default)]
pub struct LaneSelection {
    /// Union of the heads' choices, ascending: the rows to pull.
    slots: Vec<u32>,
    /// `[head of the group][slot of the union]`: the probability, 0 where the head did not ask for the slot.
    weights: Vec<f32>,
    /// Sum over the heads of the slots that each asked for.
    asked: usize,
    dropped: Vec<f32>,
    scratch: Scratch,
}

#[derive(Clone, Debug, Default)]
struct Scratch {
    /// Each head's choice.
    chosen: Vec<Vec<u32>>,
    keys: Vec<u64>,
}

impl Selection {
    /// The choice of a KV head's group.
    pub fn lane(&self, kv_head: usize) -> &LaneSelection {
        &self.lanes[kv_head]
    }

    /// One per KV head, in order.
    pub fn lanes(&self) -> &[LaneSelection] {
        &self.lanes
    }

    /// Rows that the query heads asked for, before the union.
    pub fn asked_rows(&self) -> u64 {
        self.lanes.iter().map(|l| l.asked as u64).sum()
    }

    /// Rows to read: the unions' sizes.
    pub fn union_rows(&self) -> u64 {
        self.lanes.iter().map(|l| l.slots.len() as u64).sum()
    }
}

impl LaneSelection {
    /// Union of the group's choices: slot indices into the lane, ascending.
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// Sum over the group's query heads of the slots that each asked for.
    pub fn asked_rows(&self) -> usize {
        self.asked
    }

    /// Per query head of the group, the probability mass of the slots it did not ask for; exactly 0 where it asked for
    /// all of them.
    pub fn dropped(&self) -> &[f32] {
        &self.dropped
    }

    /// The weights of one query head of the group over [`slots`](Self::slots), 0 where it did not ask.
    pub fn weights(&self, head: usize) -> &[f32] {
        &self.weights[head * self.slots.len()..][..self.slots.len()]
    }

    /// A choice made elsewhere: the union, its weights `[head of the group][slot of the union]`, how many slots the heads
    /// asked for, and what each of them dropped.
    pub(super) fn take(&mut self, slots: Vec<u32>, weights: Vec<f32>, asked: usize, dropped: &[f32]) {
        (self.slots, self.weights, self.asked, self.dropped) = (slots, weights, asked, dropped.into());
    }

    pub(super) fn all_weights(&self) -> &[f32] {
        &self.weights
    }

    /// Chooses the `n` largest of each of the `rows` (`[head of the group][slot]`), and `own` where it is given.
    pub(super) fn choose(&mut self, rows: &[f32], slots: &[Position], n: usize, own: Option<usize>) {
        let mut keys = std::mem::take(&mut self.scratch.keys);
        self.gather(rows, slots.len(), |_, row, chosen| {
            largest(row, slots, n, &mut keys, chosen);
            if let Some(own) = own.map(|own| own as u32)
                && let Err(place) = chosen.binary_search(&own)
            {
                chosen.insert(place, own);
            }
        });
        self.scratch.keys = keys;
    }

    /// The live slots of the pages that each head chose.
    pub(super) fn choose_pages(&mut self, rows: &[f32], slots: &[Position], pages: &LanePages) {
        self.gather(rows, slots.len(), |head, _, chosen| pages.slots(head, slots, chosen));
    }

    /// The slots that are `read`, for every head.
    pub(super) fn choose_slots(&mut self, rows: &[f32], slots: &[Position], read: &[bool]) {
        let chosen: Vec<u32> =
            (0..slots.len() as u32).filter(|&s| slots[s as usize] != HOLE && read[s as usize]).collect();
        self.gather(rows, slots.len(), |_, _, of_head| of_head.clone_from(&chosen));
    }

    /// Brings together what `choose` gives for each head and row of `[head of the group][slot]`: ascending slots.
    fn gather(&mut self, rows: &[f32], slots: usize, mut choose: impl FnMut(usize, &[f32], &mut Vec<u32>)) {
        let group = rows.len().checked_div(slots).unwrap_or(0);
        let chosen = &mut self.scratch.chosen;
        chosen.resize_with(group, Vec::new);
        self.dropped.clear();
        self.asked = 0;
        self.slots.clear();
        for (head, (row, chosen)) in rows.chunks_exact(slots.max(1)).zip(&mut *chosen).enumerate() {
            choose(head, row, chosen);
            self.asked += chosen.len();
            self.dropped.push(mass_outside(row, chosen));
            self.slots.extend_from_slice(chosen);
        }
        if group > 1 {
            #[expect(
                clippy::stable_sort_primitive,
                reason = "one ascending run per head: this sort merges them"
            )]
            self.slots.sort();
            self.slots.dedup();
        }
        self.weights.clear();
        self.weights.resize(group * self.slots.len(), 0.0);
        let weights = self.weights.chunks_exact_mut(self.slots.len().max(1));
        for ((row, chosen), weights) in rows.chunks_exact(slots.max(1)).zip(chosen).zip(weights) {
            let mut asked = chosen.iter().peekable();
            for (&slot, weight) in self.slots.iter().zip(weights) {
                if asked.next_if(|&&asked| asked == slot).is_some() {
                    *weight = row[slot as usize];
                }
            }
        }
    }
}

/// Slots whose largest value stands for them while a row is searched.
const STRETCH: usize = 64;

/// The live slots of the `n` largest values of a row, ascending; ties go to the earlier slot.
///
/// Probabilities are never negative, so their bits order as they do; a NaN counts as the largest. Only what may be
/// among them is looked at one by one: no stretch of slots whose largest value is below that of `n` others.
pub(super) fn largest(row: &[f32], slots: &[Position], n: usize, keys: &mut Vec<u64>, chosen: &mut Vec<u32>) {
    chosen.clear();
    if n == 0 {
        return;
    }
    keys.clear();
    let least = nth_largest_stretch(row, n, keys);
    keys.clear();
    // Of a NaN nothing is below.
    let below = |p: f32| p < least;
    for (stretch, values) in row.chunks(STRETCH).enumerate() {
        // Without a branch per value, so that this is vector code.
        if !values.iter().fold(false, |any, &p| any | !below(p)) {
            continue;
        }
        let first = stretch * STRETCH;
        for (i, (&p, &position)) in (first..).zip(values.iter().zip(&slots[first..])) {
            if position != HOLE && !below(p) {
                keys.push(u64::from(p.to_bits()) << 32 | u64::from(u32::MAX - i as u32));
            }
        }
    }
    if n < keys.len() {
        keys.select_nth_unstable_by(n - 1, |a, b| b.cmp(a));
        keys.truncate(n);
    }
    keys.sort_unstable_by_key(|key| u32::MAX - *key as u32);
    chosen.extend(keys.iter().map(|&key| u32::MAX - key as u32));
}

/// The largest value of the stretch that has the `n`-th largest one: at least `n` live slots have as much. 0, which
/// nothing is below, where holes might have as much and where there are no more stretches than `n`. `tops` is scratch.
fn nth_largest_stretch(row: &[f32], n: usize, tops: &mut Vec<u64>) -> f32 {
    if row.len() / STRETCH <= n {
        return 0.0;
    }
    let isa = Isa::best();
    tops.extend(row.chunks(STRETCH).map(|values| u64::from(isa.max(values).max(0.0).to_bits())));
    let (_, top, _) = tops.select_nth_unstable_by(n - 1, |a, b| b.cmp(a));
    f32::from_bits(*top as u32)
}

/// Mass of a row outside `chosen` (ascending), in `[0, 1]`; 1 where the row has no numbers.
pub(super) fn mass_outside(row: &[f32], chosen: &[u32]) -> f32 {
    let mut mass = 0.0f64;
    let mut from = 0;
    for &slot in chosen {
        mass += sum(&row[from..slot as usize]);
        from = slot as usize + 1;
    }
    bounded(mass + sum(&row[from..]))
}

/// A sum in f64, of interleaved partial sums: one addition need not wait for the one before.
fn sum(row: &[f32]) -> f64 {
    let (chunks, rest) = row.as_chunks::<16>();
    let mut sums = [0.0f64; 16];
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(x);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().copied().map(f64::from).sum::<f64>()
}

/// A mass that rounding may have carried a little over 1.
pub(super) fn bounded(mass: f64) -> f32 {
    if mass.is_nan() { 1.0 } else { mass.clamp(0.0, 1.0) as f32 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn top(row: &[f32], slots: &[Position], n: usize) -> Vec<u32> {
        let mut chosen = Vec::new();
        largest(row, slots, n, &mut Vec::new(), &mut chosen);
        chosen
    }

    #[test]
    fn ties_go_to_the_earlier_slot_and_holes_are_never_chosen() {
        let slots = [0, HOLE, 2, 3, 4];
        let row = [0.2, 0.0, 0.4, 0.2, 0.2];
        assert_eq!(top(&row, &slots, 1), [2]);
        assert_eq!(top(&row, &slots, 2), [0, 2]);
        assert_eq!(top(&row, &slots, 3), [0, 2, 3]);
        assert_eq!(top(&row, &slots, 9), [0, 2, 3, 4]);
        assert_eq!(top(&row, &slots, 0), [0u32; 0]);
    }

    /// By sorting everything.
    fn sorted(row: &[f32], slots: &[Position], n: usize) -> Vec<u32> {
        let live = (0..row.len() as u32).filter(|&i| slots[i as usize] != HOLE);
        let mut order: Vec<u32> = live.collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(row[i as usize].to_bits()), i));
        order.truncate(n);
        order.sort_unstable();
        order
    }

    proptest! {
        /// Long rows, where most of them is passed over: few values, so that there are ties, and holes of 0.
        #[test]
        fn passing_over_stretches_changes_no_choice(
            values in prop::collection::vec(0u8..40, 1..1500), n in 1usize..40, holes in any::<u64>(), odd in any::<bool>(),
        ) {
            let hole = |i: usize| holes >> (i % 64) & 1 == 1 && !i.is_multiple_of(3);
            let slots: Vec<Position> =
                (0..values.len()).map(|i| if hole(i) { HOLE } else { i as Position }).collect();
            let mut row: Vec<f32> = values.iter().map(|&v| f32::from(v.saturating_sub(20))).collect();
            (0..row.len()).filter(|&i| hole(i)).for_each(|i| row[i] = 0.0);
            if odd {
                let middle = row.len() / 2;
                row[middle] = if hole(middle) { 0.0 } else { f32::NAN };
            }
            prop_assert_eq!(top(&row, &slots, n), sorted(&row, &slots, n));
        }
    }

    #[test]
    fn the_union_keeps_each_heads_own_weights() {
        let slots = [0, 1, 2, 3];
        let rows = [0.7, 0.1, 0.1, 0.1, 0.1, 0.6, 0.1, 0.2];
        let mut lane = LaneSelection::default();
        lane.choose(&rows, &slots, 1, Some(3));
        assert_eq!(lane.slots(), [0, 1, 3]);
        assert_eq!(lane.asked_rows(), 4);
        assert_eq!(lane.weights(0), [0.7, 0.0, 0.1]);
        assert_eq!(lane.weights(1), [0.0, 0.6, 0.2]);
        assert!((lane.dropped()[0] - 0.2).abs() < 1e-6 && (lane.dropped()[1] - 0.2).abs() < 1e-6);
        lane.choose(&rows, &slots, 4, Some(3));
        assert_eq!((lane.slots(), lane.dropped()), (&[0, 1, 2, 3][..], &[0.0, 0.0][..]));
    }

    #[test]
    fn rows_without_numbers_do_not_panic() {
        let slots = [0, 1];
        let mut lane = LaneSelection::default();
        lane.choose(&[f32::NAN, f32::NAN], &slots, 1, None);
        assert_eq!((lane.slots(), lane.dropped()), (&[0][..], &[1.0][..]));
        lane.choose(&[], &[], 3, None);
        assert_eq!(lane.slots(), [0u32; 0]);
    }
}
