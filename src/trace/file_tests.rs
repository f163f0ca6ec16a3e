//! Whole files: what was written is read, and what is no recording is refused.

use std::io::Cursor;

use super::samples::{Memory, all, copied, expected, histograms, keyframe, open, recorded, run, step};
use super::verify::inspect;
use super::*;
use crate::event::{Step, StepId};

#[test]
fn what_was_written_is_read() {
    let recording = open(recorded(50)).unwrap();
    assert!(recording.complete());
    assert_eq!(recording.run(), &run());
    assert_eq!(recording.step_ids().collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
    assert_eq!(recording.bounds(), Some((0, 49)));
    assert_eq!(all(&recording).unwrap(), expected(50));
    assert_eq!(recording.keyframes().collect::<Vec<_>>(), [19, 39]);
    let report = inspect(&recording).unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
    assert_eq!((report.steps, report.keyframes, report.histograms, report.pictures), (50, 2, 2, 37));
}

#[test]
fn any_part_can_be_read_and_seeks_find_what_is_before() {
    let recording = open(recorded(50)).unwrap();
    for (from, to) in [(0, 1), (7, 9), (30, 50), (49, 99), (50, 60), (9, 9)] {
        let steps: Vec<Step> = recording.read(from..to).map(Result::unwrap).collect();
        assert_eq!(steps, (from..to.min(50)).map(step).collect::<Vec<_>>());
    }
    assert_eq!(recording.keyframe_at_or_before(18).unwrap(), None);
    assert_eq!(recording.keyframe_at_or_before(19).unwrap(), Some((19, keyframe(19))));
    assert_eq!(recording.keyframe_at_or_before(38).unwrap(), Some((19, keyframe(19))));
    assert_eq!(recording.keyframe_at_or_before(StepId::MAX).unwrap(), Some((39, keyframe(39))));
    assert_eq!(recording.latency_at_or_before(40).unwrap(), Some((39, histograms(39))));
    assert_eq!(recording.end_ns(7), Some(step(7).end_ns()));
    assert_eq!(recording.step_at_ns(step(7).end_ns()), Some(7));
    assert_eq!(recording.step_at_ns(step(7).end_ns() - 1), Some(6));
    assert_eq!(recording.step_at_ns(0), None);
}

#[test]
fn the_attached_index_equals_the_rebuilt_one() {
    let mut bytes = recorded(60);
    let attached = open(bytes.clone()).unwrap();
    // Spoils the name of the attachment in the data section; the summary still points there.
    let at = bytes.windows(12).position(|w| w == INDEX_ATTACHMENT.as_bytes()).unwrap();
    bytes[at] = b'K';
    let rebuilt = open(bytes).unwrap();
    assert!(rebuilt.attachments().iter().all(|(name, _)| name != INDEX_ATTACHMENT));
    assert_eq!(rebuilt.index(), attached.index());
    assert_eq!(all(&rebuilt).unwrap(), expected(60));
}

fn refusal(bytes: &[u8]) -> String {
    open(bytes.to_vec()).err().unwrap().to_string()
}

#[test]
fn what_is_no_recording_is_named_in_one_line() {
    assert_eq!(
        refusal(b""),
        "memory: not a kvista recording (the file is empty): give a file made by 'kvista run --record FILE'"
    );
    assert!(refusal(b"Hello, this is a text file.\n").contains("does not begin as an MCAP file"));
    assert!(refusal(&mcap::MAGIC[..5]).contains("cut within its first bytes"));
    let mut foreign = mcap::Writer::new(Cursor::new(Vec::new())).unwrap();
    let channel = foreign.add_channel(0, "/step", "json", &std::collections::BTreeMap::new()).unwrap();
    let header =
        mcap::records::MessageHeader { channel_id: channel, sequence: 0, log_time: 0, publish_time: 0 };
    foreign.write_to_known_channel(&header, b"{}").unwrap();
    foreign.finish().unwrap();
    assert!(refusal(&foreign.into_inner().into_inner()).contains("of another program"));
}

#[test]
fn a_later_format_is_refused_by_number() {
    let mut bytes = recorded(1);
    let at = bytes.windows(6).position(|w| w == b"format").unwrap();
    assert_eq!(bytes[at + 10], b'1');
    bytes[at + 10] = b'9';
    assert!(matches!(open(bytes), Err(TraceError::Newer { found: 9, .. })));
}

#[test]
fn missing_files_and_folders_are_named() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(
        Recording::open(folder.path()),
        Err(TraceError::Foreign { .. } | TraceError::Io { .. })
    ));
    let missing = Recording::open(&folder.path().join("none.mcap")).err().unwrap().to_string();
    assert!(missing.contains("none.mcap: cannot open"), "{missing}");
}

#[test]
fn gaps_are_listed_and_missing_ones_are_problems() {
    let stated = |gap: bool, resume: bool| {
        let memory = Memory::default();
        let mut writer = memory.writer();
        writer.step(&step(0)).unwrap();
        if gap {
            let gap = Gap { from_step: 1, to_step: 5, reason: "the queue was full".into() };
            writer.gap(&gap, 9).unwrap();
        }
        if resume {
            writer.keyframe(4, 9, &keyframe(4)).unwrap();
        }
        writer.step(&step(5)).unwrap();
        writer.finish().unwrap();
        let recording = open(memory.bytes()).unwrap();
        (recording.gaps().len(), inspect(&recording).unwrap().problems)
    };
    assert_eq!(stated(true, true), (1, vec![]));
    assert!(stated(true, false).1[0].contains("no keyframe after the gap"));
    assert!(stated(false, true).1[0].contains("no gap says so"));
}

#[test]
fn the_writer_refuses_what_no_reader_would_accept_and_goes_on() {
    let memory = Memory::default();
    let mut writer = memory.writer();
    writer.step(&step(3)).unwrap();
    let mut wrong = step(4);
    wrong.seqs[0].resident.push(1);
    for bad in [&step(3), &step(2), &wrong] {
        assert!(matches!(writer.step(bad), Err(TraceError::Unsound { .. })));
    }
    assert!(writer.gap(&Gap { from_step: 4, to_step: 4, reason: String::new() }, 0).is_err());
    writer.keyframe(3, 0, &[]).unwrap();
    assert!(writer.keyframe(2, 0, &[]).is_err());
    writer.step(&step(4)).unwrap();
    writer.finish().unwrap();
    assert_eq!(all(&open(memory.bytes()).unwrap()).unwrap(), [step(3), step(4)]);
}

#[test]
fn a_dropped_writer_leaves_its_steps_without_a_footer() {
    let memory = Memory::default();
    let mut writer = memory.writer();
    writer.step(&step(0)).unwrap();
    drop(writer);
    let recording = open(memory.bytes()).unwrap();
    assert!(!recording.complete());
    assert_eq!(all(&recording).unwrap(), [step(0)]);
}

#[test]
fn chunks_close_between_steps_at_their_size() {
    let memory = Memory::default();
    let mut writer = memory.writer();
    while writer.bytes_since_keyframe() < 3 * (256 << 10) {
        writer.step(&step(writer.steps())).unwrap();
    }
    writer.finish().unwrap();
    let recording = open(memory.bytes()).unwrap();
    // The first is the chunk of the channels.
    assert_eq!(recording.chunks(), 5);
    for i in 1..4 {
        let chunk = recording.chunk(i).unwrap();
        let topic = |m: &chunk::Message| recording.topics().get(m.channel);
        assert_eq!(topic(chunk.messages.last().unwrap()), Some(Topic::Step));
        let bytes: usize = chunk.messages.iter().map(|m| 31 + chunk.data(m).len()).sum();
        assert!((256 << 10..260 << 10).contains(&bytes), "{bytes}");
    }
}

#[test]
fn any_mcap_reader_reads_it() {
    let bytes = recorded(20);
    let summary = mcap::Summary::read(&bytes).unwrap().unwrap();
    assert_eq!(summary.attachment_indexes.len(), 3);
    let mut steps = 0;
    for message in mcap::MessageStream::new(&bytes).unwrap() {
        let message = message.unwrap();
        assert!(message.log_time >= run().started_unix_ms * 1_000_000);
        if message.channel.topic == "/step" {
            assert_eq!(message.channel.schema.as_ref().unwrap().encoding, "jsonschema");
            assert_eq!(serde_json::from_slice::<Step>(&message.data).unwrap().step, steps);
            steps += 1;
        }
    }
    assert_eq!(steps, 20);
}

#[test]
fn a_file_that_another_tool_rewrote_reads_the_same() {
    // Steps cross the borders of such chunks.
    let options = mcap::WriteOptions::new().compression(None).chunk_size(Some(700));
    let recording = open(copied(&recorded(50), options, |_, _| {})).unwrap();
    assert!(recording.chunks() > 50);
    assert_eq!(all(&recording).unwrap(), expected(50));
    for from in 0..50 {
        assert_eq!(recording.read(from..from + 1).next().unwrap().unwrap(), step(from));
    }
    assert_eq!(recording.keyframe_at_or_before(30).unwrap(), Some((19, keyframe(19))));
    assert!(inspect(&recording).unwrap().is_sound());
}

#[test]
fn a_recording_can_be_shared_between_threads() {
    const fn shared<T: Send + Sync>() {}
    shared::<Recording>();
    const fn sent<T: Send>() {}
    sent::<Writer<std::io::BufWriter<std::fs::File>>>();
}

#[test]
fn a_file_on_disk_is_written_verified_and_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.mcap");
    let mut writer = Writer::create(&path, &run()).unwrap();
    for id in 0..20 {
        writer.step(&step(id)).unwrap();
    }
    writer.flush().unwrap();
    // What a reader beside the writer sees.
    assert_eq!(Recording::open(&path).unwrap().steps(), 20);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), writer.bytes_written());
    writer.finish().unwrap();
    assert!(verify(&path).unwrap().is_sound());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
    let broken = verify(&path).unwrap();
    assert!(!broken.is_sound() && serde_json::to_string(&broken).unwrap().contains("\"problems\""));
    let out = folder.path().join("repaired.mcap");
    assert_eq!(repair(&path, &out).unwrap().steps, 20);
    assert!(verify(&out).unwrap().is_sound());
    assert!(repair(&path, &path).is_err());
    assert_eq!(Recording::open(&path).unwrap().steps(), 20);
}

#[test]
fn a_picture_that_is_too_large_is_left_out_and_counted() {
    use crate::event::Cells;
    let memory = Memory::default();
    let mut writer = memory.writer();
    let mut large = step(1);
    let group = &mut large.seqs[0].attention.as_mut().unwrap().groups[0];
    group.positions = vec![(0, limits::MAX_POSITION)];
    group.rows[0].cells = Cells::Full(vec![0; group.len()]);
    group.rows = vec![group.rows[0].clone(); 4];
    writer.step(&large).unwrap();
    assert_eq!(writer.finish().unwrap().dropped_pictures, 1);
    large.seqs[0].attention = None;
    assert_eq!(all(&open(memory.bytes()).unwrap()).unwrap(), [large]);
}
