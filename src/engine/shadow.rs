//! The full-cache twin (`--shadow`): a second cache that loses nothing, fed the tokens of the run.
//!
//! When a step of the run is over, the twin takes the same tokens in, whatever they were drawn by, and says how far the
//! run's distribution is from its own and how much attention fell on what the run has lost. Its time and its bytes are
//! counted apart: none of it is in the step's own times or tiers, and the run is the same with a twin and without.
//!
//! With `every:K` it waits for the draw that it judges and takes the tokens since the last in as one chunk: one pass
//! over the weights and one row of logits in place of K. Divergence and agreement are sampled then; regret is whole,
//! because a chunk's attention has a row for every query.

mod judge;
mod ledger;
mod need;
mod twin;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use super::{Engine, EngineError};
use crate::event::shadow::{MAX_TOLD, MAX_TOLD_LAST};
use crate::event::{self, Position, Reason, RunInfo, SeqStep, Stage, Step};
use crate::model::Model;
use ledger::Ledger;
use need::Need;
use twin::Twin;

/// The twin of a run, and what it has found out so far.
pub(super) struct Shadow {
    twin: Twin,
    need: Need,
    /// Judges the draws whose ordinal in their sequence this divides.
    every: u32,
    /// One per sequence.
    followed: Vec<Followed>,
    /// The run's logits of the present step, a row per sequence that draws.
    logits: Vec<f32>,
}

/// How far the twin has followed a sequence.
#[derive(Default)]
struct Followed {
    /// Tokens taken in.
    fed: usize,
    /// Tokens that the run has fed and the twin has not.
    waiting: Vec<u32>,
    draws: u32,
    ledger: Ledger,
}

impl Followed {
    /// Position of the token that the run feeds next.
    fn next(&self) -> Position {
        (self.fed + self.waiting.len()) as Position
    }
}

impl Shadow {
    /// The twin that the settings ask for, if they do.
    pub(super) fn new(model: &Arc<Model>, info: &RunInfo) -> Result<Option<Self>, EngineError> {
        let settings = &info.settings;
        if settings.shadow == 0 {
            return Ok(None);
        }
        Ok(Some(Self {
            twin: Twin::new(Arc::clone(model), settings.batch, info.reach())?,
            need: Need::of(info),
            every: settings.shadow,
            followed: (0..settings.batch).map(|_| Followed::default()).collect(),
            logits: Vec::new(),
        }))
    }

    /// Takes the run's logits of this step, `[draw][vocab]`, sequences ascending.
    pub(super) fn take_logits(&mut self, logits: Vec<f32>) {
        self.logits = logits;
    }

    /// Follows the run through a step that is over, and puts what there is to tell into it.
    fn follow(&mut self, step: &mut Step) -> Result<(), EngineError> {
        let logits = std::mem::take(&mut self.logits);
        let mut rows = logits.chunks_exact(self.twin.vocab());
        for part in &mut step.seqs {
            let row = part.sampled.as_ref().and_then(|_| rows.next());
            part.shadow = Some(self.follow_one(part, row)?);
        }
        Ok(())
    }

    fn follow_one(&mut self, part: &SeqStep, run: Option<&[f32]>) -> Result<event::Shadow, EngineError> {
        let start = Instant::now();
        let followed = &mut self.followed[part.seq as usize];
        followed.waiting.extend(part.fed.iter().map(|fed| fed.id));
        let judges = run.is_some() && followed.draws.is_multiple_of(self.every);
        followed.draws += u32::from(run.is_some());
        let due = judges || part.stage == Stage::Prefill || part.finish.is_some();
        let mut judged = None;
        if due && !followed.waiting.is_empty() {
            let ids = std::mem::take(&mut followed.waiting);
            let rows = self.twin.feed(part.seq, followed.fed as Position, &ids, &mut followed.ledger)?;
            followed.fed += ids.len();
            if let (true, Some(run), Some(drawn)) = (judges, run, &part.sampled) {
                judged = Some(self.twin.judge(&rows, run, drawn.id)?);
            }
        }
        let regret = followed.ledger.take_total();
        // What left the window of its layer is hidden from the twin too: nobody misses it.
        for e in part.evictions.iter().filter(|e| e.reason != Reason::LayerWindow) {
            followed.ledger.lose(self.twin.lanes(e.layer, e.head), &e.positions, followed.next());
        }
        let most = if part.finish.is_some() { MAX_TOLD_LAST } else { MAX_TOLD };
        let victims = followed.ledger.tell(most, |lane| self.twin.lane_ids(lane));
        Ok(event::Shadow {
            bytes: self.need.bytes_at(followed.fed as u64),
            judged,
            regret,
            victims,
            ns: start.elapsed().as_nanos() as u64,
        })
    }
}

impl Engine {
    /// Whether the full-cache twin of this run fits into so much memory; a run without one always does. Nothing of it
    /// is allocated before the first step.
    ///
    /// # Errors
    /// It does not: one line with the arithmetic.
    pub fn check_memory(&self, free_bytes: u64) -> Result<(), EngineError> {
        match &self.shadow {
            Some(shadow) => shadow.need.check(free_bytes),
            None => Ok(()),
        }
    }

    /// Lets the twin, if there is one, follow through a step that is over.
    pub(super) fn shadowed(&mut self, mut step: Step) -> Result<Step, EngineError> {
        if let Some(shadow) = &mut self.shadow {
            shadow.follow(&mut step)?;
        }
        Ok(step)
    }
}
