//! What the engine says.

use std::sync::Arc;

use super::tuning::RERUNNING;
use super::{App, Overlay, PastRun, TimeAxis, Tunable};
use crate::engine::{Item, Status};
use crate::event::{Finish, Origin, RunInfo, Step};
use crate::state::{History, State};

/// Runs remembered for comparison.
const MAX_PAST: usize = 32;

impl App {
    pub(super) fn hear(&mut self, item: Item) {
        match item {
            Item::Begin(run) => self.begin(run),
            Item::Step(step) => self.take_step(step),
            Item::Resync(state) => self.resync(*state),
            Item::Status(status) => self.hear_status(status),
            Item::Reference(reference) => self.reference = Some(reference),
        }
    }

    fn begin(&mut self, run: Arc<RunInfo>) {
        self.keep_past();
        self.state = None;
        if self.notice.as_deref() == Some(RERUNNING) {
            // It does now, and the hint below it is wanted.
            self.notice = None;
        }
        if let Err(why) = self.tape.begin(Arc::clone(&run)) {
            self.overlays.push(Overlay::Fault { message: why });
        }
        if self.run.is_none() {
            // What the engine made of the command line; what was tuned meanwhile stands.
            if self.pending == self.params.baseline.settings {
                self.pending = run.settings.clone();
            }
            self.params.baseline.settings = run.settings.clone();
        }
        self.in_force = Some(Tunable { settings: run.settings.clone(), pace: self.pace });
        // The engine tells the full-cache answer right after this, if it has the one to this prompt.
        self.reference = None;
        self.run = Some(run);
        self.timeline = History::default();
        self.time = TimeAxis::default();
        self.bookmarks.clear();
        self.frozen = false;
        self.cursor.position = None;
        self.right = None;
        self.show_edge();
    }

    /// Remembers the newest run for comparison with the next.
    fn keep_past(&mut self) {
        let (Some(run), Some(state)) = (&self.run, self.tape.edge()) else { return };
        let Some(seq) = state.seqs.first() else { return };
        let ids = seq.generated_ids();
        if ids.is_empty() {
            return;
        }
        let fed = seq.tokens.iter().filter(|t| t.origin == Origin::Generated).map(|t| &t.piece);
        let pieces = fed.chain(seq.pending.as_ref().map(|p| &p.piece)).cloned().collect();
        let right = run.expected.as_deref().and_then(|expected| seq.answer(expected));
        let past = PastRun {
            settings: run.settings.clone(),
            prompt: run.prompt.clone(),
            ids,
            pieces,
            finished: seq.finish.is_some_and(|finish| finish != Finish::Stopped),
            right,
        };
        if self.past.len() == MAX_PAST {
            self.past.remove(0);
        }
        self.past.push(past);
    }

    fn follows_edge(&self) -> bool {
        self.time.at.is_none() && !self.frozen
    }

    fn take_step(&mut self, step: Arc<Step>) {
        let follows = self.follows_edge();
        if follows {
            // The only other owner lets go, so that folding need not copy the state.
            self.state = None;
        }
        let tuned = step.tuning.clone();
        match self.tape.push(step) {
            Ok(()) => {
                let summary = self.tape.edge().and_then(|edge| edge.history.last().copied());
                if let Some(summary) = summary {
                    self.timeline.push(summary);
                }
            }
            Err(why) => self.overlays.push(Overlay::Fault { message: why }),
        }
        for t in tuned {
            self.story.tuned(&t);
        }
        if follows {
            self.show_edge();
        }
    }

    fn resync(&mut self, state: State) {
        self.say(format!("the screen fell behind: {} steps were not seen one by one", state.gap_steps));
        self.timeline = state.history.clone();
        let follows = self.follows_edge();
        self.tape.resync(state);
        if follows {
            self.show_edge();
        } else if self.time.at < self.tape.first() {
            // The shown step is gone from the tape, its picture stands.
            self.frozen = true;
        }
    }

    fn hear_status(&mut self, status: Status) {
        match status {
            Status::Recording { file, line } => {
                self.recording = file;
                self.say(line);
            }
            Status::Refused(why) => {
                self.take_back_refused();
                self.say(why);
            }
            Status::Failed(why) => {
                self.say(why.clone());
                self.status = Status::Failed(why);
            }
            Status::Said { text, line } => self.turn_is_said(text, line),
            Status::Unsaid(why) => self.turn_is_refused(why),
            Status::Listening => {
                self.status = Status::Listening;
                if self.overlays.is_empty() {
                    self.open_turn();
                }
            }
            Status::Gone => {
                self.recording = None;
                self.status = Status::Gone;
            }
            status => self.status = status,
        }
    }

    /// The picture follows the newest state.
    pub(super) fn show_edge(&mut self) {
        self.state = self.tape.edge().cloned();
        self.keep_cursor_inside();
    }
}
