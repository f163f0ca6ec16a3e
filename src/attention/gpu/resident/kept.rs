//! Rows that were pulled for the last step, kept on the device for the next: those that are chosen again do not cross the
//! link again. Ours: KCache (arXiv 2404.18057) pulls every row anew, as far as its abstract tells.

use crate::device::gpu::{Array, Gpu, Result, Room};
use crate::device::launch::KeptRows;
use crate::event::SeqId;

/// Those of a layer, of all parts of a step. Two places take turns.
pub(super) struct KeptLayer<G: Gpu> {
    places: [Place<G>; 2],
    latest: usize,
}

struct Place<G: Gpu> {
    rows: Room<G>,
    /// Positions, then counts.
    words: Room<G>,
    /// Whose rows they are, in the order of the parts, and most rows of a lane; `None` where it holds nothing.
    holds: Option<(Vec<SeqId>, usize)>,
}

impl<G: Gpu> KeptLayer<G> {
    pub(super) const fn new() -> Self {
        const fn place<G: Gpu>() -> Place<G> {
            Place {
                rows: Room::new("rows that were pulled"),
                words: Room::new("rows that were pulled"),
                holds: None,
            }
        }
        Self { places: [place(), place()], latest: 0 }
    }

    /// Where rows of these sequences go now, at most `list` per lane, and where those of the last step lie if they were of
    /// the same sequences.
    pub(super) fn turn(
        &mut self,
        gpu: &G,
        sequences: &[SeqId],
        [kv_heads, list, row_bytes]: [usize; 3],
    ) -> Result<(KeptRows, Option<KeptRows>)> {
        let lanes = sequences.len() * kv_heads;
        let last = &self.places[self.latest];
        let before = last.holds.as_ref().filter(|(of, _)| of == sequences).map(|&(_, stride)| {
            let positions = last.words.array(gpu);
            KeptRows {
                rows: last.rows.array(gpu),
                positions,
                counts: positions.offset(4 * lanes * stride),
                stride,
            }
        });
        self.latest = 1 - self.latest;
        let place = &mut self.places[self.latest];
        let rows = place.rows.of(gpu, lanes * list * row_bytes)?;
        let positions = place.words.of(gpu, 4 * lanes * (list + 1))?;
        place.holds = Some((sequences.to_vec(), list));
        Ok((KeptRows { rows, positions, counts: positions.offset(4 * lanes * list), stride: list }, before))
    }

    /// Forgets what is held.
    pub(super) fn forget(&mut self) {
        self.places.iter_mut().for_each(|place| place.holds = None);
    }
}

/// The same from a part on.
pub(super) const fn from_part(kept: KeptRows, part: usize, kv_heads: usize, row_bytes: usize) -> KeptRows {
    let lane = part * kv_heads;
    KeptRows {
        rows: kept.rows.offset(lane * kept.stride * row_bytes),
        positions: at(kept.positions, lane * kept.stride),
        counts: at(kept.counts, lane),
        stride: kept.stride,
    }
}

const fn at(words: Array, word: usize) -> Array {
    words.offset(4 * word)
}
