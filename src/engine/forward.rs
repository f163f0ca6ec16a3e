//! One forward: model, cache and attention glued together, and the [`Step`] that tells of it.

use rayon::prelude::*;

use super::EngineError;
use super::accumulate::{RowsInto, class};
use super::core::{Engine, Observe, reading};
use super::lanes::{Lanes, StagedPages, Staging};
use super::sequence::Work;
use crate::attention::{HeadLane, PrefillTime, Queries, Rope, RowSink, Selection, Wants, observe};
use crate::cache::{Cache, RopeMode};
use crate::event::{
    AttentionGroup, AttentionMap, Cells, Fed, Finish, Head, Layer, LayerTraffic, Origin, PHASES, Phase,
    Position, ProbeCost, Provenance, Sampled, ScoreLevel, SeqId, SeqStep, Stage, Step, Tier,
};
use crate::model::{self, Config, Drawn, Qkv, Sampler, Stream};
use crate::policy::{Kcache, ReadRule, ReadSet, When};
use crate::probe::PhaseTimer;

/// What is left of full rows where a device makes too many: [`Engine::thin_rows_above`].
const THIN_ROWS: ScoreLevel = ScoreLevel::Top(64);

/// Logits from which the draws of a batch are shared out over threads: fewer are drawn from before others are awake.
const SHARED_LOGITS: usize = 1 << 14;

/// What one sequence's step gathers while the layers run.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) groups: Vec<AttentionGroup>,
    pub(super) dropped: Vec<f32>,
    sampled: Option<Sampled>,
}

impl Engine {
    /// Feeds the work through the model and lets the policy decide. `idle` are the parts of sequences that feed nothing.
    pub(super) fn forward(&mut self, work: &[Work], idle: Vec<SeqStep>) -> Result<Step, EngineError> {
        self.begin_traffic();
        for w in work.iter().filter(|w| w.when == When::EndOfPrompt) {
            self.cache.end_calibration(self.sequences[w.index].id);
        }
        self.reads.clear();
        let mut gathered: Vec<Gathered> = work.iter().map(|_| Gathered::default()).collect();
        let computed: usize = work.iter().map(|w| w.computed().len()).sum();
        if computed > 0 {
            let ids: Vec<u32> = work.iter().flat_map(|w| w.computed().iter().copied()).collect();
            let x = if self.rows_stay() {
                self.layers_on_device(&ids, work, &mut gathered)?
            } else {
                let mut x = self.arithmetic.embed(&self.model.decoder, &ids)?;
                self.timer.lap(None, Phase::Embed);
                for layer in 0..self.model.decoder.config().layers {
                    x = self.layer(layer, x, work, &mut gathered)?;
                }
                x
            };
            self.judge(&x, work)?;
            self.draw(&x, work, &mut gathered)?;
            if self.rows_stay() {
                self.note_errors(computed)?;
            }
            self.settle_laps()?;
        }
        self.conclude(work, gathered, idle)
    }

    /// What follows once the layers have run: the policy decides, and the step is told.
    pub(super) fn conclude(
        &mut self,
        work: &[Work],
        gathered: Vec<Gathered>,
        idle: Vec<SeqStep>,
    ) -> Result<Step, EngineError> {
        for w in work {
            let s = &mut self.sequences[w.index];
            s.fed.extend_from_slice(&w.ids);
            if self.needs.classes {
                s.classes.extend(w.ids.iter().map(|&id| class(&self.model.tokenizer, id)));
            }
            if w.stage == Stage::Decode {
                s.pending = None;
            }
        }
        let fed = work.iter().filter(|w| !w.computed().is_empty());
        self.ask_device(fed.map(|w| w.index), work.iter().map(|w| (w.index, w.when)))?;
        let mut parts = idle;
        for (w, gathered) in work.iter().zip(gathered) {
            parts.push(self.close(w, gathered)?);
        }
        self.carry_out_on_device()?;
        parts.sort_by_key(|p| p.seq);
        self.staged_bytes += self.copies_bytes();
        self.cache.note_copies(Tier::Device, self.staged_bytes);
        self.note_pages_of_host();
        self.timer.lap(None, Phase::Policy);
        let mut step = Step {
            step: self.step,
            start_ns: 0,
            wall_ns: 0,
            seqs: parts,
            layer_ns: Vec::new(),
            outer_ns: [0; PHASES],
            timing: if self.rows_stay() { Provenance::Sampled } else { Provenance::Measured },
            tiers: self.cache.usage().into(),
            traffic: Vec::new(),
            reads: std::mem::take(&mut self.reads),
            coding: self.cache.take_coding(),
            probe: ProbeCost { ns: 0, dropped: self.dropped },
            tuning: self.take_tuning(),
        };
        step.traffic = self.end_traffic();
        if self.timer.is_on() {
            step.layer_ns = self.timer.layers().to_vec();
        }
        self.timer.lap(None, Phase::Probe);
        let time = self.timer.finish();
        step.outer_ns = *self.timer.outer();
        (step.start_ns, step.wall_ns, step.probe.ns) = (time.start_ns, time.wall_ns, time.probe_ns);
        self.thins_rows |= self.rows_stay() && row_bytes_per_s(&step) > self.most_row_bytes_per_s.into();
        Ok(step)
    }

    fn layer(
        &mut self,
        layer: usize,
        x: Stream,
        work: &[Work],
        gathered: &mut [Gathered],
    ) -> Result<Stream, EngineError> {
        let mut qkv = self.arithmetic.qkv(&self.model.decoder, layer, &x)?;
        self.observe_queries(layer, &qkv, work);
        self.rotate(layer, &mut qkv, work);
        let at = Some(layer as Layer);
        self.timer.lap(at, Phase::Qkv);
        let config = self.model.decoder.config();
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let mut out = vec![0.0; qkv.q.len()];
        let mut row = 0;
        for (w, gathered) in work.iter().zip(gathered) {
            let rows = w.computed().len();
            if rows == 0 {
                continue;
            }
            let kv = row * kv_width..(row + rows) * kv_width;
            let seq = self.sequences[w.index].id;
            let (k, v) = (&qkv.k[kv.clone()], &qkv.v[kv]);
            self.bring_copies(seq, layer as Layer)?;
            self.cache.write(seq, layer as Layer, w.first_computed(), k, v)?;
            self.append_copies(layer as Layer, w, k, v)?;
            self.count_push(seq, layer, rows);
            self.follow_keys(layer, w);
            self.timer.lap(at, Phase::Append);
            let range = row * q_width..(row + rows) * q_width;
            self.attend(layer, w, &qkv.q[range.clone()], &mut out[range], gathered);
            self.check_device()?;
            if self.cache.config().dtype.is_coded() {
                self.cache.quantise(seq, layer as Layer)?;
                self.timer.lap(at, Phase::Append);
            }
            row += rows;
        }
        let x = self.arithmetic.mix(&self.model.decoder, layer, x, &out)?;
        self.timer.lap(at, Phase::Mlp);
        Ok(x)
    }

    /// Rotates queries and keys to their positions, unless keys are kept before RoPE: attention rotates both then.
    fn rotate(&self, layer: usize, qkv: &mut Qkv, work: &[Work]) {
        if self.cache.config().rope == RopeMode::Pre {
            return;
        }
        let positions = work.iter().flat_map(|w| {
            let first = w.first_computed() as usize;
            first..first + w.computed().len()
        });
        rotate(self.ropes.of(layer), self.model.decoder.config(), qkv, positions);
    }

    /// Attention of one sequence in one layer: output, accumulators, the read set's traffic, the picture.
    fn attend(&mut self, layer: usize, w: &Work, q: &[f32], out: &mut [f32], gathered: &mut Gathered) {
        let queries = Queries { rows: q, first: w.first_computed() };
        let rule = self.read.as_ref().map(ReadSet::rule);
        let kcache = match rule {
            Some(ReadRule::Kcache(kcache)) if !kcache.is_exempt(layer as Layer) => Some(kcache),
            _ => None,
        };
        match (w.stage, rule) {
            (Stage::Decode, Some(ReadRule::Quest(quest))) if !quest.is_dense(layer as Layer) => {
                self.decode_by_pages(layer, w, quest, queries, out, gathered);
            }
            // A layer with a window of its own has nothing far away to remember.
            (_, Some(ReadRule::Infllm(infllm))) if self.window(layer).is_none() => {
                self.attend_with_memory(layer, w, infllm, queries, out, gathered);
            }
            (Stage::Decode, _) => self.decode(layer, w, kcache, queries, out, gathered),
            (Stage::Prefill, _) => self.prefill(layer, w, kcache.is_some(), queries, out, gathered),
        }
        #[cfg(test)]
        self.witness_rows(layer);
    }

    /// One query. Under KCache (arXiv 2404.18057) the scores over all keys stay exact, and then only the V rows of the
    /// largest N are pulled and summed; without a read set, or in an exempt layer, all rows are summed where they lie.
    fn decode(
        &mut self,
        layer: usize,
        w: &Work,
        read: Option<Kcache>,
        queries: Queries<'_>,
        out: &mut [f32],
        gathered: &mut Gathered,
    ) {
        let at = Some(layer as Layer);
        let seq = self.sequences[w.index].id;
        let pages = Lanes::read_by(&mut *self.attention, &self.cache, seq, layer as Layer);
        let lanes = pages.resident(reading(
            (&self.ropes, self.model.decoder.config()),
            &self.cache,
            &self.policy,
            layer,
        ));
        self.attention.scores(queries, &lanes);
        self.timer.lap(at, Phase::Score);
        if let Some(kcache) = read {
            self.attention.select_top(&lanes, kcache.n as usize, kcache.include_self);
            self.timer.lap(at, Phase::Select);
            let pulled = &mut self.sequences[w.index].pulled[layer * lanes.len()..][..lanes.len()];
            let selection = self.attention.selection();
            let (traffic, staged) = pull_selected(
                &mut self.staging,
                &self.cache,
                (seq, layer as Layer),
                selection,
                &lanes,
                pulled,
            );
            self.staged_bytes = self.staged_bytes.max(staged);
            self.traffic[layer].add(&traffic);
            let values: Vec<_> = self.staging.iter().map(Staging::rows).collect();
            self.attention.stage(&values);
            self.timer.lap(at, Phase::VPull);
            self.attention.weighted_sum_selected(&values, out);
            if kcache.renorm {
                renormalise(out, self.attention.selection(), self.model.decoder.config().head_dim);
            }
        } else {
            self.attention.weighted_sum(&lanes, out);
        }
        self.timer.lap(at, Phase::WeightedSum);
        let selection = read.map(|_| self.attention.selection());
        match selection {
            Some(selection) => gathered.dropped.extend(mean_dropped(selection)),
            None if self.knows_dropped() => gathered.dropped.extend(std::iter::repeat_n(0.0, lanes.len())),
            None => {}
        }
        let level = self.picture_level();
        if level != ScoreLevel::Off {
            let probabilities = self.attention.probabilities();
            gathered.groups.extend(observe(level, layer as Layer, probabilities, selection, &lanes));
            self.timer.lap(at, Phase::Probe);
        }
        drop(lanes);
        drop(pages);
        self.accumulate_decode(layer, w);
        self.timer.lap(at, Phase::Policy);
    }

    /// A chunk of the prompt. Its attention is exact also under a read set: the V rows of earlier chunks come back from
    /// the host for it, and are counted.
    fn prefill(
        &mut self,
        layer: usize,
        w: &Work,
        values_on_host: bool,
        queries: Queries<'_>,
        out: &mut [f32],
        gathered: &mut Gathered,
    ) {
        let at = Some(layer as Layer);
        let seq = self.sequences[w.index].id;
        let level = self.picture_level();
        let needs = self.needs;
        let wants = Wants { column_sums: needs.sum, last_row: needs.last_row || level != ScoreLevel::Off };
        if values_on_host {
            self.pull_lanes(layer, w);
            self.timer.lap(at, Phase::VPull);
        }
        let config = self.cache.config();
        let reading = reading((&self.ropes, self.model.decoder.config()), &self.cache, &self.policy, layer);
        let pages = Lanes::read_by(&mut *self.attention, &self.cache, seq, layer as Layer);
        let staged = StagedPages::of(&self.staging, config.block_size as usize, config.shape.head_dim);
        let lanes = if values_on_host { staged.lanes(&pages, reading) } else { pages.resident(reading) };
        let time = if needs.rows() {
            let accumulators =
                &mut self.sequences[w.index].accumulators[layer * lanes.len()..][..lanes.len()];
            let mut sinks: Vec<_> = accumulators
                .iter_mut()
                .zip(&lanes)
                .map(|(acc, lane)| RowsInto::new(acc, lane.slots))
                .collect();
            let mut sinks: Vec<&mut dyn RowSink> = sinks.iter_mut().map(|sink| sink as _).collect();
            self.attention.prefill(queries, &lanes, wants, &mut sinks, out)
        } else {
            self.attention.prefill(queries, &lanes, wants, &mut [], out)
        };
        self.timer.lap(at, Phase::Score);
        let extra = if needs.attention() { Phase::Policy } else { Phase::Probe };
        share_out(&mut self.timer, layer, &time, extra);
        if level != ScoreLevel::Off {
            let probabilities = self.attention.probabilities();
            gathered.groups.extend(observe(level, layer as Layer, probabilities, None, &lanes));
            self.timer.lap(at, Phase::Probe);
        }
        drop(lanes);
        drop(pages);
        if needs.attention() {
            self.accumulate_prefill(layer, w, wants);
            self.timer.lap(at, Phase::Policy);
        }
    }

    /// Copies the whole V lanes of a layer back to the device tier; the chunk's own rows are still there.
    fn pull_lanes(&mut self, layer: usize, w: &Work) {
        let seq = self.sequences[w.index].id;
        let mut staged = 0;
        let mut traffic = LayerTraffic::default();
        for (h, staging) in self.staging.iter_mut().enumerate() {
            staged += staging.pull(&self.cache, seq, layer as Layer, h as Head, None);
            let live = self.cache.table(seq, layer as Layer).live(h as Head);
            let older = live.saturating_sub(w.computed().len()) as u64;
            traffic.rows += older;
            traffic.asked_rows += older;
            let all = self.cache.live_value_bytes(seq, layer as Layer, h as Head);
            let own = live - older as usize;
            traffic.h2d_bytes += all - self.cache.newest_value_bytes(seq, layer as Layer, h as Head, own);
        }
        self.staged_bytes = self.staged_bytes.max(staged);
        self.traffic[layer].add(&traffic);
    }

    /// Whether a decode step can say what mass was not read, in the layers that read everything too: under Quest only
    /// a picture scores the pages that were not read.
    fn knows_dropped(&self) -> bool {
        match self.read.as_ref().map(ReadSet::rule) {
            None => false,
            Some(ReadRule::Kcache(_)) => true,
            Some(ReadRule::Quest(_) | ReadRule::Infllm(_)) => self.picture_level() != ScoreLevel::Off,
        }
    }

    /// The level of this step's picture.
    pub(super) fn picture_level(&self) -> ScoreLevel {
        match (self.observe, self.info.settings.scores) {
            (Observe::Rows, ScoreLevel::Full) if self.thins_rows => THIN_ROWS,
            (Observe::Rows, level) => level,
            (Observe::Off | Observe::Events, _) => ScoreLevel::Off,
        }
    }

    /// Logits of the sequences that want them, and the tokens drawn from these.
    fn draw(&mut self, x: &Stream, work: &[Work], gathered: &mut [Gathered]) -> Result<(), EngineError> {
        let hidden = self.model.decoder.config().hidden;
        let mut last_rows = Vec::new();
        let mut row = 0;
        for w in work {
            row += w.computed().len();
            if w.draws {
                last_rows.push(row - 1);
            }
        }
        if last_rows.is_empty() {
            return Ok(());
        }
        let logits = self.arithmetic.logits(&self.model.decoder, &x.rows(&last_rows, hidden)?)?;
        if self.rows_stay() {
            self.lap_on_device(None, Phase::Logits)?;
            self.settle_laps()?;
        } else {
            self.timer.lap(None, Phase::Logits);
        }
        let vocab = self.model.decoder.config().vocab;
        let rows: Vec<(&Work, &[f32])> =
            work.iter().filter(|w| w.draws).zip(logits.chunks_exact(vocab)).collect();
        // Work is in the order of its sequences.
        let mut left = rows.iter().peekable();
        let draws = self.sequences.iter_mut().enumerate().filter_map(|(index, s)| {
            left.next_if(|(w, _)| w.index == index).map(|(_, logits)| (&mut s.sampler, *logits))
        });
        let drawn = draw_all(draws.collect());
        let gathered = gathered.iter_mut().zip(work).filter(|(_, w)| w.draws).map(|(gathered, _)| gathered);
        for ((gathered, (w, logits)), drawn) in gathered.zip(rows).zip(drawn) {
            let drawn = drawn?;
            #[cfg(test)]
            let drawn = self.witness.draw(drawn, logits);
            let drawn = self.corrected(w, drawn, logits);
            gathered.sampled = Some(Sampled {
                id: drawn.id,
                piece: self.model.tokenizer.piece(drawn.id),
                logprob: drawn.logprob,
                margin: drawn.margin,
            });
        }
        if let Some(shadow) = &mut self.shadow {
            shadow.take_logits(logits);
        }
        self.timer.lap(None, Phase::Sample);
        Ok(())
    }

    /// Ends a sequence's step: the policy decides, the drawn token is noted, the end is seen.
    fn close(&mut self, w: &Work, gathered: Gathered) -> Result<SeqStep, EngineError> {
        let mut decided = self.decide(w.index, w.when)?;
        if w.when == When::EndOfPrompt {
            decided.merges.extend(self.merge_layers(w.index)?);
        }
        let context = self.context() as usize;
        let s = &mut self.sequences[w.index];
        if let Some(drawn) = &gathered.sampled {
            s.pending = Some(drawn.id);
            s.generated += 1;
            let settings = &self.info.settings;
            let ends = !settings.ignore_eos && self.model.tokenizer.eos().contains(&drawn.id);
            if ends {
                s.finish.get_or_insert(Finish::EndToken);
            } else if s.generated >= settings.max_tokens {
                s.finish.get_or_insert(Finish::MaxTokens);
            } else if s.fed.len() >= context {
                s.finish.get_or_insert(Finish::ContextFull);
            }
        }
        let (id, finish) = (s.id, s.finish);
        if w.when != When::Token && self.sequences.len() > 1 {
            let fed = &self.sequences[w.index].fed;
            self.cache.offer_prefix(id, fed);
        }
        let fed = w
            .ids
            .iter()
            .enumerate()
            .map(|(i, &id)| Fed {
                id,
                piece: self.model.tokenizer.piece(id),
                origin: if i < w.drawn { Origin::Generated } else { w.origin },
            })
            .collect();
        let attention = (!gathered.groups.is_empty()).then(|| AttentionMap {
            level: self.picture_level(),
            query: w.first + w.ids.len() as Position - 1,
            groups: gathered.groups,
        });
        let mut resident = Vec::new();
        self.cache.resident(id, &mut resident);
        Ok(SeqStep {
            seq: id,
            stage: w.stage,
            first: w.first,
            fed,
            sampled: gathered.sampled,
            tables: self.cache.take_ops(id),
            resident,
            dropped: gathered.dropped,
            finish,
            crush: decided.crush,
            merges: decided.merges,
            shadow: None,
            evictions: decided.evictions,
            attention,
        })
    }

    pub(super) fn begin_traffic(&mut self) {
        let layers = self.model.decoder.config().layers;
        self.traffic.clear();
        self.traffic
            .extend((0..layers).map(|l| LayerTraffic { layer: l as Layer, ..LayerTraffic::default() }));
        self.staged_bytes = 0;
    }

    /// Counts V rows of a layer whose home is the host: they are pushed there.
    pub(super) fn count_push(&mut self, seq: SeqId, layer: usize, rows: usize) {
        let config = self.cache.config();
        if config.v_on_host(layer as Layer) {
            let bytes = |h| self.cache.newest_value_bytes(seq, layer as Layer, h, rows);
            self.traffic[layer].d2h_bytes += (0..config.shape.kv_heads).map(bytes).sum::<u64>();
        }
    }

    fn end_traffic(&mut self) -> Vec<LayerTraffic> {
        let rows_stay = self.rows_stay();
        let link_bytes_per_ns = self.info.settings.link_gbps;
        let mut moved: Vec<LayerTraffic> =
            self.traffic.iter().copied().filter(|t| t.h2d_bytes + t.d2h_bytes > 0).collect();
        for t in &mut moved {
            // 1 GB/s is 1 byte per ns.
            t.link_ns = ((t.h2d_bytes + t.d2h_bytes) as f64 / link_bytes_per_ns).round() as u64;
            t.stall_ns = t.link_ns;
            if rows_stay {
                let exposed = self.exposed.get(usize::from(t.layer)).copied().unwrap_or(1.0);
                t.stall_ns = (t.link_ns as f64 * exposed) as u64;
            } else {
                t.copy_ns = self.timer.layers()[usize::from(t.layer)][Phase::VPull as usize];
            }
        }
        moved
    }
}

/// Draws for each sequence from its row of logits, in their order: no draw depends on another, nor on who makes it.
fn draw_all(draws: Vec<(&mut Sampler, &[f32])>) -> Vec<model::Result<Drawn>> {
    let draw = |(sampler, logits): (&mut Sampler, &[f32])| sampler.draw(logits);
    let logits: usize = draws.iter().map(|(_, logits)| logits.len()).sum();
    if draws.len() == 1 || logits < SHARED_LOGITS || rayon::current_num_threads() == 1 {
        draws.into_iter().map(draw).collect()
    } else {
        draws.into_par_iter().map(draw).collect()
    }
}

/// Cells of full rows in a step, a byte each, per second of it.
fn row_bytes_per_s(step: &Step) -> u128 {
    let rows = step.seqs.iter().filter_map(|part| part.attention.as_ref()).flat_map(|map| &map.groups);
    let cells = |cells: &Cells| if let Cells::Full(cells) = cells { cells.len() } else { 0 };
    let bytes: usize = rows.flat_map(|group| &group.rows).map(|row| cells(&row.cells)).sum();
    bytes as u128 * 1_000_000_000 / u128::from(step.wall_ns.max(1))
}

/// Copies the selected V rows of one (sequence, layer) to the device tier: what moved, and the bytes staged. `pulled`
/// holds the positions of the previous step per KV head, and those of this one afterwards.
fn pull_selected(
    staging: &mut [Staging],
    cache: &Cache,
    (seq, layer): (SeqId, Layer),
    selection: &Selection,
    lanes: &[HeadLane<'_>],
    pulled: &mut [Vec<Position>],
) -> (LayerTraffic, u64) {
    let mut traffic = LayerTraffic { layer, asked_rows: selection.asked_rows(), ..LayerTraffic::default() };
    let mut staged_bytes = 0;
    for (h, (staging, before)) in staging.iter_mut().zip(pulled).enumerate() {
        let slots = selection.lane(h).slots();
        let staged = staging.pull(cache, seq, layer, h as Head, Some(slots));
        staged_bytes += staged;
        let all = slots.iter().map(|&s| lanes[h].slots[s as usize]);
        // The newest token's V is still on the device; only what is older is pulled.
        let newest = lanes[h].slots.last().copied();
        let positions: Vec<Position> = all.filter(|&p| Some(p) != newest).collect();
        traffic.rows += positions.len() as u64;
        traffic.reused_rows += common(before, &positions);
        let newest_rows = slots.len() - positions.len();
        traffic.h2d_bytes += staged - cache.newest_value_bytes(seq, layer, h as Head, newest_rows);
        *before = positions;
    }
    (traffic, staged_bytes)
}

/// How many values two ascending lists have in common.
pub(super) fn common(a: &[Position], b: &[Position]) -> u64 {
    let mut rest = a;
    b.iter()
        .filter(|&&p| {
            rest = &rest[rest.partition_point(|&q| q < p)..];
            rest.first() == Some(&p)
        })
        .count() as u64
}

/// Rotates the queries and keys of tokens to their positions.
pub(super) fn rotate(rope: &Rope, config: &Config, qkv: &mut Qkv, positions: impl Iterator<Item = usize>) {
    let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let rows = qkv.q.chunks_exact_mut(q_width).zip(qkv.k.chunks_exact_mut(kv_width));
    for ((q, k), position) in rows.zip(positions) {
        rope.apply_heads(q, config.head_dim, position);
        rope.apply_heads(k, config.head_dim, position);
    }
}

/// Shares the wall time of a prefill out over its parts, which were clocked per KV head on as many threads as worked.
pub(super) fn share_out(timer: &mut PhaseTimer, layer: usize, time: &PrefillTime, extra: Phase) {
    let all = (time.score_ns + time.weighted_sum_ns + time.probe_ns).max(1);
    let wall = timer.layers()[layer][Phase::Score as usize];
    let share = |ns: u64| (u128::from(wall) * u128::from(ns) / u128::from(all)) as u64;
    let at = Some(layer as Layer);
    timer.shift(at, Phase::Score, Phase::WeightedSum, share(time.weighted_sum_ns));
    timer.shift(at, Phase::Score, extra, share(time.probe_ns));
}

/// The mass that each KV head's query heads did not read, their mean.
pub(super) fn mean_dropped(selection: &Selection) -> impl Iterator<Item = f32> + '_ {
    selection.lanes().iter().map(|lane| {
        let d = lane.dropped();
        d.iter().sum::<f32>() / d.len().max(1) as f32
    })
}

/// Scales each query head's output by the mass that was read.
fn renormalise(out: &mut [f32], selection: &Selection, head_dim: usize) {
    let masses = selection.lanes().iter().flat_map(|lane| lane.dropped().iter().map(|d| 1.0 - d));
    for (head, mass) in out.chunks_exact_mut(head_dim).zip(masses) {
        if mass > 0.0 {
            for x in head {
                *x /= mass;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_draws_the_same_on_any_number_of_threads() {
        let rows: Vec<Vec<f32>> = (0..6u32)
            .map(|seed| (0..9_000u32).map(|i| f64::from(i ^ (seed << 7)).sin() as f32 * 8.0).collect())
            .collect();
        assert!(rows.iter().map(Vec::len).sum::<usize>() >= SHARED_LOGITS);
        let broken = vec![f32::NAN; rows[0].len()];
        let drawn = |threads, broken: &[(usize, &[f32])]| {
            let mut samplers: Vec<_> =
                (0..6u32).map(|seed| Sampler::new(seed.into(), f64::from(seed % 3), 0.9, &[seed])).collect();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let draw = |samplers: &mut [Sampler]| {
                let mut rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
                for &(at, row) in broken {
                    rows[at] = row;
                }
                pool.install(|| draw_all(samplers.iter_mut().zip(rows).collect()))
            };
            (0..5).map(|_| draw(&mut samplers)).collect::<Vec<_>>()
        };
        let all = |threads| {
            let steps = drawn(threads, &[]);
            steps.into_iter().flatten().map(Result::unwrap).collect::<Vec<_>>()
        };
        let one = all(1);
        assert_eq!(one.len(), 30);
        assert_eq!((all(2), all(5)), (one.clone(), one));
        let short = [f32::INFINITY];
        for threads in [1, 4] {
            let step = &drawn(threads, &[(2, &broken), (4, &short)])[0];
            let told: Vec<String> =
                step.iter().filter_map(|drawn| drawn.as_ref().err()).map(ToString::to_string).collect();
            let expected = [9_000, 1].map(|n| model::Error::NoFiniteLogit(n).to_string());
            assert_eq!(told, expected, "in the order of the sequences");
        }
    }
}
