//! [`Engine`]: one run, one call per step.

use std::sync::Arc;

use super::backend::Backend;
use super::decide::Decided;
use super::lanes::{Reading, Staging};
use super::memory::LayerMemory;
use super::resident::{may_stay, reserve_pool};
use super::sequence::{Script, Sequence, Work};
use super::setup::{Plan, check_kept, pull};
use super::shadow::Shadow;
use super::sums::Decisions;
use super::teacher::Teacher;
use super::turns::{Talk, TurnStart};
use super::{EngineError, Prompt};
use crate::attention::{Attention, PageBounds, Rope, Ropes, Rotation, Shape};
use crate::cache::{Cache, CacheConfig, CacheError, KvDtype, KvShape, RopeMode};
use crate::event::{
    Finish, Head, Layer, LayerReads, LayerTraffic, Phase, Position, RunInfo, SeqId, Settings, Step, StepId,
    Tuning,
};
use crate::model::{Arithmetic, Config, Model, Sampler};
use crate::policy::{self, Accumulators, Memory, Merging, Needs, Policy, QueryMoments, ReadSet, Site};
use crate::probe::{Clock, PhaseTimer};

/// How much the engine observes of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observe {
    /// Nothing: the baseline that overhead is measured against. Steps carry tokens only.
    Off,
    /// Phase times, decisions, bytes.
    Events,
    /// The same, and the attention picture at the run's score level.
    Rows,
}

/// Bytes of full rows a second that are as many as a recording takes.
const MOST_ROW_BYTES_PER_S: u64 = 50_000_000;

/// Where the rows of a run lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    /// In the cache; a device has a copy of what it reads.
    OnHost,
    /// On the device alone.
    OnDevice,
}

/// One run under way: model, cache, policy, sequences.
pub struct Engine {
    pub(super) model: Arc<Model>,
    pub(super) info: Arc<RunInfo>,
    pub(super) policy: Policy,
    /// What is kept of attention: what the policy needs, or more where others go on from here.
    pub(super) needs: Needs,
    pub(super) read: Option<ReadSet>,
    pub(super) merge: Option<Merging>,
    pub(super) cache: Cache,
    pub(super) backend: Backend,
    pub(super) attention: Box<dyn Attention>,
    pub(super) arithmetic: Arithmetic,
    pub(super) ropes: Ropes,
    /// Everything up to where the newest answer begins.
    pub(super) prompt: Vec<u32>,
    pub(super) context_len: usize,
    /// The conversation, with `--chat`.
    pub(super) talk: Option<Talk>,
    /// The newest turn; `None` before the second.
    pub(super) turn: Option<TurnStart>,
    pub(super) sequences: Vec<Sequence>,
    pub(super) timer: PhaseTimer,
    /// Where rows stay on a device, the step that it is clocked in next, and whether that of the decode steps has come.
    pub(super) next_clocked: (StepId, bool),
    /// What a device that keeps sums of attention has decided by them.
    pub(super) decisions: Decisions,
    /// What the device is being clocked for, since the host last waited for it.
    pub(super) laps: Vec<(Option<Layer>, Phase)>,
    pub(super) observe: Observe,
    pub(super) step: StepId,
    /// Changes to stamp on the next step.
    tuning: Vec<Tuning>,
    /// Whether full rows have become too many to be drawn whole, and from what on they are.
    pub(super) thins_rows: bool,
    pub(super) most_row_bytes_per_s: u64,
    /// Attention pictures left out so far.
    pub(super) dropped: u64,
    pub(super) staging: Vec<Staging>,
    /// Per layer, the share of its copies that was waited for in the newest step that a device was clocked in.
    pub(super) exposed: Vec<f64>,
    /// Most bytes staged at once in the present step.
    pub(super) staged_bytes: u64,
    pub(super) traffic: Vec<LayerTraffic>,
    /// What a read set by pages read in the present step, in the order it was read.
    pub(super) reads: Vec<LayerReads>,
    pub(super) teacher: Teacher,
    pub(super) shadow: Option<Shadow>,
    #[cfg(test)]
    pub(super) witness: super::witness::Witness,
}

impl Engine {
    /// Prepares a run on the device that the settings name; nothing is computed yet.
    ///
    /// # Errors
    /// Settings that are wrong, or do not fit the model or the prompt, or a device that is not to be had: one clear line.
    pub fn new(model: Arc<Model>, settings: &Settings, prompt: &Prompt) -> Result<Self, EngineError> {
        Self::on(Backend::of(settings)?, model, settings, prompt)
    }

    /// The same on a given device, whatever the settings call it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn on(
        backend: Backend,
        model: Arc<Model>,
        settings: &Settings,
        prompt: &Prompt,
    ) -> Result<Self, EngineError> {
        let plan = Plan::new(&model, settings, prompt)?;
        let (needs, rope) = (
            kept(&plan.policy, plan.merge.as_ref()),
            rope_mode(&plan.policy, plan.read.as_ref(), plan.dtype),
        );
        let pages = if plan.info.settings.shadow == 0
            && backend.is_gpu()
            && may_stay(&plan.policy, needs, plan.read.as_ref(), plan.merge.as_ref(), plan.dtype)
        {
            Pages::OnDevice
        } else {
            Pages::OnHost
        };
        check_kept(&plan.info.settings, plan.read.as_ref(), pages)?;
        Self::keeping(backend, model, plan, needs, (rope, pages))
    }

    /// A run that keeps of attention what is named here, and keys so.
    pub(super) fn keeping(
        backend: Backend,
        model: Arc<Model>,
        plan: Plan,
        needs: Needs,
        (rope, pages): (RopeMode, Pages),
    ) -> Result<Self, EngineError> {
        let s = &plan.info.settings;
        let config = model.decoder.config();
        let (layers, kv_heads) = (config.layers, config.kv_heads);
        let config_of_cache = CacheConfig {
            shape: KvShape { layers: layers as u16, kv_heads: kv_heads as u16, head_dim: config.head_dim },
            block_size: s.block_size,
            blocks: s.blocks,
            dtype: plan.dtype,
            rope,
            host_v_from_layer: host_v_from_layer(plan.read.as_ref(), layers),
            far_blocks: plan.read.as_ref().is_some_and(|read| read.rule().memory().is_some()),
            salt: salt(&plan.info),
        };
        let mut cache = match pages {
            Pages::OnHost => Cache::new(config_of_cache)?,
            Pages::OnDevice => Cache::without_pages(config_of_cache)?,
        };
        let shape = Shape::new(config.heads, kv_heads, config.head_dim)
            .map_err(|e| EngineError::Setting(e.to_string()))?;
        let mut attention = backend.attention(shape, s)?;
        if let (Pages::OnDevice, Some(device)) = (pages, attention.resident()) {
            device.set_pull(pull(s)?, s.keep_pulled);
            if s.blocks_given {
                let tokens = (plan.prompt_ids.len() as u64 + u64::from(s.max_tokens))
                    .min(model.decoder.card().context.into());
                reserve_pool(device, cache.config(), tokens, s.batch)?;
            }
        }
        if pages == Pages::OnHost && attention.copies().is_some() {
            cache.follow();
        }
        let site = |seed, lane: usize| Site {
            seed,
            layer: (lane / kv_heads) as Layer,
            head: (lane % kv_heads) as Head,
            span_len: plan.context_len as u32,
            prompt_len: plan.prompt_ids.len() as u32,
        };
        let sequences = (0..s.batch as SeqId)
            .map(|id| {
                cache.add(id);
                let seed = sequence_seed(s, id);
                let lanes = 0..layers * kv_heads;
                let moments = if needs.queries.is_some() { layers * config.heads } else { 0 };
                Sequence {
                    id,
                    fed: Vec::new(),
                    pending: None,
                    generated: 0,
                    finish: None,
                    sampler: Sampler::new(seed, s.temperature, s.top_p, model.tokenizer.unused()),
                    accumulators: lanes.map(|lane| Accumulators::at(needs, site(seed, lane))).collect(),
                    queries: vec![QueryMoments::default(); moments],
                    classes: Vec::new(),
                    pulled: vec![Vec::new(); layers * kv_heads],
                    bounds: vec![PageBounds::default(); layers * kv_heads],
                    shares: Vec::new(),
                    memory: vec![Memory::default(); layers],
                    far: vec![LayerMemory::default(); layers],
                    merged: 0,
                }
            })
            .collect();
        Ok(Self {
            attention,
            arithmetic: backend.arithmetic(&model)?,
            backend,
            ropes: config.ropes(plan.info.reach() as usize),
            timer: PhaseTimer::new(Clock::new(), layers),
            next_clocked: (0, false),
            decisions: Decisions::default(),
            laps: Vec::new(),
            shadow: Shadow::new(&model, &plan.info)?,
            staging: (0..kv_heads).map(|_| Staging::default()).collect(),
            info: Arc::new(plan.info),
            policy: plan.policy,
            needs,
            read: plan.read,
            merge: plan.merge,
            cache,
            prompt: plan.prompt_ids,
            context_len: plan.context_len,
            talk: plan.talk,
            turn: None,
            sequences,
            observe: Observe::Rows,
            step: 0,
            tuning: Vec::new(),
            thins_rows: false,
            most_row_bytes_per_s: MOST_ROW_BYTES_PER_S,
            dropped: 0,
            exposed: Vec::new(),
            staged_bytes: 0,
            traffic: Vec::new(),
            reads: Vec::new(),
            teacher: Teacher::default(),
            #[cfg(test)]
            witness: super::witness::Witness::default(),
            model,
        })
    }

    /// What the run is.
    pub fn info(&self) -> &Arc<RunInfo> {
        &self.info
    }

    /// How much is observed from the next step on.
    pub const fn set_observe(&mut self, observe: Observe) {
        self.observe = observe;
    }

    /// From how many bytes of full rows a second on each row is cut off after its largest probabilities, and says so, where a
    /// device makes them: 50 MB/s unless this says otherwise. What a processor computes is not that fast.
    pub const fn thin_rows_above(&mut self, bytes_per_s: u64) {
        self.most_row_bytes_per_s = bytes_per_s;
    }

    /// Counts an attention picture that will be left out of the next step because a listener lags.
    pub const fn count_dropped(&mut self) {
        self.dropped += 1;
    }

    /// Whether every sequence has ended.
    pub fn is_finished(&self) -> bool {
        self.sequences.iter().all(|s| s.finish.is_some())
    }

    /// Whether the whole prompt of every sequence has been fed.
    pub fn is_decoding(&self) -> bool {
        self.sequences.iter().all(|s| s.fed.len() >= self.prompt.len() || s.finish.is_some())
    }

    /// Changes a live-tunable parameter of the policy or the read set from the next step on. `None` when it has that
    /// value already.
    ///
    /// # Errors
    /// Unknown parameter, a value out of range or under the policy's fixed parts, or one that needs a re-run.
    pub fn tune(&mut self, name: &str, value: &str) -> Result<Option<Tuning>, EngineError> {
        let (mut policy, mut read, mut merge) = (self.policy.clone(), self.read.clone(), self.merge.clone());
        let of_policy = policy.spec().get(name).is_some();
        let of_merge = merge.as_mut().filter(|merge| !of_policy && merge.spec().get(name).is_some());
        let change = if let Some(merge) = of_merge {
            merge.set(name, value)?
        } else if let Some(read) = read.as_mut().filter(|_| !of_policy) {
            read.set(name, value)?
        } else {
            let change = policy.set(name, value)?;
            policy.check(self.prompt.len() as u32)?;
            change
        };
        let Some(change) = change else { return Ok(None) };
        if !change.live {
            return Err(EngineError::Setting(format!(
                "{name} takes effect with a re-run (r), not within a run"
            )));
        }
        (self.policy, self.read, self.merge) = (policy, read, merge);
        self.tuning.push(change.tuning.clone());
        Ok(Some(change.tuning))
    }

    /// Ends every sequence that is under way, with a last step that says so; `None` if there is none.
    ///
    /// # Errors
    /// Faults of kvista itself.
    pub fn stop(&mut self) -> Result<Option<Step>, EngineError> {
        let open: Vec<usize> =
            (0..self.sequences.len()).filter(|&i| self.sequences[i].finish.is_none()).collect();
        if open.is_empty() {
            return Ok(None);
        }
        let clocked = self.clocks_phases();
        self.timer.begin(clocked);
        let parts = open
            .into_iter()
            .map(|index| {
                self.sequences[index].finish = Some(Finish::Stopped);
                self.idle_part(index, Decided::default())
            })
            .collect();
        let step = self.forward(&[], parts)?;
        self.step += 1;
        self.shadowed(step).map(Some)
    }

    /// One forward over every sequence that goes on. `None` once all have ended.
    ///
    /// # Errors
    /// Faults of the model or of kvista itself; a full pool is not one, it ends the sequence.
    pub fn step(&mut self) -> Result<Option<Step>, EngineError> {
        if self.is_finished() {
            return Ok(None);
        }
        // On a thread of the pool, the step takes its own share of the work instead of sleeping until others have done
        // it, dozens of times per layer.
        if rayon::current_num_threads() > 1 { rayon::scope(|_| self.next_step()) } else { self.next_step() }
    }

    fn next_step(&mut self) -> Result<Option<Step>, EngineError> {
        let clocked = self.clocks_phases();
        self.timer.begin(clocked);
        let mut work = Vec::new();
        let mut starved = Vec::new();
        for index in 0..self.sequences.len() {
            match self.next_work(index)? {
                Next::Feed(w) => work.push(w),
                Next::Starved => starved.push(self.starve(index)?),
                Next::Wait => {}
            }
        }
        let step = self.forward(&work, starved)?;
        self.step += 1;
        self.shadowed(step).map(Some)
    }

    /// Reserves room for what a sequence feeds next.
    fn next_work(&mut self, index: usize) -> Result<Next, EngineError> {
        let seq = self.sequences[index].id;
        if self.waits_for_prefix(index) {
            return Ok(Next::Wait);
        }
        let adopted = if self.shares_prefixes() && index > 0 && self.sequences[index].fed.is_empty() {
            // The last prompt token always goes through the model: its logits are wanted.
            let sharable = self.prompt.len().saturating_sub(1).min(self.context_len);
            self.cache.share_prefix(seq, &self.prompt[..sharable])
        } else {
            0
        };
        let script = Script {
            prompt: &self.prompt,
            context_len: self.context_len,
            chunk: self.info.settings.chunk as usize,
            has_question: !self.info.question.is_empty(),
            turn: self.turn,
        };
        let Some(work) = self.sequences[index].next(index, &script, adopted) else { return Ok(Next::Wait) };
        match self.cache.reserve(seq, work.first_computed(), work.computed().len()) {
            Ok(()) => Ok(Next::Feed(work)),
            // Pages adopted a moment ago cannot be handed back unrecorded: feed what was adopted alone.
            Err(CacheError::Exhausted(_)) if adopted > 0 => {
                self.sequences[index].finish = Some(Finish::PoolExhausted);
                Ok(Next::Feed(Work { ids: work.ids[..adopted].to_vec(), draws: false, ..work }))
            }
            Err(CacheError::Exhausted(_)) => Ok(Next::Starved),
            Err(other) => Err(other.into()),
        }
    }

    /// Prefixes are shared where nothing of a page depends on more than its tokens, no policy needs the attention that
    /// the skipped queries would have paid or the queries themselves, no page goes into codes or leaves the device as a
    /// whole, no row is altered, and no layer drops what has left its window.
    fn shares_prefixes(&self) -> bool {
        let observes = self.needs.attention() || self.needs.queries.is_some();
        let config = self.cache.config();
        let windows = &self.model.decoder.config().arch.windows;
        let alters =
            self.merge.is_some() || config.dtype.is_coded() || config.far_blocks || !windows.is_empty();
        self.sequences.len() > 1 && !observes && !alters
    }

    /// With a shared prompt, the first sequence computes it and the others adopt its pages.
    fn waits_for_prefix(&self, index: usize) -> bool {
        let first = &self.sequences[0];
        index > 0
            && self.shares_prefixes()
            && self.sequences[index].fed.is_empty()
            && first.fed.len() < self.context_len
            && first.finish.is_none()
    }

    /// Positions that a query of a layer sees, its own included, where it does not see all.
    pub(super) fn window(&self, layer: usize) -> Option<Position> {
        self.model.decoder.config().window(layer)
    }

    /// The changes to stamp on the step being made.
    pub(super) fn take_tuning(&mut self) -> Vec<Tuning> {
        std::mem::take(&mut self.tuning)
    }

    /// Index of a (layer, KV head) in layer-major columns.
    pub(super) fn lane_index(&self, layer: usize, head: usize) -> usize {
        layer * self.model.decoder.config().kv_heads + head
    }

    /// Longest sequence the model was made for.
    pub(super) fn context(&self) -> Position {
        self.model.decoder.card().context
    }
}

/// How keys are kept under a policy and a read set, in pages of a type.
pub(super) fn rope_mode(policy: &Policy, read: Option<&ReadSet>, dtype: KvDtype) -> RopeMode {
    let turned_later =
        dtype.keeps_keys_before_rope() || read.is_some_and(|read| read.rule().memory().is_some());
    match policy.rope() {
        policy::Rope::Post if !turned_later => RopeMode::Post,
        policy::Rope::Pre | policy::Rope::Post => RopeMode::Pre,
    }
}

/// From which layer on V lives on the host under a read set.
pub(super) fn host_v_from_layer(read: Option<&ReadSet>, layers: usize) -> Option<Layer> {
    Some(read?.rule().host_v_from_layer()?.min(layers as u32) as Layer)
}

/// How attention reads a layer.
pub(super) fn reading<'a>(
    (ropes, config): (&'a Ropes, &Config),
    cache: &Cache,
    policy: &Policy,
    layer: usize,
) -> Reading<'a> {
    Reading { rotation: rotation(ropes.of(layer), cache, policy), scoring: config.scoring(layer) }
}

/// How keys are rotated at read: those that only the page type keeps before RoPE as they would have been at write.
pub(super) fn rotation<'a>(rope: &'a Rope, cache: &Cache, policy: &Policy) -> Rotation<'a> {
    match (cache.config().rope, policy.rope()) {
        (RopeMode::Post, _) => Rotation::None,
        (RopeMode::Pre, policy::Rope::Pre) => Rotation::ByRank(rope),
        (RopeMode::Pre, policy::Rope::Post) => Rotation::ByPosition(rope),
    }
}

enum Next {
    Feed(Work),
    /// The pool has no room for the next tokens.
    Starved,
    Wait,
}

/// What is kept for policy and merge rule; rows are read where a merge is made, not before.
pub(super) fn kept(policy: &Policy, merge: Option<&Merging>) -> Needs {
    let merge = merge.map_or(Needs::NONE, Merging::needs);
    policy.needs().or(Needs { keys: false, values: false, ..merge })
}

/// What a sequence draws from: sampler and policy alike.
pub(super) fn sequence_seed(settings: &Settings, seq: SeqId) -> u64 {
    settings.seed.wrapping_add(u64::from(seq))
}

/// Pages are shared only between runs of the same model and page format; within one process that is one run.
fn salt(info: &RunInfo) -> [u8; 32] {
    let mut h = blake3::Hasher::new();
    for part in [&info.model.name, &info.model.source, &info.settings.kv_dtype, &info.settings.policy] {
        h.update(&(part.len() as u64).to_le_bytes());
        h.update(part.as_bytes());
    }
    *h.finalize().as_bytes()
}
