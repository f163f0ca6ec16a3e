//! Who runs what where, how far it is, how fast, at what cost: on every screen, honest about pauses and losses.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::app::{SourceKind, View};
use crate::engine::Status;
use crate::event::{Provenance, Stage};
use crate::ui::draw::{Pen, Scene};
use crate::ui::number;
use crate::ui::text;
use crate::ui::theme::{Role, tier_role};

/// One or two lines; `with_view` names the view where there are no tabs.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, with_view: bool) {
    if area.is_empty() {
        return;
    }
    let first = Rect { height: 1, ..area };
    let chips = chips(scene);
    let width = chips.iter().map(|(words, _)| text::width(words) as u16 + 1).sum::<u16>();
    let room = area.width.saturating_sub(width);
    identity(&mut Pen::new(buf, Rect { width: room, ..first }, scene.styles), scene, with_view);
    let mut pen = Pen::new(buf, first, scene.styles);
    pen.column(room);
    for (words, role) in chips {
        pen.put(" ", Role::Text).put(&words, role);
    }
    if area.height >= 2 {
        facts(buf, Rect { y: area.y + 1, height: 1, ..area }, scene);
    }
}

/// The nine views and their digits; names get shorter with the screen, down to that of the present one.
pub(super) fn tabs(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let mut pen = Pen::new(buf, area, scene.styles);
    for (i, view) in View::ALL.into_iter().enumerate() {
        let present = view == scene.app.view;
        let digit = i + 1;
        let words = match area.width {
            95.. => format!(" {digit} {} ", title(view)),
            73.. => format!(" {digit} {} ", short_title(view)),
            _ if present => format!(" {digit} {} ", title(view)),
            _ => format!(" {digit} "),
        };
        pen.put(&words, if present { Role::Cursor } else { Role::Dim });
    }
}

/// A view's name with a capital.
fn title(view: View) -> String {
    let name = view.name();
    let mut letters = name.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

const fn short_title(view: View) -> &'static str {
    match view {
        View::Overview => "Over",
        View::Blocks => "Blocks",
        View::Attention => "Attn",
        View::Evictions => "Evict",
        View::Traffic => "Traf",
        View::Latency => "Lat",
        View::Log => "Log",
        View::Text => "Text",
        View::Policy => "Pol",
    }
}

/// One line for a screen with no room for anything else.
pub(super) fn status_only(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let line = Rect { height: 1, ..area };
    let mut pen = Pen::new(buf, line, scene.styles);
    let (words, role) = status(scene);
    pen.put(&words, role).put(" ", Role::Text);
    if let Some(state) = scene.state() {
        if let Some(step) = state.step {
            pen.put(&format!("s{step} "), Role::Text);
        }
        if let Some(speed) = state.latency.tokens_per_s() {
            pen.put(&format!("{speed:.0}tok/s "), Role::Text);
        }
    }
    policy(&mut pen, scene);
}

fn identity(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, with_view: bool) {
    if with_view {
        pen.put(&format!(" {} ", title(scene.app.view)), Role::Cursor).put(" ", Role::Text);
    } else {
        pen.put(" kvista ", Role::Title);
    }
    let Some(run) = scene.run() else { return };
    pen.foreign(&run.model.name, Role::Accent).dot();
    policy(pen, scene);
    pen.dot().foreign(&run.settings.device, Role::Text);
    let Some(state) = scene.state() else { return };
    if let Some(seq) = scene.seq() {
        pen.dot();
        let turn = seq.turn_starts().len();
        if turn > 1 {
            pen.put(&format!("turn {turn} "), Role::Text);
        }
        match seq.stage {
            // How long a turn is, is not known before it is fed.
            Stage::Prefill if turn > 1 => pen.put("prefill", Role::Text),
            Stage::Prefill => {
                pen.put(&format!("prefill {}/{}", seq.tokens.len(), run.prompt_tokens), Role::Text)
            }
            Stage::Decode => {
                pen.put(&format!("decode {}/{}", seq.answered(), run.settings.max_tokens), Role::Text)
            }
        };
        if run.settings.batch > 1 {
            pen.put(&format!(" seq {} of {}", seq.seq, run.settings.batch), Role::Text);
        }
    }
    if let Some(step) = state.step {
        pen.dot().put(&format!("step {step}"), Role::Text);
        let newest = scene.app.timeline.last().map(|s| s.step).filter(|&newest| newest > step);
        if let Some(newest) = newest {
            pen.put(&format!(" of {newest}"), Role::Dim);
        }
    }
    if let Some(speed) = state.latency.tokens_per_s() {
        pen.dot().put(
            number::rate(speed, scene.symbols()).trim_start_matches(' ').trim_end_matches("/s"),
            Role::Text,
        );
        pen.figure(" tok/s", Provenance::Derived);
    }
}

/// Policy and read set as they are in force.
fn policy(pen: &mut Pen<'_, '_>, scene: &Scene<'_>) {
    let Some(run) = scene.run() else { return };
    match scene.policy() {
        Some(policy) => pen.put(&policy.to_string(), Role::Text),
        None => pen.foreign(&run.settings.policy, Role::Text),
    };
    match scene.read_set() {
        Some(read) => pen.put(" + ", Role::Dim).put(&read.to_string(), Role::Accent),
        None if !run.settings.read.is_empty() => {
            pen.put(" + ", Role::Dim).foreign(&run.settings.read, Role::Accent)
        }
        None => pen,
    };
    if let Some(merging) = scene.merging() {
        pen.put(" + ", Role::Dim).put(&merging.to_string(), Role::Merged);
    }
}

/// What must never be overlooked, at the right edge: source, recording, and whether the picture moves.
fn chips(scene: &Scene<'_>) -> Vec<(String, Role)> {
    let app = scene.app;
    let mut chips = Vec::new();
    if let SourceKind::Replay { steps, complete, .. } = &app.source {
        let at = app.state.as_ref().and_then(|s| s.step).map_or(0, |s| s + 1);
        chips.push((format!("REPLAY {at}/{steps}"), Role::Accent));
        if !complete {
            chips.push(("CUT OFF".into(), Role::Warn));
        }
    }
    if app.recording.is_some() {
        chips.push((scene.symbols().pick("● REC", "* REC").into(), Role::Bad));
    }
    if app.frozen {
        chips.push(("FROZEN".into(), Role::Warn));
    } else if app.time.at.is_some() && matches!(app.source, SourceKind::Live) {
        chips.push(("LOOKING BACK".into(), Role::Warn));
    }
    let (words, role) = status(scene);
    chips.push((format!("{words} "), role));
    chips
}

/// What the engine does, in a word or two.
fn status(scene: &Scene<'_>) -> (String, Role) {
    match &scene.app.status {
        Status::Loading { .. } => ("LOADING".into(), Role::Warn),
        Status::Reference => ("REFERENCE RUN".into(), Role::Warn),
        Status::Running => match scene.app.pace {
            Some(pace) => (format!("RUN at {} steps/s", trimmed(pace)), Role::Good),
            None => ("RUN".into(), Role::Good),
        },
        Status::Paused => ("PAUSED".into(), Role::Warn),
        Status::Finished(_) => ("DONE".into(), Role::Good),
        Status::Failed(_) => ("FAILED".into(), Role::Bad),
        Status::Listening => ("LISTENING".into(), Role::Warn),
        Status::Recording { .. } | Status::Refused(_) | Status::Said { .. } | Status::Unsaid(_) => {
            ("READY".into(), Role::Text)
        }
        Status::Gone => ("ENGINE GONE".into(), Role::Bad),
    }
}

fn trimmed(x: f64) -> String {
    if x == x.round() { format!("{x:.0}") } else { format!("{x:.2}") }
}

/// The second line: bytes by tier, what was not read, what observing costs and loses.
fn facts(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let Some(state) = scene.state() else {
        if let Status::Loading { what, .. } = &scene.app.status {
            Pen::new(buf, area, scene.styles).put(" loading ", Role::Dim).foreign(what, Role::Text);
        }
        return;
    };
    let mut pen = Pen::new(buf, area, scene.styles);
    pen.put(" ", Role::Text);
    for tier in &state.tiers {
        pen.put(tier.tier.name(), tier_role(tier.tier)).put(" ", Role::Text);
        pen.figure(&number::bytes(tier.allocated_bytes()), Provenance::Measured).put("  ", Role::Text);
    }
    if let Some(dropped) = state.mass_dropped() {
        pen.put("not read ", Role::Dim);
        pen.figure(&number::percent(f64::from(dropped), scene.symbols()), Provenance::Derived)
            .put("  ", Role::Text);
    }
    pen.put("probe ", Role::Dim);
    pen.figure(&number::percent(state.latency.probe_overhead(), scene.symbols()), Provenance::Derived);
    let (dropped, missed) =
        if area.width >= 110 { ("pictures dropped", "steps missed") } else { ("dropped", "missed") };
    loss(&mut pen, dropped, state.dropped_samples);
    loss(&mut pen, missed, state.gap_steps);
    let marks = [Provenance::Measured, Provenance::Sampled, Provenance::Derived, Provenance::Modelled];
    let width: usize = marks.iter().map(|m| m.word().len() + 3).sum();
    if usize::from(pen.room()) > width + 1 {
        pen.column(area.width - width as u16 - 1);
        for mark in marks {
            let span = scene.styles.mark(mark);
            pen.styled(&span.content, span.style)
                .put(" ", Role::Dim)
                .put(mark.word(), Role::Dim)
                .put(" ", Role::Dim);
        }
    }
}

/// A loss is quiet while there is none and loud when there is.
fn loss(pen: &mut Pen<'_, '_>, what: &str, count: u64) {
    pen.put("  ", Role::Text);
    if count == 0 {
        pen.put(what, Role::Dim).put(" 0", Role::Dim);
    } else {
        pen.put(&format!("{what} {count}"), Role::Warn);
    }
}
