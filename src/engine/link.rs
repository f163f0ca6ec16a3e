//! The words spoken with the engine.

use std::path::PathBuf;
use std::sync::Arc;

use crate::event::{Finish, RunInfo, Settings, Step};
use crate::state::State;

/// What the model is asked to go on from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// The prompt; its context part if there is a question.
    pub text: String,
    /// Fed after the context was compressed; empty for none.
    pub question: String,
    /// The right answer, where it is known.
    pub expected: Option<String>,
    /// What is said after each answer, as far as that is known before.
    pub turns: Vec<String>,
}

/// What a listener may ask of the engine. Obeyed at step boundaries.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Run freely, at the pace if one is set.
    Play,
    /// Stop after the present step.
    Pause,
    /// One step, then pause.
    StepOnce,
    /// Steps per second a person can watch; `None` is as fast as it goes.
    Pace(Option<f64>),
    /// Change a live-tunable parameter of the policy or the read set: (name, value) as on the command line.
    Tune(String, String),
    /// Go on with a turn: at once where the model waits or has ended, else after the present answer. [`Status::Said`] or
    /// [`Status::Unsaid`] tells.
    Say(String),
    /// Start again from the first token with these settings and this prompt; same model.
    Rerun(Box<Settings>, Prompt),
    /// Start recording into a file (from a keyframe if the run is under way), or stop.
    Record(Option<PathBuf>),
    /// Finish the recording and end.
    Quit,
}

/// What the engine is doing.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    /// Fetching a model or reading its weights.
    Loading {
        /// What is on its way.
        what: String,
        /// Bytes that are there.
        done_bytes: u64,
        /// Bytes of all of it; 0 where that is not known yet.
        total_bytes: u64,
    },
    /// Computing the full-cache answer that re-runs are compared with.
    Reference,
    /// Waiting for a conversation's first turn.
    Listening,
    /// Steps are being taken.
    Running,
    /// Waiting for [`Command::Play`] or [`Command::StepOnce`].
    Paused,
    /// Every sequence has ended.
    Finished(Finish),
    /// The run cannot go on; one clear line. The engine waits for a re-run.
    Failed(String),
    /// A recording was started, finished or has failed.
    Recording {
        /// The file being written from now on, if one is.
        file: Option<String>,
        /// What happened, in one line.
        line: String,
    },
    /// A parameter was refused; one clear line.
    Refused(String),
    /// A turn was taken.
    Said {
        /// What was said.
        text: String,
        /// What becomes of it, in one line.
        line: String,
    },
    /// A turn was refused; one clear line.
    Unsaid(String),
    /// The engine's thread has ended.
    Gone,
}

/// The same prompt under the full cache, for comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Generated ids.
    pub ids: Vec<u32>,
    /// Generated text, lossy; sanitise before drawing.
    pub text: String,
}

/// What a listener hears.
#[derive(Clone, Debug)]
pub enum Item {
    /// A run begins: forget the last one.
    Begin(Arc<RunInfo>),
    /// One step.
    Step(Arc<Step>),
    /// Steps were lost to this listener; this state stands for all of them.
    Resync(Box<State>),
    /// The engine's state changed.
    Status(Status),
    /// The full-cache answer to the present prompt is known.
    Reference(Reference),
}
