//! A model on its way to the engine's thread.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Live, Loop};
use crate::engine::link::{Command, Status};
use crate::model::Progress;

/// How often it is told how far the loading is.
const TELL_EVERY: Duration = Duration::from_millis(50);
/// How long a model that is being loaded is waited for by one who leaves.
const PATIENCE: Duration = Duration::from_secs(1);

impl Live {
    /// Whether the model is still not there after a while. A network that says nothing cannot be interrupted, and nothing
    /// is recorded yet that would need an end.
    pub(super) fn is_stuck_loading(&self) -> bool {
        let patience = Instant::now() + PATIENCE;
        while self.loading.load(Ordering::Acquire) && !self.thread.is_finished() {
            if Instant::now() > patience {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Loop {
    /// Tells of what is being loaded, now and then, and ends it for one who leaves.
    pub(super) fn watch_loading(&mut self, progress: &Progress<'_>) -> ControlFlow<()> {
        let is_due = self.told_loading.is_none_or(|told| told.elapsed() >= TELL_EVERY);
        if is_due || progress.done_bytes >= progress.total_bytes {
            self.told_loading = Some(Instant::now());
            let Progress { what, done_bytes, total_bytes } = *progress;
            self.tell(Status::Loading { what: what.into(), done_bytes, total_bytes });
        }
        self.waiting.extend(self.inbox.try_iter());
        if self.waiting.contains(&Command::Quit) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// A run that cannot even begin: wait for the listener to go.
    pub(super) fn fail_for_good(&mut self, why: &str) {
        self.tell(Status::Failed(why.into()));
        while !matches!(self.inbox.recv(), Ok(Command::Quit) | Err(_)) {}
    }
}
