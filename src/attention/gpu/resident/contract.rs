//! What the engine asks of attention whose rows stay on a device, and what it tells it.

use std::ops::Range;

use candle_core::Tensor;

use super::{Answer, KeptSums, LayerErrors, Picture, Pull, PullTime, Question};
use crate::attention::{HeadLane, Rope, RowSink, Scoring, Wants};
use crate::device::gpu::Result;
use crate::event::{BlockId, Layer, Position, ScoreLevel, SeqId};

/// One lane of slots: of all KV heads while they agree, else of one.
#[derive(Clone, Copy, Debug)]
pub struct LaneTable<'a> {
    /// Position per slot.
    pub slots: &'a [Position],
    /// Blocks in table order; of all KV heads, the first head's.
    pub blocks: &'a [BlockId],
}

/// What a sequence brings to a layer. Its tables have the new rows already, as their last slots.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// The sequence.
    pub sequence: SeqId,
    /// How often its slots in this layer changed other than by appends.
    pub rearranged: u64,
    /// One, or one per KV head.
    pub tables: Vec<LaneTable<'a>>,
    /// Position of its first new row.
    pub first: Position,
    /// New rows.
    pub tokens: usize,
}

impl Part<'_> {
    pub(super) fn table(&self, kv_head: usize) -> &LaneTable<'_> {
        &self.tables[if self.tables.len() == 1 { 0 } else { kv_head }]
    }
}

/// A read set by rows: the largest probabilities of each query head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopRows {
    /// Rows per query head.
    pub n: usize,
    /// The query's own token is among them.
    pub own: bool,
    /// What was read is scaled up for what was not.
    pub renorm: bool,
}

/// What all layers of a step have in common.
#[derive(Clone, Debug)]
pub struct StepRows {
    /// Position of each new row, of all parts.
    pub positions: Vec<Position>,
    /// Of each row, the part.
    pub parts: Vec<u32>,
    /// Layers of the model.
    pub layers: usize,
    /// What decode steps read of layers whose values live on the host.
    pub read: Option<TopRows>,
    /// What is kept of attention, where a policy goes by sums of it.
    pub sums: Option<KeptSums>,
    /// Whether the device is to be clocked.
    pub clocked: bool,
    /// Whether it is measured how far rows are off in their codes.
    pub measured: bool,
    /// Whether it is counted how many of the rows that are read were read by the query before.
    pub counted: bool,
}

/// A layer's new rows, before rotation, and how they are attended.
#[derive(Clone, Copy, Debug)]
pub struct LayerRows<'a> {
    /// Decoder layer.
    pub layer: Layer,
    /// `[row][heads * head_dim]`.
    pub q: &'a Tensor,
    /// `[row][kv_heads * head_dim]`.
    pub k: &'a Tensor,
    /// The same.
    pub v: &'a Tensor,
    /// The layer's rotation.
    pub rope: &'a Rope,
    /// What becomes of scores.
    pub scoring: Scoring,
    /// Whether values live on the host.
    pub values_on_host: bool,
}

/// What the query heads of a (layer, part) chose to read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// Whether what the last step pulled was at hand: of it nothing crossed the link.
    pub finds_kept: bool,
    /// Rows that the query heads asked for, before the union.
    pub asked: u64,
    /// Rows of the unions.
    pub rows: u64,
    /// Those of them that the sequence's query before chose too.
    pub reused: u64,
    /// Per query head the mass that was not read.
    pub dropped: Vec<f32>,
}

/// Attention over pages that the device has alone.
pub trait Resident {
    /// Copies the pages of a block that is shared to another, which takes its home.
    ///
    /// # Errors
    /// There is no more memory, or the device fails; so below.
    fn copy_page(&mut self, from: BlockId, to: BlockId) -> Result<()>;

    /// Moves rows of lanes together, order kept: of each its blocks, the slots that move, and the slot that the first of
    /// them moves to. No two lanes have a block in common.
    fn move_rows(&mut self, lanes: &[(&[BlockId], &[u32], u32)]) -> Result<()>;

    /// Forgets blocks that were given back.
    fn free(&mut self, blocks: &[BlockId]);

    /// Begins a step.
    fn begin_step(&mut self, step: StepRows) -> Result<()>;

    /// Takes a layer's rows: queries and keys are rotated, keys and values written to their pages. The rows are those of
    /// the parts, one after the other.
    fn begin_layer(&mut self, rows: &LayerRows<'_>, parts: &[Part<'_>]) -> Result<()>;

    /// Attends for some parts of one row each, and adds up what sums are kept of. `keeps_rows` where [`look_at`](Self::look_at) follows.
    fn decode(&mut self, parts: Range<usize>, keeps_rows: bool) -> Result<()>;

    /// The same for a part of any number of rows, whose lanes these are; what is wanted is as of
    /// [`Attention::prefill`](crate::attention::Attention::prefill).
    fn prefill(
        &mut self,
        part: usize,
        lanes: &[HeadLane<'_>],
        wants: Wants,
        sinks: &mut [&mut dyn RowSink],
    ) -> Result<()>;

    /// What the layer attended, `[row][heads * head_dim]`.
    fn output(&mut self) -> Result<Tensor>;

    /// Makes the probabilities and the selection of a part of the latest [`decode`](Self::decode) those that the backend
    /// tells.
    fn look_at(&mut self, part: usize) -> Result<()>;

    /// Makes the attention picture of the latest [`decode`](Self::decode), whose rows were kept. There is no look at them
    /// after that.
    fn draw(&mut self, level: ScoreLevel) -> Result<()>;

    /// The pictures of the step, layers ascending.
    fn pictures(&mut self) -> Result<Vec<Picture>>;

    /// What the sums of the latest step say, per question and part. No slot of these parts has changed since that the tables
    /// do not tell of.
    fn ask(&mut self, questions: &[Question<'_>]) -> Result<Vec<Vec<Answer>>>;

    /// What was chosen in the step's decode parts, `[layer][part]`, where it is counted; nothing for a layer that read
    /// everything.
    fn choices(&mut self) -> Result<Vec<Vec<Choice>>>;

    /// How far the rows of the step are off in their codes, where that is measured, per layer.
    fn errors(&mut self, with_channels: bool) -> Result<Vec<LayerErrors>>;

    /// Where the step is clocked, notes how far the device has come.
    fn mark(&mut self) -> Result<()>;

    /// The times between the marks of the step, and waits for the last.
    fn laps_ns(&mut self) -> Result<Vec<u64>>;

    /// How long the copies of the step's layers took, where it is clocked.
    fn pulls(&mut self) -> Result<Vec<PullTime>>;

    /// How rows are pulled from the host, and whether they are kept for the next step: they come in one launch then.
    fn set_pull(&mut self, pull: Pull, keeps: bool);

    /// Writes rows made of chance, of unit variance, to all new slots of the parts.
    fn fill(&mut self, layer: Layer, parts: &[Part<'_>], values_on_host: bool, seed: u32) -> Result<()>;

    /// Takes memory for so many more pages of a kind at once.
    fn reserve(&mut self, pages: usize, values_on_host: bool) -> Result<()>;
}
