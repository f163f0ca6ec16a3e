//! The index of a recording: where each step, keyframe and histogram is, and which steps are missing.
//!
//! It is kept while writing and attached as `kvista.index` at the end, so that a large file opens without being
//! inflated. A reader trusts it only if it names the same chunks as the file's own summary.
//!
//! ```text
//! u8 version = 1 · varint chunks, each: varint distance of its offset from the one before
//! varint steps, each: varint id − smallest possible · varint end_ns change (zigzag) · varint chunk change
//! twice (keyframes, histograms): varint n, each: varint step change · varint chunk change
//! varint gaps, each: varint from · varint to · varint length, reason
//! ```

use serde::{Deserialize, Serialize};

use super::limits::MAX_STEP;
use super::wire::{CodecError, Wire, put_bytes, put_varint};
use crate::event::StepId;

const VERSION: u8 = 1;

/// Steps that a recording lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// First missing step.
    pub from_step: StepId,
    /// The step after the last missing one. A keyframe stamped `to_step - 1` stands there, so that folding can resume.
    pub to_step: StepId,
    /// Why they are missing, for a person.
    pub reason: String,
}

impl Gap {
    /// Whether it spans steps that can be.
    pub(super) const fn is_sound(&self) -> bool {
        self.from_step < self.to_step && self.to_step <= MAX_STEP
    }
}

/// A step of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepEntry {
    pub(super) step: StepId,
    pub(super) end_ns: u64,
    /// Chunk of the step's first message.
    pub(super) chunk: u32,
}

/// A keyframe or a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) step: StepId,
    pub(super) chunk: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// Ascending by id.
    pub(super) steps: Vec<StepEntry>,
    /// Ascending, not strictly.
    pub(super) keyframes: Vec<Mark>,
    /// Ascending, not strictly.
    pub(super) latency: Vec<Mark>,
    /// Ascending, apart.
    pub(super) gaps: Vec<Gap>,
}

impl Index {
    /// Position of the first step not before `step`.
    pub(super) fn lower_bound(&self, step: StepId) -> usize {
        self.steps.partition_point(|entry| entry.step < step)
    }

    pub(super) fn encode(&self, chunk_offsets: impl ExactSizeIterator<Item = u64>) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_varint(&mut out, chunk_offsets.len() as u64);
        let mut before = 0;
        for offset in chunk_offsets {
            put_varint(&mut out, offset.wrapping_sub(before));
            before = offset;
        }
        put_varint(&mut out, self.steps.len() as u64);
        let mut before = StepEntry { step: 0, end_ns: 0, chunk: 0 };
        let mut smallest = 0;
        for entry in &self.steps {
            put_varint(&mut out, entry.step - smallest);
            put_varint(&mut out, zigzag(entry.end_ns.wrapping_sub(before.end_ns) as i64));
            put_varint(&mut out, u64::from(entry.chunk - before.chunk));
            (before, smallest) = (*entry, entry.step + 1);
        }
        for marks in [&self.keyframes, &self.latency] {
            put_varint(&mut out, marks.len() as u64);
            let mut before = Mark { step: 0, chunk: 0 };
            for mark in marks {
                put_varint(&mut out, mark.step - before.step);
                put_varint(&mut out, u64::from(mark.chunk - before.chunk));
                before = *mark;
            }
        }
        put_varint(&mut out, self.gaps.len() as u64);
        for gap in &self.gaps {
            put_varint(&mut out, gap.from_step);
            put_varint(&mut out, gap.to_step);
            put_bytes(&mut out, gap.reason.as_bytes());
        }
        out
    }

    /// Decodes an index if it is of exactly these chunks.
    pub(super) fn decode(
        bytes: &[u8],
        chunk_offsets: impl ExactSizeIterator<Item = u64>,
    ) -> Result<Self, CodecError> {
        let mut wire = Wire::new(bytes);
        match wire.byte()? {
            VERSION => {}
            other => return Err(CodecError::Version(other)),
        }
        let chunks = wire.count(1)?;
        if chunks != chunk_offsets.len() {
            return Err(CodecError::Malformed("it is of another file"));
        }
        let mut before = 0u64;
        for offset in chunk_offsets {
            before = before.wrapping_add(wire.varint()?);
            if before != offset {
                return Err(CodecError::Malformed("it is of another file"));
            }
        }
        let chunks = chunks as u64;
        let index = Self {
            steps: steps(&mut wire, chunks)?,
            keyframes: marks(&mut wire, chunks)?,
            latency: marks(&mut wire, chunks)?,
            gaps: gaps(&mut wire)?,
        };
        wire.end()?;
        Ok(index)
    }
}

fn steps(wire: &mut Wire<'_>, chunks: u64) -> Result<Vec<StepEntry>, CodecError> {
    let count = wire.count(3)?;
    let mut steps = Vec::with_capacity(count);
    let (mut smallest, mut end_ns, mut chunk) = (0, 0u64, 0);
    for _ in 0..count {
        let step = rising(wire, smallest, MAX_STEP)?;
        end_ns = end_ns.wrapping_add(unzigzag(wire.varint()?) as u64);
        chunk = rising(wire, chunk, chunks)?;
        steps.push(StepEntry { step, end_ns, chunk: chunk as u32 });
        smallest = step + 1;
    }
    Ok(steps)
}

fn marks(wire: &mut Wire<'_>, chunks: u64) -> Result<Vec<Mark>, CodecError> {
    let count = wire.count(2)?;
    let mut marks = Vec::with_capacity(count);
    let (mut step, mut chunk) = (0, 0);
    for _ in 0..count {
        step = rising(wire, step, MAX_STEP)?;
        chunk = rising(wire, chunk, chunks)?;
        marks.push(Mark { step, chunk: chunk as u32 });
    }
    Ok(marks)
}

fn gaps(wire: &mut Wire<'_>) -> Result<Vec<Gap>, CodecError> {
    let count = wire.count(3)?;
    let mut gaps: Vec<Gap> = Vec::with_capacity(count);
    for _ in 0..count {
        let (from_step, to_step) = (wire.varint()?, wire.varint()?);
        let gap = Gap { from_step, to_step, reason: wire.text()?.to_owned() };
        if !gap.is_sound() || gaps.last().is_some_and(|last| last.to_step > from_step) {
            return Err(CodecError::Malformed("gaps are not ascending"));
        }
        gaps.push(gap);
    }
    Ok(gaps)
}

/// A value at some distance above `from`, below `end`.
fn rising(wire: &mut Wire<'_>, from: u64, end: u64) -> Result<u64, CodecError> {
    from.checked_add(wire.varint()?)
        .filter(|&value| value < end)
        .ok_or(CodecError::Malformed("a number is too large"))
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_index() -> impl Strategy<Value = (Vec<u64>, Index)> {
        let steps = prop::collection::vec((0..1000u64, any::<u64>(), 0..4u32), 0..40);
        let marks = || prop::collection::vec((0..1000u64, 0..4u32), 0..8);
        let gaps = prop::collection::vec((0..9u64, 1..9u64, ".{0,9}"), 0..4);
        (steps, marks(), marks(), gaps).prop_map(|(mut steps, keyframes, latency, gaps)| {
            let mark = |mut marks: Vec<(u64, u32)>| {
                marks.sort_unstable();
                let mut chunks: Vec<u32> = marks.iter().map(|m| m.1).collect();
                chunks.sort_unstable();
                marks.iter().zip(chunks).map(|(&(step, _), chunk)| Mark { step, chunk }).collect()
            };
            steps.sort_unstable();
            steps.dedup_by_key(|s| s.0);
            let mut chunks: Vec<u32> = steps.iter().map(|s| s.2).collect();
            chunks.sort_unstable();
            let mut end = 0;
            let mut gap = |(distance, length, reason)| {
                let from_step = end + distance;
                end = from_step + length;
                Gap { from_step, to_step: end, reason }
            };
            let index = Index {
                steps: steps
                    .iter()
                    .zip(chunks)
                    .map(|(&(step, end_ns, _), chunk)| StepEntry { step, end_ns, chunk })
                    .collect(),
                keyframes: mark(keyframes),
                latency: mark(latency),
                gaps: gaps.into_iter().map(&mut gap).collect(),
            };
            (vec![70, 300, 5_000, 1 << 40], index)
        })
    }

    proptest! {
        #[test]
        fn any_index_comes_back((offsets, index) in any_index()) {
            let bytes = index.encode(offsets.iter().copied());
            prop_assert_eq!(Index::decode(&bytes, offsets.iter().copied()).unwrap(), index);
            prop_assert!(Index::decode(&bytes, offsets[1..].iter().copied()).is_err());
            let moved: Vec<u64> = offsets.iter().map(|o| o + 1).collect();
            prop_assert!(Index::decode(&bytes, moved.into_iter()).is_err());
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Index::decode(&bytes, [].into_iter());
            let _ = Index::decode(&[&[VERSION, 0], &bytes[..]].concat(), [].into_iter());
        }
    }
}
