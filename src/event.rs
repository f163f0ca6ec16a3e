//! Floor 0: the words every other room speaks. Ids, units and the one type that travels, [`Step`].
//!
//! A [`Step`] is a plain record of what happened in one engine step. Live runs, replays, re-decisions and imports all
//! *produce* steps; `state` *folds* them; `ui` draws the state. Everything lossy about a recording happens here, in the
//! types: eviction scores are [`half::f16`], attention cells are one logarithmic byte ([`attention::quantise`]). A step
//! that was written and read back is therefore equal to the step that was written, and a live run folds exactly what a
//! replay folds.
//!
//! This room imports nothing of ours.

pub mod attention;
pub mod crush;
pub mod evict;
pub mod ids;
pub mod merge;
pub mod reads;
pub mod run;
pub mod shadow;
pub mod step;
pub mod traffic;
pub mod units;

pub use attention::{AttentionGroup, AttentionMap, Cells, HeadRow, ScoreLevel};
pub use crush::Crush;
pub use evict::{Eviction, Reason};
pub use ids::{BlockId, Head, Layer, Position, SeqId, StepId};
pub use merge::{Drift, Merge, MergeArc};
pub use reads::LayerReads;
pub use run::{Has, ModelCard, RunInfo, Settings};
pub use shadow::{Judged, LaneRegret, Shadow};
pub use step::{
    CodingError, Fed, Finish, LayerCoding, MAX_CHANNELS, Origin, PHASES, Phase, Piece, ProbeCost, Sampled,
    SeqStep, Stage, Step, TableOps, Tier, TierUse, Tuning,
};
pub use traffic::LayerTraffic;
pub use units::Provenance;
