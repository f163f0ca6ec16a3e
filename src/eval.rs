//! Floor 5: task runs. What a model still knows under a cache that loses, skips or shrinks something, counted.
//!
//! Every task runs through the [`Engine`](crate::engine::Engine), as `kvista run` does: the context is fed and the policy
//! acts at its end; then question and answer are fed token by token, the right ones whatever the model would have said.
//! An answer is exact when every one of its tokens was the model's own choice, which is what greedy decoding would have
//! shown, and its loss is known besides.
//!
//! The tasks are in the [demo model's](crate::model::demo) own language. Their prompts are made by seed, from other
//! random numbers than the documents that the model was trained on.

mod acceptance;
mod heads;
mod lab;
mod recall;
mod report;
mod statistics;
mod stories;
pub mod sweep;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use std::path::PathBuf;

use thiserror::Error;

pub use self::acceptance::{Line, REPEATED, VOTES, demo, repeated_regimes, vote_regimes};
pub use self::heads::heads;
pub use self::lab::{Lab, Progress, Regime, Span};
pub use self::recall::{controls, passkey, recall, repeated, votes};
pub use self::report::{Row, Table};
pub use self::statistics::Measure;
pub use self::stories::{losses, stories};
use crate::engine::EngineError;
use crate::model::{Model, demo as language};
use crate::policy::SpecError;

/// Why a task cannot be run.
#[derive(Debug, Error)]
pub enum EvalError {
    /// The model reads another word list.
    #[error("model '{0}' has a word list of its own; the tasks are written in the demo model's")]
    OtherLanguage(String),
    /// A prompt longer than the model was made for.
    #[error("a prompt of {tokens} tokens: use {least} to {most} with this model")]
    Length {
        /// Asked for.
        tokens: usize,
        /// Fewest.
        least: usize,
        /// Most.
        most: usize,
    },
    /// A file of results that cannot be used.
    #[error("{}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl EvalError {
    /// Whether the person can mend it, as opposed to a fault of ours.
    pub fn is_input(&self) -> bool {
        match self {
            Self::OtherLanguage(_) | Self::Length { .. } | Self::File { .. } => true,
            Self::Engine(error) => error.is_input(),
        }
    }
}

impl From<SpecError> for EvalError {
    fn from(error: SpecError) -> Self {
        Self::Engine(error.into())
    }
}

/// What every fallible call of this room returns.
pub type Result<T> = std::result::Result<T, EvalError>;

/// Refuses a model that reads other tokens than the tasks are made of.
fn check_language(model: &Arc<Model>) -> Result<()> {
    if language::is_spoken_by(&model.tokenizer) {
        Ok(())
    } else {
        Err(EvalError::OtherLanguage(model.decoder.card().name.clone()))
    }
}
