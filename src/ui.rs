//! Floor 6: terminal guard, layout, views, widgets, theme. Draws, never decides.
//!
//! Nothing here touches files, channels or clocks: text, sizes and times come in as arguments, pictures go out. The one
//! exception is [`terminal`], whose guard writes to standard output.
//!
//! - [`draw`]: one frame, from the application's state alone.
//! - [`theme`]: roles, ramps and colour depth. [`theme::Styles`] is the only authority on colours and symbols; no
//!   widget names a colour of its own, and nothing is said by colour alone.
//! - [`terminal`]: entering, leaving, suspending, panicking, drawing a frame.
//! - [`text`]: token text made safe to print. Everything that came from a model or a recording goes through it.
//! - [`number`]: figures of constant width.
//! - [`widgets`]: pictures that know nothing of the application's state.
//! - [`layout`]: which panes fit where.
//! - [`sweep`]: what `kvista eval --sweep` found, as a heat picture.
//! - [`export`]: a finished frame as text, ANSI, SVG or JSON.

mod chrome;
pub mod draw;
pub mod export;
pub mod layout;
pub mod number;
mod overlays;
pub mod sweep;
pub mod terminal;
pub mod text;
pub mod theme;
mod views;
pub mod widgets;
