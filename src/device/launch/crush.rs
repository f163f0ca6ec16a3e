//! KVCrush's decision: units, signatures, representatives, and who is lost (`crush.cu`).

use super::super::gpu::{Arg, Array, Gpu, Launch, Result};
use super::{SumLanes, grid, words};
use crate::event::crush::{MAX_BITS, MAX_UNITS};

/// Threads of a block that works on one lane, and of any other.
const LANE_THREADS: usize = 512;
const THREADS: usize = 256;
/// Words of what is known of a lane, as in the kernel's file.
const FACTS: usize = 16;
/// Words of a picture before its columns: how many units there are, the first and the end of those that compete.
const PICTURE_HEAD: usize = 3;
/// Units that a head is foreseen to lose on the average beside what it holds above the budget.
const FEW_UNITS: usize = 4;

/// What a decision of some sequences is about, and so how much room it takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrushSizes {
    /// KV heads.
    pub kv_heads: usize,
    /// Sequences.
    pub sequences: usize,
    /// Most slots of a lane.
    pub slots: usize,
    /// Most residents of a lane.
    pub residents: usize,
    /// All positions lie below this one.
    pub end: usize,
    /// Slots of each head.
    pub budget: usize,
    /// Positions of a unit.
    pub group: usize,
    /// Share of the open places for representatives, 0 to 1.
    pub ratio: f64,
}

impl CrushSizes {
    /// Most units of a lane, at least one.
    pub fn units(&self) -> usize {
        self.residents.min(self.end.div_ceil(self.group)).max(1)
    }

    /// Bits of a signature.
    pub const fn width(&self) -> usize {
        self.group * self.kv_heads
    }

    /// Words of a signature and of an anchor: whole ones of 64 bits.
    pub const fn row_words(&self) -> usize {
        2 * self.width().div_ceil(64)
    }

    /// Most residents that a lane loses. Its important units leave less than a unit of the places that they have, and
    /// these are the budget without what is set aside for representatives.
    pub fn list(&self) -> usize {
        let aside = (self.ratio * self.budget as f64) as usize;
        self.residents - self.residents.min(self.budget.saturating_sub(aside + self.group - 1))
    }

    /// So many victims of all lanes are told at once. A lane loses what it holds above its budget, but now and then more, up
    /// to what is set aside for representatives: what is picked is picked for the first head.
    pub fn places(&self) -> usize {
        let few = self.residents.saturating_sub(self.budget) + FEW_UNITS * self.group;
        self.kv_heads * self.sequences * few.min(self.list())
    }

    /// Words of what may have to be told beside the answer: all victims and their scores, `[lane][list]`. None where the
    /// answer has them all.
    pub fn rest(&self) -> usize {
        let all = self.kv_heads * self.sequences * self.list();
        if self.places() < all { 2 * all } else { 0 }
    }

    /// Units of a picture.
    pub fn shown(&self) -> usize {
        self.units().min(MAX_UNITS)
    }

    /// Words of a signature in a picture.
    pub fn shown_words(&self) -> usize {
        self.row_words().min(MAX_BITS / 32)
    }

    /// Words of the picture of a sequence.
    pub fn picture(&self) -> usize {
        PICTURE_HEAD + self.shown_words() + self.shown() * (3 + self.shown_words())
    }

    /// Words of the answer: places for victims and for their scores; of each lane how many victims it has, its cutoff, and
    /// its first place, which it may not have; the pictures of all sequences.
    pub fn answer(&self) -> usize {
        let lanes = self.kv_heads * self.sequences;
        2 * self.places() + 3 * lanes + self.sequences * self.picture()
    }

    /// Groups of positions.
    const fn ids(&self) -> usize {
        self.end.div_ceil(self.group)
    }

    /// Words of scratch: facts, of each unit its first slot, rank and key, the unit of each slot, distances, the anchor;
    /// then what begins as zeros: rows by position, places by group, signatures, how many places of the answer are taken.
    fn scratch_parts(&self) -> [usize; 11] {
        let (lanes, units) = (self.kv_heads * self.sequences, self.units());
        let of_units = lanes * (units + 1);
        let of_sequences = [self.end, self.ids(), units * self.row_words()].map(|n| n * self.sequences);
        [
            lanes * FACTS,
            of_units,
            of_units,
            of_units,
            lanes * self.slots,
            self.sequences * units,
            self.sequences * self.row_words(),
            of_sequences[0],
            of_sequences[1],
            of_sequences[2],
            1,
        ]
    }

    /// Bytes of scratch.
    pub fn scratch_bytes(&self) -> usize {
        4 * self.scratch_parts().iter().sum::<usize>()
    }
}

/// What signatures are measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrushAnchor {
    /// Known before: `[sequence][row_words]`.
    Fixed(Array),
    /// The strict majority of each column of the signatures.
    Majority,
    /// Its inverse.
    Minority,
}

/// Arrays of so many words each, one behind the other.
fn in_a_row<const N: usize>(first: Array, words: [usize; N]) -> [Array; N] {
    let mut next = first;
    words.map(|words| {
        let here = next;
        next = here.offset(4 * words);
        here
    })
}

/// Who is lost of some sequences: `score_slots`, then all of `crush.cu`.
#[derive(Clone, Copy, Debug)]
pub struct Crush {
    /// Whose, and the sums that scores are made of, as for [`SelectKeep`](super::SelectKeep).
    pub of: SumLanes,
    /// Sizes, of which [`SumLanes`] has the same.
    pub sizes: CrushSizes,
    /// Positions below this one stay.
    pub sinks: u32,
    /// So many of the newest stay.
    pub recent: u32,
    /// The anchor.
    pub anchor: CrushAnchor,
    /// Scratch, `[sequence][kv_head][slots]` f32.
    pub scores: Array,
    /// Scratch, [`CrushSizes::scratch_bytes`].
    pub scratch: Array,
    /// [`CrushSizes::answer`] words.
    pub answer: Array,
    /// [`CrushSizes::rest`] words, if any.
    pub rest: Array,
}

impl Crush {
    /// Starts it.
    ///
    /// # Errors
    /// Sizes that are too large, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        let CrushSizes { kv_heads, sequences, slots, end, budget, group, ratio, .. } = self.sizes;
        if slots == 0 || sequences == 0 {
            return Ok(());
        }
        self.of.score(kv_heads, self.scores, gpu)?;
        let (units, row) = (self.sizes.units(), self.sizes.row_words());
        let parts = self.sizes.scratch_parts();
        let [facts, firsts, ranks, keys, unit_of, distances, own_anchor, rows, places, signatures, taken] =
            in_a_row(self.scratch, parts);
        gpu.clear(rows, 4 * parts[7..].iter().sum::<usize>())?;
        let (scores, positions, lanes) = (self.scores.into(), self.of.positions.into(), self.of.lanes.into());
        let sizes = [kv_heads, slots, units, end, self.sizes.ids(), row, self.sizes.width(), group, budget];
        let [kv_heads_, slots_, units_, end_, ids, row_, width, group_, budget_] = words(sizes)?;
        let start = |kernel, columns: usize, rows: usize, block: usize, args: &[Arg]| {
            let grid = grid([columns, rows, 1])?;
            gpu.launch(&Launch { file: "crush", kernel, grid, block: block as u32, args })
        };
        let ratio = ratio.to_bits();
        let args = [
            facts.into(),
            firsts.into(),
            ranks.into(),
            keys.into(),
            unit_of.into(),
            rows.into(),
            scores,
            positions,
            lanes,
            kv_heads_,
            slots_,
            units_,
            end_,
            group_,
            budget_,
            self.sinks.into(),
            self.recent.into(),
            (ratio as u32).into(),
            ((ratio >> 32) as u32).into(),
        ];
        start("crush_units", kv_heads, sequences, LANE_THREADS, &args)?;
        let args = [
            signatures.into(),
            rows.into(),
            facts.into(),
            scores,
            positions,
            lanes,
            kv_heads_,
            slots_,
            units_,
            end_,
            row_,
            group_,
        ];
        start("crush_signatures", kv_heads, sequences, LANE_THREADS, &args)?;
        let anchor = match self.anchor {
            CrushAnchor::Fixed(anchor) => anchor,
            of_columns => {
                let inverse = u32::from(of_columns == CrushAnchor::Minority).into();
                let args = [
                    own_anchor.into(),
                    signatures.into(),
                    facts.into(),
                    kv_heads_,
                    units_,
                    row_,
                    width,
                    inverse,
                ];
                start("crush_anchor", row, sequences, THREADS, &args)?;
                own_anchor
            }
        };
        let args = [
            distances.into(),
            signatures.into(),
            anchor.into(),
            facts.into(),
            keys.into(),
            kv_heads_,
            units_,
            row_,
        ];
        start("crush_distances", units.div_ceil(THREADS / 32), sequences, THREADS, &args)?;
        let args = [
            places.into(),
            distances.into(),
            firsts.into(),
            facts.into(),
            positions,
            lanes,
            kv_heads_,
            units_,
            ids,
            group_,
        ];
        start("crush_picks", units.div_ceil(THREADS), sequences, THREADS, &args)?;
        let (list, there, of_lanes) = (self.sizes.list(), self.sizes.places(), kv_heads * sequences);
        let lists = [there, there, of_lanes, of_lanes, of_lanes, 0];
        let [victims, lost, counts, cutoffs, begins, pictures] = in_a_row(self.answer, lists);
        let [all_victims, all_lost] = match self.sizes.rest() {
            0 => [Array::NONE; 2],
            _ => in_a_row(self.rest, [of_lanes * list; 2]),
        };
        let sizes = [list, there, self.sizes.picture(), self.sizes.shown(), self.sizes.shown_words()];
        let [list, there, picture, shown, shown_words] = words(sizes)?;
        let args = [
            victims.into(),
            lost.into(),
            counts.into(),
            cutoffs.into(),
            begins.into(),
            pictures.into(),
            taken.into(),
            all_victims.into(),
            all_lost.into(),
            facts.into(),
            firsts.into(),
            keys.into(),
            unit_of.into(),
            places.into(),
            distances.into(),
            signatures.into(),
            anchor.into(),
            positions,
            lanes,
            kv_heads_,
            slots_,
            units_,
            ids,
            row_,
            list,
            there,
            picture,
            shown,
            shown_words,
            group_,
        ];
        start("crush_verdicts", kv_heads, sequences, LANE_THREADS, &args)
    }
}
