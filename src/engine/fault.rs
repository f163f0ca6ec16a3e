//! Faults on purpose: how the tests see that a panic in one thread leaves the terminal and the recording whole.
//!
//! Only builds with debug assertions know them. `KVISTA_FAULT=engine:3` panics in the engine at step 3; `recorder:3`
//! in the recorder, `ui:3` in the UI.

use crate::event::StepId;

/// Where a fault may strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The engine's thread.
    Engine,
    /// The recorder's thread.
    Recorder,
    /// The UI.
    Ui,
}

impl Fault {
    /// Panics if this fault was asked for at this step.
    pub fn strike(self, step: StepId) {
        let strikes = cfg!(debug_assertions) && self.wanted() == Some(step);
        assert!(!strikes, "a fault on purpose in the {} at step {step}", self.name());
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Recorder => "recorder",
            Self::Ui => "ui",
        }
    }

    fn wanted(self) -> Option<StepId> {
        let asked = std::env::var("KVISTA_FAULT").ok()?;
        let (place, step) = asked.split_once(':')?;
        (place == self.name()).then(|| step.parse().ok())?
    }
}
