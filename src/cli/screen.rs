//! The terminal UI's loop: the one place that has the terminal, the clock, the signals and the engine's ring.
//!
//! Everything happens on one thread: messages go into [`App::update`], its effects are carried out here, and a frame is
//! drawn when something has changed and the frame gate is open. The engine runs on its own thread and never waits for
//! this one.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crossterm::event::{Event, EventStream};
use futures::StreamExt;
use ratatui::layout::Rect;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::args::{Look, RunArgs};
use super::look::{self, Appearance};
use super::setup::{self, Setup};
use super::{Failure, player};
use crate::app::{App, Effect, ExportKind, Launch, Msg, View};
use crate::device::memory;
use crate::engine::live::{self, Live, Start};
use crate::engine::{Command, Fault, Item, Status};
use crate::probe::Receiver;
use crate::ui;
use crate::ui::terminal::{self, FrameGate, Options, TerminalGuard};
use crate::ui::theme::{Depth, Styles};

/// Frames per second; over a remote shell fewer, since a coloured frame is large.
const FPS: u32 = 30;
const REMOTE_FPS: u32 = 10;
/// Steps per second a person can watch.
const PACE: f64 = 8.0;
/// A closed terminal that has not ended the program by then never will on its own.
const HANG_UP_PATIENCE: Duration = Duration::from_secs(1);
/// Time passes for the application at least this often.
const TICK: Duration = Duration::from_millis(50);

/// Whether there is a terminal to take over.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal() && io::stdin().is_terminal()
}

/// `kvista` without a verb.
pub(super) fn demo(look: &Look) -> Result<(), Failure> {
    if !is_terminal() {
        return Err(Failure::Input(
            "the UI needs a terminal: try kvista run --headless, or kvista --help".into(),
        ));
    }
    start(setup::demo()?, None, None, look)
}

/// `kvista run` in a terminal.
pub(super) fn run(args: &RunArgs, look: &Look) -> Result<(), Failure> {
    start(setup::setup(args)?, args.pace, args.record.clone(), look)
}

fn start(setup: Setup, pace: Option<f64>, record: Option<PathBuf>, look: &Look) -> Result<(), Failure> {
    let appearance = Appearance::resolve(look, true)?;
    // 0 in the configuration file is as fast as it goes.
    let pace = Some(pace.or(appearance.config.pace).unwrap_or(PACE)).filter(|pace| *pace > 0.0);
    let launch = Launch {
        settings: setup.settings.clone(),
        pace,
        prompt: setup.prompt.clone(),
        themes: look::theme_names(),
        theme: appearance.theme.clone(),
        mouse: appearance.config.mouse.unwrap_or(true),
        keymap: appearance.config.keymap().map_err(Failure::Input)?,
    };
    let app = App::live(launch);
    let start = Start {
        settings: setup.settings,
        prompt: setup.prompt,
        pace,
        pause_at_decode: true,
        record,
        free_bytes: memory::free_bytes,
    };
    let (model, weights) = (setup.model, setup.weights);
    let (live, items) =
        live::spawn(move |watch| model.load(weights, watch), start).map_err(Failure::fault)?;
    show(app, appearance, Some((live, items)))
}

/// `kvista replay` in a terminal.
pub(super) fn replay(app: App, appearance: Appearance) -> Result<(), Failure> {
    show(app, appearance, None)
}

/// Runs the loop, and whatever becomes of it gives the terminal back and finishes the recording.
fn show(app: App, appearance: Appearance, engine: Option<(Live, Receiver<Item>)>) -> Result<(), Failure> {
    let (live, items) = engine.unzip();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        outlive_the_terminal(live.as_ref().map(|live| live.commands.clone())).map_err(Failure::fault)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::fault)?;
        runtime.block_on(async {
            let mut screen = Screen::enter(app, appearance, live.as_ref())?;
            screen.run(items).await
        })
    }));
    terminal::restore();
    let recorded = live.map_or(Ok(()), Live::finish);
    let last_frame = outcome
        .unwrap_or_else(|_| Err(Failure::Fault("the UI panicked; the recording is finished".into())))?;
    if let Some(frame) = last_frame {
        io::stdout().write_all(frame.as_bytes()).and_then(|()| io::stdout().flush())?;
    }
    recorded.map_err(Failure::Fault)
}

/// Sees to it that a closed terminal ends the program. Crossterm's reader never returns from reading a terminal that has
/// gone away, and it may be this very thread that reads when that happens: then another one has to finish the recording.
fn outlive_the_terminal(engine: Option<mpsc::Sender<Command>>) -> io::Result<()> {
    let mut hang_ups = signal_hook::iterator::Signals::new([signal_hook::consts::SIGHUP])?;
    std::thread::Builder::new().name("hang-up".into()).spawn(move || {
        if hang_ups.forever().next().is_none() {
            return;
        }
        std::thread::sleep(HANG_UP_PATIENCE);
        if let Some(engine) = engine {
            // The engine hears no more once its recording is finished.
            while engine.send(Command::Quit).is_ok() {
                std::thread::sleep(TICK);
            }
        }
        std::process::exit(0);
    })?;
    Ok(())
}

struct Screen<'a> {
    app: App,
    appearance: Appearance,
    styles: Styles,
    ramp: usize,
    guard: TerminalGuard,
    live: Option<&'a Live>,
    gate: FrameGate,
    clock: Instant,
    dirty: bool,
    /// The engine has said something since the last tick.
    has_news: bool,
    /// How to leave, once it is time: with the last frame on the screen or not.
    leaving: Option<bool>,
    /// Why there never was a run to show.
    unable: Option<String>,
}

/// Signals that end or suspend.
struct Signals {
    ends: [Signal; 3],
    stop: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        // Ctrl-Z arrives as a key in raw mode; SIGTSTP only from outside.
        const SIGTSTP: i32 = signal_hook::consts::SIGTSTP;
        Ok(Self {
            ends: [
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
                signal(SignalKind::interrupt())?,
            ],
            stop: signal(SignalKind::from_raw(SIGTSTP))?,
        })
    }

    /// Whether the process is to end; false: to be suspended.
    async fn next(&mut self) -> bool {
        let [term, hup, int] = &mut self.ends;
        tokio::select! {
            _ = term.recv() => true,
            _ = hup.recv() => true,
            _ = int.recv() => true,
            _ = self.stop.recv() => false,
        }
    }
}

impl<'a> Screen<'a> {
    fn enter(app: App, appearance: Appearance, live: Option<&'a Live>) -> Result<Self, Failure> {
        let styles = appearance.styles(&appearance.theme)?;
        let options = Options { mouse: app.mouse, colors: appearance.depth() != Depth::None };
        let guard = TerminalGuard::enter(options).map_err(|e| Failure::Fault(format!("terminal: {e}")))?;
        let remote = std::env::var_os("SSH_CONNECTION").is_some();
        let fps = appearance.config.fps.map_or(if remote { REMOTE_FPS } else { FPS }, u32::from);
        Ok(Self {
            ramp: app.ramp,
            app,
            appearance,
            styles,
            guard,
            live,
            gate: FrameGate::new(fps),
            clock: Instant::now(),
            dirty: true,
            has_news: false,
            leaving: None,
            unable: None,
        })
    }

    /// Until it is time to leave: the last frame, if it is to stay.
    async fn run(&mut self, mut items: Option<Receiver<Item>>) -> Result<Option<String>, Failure> {
        let mut events = EventStream::new();
        let mut signals = Signals::new().map_err(Failure::fault)?;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        while self.leaving.is_none() {
            self.draw_if_due();
            let wait = if self.dirty { self.gate.wait(self.clock.elapsed()) } else { TICK };
            tokio::select! {
                biased;
                ends = signals.next() => {
                    if ends { self.leaving = Some(false) } else { self.suspend()? }
                },
                event = events.next() => match event {
                    Some(Ok(event)) => self.hear(event),
                    // The terminal has gone away.
                    Some(Err(_)) | None => self.leaving = Some(false),
                },
                there = next_items(&mut items) => self.take_items(&mut items, there),
                _ = ticks.tick() => self.tick(),
                () = tokio::time::sleep(wait), if self.dirty => {},
            }
        }
        if let Some(why) = self.unable.take() {
            return Err(Failure::Input(why));
        }
        let keep = self.leaving == Some(true);
        Ok(keep.then(|| {
            let (width, height) = crossterm::terminal::size().unwrap_or((80, 24));
            let buf =
                player::paint(&mut self.app, Rect::new(0, 0, width, height.saturating_sub(1)), &self.styles);
            ui::export::ansi(&buf)
        }))
    }

    fn draw_if_due(&mut self) {
        if !self.dirty || !self.gate.pass(self.clock.elapsed()) {
            return;
        }
        if let Some(step) = self.app.step() {
            Fault::Ui.strike(step);
        }
        if self.ramp != self.app.ramp {
            self.restyle(&self.app.theme.clone());
        }
        let mut viewport = None;
        let (app, styles) = (&self.app, &self.styles);
        let drawn = self.guard.draw(|frame| viewport = Some(ui::draw::draw(frame, app, styles)));
        if drawn.is_err() {
            // Nobody is looking any more.
            self.leaving = Some(false);
            return;
        }
        self.dirty = false;
        if let Some(viewport) = viewport.filter(|v| *v != self.app.viewport) {
            self.update(Msg::Viewport(viewport));
        }
    }

    fn update(&mut self, msg: Msg) {
        for effect in self.app.update(msg) {
            self.carry_out(effect);
        }
        self.dirty = true;
    }

    fn tick(&mut self) {
        if let Some(panic) = terminal::take_worker_panic() {
            self.update(Msg::WorkerPanic(panic));
        }
        let before = (self.app.step(), self.app.continuations().len());
        // What follows from the engine's news (comparisons, the hint) is worked out by the tick after them.
        self.dirty |= std::mem::take(&mut self.has_news);
        let now_ns = self.clock.elapsed().as_nanos() as u64 + 1;
        for effect in self.app.update(Msg::Tick { now_ns }) {
            self.carry_out(effect);
        }
        // A pending chord opens its pop-up after a while.
        self.dirty |=
            before != (self.app.step(), self.app.continuations().len()) || !self.app.pending_keys.is_empty();
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Key(key) => self.update(Msg::Key(key)),
            Event::Paste(text) => self.update(Msg::Paste(text)),
            Event::Resize(..) => self.update(Msg::Resize),
            Event::Mouse(mouse) => self.point(mouse),
            Event::FocusGained | Event::FocusLost => self.dirty = true,
        }
    }

    /// A click focuses the pane under it, the wheel scrolls.
    fn point(&mut self, mouse: crossterm::event::MouseEvent) {
        use crossterm::event::{MouseButton, MouseEventKind};
        match mouse.kind {
            MouseEventKind::Down(MouseButton::Left) => {
                let at = (mouse.column, mouse.row);
                let pane = self
                    .app
                    .viewport
                    .panes
                    .iter()
                    .position(|[x, y, w, h]| (*x..x + w).contains(&at.0) && (*y..y + h).contains(&at.1));
                if let Some(pane) = pane {
                    self.update(Msg::Focus(pane));
                }
            }
            MouseEventKind::ScrollDown => self.update(Msg::Scroll(1)),
            MouseEventKind::ScrollUp => self.update(Msg::Scroll(-1)),
            _ => {}
        }
    }

    fn take_items(&mut self, items: &mut Option<Receiver<Item>>, there: bool) {
        let Some(receiver) = items else { return };
        if !there {
            *items = None;
            return;
        }
        let heard: Vec<Item> = receiver.drain().collect();
        self.has_news |= !heard.is_empty();
        for item in heard {
            // Settings or a model that never ran: nothing to look at, so the line goes where a command's would.
            if let (Item::Status(Status::Failed(why)), None) = (&item, &self.app.run) {
                self.unable = Some(why.clone());
                self.leaving = Some(false);
            }
            self.update(Msg::Item(item));
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Engine(command) => self.command(command),
            Effect::StartRecording => {
                self.command(Command::Record(Some(unused_path("kvista", "mcap"))));
            }
            Effect::Quit { keep_screen } => self.leaving = Some(keep_screen),
            Effect::Suspend => {
                if self.suspend().is_err() {
                    self.leaving = Some(false);
                }
            }
            Effect::Redraw => {
                // If it fails, so will the drawing, and that ends the loop.
                let _ = self.guard.clear();
                self.dirty = true;
            }
            Effect::Copy(text) => {
                let copied = self.guard.copy(&text).map_err(|e| e.to_string());
                self.update(Msg::Copied(copied));
            }
            Effect::Export { kind, view } => {
                let written = self.export(kind, view);
                self.update(Msg::Exported(written));
            }
            Effect::SetMouse(on) => {
                let _ = self.guard.set_mouse(on);
            }
            Effect::ReloadConfig => {
                let config = look::read_config().map(Box::new).map_err(|failure| words(&failure));
                self.update(Msg::Config(config));
                self.restyle(&self.app.theme.clone());
            }
            Effect::SetTheme(name) => self.restyle(&name),
        }
    }

    fn command(&self, command: Command) {
        if let Some(live) = self.live {
            // An engine that has gone has said so.
            let _ = live.commands.send(command);
        }
    }

    fn restyle(&mut self, theme: &str) {
        match self.appearance.styles(theme) {
            Ok(mut styles) => {
                self.ramp = self.app.ramp;
                (0..self.ramp).for_each(|_| styles.next_ramp());
                self.styles = styles;
            }
            Err(failure) => self.app.notice = Some(words(&failure)),
        }
        self.dirty = true;
    }

    fn suspend(&mut self) -> Result<(), Failure> {
        self.guard.suspend().map_err(|e| Failure::Fault(format!("terminal: {e}")))?;
        self.update(Msg::Resumed);
        Ok(())
    }

    /// Writes the present screen to a file beside the others.
    fn export(&mut self, kind: ExportKind, view: View) -> Result<String, String> {
        let (width, height) = crossterm::terminal::size().map_err(|e| e.to_string())?;
        let area = Rect::new(0, 0, width, height);
        let overlays = std::mem::take(&mut self.app.overlays);
        let buf = player::paint(&mut self.app, area, &self.styles);
        self.app.overlays = overlays;
        let text = match kind {
            ExportKind::Svg => ui::export::svg(&buf, self.styles.page(), &player::title(&self.app)),
            ExportKind::Ansi => ui::export::ansi(&buf),
            ExportKind::Text => ui::export::text(&buf),
            ExportKind::Json => {
                let summary = self.app.state.as_ref().map(|s| s.summary());
                serde_json::json!({ "view": view.name(), "step": self.app.step(), "summary": summary })
                    .to_string()
            }
        };
        let extension = match kind {
            ExportKind::Svg => "svg",
            ExportKind::Ansi => "ansi",
            ExportKind::Text => "txt",
            ExportKind::Json => "json",
        };
        let path = unused_path(&format!("kvista-{}", view.name()), extension);
        fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path.display().to_string())
    }
}

/// Waits for items; for ever where there is no engine. False: there will be none any more.
async fn next_items(items: &mut Option<Receiver<Item>>) -> bool {
    match items {
        Some(receiver) => receiver.ready().await,
        None => std::future::pending().await,
    }
}

/// A name in the present folder that nothing has yet.
fn unused_path(stem: &str, extension: &str) -> PathBuf {
    let named = |n: u32| PathBuf::from(format!("{stem}-{n}.{extension}"));
    (1..10_000).map(named).find(|path| !path.exists()).unwrap_or_else(|| named(10_000))
}

fn words(failure: &Failure) -> String {
    match failure {
        Failure::Check => "a check failed".into(),
        Failure::Unread => "nobody reads the output".into(),
        Failure::Input(why) | Failure::Fault(why) => why.clone(),
    }
}
