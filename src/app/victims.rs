//! The rows of the Evictions list: who was lost, when, why, by how much.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use super::filter::{Field, Filter, Row};
use crate::event::{Head, Layer, Position, Reason, RunInfo, SeqId, StepId};
use crate::state::{Decision, State};

/// Most rows listed, the newest victims; older ones are counted ([`VictimList::omitted`]).
const MAX_ROWS: usize = 16_384;

/// One victim of one decision.
#[derive(Clone, Debug, PartialEq)]
pub struct VictimRow {
    /// When.
    pub step: StepId,
    /// Which sequence.
    pub seq: SeqId,
    /// Decoder layer.
    pub layer: Layer,
    /// KV head; `None`: all heads of the layer.
    pub head: Option<Head>,
    /// Which token.
    pub position: Position,
    /// Its text, lossy; sanitise before drawing.
    pub token: String,
    /// Why.
    pub reason: Reason,
    /// Its score, where the policy has scores.
    pub score: Option<f32>,
    /// Lowest kept score.
    pub cutoff: Option<f32>,
    /// 1 = nearest to staying (derived).
    pub rank: Option<usize>,
    /// Victims of the decision.
    pub of: usize,
    /// Cutoff minus score (derived).
    pub margin: Option<f32>,
    /// Tokens between it and the newest one when it was lost (derived).
    pub age: u32,
}

impl VictimRow {
    /// What makes a row the same row after sorting and filtering.
    pub const fn key(&self) -> (StepId, SeqId, Layer, Option<Head>, Position) {
        (self.step, self.seq, self.layer, self.head, self.position)
    }
}

impl Row for VictimRow {
    fn number(&self, field: Field) -> Option<f64> {
        match field {
            Field::Step => Some(self.step as f64),
            Field::Layer => Some(f64::from(self.layer)),
            Field::Head => self.head.map(f64::from),
            Field::Position => Some(f64::from(self.position)),
            Field::Score => self.score.map(f64::from),
            Field::Cutoff => self.cutoff.map(f64::from),
            Field::Rank => self.rank.map(|r| r as f64),
            Field::Margin => self.margin.map(f64::from),
            Field::Age => Some(f64::from(self.age)),
            Field::Kind | Field::Token | Field::Reason => None,
        }
    }

    fn text(&self, field: Field) -> Option<Cow<'_, str>> {
        match field {
            Field::Kind => Some("evict".into()),
            Field::Token => Some(self.token.as_str().into()),
            Field::Reason => Some(self.reason.words().into()),
            _ => None,
        }
    }

    fn line(&self) -> Cow<'_, str> {
        format!("{} {}", self.token, self.reason.words()).into()
    }
}

/// Columns of the list, in drawing order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VictimColumn {
    /// When.
    Step,
    /// Decoder layer.
    Layer,
    /// KV head.
    Head,
    /// Position.
    Position,
    /// Text.
    Token,
    /// Why.
    Reason,
    /// Score.
    Score,
    /// Cutoff.
    Cutoff,
    /// Rank.
    Rank,
    /// Margin.
    Margin,
    /// Age.
    Age,
}

impl VictimColumn {
    /// All columns in order; [`super::App::sort`] indexes them.
    pub const ALL: [Self; 11] = [
        Self::Step,
        Self::Layer,
        Self::Head,
        Self::Position,
        Self::Token,
        Self::Reason,
        Self::Score,
        Self::Cutoff,
        Self::Rank,
        Self::Margin,
        Self::Age,
    ];

    /// Title.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Layer => "layer",
            Self::Head => "head",
            Self::Position => "pos",
            Self::Token => "token",
            Self::Reason => "reason",
            Self::Score => "score",
            Self::Cutoff => "cutoff",
            Self::Rank => "rank",
            Self::Margin => "margin",
            Self::Age => "age",
        }
    }

    fn compare(self, a: &VictimRow, b: &VictimRow) -> Ordering {
        match self {
            // The newest decision first: what just happened is what one looks for.
            Self::Step => b.step.cmp(&a.step),
            Self::Layer => a.layer.cmp(&b.layer),
            Self::Head => a.head.cmp(&b.head),
            Self::Position => a.position.cmp(&b.position),
            Self::Token => a.token.cmp(&b.token),
            Self::Reason => (a.reason as u8).cmp(&(b.reason as u8)),
            Self::Score => missing_last(a.score, b.score),
            Self::Cutoff => missing_last(a.cutoff, b.cutoff),
            Self::Rank => a.rank.unwrap_or(usize::MAX).cmp(&b.rank.unwrap_or(usize::MAX)),
            Self::Margin => missing_last(a.margin, b.margin),
            Self::Age => a.age.cmp(&b.age),
        }
    }
}

fn missing_last(a: Option<f32>, b: Option<f32>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        (a, b) => b.is_some().cmp(&a.is_some()),
    }
}

/// Sorted, filtered victims of the shown state. Rebuilt when the state, the filter or the order has changed.
#[derive(Clone, Debug, Default)]
pub struct VictimList {
    all: Vec<VictimRow>,
    shown: Vec<u32>,
    omitted: u64,
    /// Index into the shown rows.
    pub selected: usize,
    run: Option<Arc<RunInfo>>,
    decisions: u64,
    arranged: Option<(String, (usize, bool))>,
}

impl VictimList {
    /// Number of rows that match the filter.
    pub fn len(&self) -> usize {
        self.shown.len()
    }

    /// Whether no row matches.
    pub fn is_empty(&self) -> bool {
        self.shown.is_empty()
    }

    /// Victims before the filter.
    pub fn total(&self) -> usize {
        self.all.len()
    }

    /// Victims not listed because there are too many, or because the bounded log has forgotten them.
    pub fn omitted(&self) -> u64 {
        self.omitted
    }

    /// A row by its place in the list.
    pub fn get(&self, index: usize) -> Option<&VictimRow> {
        self.shown.get(index).map(|&i| &self.all[i as usize])
    }

    /// The rows from `first` on.
    pub fn rows_from(&self, first: usize) -> impl Iterator<Item = &VictimRow> {
        self.shown.iter().skip(first).map(|&i| &self.all[i as usize])
    }

    /// The selected row.
    pub fn current(&self) -> Option<&VictimRow> {
        self.get(self.selected)
    }

    /// Brings the rows up to the state; cheap when nothing has changed. The selection stays on its row.
    pub(super) fn refresh(&mut self, state: &State, filter: &Filter, sort: (usize, bool)) {
        let decisions = state.evictions.total_decisions();
        let same_run = self.run.as_ref().is_some_and(|run| Arc::ptr_eq(run, &state.run));
        let stale = !same_run || self.decisions != decisions;
        let arranged = self.arranged.as_ref().is_some_and(|(f, s)| f == filter.source() && *s == sort);
        if !stale && arranged {
            return;
        }
        let selected = self.current().map(VictimRow::key);
        if stale {
            self.run = Some(Arc::clone(&state.run));
            self.decisions = decisions;
            self.collect(state);
        }
        self.arranged = Some((filter.source().to_owned(), sort));
        self.arrange(filter, sort);
        self.selected = selected
            .and_then(|key| self.shown.iter().position(|&i| self.all[i as usize].key() == key))
            .unwrap_or(self.selected.min(self.shown.len().saturating_sub(1)));
    }

    /// Selects a token's newest row, if it is listed: that of a (layer, KV head) where there is one.
    pub(super) fn select_token(&mut self, seq: SeqId, position: Position, lane: (Layer, Head)) -> bool {
        let newest = self
            .shown
            .iter()
            .enumerate()
            .filter(|&(_, &i)| {
                let row = &self.all[i as usize];
                row.seq == seq && row.position == position
            })
            .max_by_key(|&(_, &i)| {
                let row = &self.all[i as usize];
                (row.layer == lane.0 && row.head.is_none_or(|head| head == lane.1), row.step)
            });
        if let Some((index, _)) = newest {
            self.selected = index;
        }
        newest.is_some()
    }

    fn collect(&mut self, state: &State) {
        self.all.clear();
        for decision in state.evictions.iter().rev() {
            let room = MAX_ROWS.saturating_sub(self.all.len());
            if room == 0 {
                break;
            }
            self.all.extend(rows_of(state, decision).take(room));
        }
        self.omitted = state.evictions.total_victims().saturating_sub(self.all.len() as u64);
    }

    fn arrange(&mut self, filter: &Filter, (column, reverse): (usize, bool)) {
        let all = &self.all;
        self.shown.clear();
        self.shown.extend((0..all.len() as u32).filter(|&i| filter.matches(&all[i as usize])));
        let column = VictimColumn::ALL[column % VictimColumn::ALL.len()];
        self.shown.sort_by(|&i, &j| {
            let (a, b) = (&all[i as usize], &all[j as usize]);
            let order = column.compare(a, b);
            let order = if reverse { order.reverse() } else { order };
            order.then_with(|| {
                (b.step, a.layer, a.head, a.position).cmp(&(a.step, b.layer, b.head, b.position))
            })
        });
    }
}

fn rows_of<'a>(state: &'a State, decision: &'a Decision) -> impl Iterator<Item = VictimRow> + 'a {
    let e = &decision.eviction;
    let ranks = ranks(&e.scores);
    let tokens = state.seq(decision.seq).map(|s| s.tokens.as_slice()).unwrap_or_default();
    e.positions.iter().enumerate().map(move |(i, &position)| VictimRow {
        step: decision.step,
        seq: decision.seq,
        layer: e.layer,
        head: e.head,
        position,
        token: tokens.get(position as usize).map(|t| t.piece.lossy().into_owned()).unwrap_or_default(),
        reason: e.reason,
        score: e.scores.get(i).filter(|s| !s.is_nan()).map(|s| s.to_f32()),
        cutoff: e.cutoff,
        rank: ranks.get(i).copied().flatten(),
        of: e.positions.len(),
        margin: e.margin(i),
        age: decision.age(i).unwrap_or(0),
    })
}

/// All ranks of a decision at once; `Eviction::rank` counts anew for each victim, which is too slow for thousands.
fn ranks(scores: &[half::f16]) -> Vec<Option<usize>> {
    let mut order: Vec<usize> = (0..scores.len()).filter(|&i| !scores[i].is_nan()).collect();
    order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]).then(j.cmp(&i)));
    let mut ranks = vec![None; scores.len()];
    for (rank, i) in order.into_iter().enumerate() {
        ranks[i] = Some(rank + 1);
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Eviction;
    use crate::event::evict::recorded_score;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranks_are_the_ones_a_decision_gives(scores in prop::collection::vec(0u8..6, 0..40)) {
            let eviction = Eviction {
                layer: 0,
                head: None,
                reason: Reason::LowScore,
                cutoff: Some(9.0),
                kept: 1,
                positions: (0..scores.len() as u32).collect(),
                scores: scores.iter().map(|&s| if s == 5 { half::f16::NAN } else { recorded_score(f32::from(s)) }).collect(),
            };
            let want: Vec<_> = (0..scores.len()).map(|i| eviction.rank(i)).collect();
            prop_assert_eq!(ranks(&eviction.scores), want);
        }
    }
}
