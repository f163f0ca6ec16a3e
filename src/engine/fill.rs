//! A context made of chance in place of a prompt's, for benchmarks: feeding a long prompt takes minutes, and how long a
//! decode step takes does not depend on what the rows hold.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::EngineError;
use super::core::{Engine, Observe};
use super::forward::Gathered;
use super::sequence::Work;
use crate::event::{Layer, Origin, Stage, Step};
use crate::policy::When;

impl Engine {
    /// Appends keys and values of unit variance for every token of the prompt but the last, as if they had been fed;
    /// [`step`](Self::step) goes on from there. What is decoded afterwards means nothing, and a policy that asks for
    /// attention has seen none.
    ///
    /// # Errors
    /// A pool that is too small; a run of several sequences, or one that has begun.
    pub fn fill(&mut self, seed: u64) -> Result<Step, EngineError> {
        let [sequence] = &*self.sequences else {
            return Err(EngineError::Setting(
                "a context can be filled for one sequence, not for a batch".into(),
            ));
        };
        let (seq, ids) = (sequence.id, self.prompt[..self.prompt.len() - 1].to_vec());
        if !sequence.fed.is_empty() || ids.is_empty() {
            return Err(EngineError::Setting("a context can be filled before the first token only".into()));
        }
        self.timer.begin(self.observe != Observe::Off);
        self.begin_traffic();
        self.cache.reserve(seq, 0, ids.len())?;
        let (config, mut rng) = (self.model.decoder.config(), ChaCha8Rng::seed_from_u64(seed));
        let (layers, numbers) = (config.layers, ids.len() * config.kv_heads * config.head_dim);
        let limit = 3f32.sqrt();
        let mut rows = || (0..numbers).map(|_| rng.random_range(-limit..limit)).collect::<Vec<f32>>();
        let work = Work {
            index: 0,
            stage: Stage::Prefill,
            first: 0,
            ids,
            origin: Origin::Prompt,
            drawn: 0,
            adopted: 0,
            draws: false,
            when: When::Chunk,
        };
        for layer in 0..layers {
            let (keys, values) = (rows(), rows());
            self.cache.write(seq, layer as Layer, 0, &keys, &values)?;
            self.count_push(seq, layer, work.ids.len());
            self.follow_keys(layer, &work);
            if self.cache.config().dtype.is_coded() {
                self.cache.quantise(seq, layer as Layer)?;
            }
        }
        let step = self.conclude(&[work], vec![Gathered::default()], Vec::new())?;
        self.step += 1;
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::engine::{Engine, Prompt};
    use crate::event::Settings;
    use crate::model::demo;

    #[test]
    fn a_filled_context_is_decoded_as_a_fed_one_is() {
        let model = Arc::new(demo::load().unwrap());
        let text = demo::passkey(0, 300, demo::DEPTH).context;
        for read in ["", "kcache:n=8,l=1", "quest:budget=64,page=16"] {
            let settings = Settings { read: read.into(), max_tokens: 3, ..Settings::default() };
            let prompt = Prompt { text: text.clone(), ..Prompt::default() };
            let mut engine = Engine::new(Arc::clone(&model), &settings, &prompt).unwrap();
            let tokens = engine.info().prompt_tokens as usize;
            let filled = engine.fill(7).unwrap();
            assert_eq!(filled.seqs[0].fed.len(), tokens - 1);
            assert!(engine.fill(7).is_err(), "a context is filled once");
            let first = engine.step().unwrap().unwrap();
            assert_eq!((first.seqs[0].fed.len(), first.seqs[0].sampled.is_some()), (1, true));
            let residents = first.seqs[0].resident.iter().copied().map(u64::from);
            assert!(residents.into_iter().all(|n| n == tokens as u64), "{read}");
            while engine.step().unwrap().is_some() {}
            assert!(engine.is_finished());
        }
    }
}
