//! Floor 4: the live loop. Owns model, cache and policy, and produces one [`Step`](crate::event::Step) per forward.
//!
//! * [`Engine`] is the loop's body, synchronous: one call, one step. Headless runs and benchmarks drive it directly.
//! * [`live`] puts it on a thread of its own, obeys [`Command`]s between steps, keeps the pace and starts re-runs.
//! * [`Feed`] hands every [`Item`] to listeners over bounded rings; the engine never waits for one. A listener that
//!   falls behind loses steps, is told so, and goes on from a whole [`State`](crate::state::State).
//! * [`Told`] is how a model took a text that it was made to say ([`Engine::teach`]).
//! * [`Trunk`] is a prompt fed once, for runs that differ in what becomes of its cache.
//! * A turn of a conversation goes on where an answer ended ([`Engine::say`]).
//! * A layer that looks at a window drops what has left it, beside what the policy takes
//!   ([`Reason::LayerWindow`](crate::event::Reason::LayerWindow)).
//! * A full-cache twin may follow the run and tell what it costs (`--shadow`).
//! * [`Engine::fill`] stands in for a long prompt where only the time of what follows is of interest.
//! * On a GPU ([`backend`]) rows stay on the device wherever nobody on the host reads them.
//! * [`recorder`] is a listener that writes a file.

mod accumulate;
pub mod backend;
mod brought;
mod copies;
mod core;
mod decide;
mod error;
#[cfg(test)]
mod families;
mod fault;
mod feed;
mod fill;
mod forward;
#[cfg(test)]
mod golden;
mod infllm;
#[cfg(test)]
mod kvpress;
mod lanes;
mod link;
pub mod live;
mod memory;
mod merging;
mod pages;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod quantised;
pub mod recorder;
mod resident;
mod sequence;
mod setup;
mod shadow;
mod sums;
mod teacher;
mod trunk;
mod turns;
#[cfg(test)]
mod witness;

pub use core::{Engine, Observe};
pub use error::EngineError;
pub use fault::Fault;
pub use feed::{Feed, ListenerId};
pub use link::{Command, Item, Prompt, Reference, Status};
pub use recorder::{Recorded, Recorder};
pub use setup::{check, pool_blocks};
pub use teacher::Told;
pub use trunk::Trunk;
pub use turns::Said;
