//! The model's own stories, and what it loses on stories when the cache forgets.

use super::lab::{LONG_CHUNK, Lab, Regime};
use super::report::{Row, Table};
use super::{Measure, Result};
use crate::event::{ScoreLevel, Settings};
use crate::model::demo::DocumentKind;
use crate::model::demo::prompt;
use crate::model::demo::story::{Review, review};

/// How stories begin.
const OPENERS: [&str; 4] =
    [" Once there was", " This is a story about", " There was a", " This is a story about Mia and Tom."];
/// Tokens drawn after each.
const DRAWN: u32 = 256;
/// At which the stories are drawn.
const TEMPERATURE: f64 = 0.7;
/// Slots of the windows.
const WINDOW: usize = 64;

/// `n` texts drawn from the model and read as stories.
pub fn stories(lab: &Lab<'_>, n: usize) -> Result<Table> {
    let reviews = lab.each("stories", n, |i| {
        let settings = Settings {
            chunk: LONG_CHUNK,
            scores: ScoreLevel::Off,
            max_tokens: DRAWN,
            temperature: TEMPERATURE,
            seed: lab.seed + i as u64,
            ..Settings::default()
        };
        let opener = OPENERS[i % OPENERS.len()];
        let mut engine = lab.engine_with(&settings, opener)?;
        let mut ids = Vec::new();
        while let Some(step) = engine.step()? {
            ids.extend(step.seqs.iter().filter_map(|part| part.sampled.as_ref()).map(|drawn| drawn.id));
        }
        Ok(review(&format!("{opener}{}", lab.model.tokenizer.text(&ids))))
    })?;
    let sum = |of: fn(&Review) -> usize| reviews.iter().map(of).sum::<usize>() as u64;
    let row = |name: &str, share| Row { name: name.into(), cells: vec![share] };
    Ok(Table {
        task: "stories".into(),
        what: format!("{n} texts of {DRAWN} tokens drawn at temperature {TEMPERATURE}, read by the grammar"),
        columns: vec!["share".into()],
        of: "what".into(),
        rows: vec![
            row("sentences of the grammar", Measure::share(sum(|r| r.grammatical), sum(|r| r.sentences))),
            row("stories true to their people", Measure::share(sum(|r| r.consistent), sum(|r| r.stories))),
        ],
    })
}

/// The mean loss (nats per token) on `n` texts of stories beyond their first half, under the full cache and under windows
/// with and without sinks; with what each loses against the full cache and against the window that keeps its sinks.
pub fn losses(lab: &Lab<'_>, tokens: usize, n: usize) -> Result<Table> {
    lab.check_length(tokens)?;
    // One token at a time: every token sees just the window.
    let window = |name: &str, sinks: usize| Regime {
        name: name.into(),
        chunk: 1,
        ..Regime::policy(&format!("streaming:budget={WINDOW},sinks={sinks},reposition=false,when=chunk"))
    };
    let regimes = [Regime::full(), window("4 sinks and the last 60", 4), window("the last 64", 0)];
    let mut found: Vec<Vec<f64>> = Vec::new();
    for regime in &regimes {
        found.push(lab.each(&format!("story loss, {}", regime.name), n, |i| {
            let document = prompt::recall(lab.seed + i as u64, DocumentKind::Story, tokens);
            let told = lab.judge(regime, &lab.model.tokenizer.text(&document.ids[1..]))?;
            let late: Vec<f64> = told
                .iter()
                .filter(|told| told.position as usize >= tokens / 2)
                .map(|told| -f64::from(told.logprob))
                .collect();
            Ok(late.iter().sum::<f64>() / late.len().max(1) as f64)
        })?);
    }
    let rows = regimes.iter().zip(&found).map(|(regime, losses)| Row {
        name: regime.name.clone(),
        cells: vec![
            Measure::mean(losses),
            Measure::difference(losses, &found[0]),
            Measure::difference(losses, &found[1]),
        ],
    });
    Ok(Table {
        task: "losses".into(),
        what: format!("nats per token on {n} texts of stories, tokens {} to {tokens}", tokens / 2),
        columns: vec!["loss".into(), "over full".into(), "over 4 sinks".into()],
        of: "cache".into(),
        rows: rows.collect(),
    })
}
