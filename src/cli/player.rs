//! `kvista replay`: a recording through the same reducers and the same views.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::args::{FrameFormat, Look, ReplayArgs};
use super::look::Appearance;
use super::{Failure, json, output, screen};
use crate::app::{App, Cursor, Launch, Recorded, View};
use crate::event::{Step, StepId};
use crate::state::State;
use crate::trace::Recording;
use crate::ui;
use crate::ui::theme::Symbols;

/// Largest frame drawn without a terminal.
const MAX_SIDE: u16 = 1_000;

/// A recording with at least one whole step.
fn open(path: &Path) -> Result<Recording, Failure> {
    let recording = Recording::open(path).map_err(Failure::input)?;
    if recording.steps() == 0 {
        return Err(Failure::Input(format!("{}: a recording without a whole step", path.display())));
    }
    Ok(recording)
}

/// Folds a recording from its first step through `last`; `each` sees every step with the state after it. Where it begins
/// in mid-run or has a gap, the keyframe there takes over.
pub(super) fn fold(
    recording: &Recording,
    last: StepId,
    mut each: impl FnMut(&Step, &State) -> Result<(), Failure>,
) -> Result<State, Failure> {
    let run = Arc::new(recording.run().clone());
    let file = recording.file().to_owned();
    let damaged = |why: String| Failure::Input(format!("{file}: {why}; kvista verify says more"));
    let mut state = State::new(Arc::clone(&run)).map_err(|e| damaged(e.to_string()))?;
    for step in recording.read(0..last.saturating_add(1)) {
        let step = step.map_err(Failure::input)?;
        let expected = state.step.map_or(0, |s| s + 1);
        if step.step != expected {
            let keyframe =
                recording.keyframe_at_or_before(step.step.saturating_sub(1)).map_err(Failure::input)?;
            let bytes =
                keyframe.filter(|(at, _)| at + 1 == step.step).map(|(_, bytes)| bytes).ok_or_else(|| {
                    damaged(format!(
                        "steps {expected} to {} are missing, and no keyframe stands for them",
                        step.step - 1
                    ))
                })?;
            state = State::from_keyframe(Arc::clone(&run), &bytes).map_err(|e| damaged(e.to_string()))?;
        }
        state.fold(&step).map_err(|e| damaged(e.to_string()))?;
        each(&step, &state)?;
    }
    Ok(state)
}

/// `kvista replay`.
pub(super) fn replay(args: &ReplayArgs, look: &Look) -> Result<(), Failure> {
    let recording = open(&args.file)?;
    let ids: Vec<StepId> = recording.step_ids().collect();
    let at = args.at.map(|at| resolve(at, &ids)).transpose()?;
    let headless = args.headless || !screen::is_terminal();
    if headless && args.format == FrameFormat::Json {
        return lines(&recording, at.or(ids.last().copied()).unwrap_or(0));
    }
    let at = at.or_else(|| headless.then(|| ids.last().copied()).flatten());
    let name = args.file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let complete = recording.complete();
    let appearance = Appearance::resolve(look, !headless)?;
    let launch = Launch {
        themes: super::look::theme_names(),
        theme: appearance.theme.clone(),
        keymap: appearance.config.keymap().map_err(Failure::Input)?,
        ..Launch::default()
    };
    let mut app =
        App::replay(name, complete, Box::new(Recorded::new(recording)), launch).map_err(Failure::Input)?;
    place(&mut app, args, at)?;
    if headless { frame(&mut app, args, look, &appearance) } else { screen::replay(app, appearance) }
}

/// Step ids as typed: negative counts from the end.
fn resolve(at: i64, ids: &[StepId]) -> Result<StepId, Failure> {
    let id = if at < 0 {
        usize::try_from(-at).ok().and_then(|back| ids.len().checked_sub(back)).map(|i| ids[i])
    } else {
        u64::try_from(at).ok().filter(|id| ids.binary_search(id).is_ok())
    };
    id.ok_or_else(|| {
        let (first, last) = (ids.first().unwrap_or(&0), ids.last().unwrap_or(&0));
        Failure::Input(format!("--at {at}: the recording has steps {first} to {last}"))
    })
}

/// Puts the application where the arguments say.
fn place(app: &mut App, args: &ReplayArgs, at: Option<StepId>) -> Result<(), Failure> {
    let model = &app.run.as_ref().map(|run| run.model.clone()).unwrap_or_default();
    if u32::from(args.layer) >= model.layers {
        return Err(Failure::Input(format!(
            "--layer {}: the model has layers 0 to {}",
            args.layer,
            model.layers - 1
        )));
    }
    if u32::from(args.head) >= model.heads {
        return Err(Failure::Input(format!(
            "--head {}: the model has heads 0 to {}",
            args.head,
            model.heads - 1
        )));
    }
    let view = View::ALL.into_iter().find(|v| v.name() == args.view).unwrap_or_default();
    let position = args.token.or(app.cursor.position);
    app.look_at(view, at, Cursor { seq: 0, position, layer: args.layer, head: args.head });
    Ok(())
}

/// One frame of one view, to standard output.
fn frame(app: &mut App, args: &ReplayArgs, look: &Look, appearance: &Appearance) -> Result<(), Failure> {
    let (width, height) = size(&args.size)?;
    let area = Rect::new(0, 0, width, height);
    let styles = match args.format {
        FrameFormat::Svg | FrameFormat::Ansi => appearance.picture(look)?,
        FrameFormat::Text | FrameFormat::Json => appearance.styles("mono")?,
    };
    let buf = paint(app, area, &styles);
    let text = match args.format {
        FrameFormat::Text | FrameFormat::Json => ui::export::text(&buf),
        FrameFormat::Ansi => ui::export::ansi(&buf),
        FrameFormat::Svg => ui::export::svg(&buf, styles.page(), &title(app)),
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| output(&e))
}

/// Draws twice: what the first drawing tells about the room there is decides which lines are shown.
pub(super) fn paint(app: &mut App, area: Rect, styles: &ui::theme::Styles) -> Buffer {
    let mut buf = Buffer::empty(area);
    let viewport = ui::draw::render(&mut buf, area, app, styles);
    app.update(crate::app::Msg::Viewport(viewport));
    app.update(crate::app::Msg::Tick { now_ns: 1 });
    buf.reset();
    ui::draw::render(&mut buf, area, app, styles);
    buf
}

/// Title of an exported picture.
pub(super) fn title(app: &App) -> String {
    let step = app.step().map_or_else(String::new, |s| format!(", step {s}"));
    let name = match &app.source {
        crate::app::SourceKind::Live => "live".into(),
        crate::app::SourceKind::Replay { name, .. } => ui::text::safe(name.as_bytes(), Symbols::Ascii),
    };
    format!("kvista {}: {name}{step}", app.view.name())
}

fn size(text: &str) -> Result<(u16, u16), Failure> {
    let parsed = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    match parsed {
        Some((w, h)) if (1..=MAX_SIDE).contains(&w) && (1..=MAX_SIDE).contains(&h) => Ok((w, h)),
        _ => Err(Failure::Input(format!("--size {text}: use WIDTHxHEIGHT, each 1 to {MAX_SIDE}"))),
    }
}

/// Steps and summary, one object per line, as the run itself would have printed them.
fn lines(recording: &Recording, last: StepId) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let state = fold(recording, last, |step, _| json::print_step(&mut out, step))?;
    json::print_summary(&mut out, &state.summary())
}
