//! Whole files under attack: cuts, flips, spoilt messages, full disks.

use std::io::{self, Seek, SeekFrom, Write};

use proptest::prelude::*;

use super::layout::Ending;
use super::repair::save;
use super::samples::{
    Memory, all, attention_map, bits, copied, evictions, expected, map_bits, open, recorded, run, step,
};
use super::verify::inspect;
use super::*;
use crate::event::{Step, StepId};

/// Cuts of a file: both ends byte by byte, the middle sampled.
fn cuts(len: usize) -> impl Iterator<Item = usize> {
    let middle = (2048..len.saturating_sub(2048)).step_by((len / 400).max(1));
    (0..len.min(2048)).chain(middle).chain(len.saturating_sub(2048)..len)
}

#[test]
fn a_file_cut_anywhere_opens_to_whole_steps_and_can_be_repaired() {
    let whole = recorded(120);
    let mut recovered = Vec::new();
    for (i, cut) in cuts(whole.len()).enumerate() {
        let recording = match open(whole[..cut].to_vec()) {
            Ok(recording) => recording,
            Err(TraceError::Foreign { why, .. }) => {
                assert!(cut < 2000, "cut at {cut}: {why}");
                continue;
            }
            Err(error) => panic!("cut at {cut}: {error}"),
        };
        assert!(!recording.complete(), "cut at {cut}");
        recovered.push(recording.steps());
        if i % 16 != 0 {
            continue;
        }
        let steps = all(&recording).unwrap();
        assert_eq!(steps, expected(steps.len()), "cut at {cut}");
        assert_eq!(steps.len(), recording.steps());
        let memory = Memory::default();
        let report = save(&recording, memory.writer()).unwrap();
        let repaired = open(memory.bytes()).unwrap();
        assert!(repaired.complete());
        assert_eq!((report.steps, repaired.steps()), (steps.len(), steps.len()));
        assert_eq!(all(&repaired).unwrap(), steps);
        assert!(inspect(&repaired).unwrap().is_sound());
    }
    assert!(recovered.is_sorted(), "a longer prefix never holds fewer steps");
    assert_eq!(*recovered.last().unwrap(), 120);
    assert!(recovered.iter().any(|&n| n > 0 && n < 120));
}

#[test]
fn whole_steps_of_a_chunk_that_was_cut_are_recovered() {
    // Compressed data comes in blocks of up to 128 KiB: a chunk must hold more than one to be worth a part.
    let memory = Memory::default();
    let mut writer = memory.writer();
    while writer.bytes_since_keyframe() < 200 << 10 {
        writer.step(&step(writer.steps())).unwrap();
    }
    drop(writer);
    let whole = memory.bytes();
    let recording = open(whole.clone()).unwrap();
    let at = recording.chunk_offset(1) as usize;
    let before = open(whole[..at].to_vec()).unwrap();
    assert_eq!((before.steps(), before.ending()), (0, &Ending::Cut { at: at as u64 }));
    let ends: Vec<_> = (at..whole.len())
        .step_by(97)
        .map(|cut| open(whole[..cut].to_vec()).unwrap())
        .filter(|r| matches!(r.ending(), Ending::OpenChunk { .. }))
        .collect();
    assert!(ends.iter().any(|r| r.steps() > 50));
    for end in ends {
        assert_eq!(all(&end).unwrap(), expected(end.steps()));
    }
}

/// Opens, reads and checks everything a file offers; only a panic is wrong.
fn exercise(bytes: Vec<u8>) {
    if let Ok(recording) = open(bytes) {
        let _ = all(&recording);
        let _ = recording.keyframe_at_or_before(StepId::MAX);
        let _ = recording.latency_at_or_before(StepId::MAX);
        let _ = inspect(&recording);
        let _ = save(&recording, Memory::default().writer());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn flipped_bits_are_noticed_and_never_panic(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        thread_local!(static WHOLE: Vec<u8> = recorded(40));
        let mut bytes = WHOLE.with(Clone::clone);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        exercise(bytes.clone());
        if let Ok(recording) = open(bytes) {
            // A file that can no longer be read to its end is noticed too.
            let noticed = inspect(&recording).map_or(true, |report| !report.is_sound());
            prop_assert!(noticed, "bit {bit} of byte {at} went unnoticed");
        }
    }

    /// Checksums hold here, so that what is behind them is reached.
    #[test]
    fn spoilt_messages_are_noticed_and_never_panic(
        message in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        thread_local!(static WHOLE: Vec<u8> = recorded(40));
        let whole = WHOLE.with(Clone::clone);
        let messages = mcap::MessageStream::new(&whole).unwrap().count();
        let spoilt = message.index(messages);
        let mut changed = false;
        let bytes = copied(&whole, mcap::WriteOptions::new(), |i, message| {
            if i == spoilt && !message.data.is_empty() {
                let data = message.data.to_mut();
                let before = data.clone();
                for (at, byte) in &edits {
                    let at = at.index(data.len());
                    data[at] = *byte;
                }
                if let Some(cut) = cut {
                    data.truncate(cut.index(data.len()));
                }
                // A JSON number or a score may change into another; what is opaque here always does.
                changed = *data != before && message.channel.topic == "/step" && cut.is_some();
            }
        });
        exercise(bytes.clone());
        if changed {
            prop_assert!(!inspect(&open(bytes).unwrap()).unwrap().is_sound());
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        exercise(bytes.clone());
        exercise([mcap::MAGIC, &bytes].concat());
        exercise([mcap::MAGIC, &[6, 100, 0, 0, 0, 0, 0, 0, 0], &bytes].concat());
    }

    #[test]
    fn overwritten_lengths_never_panic(at in any::<prop::sample::Index>(), value: u64) {
        thread_local!(static WHOLE: Vec<u8> = recorded(40));
        let mut bytes = WHOLE.with(Clone::clone);
        let at = at.index(bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        exercise(bytes);
    }

    #[test]
    fn any_steps_come_back(
        parts in prop::collection::vec((1..5u64, evictions(2, 1), prop::option::of(attention_map(2, 1, 2))), 1..12)
    ) {
        let memory = Memory::default();
        let mut writer = memory.writer();
        let mut id = 0;
        let steps: Vec<Step> = parts.into_iter().map(|(gap, evictions, attention)| {
            id += gap;
            let mut step = step(id);
            step.seqs[0].evictions = evictions;
            step.seqs[0].attention = attention;
            step
        }).collect();
        for step in &steps {
            writer.step(step).unwrap();
        }
        writer.finish().unwrap();
        let back = all(&open(memory.bytes()).unwrap()).unwrap();
        prop_assert_eq!(back.len(), steps.len());
        for (mut back, mut step) in back.into_iter().zip(steps) {
            let of = |s: &mut Step| {
                let seq = &mut s.seqs[0];
                let evictions: Vec<_> = std::mem::take(&mut seq.evictions).iter().map(bits).collect();
                (evictions, seq.attention.take().as_ref().map(map_bits))
            };
            prop_assert_eq!(of(&mut back), of(&mut step));
            prop_assert_eq!(back, step);
        }
    }
}

#[test]
fn a_model_beyond_reason_is_not_opened() {
    let bytes = recorded(1);
    let at = bytes.windows(10).position(|w| w == b"\"layers\": ").unwrap();
    let mut bad = bytes.clone();
    bad.splice(at + 10..=at + 10, *b"9");
    // The attachment's checksum already tells.
    assert!(matches!(open(bad), Err(TraceError::Damaged { .. })));
    let mut run = run();
    run.model.layers = u32::MAX;
    assert!(matches!(Writer::new("m", Memory::default(), &run), Err(TraceError::Unsound { .. })));
}

#[test]
fn a_damaged_chunk_is_an_error_when_read_and_left_out_by_repair() {
    let mut bytes = recorded(100);
    let recording = open(bytes.clone()).unwrap();
    let chunk = recording.chunk(3).unwrap();
    let lost: Vec<StepId> = (0..100).filter(|&id| recording.index().steps[id as usize].chunk == 3).collect();
    let at = recording.chunk_offset(3) as usize;
    assert!(!chunk.messages.is_empty() && !lost.is_empty());
    bytes[at + 100] ^= 4;
    let damaged = open(bytes).unwrap();
    assert_eq!(damaged.steps(), 100);
    assert_eq!(damaged.read(0..lost[0]).map(Result::unwrap).count() as u64, lost[0]);
    let mut across = damaged.read(lost[0]..100);
    assert!(matches!(across.next(), Some(Err(TraceError::Damaged { .. }))));
    assert!(across.next().is_none());
    assert!(!inspect(&damaged).unwrap().is_sound());

    let memory = Memory::default();
    let report = save(&damaged, memory.writer()).unwrap();
    let repaired = open(memory.bytes()).unwrap();
    let gap = &repaired.gaps()[0];
    assert_eq!(report.gaps, repaired.gaps());
    assert_eq!(gap.from_step, lost[0]);
    assert!(
        repaired.keyframe_at_or_before(gap.to_step - 1).unwrap().is_some_and(|(k, _)| k + 1 == gap.to_step)
    );
    let kept: Vec<Step> = (0..gap.from_step).chain(gap.to_step..100).map(step).collect();
    assert_eq!(all(&repaired).unwrap(), kept);
    assert!(inspect(&repaired).unwrap().is_sound());
}

proptest! {
    #[test]
    fn steps_that_are_missing_unsaid_become_a_gap(
        missing in prop::collection::btree_set(0..40u64, 0..12),
        keyframes in prop::collection::btree_set(0..40u64, 0..10),
        said in prop::option::of((0..40u64, 1..9u64)),
    ) {
        let memory = Memory::default();
        let mut writer = memory.writer();
        for id in 0..40 {
            if !missing.contains(&id) {
                writer.step(&step(id)).unwrap();
            }
            if let Some((from_step, more)) = said.filter(|&(from, _)| from == id) {
                let gap = Gap { from_step, to_step: from_step + more, reason: "paused".into() };
                writer.gap(&gap, id).unwrap();
            }
            if keyframes.contains(&id) {
                writer.keyframe(id, id, b"state").unwrap();
            }
        }
        writer.finish().unwrap();
        let holed = open(memory.bytes()).unwrap();
        let memory = Memory::default();
        let report = save(&holed, memory.writer()).unwrap();
        let repaired = open(memory.bytes()).unwrap();
        let checked = inspect(&repaired).unwrap();
        prop_assert!(checked.is_sound(), "{:?}", checked.problems);
        prop_assert_eq!(&report.gaps, repaired.gaps());
        let saved: Vec<StepId> = repaired.step_ids().collect();
        prop_assert_eq!(all(&repaired).unwrap(), saved.iter().copied().map(step).collect::<Vec<_>>());
        // Whole up to the first hole, and again from each keyframe on.
        let whole_from = |from: StepId| (from..40).take_while(|id| !missing.contains(id));
        if said.is_none() {
            let starts = std::iter::once(0).chain(keyframes.iter().map(|keyframe| keyframe + 1));
            for id in starts.flat_map(whole_from) {
                prop_assert!(saved.contains(&id), "step {} of {:?}", id, saved);
            }
        }
    }
}

/// A disk with so many bytes left.
struct SmallDisk {
    memory: Memory,
    left: usize,
}

impl Write for SmallDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.left);
        if n == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.left -= n;
        self.memory.write(&bytes[..n])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for SmallDisk {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.memory.seek(to)
    }
}

#[test]
fn a_full_disk_is_one_clear_error_and_leaves_whole_steps() {
    let size = recorded(60).len();
    for left in (0..size).step_by(97) {
        let memory = Memory::default();
        let disk = SmallDisk { memory: memory.clone(), left };
        let mut failed = None;
        match Writer::new("memory", disk, &run()) {
            Ok(mut writer) => {
                for id in 0..60 {
                    let result = writer.step(&step(id)).and_then(|()| writer.flush());
                    match (&failed, result) {
                        (None, Err(error)) => failed = Some(error),
                        (None, Ok(())) => {}
                        (Some(_), result) => assert!(matches!(result, Err(TraceError::Stopped { .. }))),
                    }
                }
                if let Err(error) = writer.finish() {
                    failed.get_or_insert(error);
                }
            }
            Err(error) => failed = Some(error),
        }
        let error = failed.expect("the disk is too small").to_string();
        assert!(
            error.starts_with("memory: recording stopped, cannot write: ") && !error.contains('\n'),
            "{error}"
        );
        if let Ok(recording) = open(memory.bytes()) {
            assert!(!recording.complete());
            let steps = all(&recording).unwrap();
            assert_eq!(steps, expected(steps.len()));
        }
    }
}

#[test]
fn a_file_that_inflates_without_end_is_refused() {
    let zeros = vec![0; 60 << 20];
    let mut spent = 0;
    // Messages become a few kilobytes that inflate to 60 MiB each.
    let bytes = copied(&recorded(5), mcap::WriteOptions::new(), |_, message| {
        message.data = zeros.clone().into();
        spent += 1;
    });
    assert!(spent > 5 && bytes.len() < 1 << 20, "{spent} {}", bytes.len());
    let error = open(bytes).err().unwrap().to_string();
    assert!(error.contains("inflates to far more"), "{error}");
}

/// One damaged number must not make the whole file look made to waste time: the rest of it is still readable.
#[test]
fn a_chunk_that_claims_terabytes_is_a_damaged_chunk() {
    let mut bytes = recorded(40);
    let last = chunk_offsets(&bytes).last().unwrap();
    // After opcode, length and two times: the uncompressed size.
    bytes[last + 9 + 16 + 5] ^= 1;
    let report = inspect(&open(bytes).unwrap()).unwrap();
    assert!(!report.is_sound());
    assert!(report.steps >= 20, "{report:?}");
}

fn chunk_offsets(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let mut at = mcap::MAGIC.len();
    std::iter::from_fn(move || {
        let start = at;
        let length = u64::from_le_bytes(bytes.get(at + 1..at + 9)?.try_into().ok()?);
        at += 9 + length as usize;
        Some((start, bytes[start]))
    })
    .filter(|&(_, opcode)| opcode == mcap::records::op::CHUNK)
    .map(|(start, _)| start)
}
