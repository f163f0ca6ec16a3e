//! What can end a run.

use thiserror::Error;

use crate::cache::CacheError;
use crate::device::gpu::DeviceError;
use crate::model;
use crate::policy::SpecError;
use crate::state::FoldError;

/// Why a run cannot start or go on.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The settings are wrong or do not fit the model or the prompt; one clear line.
    #[error("{0}")]
    Setting(String),
    /// A policy or read set is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The model refused.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The GPU is not to be had, cannot do what was asked, or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The cache refused; pool exhaustion is not among these, it ends the sequence.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The step just made does not follow from those before: a fault of kvista's own.
    #[error("internal fault: {0}")]
    Fold(#[from] FoldError),
}

impl EngineError {
    /// Whether the person can mend it (bad settings or input), as opposed to a fault of ours.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Setting(_) | Self::Spec(_) | Self::Cache(_) => true,
            Self::Model(error) => error.is_bad_input(),
            Self::Device(error) => !matches!(error, DeviceError::Call { .. }),
            Self::Fold(_) => false,
        }
    }
}
