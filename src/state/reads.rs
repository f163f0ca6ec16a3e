//! What a read set by pages read in the newest step, and since the run began.

use serde::{Deserialize, Serialize};

use super::FoldError;
use crate::event::{LayerReads, Step};

/// Per layer, newest step and totals; both empty until a read set by pages has acted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reads {
    /// The newest step's, one entry per layer (zero where everything was read).
    pub last: Vec<LayerReads>,
    /// Sums since the run began, one entry per layer.
    pub total: Vec<LayerReads>,
}

impl Reads {
    pub(super) fn fold(&mut self, step: &Step, layers: usize) -> Result<(), FoldError> {
        let blank = |n| -> Vec<LayerReads> {
            (0..n).map(|layer| LayerReads { layer: layer as u16, ..LayerReads::default() }).collect()
        };
        if step.reads.is_empty() {
            self.last = blank(self.total.len());
            return Ok(());
        }
        if self.total.is_empty() {
            self.total = blank(layers);
        }
        self.last = blank(layers);
        for reads in &step.reads {
            let layer = usize::from(reads.layer);
            let Some((last, total)) = self.last.get_mut(layer).zip(self.total.get_mut(layer)) else {
                return Err(FoldError::Contradiction {
                    step: step.step,
                    what: format!("it reads pages of layer {layer}, which the model has not"),
                });
            };
            *last = *reads;
            total.add(reads);
        }
        Ok(())
    }

    /// Whether a keyframe's columns are of a run with so many layers.
    pub(super) fn is_sound(&self, layers: usize) -> bool {
        [&self.last, &self.total].iter().all(|column| column.is_empty() || column.len() == layers)
            && self.last.len() == self.total.len()
    }

    /// Sum over the layers of the totals.
    pub fn sum(&self) -> LayerReads {
        sum(&self.total)
    }

    /// Sum over the layers of the newest step.
    pub fn last_sum(&self) -> LayerReads {
        sum(&self.last)
    }
}

fn sum(layers: &[LayerReads]) -> LayerReads {
    layers.iter().fold(LayerReads::default(), |mut sum, layer| {
        sum.add(layer);
        sum
    })
}
