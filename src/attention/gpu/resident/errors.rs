//! How far rows in codes are off, measured where they are written.

use super::GpuAttention;
use crate::attention::gpu::heads;
use crate::device::gpu::{Array, Gpu, Result, Room};
use crate::device::launch::{CodingErrors, Heads};
use crate::event::CodingError;

/// What the rows of a step lost in a layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerErrors {
    /// Keys.
    pub k: CodingError,
    /// Values.
    pub v: CodingError,
    /// Squared error and squares of each K channel, `[kv_head][channel]`, of all steps that were measured; empty where
    /// nobody asked.
    pub k_channels: Vec<[f64; 2]>,
}

/// Those of all layers, on the device.
pub(super) struct Errors<G: Gpu> {
    /// `[layer]`: of this step.
    sums: Room<G>,
    /// `[layer]`: of all steps, once there is one.
    channels: Room<G>,
    begun: bool,
}

impl<G: Gpu> Errors<G> {
    pub(super) const fn new() -> Self {
        Self { sums: Room::new("errors of codes"), channels: Room::new("errors of codes"), begun: false }
    }

    /// Where those of all layers lie.
    fn arrays(&mut self, gpu: &G, layers: usize, heads: Heads) -> Result<[Array; 2]> {
        let bytes = layers * CodingErrors::channels_bytes(heads);
        let sums = self.sums.of(gpu, layers * CodingErrors::sums_bytes(heads.kv_heads))?;
        let channels = self.channels.of(gpu, bytes)?;
        if !std::mem::replace(&mut self.begun, true) {
            gpu.clear(channels, bytes)?;
        }
        Ok([sums, channels])
    }
}

impl<G: Gpu> GpuAttention<G> {
    /// Measures the rows of a layer, `[token][kv_head][head_dim]` each.
    pub(super) fn measure_rows(&mut self, layer: usize, [keys, values]: [Array; 2]) -> Result<()> {
        let (heads, layers) = (heads(self.shape), self.batch.step.layers);
        let [sums, channels] = self.batch.errors.arrays(&self.gpu, layers, heads)?;
        let errors = CodingErrors {
            heads,
            tokens: self.batch.step.positions.len(),
            keys,
            values,
            sums: sums.offset(layer * CodingErrors::sums_bytes(heads.kv_heads)),
            channels: channels.offset(layer * CodingErrors::channels_bytes(heads)),
        };
        errors.launch(&self.gpu)
    }

    pub(super) fn fetch_errors(&mut self, with_channels: bool) -> Result<Vec<LayerErrors>> {
        let (heads, layers) = (heads(self.shape), self.batch.step.layers);
        if !self.batch.step.measured {
            return Ok(Vec::new());
        }
        let [sums, channels] = self.batch.errors.arrays(&self.gpu, layers, heads)?;
        let per_layer = heads.kv_heads * heads.head_dim;
        let mut of_channels = vec![[0.0f64; 2]; if with_channels { layers * per_layer } else { 0 }];
        if with_channels {
            self.gpu.download(channels, bytemuck::cast_slice_mut(&mut of_channels))?;
        }
        let mut of_heads = vec![[0.0f64; 2]; 2 * layers * heads.kv_heads];
        self.gpu.download(sums, bytemuck::cast_slice_mut(&mut of_heads))?;
        let rows = (self.batch.step.positions.len() * heads.kv_heads) as u64;
        let sum = |of_heads: &[[f64; 2]]| {
            of_heads.iter().fold(CodingError { rows, ..CodingError::default() }, |sum, of| {
                sum.with(&CodingError { rows: 0, squared_error: of[0], squares: of[1] })
            })
        };
        let of_layer = |(layer, of_heads): (usize, &[[f64; 2]])| {
            let (k, v) = of_heads.split_at(heads.kv_heads);
            let k_channels = of_channels.chunks(per_layer).nth(layer).unwrap_or_default().to_vec();
            LayerErrors { k: sum(k), v: sum(v), k_channels }
        };
        Ok(of_heads.chunks(2 * heads.kv_heads).enumerate().map(of_layer).collect())
    }
}
