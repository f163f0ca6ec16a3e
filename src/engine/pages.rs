//! Decode under a read set by pages: Quest (arXiv 2406.10774).

use super::core::{Engine, reading};
use super::forward::{Gathered, mean_dropped};
use super::lanes::{Lanes, Reading, rows_bytes};
use super::sequence::Work;
use crate::attention::{HeadLane, Queries, observe};
use crate::cache::HOLE;
use crate::event::{Head, Layer, LayerReads, Phase, ScoreLevel, SeqId};
use crate::policy::{Quest, ReadRule, ReadSet};

/// Largest exact probabilities per query head that the choice of pages is held against: the count of Quest's figures.
const TOP: usize = 10;

impl Engine {
    /// Brings the bounds of a layer's pages up to date with the keys just written, before they are used.
    pub(super) fn follow_keys(&mut self, layer: usize, w: &Work) {
        let Some(ReadRule::Quest(quest)) = self.read.as_ref().map(ReadSet::rule) else { return };
        if quest.is_dense(layer as Layer) {
            return;
        }
        let sequence = &mut self.sequences[w.index];
        let pages = Lanes::of(&self.cache, sequence.id, layer as Layer);
        let lanes = pages.resident(Reading::PLAIN);
        let bounds = &mut sequence.bounds[layer * lanes.len()..][..lanes.len()];
        for (bounds, lane) in bounds.iter_mut().zip(&lanes) {
            bounds.follow(lane, quest.page as usize, self.cache.config().shape.head_dim);
        }
    }

    /// One query that reads the pages of largest bound, each query head its own, and nothing else: the softmax runs over
    /// them alone. What all the keys would have said is computed for a picture, and for nothing else.
    pub(super) fn decode_by_pages(
        &mut self,
        layer: usize,
        w: &Work,
        quest: Quest,
        queries: Queries<'_>,
        out: &mut [f32],
        gathered: &mut Gathered,
    ) {
        let at = Some(layer as Layer);
        let seq = self.sequences[w.index].id;
        let pages = Lanes::read_by(&mut *self.attention, &self.cache, seq, layer as Layer);
        let lanes = pages.resident(reading(
            (&self.ropes, self.model.decoder.config()),
            &self.cache,
            &self.policy,
            layer,
        ));
        let bounds = &self.sequences[w.index].bounds[layer * lanes.len()..][..lanes.len()];
        let index_bytes = bounds.iter().map(crate::attention::PageBounds::bytes).sum();
        self.attention.select_pages(queries, &lanes, bounds, quest.pages());
        self.timer.lap(at, Phase::Select);
        self.attention.scores_of_pages(queries, &lanes);
        self.timer.lap(at, Phase::Score);
        self.attention.weighted_sum_of_pages(&lanes, out);
        self.timer.lap(at, Phase::WeightedSum);
        drop(lanes);
        drop(pages);
        // The accumulators see what was read, so before a picture puts the exact probabilities in their place.
        self.accumulate_decode(layer, w);
        self.timer.lap(at, Phase::Policy);

        let pages = Lanes::read_by(&mut *self.attention, &self.cache, seq, layer as Layer);
        let lanes = pages.resident(reading(
            (&self.ropes, self.model.decoder.config()),
            &self.cache,
            &self.policy,
            layer,
        ));
        let mut reads = LayerReads { index_bytes, ..self.page_reads((seq, layer as Layer), &lanes) };
        let level = self.picture_level();
        if level != ScoreLevel::Off {
            self.attention.scores(queries, &lanes);
            self.attention.select_chosen_pages(&lanes);
            (reads.top, reads.top_read) = self.recall(&lanes);
            let selection = self.attention.selection();
            gathered.dropped.extend(mean_dropped(selection));
            let probabilities = self.attention.probabilities();
            gathered.groups.extend(observe(level, layer as Layer, probabilities, Some(selection), &lanes));
        }
        drop(lanes);
        drop(pages);
        self.add_reads(&reads);
        self.timer.lap(at, Phase::Probe);
    }

    /// Counts what was read of a layer, sequences added up.
    pub(super) fn add_reads(&mut self, reads: &LayerReads) {
        match self.reads.iter_mut().find(|sum| sum.layer == reads.layer) {
            Some(sum) => sum.add(reads),
            None => self.reads.push(*reads),
        }
    }

    /// What the latest choice of pages reads of one (sequence, layer).
    fn page_reads(&self, (seq, layer): (SeqId, Layer), lanes: &[HeadLane<'_>]) -> LayerReads {
        let mut sum = LayerReads { layer, ..LayerReads::default() };
        for (h, (lane, chosen)) in lanes.iter().zip(self.attention.pages().lanes()).enumerate() {
            let (keys, values) = self.cache.pages(seq, layer, h as Head);
            let live = || (0..lane.slots.len()).filter(|&slot| lane.slots[slot] != HOLE);
            let read = || live().filter(|&slot| chosen.reads(slot));
            let key_bytes = rows_bytes(&keys, live());
            sum.add(&LayerReads {
                pages: chosen.pages() as u64,
                read: chosen.union_pages() as u64,
                asked: chosen.asked_pages() as u64,
                read_bytes: rows_bytes(&keys, read()) + rows_bytes(&values, read()),
                dense_bytes: key_bytes + rows_bytes(&values, live()),
                key_bytes,
                ..LayerReads::default()
            });
        }
        sum
    }

    /// How many of the largest exact probabilities there are, and how many of them lie in pages that were read.
    fn recall(&self, lanes: &[HeadLane<'_>]) -> (u64, u64) {
        let probabilities = self.attention.probabilities();
        let (mut top, mut read) = (0, 0);
        for (h, (lane, chosen)) in lanes.iter().zip(self.attention.pages().lanes()).enumerate() {
            for (i, row) in probabilities.rows(h).enumerate() {
                let (all, held) = chosen.recall(i, row, lane.slots, TOP);
                top += all as u64;
                read += held as u64;
            }
        }
        (top, read)
    }
}
