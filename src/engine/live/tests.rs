//! One who presses keys, and the engine's thread.

use super::*;
use crate::event::{Origin, RunInfo};
use crate::model::demo;
use crate::state::State;
use crate::trace::Recording;

/// A listener that folds what it hears.
pub(super) struct Ear {
    items: Receiver<Item>,
    state: Option<State>,
    info: Option<Arc<RunInfo>>,
    pub(super) reference: Option<Reference>,
    statuses: Vec<Status>,
}

impl Ear {
    /// Listens until a status fulfils the condition.
    pub(super) fn until(&mut self, what: impl Fn(&Status) -> bool) -> &mut Self {
        let deadline = Instant::now() + Duration::from_secs(120);
        let heard = self.statuses.len();
        while !self.statuses[heard..].iter().any(&what) {
            assert!(Instant::now() < deadline, "only heard {:?}", self.statuses);
            self.items.wait(Duration::from_secs(1));
            let items: Vec<Item> = self.items.drain().collect();
            for item in items {
                match item {
                    Item::Begin(info) => {
                        self.state = Some(State::new(Arc::clone(&info)).unwrap());
                        self.info = Some(info);
                        self.reference = None;
                    }
                    Item::Step(step) => self.state.as_mut().unwrap().fold(&step).unwrap(),
                    Item::Resync(state) => self.state = Some(*state),
                    Item::Status(status) => self.statuses.push(status),
                    Item::Reference(reference) => self.reference = Some(reference),
                }
            }
        }
        self
    }

    pub(super) fn state(&self) -> &State {
        self.state.as_ref().unwrap()
    }
}

pub(super) fn start(
    policy: &str,
    pause_at_decode: bool,
    record: Option<PathBuf>,
) -> (Live, Ear, Prompt, Settings) {
    let key = demo::passkey(1, 300, 0.3);
    let prompt =
        Prompt { text: key.context, question: key.question, expected: Some(key.key), ..Prompt::default() };
    let settings =
        Settings { policy: policy.into(), compress: "context".into(), max_tokens: 12, ..Settings::default() };
    let start = Start {
        settings: settings.clone(),
        prompt: prompt.clone(),
        pace: None,
        pause_at_decode,
        record,
        free_bytes: || None,
    };
    let (live, items) = spawn(|_| Ok(demo::load()?), start).unwrap();
    let ear = Ear { items, state: None, info: None, reference: None, statuses: Vec::new() };
    (live, ear, prompt, settings)
}

pub(super) fn finished(status: &Status) -> bool {
    matches!(status, Status::Finished(_))
}

#[test]
fn a_person_steps_plays_breaks_the_answer_and_compares() {
    let (live, mut ear, prompt, settings) = start("h2o:budget=100%", true, None);
    ear.until(|s| *s == Status::Paused);
    let fed = |ear: &Ear| ear.state().seqs[0].tokens.iter().filter(|t| t.origin == Origin::Generated).count();
    assert_eq!(fed(&ear), 0, "decoding waits for a person");
    for _ in 0..3 {
        live.commands.send(Command::StepOnce).unwrap();
    }
    while fed(&ear) < 3 {
        ear.until(|s| *s == Status::Paused);
    }
    assert_eq!(fed(&ear), 3);
    live.commands.send(Command::Play).unwrap();
    ear.until(finished);
    let expected = prompt.expected.clone().unwrap();
    assert_eq!(ear.state().seqs[0].answer(&expected), Some(true));
    let full = ear.state().seqs[0].generated_ids();

    let lower = Settings { policy: "h2o:budget=25%".into(), ..settings.clone() };
    live.commands.send(Command::Rerun(Box::new(lower), prompt.clone())).unwrap();
    ear.until(finished);
    assert_eq!(ear.info.as_ref().unwrap().settings.policy, "h2o:budget=25%");
    assert_eq!(ear.state().seqs[0].answer(&expected), Some(false));
    assert_eq!(ear.reference.as_ref().unwrap().ids, full, "the first run was the full cache's answer");

    let unknown = Settings { policy: "h3o".into(), ..settings };
    live.commands.send(Command::Rerun(Box::new(unknown), prompt)).unwrap();
    ear.until(|s| matches!(s, Status::Failed(why) if why.contains("h3o")));
    live.finish().unwrap();
}

#[test]
fn an_evicting_first_run_gets_its_reference_at_the_re_run() {
    let (live, mut ear, prompt, settings) = start("h2o:budget=25%", false, None);
    ear.until(finished);
    assert!(ear.reference.is_none());
    live.commands.send(Command::Rerun(Box::new(settings), prompt.clone())).unwrap();
    ear.until(|s| *s == Status::Reference).until(finished);
    let text = &ear.reference.as_ref().unwrap().text;
    assert!(text.trim_start().starts_with(prompt.expected.unwrap().trim()), "{text}");
    live.finish().unwrap();
}

#[test]
fn tuning_takes_effect_in_the_run_and_bad_values_are_refused() {
    let (live, mut ear, ..) = start("h2o:budget=100%", true, None);
    ear.until(|s| *s == Status::Paused);
    live.commands.send(Command::Tune("budget".into(), "64".into())).unwrap();
    live.commands.send(Command::Tune("budget".into(), "0".into())).unwrap();
    live.commands.send(Command::Tune("when".into(), "chunk".into())).unwrap();
    // Both refusals may be heard at once.
    ear.until(|s| matches!(s, Status::Refused(why) if why.contains("re-run")));
    live.commands.send(Command::Play).unwrap();
    ear.until(finished);
    assert_eq!(ear.state().tuned("budget"), Some("64"));
    assert!(ear.state().seqs[0].resident.iter().all(|&n| n <= 64));
    live.finish().unwrap();
}

#[test]
fn a_recording_started_in_mid_run_and_one_over_a_re_run_hold_what_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let (first, late) = (folder.path().join("a.mcap"), folder.path().join("late.mcap"));
    let (live, mut ear, prompt, settings) = start("full", true, Some(first.clone()));
    ear.until(|s| *s == Status::Paused);
    live.commands.send(Command::Play).unwrap();
    ear.until(finished);
    let hash = ear.state().hash;
    live.commands.send(Command::Rerun(Box::new(settings.clone()), prompt.clone())).unwrap();
    ear.until(finished);
    live.commands.send(Command::Record(None)).unwrap();
    ear.until(|s| matches!(s, Status::Recording { line, .. } if line.contains("a-2.mcap")));
    for path in [&first, &folder.path().join("a-2.mcap")] {
        assert_eq!(folded(path).hash, hash, "{}", path.display());
    }

    live.commands.send(Command::Rerun(Box::new(settings), prompt)).unwrap();
    live.commands.send(Command::Pause).unwrap();
    ear.until(|s| *s == Status::Paused);
    live.commands.send(Command::Record(Some(late.clone()))).unwrap();
    live.commands.send(Command::Play).unwrap();
    ear.until(finished);
    let state = ear.state().clone();
    live.finish().unwrap();
    assert_eq!(folded(&late).hash, state.hash);
}

/// The state at the end of a recording, which may begin in mid-run.
pub(super) fn folded(path: &Path) -> State {
    let recording = Recording::open(path).unwrap();
    assert!(recording.complete());
    let run = Arc::new(recording.run().clone());
    let (first, last) = recording.bounds().unwrap();
    let mut state = match first {
        0 => State::new(run).unwrap(),
        first => {
            let (at, bytes) = recording.keyframe_at_or_before(first - 1).unwrap().unwrap();
            assert_eq!(at + 1, first);
            State::from_keyframe(run, &bytes).unwrap()
        }
    };
    for step in recording.read(0..last + 1) {
        state.fold(&step.unwrap()).unwrap();
    }
    state
}
