//! A part of several rows.

use super::GpuAttention;
use super::pull::Pulled;
use crate::attention::gpu::prefill::Chunk;
use crate::attention::gpu::tables::{Part, Tables};
use crate::attention::{HeadLane, RowSink, Wants};
use crate::device::gpu::{Gpu, Result};

impl<G: Gpu> GpuAttention<G> {
    pub(super) fn prefill_part(
        &mut self,
        part: usize,
        lanes: &[HeadLane<'_>],
        wants: Wants,
        sinks: &mut [&mut dyn RowSink],
    ) -> Result<()> {
        assert!(sinks.is_empty() || sinks.len() == lanes.len(), "one sink per KV head, or none");
        self.begin(lanes);
        self.begin_sums(lanes, wants);
        let now = self.batch.now().clone();
        let (own, width) = (&now.parts[part], self.shape.width());
        let tables = Tables { lanes: now.lanes(part, self.shape.kv_heads()), ..now.tables };
        let stride = Self::matrix_stride(lanes);
        let gpu = self.gpu.clone();
        let (values, values_pulled) = if now.values_on_host {
            // What was made of the values before is read no more once the compute queue has come so far.
            let copies = self.batch.copies.clone();
            self.matrix_room(Part::Values, stride)?;
            copies.after(&gpu.mark()?)?;
            let begun = self.clocked_copies()?;
            let values = self.gather_matrix(&copies, &tables, Part::Values, stride)?;
            (values, Some(Pulled { begun, done: copies.mark()? }))
        } else {
            (self.gather_matrix(&gpu, &tables, Part::Values, stride)?, None)
        };
        let mut chunk = Chunk {
            queries: now.q.offset(4 * own.first_row * width),
            outputs: now.out.offset(4 * own.first_row * width),
            first: own.first,
            tokens: own.tokens,
            keys: self.gather_matrix(&gpu, &tables, Part::Keys, stride)?,
            values,
            stride,
            values_pulled,
            lanes: tables.lanes,
            positions: tables.positions,
            sums: self.sums_of(part),
        };
        self.attend_chunk(&mut chunk, lanes, wants, sinks).map(|_| ())
    }
}
