//! V traffic between tiers: what moved in the newest decode step, and since the run began.

use serde::{Deserialize, Serialize};

use crate::event::{LayerTraffic, Provenance, Stage, Step};

/// Per layer, newest step and totals.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// The newest step's traffic, one entry per layer (zero where nothing moved).
    pub last: Vec<LayerTraffic>,
    /// Sums since the run began, one entry per layer.
    pub total: Vec<LayerTraffic>,
    /// Steps in which anything moved host to device.
    pub pull_steps: u64,
    /// What chunks of the prompt have of the sum of all layers' `copy_ns`, where a device is clocked now and then.
    #[serde(skip)]
    pub prompt_copy_ns: u64,
}

impl Traffic {
    pub(super) fn new(layers: usize) -> Self {
        let empty: Vec<_> =
            (0..layers).map(|l| LayerTraffic { layer: l as u16, ..LayerTraffic::default() }).collect();
        Self { last: empty.clone(), total: empty, pull_steps: 0, prompt_copy_ns: 0 }
    }

    pub(super) fn fold(&mut self, step: &Step) {
        for (l, entry) in self.last.iter_mut().enumerate() {
            *entry = LayerTraffic { layer: l as u16, ..LayerTraffic::default() };
        }
        for t in &step.traffic {
            let Some((last, total)) =
                self.last.get_mut(t.layer as usize).zip(self.total.get_mut(t.layer as usize))
            else {
                continue;
            };
            *last = *t;
            total.add(t);
            if step.timing == Provenance::Sampled && step.stage() == Stage::Prefill {
                self.prompt_copy_ns = self.prompt_copy_ns.saturating_add(t.copy_ns);
            }
        }
        self.pull_steps += u64::from(step.traffic.iter().any(|t| t.h2d_bytes > 0));
    }

    /// Whether any V row ever crossed a tier.
    pub fn any(&self) -> bool {
        self.total.iter().any(|t| t.h2d_bytes + t.d2h_bytes > 0)
    }

    /// Sum over the layers of the totals.
    pub fn sum(&self) -> LayerTraffic {
        sum(&self.total)
    }

    /// Sum over the layers of the newest step.
    pub fn last_sum(&self) -> LayerTraffic {
        sum(&self.last)
    }
}

fn sum(layers: &[LayerTraffic]) -> LayerTraffic {
    layers.iter().fold(LayerTraffic::default(), |mut sum, layer| {
        sum.add(layer);
        sum
    })
}
