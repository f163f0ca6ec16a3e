//! Putting steps together again from the messages of a recording.

use std::collections::HashMap;
use std::sync::Arc;

use super::Topic;
use super::chunk::{Chunk, Message};
use super::index::Gap;
use super::layout::Topics;
use super::limits::{Budget, MAX_CHUNK_BYTES, Shape};
use super::{attention, evict};
use crate::event::{SeqId, Step, StepId};

/// One thing that a recording says.
pub(super) enum Told<'a> {
    /// A whole step.
    Step(Box<Step>),
    /// Opaque state after a step.
    Keyframe(StepId, &'a [u8]),
    /// Encoded histograms after a step.
    Latency(StepId, &'a [u8]),
    /// Missing steps.
    Gap(Gap),
}

/// Collects the messages of a step until its `/step` message comes.
#[derive(Default)]
pub(super) struct Assembler {
    /// Decisions and pictures whose step has not come yet.
    waiting: Vec<(Topic, Arc<Chunk>, Message)>,
    waiting_bytes: usize,
    /// Steps before this one are passed over undecoded.
    from: StepId,
}

impl Assembler {
    pub(super) fn starting_at(from: StepId) -> Self {
        Self { from, ..Self::default() }
    }

    /// Takes the next message in file order.
    ///
    /// # Errors
    /// Says what is wrong with the message, or with the step that it completes.
    pub(super) fn feed<'a>(
        &mut self,
        chunk: &'a Arc<Chunk>,
        message: &'a Message,
        topics: &Topics,
        shape: &Shape,
    ) -> Result<Option<Told<'a>>, String> {
        let step = StepId::from(message.sequence);
        let data = chunk.data(message);
        Ok(match topics.get(message.channel) {
            None | Some(Topic::Params) => None,
            Some(topic @ (Topic::Evict | Topic::Attention)) => {
                if step >= self.from {
                    self.wait(topic, chunk, message, data.len())?;
                }
                None
            }
            Some(Topic::Step) if step < self.from => {
                self.forget();
                None
            }
            Some(Topic::Step) => {
                let whole = self.complete(data, message.sequence, shape);
                self.forget();
                Some(Told::Step(Box::new(whole.map_err(|why| format!("step {step}: {why}"))?)))
            }
            Some(Topic::Keyframe) => Some(Told::Keyframe(step, data)),
            Some(Topic::Latency) => Some(Told::Latency(step, data)),
            Some(Topic::Gap) => Some(Told::Gap(gap(data)?)),
        })
    }

    fn wait(
        &mut self,
        topic: Topic,
        chunk: &Arc<Chunk>,
        message: &Message,
        bytes: usize,
    ) -> Result<(), String> {
        if self.waiting.last().is_some_and(|(_, _, before)| before.sequence != message.sequence) {
            self.forget();
        }
        self.waiting_bytes += bytes;
        if self.waiting_bytes as u64 > MAX_CHUNK_BYTES {
            return Err(format!("step {} is larger than 64 MiB", message.sequence));
        }
        self.waiting.push((topic, Arc::clone(chunk), message.clone()));
        Ok(())
    }

    fn forget(&mut self) {
        self.waiting.clear();
        self.waiting_bytes = 0;
    }

    fn complete(&self, json: &[u8], sequence: u32, shape: &Shape) -> Result<Step, String> {
        let mut step: Step = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if step.step != StepId::from(sequence) {
            return Err(format!("it calls itself {}", step.step));
        }
        let mut budget = Budget::of_a_step();
        let homes: HashMap<SeqId, usize> = step.seqs.iter().enumerate().map(|(i, s)| (s.seq, i)).collect();
        for (topic, chunk, message) in &self.waiting {
            if message.sequence != sequence {
                continue;
            }
            let data = chunk.data(message);
            let wrong = |error| format!("{}: {error}", topic.name());
            let home = |seq| match homes.get(&seq) {
                Some(&home) => Ok(home),
                None => Err(format!("{}: sequence {seq} was not in the step", topic.name())),
            };
            if *topic == Topic::Evict {
                let told = evict::decode_within(data, &mut budget).map_err(wrong)?;
                let part = &mut step.seqs[home(told.seq)?];
                part.evictions.extend(told.evictions);
                match &mut part.shadow {
                    Some(shadow) => shadow.victims.extend(told.regrets),
                    None if told.regrets.is_empty() => {}
                    None => return Err("/evict: there are regrets, and no twin that tells them".into()),
                }
            } else {
                let (seq, map) = attention::decode_within(data, &mut budget).map_err(wrong)?;
                step.seqs[home(seq)?].attention = Some(map);
            }
        }
        shape.check(&step)?;
        Ok(step)
    }
}

pub(super) fn gap(json: &[u8]) -> Result<Gap, String> {
    let gap: Gap = serde_json::from_slice(json).map_err(|error| format!("/gap: {error}"))?;
    if gap.is_sound() { Ok(gap) } else { Err(format!("/gap: it ends at step {}", gap.to_step)) }
}
