//! Teacher forcing: a run that goes on with a text it is given, and how the model took each of its tokens.

use std::collections::VecDeque;

use super::sequence::Work;
use super::{Engine, EngineError};
use crate::event::{Position, Stage};
use crate::model::{self, Config, Drawn, Stream};

/// Rows of logits computed at once: a row of a large vocabulary is half a megabyte.
const ROWS_AT_ONCE: usize = 64;

/// How the model took a token that it was given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Told {
    /// Where the token stands.
    pub position: Position,
    /// The token.
    pub id: u32,
    /// Natural logarithm of the probability that the model gave it.
    pub logprob: f32,
    /// The token that the model itself would have drawn.
    pub drawn: u32,
}

impl Told {
    /// Whether the model would have said the same.
    pub const fn is_right(&self) -> bool {
        self.id == self.drawn
    }
}

/// What the first sequence is to say.
#[derive(Clone, Debug, Default)]
pub(super) struct Teacher {
    /// Ids to go on with, in place of those drawn.
    rest: VecDeque<u32>,
    /// Whether the prompt's own tokens are judged too.
    with_prompt: bool,
    told: Vec<Told>,
}

impl Engine {
    /// Makes the first sequence go on with these ids after its prompt, each fed as if it had been drawn. Where they end,
    /// the model goes on by itself. The run's `max_tokens` counts them too.
    pub fn teach(&mut self, ids: &[u32]) {
        self.teacher.rest.extend(ids);
    }

    /// Whether the first sequence's prompt is judged too, from the next step on: a row of logits per token.
    pub const fn judge_prompt(&mut self, on: bool) {
        self.teacher.with_prompt = on;
    }

    /// How the model took each token that it was given and judged on since the last call, by position.
    pub fn take_told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.teacher.told)
    }

    /// Loses the rows of these positions in every layer of the first sequence, whatever the policy: for controlled
    /// experiments. No step tells of it, so a recorded run must not use it.
    ///
    /// # Errors
    /// A position that is not resident everywhere.
    pub fn lose(&mut self, positions: &[Position]) -> Result<(), EngineError> {
        let seq = self.sequences[0].id;
        for layer in 0..self.cache.config().shape.layers {
            self.cache.evict(seq, layer, &crate::cache::Victims::All(positions))?;
        }
        self.cache.take_ops(seq);
        Ok(())
    }

    /// Puts the teacher's id in place of the one drawn, and notes what was drawn.
    pub(super) fn corrected(&mut self, w: &Work, drawn: Drawn, logits: &[f32]) -> Drawn {
        let teacher = &mut self.teacher;
        if w.index != 0 {
            return drawn;
        }
        let Some(id) = teacher.rest.pop_front() else { return drawn };
        let logprob = model::sampler::logprob(logits, id);
        let position = w.first + w.ids.len() as Position;
        teacher.told.push(Told { position, id, logprob, drawn: drawn.id });
        Drawn { id, logprob, ..drawn }
    }

    /// Judges a chunk of the prompt: what each row says of the token after it, which the prompt knows. The last layer's
    /// rows `x` are of all the step's work.
    pub(super) fn judge(&mut self, x: &Stream, work: &[Work]) -> Result<(), EngineError> {
        // The first sequence's work comes first.
        let Some(w) = work.first().filter(|w| self.teacher.with_prompt && w.index == 0) else {
            return Ok(());
        };
        if w.stage != Stage::Prefill {
            return Ok(());
        }
        let after = w.first_computed() as usize + 1;
        let end = (after + w.computed().len()).min(self.prompt.len());
        let Config { vocab, hidden, .. } = *self.model.decoder.config();
        for first in (after..end).step_by(ROWS_AT_ONCE) {
            let rows: Vec<usize> = (first - after..end.min(first + ROWS_AT_ONCE) - after).collect();
            let logits = self.arithmetic.logits(&self.model.decoder, &x.rows(&rows, hidden)?)?;
            for (position, logits) in (first..).zip(logits.chunks_exact(vocab)) {
                let id = self.prompt[position];
                self.teacher.told.push(Told {
                    position: position as Position,
                    id,
                    logprob: model::sampler::logprob(logits, id),
                    drawn: self.sequences[0].sampler.largest(logits)?,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Observe, Prompt};
    use super::*;
    use crate::event::Settings;
    use crate::model::demo;

    const TEXT: &str = " Once there was a brave boy named Leo. He had a friend";

    fn engine(text: &str, chunk: u32) -> Engine {
        let settings = Settings { chunk, max_tokens: 4, ..Settings::default() };
        let prompt = Prompt { text: text.into(), ..Prompt::default() };
        let mut engine = Engine::new(Arc::new(demo::load().unwrap()), &settings, &prompt).unwrap();
        engine.set_observe(Observe::Off);
        engine
    }

    fn run(engine: &mut Engine) -> Vec<u32> {
        let mut said = Vec::new();
        while let Some(step) = engine.step().unwrap() {
            said.extend(step.seqs[0].sampled.iter().map(|s| s.id));
        }
        said
    }

    #[test]
    fn a_text_is_judged_alike_as_a_prompt_in_any_chunks_and_as_what_is_taught() {
        let judged = |chunk| {
            let mut engine = engine(TEXT, chunk);
            engine.judge_prompt(true);
            run(&mut engine);
            engine.take_told()
        };
        let whole = judged(64);
        let ids = engine(TEXT, 64).prompt.clone();
        assert_eq!(whole.iter().map(|told| told.id).collect::<Vec<_>>(), ids[1..]);
        assert!(whole.iter().filter(|told| told.is_right()).count() > 3, "{whole:?}");
        let mut taught = engine("", 64);
        taught.teach(&ids[1..5]);
        assert_eq!(run(&mut taught), ids[1..5]);
        for (a, b) in judged(3).iter().zip(&whole).chain(taught.take_told().iter().zip(&whole)) {
            assert_eq!((a.position, a.id, a.drawn), (b.position, b.id, b.drawn));
            assert!((a.logprob - b.logprob).abs() < 1e-4, "{a:?} {b:?}");
        }
    }

    #[test]
    fn after_the_lesson_the_model_goes_on_by_itself() {
        let free = run(&mut engine(TEXT, 64));
        let mut taught = engine(TEXT, 64);
        taught.teach(&free[..2]);
        assert_eq!(run(&mut taught), free);
        assert_eq!(taught.take_told().len(), 2);
        assert!(taught.take_told().is_empty());
    }

    #[test]
    fn what_is_lost_is_seen_no_more() {
        let mut whole = engine(TEXT, 64);
        let mut holed = engine(TEXT, 64);
        for engine in [&mut whole, &mut holed] {
            engine.step().unwrap();
            engine.teach(&[300, 301]);
        }
        assert!(holed.lose(&[900]).is_err());
        holed.lose(&[8, 9]).unwrap();
        run(&mut whole);
        run(&mut holed);
        assert_ne!(whole.take_told(), holed.take_told());
        let mut resident = Vec::new();
        holed.cache.resident(0, &mut resident);
        assert!(resident.iter().all(|&n| n as usize == holed.sequences[0].fed.len() - 2), "{resident:?}");
    }
}
