//! A run in one JSON object: the last line of every headless run and replay.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{ChannelError, MergeSummary, Quote, SeqState, State, Turn};
use crate::event::{CodingError, LayerReads, Origin, Phase, Provenance, SeqId, Tier};

/// What `run --headless --json` and `replay --headless --format json` end with. Times are engine time in ns.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Ids of prompt and question, first sequence.
    pub prompt_ids: Vec<u32>,
    /// Generated ids, first sequence.
    pub token_ids: Vec<u32>,
    /// Generated text, first sequence.
    pub text: String,
    /// The turns of the conversation, first sequence; absent for one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<TurnSummary>,
    /// Generated ids of every sequence of a batch; absent for one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub batch_token_ids: Vec<Vec<u32>>,
    /// Whether the answer was right, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub right: Option<bool>,
    /// Why the first sequence ended.
    pub finish: Option<crate::event::Finish>,
    /// Steps folded.
    pub steps: u64,
    /// Device it ran on.
    pub device: String,
    /// Eviction policy.
    pub policy: String,
    /// Read set; empty for none.
    pub read: String,
    /// Derived: tokens sampled in decode steps / duration of those steps.
    pub tokens_per_s: Option<f64>,
    /// Measured, allocated bytes by tier after the last step, and its parts.
    pub resident_bytes: BTreeMap<&'static str, TierBytes>,
    /// Measured.
    pub traffic_bytes: TrafficBytes,
    /// What putting rows into codes cost; absent where none did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coding: Option<CodingSummary>,
    /// What the full-cache twin says of the run; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowSummary>,
    /// What the merge rule did; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merging: Option<MergeSummary>,
    /// What a read set by pages read; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reads: Option<ReadsSummary>,
    /// Derived: mean attention mass not read in the last step; null without a read set, and where nobody knows.
    pub mass_dropped: Option<f32>,
    /// Victims of all decisions, those merged among them (measured).
    pub victims: u64,
    /// Measured; p50 and p99 per phase, and the figures users quote.
    pub latency_ns: Latencies,
    /// Derived: allocated KV bytes of all tiers / tokens fed.
    pub bytes_per_token: Option<f64>,
    /// Derived: time spent observing / duration of all steps.
    pub probe_overhead: f64,
    /// Attention pictures left out because a listener lagged.
    pub dropped_samples: u64,
    /// Steps lost to this listener.
    pub gap_steps: u64,
    /// Over decisions, residency, token ids, byte counts.
    pub state_hash: String,
}

/// One turn of a conversation.
#[derive(Clone, Debug, Serialize)]
pub struct TurnSummary {
    /// Position of its first token.
    pub position: usize,
    /// Ids given to the model.
    pub prompt_ids: Vec<u32>,
    /// Ids of its answer.
    pub token_ids: Vec<u32>,
    /// The answer.
    pub text: String,
}

/// The turns of a sequence; none where there is but one.
fn turns(seq: &SeqState) -> Vec<TurnSummary> {
    let turns = seq.turns();
    if turns.len() < 2 {
        return Vec::new();
    }
    let told = |turn: Turn<'_>| TurnSummary {
        position: turn.start,
        prompt_ids: turn.given.iter().map(|token| token.id).collect(),
        token_ids: turn.ids(),
        text: turn.text(),
    };
    turns.into_iter().map(told).collect()
}

/// Bytes of one tier.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TierBytes {
    /// All pages.
    pub allocated: u64,
    /// Rows of resident tokens.
    pub live: u64,
    /// Rows of evicted tokens in pages still in use.
    pub stranded: u64,
    /// Rows never written.
    pub unfilled: u64,
    /// Second copies.
    pub copies: u64,
}

/// K channels named per layer.
const WORST_CHANNELS: usize = 4;

/// Pages of K and V that a read set by pages read, all steps, layers and KV heads (measured).
#[derive(Clone, Debug, Serialize)]
pub struct ReadsSummary {
    /// Pages there were.
    pub pages: u64,
    /// Pages read.
    pub read: u64,
    /// Of those, pages that had to be copied to the device.
    pub loaded: u64,
    /// Bytes of K and V read; under InfLLM with the window and the first tokens.
    pub read_bytes: u64,
    /// Bytes of all K and V: what reading everything reads.
    pub dense_bytes: u64,
    /// Bytes of bounds or representatives, which each step reads to choose by.
    pub index_bytes: u64,
    /// Largest exact probabilities looked up for pictures (sampled).
    pub top: u64,
    /// Those in pages that were read (sampled).
    pub top_read: u64,
}

impl ReadsSummary {
    const fn of(sum: &LayerReads) -> Self {
        Self {
            pages: sum.pages,
            read: sum.read,
            loaded: sum.loaded,
            read_bytes: sum.read_bytes,
            dense_bytes: sum.dense_bytes,
            index_bytes: sum.index_bytes,
            top: sum.top,
            top_read: sum.top_read,
        }
    }
}

/// Reconstruction error of rows in codes, against their exact values when they went (measured).
#[derive(Clone, Debug, Serialize)]
pub struct CodingSummary {
    /// Page type.
    pub kv_dtype: String,
    /// Keys, all layers.
    pub k: CodedPart,
    /// Values, all layers.
    pub v: CodedPart,
    /// By layer.
    pub layers: Vec<CodingLayerSummary>,
}

/// Rows of K or V.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CodedPart {
    /// Rows of one KV head and one token.
    pub rows: u64,
    /// Per element; null without rows.
    pub mean_squared_error: Option<f64>,
    /// Root of the squared error over the squares of the exact values.
    pub relative_error: Option<f64>,
}

/// One layer's.
#[derive(Clone, Debug, Serialize)]
pub struct CodingLayerSummary {
    /// Keys.
    pub k: CodedPart,
    /// Values.
    pub v: CodedPart,
    /// K rows that compaction decoded, most of which went into codes again.
    pub recoded_rows: u64,
    /// The channels of largest relative error.
    pub worst_k_channels: Vec<ChannelError>,
}

impl CodedPart {
    fn of(error: &CodingError, head_dim: u32) -> Self {
        Self {
            rows: error.rows,
            mean_squared_error: error.mean_squared(head_dim),
            relative_error: error.relative(),
        }
    }
}

/// The run beside a full-cache twin that was fed its tokens, all sequences together.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ShadowSummary {
    /// One draw in so many was judged.
    pub every: u32,
    /// Draws judged (measured).
    pub judged: u64,
    /// `derived`, or `sampled` where not every draw was judged: what the next four are.
    pub provenance: Provenance,
    /// Mean of KL(twin ‖ run), nats.
    pub mean_kl: Option<f64>,
    /// Share of the draws where both find the same token likeliest.
    pub agreement: Option<f64>,
    /// Of the tokens judged, under the run.
    pub perplexity: Option<f64>,
    /// Of the same tokens, under the twin.
    pub twin_perplexity: Option<f64>,
    /// Attention that the victims would have drawn, over all (layer, KV head) and queries (measured).
    pub regret: f64,
    /// Time of the twin, in no other time (measured).
    pub twin_ns: u64,
    /// Bytes of the twin at the end, in no tier (measured).
    pub twin_bytes: u64,
}

/// Bytes moved between tiers since the run began.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TrafficBytes {
    /// Host to device.
    pub host_to_device: u64,
    /// Device to host.
    pub device_to_host: u64,
}

/// Quotes by stage and phase.
#[derive(Clone, Debug, Serialize)]
pub struct Latencies {
    /// Phases of prefill chunks.
    pub prefill: BTreeMap<&'static str, Quote>,
    /// Phases of decode steps.
    pub decode: BTreeMap<&'static str, Quote>,
    /// Time to first token.
    pub time_to_first_token: Quote,
    /// Time per token after the first.
    pub per_token: Quote,
    /// First token fed to last drawn.
    pub end_to_end: Quote,
}

impl State {
    /// The run so far in one object.
    pub fn summary(&self) -> Summary {
        let first = self.seq(0);
        let ids = |seq: SeqId| self.seq(seq).map(SeqState::generated_ids).unwrap_or_default();
        let phases = |set: &super::PhaseHistograms| {
            let mut out: BTreeMap<_, _> =
                Phase::ALL.iter().map(|&p| (p.name(), Quote::of(&set.phases[p as usize]))).collect();
            out.retain(|_, q| q.count > 0);
            out.insert("step", Quote::of(&set.steps));
            out
        };
        let moved = self.traffic.sum();
        let allocated: u64 = self.tiers.iter().map(crate::event::TierUse::allocated_bytes).sum();
        let fed: usize = self.seqs.iter().map(|s| s.tokens.len()).sum();
        Summary {
            prompt_ids: first
                .map(|s| s.tokens.iter().filter(|t| t.origin != Origin::Generated).map(|t| t.id).collect())
                .unwrap_or_default(),
            token_ids: ids(0),
            text: first.map(SeqState::generated_text).unwrap_or_default(),
            turns: first.map(turns).unwrap_or_default(),
            batch_token_ids: if self.seqs.len() > 1 {
                (0..self.seqs.len() as SeqId).map(ids).collect()
            } else {
                Vec::new()
            },
            right: self.run.expected.as_deref().and_then(|e| first.and_then(|s| s.answer(e))),
            finish: first.and_then(|s| s.finish),
            steps: self.step.map_or(0, |s| s + 1),
            device: self.run.settings.device.clone(),
            policy: self.run.settings.policy.clone(),
            read: self.run.settings.read.clone(),
            tokens_per_s: self.latency.tokens_per_s(),
            resident_bytes: self
                .tiers
                .iter()
                .filter(|t| t.tier == Tier::Device || t.allocated_bytes() > 0)
                .map(|t| {
                    let bytes = TierBytes {
                        allocated: t.allocated_bytes(),
                        live: t.live_bytes,
                        stranded: t.stranded_bytes,
                        unfilled: t.unfilled_bytes,
                        copies: t.copies_bytes,
                    };
                    (t.tier.name(), bytes)
                })
                .collect(),
            traffic_bytes: TrafficBytes { host_to_device: moved.h2d_bytes, device_to_host: moved.d2h_bytes },
            coding: self.coding_summary(),
            reads: (!self.reads.total.is_empty()).then(|| ReadsSummary::of(&self.reads.sum())),
            merging: self.merging.summary(&self.run.settings.merge),
            shadow: self.shadow_summary(),
            mass_dropped: self.mass_dropped(),
            victims: self.evictions.total_victims(),
            latency_ns: Latencies {
                prefill: phases(&self.latency.prefill),
                decode: phases(&self.latency.decode),
                time_to_first_token: Quote::of(&self.latency.first_token),
                per_token: Quote::of(&self.latency.per_token),
                end_to_end: Quote::of(&self.latency.end_to_end),
            },
            bytes_per_token: (fed > 0).then(|| allocated as f64 / fed as f64),
            probe_overhead: self.latency.probe_overhead(),
            dropped_samples: self.dropped_samples,
            gap_steps: self.gap_steps,
            state_hash: self.hash.to_string(),
        }
    }

    fn shadow_summary(&self) -> Option<ShadowSummary> {
        let told = self.twin.sum()?;
        Some(ShadowSummary {
            every: self.run.settings.shadow,
            judged: told.judged,
            provenance: self.twin_provenance(),
            mean_kl: told.mean_kl(),
            agreement: told.agreement(),
            perplexity: told.perplexity(),
            twin_perplexity: told.twin_perplexity(),
            regret: told.regret,
            twin_ns: told.ns,
            twin_bytes: self.twin.bytes(),
        })
    }

    fn coding_summary(&self) -> Option<CodingSummary> {
        let head_dim = self.run.model.head_dim;
        let (k, v) = self.coding.sum();
        let layers = self.coding.layers.iter().map(|layer| CodingLayerSummary {
            k: CodedPart::of(&layer.k, head_dim),
            v: CodedPart::of(&layer.v, head_dim),
            recoded_rows: layer.recoded_rows,
            worst_k_channels: layer.worst_channels(WORST_CHANNELS, head_dim),
        });
        (k.rows + v.rows > 0).then(|| CodingSummary {
            kv_dtype: self.run.settings.kv_dtype.clone(),
            k: CodedPart::of(&k, head_dim),
            v: CodedPart::of(&v, head_dim),
            layers: layers.collect(),
        })
    }
}
