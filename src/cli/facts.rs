//! Verbs that print facts: recordings, models, policies, themes, keys, configuration, completions, the manual.

use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use serde::Serialize;
use serde_json::json;

use super::args::{Args, ConfigArgs, InspectArgs, ListArgs, RepairArgs, VerifyArgs};
use super::footprint;
use super::json::print_facts;
use super::look;
use super::player;
use super::{Failure, output};
use crate::app::{COMMANDS, Keymap};
use crate::event::ModelCard;
use crate::model::{self, Footprint};
use crate::policy::REGISTRY;
use crate::trace::{self, Recording, Report};
use crate::ui::number;
use crate::ui::text;
use crate::ui::theme::{Symbols, Theme};

/// Lines to standard output; what a file put into them is made harmless.
pub(super) fn say(lines: &[String]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for line in lines {
        writeln!(out, "{}", text::safe(line.as_bytes(), Symbols::Ascii)).map_err(|e| output(&e))?;
    }
    Ok(())
}

/// `kvista inspect`.
pub(super) fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let path = Path::new(&args.what);
    if args.what == "demo" && !path.exists() {
        let footprint =
            Footprint::parse("the embedded config.json", model::demo::CONFIG).map_err(Failure::input)?;
        return footprint::print_footprint(&args.what, &footprint, args);
    }
    if path.is_dir() {
        return footprint::print(&path.join("config.json"), args);
    }
    if model::is_gguf(path) {
        let config = model::gguf_config(path).map_err(Failure::input)?;
        let footprint = Footprint::parse(&args.what, &config).map_err(Failure::input)?;
        return footprint::print_footprint(&args.what, &footprint, args);
    }
    if path.extension().is_some_and(|e| e == "json") {
        return footprint::print(path, args);
    }
    let recording = Recording::open(path).map_err(Failure::input)?;
    let run = recording.run();
    let bounds = recording.bounds();
    if args.json {
        return print_facts(&json!({
            "file": args.what, "bytes": recording.bytes(), "steps": recording.steps(),
            "first_step": bounds.map(|b| b.0), "last_step": bounds.map(|b| b.1),
            "keyframes": recording.keyframes().len(), "gaps": recording.gaps(),
            "complete": recording.complete(), "run": run, "command": run.command(),
        }));
    }
    let (first, last) = bounds.unwrap_or((0, 0));
    let has = &run.has;
    let mut lines = vec![
        format!("{}: {} by {}", args.what, number::bytes(recording.bytes()).trim(), run.tool),
        format!(
            "steps {first} to {last} ({}), {} keyframes, {} gaps, {}",
            recording.steps(),
            recording.keyframes().len(),
            recording.gaps().len(),
            if recording.complete() { "complete".into() } else { recording.ending().to_string() }
        ),
        format!("model {}, prompt {} tokens", run.model.name, run.prompt_tokens),
        format!(
            "has decisions: {}, attention rows: {} ({})",
            if has.decisions { "yes" } else { "no" },
            has.rows,
            if has.rows_of_full_cache { "of a full cache" } else { "of an evicting cache" }
        ),
        format!("repeat: {}", run.command()),
    ];
    lines.extend(card_lines(&run.model));
    say(&lines)
}

/// K and V of one token in all layers: `2 * layers * kv_heads * head_dim * element bytes`.
fn bytes_per_token(card: &ModelCard, element_bytes: u64) -> u64 {
    2 * u64::from(card.layers) * u64::from(card.kv_heads) * u64::from(card.head_dim) * element_bytes
}

fn card_lines(c: &ModelCard) -> Vec<String> {
    let per_token = |size| bytes_per_token(c, size);
    let whole = |size| number::bytes(per_token(size) * u64::from(c.context));
    vec![
        format!(
            "{}: {} layers, {} query heads, {} KV heads, head size {}, width {}, vocabulary {}, context {}",
            c.family, c.layers, c.heads, c.kv_heads, c.head_dim, c.hidden, c.vocab, c.context
        ),
        format!(
            "KV cache (derived: 2 x layers x KV heads x head size x element): f32 {} per token, {} at full context; f16 {} and {}",
            number::bytes(per_token(4)).trim(),
            whole(4).trim(),
            number::bytes(per_token(2)).trim(),
            whole(2).trim()
        ),
    ]
}

/// What `verify` found, with what folding the steps showed.
#[derive(Serialize)]
struct Verified {
    #[serde(flatten)]
    report: Report,
    /// Keyframes that equal the folded state.
    keyframes_equal: usize,
    /// After the last step.
    state_hash: Option<String>,
}

/// `kvista verify`.
pub(super) fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let mut report = trace::verify(&args.file).map_err(Failure::input)?;
    let recording = Recording::open(&args.file).map_err(Failure::input)?;
    let (mut equal, mut hash) = (0, None);
    if let Some((_, last)) = recording.bounds() {
        let run = std::sync::Arc::new(recording.run().clone());
        let keyframes: Vec<_> = recording.keyframes().collect();
        let mut differing = Vec::new();
        let folded = player::fold(&recording, last, |step, state| {
            if keyframes.binary_search(&step.step).is_ok() {
                let keyframe = recording.keyframe_at_or_before(step.step).map_err(Failure::input)?;
                let kept =
                    keyframe.and_then(|(_, b)| crate::state::State::from_keyframe(run.clone(), &b).ok());
                if kept.is_some_and(|kept| kept.hash == state.hash) {
                    equal += 1;
                } else {
                    differing
                        .push(format!("the keyframe of step {} differs from the folded state", step.step));
                }
            }
            Ok(())
        });
        match folded {
            Ok(state) => hash = Some(state.hash.to_string()),
            Err(Failure::Input(why) | Failure::Fault(why)) => report.problems.push(why),
            Err(Failure::Check | Failure::Unread) => {}
        }
        report.problems.extend(differing);
    }
    let sound = report.is_sound();
    if args.json {
        print_facts(&Verified { report, keyframes_equal: equal, state_hash: hash })?;
    } else {
        let mut lines = report_lines(&report);
        lines.push(format!("{equal} keyframes equal the folded state"));
        lines.extend(hash.map(|hash| format!("state {hash}")));
        lines.push(if sound {
            "sound".into()
        } else {
            "NOT SOUND: kvista repair saves what is whole".into()
        });
        say(&lines)?;
    }
    if sound { Ok(()) } else { Err(Failure::Check) }
}

/// `kvista repair`.
pub(super) fn repair(args: &RepairArgs) -> Result<(), Failure> {
    let report = trace::repair(&args.file, &args.output).map_err(Failure::input)?;
    if args.json {
        return print_facts(&report);
    }
    let mut lines = report_lines(&report);
    lines.push(format!("saved to {}", args.output.display()));
    say(&lines)
}

fn report_lines(r: &Report) -> Vec<String> {
    let range = match (r.first_step, r.last_step) {
        (Some(first), Some(last)) => format!("steps {first} to {last}"),
        _ => "no whole step".into(),
    };
    let mut lines = vec![format!(
        "{}: {range}, {} victims, {} attention pictures, {} keyframes, {} chunks",
        r.file, r.victims, r.pictures, r.keyframes, r.chunks
    )];
    lines.extend(
        r.gaps
            .iter()
            .map(|g| format!("gap: steps {} to {}: {}", g.from_step, g.to_step.saturating_sub(1), g.reason)),
    );
    lines.extend(r.problems.iter().map(|p| format!("problem: {p}")));
    lines
}

/// `kvista policies`.
pub(super) fn policies(args: &ListArgs) -> Result<(), Failure> {
    if args.json {
        let all: Vec<_> = REGISTRY
            .iter()
            .map(|e| {
                json!({
                    "name": e.name, "kind": e.what(), "title": e.title, "doc": e.doc,
                    "source": { "paper": e.source.paper, "arxiv": e.source.arxiv, "at": e.source.at,
                                "evidence": e.source.evidence.words() },
                    "source_defaults": e.source_defaults, "acts": e.acts,
                    "granularity": e.granularity.words(), "needs": e.needs().names(),
                    "params": e.params.iter().map(|p| json!({
                        "name": p.name, "range": p.kind.range(), "default": p.default.to_string(),
                        "doc": p.doc, "live": p.live,
                    })).collect::<Vec<_>>(),
                    "deviations": e.deviations,
                })
            })
            .collect();
        return print_facts(&json!({ "policies": all }));
    }
    let mut lines = Vec::new();
    for e in REGISTRY {
        lines.push(format!("{} ({}): {}", e.name, e.what(), e.title));
        lines.push(format!("    {}", e.doc));
        let source: Vec<String> = [
            e.source.paper.to_owned(),
            if e.source.arxiv.is_empty() { String::new() } else { format!("arXiv {}", e.source.arxiv) },
            e.source.at.to_owned(),
            format!("rule {}", e.source.evidence.words()),
        ]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect();
        lines.push(format!("    source: {}", source.join("; ")));
        if !e.source_defaults.is_empty() {
            lines.push(format!("    defaults there: {}", e.source_defaults));
        }
        let needs = e.needs().names();
        let needs = match needs.is_empty() {
            true if e.is_wrapper() => "what that rule needs".into(),
            true => "no accumulators".into(),
            false => needs.join(", "),
        };
        lines.push(format!("    acts {}; decides {}; needs {needs}", e.acts, e.granularity.words()));
        for p in e.params {
            let live = if p.live { "live" } else { "re-run" };
            lines.push(format!("      {}={} ({}; {live}): {}", p.name, p.default, p.kind.range(), p.doc));
        }
        lines.extend(e.deviations.iter().map(|d| format!("    differs: {d}")));
        lines.push(String::new());
    }
    lines.pop();
    say(&lines)
}

/// `kvista themes`.
pub(super) fn themes(args: &ListArgs) -> Result<(), Failure> {
    let names = look::theme_names();
    let built_in = |name: &str| Theme::built_in(name).is_ok();
    if args.json {
        let all: Vec<_> = names.iter().map(|n| json!({ "name": n, "built_in": built_in(n) })).collect();
        return print_facts(&json!({ "themes": all }));
    }
    say(&names
        .iter()
        .map(|n| format!("{n}{}", if built_in(n) { "" } else { " (yours)" }))
        .collect::<Vec<_>>())
}

/// `kvista keys`: the bindings in force, remapped ones included.
pub(super) fn keys(args: &ListArgs) -> Result<(), Failure> {
    let keymap = look::read_config()?.keymap().map_err(Failure::Input)?;
    if args.json {
        let all: Vec<_> = COMMANDS
            .iter()
            .map(|c| {
                json!({ "command": c.name, "keys": chords(&keymap, c.name), "where": c.context.words(),
                        "title": c.title, "doc": c.doc })
            })
            .collect();
        return print_facts(&json!({ "keys": all }));
    }
    let mut lines = Vec::new();
    let mut context = None;
    for c in COMMANDS {
        if context != Some(c.context) {
            context = Some(c.context);
            lines.push(format!("{}:", c.context.words()));
        }
        lines.push(format!("  {:<22} {:<22} {}", chords(&keymap, c.name).join(" "), c.name, c.doc));
    }
    say(&lines)
}

fn chords(keymap: &Keymap, command: &str) -> Vec<String> {
    keymap.keys_of(command).map(ToString::to_string).collect()
}

/// `kvista config`.
pub(super) fn config(args: &ConfigArgs) -> Result<(), Failure> {
    let path = look::config_path();
    let shown = path.as_ref().map_or_else(|| "nowhere: HOME is not set".into(), |p| p.display().to_string());
    match args.what.as_str() {
        "default" => {
            let mut out = io::stdout().lock();
            out.write_all(crate::app::DEFAULT_CONFIG.as_bytes()).map_err(|e| output(&e))
        }
        "check" => {
            let exists = path.is_some_and(|p| p.exists());
            look::read_config()?;
            let state = if exists { "right" } else { "not there: every default is in force" };
            say(&[format!("{shown}: {state}")])
        }
        _ => say(&[shown]),
    }
}

/// `kvista completions`.
pub(super) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "kvista", &mut bytes);
    io::stdout().lock().write_all(&bytes).map_err(|e| output(&e))
}

/// `kvista man`.
pub(super) fn man() -> Result<(), Failure> {
    let mut bytes = Vec::new();
    clap_mangen::Man::new(Args::command()).render(&mut bytes).map_err(Failure::fault)?;
    io::stdout().lock().write_all(&bytes).map_err(|e| output(&e))
}
