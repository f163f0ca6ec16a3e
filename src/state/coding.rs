//! Rows that went into codes: what it cost, by layer and by K channel.

use serde::{Deserialize, Serialize};

use super::FoldError;
use crate::event::attention::dequantise;
use crate::event::{CodingError, Head, MAX_CHANNELS, ModelCard, Step};

/// Every layer's errors since the run began (measured).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coding {
    /// One per layer; empty until a row goes into codes.
    pub layers: Vec<CodedLayer>,
}

/// One layer's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CodedLayer {
    /// Keys.
    pub k: CodingError,
    /// Values.
    pub v: CodingError,
    /// K rows that compaction decoded.
    pub recoded_rows: u64,
    /// Relative error of each K channel as a cell of [`attention::quantise`](crate::event::attention::quantise),
    /// `[kv_head][channel]`, newest; empty where it was not told.
    pub k_channels: Vec<u8>,
}

/// One K channel's error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ChannelError {
    /// KV head.
    pub kv_head: Head,
    /// Element of the head.
    pub channel: u32,
    /// Relative error, to 2.2 %.
    pub relative: f32,
}

impl CodedLayer {
    /// The `n` K channels of largest relative error, largest first, the lower ones first among equals.
    pub fn worst_channels(&self, n: usize, head_dim: u32) -> Vec<ChannelError> {
        let mut order: Vec<usize> = (0..self.k_channels.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(self.k_channels[i]));
        let channel = |i: usize| ChannelError {
            kv_head: (i as u32 / head_dim.max(1)) as Head,
            channel: i as u32 % head_dim.max(1),
            relative: dequantise(self.k_channels[i]),
        };
        order.into_iter().take(n).map(channel).collect()
    }
}

impl Coding {
    pub(super) fn fold(&mut self, step: &Step, model: &ModelCard) -> Result<(), FoldError> {
        if step.coding.is_empty() {
            return Ok(());
        }
        self.layers.resize_with(model.layers as usize, CodedLayer::default);
        for told in &step.coding {
            let layer = self.layers.get_mut(usize::from(told.layer));
            let Some(layer) = layer.filter(|_| told.k_channels.len() <= MAX_CHANNELS) else {
                return Err(FoldError::Contradiction {
                    step: step.step,
                    what: format!("rows of layer {} in codes do not fit the model", told.layer),
                });
            };
            layer.k = layer.k.with(&told.k);
            layer.v = layer.v.with(&told.v);
            layer.recoded_rows = layer.recoded_rows.saturating_add(told.recoded_rows);
            if !told.k_channels.is_empty() {
                layer.k_channels.clone_from(&told.k_channels);
            }
        }
        Ok(())
    }

    /// Whether a keyframe's errors are of a run with so many layers.
    pub(super) fn is_sound(&self, layers: usize) -> bool {
        let few = |layer: &CodedLayer| layer.k_channels.len() <= MAX_CHANNELS;
        [0, layers].contains(&self.layers.len()) && self.layers.iter().all(few)
    }

    /// Errors of keys and of values, all layers together.
    pub fn sum(&self) -> (CodingError, CodingError) {
        self.layers.iter().fold(<_>::default(), |(k, v): (CodingError, CodingError), layer| {
            (k.with(&layer.k), v.with(&layer.v))
        })
    }
}
