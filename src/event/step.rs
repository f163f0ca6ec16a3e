//! [`Step`]: what happened in one engine step.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::attention::AttentionMap;
use super::crush::Crush;
use super::evict::Eviction;
use super::ids::{BlockId, Head, Layer, Position, SeqId, StepId};
use super::merge::Merge;
use super::reads::LayerReads;
use super::shadow::Shadow;
use super::traffic::LayerTraffic;
use super::units::Provenance;

/// Where the time of a step goes. The order is the order of the arrays in a [`Step`] and of every picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(usize)]
pub enum Phase {
    /// Token embedding.
    Embed,
    /// Norm, Q, K and V projections, RoPE.
    Qkv,
    /// Writing K and V rows into pages.
    Append,
    /// Query times keys, softmax.
    Score,
    /// Choosing a read set (top N).
    Select,
    /// Pulling V rows from the host tier.
    VPull,
    /// Probabilities times values.
    WeightedSum,
    /// Output projection, norm, feed-forward.
    Mlp,
    /// Final norm and language-model head.
    Logits,
    /// Drawing the next token.
    Sample,
    /// Accumulators, scoring, selection and eviction of the policy.
    Policy,
    /// The observer itself.
    Probe,
}

/// Number of phases.
pub const PHASES: usize = 12;

impl Phase {
    /// All phases in order.
    pub const ALL: [Self; PHASES] = [
        Self::Embed,
        Self::Qkv,
        Self::Append,
        Self::Score,
        Self::Select,
        Self::VPull,
        Self::WeightedSum,
        Self::Mlp,
        Self::Logits,
        Self::Sample,
        Self::Policy,
        Self::Probe,
    ];

    /// The name shown and exported.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Qkv => "qkv",
            Self::Append => "append",
            Self::Score => "score",
            Self::Select => "select",
            Self::VPull => "v pull",
            Self::WeightedSum => "weighted sum",
            Self::Mlp => "mlp",
            Self::Logits => "logits",
            Self::Sample => "sample",
            Self::Policy => "policy",
            Self::Probe => "probe",
        }
    }
}

/// What a sequence does in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// A chunk of the prompt.
    Prefill,
    /// One generated token.
    Decode,
}

/// Where a token came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The prompt (its context part, if it has a question).
    Prompt,
    /// The question, fed after the context was compressed.
    Question,
    /// Sampled by the model.
    Generated,
    /// A later turn of the conversation: what was given to the model after its answer.
    Turn,
}

/// The bytes a token stands for. Models may emit bytes that are not UTF-8 on their own; nothing here is safe to print
/// raw, `ui` draws control characters as pictures of themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "PieceRepr", into = "PieceRepr")]
pub struct Piece(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
enum PieceRepr {
    #[serde(rename = "t")]
    Text(String),
    #[serde(rename = "b")]
    Bytes(Vec<u8>),
}

impl From<PieceRepr> for Piece {
    fn from(repr: PieceRepr) -> Self {
        match repr {
            PieceRepr::Text(text) => Self(text.into_bytes()),
            PieceRepr::Bytes(bytes) => Self(bytes),
        }
    }
}

impl From<Piece> for PieceRepr {
    fn from(piece: Piece) -> Self {
        match String::from_utf8(piece.0) {
            Ok(text) => Self::Text(text),
            Err(error) => Self::Bytes(error.into_bytes()),
        }
    }
}

impl From<&str> for Piece {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl Piece {
    /// The bytes as text, invalid sequences replaced.
    pub fn lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

/// A token fed to the model in a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fed {
    /// Vocabulary id.
    pub id: u32,
    /// Its bytes.
    pub piece: Piece,
    /// Where it came from.
    pub origin: Origin,
}

/// The token drawn at the end of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    /// Vocabulary id.
    pub id: u32,
    /// Its bytes.
    pub piece: Piece,
    /// Natural logarithm of its probability under the plain softmax of the logits (temperature 1).
    #[serde(with = "spelled")]
    pub logprob: f32,
    /// Gap between the two largest logits.
    #[serde(with = "spelled")]
    pub margin: f32,
}

/// Why a sequence stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model emitted an end token.
    EndToken,
    /// `--max-tokens` was reached.
    MaxTokens,
    /// The model's context is full.
    ContextFull,
    /// No block was free and the policy gave none back.
    PoolExhausted,
    /// A person stopped it.
    Stopped,
}

impl Finish {
    /// The words shown to a person.
    pub const fn words(self) -> &'static str {
        match self {
            Self::EndToken => "end token",
            Self::MaxTokens => "token limit reached",
            Self::ContextFull => "context full",
            Self::PoolExhausted => "pool exhausted: no free block",
            Self::Stopped => "stopped",
        }
    }
}

/// What changed in the block tables of one layer of one sequence, in this order: blocks adopted from a shared prefix,
/// blocks taken for appended tokens, then (after the step's evictions) blocks without survivors given back, shared
/// blocks copied because compaction is about to write them, compaction, and the blocks that compaction gives back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableOps {
    /// Decoder layer.
    pub layer: Layer,
    /// KV head once the layer's heads have parted; `None` for the gang (then an id is that of head 0's block, the
    /// other heads' follow in a row).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
    /// Full blocks taken over from a shared prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adopted: Vec<BlockId>,
    /// (from, to): copied because they were shared and about to be written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copied: Vec<(BlockId, BlockId)>,
    /// Newly allocated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<BlockId>,
    /// Given back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freed: Vec<BlockId>,
    /// Survivors were moved together at the end of the step.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compacted: bool,
}

impl TableOps {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.adopted.is_empty()
            && self.copied.is_empty()
            && self.taken.is_empty()
            && self.freed.is_empty()
            && !self.compacted
    }
}

/// One sequence's part of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeqStep {
    /// Which sequence.
    pub seq: SeqId,
    /// Prefill chunk or decode token.
    pub stage: Stage,
    /// Position of the first token fed; the others follow.
    pub first: Position,
    /// Tokens fed, those whose blocks were adopted first. A position is appended to every (layer, KV head).
    pub fed: Vec<Fed>,
    /// The token drawn, if this step drew one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampled: Option<Sampled>,
    /// Block table changes; layers (and heads) without any are absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<TableOps>,
    /// Tokens resident after the step, per (layer, KV head), layer-major: `layer * kv_heads + head`.
    pub resident: Vec<u32>,
    /// Attention mass that the read set did not read, mean over the query heads of each (layer, KV head), layer-major.
    /// Empty when no read set acted, or none that knows: under Quest only a step with a picture scores everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "spelled_vec")]
    pub dropped: Vec<f32>,
    /// Set on the sequence's last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<Finish>,
    /// What KVCrush saw, one per layer that it decided, layers ascending; empty under any other rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crush: Vec<Crush>,
    /// What a merge rule altered, layers ascending and heads within them; victims that are not in here are lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merges: Vec<Merge>,
    /// What the full-cache twin tells of the step; absent without `--shadow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// Decisions of the step; on the recording's `/evict` channel.
    #[serde(skip)]
    pub evictions: Vec<Eviction>,
    /// The attention picture; on the recording's `/attention` channel, where it may be missing.
    #[serde(skip)]
    pub attention: Option<AttentionMap>,
}

/// Where bytes live (design 1). On a CPU run `Device` and `Host` are two arenas of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The accelerator's memory.
    Device,
    /// Main memory.
    Host,
    /// A file.
    Disk,
    /// Another machine.
    Remote,
}

impl Tier {
    /// The name shown and exported.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Host => "host",
            Self::Disk => "disk",
            Self::Remote => "remote",
        }
    }
}

/// Bytes of K and V pages in one tier after a step, counted. `live + stranded + unfilled + copies` is what is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierUse {
    /// Which tier.
    pub tier: Tier,
    /// Rows of resident tokens in their home tier.
    pub live_bytes: u64,
    /// Rows of evicted tokens in blocks that still hold others.
    pub stranded_bytes: u64,
    /// Rows never written in the last block of a table.
    pub unfilled_bytes: u64,
    /// Second copies: staging, and rows whose home is another tier.
    pub copies_bytes: u64,
    /// The tier's limit; 0 where there is none.
    pub capacity_bytes: u64,
}

impl TierUse {
    /// An empty tier.
    pub const fn new(tier: Tier) -> Self {
        Self { tier, live_bytes: 0, stranded_bytes: 0, unfilled_bytes: 0, copies_bytes: 0, capacity_bytes: 0 }
    }

    /// Allocated bytes.
    pub const fn allocated_bytes(&self) -> u64 {
        self.live_bytes + self.stranded_bytes + self.unfilled_bytes + self.copies_bytes
    }
}

/// What became of rows that went from their exact values into codes (measured against those values when they did).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CodingError {
    /// Rows of one KV head and one token.
    pub rows: u64,
    /// Sum over their elements of the squared difference between exact and decoded value; elements that are not finite
    /// do not count.
    pub squared_error: f64,
    /// Sum over their elements of the squared exact value.
    pub squares: f64,
}

impl CodingError {
    /// Root of squared error over squares: 0 for no error, 1 when as much was lost as was there. `None` when nothing was.
    pub fn relative(&self) -> Option<f64> {
        Some((self.squared_error / self.squares).sqrt()).filter(|share| share.is_finite())
    }

    /// Squared error per element, for rows of `head_dim` elements. `None` without rows.
    pub fn mean_squared(&self, head_dim: u32) -> Option<f64> {
        let elements = self.rows as f64 * f64::from(head_dim);
        Some(self.squared_error / elements).filter(|mean| mean.is_finite())
    }

    /// These rows and others.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self {
            rows: self.rows.saturating_add(other.rows),
            squared_error: self.squared_error + other.squared_error,
            squares: self.squares + other.squares,
        }
    }
}

/// Rows of one layer that went into codes in one step, all sequences and KV heads together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerCoding {
    /// Decoder layer.
    pub layer: Layer,
    /// Keys.
    pub k: CodingError,
    /// Values.
    pub v: CodingError,
    /// K rows that compaction had to decode because their page's scales were not theirs any more. Going into codes once
    /// more they count again, measured against what they were decoded to.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub recoded_rows: u64,
    /// Relative error of each K channel since the run began, `[kv_head][channel]`, as cells of
    /// [`attention::quantise`](super::attention::quantise). Only in steps that put at least 32 tokens of every head into
    /// codes, and only up to [`MAX_CHANNELS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub k_channels: Vec<u8>,
}

/// Most K channels of a layer that are reported one by one.
pub const MAX_CHANNELS: usize = 4_096;

// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What observing cost in this step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeCost {
    /// Time spent observing, inside `wall_ns` (measured).
    pub ns: u64,
    /// Attention pictures left out so far in this run because a consumer lagged.
    pub dropped: u64,
}

/// A parameter that a person changed; in force from the step that carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// Parameter, as on the command line: `budget`, `n`, `pace` …
    pub name: String,
    /// Value before.
    pub from: String,
    /// Value from now on.
    pub to: String,
}

/// One engine forward over one or more sequences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Ordinal in the run.
    pub step: StepId,
    /// Start, since the run began (measured).
    pub start_ns: u64,
    /// Duration (measured).
    pub wall_ns: u64,
    /// Each sequence's part.
    pub seqs: Vec<SeqStep>,
    /// Time per phase within each layer; phases outside the layers are 0 here.
    pub layer_ns: Vec<[u64; PHASES]>,
    /// Time per phase outside the layers (embed, logits, sample, policy bookkeeping, probe).
    pub outer_ns: [u64; PHASES],
    /// Whether the phase times were measured on this step or only sampled on some.
    pub timing: Provenance,
    /// Bytes by tier after the step.
    pub tiers: Vec<TierUse>,
    /// V traffic; layers that moved nothing are absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<LayerTraffic>,
    /// What a read set by pages read; layers that read everything are absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<LayerReads>,
    /// Rows that went into codes; layers without any are absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub coding: Vec<LayerCoding>,
    /// The observer's cost.
    pub probe: ProbeCost,
    /// Parameter changes in force from this step; on the recording's `/params` channel too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tuning: Vec<Tuning>,
}

impl Step {
    /// Prefill or decode: one chunk of a prompt makes a batch's step one of prefill.
    pub fn stage(&self) -> Stage {
        let prefills = self.seqs.iter().any(|part| part.stage == Stage::Prefill);
        if prefills { Stage::Prefill } else { Stage::Decode }
    }

    /// Time of one phase, layers and the rest together.
    pub fn phase_ns(&self, phase: Phase) -> u64 {
        let i = phase as usize;
        self.outer_ns[i] + self.layer_ns.iter().map(|l| l[i]).sum::<u64>()
    }

    /// End, since the run began.
    pub const fn end_ns(&self) -> u64 {
        self.start_ns.saturating_add(self.wall_ns)
    }

    /// Number of victims over all sequences, layers and heads.
    pub fn victims(&self) -> usize {
        self.seqs.iter().flat_map(|s| &s.evictions).map(|e| e.positions.len()).sum()
    }
}

/// f32 in JSON, with the non-finite values spelled (`"NaN"`, `"inf"`, `"-inf"`).
pub(super) mod spelled {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    pub(super) enum Spelled {
        Finite(f32),
        Word(String),
    }

    impl From<f32> for Spelled {
        fn from(x: f32) -> Self {
            if x.is_finite() { Self::Finite(x) } else { Self::Word(x.to_string()) }
        }
    }

    impl TryFrom<Spelled> for f32 {
        type Error = String;
        fn try_from(spelled: Spelled) -> Result<Self, String> {
            match spelled {
                Spelled::Finite(x) => Ok(x),
                Spelled::Word(word) => word.parse().map_err(|_| format!("'{word}' is not a number")),
            }
        }
    }

    // The signature is serde's.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(in crate::event) fn serialize<S: Serializer>(x: &f32, s: S) -> Result<S::Ok, S::Error> {
        Spelled::from(*x).serialize(s)
    }

    pub(in crate::event) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<f32, D::Error> {
        Spelled::deserialize(d)?.try_into().map_err(serde::de::Error::custom)
    }
}

/// The same for a column of f32.
mod spelled_vec {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::spelled::Spelled;

    pub(super) fn serialize<S: Serializer>(xs: &[f32], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(xs.iter().map(|&x| Spelled::from(x)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<f32>, D::Error> {
        Vec::<Spelled>::deserialize(d)?
            .into_iter()
            .map(|x| x.try_into().map_err(serde::de::Error::custom))
            .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::shadow::Judged;
    use super::*;

    /// A small step with every optional part in use, for tests in other rooms.
    pub(crate) fn sample_step() -> Step {
        Step {
            step: 7,
            start_ns: 1_000,
            wall_ns: 500,
            seqs: vec![SeqStep {
                seq: 0,
                stage: Stage::Decode,
                first: 3,
                fed: vec![Fed { id: 9, piece: Piece(vec![0xff, 0x1b]), origin: Origin::Generated }],
                sampled: Some(Sampled {
                    id: 4,
                    piece: " Mia".into(),
                    logprob: f32::NEG_INFINITY,
                    margin: 0.1,
                }),
                tables: vec![TableOps { layer: 1, taken: vec![4], ..TableOps::default() }],
                resident: vec![4, 4],
                dropped: vec![0.25, 0.1],
                finish: Some(Finish::MaxTokens),
                crush: Vec::new(),
                merges: Vec::new(),
                shadow: Some(Shadow {
                    ns: 40,
                    bytes: 4_096,
                    judged: Some(Judged { kl: f32::INFINITY, agrees: true, logprob: -0.5 }),
                    regret: 0.1,
                    victims: Vec::new(),
                }),
                evictions: Vec::new(),
                attention: None,
            }],
            layer_ns: vec![[1; PHASES], [2; PHASES]],
            outer_ns: [3; PHASES],
            timing: Provenance::Measured,
            tiers: vec![TierUse::new(Tier::Device)],
            traffic: vec![LayerTraffic { layer: 1, rows: 3, ..LayerTraffic::default() }],
            reads: vec![LayerReads { layer: 1, pages: 5, read: 3, ..LayerReads::default() }],
            coding: vec![LayerCoding {
                layer: 1,
                k: CodingError { rows: 2, squared_error: 0.1, squares: 7.3 },
                v: CodingError { rows: 1, squared_error: 1e-9, squares: 2.0 },
                recoded_rows: 1,
                k_channels: vec![0, 255],
            }],
            probe: ProbeCost { ns: 5, dropped: 0 },
            tuning: vec![Tuning { name: "budget".into(), from: "100%".into(), to: "25%".into() }],
        }
    }

    /// Step `i` of a run of one token per step, one layer, one head, blocks of 16: consistent, so it folds.
    pub(crate) fn plain_step(i: StepId) -> Step {
        let taken = if i.is_multiple_of(16) { vec![(i / 16) as BlockId] } else { Vec::new() };
        let tables =
            if taken.is_empty() { Vec::new() } else { vec![TableOps { taken, ..TableOps::default() }] };
        Step {
            step: i,
            start_ns: i * 10,
            wall_ns: 9,
            seqs: vec![SeqStep {
                seq: 0,
                stage: Stage::Decode,
                first: i as Position,
                fed: vec![Fed { id: 1, piece: "x".into(), origin: Origin::Generated }],
                sampled: None,
                tables,
                resident: vec![i as u32 + 1],
                dropped: Vec::new(),
                finish: None,
                crush: Vec::new(),
                merges: Vec::new(),
                shadow: None,
                evictions: Vec::new(),
                attention: None,
            }],
            layer_ns: vec![[0; PHASES]],
            outer_ns: [0; PHASES],
            timing: Provenance::Measured,
            tiers: Vec::new(),
            traffic: Vec::new(),
            reads: Vec::new(),
            coding: Vec::new(),
            probe: ProbeCost::default(),
            tuning: Vec::new(),
        }
    }

    #[test]
    fn json_round_trip_is_exact_with_non_finite_values_and_odd_bytes() {
        let step = sample_step();
        let text = serde_json::to_string(&step).unwrap();
        assert!(text.contains("\"-inf\""), "{text}");
        assert_eq!(serde_json::from_str::<Step>(&text).unwrap(), step);
    }

    #[test]
    fn phase_time_adds_layers_and_the_rest() {
        assert_eq!(sample_step().phase_ns(Phase::Mlp), 1 + 2 + 3);
    }
}
