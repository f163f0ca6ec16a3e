//! One sequence: its tokens, block tables, newest attention picture.

use serde::{Deserialize, Serialize};

use super::FoldError;
use crate::cache::{Compacted, LayerTable, TableError, replay};
use crate::event::{
    AttentionGroup, AttentionMap, Cells, Finish, Head, Origin, Piece, Position, RunInfo, SeqId, SeqStep,
    Stage, StepId, attention,
};

/// Weight of the newest row in a token's running mean of attention received.
const HEAT_DECAY: f32 = 0.1;

/// One token, by position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Vocabulary id.
    pub id: u32,
    /// Its bytes; draw them through the sanitiser only.
    pub piece: Piece,
    /// Where it came from.
    pub origin: Origin,
    /// Step that appended it.
    pub step: StepId,
    /// (layer, KV head) pairs that have evicted it.
    pub lost: u32,
    /// Step that last evicted it anywhere.
    pub last_lost: Option<StepId>,
    /// Attention received in the newest picture, mean over all query heads of all layers. Derived.
    pub mass: f32,
    /// Running mean of `mass` over pictures. Derived.
    pub heat: f32,
    /// Query heads that read its V row in the newest picture (cells above zero).
    pub readers: u32,
    /// Natural log-probability the model gave it, if it was generated.
    pub logprob: Option<f32>,
}

/// A token drawn but not fed yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// Vocabulary id.
    pub id: u32,
    /// Its bytes.
    pub piece: Piece,
    /// Natural log-probability.
    pub logprob: f32,
    /// Gap between the two largest logits.
    pub margin: f32,
}

/// One turn of a conversation.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// Position of its first token.
    pub start: usize,
    /// What the model was given.
    pub given: &'a [Token],
    /// What it made of it, as far as that was fed.
    pub answer: &'a [Token],
    /// The answer's newest token, not fed yet.
    pub pending: Option<&'a Pending>,
}

impl Turn<'_> {
    /// Ids of the answer.
    pub fn ids(&self) -> Vec<u32> {
        self.answer.iter().map(|token| token.id).chain(self.pending.map(|p| p.id)).collect()
    }

    /// The answer. Lossy; sanitise before drawing.
    pub fn text(&self) -> String {
        let pieces = self.answer.iter().map(|token| &token.piece).chain(self.pending.map(|p| &p.piece));
        let bytes: Vec<u8> = pieces.flat_map(|piece| piece.0.iter().copied()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// One sequence, folded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeqState {
    /// Which.
    pub seq: SeqId,
    /// What it did in its newest step.
    pub stage: Stage,
    /// Tokens fed so far, by position.
    pub tokens: Vec<Token>,
    /// Block tables, one per layer.
    #[serde(deserialize_with = "super::bounded::tables")]
    pub layers: Vec<LayerTable>,
    /// Drawn, not fed yet.
    pub pending: Option<Pending>,
    /// Tokens drawn so far.
    pub sampled_count: u32,
    /// Newest attention picture and its step.
    pub attention: Option<(StepId, AttentionMap)>,
    /// Resident tokens per (layer, KV head), layer-major, from the tables.
    pub resident: Vec<u32>,
    /// Mass the read set did not read in the newest step, per (layer, KV head), layer-major; empty without a read set.
    pub dropped: Vec<f32>,
    /// Set when the sequence has ended.
    pub finish: Option<Finish>,
    /// Duration of the steps this sequence took part in since its newest turn began.
    pub engine_ns: u64,
}

impl SeqStep {
    /// Newest position after the step.
    pub fn last_position(&self) -> Position {
        self.first.saturating_add((self.fed.len() as u32).saturating_sub(1))
    }
}

impl SeqState {
    pub(super) fn new(seq: SeqId, run: &RunInfo) -> Result<Self, TableError> {
        let (layers, heads) = (run.model.layers as usize, run.model.kv_heads as Head);
        Ok(Self {
            seq,
            stage: Stage::Prefill,
            tokens: Vec::new(),
            layers: vec![LayerTable::new(heads, run.settings.block_size)?; layers],
            pending: None,
            sampled_count: 0,
            attention: None,
            resident: vec![0; layers * usize::from(heads)],
            dropped: Vec::new(),
            finish: None,
            engine_ns: 0,
        })
    }

    /// Slots of all block tables, for the memory bound.
    pub(super) fn slots(&self) -> u64 {
        self.layers.iter().map(super::bounded::slots).sum()
    }

    /// Folds its part of a step; returns what compaction moved.
    pub(super) fn fold(
        &mut self,
        step: StepId,
        wall_ns: u64,
        part: &SeqStep,
    ) -> Result<Compacted, FoldError> {
        let wrong = |what: String| FoldError::Contradiction { step, what };
        if part.first as usize != self.tokens.len() {
            return Err(wrong(format!(
                "sequence {} feeds position {} after {} tokens",
                part.seq,
                part.first,
                self.tokens.len()
            )));
        }
        if self.opens_turn(part) {
            // Times are told per turn.
            self.engine_ns = 0;
        }
        self.feed(step, part);
        let compacted = replay(&mut self.layers, part).map_err(|e| wrong(e.to_string()))?;
        self.mark_victims(step, part);
        self.refresh_residency(part).map_err(wrong)?;
        if let Some(map) = &part.attention {
            self.attend(step, map);
        }
        if let Some(drawn) = &part.sampled {
            self.sampled_count += 1;
            self.pending = Some(Pending {
                id: drawn.id,
                piece: drawn.piece.clone(),
                logprob: drawn.logprob,
                margin: drawn.margin,
            });
        }
        self.stage = part.stage;
        self.dropped.clone_from(&part.dropped);
        self.finish = part.finish;
        self.engine_ns = self.engine_ns.saturating_add(wall_ns);
        Ok(compacted)
    }

    /// Whether a part brings the first tokens of a later turn.
    fn opens_turn(&self, part: &SeqStep) -> bool {
        let after = self.tokens.last().map(|token| token.origin);
        after != Some(Origin::Turn) && part.fed.iter().any(|fed| fed.origin == Origin::Turn)
    }

    fn feed(&mut self, step: StepId, part: &SeqStep) {
        let drawn = self.pending.take();
        for fed in &part.fed {
            let logprob = drawn
                .as_ref()
                .filter(|p| fed.origin == Origin::Generated && p.id == fed.id)
                .map(|p| p.logprob);
            self.tokens.push(Token {
                id: fed.id,
                piece: fed.piece.clone(),
                origin: fed.origin,
                step,
                lost: 0,
                last_lost: None,
                mass: 0.0,
                heat: 0.0,
                readers: 0,
                logprob,
            });
        }
    }

    fn mark_victims(&mut self, step: StepId, part: &SeqStep) {
        let kv_heads = (self.resident.len() / self.layers.len().max(1)) as u32;
        for e in &part.evictions {
            let lanes = if e.head.is_some() { 1 } else { kv_heads };
            for &p in &e.positions {
                // The tables knew every victim, so the token exists.
                if let Some(token) = self.tokens.get_mut(p as usize) {
                    token.lost += lanes;
                    token.last_lost = Some(step);
                }
            }
        }
    }

    fn refresh_residency(&mut self, part: &SeqStep) -> Result<(), String> {
        let kv_heads = self.resident.len() / self.layers.len().max(1);
        for (l, table) in self.layers.iter().enumerate() {
            for h in 0..kv_heads {
                self.resident[l * kv_heads + h] = table.lane(h as Head).live as u32;
            }
        }
        if self.resident != part.resident {
            return Err(format!(
                "sequence {}: the recorded residency differs from the one its decisions lead to",
                part.seq
            ));
        }
        Ok(())
    }

    fn attend(&mut self, step: StepId, map: &AttentionMap) {
        let rows = map.groups.iter().map(|g| g.rows.len()).sum::<usize>().max(1) as f32;
        let mut received = Received::new(self.tokens.len());
        for group in &map.groups {
            for row in &group.rows {
                received.add(group, &row.cells);
            }
        }
        for (token, (mass, readers)) in self.tokens.iter_mut().zip(received.of_tokens()) {
            token.mass = mass / rows;
            token.readers = readers;
            token.heat += HEAT_DECAY * (token.mass - token.heat);
        }
        self.attention = Some((step, map.clone()));
    }

    /// Whether a keyframe's sequence is what folding a run leaves behind; see its caller.
    pub(super) fn is_sound(&self, run: &RunInfo) -> bool {
        let (layers, kv_heads) = (run.model.layers as usize, run.model.kv_heads as usize);
        let fed = self.tokens.len();
        let is_fed = |end: Position| end as usize <= fed;
        let tables = self.layers.iter().all(|table| {
            usize::from(table.heads()) == kv_heads
                && table.block_size() == run.settings.block_size
                && (0..table.heads()).all(|h| table.resident_ranges(h).last().is_none_or(|r| is_fed(r.end)))
        });
        let map = self.attention.as_ref().is_none_or(|(_, map)| {
            map.groups.iter().all(|group| {
                let ranges = &group.positions;
                usize::from(group.layer) < layers
                    && usize::from(group.kv_head) < kv_heads
                    && ranges.iter().all(|&(start, end)| start <= end && is_fed(end))
                    && ranges.is_sorted_by(|a, b| a.1 <= b.0)
                    && group.rows.iter().all(|row| u32::from(row.head) < run.model.heads)
            })
        });
        self.layers.len() == layers
            && self.resident.len() == layers * kv_heads
            && (self.dropped.is_empty() || self.dropped.len() == layers * kv_heads)
            && self.tokens.iter().all(|t| t.lost as usize <= layers * kv_heads)
            && self.sampled_count as usize <= fed + 1
            && tables
            && map
    }

    /// The text generated so far, the token drawn last included. Lossy; sanitise before drawing.
    pub fn generated_text(&self) -> String {
        let mut bytes: Vec<u8> = self
            .tokens
            .iter()
            .filter(|t| t.origin == Origin::Generated)
            .flat_map(|t| t.piece.0.iter().copied())
            .collect();
        if let Some(p) = &self.pending {
            bytes.extend_from_slice(&p.piece.0);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Where the turns of the conversation begin, ascending; the first is the prompt's.
    pub fn turn_starts(&self) -> Vec<usize> {
        let opens = |pair: &[Token]| pair[0].origin != Origin::Turn && pair[1].origin == Origin::Turn;
        let later = self.tokens.windows(2).enumerate().filter(|(_, pair)| opens(pair)).map(|(i, _)| i + 1);
        std::iter::once(0).chain(later).collect()
    }

    /// The turns, in order: what was given, and what the model made of it.
    pub fn turns(&self) -> Vec<Turn<'_>> {
        let starts = self.turn_starts();
        let ends = starts.iter().skip(1).copied().chain([self.tokens.len()]);
        let mut turns: Vec<Turn<'_>> = starts
            .iter()
            .zip(ends)
            .map(|(&start, end)| {
                let tokens = &self.tokens[start..end];
                let given = tokens.iter().take_while(|token| token.origin != Origin::Generated).count();
                let (given, answer) = tokens.split_at(given);
                Turn { start, given, answer, pending: None }
            })
            .collect();
        if let Some(last) = turns.last_mut() {
            last.pending = self.pending.as_ref();
        }
        turns
    }

    /// Tokens of the newest answer so far.
    pub fn answered(&self) -> usize {
        let fed = self.tokens.iter().rev().take_while(|token| token.origin == Origin::Generated).count();
        fed + usize::from(self.pending.is_some())
    }

    /// Tokens that a share of the prompt is taken of: the prompt's, later all up to the newest answer.
    pub fn prompt_len(&self, run: &RunInfo) -> u32 {
        let later = self.tokens.iter().rposition(|token| token.origin == Origin::Turn);
        later.map_or(run.prompt_tokens, |at| at as u32 + 1)
    }

    /// Ids generated so far, the token drawn last included.
    pub fn generated_ids(&self) -> Vec<u32> {
        let fed = self.tokens.iter().filter(|t| t.origin == Origin::Generated).map(|t| t.id);
        fed.chain(self.pending.as_ref().map(|p| p.id)).collect()
    }

    /// Whether the generated text begins with the expected answer: `None` while it is still a prefix of it.
    pub fn answer(&self, expected: &str) -> Option<bool> {
        let text = self.generated_text();
        let (text, expected) = (text.trim_start(), expected.trim_start());
        if text.starts_with(expected) {
            Some(true)
        } else if expected.starts_with(text) && self.finish.is_none() {
            None
        } else {
            Some(false)
        }
    }
}

/// Attention received by each token in one picture, summed over rows. Dense columns: a picture has a cell per query head
/// and token, and the tokens themselves are too wide to go over that often.
struct Received {
    mass: Vec<f32>,
    readers: Vec<u32>,
}

impl Received {
    fn new(tokens: usize) -> Self {
        Self { mass: vec![0.0; tokens], readers: vec![0; tokens] }
    }

    /// Adds one row; what stands for no token is left out.
    fn add(&mut self, group: &AttentionGroup, cells: &Cells) {
        let values = attention::cell_values();
        match cells {
            Cells::Full(cells) => {
                let mut rest = &cells[..];
                for &(start, end) in &group.positions {
                    let (mine, behind) = rest.split_at(rest.len().min(end.saturating_sub(start) as usize));
                    rest = behind;
                    let start = self.mass.len().min(start as usize);
                    let sums = self.mass[start..].iter_mut().zip(&mut self.readers[start..]);
                    for ((mass, readers), &cell) in sums.zip(mine) {
                        *mass += values[usize::from(cell)];
                        *readers += u32::from(cell > 0);
                    }
                }
            }
            Cells::Top(picks) => {
                for &(position, cell) in picks {
                    let at = position as usize;
                    if let (Some(mass), Some(readers)) = (self.mass.get_mut(at), self.readers.get_mut(at)) {
                        *mass += values[usize::from(cell)];
                        *readers += u32::from(cell > 0);
                    }
                }
            }
            Cells::Blocks(_) => {}
        }
    }

    fn of_tokens(self) -> impl Iterator<Item = (f32, u32)> {
        self.mass.into_iter().zip(self.readers)
    }
}
