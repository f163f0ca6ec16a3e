//! Recordings: whole files, their messages in a sound file, and the codecs of the messages.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::{Arc, LazyLock};

use kvista::app::{App, Cursor as TokenCursor, Launch, Recorded, View};
use kvista::event::{RunInfo, StepId};
use kvista::state::State;
use kvista::trace::{self, Recording};
use kvista::ui::draw;
use kvista::ui::theme::{Depth, Styles, Symbols, Theme};
use mcap::records::Record;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::{refused, seeds};

pub fn recording(bytes: &[u8]) -> bool {
    open(bytes.to_vec()).is_some_and(|recording| read(&recording))
}

/// A file of mutated bytes rarely gets past its checksums. Here the messages are mutated and the file around them is
/// sound, as a hostile one would be.
pub fn messages(bytes: &[u8]) -> bool {
    recording(&wrapped(bytes))
}

/// What can be repaired is sound afterwards.
pub fn repair(bytes: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (damaged, mended) = (folder.path().join("damaged.mcap"), folder.path().join("mended.mcap"));
    std::fs::write(&damaged, wrapped(bytes)).expect("the temporary folder can be written");
    if let Err(error) = trace::verify(&damaged) {
        refused(&error);
    }
    match trace::repair(&damaged, &mended) {
        Ok(_) => {
            let report = trace::verify(&mended).expect("a repaired file can be read");
            assert!(report.complete && report.is_sound(), "{report:?}");
            true
        }
        Err(error) => refused(&error),
    }
}

/// Whatever can be opened can be looked at.
pub fn views(bytes: &[u8]) -> bool {
    static STYLES: LazyLock<Styles> = LazyLock::new(|| {
        Theme::built_in("dark").expect("a built-in theme").styles(Depth::True, Symbols::Block)
    });
    let Some(recording) = open(wrapped(bytes)).filter(|recording| recording.steps() > 0) else {
        return false;
    };
    let steps: Vec<StepId> = recording.step_ids().collect();
    let store = Box::new(Recorded::new(recording));
    let mut app = match App::replay("hostile".into(), false, store, Launch::default()) {
        Ok(app) => app,
        Err(error) => return refused(&error),
    };
    for at in [steps[0], steps[steps.len() / 2], steps[steps.len() - 1]] {
        for view in View::ALL {
            let cursor = TokenCursor { position: Some(at as u32), layer: 1, head: 1, seq: 0 };
            app.look_at(view, Some(at), cursor);
            let area = Rect::new(0, 0, 90, 30);
            draw::render(&mut Buffer::empty(area), area, &app, &STYLES);
        }
    }
    true
}

fn open(bytes: Vec<u8>) -> Option<Recording> {
    Recording::from_bytes("memory", bytes).inspect_err(|error| _ = refused(error)).ok()
}

/// Everything that can be had from a recording, as a replay asks for it; whether all of it folds.
fn read(recording: &Recording) -> bool {
    for step in recording.step_ids().take(3).chain(recording.step_ids().rev().take(3)) {
        if let Err(error) = recording.latency_at_or_before(step) {
            refused(&error);
        }
    }
    let run = Arc::new(recording.run().clone());
    let mut state = match State::new(Arc::clone(&run)) {
        Ok(state) => state,
        Err(error) => return refused(&error),
    };
    for step in recording.read(0..StepId::MAX) {
        let step = match step {
            Ok(step) => step,
            Err(error) => return refused(&error),
        };
        if state.step.map_or(0, |newest| newest + 1) != step.step {
            let before = step.step.saturating_sub(1);
            let Some(resumed) = keyframe_at(recording, &run, before) else { return false };
            state = resumed;
        }
        if let Err(error) = state.fold(&step) {
            return refused(&error);
        }
    }
    look(&state);
    // The keyframes stand for the same states.
    for step in recording.keyframes() {
        if let Some(state) = keyframe_at(recording, &run, step) {
            look(&state);
        }
    }
    true
}

fn keyframe_at(recording: &Recording, run: &Arc<RunInfo>, step: StepId) -> Option<State> {
    let bytes = match recording.keyframe_at_or_before(step) {
        Ok(keyframe) => keyframe?.1,
        Err(error) => {
            refused(&error);
            return None;
        }
    };
    State::from_keyframe(Arc::clone(run), &bytes).inspect_err(|error| _ = refused(error)).ok()
}

/// What views ask of a state.
fn look(state: &State) {
    state.summary();
    state.mass_dropped();
    state.tuned("budget");
    state.traffic.any();
    state.evictions.forgotten();
    for seq in &state.seqs {
        for position in [0, 1, 7, u32::MAX] {
            state.token_card(seq.seq, position);
        }
        if let Some((_, map)) = &seq.attention {
            let positions: usize = map.groups.iter().map(|group| group.iter_positions().count()).sum();
            assert!(positions <= trace::limits::MAX_ELEMENTS, "{positions}");
        }
    }
}

/// Puts packed messages into a recording; a sound one with its sound messages gives the recording they came from.
fn wrapped(packed: &[u8]) -> Vec<u8> {
    let mut out = mcap::WriteOptions::new()
        .compression(None)
        .create(Cursor::new(Vec::new()))
        .expect("memory can be written");
    let mut run = None;
    for message in unpack(packed) {
        let Some(name) = TOPICS.get(usize::from(message.topic)) else {
            run = Some(message.data);
            continue;
        };
        let channel = mcap::Channel {
            id: u16::from(message.topic) + 1,
            topic: (*name).into(),
            schema: None,
            message_encoding: "any".into(),
            metadata: BTreeMap::new(),
        };
        out.write(&mcap::Message {
            channel: Arc::new(channel),
            sequence: message.sequence,
            log_time: u64::from(message.sequence),
            publish_time: 0,
            data: Cow::Borrowed(message.data),
        })
        .expect("memory can be written");
    }
    for record in mcap::read::LinearReader::new(seeds::sound()).expect("the seed is sound") {
        match record.expect("the seed is sound") {
            Record::Metadata(metadata) => out.write_metadata(&metadata).expect("memory can be written"),
            Record::Attachment { header, data, .. } if header.name == RUN => {
                let data = run.map_or(data, Cow::Borrowed);
                let (log_time, create_time) = (header.log_time, header.create_time);
                let (name, media_type) = (header.name, header.media_type);
                out.attach(&mcap::Attachment { log_time, create_time, name, media_type, data })
                    .expect("memory can be written");
            }
            _ => {}
        }
    }
    out.finish().expect("memory can be written");
    out.into_inner().into_inner()
}

const TOPICS: [&str; 7] = ["/step", "/params", "/evict", "/attention", "/latency", "/keyframe", "/gap"];
/// The attachment that describes the run; packed as a message of no topic.
const RUN: &str = "run.json";

struct Packed<'a> {
    topic: u8,
    sequence: u32,
    data: &'a [u8],
}

/// `[topic u8][sequence u32][length u32][data]…`; a cut or overlong message ends with the bytes there are.
fn unpack(mut bytes: &[u8]) -> Vec<Packed<'_>> {
    let mut messages = Vec::new();
    while let Some((&[topic, s0, s1, s2, s3, l0, l1, l2, l3], rest)) = bytes.split_first_chunk() {
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let (data, rest) = rest.split_at(length.min(rest.len()));
        messages.push(Packed { topic, sequence: u32::from_le_bytes([s0, s1, s2, s3]), data });
        bytes = rest;
    }
    messages
}

/// The messages of a recording, packed.
pub fn pack(recording: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut put = |topic: u8, sequence: u32, data: &[u8]| {
        out.push(topic);
        out.extend(sequence.to_le_bytes());
        out.extend((data.len() as u32).to_le_bytes());
        out.extend(data);
    };
    for record in mcap::read::LinearReader::new(recording).expect("a sound recording") {
        if let Record::Attachment { header, data, .. } = record.expect("a sound recording")
            && header.name == RUN
        {
            put(u8::MAX, 0, &data);
        }
    }
    for message in mcap::MessageStream::new(recording).expect("a sound recording") {
        let message = message.expect("a sound recording");
        let topic = TOPICS.iter().position(|topic| *topic == message.channel.topic);
        put(topic.expect("a channel of ours") as u8, message.sequence, &message.data);
    }
    out
}

/// The payloads of one topic.
pub fn payloads(packed: &[u8], topic: &str) -> Vec<Vec<u8>> {
    let is_topic = |m: &Packed<'_>| TOPICS.get(usize::from(m.topic)) == Some(&topic);
    unpack(packed).into_iter().filter(is_topic).map(|m| m.data.to_vec()).collect()
}

pub fn evict(bytes: &[u8]) -> bool {
    match trace::decode_evict(bytes) {
        Ok(told) => {
            let again = trace::encode_evict(told.seq, &told.evictions, &told.regrets)
                .expect("what was read can be written");
            let back = trace::decode_evict(&again).expect("what was written can be read");
            assert_eq!((told.seq, told.evictions.len()), (back.seq, back.evictions.len()));
            assert_eq!(told.regrets, back.regrets);
            true
        }
        Err(error) => refused(&error),
    }
}

pub fn attention(bytes: &[u8]) -> bool {
    match trace::decode_attention(bytes) {
        Ok((seq, map)) => {
            let again = trace::encode_attention(seq, &map).expect("what was read can be written");
            trace::decode_attention(&again).expect("what was written can be read");
            true
        }
        Err(error) => refused(&error),
    }
}

pub fn latency(bytes: &[u8]) -> bool {
    match trace::decode_latency(bytes) {
        Ok(histograms) => {
            let again = trace::decode_latency(&trace::encode_latency(&histograms));
            assert_eq!(again.expect("what was written can be read"), histograms);
            true
        }
        Err(error) => refused(&error),
    }
}

/// A state from a keyframe must bear the steps that follow it.
pub fn keyframe(bytes: &[u8]) -> bool {
    let (run, steps) = seeds::steps();
    let mut state = match State::from_keyframe(Arc::clone(run), bytes) {
        Ok(state) => state,
        Err(error) => return refused(&error),
    };
    look(&state);
    State::from_keyframe(Arc::clone(run), &state.keyframe()).expect("what was written can be read");
    let newest = state.step;
    for step in steps.iter().filter(|step| Some(step.step) > newest) {
        if let Err(error) = state.fold(step) {
            return refused(&error);
        }
        look(&state);
    }
    true
}
