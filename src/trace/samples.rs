//! Sample data of this room's tests.

use std::io::{self, Cursor, Seek, SeekFrom, Write};

use half::f16;
use proptest::prelude::*;

use crate::event::crush::{BitRow, Crush};
use crate::event::merge::tests::sample as merge;
use crate::event::step::tests::sample_step;
use crate::event::{
    AttentionGroup, AttentionMap, Cells, Eviction, HeadRow, LaneRegret, Position, Reason, RunInfo,
    ScoreLevel, Step, StepId,
};
use crate::trace::limits::MAX_POSITION;
use crate::trace::{Recording, TraceError, Writer};

/// A run of the model that [`sample_step`] belongs to.
pub(super) fn run() -> RunInfo {
    let mut run =
        RunInfo { tool: "kvista 0.1.0".into(), started_unix_ms: 1_800_000_000_123, ..RunInfo::default() };
    run.model.layers = 2;
    run.model.heads = 2;
    run.model.kv_heads = 1;
    run.model.context = 4096;
    run.prompt = "The passkey is 7.".into();
    run
}

/// A step with everything in it, a little different each time.
pub(super) fn step(id: StepId) -> Step {
    let mut step = sample_step();
    step.step = id;
    step.start_ns = id * 1_000;
    step.seqs[0].first = id as Position;
    step.seqs[0].evictions = vec![Eviction {
        layer: (id % 2) as u16,
        head: id.is_multiple_of(3).then_some(0),
        reason: Reason::LowScore,
        cutoff: Some(0.5),
        kept: 64,
        positions: (0..id as Position % 50).map(|i| i * 3).collect(),
        scores: (0..id % 50).map(|i| f16::from_f32(i as f32 / 100.0)).collect(),
    }];
    step.seqs[0].attention = (!id.is_multiple_of(4)).then(|| AttentionMap {
        level: ScoreLevel::Full,
        query: id as Position,
        groups: vec![AttentionGroup {
            layer: 1,
            kv_head: 0,
            positions: vec![(0, 4), (10, 40)],
            rows: vec![HeadRow {
                head: 1,
                dropped: 0.125,
                cells: Cells::Full((0..34).map(|i| (i * id % 251) as u8).collect()),
            }],
        }],
    });
    if let Some(shadow) = &mut step.seqs[0].shadow {
        let told = (0..id as Position % 20).map(|i| (i * 2, i as f32 / 16.0)).collect();
        shadow.victims = vec![LaneRegret { layer: 1, head: 0, told }];
    }
    if id.is_multiple_of(3) {
        step.seqs[0].shadow = None;
    }
    if !id.is_multiple_of(5) {
        step.tuning.clear();
    }
    if id.is_multiple_of(7) {
        step.seqs[0].crush = vec![crush()];
    }
    if id.is_multiple_of(6) {
        step.seqs[0].merges = vec![merge()];
    }
    step
}

/// Three units against an anchor.
pub(super) fn crush() -> Crush {
    Crush {
        layer: 1,
        units: 3,
        bits: 6,
        anchor: BitRow::new(&[true, false, true, false, true, false]),
        anchor_per_unit: false,
        first: vec![0, 16, 40],
        fates: "sxr".into(),
        signatures: vec![BitRow::default(), BitRow::new(&[true; 6]), BitRow::new(&[false; 6])],
        distances: vec![0, 3, 3],
        head: Some(0),
        by_score: BitRow::new(&[true, true, false]),
    }
}

/// Ascending positions, dense and sparse.
fn positions() -> impl Strategy<Value = Vec<Position>> {
    let sparse = prop::collection::btree_set(0..MAX_POSITION, 0..60);
    let dense = (0..1000u32, prop::collection::vec(any::<bool>(), 0..200)).prop_map(|(from, keep)| {
        keep.iter().enumerate().filter(|(_, k)| **k).map(|(i, _)| from + i as u32).collect()
    });
    prop_oneof![sparse, dense].prop_map(|set| set.into_iter().collect())
}

/// Any decisions of a model of this size; scores and cutoffs of any bits.
pub(super) fn evictions(layers: u16, heads: u16) -> impl Strategy<Value = Vec<Eviction>> {
    let head = prop::option::of(0..heads);
    let cutoff = prop::option::of(any::<u32>().prop_map(f32::from_bits));
    let decision = (0..layers, head, any::<bool>(), cutoff, any::<u32>(), positions(), 0..4u8, any::<u16>());
    let decision = decision.prop_map(|(layer, head, low, cutoff, kept, positions, scoring, seed)| {
        let score = |&p: &Position| match scoring {
            1 => f16::from_bits((p as u16).wrapping_mul(seed)),
            2 if p % 7 != 0 => f16::NAN,
            _ => f16::from_bits(p as u16 ^ 0xfe00),
        };
        let scores = if scoring == 0 { Vec::new() } else { positions.iter().map(score).collect() };
        let reason = if low { Reason::LowScore } else { Reason::OutsideWindow };
        Eviction { layer, head, reason, cutoff, kept, positions, scores }
    });
    prop::collection::vec(decision, 0..6)
}

/// Any regrets of a model of this size.
pub(super) fn regrets(layers: u16, heads: u16) -> impl Strategy<Value = Vec<LaneRegret>> {
    let lane = (0..layers, 0..heads, positions(), any::<u16>()).prop_map(|(layer, head, positions, seed)| {
        let regret = |p: Position| f32::from((p as u16).wrapping_mul(seed)) / 4096.0;
        LaneRegret { layer, head, told: positions.into_iter().map(|p| (p, regret(p))).collect() }
    });
    prop::collection::vec(lane, 0..4)
}

/// A decision as bits: NaN equals itself.
pub(super) fn bits(e: &Eviction) -> impl PartialEq + std::fmt::Debug + use<> {
    let scores: Vec<u16> = e.scores.iter().map(|s| s.to_bits()).collect();
    (e.layer, e.head, e.reason, e.cutoff.map(f32::to_bits), e.kept, e.positions.clone(), scores)
}

fn ranges() -> impl Strategy<Value = Vec<(Position, Position)>> {
    prop::collection::vec((0..40u32, 1..20u32), 0..6).prop_map(|steps| {
        let mut end = 0;
        let mut next = |(gap, len)| {
            let from = end + gap;
            end = from + len;
            (from, end)
        };
        steps.into_iter().map(&mut next).collect()
    })
}

fn cells(kind: u8, positions: &[(Position, Position)], seed: u8) -> Cells {
    let all = positions.iter().flat_map(|&(a, b)| a..b);
    let cell = |p: Position| (p as u8).wrapping_mul(seed);
    match kind {
        0 => Cells::Full(all.map(cell).collect()),
        1 => Cells::Top(all.filter(|p| cell(*p) % 3 == 0).map(|p| (p, cell(p))).collect()),
        _ => Cells::Blocks((0..seed % 9).collect()),
    }
}

/// Any picture of a model of this size.
pub(super) fn attention_map(
    layers: u16,
    kv_heads: u16,
    rows_per_group: u16,
) -> impl Strategy<Value = AttentionMap> {
    let level = prop_oneof![
        Just(ScoreLevel::Off),
        Just(ScoreLevel::Blocks),
        (1..=u32::MAX).prop_map(ScoreLevel::Top),
        Just(ScoreLevel::Full)
    ];
    let keys = prop::collection::btree_set((0..layers, 0..kv_heads), 0..=usize::from(layers * kv_heads));
    let ranges = prop::collection::vec(ranges(), 1..3);
    (level, 0..MAX_POSITION, keys, ranges, any::<u32>(), any::<u8>()).prop_map(
        move |(level, query, keys, ranges, dropped, seed)| {
            let group = |(i, (layer, kv_head)): (usize, (u16, u16))| {
                let positions = ranges[usize::from(seed) * i / 100 % ranges.len()].clone();
                let rows = (0..i as u16 % (rows_per_group + 1)).map(|head| HeadRow {
                    head,
                    dropped: f32::from_bits(dropped),
                    cells: cells((seed.wrapping_add(head as u8)) % 3, &positions, seed),
                });
                AttentionGroup { layer, kv_head, rows: rows.collect(), positions: positions.clone() }
            };
            let groups = keys.into_iter().enumerate().map(group).collect();
            AttentionMap { level, query, groups }
        },
    )
}

/// A picture with its floats as bits: NaN equals itself.
pub(super) fn map_bits(map: &AttentionMap) -> impl PartialEq + std::fmt::Debug + use<> {
    let dropped: Vec<u32> =
        map.groups.iter().flat_map(|g| &g.rows).map(|row| row.dropped.to_bits()).collect();
    let mut rest = map.clone();
    rest.groups.iter_mut().flat_map(|g| &mut g.rows).for_each(|row| row.dropped = 0.0);
    (dropped, rest)
}

/// A recording in memory; the buffer outlives the writer.
#[derive(Clone, Default)]
pub(super) struct Memory(std::sync::Arc<std::sync::Mutex<Cursor<Vec<u8>>>>);

impl Memory {
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().get_ref().clone()
    }

    pub(super) fn writer(&self) -> Writer<Self> {
        Writer::new("memory", self.clone(), &run()).unwrap()
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Memory {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.lock().unwrap().seek(to)
    }
}

pub(super) fn histograms(step: StepId) -> Vec<(String, Vec<u8>)> {
    vec![("qkv".into(), vec![step as u8; 9]), ("step".into(), Vec::new())]
}

pub(super) fn keyframe(step: StepId) -> Vec<u8> {
    vec![step as u8; 100]
}

/// A finished recording of `n` steps with a keyframe and histograms every 20 and a flush every 8.
pub(super) fn recorded(n: StepId) -> Vec<u8> {
    let memory = Memory::default();
    let mut writer = memory.writer();
    for id in 0..n {
        writer.step(&step(id)).unwrap();
        if id % 20 == 19 {
            writer.keyframe(id, step(id).end_ns(), &keyframe(id)).unwrap();
            writer.latency(id, step(id).end_ns(), &histograms(id)).unwrap();
        }
        if id % 8 == 7 {
            writer.flush().unwrap();
        }
    }
    let summary = writer.finish().unwrap();
    let bytes = memory.bytes();
    assert_eq!((summary.bytes, summary.steps), (bytes.len() as u64, n));
    bytes
}

pub(super) fn open(bytes: Vec<u8>) -> Result<Recording, TraceError> {
    Recording::from_bytes("memory", bytes)
}

pub(super) fn all(recording: &Recording) -> Result<Vec<Step>, TraceError> {
    recording.read(0..StepId::MAX).collect()
}

pub(super) fn expected(n: usize) -> Vec<Step> {
    (0..n as StepId).map(step).collect()
}

/// Copies a recording as another tool might: its own chunks, the old index kept, what describes the file at the end.
pub(super) fn copied(
    bytes: &[u8],
    options: mcap::WriteOptions,
    mut change: impl FnMut(usize, &mut mcap::Message<'_>),
) -> Vec<u8> {
    let mut out = options.create(Cursor::new(Vec::new())).unwrap();
    for (i, message) in mcap::MessageStream::new(bytes).unwrap().enumerate() {
        let mut message = message.unwrap();
        change(i, &mut message);
        out.write(&message).unwrap();
    }
    for record in mcap::read::LinearReader::new(bytes).unwrap() {
        match record.unwrap() {
            mcap::records::Record::Metadata(metadata) => out.write_metadata(&metadata).unwrap(),
            mcap::records::Record::Attachment { header, data, .. } => out
                .attach(&mcap::Attachment {
                    log_time: header.log_time,
                    create_time: header.create_time,
                    name: header.name,
                    media_type: header.media_type,
                    data,
                })
                .unwrap(),
            _ => {}
        }
    }
    out.finish().unwrap();
    out.into_inner().into_inner()
}
