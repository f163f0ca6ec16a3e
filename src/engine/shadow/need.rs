//! What a twin weighs.

use super::super::EngineError;
use super::twin::BLOCK_SIZE;
use crate::event::RunInfo;

/// Bytes of an f32.
const ELEMENT: u64 = 4;
/// Bytes of a position's account in the ledger.
const ACCOUNT: u64 = 8;

/// The terms of a twin's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Need {
    layers: u64,
    kv_heads: u64,
    head_dim: u64,
    /// Longest that a sequence can get.
    tokens: u64,
    sequences: u64,
}

impl Need {
    pub(super) fn of(info: &RunInfo) -> Self {
        let (model, settings) = (&info.model, &info.settings);
        Self {
            layers: model.layers.into(),
            kv_heads: model.kv_heads.into(),
            head_dim: model.head_dim.into(),
            tokens: info.longest().into(),
            sequences: settings.batch.into(),
        }
    }

    /// Of one sequence of so many tokens: whole pages, and an account per row.
    pub(super) const fn bytes_at(&self, tokens: u64) -> u64 {
        let slots = tokens.next_multiple_of(BLOCK_SIZE as u64);
        self.layers * self.kv_heads * (2 * self.head_dim * ELEMENT + ACCOUNT) * slots
    }

    /// Refuses a twin that does not fit, with the arithmetic.
    pub(super) fn check(&self, free_bytes: u64) -> Result<(), EngineError> {
        let Self { layers, kv_heads, head_dim, tokens, sequences } = *self;
        let needed_bytes = sequences.saturating_mul(self.bytes_at(tokens));
        if needed_bytes <= free_bytes {
            return Ok(());
        }
        let slots = tokens.next_multiple_of(BLOCK_SIZE.into());
        let times = if sequences > 1 { format!(" x {sequences} sequences") } else { String::new() };
        Err(EngineError::Setting(format!(
            "--shadow: the twin needs {} ({layers} layers x {kv_heads} KV heads x (2 x {head_dim} x {ELEMENT} B + \
             {ACCOUNT} B) x {slots} slots{times}), {} is free: shorten the prompt, lower --max-tokens, or leave --shadow \
             out",
            mebibytes(needed_bytes),
            mebibytes(free_bytes)
        )))
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
