//! Messages in, effects out.

use crossterm::event::{KeyEvent, KeyEventKind};

use super::keymap::Lookup;
use super::{App, Config, Context, ExportKind, Key, Overlay, View, Viewport};
use crate::engine;
use crate::event::Position;

/// What the application hears.
#[derive(Debug)]
pub enum Msg {
    /// A key.
    Key(KeyEvent),
    /// Pasted text.
    Paste(String),
    /// The terminal has another size.
    Resize,
    /// Time passes; due at least before every drawing.
    Tick {
        /// A monotonic clock, ns.
        now_ns: u64,
    },
    /// The engine speaks.
    Item(engine::Item),
    /// An export is done: where it lies, or why it failed.
    Exported(Result<String, String>),
    /// Text was copied, or why not.
    Copied(Result<(), String>),
    /// The configuration was read again.
    Config(Result<Box<Config>, String>),
    /// A thread has ended in a panic; one line.
    WorkerPanic(String),
    /// The terminal is ours again after a suspension.
    Resumed,
    /// What is drawn, after a change of size or view.
    Viewport(Viewport),
    /// A pane was clicked.
    Focus(usize),
    /// A token was clicked.
    Select(Position),
    /// The wheel was turned by so many lines, down is positive.
    Scroll(i32),
}

/// What the application wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Say this to the engine.
    Engine(engine::Command),
    /// Start recording into a file that does not exist yet; the engine's status tells how that went.
    StartRecording,
    /// Leave.
    Quit {
        /// Leave the last picture on the screen.
        keep_screen: bool,
    },
    /// Give the terminal back and stop the process.
    Suspend,
    /// Draw everything anew.
    Redraw,
    /// Put text on the clipboard.
    Copy(String),
    /// Write the present screen to a file that does not exist yet, and tell with [`Msg::Exported`].
    Export {
        /// What to make.
        kind: ExportKind,
        /// Of which view.
        view: View,
    },
    /// Capture the mouse or not.
    SetMouse(bool),
    /// Read configuration and theme again, and tell with [`Msg::Config`].
    ReloadConfig,
    /// Draw in this theme from now on.
    SetTheme(String),
}

impl App {
    /// Takes a message in; the effects are for the caller to carry out, in order.
    pub fn update(&mut self, msg: Msg) -> Vec<Effect> {
        let stale = !matches!(msg, Msg::Item(_));
        match msg {
            Msg::Key(event) => self.key(&event),
            Msg::Paste(text) => self.paste(&text),
            Msg::Resize | Msg::Resumed => self.send(Effect::Redraw),
            Msg::Tick { now_ns } => self.tick(now_ns),
            Msg::Item(item) => self.hear(item),
            Msg::Exported(Ok(path)) => self.say(format!("written: {path}")),
            Msg::Exported(Err(why)) => self.say(format!("not exported: {why}")),
            Msg::Copied(Ok(())) => self.say("copied".to_owned()),
            Msg::Copied(Err(why)) => self.say(format!("not copied: {why}")),
            Msg::Config(config) => self.configure(config),
            Msg::WorkerPanic(message) => self.overlays.push(Overlay::Fault { message }),
            Msg::Viewport(viewport) => self.viewport = viewport,
            Msg::Focus(pane) if pane < self.view.panes().len() => self.focus(pane),
            Msg::Focus(_) => {}
            Msg::Select(position) => self.select_position(position),
            Msg::Scroll(lines) => self.scroll_by(lines),
        }
        if stale {
            self.refresh();
        }
        std::mem::take(&mut self.effects)
    }

    pub(super) fn send(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn ask(&mut self, command: engine::Command) {
        self.send(Effect::Engine(command));
    }

    pub(super) fn say(&mut self, notice: String) {
        self.notice = Some(notice);
    }

    fn tick(&mut self, now_ns: u64) {
        let passed_ns = now_ns.saturating_sub(self.now_ns);
        // The first tick only tells the time.
        let passed_ns = if self.now_ns == 0 { 0 } else { passed_ns };
        self.now_ns = now_ns;
        self.play(passed_ns);
    }

    /// Everything derived from the state: cheap when nothing has changed.
    pub(super) fn refresh(&mut self) {
        if let Some(state) = self.state.clone() {
            if matches!(self.view, View::Evictions) {
                self.victims.refresh(&state, &self.filter, self.sort);
            }
            if matches!(self.view, View::Log) {
                self.log.refresh(&state, &self.filter);
            }
        }
        let now = self.tunable();
        self.params.refresh(&now, self.in_force.as_ref());
        self.compare();
        self.tell();
    }

    fn key(&mut self, event: &KeyEvent) {
        let Some(key) = Key::of(event) else { return };
        self.notice = None;
        let contexts = self.contexts();
        let keys = [self.pending_keys.as_slice(), &[key]].concat();
        match self.keymap.lookup(contexts, &keys) {
            Lookup::Prefix => {
                self.pending_keys = keys;
                self.pending_since_ns = self.now_ns;
            }
            Lookup::Run(command) => {
                self.pending_keys.clear();
                if command.repeats || event.kind != KeyEventKind::Repeat {
                    (command.run)(self);
                }
            }
            Lookup::Unbound => {
                let chord_broken = !std::mem::take(&mut self.pending_keys).is_empty();
                self.unbound(key, contexts[0], chord_broken);
            }
        }
    }

    fn unbound(&mut self, key: Key, context: Context, chord_broken: bool) {
        // Whatever is open, these must work.
        if context != Context::Global
            && let Lookup::Run(command) = self.keymap.lookup(&[Context::Global], &[key])
            && matches!(command.name, "app.quit-now" | "app.redraw" | "app.suspend")
        {
            return (command.run)(self);
        }
        if context == Context::Edit {
            if let Some(c) = key.typed() {
                self.type_text(c.encode_utf8(&mut [0; 4]));
            }
        } else if !chord_broken {
            self.say(format!("{key} does nothing here; ? lists the keys"));
        }
    }

    fn configure(&mut self, config: Result<Box<Config>, String>) {
        let config = match config {
            Ok(config) => config,
            Err(why) => return self.say(why),
        };
        match config.keymap() {
            Ok(keymap) => self.keymap = keymap,
            Err(why) => return self.say(why),
        }
        if let Some(theme) = config.theme.clone().filter(|name| *name != self.theme) {
            self.theme.clone_from(&theme);
            self.send(Effect::SetTheme(theme));
        }
        if let Some(mouse) = config.mouse.filter(|on| *on != self.mouse) {
            self.mouse = mouse;
            self.send(Effect::SetMouse(mouse));
        }
        self.say("configuration read again".to_owned());
        self.send(Effect::Redraw);
    }

    // Leaving.

    /// Closes the top overlay, or leaves the program.
    pub(super) fn close_or_quit(&mut self) {
        if !self.overlays.is_empty() {
            self.cancel_overlay();
        } else if self.recording.is_some() && self.is_live() {
            self.overlays.push(Overlay::ConfirmQuit);
        } else {
            self.quit(false);
        }
    }

    /// Leaves the program.
    pub(super) fn quit(&mut self, keep_screen: bool) {
        if self.is_live() {
            self.ask(engine::Command::Quit);
        }
        self.send(Effect::Quit { keep_screen });
    }

    /// Backs out one level, never out of the program.
    pub(super) fn back(&mut self) {
        if !self.overlays.is_empty() {
            self.cancel_overlay();
        } else if self.time.selection.take().is_some() {
        } else if self.zoomed {
            self.zoomed = false;
        } else if !self.filter.is_empty() {
            self.set_filter("");
        } else if self.frozen || (self.is_live() && self.time.at.is_some()) {
            self.follow();
        }
    }

    pub(super) fn toggle_mouse(&mut self) {
        self.mouse = !self.mouse;
        self.send(Effect::SetMouse(self.mouse));
        self.say(
            if self.mouse { "mouse captured; Shift-drag selects text" } else { "mouse left to the terminal" }
                .to_owned(),
        );
    }
}
