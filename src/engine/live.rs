//! The engine on a thread of its own: commands, pace, re-runs, recording.

mod loading;
mod talk;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::fault::Fault;
use super::feed::ListenerId;
use super::link::{Command, Item, Prompt, Reference, Status};
use super::recorder::{self, Recorder};
use super::{Engine, EngineError, Feed, Observe};
use crate::event::{Finish, Settings};
use crate::model::{Model, Progress, Watch};
use crate::policy::{parse_policy, parse_read};
use crate::probe::Receiver;

pub use talk::ANEW;

/// Items between engine and UI.
const RING: usize = 4_096;
/// Waiting for a command, the engine still looks this often whether a lagging listener can catch up.
const NUDGE_EVERY: Duration = Duration::from_millis(50);
/// Fastest pace that is still paced; above it waiting costs more than it shows.
const MAX_PACE: f64 = 10_000.0;

/// How a live run starts.
pub struct Start {
    /// Its settings.
    pub settings: Settings,
    /// Its prompt.
    pub prompt: Prompt,
    /// Steps per second.
    pub pace: Option<f64>,
    /// Stop once the prompt has been fed, so that a person starts the decoding.
    pub pause_at_decode: bool,
    /// Record from the first step.
    pub record: Option<PathBuf>,
    /// Bytes of memory that are free, where that can be known: what a full-cache twin must fit into.
    pub free_bytes: fn() -> Option<u64>,
}

/// The engine's thread, seen from outside.
pub struct Live {
    /// Obeyed at step boundaries.
    pub commands: mpsc::Sender<Command>,
    thread: JoinHandle<Result<(), String>>,
    /// Whether the model is not there yet.
    loading: Arc<AtomicBool>,
}

impl Live {
    /// Asks the engine to end, and waits until the recording is finished.
    ///
    /// # Errors
    /// One line: the engine or the recorder failed.
    pub fn finish(self) -> Result<(), String> {
        // The thread may have ended already; then nobody hears it.
        let _ = self.commands.send(Command::Quit);
        if self.is_stuck_loading() {
            return Ok(());
        }
        self.thread.join().unwrap_or_else(|_| Err("internal fault: the engine panicked".into()))
    }
}

/// Starts the engine's thread; `load` runs on it, so the caller stays responsive while weights are read, and tells its
/// progress to the watch it is given.
///
/// # Errors
/// The thread cannot be started.
pub fn spawn(
    load: impl FnOnce(&mut Watch<'_>) -> Result<Model, EngineError> + Send + 'static,
    start: Start,
) -> std::io::Result<(Live, Receiver<Item>)> {
    let (commands, inbox) = mpsc::channel();
    let mut feed = Feed::default();
    let (_, items) = feed.listen(RING);
    let loading = Arc::new(AtomicBool::new(true));
    let of_thread = Arc::clone(&loading);
    let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
        let mut live = Loop {
            feed,
            inbox,
            waiting: VecDeque::new(),
            engine: None,
            mode: Mode::Running,
            pace: start.pace,
            due: Instant::now(),
            pause_at_decode: start.pause_at_decode,
            recording: None,
            reference: None,
            opening: None,
            prompt: Prompt::default(),
            turns: VecDeque::new(),
            said: Vec::new(),
            free_bytes: start.free_bytes,
            loading: of_thread,
            told_loading: None,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| live.run(load, &start)));
        let result = match outcome {
            Ok(()) => Ok(()),
            Err(panic) => {
                let why = format!("internal fault: the engine panicked: {}", panic_text(&*panic));
                live.feed.tell(&Item::Status(Status::Failed(why.clone())));
                Err(why)
            }
        };
        let recorded = live.stop_recording();
        live.feed.tell(&Item::Status(Status::Gone));
        result.and(recorded)
    })?;
    Ok((Live { commands, thread, loading }, items))
}

/// What a panic said.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Running,
    Paused,
    /// So many steps, then pause.
    Steps(u32),
    /// Nothing to do until a re-run.
    Ended,
}

struct Loop {
    feed: Feed,
    inbox: mpsc::Receiver<Command>,
    /// Commands read while the full-cache answer was computed.
    waiting: VecDeque<Command>,
    engine: Option<(Arc<Model>, Engine)>,
    mode: Mode,
    pace: Option<f64>,
    /// When the next paced step is due.
    due: Instant,
    pause_at_decode: bool,
    recording: Option<(ListenerId, Recorder)>,
    /// The full-cache answer, and what it is the answer to.
    reference: Option<(Question, Reference)>,
    /// Settings of a conversation that waits for its first turn.
    opening: Option<Settings>,
    /// What the present run began with.
    prompt: Prompt,
    /// Turns that wait for the end of an answer.
    turns: VecDeque<String>,
    /// Turns said since the prompt.
    said: Vec<String>,
    free_bytes: fn() -> Option<u64>,
    loading: Arc<AtomicBool>,
    /// When it was last told how far the loading is.
    told_loading: Option<Instant>,
}

/// What decides a full-cache answer.
#[derive(Clone, Debug, PartialEq)]
struct Question {
    prompt: Prompt,
    settings: Settings,
}

impl Question {
    fn of(prompt: &Prompt, settings: &Settings) -> Self {
        let settings = Settings {
            policy: "full".into(),
            read: String::new(),
            merge: String::new(),
            scores: crate::event::ScoreLevel::Off,
            link_gbps: Settings::default().link_gbps,
            batch: 1,
            blocks: 0,
            blocks_given: false,
            shadow: 0,
            ..settings.clone()
        };
        Self { prompt: prompt.clone(), settings }
    }
}

impl Loop {
    fn run(&mut self, load: impl FnOnce(&mut Watch<'_>) -> Result<Model, EngineError>, start: &Start) {
        self.tell(Status::Loading { what: "weights".into(), done_bytes: 0, total_bytes: 0 });
        let model = match load(&mut |progress: &Progress<'_>| self.watch_loading(progress)) {
            Ok(model) => Arc::new(model),
            Err(_) if self.waiting.contains(&Command::Quit) => return,
            Err(error) => return self.fail_for_good(&error.to_string()),
        };
        self.loading.store(false, Ordering::Release);
        if let Some(path) = &start.record {
            self.start_recording(path);
        }
        self.begin(&model, &start.settings, &start.prompt, false);
        loop {
            match self.next_command() {
                Some(Command::Quit) => break,
                Some(command) => self.obey(command, &model),
                None => self.advance(),
            }
        }
        self.wind_up();
    }

    fn tell(&mut self, status: Status) {
        self.feed.tell(&Item::Status(status));
    }

    /// The next command; `None` when it is time for a step. A closed inbox counts as quitting.
    fn next_command(&mut self) -> Option<Command> {
        if let Some(command) = self.waiting.pop_front() {
            return Some(command);
        }
        loop {
            let stepping = matches!(self.mode, Mode::Running | Mode::Steps(_));
            let wait = match (self.mode, self.pace) {
                (Mode::Running, Some(_)) => self.due.saturating_duration_since(Instant::now()),
                _ if stepping => Duration::ZERO,
                _ => NUDGE_EVERY,
            };
            let command = if wait.is_zero() {
                self.inbox.try_recv().map_err(|e| match e {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                })
            } else {
                self.inbox.recv_timeout(wait.min(NUDGE_EVERY))
            };
            match command {
                Ok(command) => return Some(command),
                Err(RecvTimeoutError::Disconnected) => return Some(Command::Quit),
                Err(RecvTimeoutError::Timeout) => {
                    self.feed.nudge();
                    self.watch_recorder();
                    let due = self.pace.is_none() || self.mode != Mode::Running || Instant::now() >= self.due;
                    if stepping && due {
                        return None;
                    }
                }
            }
        }
    }

    fn obey(&mut self, command: Command, model: &Arc<Model>) {
        match command {
            Command::Play => self.go(Mode::Running),
            Command::StepOnce => {
                let asked = if let Mode::Steps(left) = self.mode { left } else { 0 };
                self.go(Mode::Steps(asked.saturating_add(1)));
            }
            Command::Pause => {
                if self.mode == Mode::Running {
                    self.mode = Mode::Paused;
                    self.tell(Status::Paused);
                }
            }
            Command::Pace(pace) => {
                self.pace = pace.filter(|p| p.is_finite() && *p > 0.0 && *p < MAX_PACE);
                self.due = Instant::now();
            }
            Command::Tune(name, value) => {
                if let Some((_, engine)) = &mut self.engine
                    && let Err(error) = engine.tune(&name, &value)
                {
                    self.tell(Status::Refused(error.to_string()));
                }
            }
            Command::Say(text) => self.hear_turn(text, model),
            Command::Rerun(settings, prompt) => self.begin(model, &settings, &prompt, true),
            Command::Record(Some(path)) => self.start_recording(&path),
            Command::Record(None) => {
                // What went wrong is told as a status.
                let _ = self.stop_recording();
            }
            Command::Quit => {}
        }
    }

    fn go(&mut self, mode: Mode) {
        if self.mode != Mode::Ended {
            self.mode = mode;
            self.due = Instant::now();
            self.pause_at_decode = false;
            self.tell(Status::Running);
        }
    }

    /// A new run; on a re-run the full-cache answer is found out first.
    fn begin(&mut self, model: &Arc<Model>, settings: &Settings, prompt: &Prompt, rerun: bool) {
        self.wind_up();
        self.engine = None;
        self.opening = None;
        self.said.clear();
        self.turns.clear();
        if self.listens(model, settings, prompt) {
            return;
        }
        let question = Question::of(prompt, settings);
        if rerun && let Err(error) = self.find_reference(model, settings, &question) {
            return self.fail(&error);
        }
        let engine = match Engine::new(Arc::clone(model), settings, prompt) {
            Ok(engine) => engine,
            Err(error) => return self.fail(&error),
        };
        if !self.start(model, engine) {
            return;
        }
        if let Some((asked, reference)) = &self.reference
            && *asked == question
        {
            self.feed.tell(&Item::Reference(reference.clone()));
        }
        self.prompt = prompt.clone();
        self.turns.extend(prompt.turns.iter().cloned());
        self.go_from_here();
    }

    /// Makes an engine the present one; false where it may not run.
    fn start(&mut self, model: &Arc<Model>, engine: Engine) -> bool {
        if let Some(free_bytes) = (self.free_bytes)()
            && let Err(error) = engine.check_memory(free_bytes)
        {
            self.fail(&error);
            return false;
        }
        if let Err(error) = self.feed.begin(engine.info()) {
            self.fail(&error.into());
            return false;
        }
        self.engine = Some((Arc::clone(model), engine));
        true
    }

    fn go_from_here(&mut self) {
        self.mode = Mode::Running;
        self.due = Instant::now();
        self.tell(Status::Running);
    }

    fn fail(&mut self, error: &EngineError) {
        self.mode = Mode::Ended;
        self.tell(Status::Failed(error.to_string()));
    }

    /// Runs the prompt on the full cache, unless that answer is known or the run is one itself. A re-run or quitting
    /// asked for meanwhile ends the search.
    fn find_reference(
        &mut self,
        model: &Arc<Model>,
        settings: &Settings,
        question: &Question,
    ) -> Result<(), EngineError> {
        let known = self.reference.as_ref().is_some_and(|(asked, _)| asked == question);
        if known || keeps_everything(settings) {
            return Ok(());
        }
        self.tell(Status::Reference);
        let mut engine = Engine::new(Arc::clone(model), &question.settings, &question.prompt)?;
        engine.set_observe(Observe::Off);
        let mut ids = Vec::new();
        let mut turns = question.prompt.turns.iter();
        loop {
            let Some(step) = engine.step()? else {
                if talk::say_to(&mut engine, &mut turns, &mut ids)? {
                    continue;
                }
                break;
            };
            ids.extend(
                step.seqs.iter().filter(|s| s.seq == 0).filter_map(|s| s.sampled.as_ref()).map(|s| s.id),
            );
            self.feed.nudge();
            while let Ok(command) = self.inbox.try_recv() {
                self.waiting.push_back(command);
            }
            if self.waiting.iter().any(|c| matches!(c, Command::Quit | Command::Rerun(..))) {
                return Ok(());
            }
        }
        let text = model.tokenizer.text(&ids);
        self.reference = Some((question.clone(), Reference { ids, text }));
        Ok(())
    }

    fn advance(&mut self) {
        let Some((_, engine)) = &mut self.engine else {
            self.mode = Mode::Ended;
            return;
        };
        if self.feed.is_crowded() {
            engine.count_dropped();
            engine.set_observe(Observe::Events);
        } else {
            engine.set_observe(Observe::Rows);
        }
        if let Some(pace) = self.pace {
            self.due = Instant::now() + Duration::from_secs_f64(1.0 / pace);
        }
        let step = match engine.step() {
            Ok(Some(step)) => step,
            Ok(None) => return self.end(),
            Err(error) => return self.fail(&error),
        };
        Fault::Engine.strike(step.step);
        let (decoding, finished) = (engine.is_decoding(), engine.is_finished());
        if let Err(error) = self.feed.step(step) {
            return self.fail(&error.into());
        }
        if finished {
            self.end();
        } else if let Mode::Steps(left @ 2..) = self.mode {
            self.mode = Mode::Steps(left - 1);
        } else if self.mode == Mode::Steps(1) || (self.pause_at_decode && decoding) {
            self.pause_at_decode = false;
            self.mode = Mode::Paused;
            self.tell(Status::Paused);
        }
    }

    fn end(&mut self) {
        if self.say_next() {
            return;
        }
        self.mode = Mode::Ended;
        let Some(state) = self.feed.state() else { return };
        let finish = state.seqs.first().and_then(|s| s.finish).unwrap_or(Finish::Stopped);
        if keeps_everything(&state.run.settings)
            && state.evictions.total_victims() == 0
            && state.tuning.is_empty()
            && let Some(s) = state.seq(0)
        {
            let prompt = Prompt { turns: self.said.clone(), ..self.prompt.clone() };
            let reference = Reference { ids: s.generated_ids(), text: s.generated_text() };
            self.feed.tell(&Item::Reference(reference.clone()));
            if let Some(state) = self.feed.state() {
                self.reference = Some((Question::of(&prompt, &state.run.settings), reference));
            }
        }
        self.tell(Status::Finished(finish));
    }

    /// Ends the run under way so that its recording says so.
    fn wind_up(&mut self) {
        if let Some((_, engine)) = &mut self.engine
            && let Ok(Some(step)) = engine.stop()
        {
            // A fault here would only hide how the run really went.
            let _ = self.feed.step(step);
        }
    }

    fn start_recording(&mut self, path: &Path) {
        if self.recording.is_some() {
            return;
        }
        let (id, items) = self.feed.listen(recorder::RING);
        match Recorder::start(path, items) {
            Ok(recorder) => {
                self.recording = Some((id, recorder));
                let file = path.display().to_string();
                self.tell(Status::Recording { line: format!("recording into {file}"), file: Some(file) });
            }
            Err(why) => {
                self.feed.dismiss(id);
                self.tell(Status::Recording { file: None, line: why });
            }
        }
    }

    fn stop_recording(&mut self) -> Result<(), String> {
        let Some((id, recorder)) = self.recording.take() else { return Ok(()) };
        self.feed.dismiss(id);
        match recorder.finish() {
            Ok(files) => {
                for file in files {
                    let path = file.path.display();
                    let line = format!("{path}: {} steps, {} bytes", file.steps, file.bytes);
                    self.tell(Status::Recording { file: None, line });
                }
                Ok(())
            }
            Err(why) => {
                self.tell(Status::Recording { file: None, line: format!("recording stopped: {why}") });
                Err(why)
            }
        }
    }

    /// A recorder that failed is told of once; the run goes on.
    fn watch_recorder(&mut self) {
        if self.recording.as_ref().is_some_and(|(_, recorder)| recorder.failure().is_some()) {
            // Told as a status.
            let _ = self.stop_recording();
        }
    }
}

/// Whether settings keep the whole cache and read all of it.
fn keeps_everything(settings: &Settings) -> bool {
    let policy = parse_policy(&settings.policy).is_ok_and(|p| p.slots(settings.max_tokens).is_none());
    policy && settings.merge.is_empty() && (settings.read.is_empty() || parse_read(&settings.read).is_err())
}

#[cfg(test)]
mod tests;
