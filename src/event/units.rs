//! What kind of number a number is. Every figure shown or exported says so.

use serde::{Deserialize, Serialize};

/// How a shown number came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provenance {
    /// Clocked or counted in this run.
    Measured,
    /// Measured on some steps only.
    Sampled,
    /// Computed from measured values; the help says the formula.
    Derived,
    /// Assumes something that was not measured here, such as a link speed.
    Modelled,
}

impl Provenance {
    /// The word shown beside a number.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Sampled => "sampled",
            Self::Derived => "derived",
            Self::Modelled => "modelled",
        }
    }

    /// The one-letter mark for tight columns: `m`, `s`, `d`, `~`.
    pub const fn mark(self) -> char {
        match self {
            Self::Measured => 'm',
            Self::Sampled => 's',
            Self::Derived => 'd',
            Self::Modelled => '~',
        }
    }
}
