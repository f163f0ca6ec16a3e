//! A made-up run for tests: small and the same on every machine, with everything a view may meet: heads that part,
//! scores, traffic, tokens that must not be printed raw.

use std::collections::BTreeSet;
use std::sync::Arc;

use crossterm::event::KeyEvent;

use crate::app::{App, Chord, Launch, Msg};
use crate::cache::{LayerTable, Victims};
use crate::engine::{Item, Reference, Status};
use crate::event::evict::recorded_score;
use crate::event::{
    AttentionGroup, AttentionMap, Cells, Eviction, Fed, HeadRow, Judged, LaneRegret, LayerTraffic, ModelCard,
    Origin, PHASES, Piece, Position, ProbeCost, Provenance, Reason, RunInfo, Sampled, ScoreLevel, SeqStep,
    Settings, Shadow, Stage, Step, TableOps, Tier, TierUse, Tuning, attention,
};

const LAYERS: u16 = 2;
const KV_HEADS: u16 = 2;
const HEADS: u16 = 4;
const PROMPT: usize = 40;
const CHUNK: usize = 16;
const BUDGET: usize = 12;
/// Most steps of the run.
pub(crate) const STEPS: usize = 8;

/// The application with the first `steps` steps of the run heard.
pub(crate) fn app(steps: usize) -> App {
    app_hearing(steps, |_| {})
}

/// The same of a run that a full-cache twin follows: it sees the draws a little differently, and each victim draws the
/// less the later it stands.
pub(crate) fn shadowed_app(steps: usize) -> App {
    let mut lost: BTreeSet<(u16, u16, Position)> = BTreeSet::new();
    app_hearing(steps, |step| {
        let part = &mut step.seqs[0];
        let lanes: Vec<(u16, u16)> = (0..LAYERS).flat_map(|l| (0..KV_HEADS).map(move |h| (l, h))).collect();
        let told = |&(layer, head): &(u16, u16)| LaneRegret {
            layer,
            head,
            told: lost
                .range((layer, head, 0)..=(layer, head, Position::MAX))
                .map(|&(_, _, position)| (position, 0.125 / (1.0 + position as f32)))
                .collect(),
        };
        let victims: Vec<LaneRegret> = lanes.iter().map(told).filter(|lane| !lane.told.is_empty()).collect();
        let agrees = part.first % 2 == 0;
        part.shadow = Some(Shadow {
            ns: 400_000,
            bytes: 8_192,
            judged: part.sampled.as_ref().map(|_| Judged { kl: 0.25, agrees, logprob: -1.0 }),
            regret: victims.iter().flat_map(|lane| &lane.told).map(|told| f64::from(told.1)).sum(),
            victims,
        });
        let of = |e: &Eviction| {
            let (layer, head) = (e.layer, e.head.expect("heads decide apart here"));
            e.positions.iter().map(move |&position| (layer, head, position)).collect::<Vec<_>>()
        };
        lost.extend(part.evictions.iter().flat_map(of));
    })
}

/// The same as a device clocks it: the phases and copies of every second step. Each takes 50 us.
pub(crate) fn sampled_app(steps: usize) -> App {
    app_hearing(steps, |step| {
        (step.wall_ns, step.timing) = (50_000, Provenance::Sampled);
        if !step.step.is_multiple_of(2) {
            (step.layer_ns, step.outer_ns) = (Vec::new(), [0; PHASES]);
            step.traffic.iter_mut().for_each(|t| t.copy_ns = 0);
        }
    })
}

/// The application with the first steps heard, each changed before.
fn app_hearing(steps: usize, mut change: impl FnMut(&mut Step)) -> App {
    let mut app = App::live(Launch { themes: vec!["dark".into(), "light".into()], ..Launch::default() });
    app.update(Msg::Item(Item::Reference(Reference { ids: vec![3, 1, 4], text: " 4711.".into() })));
    app.update(Msg::Item(Item::Begin(Arc::new(info()))));
    let mut tables = vec![LayerTable::new(KV_HEADS, 4).unwrap(); usize::from(LAYERS)];
    let mut next_block = 0;
    for i in 0..steps.min(STEPS) {
        let mut step = step(i, &mut tables, &mut next_block);
        change(&mut step);
        app.update(Msg::Item(Item::Step(Arc::new(step))));
    }
    app.update(Msg::Item(Item::Status(Status::Paused)));
    app.update(Msg::Tick { now_ns: 1 });
    app
}

/// Types keys, written as chords with blanks between.
pub(crate) fn press(app: &mut App, keys: &str) {
    for key in keys.split(' ').filter(|k| !k.is_empty()) {
        for key in key.parse::<Chord>().unwrap().0 {
            app.update(Msg::Key(KeyEvent::new(key.code, key.mods)));
        }
    }
    app.update(Msg::Tick { now_ns: 2 });
}

fn info() -> RunInfo {
    RunInfo {
        model: ModelCard {
            name: "demo\u{1b}[2J".into(),
            layers: LAYERS.into(),
            heads: HEADS.into(),
            kv_heads: KV_HEADS.into(),
            head_dim: 4,
            vocab: 64,
            context: 512,
            ..ModelCard::default()
        },
        settings: Settings {
            policy: "h2o:budget=12".into(),
            read: "kcache:n=4,l=1".into(),
            block_size: 4,
            blocks: 64,
            chunk: CHUNK as u32,
            ..Settings::default()
        },
        expected: Some(" 4711".into()),
        prompt_tokens: PROMPT as u32,
        ..RunInfo::default()
    }
}

fn piece(position: usize) -> Piece {
    match position % 10 {
        0 => " the".into(),
        1 => " key".into(),
        2 => " is".into(),
        3 => Piece(b"\x1b[2J\xff".to_vec()),
        4 => "\n".into(),
        5 => " 日本".into(),
        6 => Piece(Vec::new()),
        7 => " 4711".into(),
        8 => " and".into(),
        _ => ".".into(),
    }
}

fn step(i: usize, tables: &mut [LayerTable], next_block: &mut u32) -> Step {
    let chunks = PROMPT.div_ceil(CHUNK);
    let (first, fed) =
        if i < chunks { (i * CHUNK, CHUNK.min(PROMPT - i * CHUNK)) } else { (PROMPT + i - chunks, 1) };
    let mut ops = Vec::new();
    let mut evictions = Vec::new();
    for (layer, table) in tables.iter_mut().enumerate() {
        advance(layer as u16, table, (first, fed), i + 1 >= chunks, next_block, &mut ops, &mut evictions);
    }
    let decode = i >= chunks;
    let resident = tables.iter().flat_map(|t| (0..KV_HEADS).map(|h| t.live(h) as u32)).collect();
    let origin = if decode { Origin::Generated } else { Origin::Prompt };
    let seq = SeqStep {
        seq: 0,
        stage: if decode { Stage::Decode } else { Stage::Prefill },
        first: first as Position,
        fed: (first..first + fed).map(|p| Fed { id: p as u32 % 64, piece: piece(p), origin }).collect(),
        sampled: (i + 1 >= chunks).then(|| Sampled {
            id: (first + fed) as u32 % 64,
            piece: piece(first + fed),
            logprob: -0.5,
            margin: 1.0,
        }),
        tables: ops,
        resident,
        dropped: if decode { vec![0.0, 0.0, 0.25, 0.125] } else { Vec::new() },
        finish: None,
        crush: Vec::new(),
        merges: Vec::new(),
        shadow: None,
        evictions,
        attention: Some(picture(tables, (first + fed - 1) as Position)),
    };
    Step {
        step: i as u64,
        start_ns: i as u64 * 1_000_000,
        wall_ns: 500_000 + i as u64 * 1_000,
        seqs: vec![seq],
        layer_ns: vec![[1_000; PHASES]; usize::from(LAYERS)],
        outer_ns: [500; PHASES],
        timing: Provenance::Measured,
        tiers: vec![
            TierUse {
                live_bytes: 4_096,
                stranded_bytes: 1_024,
                unfilled_bytes: 512,
                capacity_bytes: 16_384,
                ..TierUse::new(Tier::Device)
            },
            TierUse { live_bytes: 2_048, ..TierUse::new(Tier::Host) },
        ],
        traffic: if decode {
            vec![LayerTraffic {
                layer: 1,
                h2d_bytes: 1_024,
                rows: 8,
                asked_rows: 16,
                reused_rows: 4,
                copy_ns: 900,
                link_ns: 41,
                stall_ns: 41,
                ..LayerTraffic::default()
            }]
        } else {
            Vec::new()
        },
        reads: Vec::new(),
        coding: Vec::new(),
        probe: ProbeCost { ns: 5_000, dropped: i as u64 / 6 },
        tuning: if i == 6 {
            vec![Tuning { name: "n".into(), from: "4".into(), to: "6".into() }]
        } else {
            Vec::new()
        },
    }
}

/// Appends, then lets every head lose its own oldest tokens: odd ones first in head 1, so that the heads part.
fn advance(
    layer: u16,
    table: &mut LayerTable,
    (first, fed): (usize, usize),
    acts: bool,
    next_block: &mut u32,
    ops: &mut Vec<TableOps>,
    evictions: &mut Vec<Eviction>,
) {
    let mut taken: Vec<(Option<u16>, u32)> = Vec::new();
    table
        .append(first as Position, fed, |head| {
            let id = *next_block;
            *next_block += if head.is_none() { u32::from(KV_HEADS) } else { 1 };
            taken.push((head, id));
            Ok::<_, ()>(id)
        })
        .unwrap();
    let mut keys: Vec<Option<u16>> = taken.iter().map(|&(head, _)| head).collect();
    keys.dedup();
    for head in keys {
        let taken = taken.iter().filter(|&&(h, _)| h == head).map(|&(_, id)| id).collect();
        ops.push(TableOps { layer, head, taken, ..TableOps::default() });
    }
    if !acts {
        return;
    }
    let victims: Vec<Vec<Position>> = (0..KV_HEADS)
        .map(|head| {
            let mut resident: Vec<Position> = table.resident_ranges(head).flatten().collect();
            let over = resident.len().saturating_sub(BUDGET);
            resident.sort_by_key(|&p| (head == 1 && p % 2 == 0, p));
            resident.truncate(over);
            resident.sort_unstable();
            resident
        })
        .collect();
    let sets: Vec<&[Position]> = victims.iter().map(Vec::as_slice).collect();
    table.evict(&Victims::PerHead(&sets)).unwrap();
    for (head, id) in table.release_empty() {
        match ops.iter_mut().find(|op| op.layer == layer && op.head == head) {
            Some(op) => op.freed.push(id),
            None => ops.push(TableOps { layer, head, freed: vec![id], ..TableOps::default() }),
        }
    }
    for (head, positions) in victims.into_iter().enumerate().filter(|(_, v)| !v.is_empty()) {
        evictions.push(Eviction {
            layer,
            head: Some(head as u16),
            reason: Reason::LowScore,
            cutoff: Some(1.0),
            kept: BUDGET as u32,
            scores: positions.iter().map(|&p| recorded_score(p as f32 / 64.0)).collect(),
            positions,
        });
    }
}

/// Attention that grows towards the query, different in every head.
fn picture(tables: &[LayerTable], query: Position) -> AttentionMap {
    let mut groups = Vec::new();
    for (layer, table) in tables.iter().enumerate() {
        for kv_head in 0..KV_HEADS {
            let positions: Vec<(Position, Position)> =
                table.resident_ranges(kv_head).map(|range| (range.start, range.end)).collect();
            let count: u32 = positions.iter().map(|(a, b)| b - a).sum();
            let row = |head: u16| HeadRow {
                head,
                dropped: 0.01,
                cells: Cells::Full(
                    (0..count)
                        .map(|i| attention::quantise(0.5 / (1.0 + (i * u32::from(head + 1) % 13) as f32)))
                        .collect(),
                ),
            };
            let rows = (kv_head * 2..kv_head * 2 + 2).map(row).collect();
            groups.push(AttentionGroup { layer: layer as u16, kv_head, positions, rows });
        }
    }
    AttentionMap { level: ScoreLevel::Full, query, groups }
}
