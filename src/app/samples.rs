//! Made-up runs for tests: small, but true to the contracts, since states check what they fold.

use std::ops::Range;
use std::sync::Arc;

use super::StepStore;
use crate::cache::{LayerTable, Victims};
use crate::event::evict::recorded_score;
use crate::event::{
    Eviction, Fed, Finish, ModelCard, Origin, PHASES, ProbeCost, Provenance, Reason, RunInfo, Sampled,
    SeqStep, Settings, Stage, Step, StepId, TableOps, Tier, TierUse,
};
use crate::state::State;

/// Prompt tokens, fed in chunks of [`CHUNK`].
const PROMPT: usize = 32;
const CHUNK: usize = 16;
/// Tokens that stay in layer 0; layer 1 keeps everything.
const BUDGET: usize = 24;
/// Words of the prompt and of the answer, by position.
const WORDS: [&str; 8] = [" the", " key", " is", " 4711", " and", " the", " grass", "."];

/// The run of [`run`].
pub(super) fn info() -> RunInfo {
    RunInfo {
        model: ModelCard {
            name: "demo".into(),
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 4,
            vocab: 64,
            context: 1 << 14,
            ..ModelCard::default()
        },
        settings: Settings {
            policy: "h2o:budget=24".into(),
            block_size: 4,
            chunk: CHUNK as u32,
            ..Settings::default()
        },
        prompt: WORDS.concat().repeat(PROMPT / WORDS.len()),
        expected: Some(WORDS.concat()),
        prompt_tokens: PROMPT as u32,
        ..RunInfo::default()
    }
}

/// Two prefill chunks, then one decode step each; from the first one on, layer 0 loses a token per step.
pub(super) fn run(count: usize) -> (Arc<RunInfo>, Vec<Arc<Step>>) {
    let info = info();
    let mut tables = vec![LayerTable::new(2, info.settings.block_size).unwrap(); 2];
    let mut next_block = 0;
    let steps = (0..count).map(|i| Arc::new(step(i, count, &mut tables, &mut next_block))).collect();
    (Arc::new(info), steps)
}

fn step(i: usize, count: usize, tables: &mut [LayerTable], next_block: &mut u32) -> Step {
    let chunks = PROMPT / CHUNK;
    let (first, fed) = if i < chunks { (i * CHUNK, CHUNK) } else { (PROMPT + i - chunks, 1) };
    let decode = i >= chunks;
    let mut ops: Vec<TableOps> = Vec::new();
    let mut evictions = Vec::new();
    for (layer, table) in tables.iter_mut().enumerate() {
        let mut op = TableOps { layer: layer as u16, ..TableOps::default() };
        table
            .append(first as u32, fed, |_| {
                *next_block += 2;
                op.taken.push(*next_block - 2);
                Ok::<_, ()>(*next_block - 2)
            })
            .unwrap();
        let over = table.live(0).saturating_sub(BUDGET);
        if layer == 0 && i + 1 >= chunks && over > 0 {
            let positions: Vec<u32> = table.resident_ranges(0).flatten().take(over).collect();
            table.evict(&Victims::All(&positions)).unwrap();
            op.freed.extend(table.release_empty().into_iter().map(|(_, id)| id));
            evictions.push(Eviction {
                layer: 0,
                head: None,
                reason: Reason::LowScore,
                cutoff: Some(1.0),
                kept: BUDGET as u32,
                scores: positions.iter().map(|&p| recorded_score(p as f32 / 1024.0)).collect(),
                positions,
            });
        }
        if !op.is_empty() {
            ops.push(op);
        }
    }
    let resident = tables.iter().flat_map(|t| (0..2).map(|h| t.live(h) as u32)).collect();
    let origin = if decode { Origin::Generated } else { Origin::Prompt };
    let word = |p: usize| WORDS[p % WORDS.len()].into();
    let seq = SeqStep {
        seq: 0,
        stage: if decode { Stage::Decode } else { Stage::Prefill },
        first: first as u32,
        fed: (first..first + fed)
            .map(|p| Fed { id: (p % WORDS.len()) as u32, piece: word(p), origin })
            .collect(),
        sampled: (i + 1 >= chunks).then(|| Sampled {
            id: ((first + fed) % WORDS.len()) as u32,
            piece: word(first + fed),
            logprob: -0.5,
            margin: 1.0,
        }),
        tables: ops,
        resident,
        dropped: Vec::new(),
        finish: (i + 1 == count).then_some(Finish::MaxTokens),
        crush: Vec::new(),
        merges: Vec::new(),
        shadow: None,
        evictions,
        attention: None,
    };
    Step {
        step: i as StepId,
        start_ns: i as u64 * 1_000_000,
        wall_ns: 500_000,
        seqs: vec![seq],
        layer_ns: vec![[10; PHASES]; 2],
        outer_ns: [5; PHASES],
        timing: Provenance::Measured,
        tiers: vec![TierUse::new(Tier::Device)],
        traffic: Vec::new(),
        reads: Vec::new(),
        coding: Vec::new(),
        probe: ProbeCost::default(),
        tuning: Vec::new(),
    }
}

/// A recording in memory.
#[derive(Clone)]
pub(super) struct MemoryStore {
    run: Arc<RunInfo>,
    ids: Vec<StepId>,
    steps: Vec<Arc<Step>>,
    keyframes: Vec<(StepId, Vec<u8>)>,
}

impl MemoryStore {
    /// Steps with a keyframe after each `every`th.
    pub(super) fn new(run: Arc<RunInfo>, steps: Vec<Arc<Step>>, every: usize) -> Self {
        let mut state = State::new(Arc::clone(&run)).unwrap();
        let mut keyframes = Vec::new();
        for (i, step) in steps.iter().enumerate() {
            state.fold(step).unwrap();
            if i % every == every - 1 {
                keyframes.push((step.step, state.keyframe()));
            }
        }
        Self { run, ids: steps.iter().map(|s| s.step).collect(), steps, keyframes }
    }

    /// A gap.
    pub(super) fn lose(&mut self, range: Range<StepId>) {
        self.steps.retain(|s| !range.contains(&s.step));
        self.ids.retain(|id| !range.contains(id));
    }

    pub(super) fn add_keyframe(&mut self, state: &State) {
        self.keyframes.push((state.step.unwrap(), state.keyframe()));
        self.keyframes.sort();
    }
}

impl StepStore for MemoryStore {
    fn run(&self) -> &Arc<RunInfo> {
        &self.run
    }

    fn step_ids(&self) -> &[StepId] {
        &self.ids
    }

    fn read(&mut self, range: Range<StepId>) -> Result<Vec<Arc<Step>>, String> {
        Ok(self.steps.iter().filter(|s| range.contains(&s.step)).cloned().collect())
    }

    fn keyframe_at_or_before(&mut self, step: StepId) -> Result<Option<(StepId, Vec<u8>)>, String> {
        Ok(self.keyframes.iter().rev().find(|(at, _)| *at <= step).cloned())
    }
}
