//! A step whose rows stay on the device: nothing of queries, keys, values and what is attended passes the host, which has
//! no pages either. Where somebody on the host reads rows, the step goes the other way ([`super::copies`]).

use super::EngineError;
use super::accumulate::RowsInto;
use super::core::{Engine, Observe, reading};
use super::forward::Gathered;
use super::lanes::Lanes;
use super::sequence::Work;
use crate::attention::gpu::{
    Choice, LaneTable, LayerErrors, LayerRows, Part, Picture, Resident, StepRows, TopRows,
};
use crate::attention::{Attention, RowSink, Wants, observe, picture_group};
use crate::cache::{Cache, CacheConfig, KvDtype, KvShape, PageOp};
use crate::event::{BlockId, Head, Layer, LayerTraffic, Phase, Position, ScoreLevel, SeqId, Stage};
use crate::model::Stream;
use crate::policy::{Merging, Needs, Policy, ReadRule, ReadSet, Rope};

/// Steps from one that is clocked on the device to the next.
const CLOCKED_EVERY: u64 = 32;

/// Whether nobody on the host reads a row of these pages.
pub(super) fn may_stay(
    policy: &Policy,
    needs: Needs,
    read: Option<&ReadSet>,
    merge: Option<&Merging>,
    dtype: KvDtype,
) -> bool {
    let reads_rows = needs.keys || needs.values || needs.queries.is_some() || merge.is_some();
    let by_rows = read.is_none_or(|read| matches!(read.rule(), ReadRule::Kcache(_)));
    !dtype.goes_into_codes_later() && by_rows && !reads_rows && policy.rope() == Rope::Post
}

/// Takes memory for a pool that is bounded (`--blocks`) at once, as far as so many tokens need it: a slab that grows lies there
/// twice meanwhile, and what just fits would not fit then. Each kind of layer has its share of the pool.
pub(super) fn reserve_pool(
    device: &mut dyn Resident,
    config: &CacheConfig,
    tokens: u64,
    batch: u32,
) -> Result<(), EngineError> {
    let KvShape { layers, kv_heads, .. } = config.shape;
    let (layers, kv_heads, blocks) = (u64::from(layers), u64::from(kv_heads), u64::from(config.blocks));
    let per_layer = kv_heads * u64::from(batch) * tokens.div_ceil(config.block_size.into());
    for on_host in [false, true] {
        let of_kind =
            (0..config.shape.layers).filter(|&layer| config.v_on_host(layer) == on_host).count() as u64;
        let pages = (of_kind * per_layer).min(blocks * of_kind / layers);
        device.reserve(pages as usize, on_host)?;
    }
    Ok(())
}

impl Engine {
    /// Whether rows stay on the device.
    pub(super) const fn rows_stay(&self) -> bool {
        !self.cache.has_pages()
    }

    fn device(&mut self) -> &mut dyn Resident {
        device(&mut *self.attention)
    }

    /// Whether the phases of the step that begins are clocked: on a device, where that costs, every so many are, the first
    /// of all and the first of decoding among them.
    pub(super) fn clocks_phases(&mut self) -> bool {
        if self.observe == Observe::Off || !self.rows_stay() {
            return self.observe != Observe::Off;
        }
        let (next, decoded) = self.next_clocked;
        let decodes = self.is_decoding();
        let clocks = self.step >= next || (decodes && !decoded);
        if clocks {
            self.next_clocked = (self.step + CLOCKED_EVERY, decodes);
        }
        clocks
    }

    /// All layers of a step.
    pub(super) fn layers_on_device(
        &mut self,
        ids: &[u32],
        work: &[Work],
        gathered: &mut [Gathered],
    ) -> Result<Stream, EngineError> {
        let fed: Vec<usize> = (0..work.len()).filter(|&i| !work[i].computed().is_empty()).collect();
        let layers = self.model.decoder.config().layers;
        let (mut positions, mut parts) = (Vec::new(), Vec::new());
        for (part, w) in fed.iter().map(|&i| &work[i]).enumerate() {
            let first = w.first_computed();
            positions.extend(first..first + w.computed().len() as Position);
            parts.extend(std::iter::repeat_n(part as u32, w.computed().len()));
        }
        let read = match self.read.as_ref().map(ReadSet::rule) {
            Some(ReadRule::Kcache(k)) => {
                Some(TopRows { n: k.n as usize, own: k.include_self, renorm: k.renorm })
            }
            _ => None,
        };
        let (sums, clocked) = (self.kept_sums(), self.timer.is_on());
        let measured = self.observe != Observe::Off && self.cache.config().dtype.is_coded();
        let counted = read.is_some() && self.counts_choices();
        let step = StepRows { positions, parts, layers, read, sums, clocked, measured, counted };
        self.device().begin_step(step)?;
        self.laps.clear();
        self.device().mark()?;
        let mut x = self.arithmetic.embed(&self.model.decoder, ids)?;
        self.lap_on_device(None, Phase::Embed)?;
        for layer in 0..layers {
            x = self.layer_on_device(layer, &x, work, &fed, gathered)?;
        }
        self.note_choices(work, &fed, gathered)?;
        if self.picture_level() != ScoreLevel::Off {
            self.note_pictures(work, &fed, gathered)?;
            self.lap_on_device(None, Phase::Probe)?;
        }
        Ok(x)
    }

    /// Rows made of chance for every token of the work, in all layers.
    pub(super) fn fill_device(&mut self, all: &[Work], seed: u64) -> Result<(), EngineError> {
        let layers = self.model.decoder.config().layers;
        for on_host in [false, true] {
            let of_kind =
                (0..layers).filter(|&layer| self.cache.config().v_on_host(layer as Layer) == on_host);
            let blocks = |layer: usize| -> usize {
                let tables = all.iter().map(|w| self.cache.table(self.sequences[w.index].id, layer as Layer));
                tables
                    .map(|table| (0..table.heads()).map(|h| table.lane(h).block_count()).sum::<usize>())
                    .sum()
            };
            let pages = of_kind.map(blocks).sum();
            self.device().reserve(pages, on_host)?;
        }
        for layer in 0..layers {
            for w in all {
                let seq = self.sequences[w.index].id;
                self.cache.note_written(seq, layer as Layer, 0, w.ids.len())?;
                self.count_push(seq, layer, w.ids.len());
            }
            let parts: Vec<Part<'_>> =
                all.iter().map(|w| new_part(&self.cache, self.sequences[w.index].id, layer, w)).collect();
            let on_host = self.cache.config().v_on_host(layer as Layer);
            let device = device(&mut *self.attention);
            device.fill(layer as Layer, &parts, on_host, seed as u32)?;
        }
        Ok(())
    }

    /// What was decided is done to the device's pages where they are there alone: after every decision, as no lane may move
    /// together twice in one launch.
    pub(super) fn carry_out_on_device(&mut self) -> Result<(), EngineError> {
        let ops = self.cache.take_page_ops();
        let mut ops = &ops[..];
        let Some(device) = self.attention.resident() else { return Ok(()) };
        while let Some((op, rest)) = ops.split_first() {
            ops = rest;
            match op {
                PageOp::Copy { from, to } => device.copy_page(*from, *to)?,
                PageOp::Free(block) => device.free(&[*block]),
                PageOp::Move { .. } => {
                    // Those in a row are of lanes that have no block in common.
                    let more = rest.iter().take_while(|op| matches!(op, PageOp::Move { .. })).count();
                    let moves: Vec<(&[BlockId], &[u32], u32)> = std::iter::once(op)
                        .chain(&rest[..more])
                        .filter_map(|op| match op {
                            PageOp::Move { blocks, kept, first } => Some((&**blocks, &**kept, *first)),
                            _ => None,
                        })
                        .collect();
                    device.move_rows(&moves)?;
                    ops = &rest[more..];
                }
            }
        }
        Ok(())
    }

    fn layer_on_device(
        &mut self,
        layer: usize,
        x: &Stream,
        work: &[Work],
        fed: &[usize],
        gathered: &mut [Gathered],
    ) -> Result<Stream, EngineError> {
        let at = Some(layer as Layer);
        let rows = self.arithmetic.rows(&self.model.decoder, layer, x)?;
        self.lap_on_device(at, Phase::Qkv)?;
        let values_on_host = self.cache.config().v_on_host(layer as Layer);
        for w in fed.iter().map(|&i| &work[i]) {
            let seq = self.sequences[w.index].id;
            self.cache.note_written(seq, layer as Layer, w.first_computed(), w.computed().len())?;
            self.count_push(seq, layer, w.computed().len());
        }
        let parts: Vec<Part<'_>> = fed
            .iter()
            .map(|&i| new_part(&self.cache, self.sequences[work[i].index].id, layer, &work[i]))
            .collect();
        let rows = LayerRows {
            layer: layer as Layer,
            q: &rows.q,
            k: &rows.k,
            v: &rows.v,
            rope: self.ropes.of(layer),
            scoring: self.model.decoder.config().scoring(layer),
            values_on_host,
        };
        let device = device(&mut *self.attention);
        device.begin_layer(&rows, &parts)?;
        drop(parts);
        self.lap_on_device(at, Phase::Append)?;
        let mut first = 0;
        while first < fed.len() {
            let decodes = fed[first..].iter().take_while(|&&i| work[i].stage == Stage::Decode).count();
            if decodes == 0 {
                self.prefill_on_device(layer, first, &work[fed[first]], &mut gathered[fed[first]])?;
                first += 1;
            } else {
                self.decode_on_device(layer, first, &fed[first..first + decodes], work, gathered)?;
                first += decodes;
            }
        }
        let attended = self.device().output()?;
        let x = self.arithmetic.mix_rows(&self.model.decoder, layer, x, &attended)?;
        self.lap_on_device(at, Phase::Mlp)?;
        Ok(x)
    }

    /// The parts `fed` (indices of work) of one row each, the first of which is part `first` of the step.
    fn decode_on_device(
        &mut self,
        layer: usize,
        first: usize,
        fed: &[usize],
        work: &[Work],
        gathered: &mut [Gathered],
    ) -> Result<(), EngineError> {
        let at = Some(layer as Layer);
        let (level, needs) = (self.picture_level(), self.needs_here());
        let parts = first..first + fed.len();
        // Who goes by the rows themselves has them here; then the picture is made of those too.
        let looks = needs.attention();
        self.device().decode(parts.clone(), looks || level != ScoreLevel::Off)?;
        self.lap_on_device(at, Phase::Score)?;
        if !looks {
            if level != ScoreLevel::Off {
                self.device().draw(level)?;
                self.lap_on_device(at, Phase::Probe)?;
            }
            return Ok(());
        }
        for (part, &i) in parts.zip(fed) {
            self.device().look_at(part)?;
            let seq = self.sequences[work[i].index].id;
            if level != ScoreLevel::Off {
                let pages = Lanes::read_by(&mut *self.attention, &self.cache, seq, layer as Layer);
                let lanes = pages.resident(self.reading(layer));
                let reads = self.read.is_some() && self.cache.config().v_on_host(layer as Layer);
                let selection = reads.then(|| self.attention.selection());
                let probabilities = self.attention.probabilities();
                gathered[i].groups.extend(observe(level, layer as Layer, probabilities, selection, &lanes));
            }
            self.accumulate_decode(layer, &work[i]);
        }
        self.lap_on_device(at, if level == ScoreLevel::Off { Phase::Policy } else { Phase::Probe })
    }

    /// Takes the pictures that the device made of decode steps.
    fn note_pictures(
        &mut self,
        work: &[Work],
        fed: &[usize],
        gathered: &mut [Gathered],
    ) -> Result<(), EngineError> {
        let group = self.model.decoder.config().heads / self.model.decoder.config().kv_heads;
        for Picture { layer, part, rows } in self.device().pictures()? {
            let i = fed[part];
            let table = self.cache.table(self.sequences[work[i].index].id, layer);
            let mut rows = rows.into_iter();
            gathered[i].groups.extend((0..table.heads()).map(|head| {
                let own = rows.by_ref().take(group).collect();
                let first = head * group as Head;
                picture_group(layer, head, first, own, table.lane(head).slots)
            }));
        }
        Ok(())
    }

    fn reading(&self, layer: usize) -> super::lanes::Reading<'_> {
        reading((&self.ropes, self.model.decoder.config()), &self.cache, &self.policy, layer)
    }

    fn prefill_on_device(
        &mut self,
        layer: usize,
        part: usize,
        w: &Work,
        gathered: &mut Gathered,
    ) -> Result<(), EngineError> {
        let at = Some(layer as Layer);
        let seq = self.sequences[w.index].id;
        let (level, needs) = (self.picture_level(), self.needs_here());
        let wants = Wants { column_sums: needs.sum, last_row: needs.last_row || level != ScoreLevel::Off };
        if self.cache.config().v_on_host(layer as Layer) {
            self.count_pull(seq, layer);
        }
        let reading = reading((&self.ropes, self.model.decoder.config()), &self.cache, &self.policy, layer);
        let pages = Lanes::read_by(&mut *self.attention, &self.cache, seq, layer as Layer);
        let lanes = pages.resident(reading);
        let accumulators = &mut self.sequences[w.index].accumulators[layer * lanes.len()..][..lanes.len()];
        let mut sinks: Vec<_> = if needs.rows() {
            accumulators.iter_mut().zip(&lanes).map(|(acc, lane)| RowsInto::new(acc, lane.slots)).collect()
        } else {
            Vec::new()
        };
        let mut sinks: Vec<&mut dyn RowSink> = sinks.iter_mut().map(|sink| sink as _).collect();
        let device = device(&mut *self.attention);
        device.prefill(part, &lanes, wants, &mut sinks)?;
        if self.timer.is_on() {
            device.mark()?;
            self.laps.push((at, Phase::Score));
        }
        if level != ScoreLevel::Off {
            let probabilities = self.attention.probabilities();
            gathered.groups.extend(observe(level, layer as Layer, probabilities, None, &lanes));
        }
        drop(lanes);
        drop(pages);
        if needs.attention() {
            self.accumulate_prefill(layer, w, wants);
        }
        self.check_device()?;
        self.lap_on_device(at, if needs.attention() { Phase::Policy } else { Phase::Probe })
    }

    /// Counts V of a layer that comes from the host for a chunk: all rows, its own too, which went there before.
    fn count_pull(&mut self, seq: SeqId, layer: usize) {
        let table = self.cache.table(seq, layer as Layer);
        let mut traffic = LayerTraffic::default();
        for head in 0..table.heads() {
            let live = table.live(head) as u64;
            traffic.rows += live;
            traffic.asked_rows += live;
            traffic.h2d_bytes += self.cache.live_value_bytes(seq, layer as Layer, head);
        }
        self.traffic[layer].add(&traffic);
    }

    /// Books the time of the device since the last lap, once it is known.
    pub(super) fn lap_on_device(&mut self, layer: Option<Layer>, phase: Phase) -> Result<(), EngineError> {
        if self.timer.is_on() {
            self.device().mark()?;
            self.laps.push((layer, phase));
        }
        Ok(())
    }

    /// Waits for the device and books what it took for each phase. The host goes on from there.
    pub(super) fn settle_laps(&mut self) -> Result<(), EngineError> {
        if self.laps.is_empty() {
            return Ok(());
        }
        let ns = self.device().laps_ns()?;
        for ((layer, phase), ns) in std::mem::take(&mut self.laps).into_iter().zip(ns) {
            self.timer.add(layer, phase, ns);
        }
        for pull in self.device().pulls()? {
            let layer = usize::from(pull.layer);
            self.traffic[layer].copy_ns = pull.copy_ns;
            self.exposed.resize(self.traffic.len(), 1.0);
            // A chunk's values come back behind those that go, so either may be waited for.
            let copied_ns = (pull.push_ns + pull.copy_ns).max(1);
            self.exposed[layer] = (pull.stall_ns as f64 / copied_ns as f64).min(1.0);
            // The wait for rows is in the time of the scores.
            self.timer.shift(Some(pull.layer), Phase::Score, Phase::VPull, pull.stall_ns);
        }
        self.timer.skip();
        Ok(())
    }

    /// Notes how far the rows of this step's tokens are off in their codes.
    pub(super) fn note_errors(&mut self, tokens: usize) -> Result<(), EngineError> {
        let with_channels = self.cache.tells_channels(tokens);
        for (layer, LayerErrors { k, v, k_channels }) in
            self.device().errors(with_channels)?.into_iter().enumerate()
        {
            self.cache.note_coding(layer as Layer, [k, v], &k_channels)?;
        }
        Ok(())
    }

    /// Tells what the decode parts chose to read, and what they dropped.
    fn note_choices(
        &mut self,
        work: &[Work],
        fed: &[usize],
        gathered: &mut [Gathered],
    ) -> Result<(), EngineError> {
        if self.read.is_none() || !self.counts_choices() {
            return Ok(());
        }
        let choices = self.device().choices()?;
        let config = self.model.decoder.config();
        let (layers, heads, kv_heads) = (config.layers, config.heads, config.kv_heads);
        let decodes = fed.iter().enumerate().filter(|&(_, &i)| work[i].stage == Stage::Decode);
        for (part, &i) in decodes {
            let of_layers: Vec<Option<&Choice>> =
                (0..layers).map(|layer| choices.get(layer).and_then(|parts| parts.get(part))).collect();
            for choice in &of_layers {
                match choice {
                    Some(choice) => {
                        let means = choice.dropped.chunks(heads / kv_heads);
                        let mean = |of: &[f32]| of.iter().sum::<f32>() / of.len().max(1) as f32;
                        gathered[i].dropped.extend(means.map(mean));
                    }
                    None => gathered[i].dropped.extend(std::iter::repeat_n(0.0, kv_heads)),
                }
            }
            self.note_pulled(&of_layers);
        }
        Ok(())
    }

    /// Whether it is counted what a step reads of values on the host. What is kept on the device is told apart by what was
    /// pulled before.
    fn counts_choices(&self) -> bool {
        self.observe != Observe::Off || self.info.settings.keep_pulled
    }

    /// Counts what one sequence pulled.
    fn note_pulled(&mut self, choices: &[Option<&Choice>]) {
        let config = self.cache.config();
        let row_bytes = config.dtype.written_row_bytes(config.shape.head_dim) as u64;
        let keeps = self.info.settings.keep_pulled;
        for (sum, choice) in self.traffic.iter_mut().zip(choices) {
            let Some(&Choice { finds_kept, asked, rows, reused, .. }) = *choice else { continue };
            let kept = if finds_kept { reused } else { 0 };
            let h2d_bytes = (rows - kept) * row_bytes;
            sum.add(&LayerTraffic {
                asked_rows: asked,
                rows,
                reused_rows: reused,
                h2d_bytes,
                ..LayerTraffic::default()
            });
            // What is kept lies there for every layer at once.
            let staged_bytes =
                if keeps { self.staged_bytes + rows * row_bytes } else { sum.rows * row_bytes };
            self.staged_bytes = self.staged_bytes.max(staged_bytes);
        }
    }
}

/// The device that rows stay on.
pub(super) fn device(attention: &mut dyn Attention) -> &mut dyn Resident {
    attention.resident().expect("rows stay where there is a device")
}

/// What a sequence brings to a layer that it feeds.
fn new_part<'a>(cache: &'a Cache, seq: SeqId, layer: usize, w: &Work) -> Part<'a> {
    part(cache, seq, layer as Layer, (w.first_computed(), w.computed().len()))
}

/// What a sequence has in a layer; new are so many tokens from a position on.
pub(super) fn part(cache: &Cache, seq: SeqId, layer: Layer, (first, tokens): (Position, usize)) -> Part<'_> {
    let table = cache.table(seq, layer);
    let lane = |head| {
        let lane = table.lane(head);
        LaneTable { slots: lane.slots, blocks: lane.entries() }
    };
    let lanes = if table.is_split() { table.heads() } else { 1 };
    Part {
        sequence: seq,
        rearranged: cache.rearranged(seq, layer),
        tables: (0..lanes).map(lane).collect(),
        first,
        tokens,
    }
}
