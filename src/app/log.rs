//! The lines of the Log: what happened, one line per happening.

use std::borrow::Cow;
use std::sync::Arc;

use super::filter::{Field, Filter, Row};
use super::filtered::Filtered;
use crate::event::{Origin, RunInfo, Stage, StepId};
use crate::state::{SeqState, State, StepSummary};

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogKind {
    /// A run began.
    Run,
    /// A chunk of the prompt was fed.
    Prefill,
    /// A generated token was fed.
    Token,
    /// State was lost.
    Evict,
    /// A parameter was changed.
    Tune,
    /// A sequence has ended.
    Finish,
    /// Steps are missing.
    Gap,
}

impl LogKind {
    /// Name, as in `kind=`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Prefill => "prefill",
            Self::Token => "token",
            Self::Evict => "evict",
            Self::Tune => "tune",
            Self::Finish => "finish",
            Self::Gap => "gap",
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When.
    pub step: StepId,
    /// End of the step, ns since the run began.
    pub at_ns: u64,
    /// What it is about.
    pub kind: LogKind,
    /// The line; may hold token text: sanitise before drawing.
    pub text: String,
}

impl Row for LogLine {
    fn number(&self, field: Field) -> Option<f64> {
        (field == Field::Step).then_some(self.step as f64)
    }

    fn text(&self, field: Field) -> Option<Cow<'_, str>> {
        match field {
            Field::Kind => Some(self.kind.name().into()),
            Field::Token if self.kind == LogKind::Token => Some(self.text.as_str().into()),
            _ => None,
        }
    }

    fn line(&self) -> Cow<'_, str> {
        self.text.as_str().into()
    }
}

/// The lines up to the shown step, oldest first. As bounded as the history they are made from.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// The lines.
    pub lines: Filtered<LogLine>,
    /// The selection stays on the newest line.
    pub following: bool,
    run: Option<Arc<RunInfo>>,
    step: Option<StepId>,
    filter: Option<String>,
}

impl Log {
    /// Brings the lines up to the state; only steps not seen yet are written.
    pub(super) fn refresh(&mut self, state: &State, filter: &Filter) {
        let same_run = self.run.as_ref().is_some_and(|run| Arc::ptr_eq(run, &state.run));
        let same_filter = self.filter.as_deref() == Some(filter.source());
        if same_run && same_filter && self.step == state.step {
            return;
        }
        if !same_run {
            *self = Self { following: true, run: Some(Arc::clone(&state.run)), ..Self::default() };
            self.lines.all.push(begin(&state.run));
        }
        self.write(state);
        self.step = state.step;
        self.filter = Some(filter.source().to_owned());
        self.lines.apply(filter);
        if self.following {
            self.lines.select(usize::MAX);
        }
    }

    /// Takes back what the state does not know yet, adds what it has learnt, forgets what its history has forgotten.
    fn write(&mut self, state: &State) {
        let all = &mut self.lines.all;
        let kept = all.partition_point(|line| state.step.is_some_and(|now| line.step <= now)).max(1);
        all.truncate(kept);
        write_after(all, self.step.filter(|_| kept > 1), state);
        let oldest = state.history.iter().next().map_or(0, |s| s.step);
        let forgotten = all[1..].partition_point(|line| line.step < oldest);
        all.drain(1..=forgotten);
    }
}

/// Writes the steps after the one that is known.
fn write_after(out: &mut Vec<LogLine>, known: Option<StepId>, state: &State) {
    let from = known.map_or(0, |step| step + 1);
    let first = state.history.iter().next().map_or(0, |s| s.step);
    let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
    if known.is_none() && state.gap_steps > 0 {
        let text =
            format!("{} steps did not reach the screen; the state after them is complete", state.gap_steps);
        out.push(LogLine { step: first, at_ns: 0, kind: LogKind::Gap, text });
    }
    for summary in state.history.iter().skip(skip) {
        write_step(out, summary, state);
    }
}

fn begin(run: &RunInfo) -> LogLine {
    let s = &run.settings;
    let read = if s.read.is_empty() { String::new() } else { format!(", reads {}", s.read) };
    let merge = if s.merge.is_empty() { String::new() } else { format!(", merges by {}", s.merge) };
    let text = format!(
        "run begins: {}, {} prompt tokens, {}{read}{merge}",
        run.model.name, run.prompt_tokens, s.policy
    );
    LogLine { step: 0, at_ns: 0, kind: LogKind::Run, text }
}

fn write_step(out: &mut Vec<LogLine>, s: &StepSummary, state: &State) {
    let at_ns = s.start_ns.saturating_add(s.wall_ns);
    let mut line = |kind, text| out.push(LogLine { step: s.step, at_ns, kind, text });
    if s.tuned {
        let first = state.tuning.partition_point(|(step, _)| *step < s.step);
        for (_, t) in state.tuning[first..].iter().take_while(|(step, _)| *step == s.step) {
            line(LogKind::Tune, format!("{}: {} → {}", t.name, t.from, t.to));
        }
    }
    let ms = s.wall_ns as f64 / 1e6;
    if s.stage == Stage::Prefill {
        let of = match turn_at(state, s.step) {
            Some(turn) => format!("tokens of turn {turn}"),
            None => "prompt tokens".to_owned(),
        };
        line(LogKind::Prefill, format!("{} {of} fed in {ms:.1} ms", s.tokens));
    } else {
        for seq in &state.seqs {
            if let Some(text) = generated_at(seq, s.step) {
                line(LogKind::Token, text);
            }
        }
    }
    if s.victims > 0 {
        line(LogKind::Evict, eviction_line(s, state));
    }
    // A run that was stopped ends in a step that feeds nothing.
    let stopped = s.tokens == 0 && state.step == Some(s.step);
    for seq in &state.seqs {
        let ended_here = stopped || seq.tokens.last().is_some_and(|t| t.step == s.step);
        if let Some(finish) = seq.finish.filter(|_| ended_here) {
            line(LogKind::Finish, format!("sequence {} ended: {}", seq.seq, finish.words()));
        }
    }
}

/// The later turn that a step fed.
fn turn_at(state: &State, step: StepId) -> Option<usize> {
    let seq = state.seqs.first()?;
    let at = seq.tokens.partition_point(|t| t.step <= step).checked_sub(1)?;
    let token = seq.tokens.get(at).filter(|t| t.step == step && t.origin == Origin::Turn)?;
    debug_assert_eq!(token.step, step);
    Some(seq.turn_starts().partition_point(|&start| start <= at))
}

fn generated_at(seq: &SeqState, step: StepId) -> Option<String> {
    let at = seq.tokens.partition_point(|t| t.step < step);
    let token = seq.tokens.get(at).filter(|t| t.step == step && t.origin == Origin::Generated)?;
    let p = token.logprob.map(|l| format!(", p = {:.3}", l.exp())).unwrap_or_default();
    Some(format!("'{}' at position {at}{p}", token.piece.lossy()))
}

/// Evictions of one step in one line: how many, of which layers, and the one that came nearest to staying.
fn eviction_line(s: &StepSummary, state: &State) -> String {
    let decisions =
        state.evictions.iter().rev().skip_while(|d| d.step > s.step).take_while(|d| d.step == s.step);
    let mut layers: Option<(u16, u16)> = None;
    let mut count = 0;
    let mut reason = None;
    for d in decisions {
        let layer = d.eviction.layer;
        layers = Some(layers.map_or((layer, layer), |(a, b)| (a.min(layer), b.max(layer))));
        reason = Some(d.eviction.reason);
        count += 1;
    }
    match (layers, reason) {
        (Some((a, b)), Some(reason)) => {
            let layers = if a == b { format!("layer {a}") } else { format!("layers {a}–{b}") };
            let plural = if count == 1 { "decision" } else { "decisions" };
            format!("{} victims in {count} {plural}, {layers}: {}", s.victims, reason.words())
        }
        _ => format!("{} victims", s.victims),
    }
}
