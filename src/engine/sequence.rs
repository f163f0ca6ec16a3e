//! One sequence of the run: where it stands and what it feeds next.

use super::memory::LayerMemory;
use super::turns::TurnStart;
use crate::attention::PageBounds;
use crate::event::{Finish, Origin, Position, SeqId, Stage};
use crate::model::Sampler;
use crate::policy::{Accumulators, Memory, Needs, QueryMoments, TokenClass, When};

/// A sequence under way.
pub(super) struct Sequence {
    pub(super) id: SeqId,
    /// Ids fed so far, by position.
    pub(super) fed: Vec<u32>,
    /// The token drawn last, not fed yet.
    pub(super) pending: Option<u32>,
    pub(super) generated: u32,
    pub(super) finish: Option<Finish>,
    pub(super) sampler: Sampler,
    /// Per (layer, KV head), layer-major.
    pub(super) accumulators: Vec<Accumulators>,
    /// Per (layer, query head), layer-major; empty where the policy does not ask for them.
    pub(super) queries: Vec<QueryMoments>,
    /// By position, as `fed`; empty where the policy does not ask for them.
    pub(super) classes: Vec<TokenClass>,
    /// Positions whose V rows the previous decode step pulled, per (layer, KV head), ascending.
    pub(super) pulled: Vec<Vec<Position>>,
    /// Bounds of the pages' keys, per (layer, KV head); nothing is in them unless the read set goes by pages.
    pub(super) bounds: Vec<PageBounds>,
    /// How the policy's budget is shared over the layers; empty where it is not, and before the first decision.
    pub(super) shares: Vec<f32>,
    /// What the merge rule remembers, per layer.
    pub(super) memory: Vec<Memory>,
    /// Per layer what a memory on the host keeps; nothing is in them under any other read set.
    pub(super) far: Vec<LayerMemory>,
    /// Where the tokens begin that no pair of layers was made alike in yet.
    pub(super) merged: Position,
}

/// What one sequence feeds in one step.
pub(super) struct Work {
    /// Index of the sequence.
    pub(super) index: usize,
    pub(super) stage: Stage,
    /// Position of the first token, adopted ones included.
    pub(super) first: Position,
    /// All tokens the step appends.
    pub(super) ids: Vec<u32>,
    pub(super) origin: Origin,
    /// Leading ids that the model drew, in a step that is not one of decoding.
    pub(super) drawn: usize,
    /// Leading ids whose rows came from a shared prefix and are not computed again.
    pub(super) adopted: usize,
    /// Whether the last token's logits are wanted.
    pub(super) draws: bool,
    /// The moment the policy is asked at.
    pub(super) when: When,
}

impl Work {
    /// Ids that go through the model.
    pub(super) fn computed(&self) -> &[u32] {
        &self.ids[self.adopted..]
    }

    /// Position of the first id that goes through the model.
    pub(super) fn first_computed(&self) -> Position {
        self.first + self.adopted as Position
    }
}

/// The prompt as the sequences feed it.
pub(super) struct Script<'a> {
    pub(super) prompt: &'a [u32],
    pub(super) context_len: usize,
    pub(super) chunk: usize,
    pub(super) has_question: bool,
    pub(super) turn: Option<TurnStart>,
}

impl Script<'_> {
    /// Where the token at a position comes from, which is given to the model.
    fn origin(&self, at: usize) -> Origin {
        if self.turn.is_some_and(|turn| at >= turn.from) {
            Origin::Turn
        } else if self.has_question && at >= self.context_len {
            Origin::Question
        } else {
            Origin::Prompt
        }
    }
}

impl Sequence {
    /// Stands from now on where `grown` does, with those of its accumulators that `needs` names; draws anew.
    pub(super) fn go_on_from(&mut self, grown: &Self, needs: Needs) {
        self.fed.clone_from(&grown.fed);
        (self.pending, self.generated, self.finish) = (grown.pending, grown.generated, grown.finish);
        self.accumulators = grown.accumulators.iter().map(|kept| kept.narrowed(needs)).collect();
        self.queries.clone_from(&grown.queries);
        self.classes.clone_from(&grown.classes);
        self.pulled.clone_from(&grown.pulled);
        self.far.clone_from(&grown.far);
        // The bounds of pages follow the keys from any state; shares and what merges remember begin with the decisions.
    }

    /// What comes next; `None` when the sequence has ended. `adopted` ids at the start of the prompt are already in the
    /// cache.
    pub(super) fn next(&self, index: usize, script: &Script<'_>, adopted: usize) -> Option<Work> {
        if self.finish.is_some() {
            return None;
        }
        let at = self.fed.len();
        if at >= script.prompt.len() {
            let ids = vec![self.pending?];
            return Some(Work {
                index,
                stage: Stage::Decode,
                first: at as Position,
                ids,
                origin: Origin::Generated,
                drawn: 0,
                adopted: 0,
                draws: true,
                when: When::Token,
            });
        }
        // A chunk never straddles the end of the compressed span: the policy decides exactly there.
        let in_context = at < script.context_len;
        let span_end = if in_context { script.context_len } else { script.prompt.len() };
        let end = (at + adopted + script.chunk).min(span_end);
        Some(Work {
            index,
            stage: Stage::Prefill,
            first: at as Position,
            ids: script.prompt[at..end].to_vec(),
            origin: script.origin(at),
            drawn: script.turn.filter(|turn| turn.from == at).map_or(0, |turn| turn.drawn),
            adopted,
            draws: end == script.prompt.len(),
            when: if end == script.context_len { When::EndOfPrompt } else { When::Chunk },
        })
    }
}
