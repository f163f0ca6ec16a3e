//! How far a model is, for those without a screen: on standard error, so that results stay clean.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::model::Progress;
use crate::ui::number;
use crate::ui::text;
use crate::ui::theme::Symbols;

/// What is done sooner is not worth a word.
const SILENT_FOR: Duration = Duration::from_millis(500);
/// How often the line of a terminal changes.
const EVERY: Duration = Duration::from_millis(100);
/// How often a line is added to a log.
const EVERY_LINE: Duration = Duration::from_secs(5);

/// Hears of progress; an interrupt ends what is under way.
pub(super) struct Loading {
    interrupted: Arc<AtomicBool>,
    on_terminal: bool,
    begun: Instant,
    last: Option<Instant>,
    /// Columns of the line that stands on the terminal.
    drawn: usize,
}

impl Loading {
    pub(super) fn new(interrupted: &Arc<AtomicBool>) -> Self {
        Self {
            interrupted: Arc::clone(interrupted),
            on_terminal: io::stderr().is_terminal(),
            begun: Instant::now(),
            last: None,
            drawn: 0,
        }
    }

    pub(super) fn hear(&mut self, progress: &Progress<'_>) -> ControlFlow<()> {
        let every = if self.on_terminal { EVERY } else { EVERY_LINE };
        let is_due = self.last.map_or(self.begun.elapsed() >= SILENT_FOR, |last| last.elapsed() >= every);
        if is_due {
            self.last = Some(Instant::now());
            let line = line(progress);
            // Nobody reads it: no reason to stop.
            let _ = if self.on_terminal {
                let width = text::width(&line);
                let rest = " ".repeat(self.drawn.saturating_sub(width));
                self.drawn = width;
                write!(io::stderr(), "\r{line}{rest}")
            } else {
                writeln!(io::stderr(), "{line}")
            };
        }
        if self.interrupted.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Takes the terminal's line away.
    pub(super) fn end(&mut self) {
        if self.drawn > 0 {
            let _ = write!(io::stderr(), "\r{}\r", " ".repeat(self.drawn));
            self.drawn = 0;
        }
    }
}

/// `loading org/name/model.safetensors: 1.2 GB of 3.4 GB, 35 %`.
fn line(progress: &Progress<'_>) -> String {
    let Progress { what, done_bytes, total_bytes } = *progress;
    let what = text::safe(what.as_bytes(), Symbols::Ascii);
    let share = if total_bytes > 0 { done_bytes as f64 / total_bytes as f64 } else { 0.0 };
    format!(
        "loading {what}: {} of {}, {:.0} %",
        number::bytes(done_bytes).trim(),
        number::bytes(total_bytes).trim(),
        share * 100.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_and_how_far() {
        let progress = Progress { what: "a\u{1b}[2J", done_bytes: 512 << 20, total_bytes: 1 << 30 };
        assert_eq!(line(&progress), "loading a^[[2J: 512 MiB of 1.00 GiB, 50 %");
    }

    #[test]
    fn an_interrupt_ends_it() {
        let flag = Arc::new(AtomicBool::new(false));
        let mut loading = Loading::new(&flag);
        let progress = Progress { what: "w", done_bytes: 0, total_bytes: 1 };
        assert!(loading.hear(&progress).is_continue());
        flag.store(true, Ordering::Relaxed);
        assert!(loading.hear(&progress).is_break());
    }
}
