//! `kvista run --headless`: the same engine, recorder and reducers, without a screen.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::args::RunArgs;
use super::loading::Loading;
use super::setup::{self, Setup};
use super::talk::Lines;
use super::{Failure, json, output, remark};
use crate::device::memory;
use crate::engine::{Engine, Feed, Recorded, Recorder, Said, live};
use crate::event::{Origin, SeqStep, Stage, Step};
use crate::model::tokenizer::TextStream;
use crate::state::{CodedPart, MergedPart, ShadowSummary, State, Summary};
use crate::ui::number;
use crate::ui::text;
use crate::ui::theme::Symbols;

/// Items between engine and recorder.
const RING: usize = 4_096;

/// What is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Output {
    /// One object per line.
    Json,
    /// One line per step.
    Plain,
    /// The generated text, then a few facts on standard error.
    Text,
}

/// Runs to the end, or to the first interrupt; then the recording is finished.
pub(super) fn run(args: &RunArgs) -> Result<(), Failure> {
    let Setup { model, weights, settings, mut prompt, chosen } = setup::setup(args)?;
    let format = match (args.json, args.plain) {
        (true, _) => Output::Json,
        (_, true) => Output::Plain,
        _ => Output::Text,
    };
    let interrupted = interrupt_flag()?;
    let mut loading = Loading::new(&interrupted);
    let model = model.load(weights, &mut |progress| loading.hear(progress));
    loading.end();
    let model = Arc::new(model.map_err(|e| setup::failure(&e))?);
    let mut lines = None;
    if args.chat && prompt.text.is_empty() {
        // Nobody is asked for a turn that the model cannot be given.
        model.chat.as_ref().map_err(Failure::input)?;
        let lines = lines.insert(Lines::of_stdin()?);
        let Some(first) = lines.next(&interrupted)? else {
            return Err(Failure::Input(
                "--chat: no turn: give --prompt TEXT, or lines on standard input".into(),
            ));
        };
        prompt.text = first;
    }
    let mut engine = Engine::new(model, &settings, &prompt).map_err(|e| setup::failure(&e))?;
    if let Some(free_bytes) = memory::free_bytes() {
        engine.check_memory(free_bytes).map_err(|e| setup::failure(&e))?;
    }
    let mut feed = Feed::default();
    let recorder = match &args.record {
        Some(path) => {
            let (id, items) = feed.listen(RING);
            Some((id, Recorder::start(path, items).map_err(Failure::Input)?))
        }
        None => None,
    };
    feed.begin(engine.info()).map_err(Failure::fault)?;
    let mut printer = Printer {
        out: io::stdout().lock(),
        format,
        text: TextStream::default(),
        line_is_ended: false,
        chosen,
    };
    printer.begin(&engine)?;
    let pace = args.pace.filter(|pace| *pace > 0.0);
    let run = loop {
        match drive(&mut engine, &mut feed, &mut printer, pace, &interrupted) {
            Ok(()) => {}
            Err(why) => break Err(why),
        }
        match next_turn(&mut engine, &mut feed, &mut printer, lines.as_mut(), &interrupted) {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(why) => break Err(why),
        }
    };
    // Whatever happened, what was recorded so far is finished first.
    let recorded = recorder.map(|(id, recorder)| {
        feed.dismiss(id);
        recorder.finish()
    });
    run?;
    let Some(state) = feed.state() else { return Ok(()) };
    printer.end(state)?;
    match recorded {
        Some(Ok(files)) => {
            for Recorded { path, bytes, steps } in files {
                if format != Output::Json {
                    let path = text::safe(path.display().to_string().as_bytes(), Symbols::Ascii);
                    remark(&format!("recorded {steps} steps, {} in {path}", number::bytes(bytes).trim()));
                }
            }
            Ok(())
        }
        Some(Err(why)) => Err(Failure::Fault(why)),
        None => Ok(()),
    }
}

/// Raised by Ctrl-C, a closed terminal, or a polite kill.
pub(super) fn interrupt_flag() -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // The second time the signal kills, should finishing hang.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))
            .map_err(Failure::fault)?;
        signal_hook::flag::register(signal, Arc::clone(&flag)).map_err(Failure::fault)?;
    }
    Ok(flag)
}

/// Goes on with the next line that the model can be given; false where there is none.
fn next_turn(
    engine: &mut Engine,
    feed: &mut Feed,
    printer: &mut Printer<'_>,
    lines: Option<&mut Lines>,
    interrupted: &AtomicBool,
) -> Result<bool, Failure> {
    let Some(lines) = lines else { return Ok(false) };
    printer.end_answer()?;
    while let Some(line) = lines.next(interrupted)? {
        match engine.say(&line) {
            Ok(Said::Here(_)) => return Ok(true),
            Ok(Said::Anew(anew)) => {
                remark(live::ANEW);
                if let Some(state) = feed.state() {
                    printer.end_run(state)?;
                }
                *engine = *anew;
                feed.begin(engine.info()).map_err(Failure::fault)?;
                return Ok(true);
            }
            // Whoever types can say it otherwise; a script is not to go on as if it had been said.
            Err(why) if lines.is_asked() && why.is_input() => remark(&why.to_string()),
            Err(why) => return Err(setup::failure(&why)),
        }
    }
    Ok(false)
}

fn drive(
    engine: &mut Engine,
    feed: &mut Feed,
    printer: &mut Printer<'_>,
    pace: Option<f64>,
    interrupted: &AtomicBool,
) -> Result<(), Failure> {
    let mut due = Instant::now();
    loop {
        let stopped = interrupted.load(Ordering::Relaxed);
        let step = if stopped { engine.stop() } else { engine.step() };
        let Some(step) = step.map_err(|e| setup::failure(&e))? else { return Ok(()) };
        let step = feed.step(step).map_err(Failure::fault)?;
        printer.step(&step, engine)?;
        if let Some(pace) = pace {
            due += Duration::from_secs_f64(1.0 / pace);
            while Instant::now() < due && !interrupted.load(Ordering::Relaxed) {
                std::thread::sleep(
                    due.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)),
                );
            }
        }
    }
}

struct Printer<'a> {
    out: io::StdoutLock<'a>,
    format: Output,
    /// The text so far, up to its last whole character.
    text: TextStream,
    /// Nothing was written since an answer's end.
    line_is_ended: bool,
    /// Why the run is on its device, if nobody named one.
    chosen: Option<String>,
}

impl Printer<'_> {
    fn begin(&mut self, engine: &Engine) -> Result<(), Failure> {
        if self.format == Output::Plain {
            let info = engine.info();
            let s = &info.settings;
            let read = if s.read.is_empty() { "none" } else { &s.read };
            let merge = if s.merge.is_empty() { String::new() } else { format!(", merge {}", s.merge) };
            let why = self.chosen.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
            self.line(&format!(
                "model {}, device {}{why}, policy {}, read set {read}{merge}, prompt {} tokens",
                info.model.name, s.device, s.policy, info.prompt_tokens
            ))?;
            self.line(&format!("repeat: {}", info.command()))?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step, engine: &Engine) -> Result<(), Failure> {
        match self.format {
            Output::Json => json::print_step(&mut self.out, step),
            Output::Plain => self.line(&plain(step)),
            Output::Text => {
                for drawn in step.seqs.iter().filter(|s| s.seq == 0).filter_map(|s| s.sampled.as_ref()) {
                    // What ends an answer is no part of it.
                    if !engine.ends(drawn.id) {
                        let whole = self.text.push(&drawn.piece.0);
                        self.show(&whole)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Writes text that holds no part of a character.
    fn show(&mut self, text: &[u8]) -> Result<(), Failure> {
        self.line_is_ended &= text.is_empty();
        let written = if io::stdout().is_terminal() {
            write!(self.out, "{}", text::safe(text, Symbols::Block))
        } else {
            self.out.write_all(text)
        };
        written.and_then(|()| self.out.flush()).map_err(|e| output(&e))
    }

    /// An answer is over, the conversation is not.
    fn end_answer(&mut self) -> Result<(), Failure> {
        let rest = self.text.finish();
        if self.format == Output::Text {
            self.show(&rest)?;
            writeln!(self.out).and_then(|()| self.out.flush()).map_err(|e| output(&e))?;
            self.line_is_ended = true;
        }
        Ok(())
    }

    /// A run is over, and another goes on with the conversation.
    fn end_run(&mut self, state: &State) -> Result<(), Failure> {
        if self.format == Output::Json {
            json::print_summary(&mut self.out, &state.summary())
        } else {
            Ok(())
        }
    }

    fn end(&mut self, state: &State) -> Result<(), Failure> {
        let summary = state.summary();
        match self.format {
            Output::Json => json::print_summary(&mut self.out, &summary),
            Output::Plain => facts(&summary).iter().try_for_each(|line| self.line(line)),
            Output::Text => {
                let rest = self.text.finish();
                self.show(&rest)?;
                if !self.line_is_ended {
                    writeln!(self.out).map_err(|e| output(&e))?;
                }
                for line in facts(&summary) {
                    remark(&line);
                }
                Ok(())
            }
        }
    }

    fn line(&mut self, line: &str) -> Result<(), Failure> {
        writeln!(self.out, "{}", text::safe(line.as_bytes(), Symbols::Ascii)).map_err(|e| output(&e))
    }
}

/// One step in one line.
fn plain(step: &Step) -> String {
    let mut facts: Vec<String> = step.seqs.iter().map(plain_part).collect();
    let moved: u64 = step.traffic.iter().map(|t| t.h2d_bytes).sum();
    if moved > 0 {
        facts.push(format!("{} from the host", number::bytes(moved).trim()));
    }
    facts.push(number::duration(step.wall_ns, Symbols::Ascii).trim().to_owned());
    format!("step {}: {}", step.step, facts.join("; "))
}

fn plain_part(part: &SeqStep) -> String {
    let mut facts = vec![match part.fed.first().map(|f| f.origin) {
        Some(Origin::Prompt) => format!("prompt, {} tokens", part.fed.len()),
        Some(Origin::Question) => format!("question, {} tokens", part.fed.len()),
        Some(Origin::Generated) if part.stage == Stage::Decode => "token".into(),
        Some(Origin::Turn | Origin::Generated) => format!("turn, {} tokens", part.fed.len()),
        None => "nothing fed".into(),
    }];
    let victims: usize = part.evictions.iter().map(|e| e.positions.len()).sum();
    if victims > 0 {
        facts.push(format!("{victims} evicted"));
    }
    let merged: u64 = part.merges.iter().map(|merge| u64::from(merge.merged)).sum();
    if merged > 0 {
        facts.push(format!("{merged} merged over the KV heads"));
    }
    if let Some(drawn) = &part.sampled {
        facts.push(drawn_in_words(&drawn.piece.0));
    }
    if let Some(finish) = part.finish {
        facts.push(format!("ended: {}", finish.words()));
    }
    facts.join(", ")
}

/// A token as a line can say it: one that is not text by itself, as the bytes it is.
fn drawn_in_words(piece: &[u8]) -> String {
    match std::str::from_utf8(piece) {
        Ok(text) => format!("drew {text:?}"),
        Err(_) => format!("drew part of a character, bytes {piece:02x?}"),
    }
}

/// What the twin said, and what it took.
fn twin_facts(s: &ShadowSummary) -> [String; 2] {
    let figure = |x: Option<f64>| {
        x.map_or_else(|| "-".into(), |x| number::decimal(x, Symbols::Ascii).trim().to_owned())
    };
    let share = s.agreement.map_or_else(|| "-".into(), |x| format!("{:.1} %", x * 100.0));
    [
        format!(
            "beside the full cache: mean KL {} nats, same likeliest token {share}, perplexity {} against {} ({}, {} draws), \
             regret {} (measured)",
            figure(s.mean_kl),
            figure(s.perplexity),
            figure(s.twin_perplexity),
            s.provenance.word(),
            s.judged,
            figure(Some(s.regret))
        ),
        format!(
            "its twin (measured): {}, {}, in none of the other figures but the wall clock's",
            number::duration(s.twin_ns, Symbols::Ascii).trim(),
            number::bytes(s.twin_bytes).trim()
        ),
    ]
}

/// The summary in lines.
fn facts(s: &Summary) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(right) = s.right {
        lines.push(format!("answer: {}", if right { "right" } else { "wrong" }));
    }
    let rate = s.tokens_per_s.map_or_else(|| "-".into(), |r| format!("{r:.1}"));
    if s.turns.len() > 1 {
        lines.push(format!("{} turns on the same cache", s.turns.len()));
    }
    lines.push(format!(
        "{} tokens in {} steps, {rate} tokens/s (derived), {} victims (measured), policy {}{}",
        s.token_ids.len(),
        s.steps,
        s.victims,
        s.policy,
        if s.read.is_empty() { String::new() } else { format!(", read set {}", s.read) }
    ));
    let tiers: Vec<String> = s
        .resident_bytes
        .iter()
        .map(|(tier, b)| {
            format!("{tier} {} ({} live)", number::bytes(b.allocated).trim(), number::bytes(b.live).trim())
        })
        .collect();
    lines.push(format!("cache (measured): {}", tiers.join(", ")));
    if let Some(coding) = &s.coding {
        let percent = |part: &CodedPart| {
            part.relative_error.map_or_else(|| "-".into(), |e| format!("{:.2} %", e * 100.0))
        };
        lines.push(format!(
            "{} pages: relative error of keys {}, of values {} (measured, {} and {} rows in codes)",
            coding.kv_dtype,
            percent(&coding.k),
            percent(&coding.v),
            coding.k.rows,
            coding.v.rows
        ));
    }
    if let Some(merging) = &s.merging {
        let MergedPart { merged, apart, k_drift, v_drift, saved_bytes_modelled } = merging.all;
        let percent =
            |drift: Option<f64>| drift.map_or_else(|| "-".into(), |d| format!("{:.2} %", d * 100.0));
        let saved = match saved_bytes_modelled {
            0 => String::new(),
            bytes => format!("; sharing would save {} (modelled)", number::bytes(bytes).trim()),
        };
        lines.push(format!(
            "merge {}: {merged} merged, {apart} not, over the KV heads; rows moved by {} (keys) and {} (values) of their \
             length (measured){saved}",
            merging.rule,
            percent(k_drift),
            percent(v_drift)
        ));
    }
    if let Some(dropped) = s.mass_dropped {
        lines.push(format!(
            "read set: {} pulled from the host (measured), {:.2} % of the attention mass not read in the last step (derived)",
            number::bytes(s.traffic_bytes.host_to_device).trim(),
            dropped * 100.0
        ));
    }
    if let Some(shadow) = &s.shadow {
        lines.extend(twin_facts(shadow));
    }
    let l = &s.latency_ns;
    lines.push(format!(
        "first token {}, per token p50 {} p99 {}, end to end {} (measured, engine time); observing took {:.2} % (derived)",
        number::duration(l.time_to_first_token.p50, Symbols::Ascii).trim(),
        number::duration(l.per_token.p50, Symbols::Ascii).trim(),
        number::duration(l.per_token.p99, Symbols::Ascii).trim(),
        number::duration(l.end_to_end.p50, Symbols::Ascii).trim(),
        s.probe_overhead * 100.0
    ));
    if s.dropped_samples + s.gap_steps > 0 {
        lines.push(format!("dropped: {} attention pictures, {} steps", s.dropped_samples, s.gap_steps));
    }
    lines.push(format!("state {}", s.state_hash));
    lines
}
