//! Tasks with a right answer: keys, facts, lists, tables, votes.

use super::lab::{Exam, Lab, Marks, Regime, exact_share};
use super::report::{Row, Table};
use super::{Measure, Result};
use crate::event::Position;
use crate::model::demo::DocumentKind;
use crate::model::demo::prompt;

/// Tokens of a pass key: a space and five digits.
pub(super) const KEY_TOKENS: usize = 6;
/// Tokens of stories before a vote.
const BEFORE_VOTE: usize = 256;
/// StreamingLLM's sinks, in the controls.
const SINKS: Position = 4;

/// Pass keys, exact: rows by length (tokens, answer included), columns by the key's depth, `n` prompts per cell.
pub fn passkey(lab: &Lab<'_>, regime: &Regime, lengths: &[usize], depths: &[f32], n: usize) -> Result<Table> {
    let mut rows = Vec::new();
    for (l, &length) in lengths.iter().enumerate() {
        lab.check_length(length)?;
        let mut cells = Vec::new();
        for (d, &depth) in depths.iter().enumerate() {
            let cell = ((l * depths.len() + d) as u64) << 32;
            let what = format!("passkey, {length} tokens, depth {depth}");
            let marks =
                lab.exact(&what, regime, n, |seed| prompt::passkey(seed ^ cell, length - KEY_TOKENS, depth))?;
            cells.push(exact_share(&marks));
        }
        rows.push(Row { name: length.to_string(), cells });
    }
    Ok(Table {
        task: "passkey".into(),
        what: format!("share of five-digit keys told exactly, by length and depth; {}", words(regime)),
        columns: depths.iter().map(ToString::to_string).collect(),
        of: "tokens".into(),
        rows,
    })
}

/// Documents of `tokens` tokens, `n` per kind, fed with the full cache: the share of answer tokens that the model would
/// have said, and their mean loss.
pub fn recall(lab: &Lab<'_>, tokens: usize, n: usize) -> Result<Table> {
    const KINDS: [(DocumentKind, &str); 5] = [
        (DocumentKind::Pass, "pass"),
        (DocumentKind::Facts, "facts"),
        (DocumentKind::Lists, "lists"),
        (DocumentKind::Table, "table"),
        (DocumentKind::Repeated, "repeated"),
    ];
    lab.check_length(tokens)?;
    let mut rows = Vec::new();
    for (kind, name) in KINDS {
        let marks = lab.each(&format!("recall, {name}"), n, |i| {
            let document = prompt::recall(lab.seed + i as u64, kind, tokens);
            let text = lab.model.tokenizer.text(&document.ids[1..]);
            let told = lab.judge(&Regime::full(), &text)?;
            Ok(Marks::of(told.iter().filter(|told| document.answers[told.position as usize])))
        })?;
        let sum = |of: fn(&Marks) -> u64| marks.iter().map(of).sum();
        let losses: Vec<f64> = marks.iter().map(|marks| marks.loss).collect();
        let cells = vec![Measure::share(sum(|m| m.right), sum(|m| m.tokens)), Measure::mean(&losses)];
        rows.push(Row { name: name.into(), cells });
    }
    Ok(Table {
        task: "recall".into(),
        what: format!(
            "answer tokens of {n} documents of {tokens} tokens, each told after the right text; full cache"
        ),
        columns: vec!["right".into(), "loss".into()],
        of: "kind".into(),
        rows,
    })
}

/// Pass keys told `times` times in the first `within` of the context and asked for at the end, under each regime.
pub fn repeated(
    lab: &Lab<'_>,
    regimes: &[Regime],
    tokens: usize,
    (times, within): (usize, f32),
    n: usize,
) -> Result<Table> {
    lab.check_length(tokens)?;
    let mut rows = Vec::new();
    for regime in regimes {
        let marks = lab.exact(&format!("repeated, {}", regime.name), regime, n, |seed| {
            prompt::repeated(seed, tokens - KEY_TOKENS, times, within)
        })?;
        let losses: Vec<f64> = marks.iter().map(|marks| marks.loss).collect();
        rows.push(Row {
            name: regime.name.clone(),
            cells: vec![exact_share(&marks), Measure::mean(&losses)],
        });
    }
    Ok(Table {
        task: "repeated".into(),
        what: format!(
            "share of five-digit keys told exactly after {tokens} tokens with the key {times} times in the first {within}"
        ),
        columns: vec!["exact".into(), "loss".into()],
        of: "cache".into(),
        rows,
    })
}

/// Who won a vote, under each regime, the same prompts for all; the last column is what the regime loses against the
/// first, prompt by prompt.
pub fn votes(lab: &Lab<'_>, regimes: &[Regime], items: &[usize], n: usize) -> Result<Table> {
    let mut rows: Vec<Row> = Vec::new();
    let mut first: Vec<f64> = Vec::new();
    for regime in regimes {
        let (mut cells, mut right) = (Vec::new(), Vec::new());
        for &items in items {
            let what = format!("votes, {items} items, {}", regime.name);
            let marks = lab.exact(&what, regime, n, |seed| prompt::vote(seed, BEFORE_VOTE, items))?;
            right.extend(marks.iter().map(|marks| f64::from(u8::from(marks.is_exact()))));
            cells.push(exact_share(&marks));
        }
        if first.is_empty() {
            first.clone_from(&right);
        }
        cells.push(Measure::difference(&first, &right));
        rows.push(Row { name: regime.name.clone(), cells });
    }
    let columns = items.iter().map(|items| format!("{items} items")).chain(["lost".into()]).collect();
    Ok(Table {
        task: "votes".into(),
        what: format!(
            "share of votes whose winner is told, after {BEFORE_VOTE} tokens of stories; lost: against the first row"
        ),
        columns,
        of: "cache".into(),
        rows,
    })
}

/// What the answer hangs on: the key's sentence alone lost, and it alone put back into StreamingLLM's window.
pub fn controls(lab: &Lab<'_>, tokens: usize, depth: f32, n: usize) -> Result<Table> {
    lab.check_length(tokens)?;
    let cases = [
        ("everything kept", false, true),
        ("the key's sentence lost", false, false),
        ("4 sinks and the last tokens, 25%", true, false),
        ("the same and the key's sentence", true, true),
    ];
    let mut rows = Vec::new();
    for (name, windowed, keeps_key) in cases {
        let marks = lab.each(&format!("controls, {name}"), n, |i| {
            let task = prompt::passkey(lab.seed + i as u64, tokens - KEY_TOKENS, depth);
            let length = task.ids()[0].len() as Position;
            let is_key = |p: Position| task.spans.iter().any(|span| span.contains(&(p as usize)));
            let kept = |p: Position| if is_key(p) { keeps_key } else { !windowed || in_window(p, length) };
            let lost: Vec<Position> = (0..length).filter(|&p| !kept(p)).collect();
            lab.examine(&Regime::full(), &Exam::of(&task, super::Span::Context), |engine| engine.lose(&lost))
        })?;
        rows.push(Row { name: name.into(), cells: vec![exact_share(&marks)] });
    }
    Ok(Table {
        task: "controls".into(),
        what: format!(
            "share of keys told exactly, {tokens} tokens, depth {depth}; the cache cut by hand before the question"
        ),
        columns: vec!["exact".into()],
        of: "cache".into(),
        rows,
    })
}

/// Whether StreamingLLM keeps a position at a quarter of the context.
fn in_window(position: Position, length: Position) -> bool {
    position < SINKS || position >= length - (length / 4 - SINKS)
}

fn words(regime: &Regime) -> String {
    let span = match regime.span {
        super::Span::Context => "context compressed before the question is seen",
        super::Span::Prompt => "context and question compressed together",
    };
    let read = if regime.read.is_empty() { String::new() } else { format!(", read {}", regime.read) };
    let merge = if regime.merge.is_empty() { String::new() } else { format!(", merge {}", regime.merge) };
    format!("{}{read}{merge}, {} pages, {span}", regime.policy, regime.kv_dtype)
}
