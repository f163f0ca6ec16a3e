//! What tests see of a forward beyond its step, and how they make one run say what another said.

use std::collections::VecDeque;

use super::Engine;
use crate::model::Drawn;

/// Watches an engine from the inside.
#[derive(Default)]
pub(super) struct Witness {
    /// Ids to go on with in place of those drawn (teacher forcing).
    pub(super) forced: VecDeque<u32>,
    /// The logits of every draw, in order.
    pub(super) logits: Vec<Vec<f32>>,
    /// Exact probabilities of the newest step's last query, `[layer][query head][slot]`.
    pub(super) rows: Vec<Vec<Vec<f32>>>,
}

impl Witness {
    /// Takes the logits down, and puts the next forced id in place of the one drawn.
    pub(super) fn draw(&mut self, drawn: Drawn, logits: &[f32]) -> Drawn {
        self.logits.push(logits.to_vec());
        Drawn { id: self.forced.pop_front().unwrap_or(drawn.id), ..drawn }
    }
}

impl Engine {
    /// Takes down the probabilities that attention has just left behind.
    pub(super) fn witness_rows(&mut self, layer: usize) {
        let probabilities = self.attention.probabilities();
        let heads = 0..probabilities.kv_heads() * probabilities.group();
        let rows = heads.map(|head| probabilities.row(head).to_vec()).collect();
        self.witness.rows.truncate(layer);
        self.witness.rows.push(rows);
    }
}
