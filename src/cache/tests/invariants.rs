//! Random runs of several sequences: after every call, rows, bytes, owners and replayed tables must agree.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;
use crate::event::{Eviction, Fed, Origin, Reason, SeqStep, Stage};

/// One layer's decision: bits choose among the live positions.
#[derive(Clone, Debug)]
enum Decision {
    None,
    All(u64),
    PerHead([u64; 2]),
}

#[derive(Clone, Debug)]
struct Action {
    seq: SeqId,
    append: usize,
    offer: bool,
    decisions: [Decision; 2],
    compact: [bool; 2],
    remove: bool,
    /// Read in part from its beginning, if it begins here.
    lossy: bool,
}

fn decision() -> impl Strategy<Value = Decision> {
    prop_oneof![
        3 => Just(Decision::None),
        2 => any::<u64>().prop_map(Decision::All),
        // Few victims: leaves partly stranded blocks.
        2 => any::<(u64, u64, u64)>().prop_map(|(a, b, c)| Decision::All(a & b & c)),
        2 => any::<[u64; 2]>().prop_map(Decision::PerHead),
        1 => any::<u64>().prop_map(|bits| Decision::PerHead([bits; 2])),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let parts = (0..3u32, 0..14usize, any::<bool>(), [decision(), decision()], any::<[bool; 2]>());
    let rare = || prop::bool::weighted(0.1);
    (parts, rare(), rare()).prop_map(|((seq, append, offer, decisions, compact), remove, lossy)| Action {
        seq,
        append,
        offer,
        decisions,
        compact,
        remove,
        lossy,
    })
}

/// What should be so of one sequence.
struct Twin {
    tokens: Vec<u32>,
    appended: Position,
    /// Live positions, layer-major by KV head.
    live: Vec<BTreeSet<Position>>,
    replayed: Vec<LayerTable>,
}

impl Twin {
    fn new(incarnation: u32) -> Self {
        // A common beginning to share, then everyone's own.
        let tokens = (0..400).map(|p| if p < 13 { p } else { 1000 * (incarnation + 1) + p }).collect();
        Self {
            tokens,
            appended: 0,
            live: vec![BTreeSet::new(); 4],
            replayed: vec![LayerTable::new(SHAPE.kv_heads, 4).unwrap(); 2],
        }
    }

    fn live(&mut self, layer: Layer, head: Head) -> &mut BTreeSet<Position> {
        &mut self.live[usize::from(layer * SHAPE.kv_heads + head)]
    }

    fn chosen(&mut self, layer: Layer, head: Head, bits: u64) -> Vec<Position> {
        let live = self.live(layer, head).iter().enumerate();
        live.filter(|(i, _)| bits >> (i % 64) & 1 == 1).map(|(_, &p)| p).collect()
    }
}

struct Run {
    cache: Cache,
    twins: BTreeMap<SeqId, Twin>,
    incarnations: u32,
}

impl Run {
    fn act(&mut self, action: &Action) {
        let seq = action.seq;
        if action.remove {
            self.cache.remove(seq);
            self.twins.remove(&seq);
            return self.check();
        }
        let first = self.begin(seq, action.lossy);
        self.check();
        self.append(seq, action.append);
        self.check();
        // A step feeds what was adopted too.
        let fed = (self.twins[&seq].appended - first) as usize;
        if action.offer {
            let tokens = self.twins[&seq].tokens[..first as usize + fed].to_vec();
            self.cache.offer_prefix(seq, &tokens);
        }
        let mut evictions = Vec::new();
        for (layer, decision) in (0..).zip(&action.decisions) {
            self.decide(seq, layer, decision, &mut evictions);
            self.check();
        }
        for layer in 0..2 {
            if action.compact[usize::from(layer)] {
                let before = self.cache.table(seq, layer).clone();
                match self.cache.compact(seq, layer) {
                    Ok(()) => assert!((0..2).all(|h| self.cache.table(seq, layer).stranded(h) == 0)),
                    Err(CacheError::Exhausted(_)) => assert_eq!(self.cache.table(seq, layer), &before),
                    Err(error) => panic!("{error}"),
                }
                self.check();
            }
        }
        self.end(seq, first, fed, evictions);
    }

    /// Adds the sequence if it is not there, adopting what it can; returns where the step begins.
    fn begin(&mut self, seq: SeqId, lossy: bool) -> Position {
        if let Some(twin) = self.twins.get(&seq) {
            return twin.appended;
        }
        let mut twin = Twin::new(self.incarnations);
        self.incarnations += 1;
        self.cache.add(seq);
        if lossy {
            self.cache.mark_lossy(seq);
        }
        let adopted = self.cache.share_prefix(seq, &twin.tokens) as Position;
        twin.appended = adopted;
        twin.live.iter_mut().for_each(|live| live.extend(0..adopted));
        self.twins.insert(seq, twin);
        0
    }

    fn append(&mut self, seq: SeqId, n: usize) {
        let twin = self.twins.get_mut(&seq).unwrap();
        let first = twin.appended;
        let tokens = twin.tokens[first as usize..first as usize + n].to_vec();
        let before = (self.cache.usage(), self.cache.free_blocks(), self.cache.table(seq, 0).clone());
        match feed(&mut self.cache, seq, first, &tokens) {
            Ok(()) => {
                twin.appended += n as u32;
                twin.live.iter_mut().for_each(|live| live.extend(first..first + n as u32));
            }
            Err(CacheError::Exhausted(_)) => {
                let after = (self.cache.usage(), self.cache.free_blocks(), self.cache.table(seq, 0).clone());
                assert_eq!(after, before);
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn decide(&mut self, seq: SeqId, layer: Layer, decision: &Decision, evictions: &mut Vec<Eviction>) {
        let twin = self.twins.get_mut(&seq).unwrap();
        let mut record = |head, positions: &[Position]| {
            evictions.push(Eviction {
                layer,
                head,
                reason: Reason::LowScore,
                cutoff: None,
                kept: 0,
                positions: positions.to_vec(),
                scores: Vec::new(),
            });
        };
        let sets: Vec<Vec<Position>> = match decision {
            Decision::None => return,
            Decision::All(bits) => {
                // Positions that every head still has.
                let mut common = twin.chosen(layer, 0, *bits);
                common.retain(|p| twin.live(layer, 1).contains(p));
                self.cache.evict(seq, layer, &Victims::All(&common)).unwrap();
                record(None, &common);
                vec![common.clone(), common]
            }
            Decision::PerHead(bits) => {
                let sets: Vec<_> = (0..).zip(bits).map(|(h, &bits)| twin.chosen(layer, h, bits)).collect();
                self.cache.evict(seq, layer, &Victims::PerHead(&[&sets[0], &sets[1]])).unwrap();
                (0..).zip(&sets).filter(|(_, s)| !s.is_empty()).for_each(|(h, s)| record(Some(h), s));
                sets
            }
        };
        for (head, set) in (0..).zip(&sets) {
            twin.live(layer, head).retain(|p| !set.contains(p));
        }
    }

    /// Records the step, replays it and compares.
    fn end(&mut self, seq: SeqId, first: Position, fed: usize, evictions: Vec<Eviction>) {
        let fed = vec![Fed { id: 0, piece: "".into(), origin: Origin::Prompt }; fed];
        let mut resident = Vec::new();
        self.cache.resident(seq, &mut resident);
        let step = SeqStep {
            seq,
            stage: Stage::Decode,
            first,
            fed,
            sampled: None,
            tables: self.cache.take_ops(seq),
            resident,
            dropped: Vec::new(),
            finish: None,
            crush: Vec::new(),
            merges: Vec::new(),
            shadow: None,
            evictions,
            attention: None,
        };
        let twin = self.twins.get_mut(&seq).unwrap();
        replay(&mut twin.replayed, &step).unwrap();
        for layer in 0..2 {
            let table = &twin.replayed[usize::from(layer)];
            assert_eq!(table, self.cache.table(seq, layer));
            let text = serde_json::to_string(table).unwrap();
            assert_eq!(&serde_json::from_str::<LayerTable>(&text).unwrap(), table);
        }
        assert_eq!(step.resident, twin.live.iter().map(|l| l.len() as u32).collect::<Vec<_>>());
    }

    fn check(&self) {
        let mut held = Held::default();
        for (&seq, twin) in &self.twins {
            for (layer, head) in (0..2).flat_map(|l| (0..2).map(move |h| (l, h))) {
                self.check_rows(seq, twin, layer, head);
                held.count(seq, layer, head, self.cache.table(seq, layer).lane(head));
            }
        }
        for (&id, block) in &held.blocks {
            assert_eq!(self.cache.pool.owners(id) as usize, block.owners.len(), "owners of block {id}");
        }
        let usage = self.cache.usage();
        assert_eq!(usage, held.usage(&self.cache));
        for (tier, bytes) in usage.iter().zip(self.cache.held_bytes()) {
            assert_eq!(tier.allocated_bytes(), bytes);
            assert!(tier.capacity_bytes == 0 || bytes <= tier.capacity_bytes);
        }
    }

    /// Every appended row is at home or evicted, and at home it holds what was written.
    fn check_rows(&self, seq: SeqId, twin: &Twin, layer: Layer, head: Head) {
        let table = self.cache.table(seq, layer);
        let (k, v) = self.cache.pages(seq, layer, head);
        let live = &twin.live[usize::from(layer * 2 + head)];
        assert_eq!(table.live(head), live.len());
        let ranges: Vec<_> = table.resident_ranges(head).flatten().collect();
        assert!(ranges.iter().eq(live), "seq {seq} layer {layer} head {head}");
        for position in 0..twin.appended {
            let slot = table.slot_of(head, position);
            assert_eq!(slot.is_some(), live.contains(&position));
            let Some(slot) = slot else { continue };
            for (pages, is_v) in [(k, false), (v, true)] {
                let token = twin.tokens[position as usize];
                let want = (0..SHAPE.head_dim).map(|d| element(token, position, layer, head, is_v, d));
                let want: Vec<f32> = match self.cache.config.dtype {
                    KvDtype::F16 => want.map(|x| half::f16::from_f32(x).to_f32()).collect(),
                    _ => want.collect(),
                };
                if self.cache.config.dtype == KvDtype::Int8 {
                    // A row's elements lie within 2 of 16384: a step is an f16 above a 127 500th of that, and the zero
                    // an f16 below them, at most 2 away.
                    let near = row(pages, slot).iter().zip(&want).all(|(a, b)| (a - b).abs() < 5e-3);
                    assert!(near, "seq {seq} layer {layer} head {head} position {position}");
                    continue;
                }
                assert_eq!(row(pages, slot), want, "seq {seq} layer {layer} head {head} position {position}");
            }
        }
    }
}

struct HeldBlock {
    place: (Layer, Head),
    owners: BTreeSet<SeqId>,
    filled: usize,
    live: BTreeSet<usize>,
}

/// Blocks as the tables tell, found by walking them.
#[derive(Default)]
struct Held {
    blocks: HashMap<BlockId, HeldBlock>,
}

impl Held {
    fn count(&mut self, seq: SeqId, layer: Layer, head: Head, lane: LaneView<'_>) {
        for (i, id) in lane.blocks().enumerate() {
            let slots = lane.block_slots(i);
            let block = self.blocks.entry(id).or_insert_with(|| HeldBlock {
                place: (layer, head),
                owners: BTreeSet::new(),
                filled: slots.len(),
                live: BTreeSet::new(),
            });
            assert_eq!(block.place, (layer, head), "block {id} in two places");
            assert_eq!(block.filled, slots.len(), "a shared block is full");
            assert!(block.owners.insert(seq), "block {id} twice in one table");
            block.live.extend((0..slots.len()).filter(|&row| slots[row] != HOLE));
        }
    }

    fn usage(&self, cache: &Cache) -> [TierUse; 2] {
        let mut usage = cache.usage();
        for tier in &mut usage {
            (tier.live_bytes, tier.stranded_bytes, tier.unfilled_bytes) = (0, 0, 0);
        }
        let row_bytes = cache.config.dtype.written_row_bytes(SHAPE.head_dim);
        for block in self.blocks.values() {
            for home in [Home::Device, cache.home(block.place.0)] {
                let tier = &mut usage[home as usize];
                tier.live_bytes += (block.live.len() * row_bytes) as u64;
                tier.stranded_bytes += ((block.filled - block.live.len()) * row_bytes) as u64;
                tier.unfilled_bytes += ((4 - block.filled) * row_bytes) as u64;
            }
        }
        usage
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn rows_bytes_owners_and_replayed_tables_agree(
        actions in prop::collection::vec(action(), 1..28),
        blocks in prop_oneof![Just(0u32), 12..80u32],
        dtype in prop::sample::select(vec![KvDtype::F32, KvDtype::F16, KvDtype::Int8]),
        host_v_from_layer in prop_oneof![Just(None), Just(Some(0)), Just(Some(1))],
    ) {
        let config = CacheConfig { blocks, dtype, host_v_from_layer, ..config() };
        let mut run = Run { cache: Cache::new(config).unwrap(), twins: BTreeMap::new(), incarnations: 0 };
        for action in &actions {
            run.act(action);
        }
        for seq in 0..3 {
            run.cache.remove(seq);
        }
        prop_assert_eq!(run.cache.held_bytes(), [0, 0]);
        prop_assert_eq!(run.cache.usage().map(|t| t.allocated_bytes()), [0, 0]);
        prop_assert_eq!(run.cache.prefixes.len(), 0);
    }
}
