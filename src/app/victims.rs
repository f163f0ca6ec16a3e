//! The rows of the Evictions list: who was lost, when, why, by how much.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use super::filter::{Field, Filter, Row};
use super::filtered::Filtered;
use crate::event::{Head, Layer, Position, Reason, RunInfo, SeqId, StepId};
use crate::state::{Decision, MergedVictim, State};

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
    /// Where its rows went, if they were merged and not lost.
    pub merged: Option<MergedVictim>,
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
    /// Attention that it would have drawn later, as far as it was told (measured); `None` without a twin.
    pub regret: Option<f32>,
}

impl VictimRow {
    /// What makes a row the same row after sorting and filtering.
    pub const fn key(&self) -> (StepId, SeqId, Layer, Option<Head>, Position) {
        (self.step, self.seq, self.layer, self.head, self.position)
    }

    /// Where it went, or why it was lost.
    pub fn fate(&self) -> Cow<'static, str> {
        self.merged.map_or(self.reason.words().into(), |merged| merged.to_string().into())
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
            Field::Regret => self.regret.map(f64::from),
            Field::Kind | Field::Token | Field::Reason => None,
        }
    }

    fn text(&self, field: Field) -> Option<Cow<'_, str>> {
        match field {
            Field::Kind => Some("evict".into()),
            Field::Token => Some(self.token.as_str().into()),
            Field::Reason => Some(self.fate()),
            _ => None,
        }
    }

    fn line(&self) -> Cow<'_, str> {
        format!("{} {}", self.token, self.fate()).into()
    }
}

/// Columns of the list in order; [`super::App::sort`] indexes them.
pub const VICTIM_COLUMNS: [Field; 12] = [
    Field::Step,
    Field::Layer,
    Field::Head,
    Field::Position,
    Field::Token,
    Field::Reason,
    Field::Score,
    Field::Cutoff,
    Field::Rank,
    Field::Margin,
    Field::Age,
    Field::Regret,
];

/// Order of two victims by a column.
fn compare(column: Field, a: &VictimRow, b: &VictimRow) -> Ordering {
    match column {
        // All victims are of one kind.
        Field::Kind => Ordering::Equal,
        // The newest decision first: what just happened is what one looks for.
        Field::Step => b.step.cmp(&a.step),
        Field::Layer => a.layer.cmp(&b.layer),
        Field::Head => a.head.cmp(&b.head),
        Field::Position => a.position.cmp(&b.position),
        Field::Token => a.token.cmp(&b.token),
        Field::Reason => (a.merged.is_none(), a.reason as u8).cmp(&(b.merged.is_none(), b.reason as u8)),
        Field::Score => missing_last(a.score, b.score),
        Field::Cutoff => missing_last(a.cutoff, b.cutoff),
        Field::Rank => a.rank.unwrap_or(usize::MAX).cmp(&b.rank.unwrap_or(usize::MAX)),
        Field::Margin => missing_last(a.margin, b.margin),
        Field::Age => a.age.cmp(&b.age),
        // The largest first: who should have stayed is what one looks for.
        Field::Regret => missing_last(a.regret.map(|r| -r), b.regret.map(|r| -r)),
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
    /// The victims.
    pub rows: Filtered<VictimRow>,
    omitted: u64,
    run: Option<Arc<RunInfo>>,
    decisions: u64,
    /// Regret told of all victims.
    told: f64,
    arranged: Option<(String, (usize, bool))>,
}

impl VictimList {
    /// Victims not listed because there are too many, or because the bounded log has forgotten them.
    pub fn omitted(&self) -> u64 {
        self.omitted
    }

    /// Brings the rows up to the state; cheap when nothing has changed. The selection stays on its row.
    pub(super) fn refresh(&mut self, state: &State, filter: &Filter, sort: (usize, bool)) {
        let decisions = state.evictions.total_decisions();
        let same_run = self.run.as_ref().is_some_and(|run| Arc::ptr_eq(run, &state.run));
        let stale = !same_run || self.decisions != decisions;
        let arranged = self.arranged.as_ref().is_some_and(|(f, s)| f == filter.source() && *s == sort);
        let told = state.twin.sum().map_or(0.0, |tally| tally.told);
        let same_regrets = !stale && self.told == told;
        if same_regrets && arranged {
            return;
        }
        let selected = self.rows.current().map(VictimRow::key);
        if stale {
            self.run = Some(Arc::clone(&state.run));
            self.decisions = decisions;
            self.collect(state);
        } else if !same_regrets {
            for row in &mut self.rows.all {
                row.regret = state.regret(row.seq, row.layer, row.head, row.position);
            }
        }
        self.told = told;
        self.arranged = Some((filter.source().to_owned(), sort));
        self.rows.apply(filter);
        self.sort(sort);
        let again = selected.and_then(|key| self.rows.rows_from(0).position(|row| row.key() == key));
        self.rows.select(again.unwrap_or(self.rows.selected));
    }

    /// Selects a token's newest row, if it is listed: that of a (layer, KV head) where there is one.
    pub(super) fn select_token(&mut self, seq: SeqId, position: Position, lane: (Layer, Head)) -> bool {
        let newest = self
            .rows
            .rows_from(0)
            .enumerate()
            .filter(|(_, row)| row.seq == seq && row.position == position)
            .max_by_key(|(_, row)| {
                (row.layer == lane.0 && row.head.is_none_or(|head| head == lane.1), row.step)
            })
            .map(|(index, _)| index);
        if let Some(index) = newest {
            self.rows.select(index);
        }
        newest.is_some()
    }

    /// Place in the list of the victim that was regretted most; `None` where no regret is known.
    pub(super) fn worst(&self) -> Option<usize> {
        let regrets = self.rows.rows_from(0).enumerate().filter_map(|(i, row)| Some((row.regret?, i)));
        let known = regrets.filter(|&(regret, _)| regret > 0.0);
        known.reduce(|worst, next| if next.0 > worst.0 { next } else { worst }).map(|(_, i)| i)
    }

    fn collect(&mut self, state: &State) {
        let all = &mut self.rows.all;
        all.clear();
        for decision in state.evictions.iter().rev() {
            let room = MAX_ROWS.saturating_sub(all.len());
            if room == 0 {
                break;
            }
            all.extend(rows_of(state, decision).take(room));
        }
        self.omitted = state.evictions.total_victims().saturating_sub(all.len() as u64);
    }

    fn sort(&mut self, (column, reverse): (usize, bool)) {
        let column = VICTIM_COLUMNS[column % VICTIM_COLUMNS.len()];
        self.rows.sort_by(|a, b| {
            let order = compare(column, a, b);
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
    let kv_heads = state.run.model.kv_heads as Head;
    let at = (decision.step, decision.seq);
    e.positions.iter().enumerate().map(move |(i, &position)| VictimRow {
        step: decision.step,
        seq: decision.seq,
        layer: e.layer,
        head: e.head,
        position,
        token: tokens.get(position as usize).map(|t| t.piece.lossy().into_owned()).unwrap_or_default(),
        reason: e.reason,
        merged: state.merging.victim(at, e, i, kv_heads),
        score: e.scores.get(i).filter(|s| !s.is_nan()).map(|s| s.to_f32()),
        cutoff: e.cutoff,
        rank: ranks.get(i).copied().flatten(),
        of: e.positions.len(),
        margin: e.margin(i),
        age: decision.age(i).unwrap_or(0),
        regret: state.regret(decision.seq, e.layer, e.head, position),
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
