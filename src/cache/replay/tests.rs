use proptest::prelude::*;

use super::*;
use crate::event::{Fed, Origin, Position, Reason, Stage};

fn step(first: Position, fed: usize, tables: Vec<TableOps>, evictions: Vec<Eviction>) -> SeqStep {
    SeqStep {
        seq: 0,
        stage: Stage::Decode,
        first,
        fed: vec![Fed { id: 0, piece: "".into(), origin: Origin::Prompt }; fed],
        sampled: None,
        tables,
        resident: Vec::new(),
        dropped: Vec::new(),
        finish: None,
        crush: Vec::new(),
        merges: Vec::new(),
        shadow: None,
        evictions,
        attention: None,
    }
}

fn eviction(layer: Layer, head: Option<Head>, positions: Vec<Position>) -> Eviction {
    Eviction { layer, head, reason: Reason::LowScore, cutoff: None, kept: 0, positions, scores: Vec::new() }
}

fn tables() -> Vec<LayerTable> {
    vec![LayerTable::new(2, 2).unwrap(); 2]
}

fn taking(layer: Layer, taken: Vec<BlockId>) -> TableOps {
    TableOps { layer, taken, ..TableOps::default() }
}

fn resident(table: &LayerTable, head: Head) -> Vec<Position> {
    table.resident_ranges(head).flatten().collect()
}

#[test]
fn decisions_of_one_layer_add_up() {
    let mut tables = tables();
    let ops = vec![taking(0, vec![0, 2]), taking(1, vec![4, 6])];
    let evictions =
        vec![eviction(1, Some(1), vec![0]), eviction(0, None, vec![1]), eviction(1, None, vec![2])];
    replay(&mut tables, &step(0, 4, ops, evictions)).unwrap();
    assert!(!tables[0].is_split());
    assert_eq!(resident(&tables[0], 0), [0, 2, 3]);
    assert_eq!(resident(&tables[1], 0), [0, 1, 3]);
    assert_eq!(resident(&tables[1], 1), [1, 3]);
}

#[test]
fn blocks_that_do_not_fit_the_tokens_are_refused() {
    let misfit = |layer, what| Err(TableError::Blocks { layer, what });
    let both = |a: Vec<BlockId>, b: Vec<BlockId>| vec![taking(0, a), taking(1, b)];
    let refused = |ops| replay(&mut tables(), &step(0, 3, ops, Vec::new()));
    assert_eq!(refused(both(vec![0, 2], vec![4, 6])), Ok(Compacted::default()));
    assert_eq!(refused(both(vec![0, 2], vec![4])), misfit(1, "taken"));
    assert_eq!(refused(both(vec![0, 2, 4], vec![6, 8])), misfit(0, "taken"));
    assert_eq!(refused(both(vec![0, 2], vec![4, BlockId::MAX])), misfit(1, "taken"));
    let mut freeing = both(vec![0, 2], vec![4, 6]);
    freeing[1].freed = vec![4];
    assert_eq!(refused(freeing), misfit(1, "freed"));
    assert_eq!(refused(vec![taking(7, vec![])]), Err(TableError::NoLane { layer: 7, head: None }));
}

fn any_ops() -> impl Strategy<Value = TableOps> {
    let ids = || prop::collection::vec(prop_oneof![0..12u32, any::<u32>()], 0..3);
    let copies = prop::collection::vec((0..12u32, any::<u32>()), 0..2);
    (0..3u16, prop::option::of(0..3u16), ids(), copies, ids(), ids(), any::<bool>()).prop_map(
        |(layer, head, adopted, copied, taken, freed, compacted)| TableOps {
            layer,
            head,
            adopted,
            copied,
            taken,
            freed,
            compacted,
        },
    )
}

fn any_eviction() -> impl Strategy<Value = Eviction> {
    let positions = prop::collection::vec(prop_oneof![0..8u32, any::<u32>()], 0..4);
    (0..3u16, prop::option::of(0..3u16), positions).prop_map(|(layer, head, p)| eviction(layer, head, p))
}

proptest! {
    #[test]
    fn no_recording_makes_it_panic(
        first in prop_oneof![0..8u32, any::<u32>()],
        fed in 0..5usize,
        ops in prop::collection::vec(any_ops(), 0..3),
        evictions in prop::collection::vec(any_eviction(), 0..3),
    ) {
        let mut tables = tables();
        let good = vec![taking(0, vec![0, 2]), taking(1, vec![4, 6])];
        replay(&mut tables, &step(0, 4, good, vec![eviction(1, Some(1), vec![1])])).unwrap();
        let _ = replay(&mut tables, &step(first, fed, ops, evictions));
        for table in &tables {
            for head in 0..2 {
                prop_assert_eq!(resident(table, head).len(), table.live(head));
            }
        }
    }
}
