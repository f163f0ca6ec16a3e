//! kvista lets a person *see* what an LLM's KV cache does: a terminal profiler and visualizer.
//!
//! # The house
//!
//! One type travels, [`event::Step`]: live runs and replays produce steps, [`state`] folds them, [`ui`] draws the
//! state. A view cannot know where its data came from. Each room may use only the floors below it:
//!
//! | floor | rooms | |
//! |---|---|---|
//! | 7 | `main`, [`cli`] | parse, dispatch, exit code |
//! | 6 | [`ui`] | terminal guard, layout, views, widgets, theme: draws, never decides |
//! | 5 | [`app`], [`eval`] | messages to effects, the command registry, overlays, key map; task runs, which drive the engine |
//! | 4 | [`engine`] | the live loop |
//! | 3 | [`model`], [`trace`], [`state`] | decoder and weights, recordings in and out, reducers |
//! | 2 | [`attention`], [`cache`], [`probe`] | kernels' facade, the paged pool, clock and ring |
//! | 1 | [`policy`], [`quant`], [`device`] | the rules, rows in codes, both pure; what the processor can do |
//! | 0 | [`event`] | ids, units, `Step` |

pub mod app;
pub mod attention;
pub mod cache;
pub mod cli;
pub mod device;
pub mod engine;
pub mod eval;
pub mod event;
pub mod model;
pub mod policy;
pub mod probe;
pub mod quant;
pub mod state;
pub mod trace;
pub mod ui;
