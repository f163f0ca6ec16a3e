//! A context made of chance in place of a prompt's, for benchmarks: feeding a long prompt takes minutes, and how long a
//! decode step takes does not depend on what the rows hold.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::EngineError;
use super::core::Engine;
use super::forward::Gathered;
use super::sequence::Work;
use crate::event::{Layer, Origin, Stage, Step};
use crate::policy::When;

/// Largest number of an even distribution of unit variance about 0.
const LIMIT: f64 = 1.732_050_807_568_877_2;

impl Engine {
    /// Appends keys and values of unit variance for every token of the prompt but the last, as if they had been fed, in
    /// every sequence; [`step`](Self::step) goes on from there. What is decoded afterwards means nothing, and a policy that
    /// asks for attention has seen none.
    ///
    /// # Errors
    /// A pool that is too small; a run that has begun.
    pub fn fill(&mut self, seed: u64) -> Result<Step, EngineError> {
        let ids = self.prompt[..self.prompt.len() - 1].to_vec();
        if self.sequences.iter().any(|s| !s.fed.is_empty()) || ids.is_empty() {
            return Err(EngineError::Setting("a context can be filled before the first token only".into()));
        }
        let clocked = self.clocks_phases();
        self.timer.begin(clocked);
        self.begin_traffic();
        let mut all = Vec::new();
        for (index, sequence) in self.sequences.iter().enumerate() {
            self.cache.reserve(sequence.id, 0, ids.len())?;
            all.push(Work {
                index,
                stage: Stage::Prefill,
                first: 0,
                ids: ids.clone(),
                origin: Origin::Prompt,
                drawn: 0,
                adopted: 0,
                draws: false,
                when: When::Chunk,
            });
        }
        if self.rows_stay() {
            self.fill_device(&all, seed)?;
        } else {
            self.fill_pages(&all, seed)?;
        }
        let gathered = all.iter().map(|_| Gathered::default()).collect();
        let step = self.conclude(&all, gathered, Vec::new())?;
        self.step += 1;
        Ok(step)
    }

    fn fill_pages(&mut self, all: &[Work], seed: u64) -> Result<(), EngineError> {
        let (config, mut rng) = (self.model.decoder.config(), ChaCha8Rng::seed_from_u64(seed));
        let (layers, width) = (config.layers, config.kv_heads * config.head_dim);
        let limit = LIMIT as f32;
        let mut rows = |n: usize| (0..n).map(|_| rng.random_range(-limit..limit)).collect::<Vec<f32>>();
        for (w, layer) in all.iter().flat_map(|w| (0..layers).map(move |layer| (w, layer))) {
            let numbers = w.ids.len() * width;
            let (keys, values) = (rows(numbers), rows(numbers));
            let seq = self.sequences[w.index].id;
            self.cache.write(seq, layer as Layer, 0, &keys, &values)?;
            self.count_push(seq, layer, w.ids.len());
            self.follow_keys(layer, w);
            if self.cache.config().dtype.is_coded() {
                self.cache.quantise(seq, layer as Layer)?;
            }
        }
        Ok(())
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
        for (read, batch) in [("", 1), ("kcache:n=8,l=1", 2), ("quest:budget=64,page=16", 1)] {
            let settings = Settings { read: read.into(), batch, max_tokens: 3, ..Settings::default() };
            let prompt = Prompt { text: text.clone(), ..Prompt::default() };
            let mut engine = Engine::new(Arc::clone(&model), &settings, &prompt).unwrap();
            let tokens = engine.info().prompt_tokens as usize;
            let filled = engine.fill(7).unwrap();
            assert_eq!(filled.seqs.len(), batch as usize);
            assert!(filled.seqs.iter().all(|part| part.fed.len() == tokens - 1));
            assert!(engine.fill(7).is_err(), "a context is filled once");
            let first = engine.step().unwrap().unwrap();
            assert!(first.seqs.iter().all(|part| (part.fed.len(), part.sampled.is_some()) == (1, true)));
            let residents = first.seqs[0].resident.iter().copied().map(u64::from);
            assert!(residents.into_iter().all(|n| n == tokens as u64), "{read}");
            while engine.step().unwrap().is_some() {}
            assert!(engine.is_finished());
        }
    }
}
