//! Floor 2: clock and ring: what observing is made of.
//!
//! [`clock`] says where the time of a step goes, [`mod@ring`] hands what was observed to another thread without ever
//! holding up the engine.

pub mod clock;
pub mod ring;

pub use clock::{Clock, PhaseTimer, StepTime};
pub use ring::{Receiver, Sender, ring};
