//! What the embedded model must do, line by line.

use serde::Serialize;

use super::heads::{Role, roles};
use super::lab::{Lab, Regime};
use super::recall::{controls, passkey, recall, repeated, votes};
use super::report::Table;
use super::stories::{losses, stories};
use super::{Measure, Result};

/// One demand on the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// What is demanded.
    pub what: String,
    /// What was found.
    pub found: Measure,
    /// What would pass.
    pub wanted: String,
    /// Whether it does.
    pub passed: bool,
}

impl Line {
    fn least(what: impl Into<String>, found: Measure, least: f64) -> Self {
        Self { what: what.into(), wanted: format!("at least {least}"), passed: found.value >= least, found }
    }

    fn most(what: impl Into<String>, found: Measure, most: f64) -> Self {
        Self { what: what.into(), wanted: format!("at most {most}"), passed: found.value <= most, found }
    }

    /// A difference of at least so much, and one that chance does not explain.
    fn surely_least(what: impl Into<String>, found: Measure, least: f64) -> Self {
        Self {
            what: what.into(),
            wanted: format!("at least {least}, the interval above 0"),
            passed: found.value >= least && found.low > 0.0,
            found,
        }
    }
}

/// Depths of the keys.
const DEPTHS: [f32; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];
/// Lengths of the prompts, tokens, and the share of keys wanted at each depth.
const LENGTHS: [(usize, f64); 4] = [(512, 0.95), (1024, 0.95), (2048, 0.95), (4096, 0.9)];
/// Tokens of documents whose answers are to be recalled, and of prompts with a repeated key.
const RECALL_TOKENS: usize = 2048;
/// How often and within which share of the context a repeated key is told.
pub const REPEATED: (usize, f32) = (6, 0.4);
/// Items of the votes.
pub const VOTES: [usize; 2] = [15, 25];
/// Tokens of the prompts of heads, controls and losses.
const SHORT_TOKENS: usize = 1024;

/// Regimes for the repeated keys at a budget: everything, StreamingLLM, and policies that score.
pub fn repeated_regimes(budget: &str) -> Vec<Regime> {
    std::iter::once(Regime::full())
        .chain(["streaming", "h2o", "tova"].map(|name| Regime::policy(&format!("{name}:budget={budget}"))))
        .collect()
}

/// Regimes for the votes: everything read, and ever fewer rows in every layer.
pub fn vote_regimes() -> Vec<Regime> {
    std::iter::once(Regime::full())
        .chain([64, 32, 8, 2, 1].map(|n| Regime::read(&format!("kcache:n={n},l=0"))))
        .collect()
}

/// Every demand on the demo model with `n` prompts per cell, and the tables that they are read from.
pub fn demo(lab: &Lab<'_>, n: usize) -> Result<(Vec<Line>, Vec<Table>)> {
    let mut lines = Vec::new();
    let mut tables = Vec::new();

    let told = stories(lab, n)?;
    lines.push(Line::least("a. stories: sentences of the grammar", told.rows[0].cells[0], 0.95));
    lines.push(Line::least("a. stories: true to names and pronouns", told.rows[1].cells[0], 0.8));
    tables.push(told);

    let keys = passkey(lab, &Regime::full(), &LENGTHS.map(|(length, _)| length), &DEPTHS, n)?;
    for ((length, least), row) in LENGTHS.iter().zip(&keys.rows) {
        let worst = row.cells.iter().zip(DEPTHS).min_by(|a, b| a.0.value.total_cmp(&b.0.value));
        let (worst, depth) = worst.expect("there are depths");
        lines.push(Line::least(
            format!("b. passkey, {length} tokens, worst depth ({depth})"),
            *worst,
            *least,
        ));
    }
    tables.push(keys);

    let recalled = recall(lab, RECALL_TOKENS, n)?;
    for row in recalled.rows.iter().filter(|row| row.name != "repeated") {
        lines.push(Line::least(
            format!("c. recall, {}: answer tokens at {RECALL_TOKENS}", row.name),
            row.cells[0],
            0.95,
        ));
    }
    tables.push(recalled);

    let voted = votes(lab, &vote_regimes(), &VOTES, n)?;
    lines.push(Line::least("d. votes, full cache, 25 items", voted.rows[0].cells[1], 0.8));
    let two = voted.row("kcache:n=2,l=0").expect("it is one of the regimes");
    lines.push(Line::surely_least("d. votes lost by reading 2 rows only", two.cells[2], 0.05));
    tables.push(voted);

    let again = repeated(lab, &repeated_regimes("25%"), RECALL_TOKENS, REPEATED, n)?;
    lines.push(Line::most("e. repeated keys, StreamingLLM at 25%", again.rows[1].cells[0], 0.2));
    let best = again.rows[2..].iter().max_by(|a, b| a.cells[0].value.total_cmp(&b.cells[0].value));
    let best = best.expect("some policies score");
    lines.push(Line::least(format!("e. repeated keys, {}", best.name), best.cells[0], 0.8));
    tables.push(again);

    let lost = losses(lab, SHORT_TOKENS, n)?;
    lines.push(Line::surely_least(
        "f. story loss of a window without sinks, over 4 sinks",
        lost.rows[2].cells[2],
        0.01,
    ));
    tables.push(lost);
    let looks = super::heads(lab, SHORT_TOKENS, 4)?;
    lines.extend(head_lines(lab, &looks));
    tables.push(looks);

    let cut = controls(lab, SHORT_TOKENS, 0.3, n)?;
    lines.push(Line::most("control: only the key's sentence lost", cut.rows[1].cells[0], 0.05));
    lines.push(Line::least("control: a quarter kept, with the key's sentence", cut.rows[3].cells[0], 0.95));
    tables.push(cut);
    Ok((lines, tables))
}

fn head_lines(lab: &Lab<'_>, looks: &Table) -> Vec<Line> {
    let config = lab.model.decoder.config();
    let roles = roles(looks, config.heads, config.kv_heads);
    let count = |of: &dyn Fn(&[Role]) -> bool| {
        let groups = roles.iter().filter(|(_, _, roles)| of(roles)).count();
        Measure { value: groups as f64, low: groups as f64, high: groups as f64, n: 1, hits: None }
    };
    let with = |role: Role| count(&|roles| roles.contains(&role));
    vec![
        Line::least("f. (layer, KV head) groups on the key while telling it", with(Role::Retrieval), 1.0),
        Line::least("f. groups on the last tokens", with(Role::Recency), 1.0),
        Line::least("f. groups on BOS", with(Role::Sink), 1.0),
        Line::least("f. groups with any of these roles", count(&|roles| !roles.is_empty()), 3.0),
    ]
}
