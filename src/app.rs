//! Floor 5: what the person is doing. Messages come in, effects go out; views read the rest.
//!
//! [`App`] holds the shown [`State`] and everything a view needs to draw it: which view, which cursor, which range of
//! steps. [`App::update`] takes a [`Msg`] and returns [`Effect`]s for its caller to carry out. It does no I/O and reads no
//! clock: time comes in with [`Msg::Tick`], which is also due before each drawing, since lists are brought up to date by
//! it.
//!
//! # Keys
//!
//! [`COMMANDS`] is the one table of what can be done; dispatch, `?`, the footer, `kvista keys` and the remapping of the
//! configuration are made from it. Where it departs from what other tools do:
//!
//! - `Space` plays and pauses, live too: a run starts paused before its first decode step. The picture is frozen
//!   (capture goes on) by `Ctrl-f`, as in trippy.
//! - `.` at the live edge of a paused run takes one engine step; anywhere else it walks the recorded steps.
//! - `[` `]` go to the previous and next bookmark, or burst of evictions while there are no bookmarks.
//! - `o` is the sort column in lists, and swaps the ends while a range is being selected.
//! - `I` types the next turn: of the conversation with `--chat`, else text that the model goes on with.
//! - `P` types a prompt, `T` switches between the pace and none (live) or recorded time (replay).

pub mod command;
pub mod config;
pub mod filter;
pub mod filtered;
pub mod keymap;
pub mod line_edit;
pub mod log;
pub mod overlay;
pub mod params;
pub mod tape;
pub mod update;
pub mod victims;

mod compare;
mod editing;
mod intake;
mod motion;
mod story;
mod transport;
mod tuning;
mod turns;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
use std::collections::BTreeSet;
use std::sync::Arc;

pub use command::{COMMANDS, Command, Context};
pub use config::{Config, ConfigError, DEFAULT_TEXT as DEFAULT_CONFIG};
pub use filter::{Field, Filter};
pub use filtered::Filtered;
pub use keymap::{Chord, Key, Keymap};
pub use line_edit::LineEdit;
pub use log::{Log, LogKind, LogLine};
pub use overlay::{BookmarkRow, ExportKind, Overlay};
pub use params::{Origin, ParamPanel, ParamRow, Tunable};
pub use tape::{Recorded, StepStore, Tape};
pub use update::{Effect, Msg};
pub use victims::{VICTIM_COLUMNS, VictimList, VictimRow};

use crate::engine::{Prompt, Reference, Status};
use crate::event::{Head, Layer, Piece, Position, RunInfo, SeqId, Settings, StepId};
use crate::state::{History, State};

/// The nine views, in the order of their digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum View {
    /// Everything at a glance.
    #[default]
    Overview,
    /// The pool and the block tables.
    Blocks,
    /// Per-head attention.
    Attention,
    /// Who was lost and why.
    Evictions,
    /// V rows between host and device.
    Traffic,
    /// Histograms.
    Latency,
    /// What happened, line by line.
    Log,
    /// The sequence's own text, coloured by what the cache did to it.
    Text,
    /// The policy, its parameters and accumulators.
    Policy,
}

impl View {
    /// All views in order.
    pub const ALL: [Self; 9] = [
        Self::Overview,
        Self::Blocks,
        Self::Attention,
        Self::Evictions,
        Self::Traffic,
        Self::Latency,
        Self::Log,
        Self::Text,
        Self::Policy,
    ];

    /// Title and `--view` name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overview => "overview",
            Self::Blocks => "blocks",
            Self::Attention => "attention",
            Self::Evictions => "evictions",
            Self::Traffic => "traffic",
            Self::Latency => "latency",
            Self::Log => "log",
            Self::Text => "text",
            Self::Policy => "policy",
        }
    }

    /// Panes of the view in drawing order; the first has the focus at first.
    pub const fn panes(self) -> &'static [&'static str] {
        match self {
            Self::Overview => &["text", "blocks", "attention", "timeline"],
            Self::Blocks => &["tables", "pool", "token"],
            Self::Attention => &["row", "heads", "token"],
            Self::Evictions => &["victims", "timeline", "token"],
            Self::Traffic => &["layers", "timeline"],
            Self::Latency => &["phases", "layers", "quotes"],
            Self::Log => &["log"],
            Self::Text => &["text", "token"],
            Self::Policy => &["policy", "budget", "units"],
        }
    }
}

/// The one cursor that links all panes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Sequence looked at.
    pub seq: SeqId,
    /// Selected token.
    pub position: Option<Position>,
    /// Selected layer.
    pub layer: Layer,
    /// Selected query head; its KV head is `head / (heads / kv_heads)`.
    pub head: Head,
}

/// Which steps the time axes show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeAxis {
    /// First and last step shown, inclusive; `None` fits all.
    pub range: Option<(StepId, StepId)>,
    /// Step whose state is shown; `None` follows the live edge (the last step in a replay).
    pub at: Option<StepId>,
    /// Range being selected: (anchor, head).
    pub selection: Option<(StepId, StepId)>,
    /// Play this range again and again.
    pub looped: Option<(StepId, StepId)>,
}

/// Value scale of heat maps and histograms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// Proportional.
    Linear,
    /// Logarithmic.
    #[default]
    Log,
    /// By rank among the shown values.
    Rank,
}

/// Where the steps come from.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceKind {
    /// An engine in this process.
    Live,
    /// A recording.
    Replay {
        /// Shown name of the file.
        name: String,
        /// Steps in it.
        steps: u64,
        /// Whether it was finished properly.
        complete: bool,
    },
}

/// How the newest run differs from another, by generated token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// What it is compared with: `last run`, `full cache`.
    pub with: &'static str,
    /// Index of the first generated token that differs; `None` while all compared so far are equal.
    pub at: Option<usize>,
    /// Generated tokens compared.
    pub compared: usize,
    /// The other run's text from the difference on, at most a line; sanitise before drawing.
    pub theirs: String,
}

/// A finished or abandoned run, for comparison with the next.
#[derive(Clone, Debug, PartialEq)]
pub struct PastRun {
    /// Its settings.
    pub settings: Settings,
    /// Its prompt, without the question.
    pub prompt: String,
    /// Generated ids.
    pub ids: Vec<u32>,
    /// Generated pieces, index for index with `ids`; sanitise before drawing.
    pub pieces: Vec<Piece>,
    /// Whether it ran to its end.
    pub finished: bool,
    /// Whether the answer was right, where it is known.
    pub right: Option<bool>,
}

/// What the screen tells back about its size, so that motions fit what is drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Viewport {
    /// Tokens on a line of the text, about.
    pub tokens_per_line: u16,
    /// Rows of the focused list.
    pub rows: u16,
    /// Panes of the view as drawn, in drawing order: x, y, width, height in cells. A pane that is not drawn is empty.
    pub panes: Vec<[u16; 4]>,
}

/// What the program was started with.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Settings of the command line.
    pub settings: Settings,
    /// Steps per second; `None` is as fast as it goes.
    pub pace: Option<f64>,
    /// The prompt.
    pub prompt: Prompt,
    /// Names of the themes there are.
    pub themes: Vec<String>,
    /// The theme in force.
    pub theme: String,
    /// Whether the mouse is captured.
    pub mouse: bool,
    /// Bindings, remapped ones included.
    pub keymap: Keymap,
}

impl Default for Launch {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            pace: Some(params::DEFAULT_PACE),
            prompt: Prompt::default(),
            themes: Vec::new(),
            theme: String::new(),
            mouse: true,
            keymap: Keymap::default(),
        }
    }
}

/// Everything the views read.
pub struct App {
    /// Where the steps come from.
    pub source: SourceKind,
    /// What is shown; `None` until a run has begun.
    pub state: Option<Arc<State>>,
    /// The run under way or replayed.
    pub run: Option<Arc<RunInfo>>,
    /// Summary of all steps known, also those after the shown one.
    pub timeline: History,
    /// What the engine does; for a replay `Running` while it plays, else `Paused`.
    pub status: Status,
    /// Frozen: the picture stands still, capture goes on.
    pub frozen: bool,
    /// Steps per second; `None` is as fast as it goes, in a replay the recorded time.
    pub pace: Option<f64>,
    /// Factor on recorded time, where a replay plays that.
    pub speed: f64,
    /// Present view.
    pub view: View,
    /// Focused pane of the view, by its index in drawing order.
    pub pane: usize,
    /// The focused pane fills the screen.
    pub zoomed: bool,
    /// Layout preset, cycled by `|`.
    pub preset: u8,
    /// The cursor.
    pub cursor: Cursor,
    /// The time axis.
    pub time: TimeAxis,
    /// Bookmarked steps.
    pub bookmarks: BTreeSet<StepId>,
    /// Value scale.
    pub scale: Scale,
    /// Index of the colour ramp, cycled by `c`.
    pub ramp: usize,
    /// Column by which lists are sorted ([`VICTIM_COLUMNS`]), and whether in reverse.
    pub sort: (usize, bool),
    /// First line shown of a pane that is neither list nor picture; the lists have a selection of their own.
    pub scroll: usize,
    /// Path of the recording being written.
    pub recording: Option<String>,
    /// Runs before the present one, newest last.
    pub past: Vec<PastRun>,
    /// The full-cache answer to the present prompt.
    pub reference: Option<Reference>,
    /// How the newest run differs from the last one and from the full cache; empty before there is anything to compare.
    pub divergences: Vec<Divergence>,
    /// Whether the newest run's answer is right, where that is known already.
    pub right: Option<bool>,
    /// One line that leads a newcomer on; `None` once it is not needed.
    pub hint: Option<String>,
    /// One line about the last thing done or refused.
    pub notice: Option<String>,
    /// Settings as tuned by hand, in force from the next re-run (live parameters at once).
    pub pending: Settings,
    /// What `r` runs.
    pub prompt: Prompt,
    /// Whether it was typed here, not given on the command line.
    is_prompt_typed: bool,
    /// What lies on top of the view, the top one last.
    pub overlays: Vec<Overlay>,
    /// The query over the lists; empty for none.
    pub filter: Filter,
    /// Why the query being typed is refused.
    pub filter_error: Option<String>,
    /// Rows of the Evictions list.
    pub victims: VictimList,
    /// Lines of the Log.
    pub log: Log,
    /// The parameter panel.
    pub params: ParamPanel,
    /// Names of the themes there are.
    pub themes: Vec<String>,
    /// The theme in force.
    pub theme: String,
    /// Whether the mouse is captured.
    pub mouse: bool,
    /// What the screen told about its size.
    pub viewport: Viewport,
    /// Bindings in force.
    pub keymap: Keymap,
    /// Keys of a chord that is not complete yet.
    pub pending_keys: Vec<Key>,
    pending_since_ns: u64,
    tape: Tape,
    effects: Vec<Effect>,
    /// The engine's settings, as begun and tuned since; `None` without an engine.
    in_force: Option<Tunable>,
    now_ns: u64,
    /// Recorded time (or steps) played since the last step of a replay.
    played: transport::Playback,
    story: story::Story,
}

impl App {
    /// An application on an engine in this process.
    pub fn live(launch: Launch) -> Self {
        let status = Status::Loading { what: "model".to_owned(), done_bytes: 0, total_bytes: 0 };
        let mut app = Self::new(SourceKind::Live, Tape::live(), launch, status);
        app.refresh();
        app
    }

    /// An application on a recording, paused at its first step.
    ///
    /// # Errors
    /// One clear line when not even the last step can be shown.
    pub fn replay(
        name: String,
        complete: bool,
        store: Box<dyn StepStore>,
        launch: Launch,
    ) -> Result<Self, String> {
        let run = Arc::clone(store.run());
        let source = SourceKind::Replay { name, steps: store.step_ids().len() as u64, complete };
        let launch = Launch { settings: run.settings.clone(), ..launch };
        let mut app = Self::new(source, Tape::replay(store), launch, Status::Paused);
        app.run = Some(run);
        if let Some(last) = app.tape.last() {
            app.timeline = app.tape.state_at(last)?.history.clone();
        }
        app.show(app.tape.first());
        app.refresh();
        Ok(app)
    }

    fn new(source: SourceKind, tape: Tape, launch: Launch, status: Status) -> Self {
        let baseline = Tunable { settings: launch.settings.clone(), pace: launch.pace };
        Self {
            source,
            state: None,
            run: None,
            timeline: History::default(),
            status,
            frozen: false,
            pace: launch.pace,
            speed: 1.0,
            view: View::default(),
            pane: 0,
            zoomed: false,
            preset: 0,
            cursor: Cursor::default(),
            time: TimeAxis::default(),
            bookmarks: BTreeSet::new(),
            scale: Scale::default(),
            ramp: 0,
            sort: (0, false),
            scroll: 0,
            recording: None,
            past: Vec::new(),
            reference: None,
            divergences: Vec::new(),
            right: None,
            hint: None,
            notice: None,
            pending: launch.settings,
            prompt: launch.prompt,
            is_prompt_typed: false,
            overlays: Vec::new(),
            filter: Filter::default(),
            filter_error: None,
            victims: VictimList::default(),
            log: Log::default(),
            params: ParamPanel::new(baseline),
            themes: launch.themes,
            theme: launch.theme,
            mouse: launch.mouse,
            viewport: Viewport::default(),
            keymap: launch.keymap,
            pending_keys: Vec::new(),
            pending_since_ns: 0,
            tape,
            effects: Vec::new(),
            in_force: None,
            now_ns: 0,
            played: transport::Playback::default(),
            story: story::Story::default(),
        }
    }

    /// Whether the steps come from an engine in this process.
    pub fn is_live(&self) -> bool {
        self.source == SourceKind::Live
    }

    /// The overlay that hears the keys.
    pub fn overlay(&self) -> Option<&Overlay> {
        self.overlays.last()
    }

    /// Name of the focused pane.
    pub fn pane_name(&self) -> &'static str {
        let panes = self.view.panes();
        panes[self.pane.min(panes.len() - 1)]
    }

    /// The shown step.
    pub fn step(&self) -> Option<StepId> {
        self.state.as_ref()?.step
    }

    /// First and last step that can be shown.
    pub fn known_steps(&self) -> Option<(StepId, StepId)> {
        self.tape.first().zip(self.tape.last())
    }

    /// The newest state known: of the live edge, or of the shown step in a replay.
    pub fn newest(&self) -> Option<&Arc<State>> {
        self.tape.edge().or(self.state.as_ref())
    }

    /// Contexts that hear a key now, the first one first.
    pub fn contexts(&self) -> &'static [Context] {
        match self.overlay() {
            Some(
                Overlay::Help { .. } | Overlay::Filter { .. } | Overlay::Prompt { .. } | Overlay::Turn { .. },
            ) => &[Context::Edit],
            Some(Overlay::Params) if self.params.edit.is_some() => &[Context::Edit],
            Some(Overlay::Params) => &[Context::Params, Context::Global],
            Some(Overlay::ConfirmQuit) => &[Context::Confirm],
            Some(_) => &[Context::Menu],
            None if self.time.selection.is_some() => &[Context::Range, Context::Global],
            None => &[Context::Global],
        }
    }

    /// The continuations of a chord under way, for a pop-up: shown once the person hesitates.
    pub fn continuations(&self) -> Vec<(String, &'static Command)> {
        /// Long enough not to flicker for someone who knows the chord.
        const HESITATION_NS: u64 = 300_000_000;
        if self.pending_keys.is_empty() || self.now_ns.saturating_sub(self.pending_since_ns) < HESITATION_NS {
            return Vec::new();
        }
        self.keymap
            .continuations(self.contexts(), &self.pending_keys)
            .map(|b| (Chord(b.chord.0[self.pending_keys.len()..].to_vec()).to_string(), b.command))
            .collect()
    }

    /// Rows of the help: commands whose name, title, doc or keys hold the query, with their keys as in force.
    pub fn help_rows(&self) -> Vec<(&'static Command, String)> {
        let query = match self.overlay() {
            Some(Overlay::Help { query, .. }) => query.text().to_lowercase(),
            _ => String::new(),
        };
        COMMANDS
            .iter()
            .map(|c| (c, self.keymap.keys_of(c.name).map(ToString::to_string).collect::<Vec<_>>().join("  ")))
            .filter(|(c, keys)| {
                [c.name, c.title, c.doc, keys].iter().any(|text| text.to_lowercase().contains(&query))
            })
            .collect()
    }

    /// What the footer offers, most useful first: (key, title).
    pub fn footer(&self) -> Vec<(String, &'static str)> {
        command::footer(self)
            .iter()
            .filter_map(|name| {
                let command = COMMANDS.iter().find(|c| c.name == *name)?;
                Some((self.keymap.keys_of(name).next()?.to_string(), command.title))
            })
            .collect()
    }

    /// Rows of the bookmark list.
    pub fn bookmark_rows(&self) -> Vec<BookmarkRow> {
        let what = |step| match self.timeline.get(step) {
            Some(s) if s.victims > 0 => format!("{} tokens fed, {} victims", s.tokens, s.victims),
            Some(s) => format!("{} tokens fed", s.tokens),
            None => "no longer remembered".to_owned(),
        };
        self.bookmarks.iter().map(|&step| BookmarkRow { step, what: what(step) }).collect()
    }

    /// The `kvista run …` line that repeats the run with everything tuned or typed by hand; `None` while nothing was.
    pub fn by_hand(&self) -> Option<String> {
        let line = self.command_line();
        (self.is_prompt_typed || line != self.line_of(&self.params.baseline)).then_some(line)
    }

    /// The `kvista run …` line of the present settings.
    pub fn command_line(&self) -> String {
        self.line_of(&self.tunable())
    }

    fn line_of(&self, t: &Tunable) -> String {
        let run = self.run.as_deref().cloned().unwrap_or_default();
        let mut line = RunInfo { settings: t.settings.clone(), ..run }.command();
        if t.pace != self.params.baseline.pace {
            line.push_str(" --pace ");
            line.push_str(&t.pace.map_or_else(|| "0".to_owned(), |p| p.to_string()));
        }
        line
    }

    fn tunable(&self) -> Tunable {
        Tunable { settings: self.pending.clone(), pace: self.pace }
    }
}

/// The known word nearest to a misspelt one, if it is near enough to be meant.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(64).collect();
    known
        .map(|k| (edits(&word, k), k))
        .filter(|(distance, k)| *distance <= 2.max(k.len() / 4) && *distance < word.len().max(2))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, k)| k)
}

/// Levenshtein distance.
fn edits(a: &[char], b: &str) -> usize {
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (j, cb) in b.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = j + 1;
        for (i, &ca) in a.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != cb);
            diagonal = row[i + 1];
            row[i + 1] = substituted.min(diagonal + 1).min(row[i] + 1);
        }
    }
    row[a.len()]
}
