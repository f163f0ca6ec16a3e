//! What each head looks at.

use super::lab::{Exam, Lab, Regime};
use super::report::{Row, Table};
use super::{Measure, Result, Span};
use crate::engine::Observe;
use crate::event::attention::{AttentionGroup, Cells, cell_values};
use crate::event::{Layer, Position, ScoreLevel, Settings, Step};
use crate::model::demo::prompt::{self, Task};

/// Where the key stands in the prompts.
const DEPTH: f32 = 0.5;

/// Columns of the table.
const COLUMNS: [&str; 6] =
    ["BOS", "positions 1-3", "previous 4", "self", "key, answering", "effective tokens"];

/// Sums over queries of what one query head looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Looks {
    /// By [`COLUMNS`], without the key.
    context: [f64; 5],
    context_queries: u64,
    key: f64,
    answering_queries: u64,
}

impl Looks {
    /// One row of probabilities over positions.
    fn add(&mut self, row: &[(Position, f64)], query: Position, task: &Task, answering: bool) {
        let mass =
            |of: &dyn Fn(Position) -> bool| row.iter().filter(|(p, _)| of(*p)).map(|(_, x)| x).sum::<f64>();
        if answering {
            self.answering_queries += 1;
            self.key += mass(&|p| task.spans.iter().any(|span| span.contains(&(p as usize))));
            return;
        }
        let entropy: f64 = row.iter().filter(|(_, x)| *x > 0.0).map(|(_, x)| -x * x.ln()).sum();
        self.context_queries += 1;
        for (sum, x) in self.context.iter_mut().zip([
            mass(&|p| p == 0),
            mass(&|p| (1..4).contains(&p)),
            mass(&|p| p < query && p + 4 >= query),
            mass(&|p| p == query),
            entropy.exp(),
        ]) {
            *sum += x;
        }
    }

    fn merge(&mut self, other: &Self) {
        self.context.iter_mut().zip(other.context).for_each(|(sum, x)| *sum += x);
        self.context_queries += other.context_queries;
        self.key += other.key;
        self.answering_queries += other.answering_queries;
    }

    fn cells(&self) -> Vec<Measure> {
        let mean = |sum: f64, n: u64| Measure { value: sum / n.max(1) as f64, n: 1, ..Measure::default() };
        let [bos, early, previous, own, effective] = self.context.map(|sum| mean(sum, self.context_queries));
        vec![bos, early, previous, own, mean(self.key, self.answering_queries), effective]
    }
}

/// Means over the queries of the second half of `n` prompts with a pass key, and over those that tell the key. Rows are
/// named `L0 H0` by layer and query head. Probabilities are as recorded: within 2.2 %.
pub fn heads(lab: &Lab<'_>, tokens: usize, n: usize) -> Result<Table> {
    lab.check_length(tokens)?;
    let config = lab.model.decoder.config();
    let (layers, heads) = (config.layers, config.heads);
    let found = lab.each("heads", n, |i| {
        let task = prompt::passkey(lab.seed + i as u64, tokens, DEPTH);
        one(lab, &task, layers * heads, heads)
    })?;
    let mut sums = vec![Looks::default(); layers * heads];
    for looks in &found {
        sums.iter_mut().zip(looks).for_each(|(sum, looks)| sum.merge(looks));
    }
    let rows = sums
        .iter()
        .enumerate()
        .map(|(i, looks)| Row { name: format!("L{} H{}", i / heads, i % heads), cells: looks.cells() });
    Ok(Table {
        task: "heads".into(),
        what: format!("mean attention of the queries in the second half of {n} prompts of {tokens} tokens"),
        columns: COLUMNS.map(str::to_owned).to_vec(),
        of: "head".into(),
        rows: rows.collect(),
    })
}

fn one(lab: &Lab<'_>, task: &Task, lanes: usize, heads: usize) -> Result<Vec<Looks>> {
    let exam = Exam::of(task, Span::Context);
    let settings = Settings {
        chunk: 1,
        scores: ScoreLevel::Full,
        max_tokens: exam.rest.len() as u32,
        ignore_eos: true,
        policy: Regime::full().policy,
        ..Settings::default()
    };
    let mut engine = lab.engine_with(&settings, &exam.context)?;
    engine.teach(&exam.rest);
    let context = task.ids()[0].len();
    let question = exam.answers.iter().take_while(|answer| !**answer).count();
    // The query that tells an answer's token stands before it. The first token, a space, needs no key.
    let answering = (context + question) as Position..(context + exam.rest.len() - 1) as Position;
    let mut looks = vec![Looks::default(); lanes];
    for position in 0.. {
        if position == context / 2 {
            engine.set_observe(Observe::Rows);
        }
        let Some(step) = engine.step()? else { break };
        add(&mut looks, &step, task, &answering, context as Position, heads);
    }
    Ok(looks)
}

fn add(
    looks: &mut [Looks],
    step: &Step,
    task: &Task,
    answering: &std::ops::Range<Position>,
    context: Position,
    heads: usize,
) {
    let Some(map) = step.seqs.first().and_then(|part| part.attention.as_ref()) else { return };
    let is_answering = answering.contains(&map.query);
    if !is_answering && map.query >= context {
        return;
    }
    for group in &map.groups {
        for row in &group.rows {
            let Cells::Full(cells) = &row.cells else { continue };
            let row_of =
                positions(group).zip(cells).map(|(p, &q)| (p, f64::from(cell_values()[usize::from(q)])));
            let row_of: Vec<(Position, f64)> = row_of.collect();
            let lane = usize::from(group.layer) * heads + usize::from(row.head);
            looks[lane].add(&row_of, map.query, task, is_answering);
        }
    }
}

fn positions(group: &AttentionGroup) -> impl Iterator<Item = Position> {
    group.positions.iter().flat_map(|&(from, to)| from..to)
}

/// What a group of query heads is for, where it is plain to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Half of its attention is on the key while the key is told.
    Retrieval,
    /// Half is on the previous four tokens and the token itself.
    Recency,
    /// Three tenths are on BOS.
    Sink,
}

/// The roles that heads of each (layer, KV head) have, from the table of [`heads`].
pub(super) fn roles(table: &Table, heads: usize, kv_heads: usize) -> Vec<(Layer, usize, Vec<Role>)> {
    let group = heads / kv_heads;
    table
        .rows
        .chunks(group)
        .enumerate()
        .map(|(i, rows)| {
            let any = |plain: &dyn Fn(&[Measure]) -> bool| rows.iter().any(|row| plain(&row.cells));
            let roles = [
                (Role::Retrieval, any(&|cells| cells[4].value >= 0.5)),
                (Role::Recency, any(&|cells| cells[2].value + cells[3].value >= 0.5)),
                (Role::Sink, any(&|cells| cells[0].value >= 0.3)),
            ];
            let roles = roles.into_iter().filter(|(_, has)| *has).map(|(role, _)| role).collect();
            ((i / kv_heads) as Layer, i % kv_heads, roles)
        })
        .collect()
}
