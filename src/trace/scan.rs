//! Rebuilding the index of a recording from its messages.

use super::Topic;
use super::assemble;
use super::chunk::Chunk;
use super::index::{Gap, Index, Mark, StepEntry};
use super::layout::Topics;
use super::recording::base_ns;
use crate::event::{RunInfo, StepId};

/// Out-of-order messages that are named; the others are passed over as well.
const MAX_DISORDER: usize = 100;

/// Collects an index from chunks in file order.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) index: Index,
    base_ns: u64,
    /// Step and chunk of the first message that waits for its step.
    waiting: Option<(u32, u32)>,
    /// Messages that an index cannot hold, because they come out of order.
    pub(super) disorder: Vec<String>,
}

impl Scan {
    pub(super) fn of(run: &RunInfo) -> Self {
        Self { base_ns: base_ns(run), ..Self::default() }
    }

    pub(super) fn chunk(&mut self, i: usize, chunk: &Chunk, topics: &mut Topics) {
        for channel in &chunk.channels {
            topics.learn(channel);
        }
        let i = i as u32;
        for message in &chunk.messages {
            let step = StepId::from(message.sequence);
            let mark = Mark { step, chunk: i };
            match topics.get(message.channel) {
                Some(Topic::Step) => {
                    let first = self.waiting.take().filter(|&(of, _)| of == message.sequence);
                    let entry = StepEntry {
                        step,
                        end_ns: message.log_time.saturating_sub(self.base_ns),
                        chunk: first.map_or(i, |(_, chunk)| chunk),
                    };
                    let last = self.index.steps.last().map(|entry| entry.step);
                    if last.is_none_or(|last| last < step) {
                        self.index.steps.push(entry);
                    } else {
                        self.disordered(format!("step {step} comes after step {}", last.unwrap_or(0)));
                    }
                }
                Some(Topic::Evict | Topic::Attention) => {
                    if self.waiting.is_none_or(|(of, _)| of != message.sequence) {
                        self.waiting = Some((message.sequence, i));
                    }
                }
                Some(Topic::Keyframe) => self.mark(mark, true),
                Some(Topic::Latency) => self.mark(mark, false),
                Some(Topic::Gap) => {
                    // One that cannot be decoded is met again, and named, by whoever reads on.
                    if let Ok(gap) = assemble::gap(chunk.data(message)) {
                        self.gap(gap);
                    }
                }
                Some(Topic::Params) | None => {}
            }
        }
    }

    fn gap(&mut self, gap: Gap) {
        if self.index.gaps.last().is_none_or(|last| last.to_step <= gap.from_step) {
            self.index.gaps.push(gap);
        } else {
            self.disordered(format!("the gap from step {} comes after a later one", gap.from_step));
        }
    }

    fn mark(&mut self, mark: Mark, keyframe: bool) {
        let marks = if keyframe { &mut self.index.keyframes } else { &mut self.index.latency };
        if marks.last().is_none_or(|last| last.step <= mark.step) {
            marks.push(mark);
        } else {
            let name = if keyframe { "keyframe" } else { "histograms" };
            self.disordered(format!("{name} of step {} come after later ones", mark.step));
        }
    }

    fn disordered(&mut self, line: String) {
        if self.disorder.len() < MAX_DISORDER {
            self.disorder.push(line);
        }
    }
}
