//! What can go wrong with a recording, one line each.

use thiserror::Error;

use super::FORMAT;
use crate::event::StepId;

/// Why a recording could not be read or written. Each message names the file and says what to do.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The file could not be opened or read.
    #[error("{file}: cannot {doing}: {source}")]
    Io {
        /// The file, as it was given.
        file: String,
        /// `open`, `read`, `create`.
        doing: &'static str,
        /// The system's word on it.
        source: std::io::Error,
    },
    /// Not a recording at all.
    #[error("{file}: not a kvista recording ({why}): give a file made by 'kvista run --record FILE'")]
    Foreign {
        /// The file, as it was given.
        file: String,
        /// What it is instead.
        why: String,
    },
    /// A recording of a later format.
    #[error(
        "{file}: written by a newer kvista (format {found}, this one reads up to {FORMAT}): update kvista"
    )]
    Newer {
        /// The file, as it was given.
        file: String,
        /// Its format.
        found: u32,
    },
    /// A recording with a part that cannot be trusted.
    #[error("{file}: damaged ({why}): 'kvista verify' tells how much, 'kvista repair' saves what is whole")]
    Damaged {
        /// The file, as it was given.
        file: String,
        /// Where and how.
        why: String,
    },
    /// A step that no reader would accept was given to the writer; the file is as it was before.
    #[error("{file}: step {step} cannot be recorded: {why}")]
    Unsound {
        /// The file, as it was given.
        file: String,
        /// The step.
        step: StepId,
        /// What is wrong with it.
        why: String,
    },
    /// Writing failed; the file ends at its last whole chunk.
    #[error("{file}: recording stopped, cannot write: {cause}: free space or record to another file")]
    Write {
        /// The file, as it was given.
        file: String,
        /// The system's word on it.
        cause: String,
    },
    /// A call after [`TraceError::Write`].
    #[error("{file}: recording had stopped before: {cause}")]
    Stopped {
        /// The file, as it was given.
        file: String,
        /// What stopped it.
        cause: String,
    },
}
