//! KVCrush's decisions, where the sums are.

use super::GpuAttention;
use super::sums::{Question, live, of_score};
use crate::device::gpu::{Array, Gpu, Result};
use crate::device::launch::{Crush, CrushAnchor, CrushSizes, SumLanes};
use crate::policy::{CrushPicture, Crushing, Ranked};

/// What a question of KVCrush comes to.
pub(super) fn sizes_of(
    question: &Question<'_>,
    ranked: &Ranked,
    crushing: &Crushing,
    kv_heads: usize,
) -> CrushSizes {
    let tables = || question.asked().flat_map(|part| &part.tables).map(|table| table.slots);
    let last = tables().filter_map(|slots| live(slots).next_back()).max();
    CrushSizes {
        kv_heads,
        sequences: question.range.len(),
        slots: tables().map(<[_]>::len).max().unwrap_or(0),
        residents: tables().map(|slots| live(slots).count()).max().unwrap_or(0),
        end: last.map_or(0, |last| last as usize + 1),
        budget: ranked.budget as usize,
        group: crushing.group() as usize,
        ratio: crushing.ratio(),
    }
}

/// The anchors of a question's sequences, where they are known before: words of the device, the lower half first.
pub(super) fn fixed_anchors(question: &Question<'_>, crushing: &Crushing, width: usize) -> Option<Vec<u32>> {
    let of = |&seed: &u64| crushing.fixed_anchor(width, seed, question.layer);
    let anchors: Option<Vec<Vec<u64>>> = question.seeds.iter().map(of).collect();
    Some(anchors?.concat().into_iter().flat_map(|word| [word as u32, (word >> 32) as u32]).collect())
}

/// The picture of a sequence, of all words of an answer.
pub(super) fn picture_of(words: &[u32], sizes: &CrushSizes, sequence: usize) -> CrushPicture {
    let first = sizes.answer() - (sizes.sequences - sequence) * sizes.picture();
    CrushPicture::of_words(&words[first..], sizes.width(), sizes.shown(), sizes.shown_words())
}

impl<G: Gpu> GpuAttention<G> {
    /// Starts what makes the answer to a question of KVCrush. `anchors` are those that are known before, if they are.
    pub(super) fn begin_crush(
        &mut self,
        of: SumLanes,
        ranked: &Ranked,
        crushing: &Crushing,
        sizes: CrushSizes,
        anchors: Option<Array>,
        [answer, rest]: [Array; 2],
    ) -> Result<()> {
        let anchor = match anchors {
            Some(words) => CrushAnchor::Fixed(words),
            None if crushing.is_of_minority() => CrushAnchor::Minority,
            None => CrushAnchor::Majority,
        };
        let lanes = sizes.kv_heads * sizes.sequences;
        let crush = Crush {
            of: SumLanes { sums: of_score(of.sums, ranked.by), ..of },
            sizes,
            sinks: ranked.protected.sinks,
            recent: ranked.protected.recent,
            anchor,
            scores: self.rooms.sums.of(&self.gpu, 4 * lanes * sizes.slots)?,
            scratch: self.batch.rooms.crush.of(&self.gpu, sizes.scratch_bytes())?,
            answer,
            rest,
        };
        crush.launch(&self.gpu)
    }
}
