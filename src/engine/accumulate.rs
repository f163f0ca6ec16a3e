//! What attention leaves behind, handed to the policy's accumulators.

use std::borrow::Cow;

use super::core::Engine;
use super::sequence::Work;
use crate::attention::{RowSink, Wants};
use crate::cache::HOLE;
use crate::event::{Layer, Position, Stage};
use crate::model::{Qkv, Tokenizer};
use crate::policy::{Accumulators, TokenClass};

/// Takes the rows of a prefill into one (layer, KV head)'s accumulators.
pub(super) struct RowsInto<'a> {
    acc: &'a mut Accumulators,
    slots: &'a [Position],
    has_holes: bool,
    positions: Vec<Position>,
    row: Vec<f32>,
}

impl<'a> RowsInto<'a> {
    pub(super) fn new(acc: &'a mut Accumulators, slots: &'a [Position]) -> Self {
        let has_holes = slots.contains(&HOLE);
        Self { acc, slots, has_holes, positions: Vec::new(), row: Vec::new() }
    }
}

impl RowSink for RowsInto<'_> {
    fn row(&mut self, query: Position, row: &[f32]) {
        let slots = &self.slots[..row.len()];
        if !self.has_holes {
            return self.acc.observe_row(query, slots, row);
        }
        self.positions.clear();
        self.row.clear();
        for (&position, &p) in slots.iter().zip(row).filter(|&(&position, _)| position != HOLE) {
            self.positions.push(position);
            self.row.push(p);
        }
        self.acc.observe_row(query, &self.positions, &self.row);
    }
}

impl Engine {
    /// Takes the queries of the compressed span into their moments, before they are rotated.
    pub(super) fn observe_queries(&mut self, layer: usize, qkv: &Qkv, work: &[Work]) {
        let Some(skipped) = self.needs.queries else { return };
        let config = self.model.decoder.config();
        let (heads, head_dim) = (config.heads, config.head_dim);
        let mut rows = qkv.q.chunks_exact(heads * head_dim);
        for w in work {
            let first = w.first_computed();
            let moments = &mut self.sequences[w.index].queries[layer * heads..][..heads];
            for (position, row) in (first..).zip(rows.by_ref().take(w.computed().len())) {
                if w.stage == Stage::Prefill && (skipped..self.context_len as Position).contains(&position) {
                    moments.iter_mut().zip(row.chunks_exact(head_dim)).for_each(|(m, q)| m.observe(q));
                }
            }
        }
    }

    pub(super) fn accumulate_decode(&mut self, layer: usize, w: &Work) {
        if !self.needs.attention() {
            return;
        }
        let s = &mut self.sequences[w.index];
        let table = self.cache.table(s.id, layer as Layer);
        let probabilities = self.attention.probabilities();
        for h in 0..table.heads() {
            let slots = table.lane(h).slots;
            let mut row = vec![0.0; slots.len()];
            probabilities.add_group_mean(usize::from(h), &mut row);
            let (positions, row) = live(slots, &row);
            let index = layer * usize::from(table.heads()) + usize::from(h);
            s.accumulators[index].observe_decode(&positions, &row);
        }
    }

    pub(super) fn accumulate_prefill(&mut self, layer: usize, w: &Work, wants: Wants) {
        let s = &mut self.sequences[w.index];
        let table = self.cache.table(s.id, layer as Layer);
        for h in 0..table.heads() {
            let slots = table.lane(h).slots;
            let sums = if wants.column_sums { self.attention.column_sums(usize::from(h)) } else { &[] };
            let mut last = vec![0.0; if wants.last_row { slots.len() } else { 0 }];
            if wants.last_row {
                self.attention.probabilities().add_group_mean(usize::from(h), &mut last);
            }
            let (positions, sums) = live(slots, sums);
            let (_, last) = live(slots, &last);
            let index = layer * usize::from(table.heads()) + usize::from(h);
            s.accumulators[index].observe_prefill(&positions, w.computed().len() as u32, &sums, &last);
        }
    }
}

/// What a token is to a policy that treats some alike.
pub(super) fn class(tokenizer: &Tokenizer, id: u32) -> TokenClass {
    if tokenizer.is_special(id) {
        return TokenClass::Special;
    }
    let piece = tokenizer.piece(id);
    let text = piece.lossy();
    let is_mark = |c: char| !c.is_alphanumeric() && !c.is_control() && c != char::REPLACEMENT_CHARACTER;
    match text.trim() {
        "" => TokenClass::Plain,
        text if text.chars().all(is_mark) => TokenClass::Punctuation,
        _ => TokenClass::Plain,
    }
}

/// Positions and values of the slots that are not holes.
fn live<'a>(slots: &'a [Position], values: &'a [f32]) -> (Cow<'a, [Position]>, Cow<'a, [f32]>) {
    if !slots.contains(&HOLE) {
        return (slots.into(), values.into());
    }
    let positions = slots.iter().copied().filter(|&p| p != HOLE).collect();
    let values = slots.iter().zip(values).filter(|&(&p, _)| p != HOLE).map(|(_, &x)| x).collect();
    (positions, values)
}
