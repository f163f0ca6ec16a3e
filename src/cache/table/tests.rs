use super::*;

/// A table with ids handed out from 100 on, `heads` at a time while the gang holds.
fn filled(heads: Head, block_size: u32, tokens: usize) -> LayerTable {
    let mut table = LayerTable::new(heads, block_size).unwrap();
    let mut next = 100;
    append(&mut table, 0, tokens, &mut next);
    table
}

fn append(table: &mut LayerTable, first: Position, n: usize, next: &mut BlockId) {
    let heads = BlockId::from(table.heads());
    table
        .append(first, n, |key| {
            let id = *next;
            *next += if key.is_none() { heads } else { 1 };
            Ok::<_, ()>(id)
        })
        .unwrap();
}

fn ranges(table: &LayerTable, head: Head) -> Vec<Range<Position>> {
    table.resident_ranges(head).collect()
}

#[test]
fn a_gang_is_one_entry_per_row_of_blocks() {
    let table = filled(4, 16, 40);
    assert_eq!(table.lane(0).blocks().collect::<Vec<_>>(), [100, 104, 108]);
    assert_eq!(table.lane(3).blocks().collect::<Vec<_>>(), [103, 107, 111]);
    assert_eq!((table.live(3), table.stranded(3), table.unfilled(3)), (40, 0, 8));
    assert_eq!(table.blocks_needed(8), 0);
    assert_eq!(table.blocks_needed(9), 4);
}

#[test]
fn equal_sets_keep_the_gang_and_different_sets_part_it() {
    let mut table = filled(2, 4, 12);
    table.evict(&Victims::PerHead(&[&[1, 2], &[1, 2]])).unwrap();
    assert!(!table.is_split());
    table.evict(&Victims::PerHead(&[&[3], &[8]])).unwrap();
    assert!(table.is_split());
    assert_eq!(ranges(&table, 0), [0..1, 4..12]);
    assert_eq!(ranges(&table, 1), [0..1, 3..8, 9..12]);
    assert_eq!(table.lane(1).blocks().collect::<Vec<_>>(), [101, 103, 105]);
    assert_eq!(table.slot_of(1, 9), Some(9));
    assert_eq!(table.slot_of(1, 8), None);
}

#[test]
fn empty_blocks_are_released_and_appends_go_on_behind() {
    let mut table = filled(1, 4, 10);
    table.evict(&Victims::All(&[4, 5, 6, 7, 8, 9])).unwrap();
    assert_eq!(table.release_empty(), [(None, 101), (None, 102)]);
    assert_eq!((table.live(0), table.stranded(0), table.unfilled(0)), (4, 0, 0));
    append(&mut table, 10, 1, &mut 200);
    assert_eq!(table.lane(0).blocks().collect::<Vec<_>>(), [100, 200]);
    assert_eq!(table.lane(0).slots, [0, 1, 2, 3, 10]);
}

#[test]
fn compaction_keeps_the_order_and_tells_the_moves() {
    let mut table = filled(1, 4, 11);
    table.evict(&Victims::All(&[1, 2, 5, 9])).unwrap();
    assert!(table.release_empty().is_empty());
    let written: Vec<_> = table.compaction_writes().collect();
    assert_eq!(written, [(None, 100), (None, 101)]);
    let done = table.compact();
    let run = |from, to, len| RowMove { from, to, len };
    assert_eq!(done[0].moves, [run(3, 1, 2), run(6, 3, 3), run(10, 6, 1)]);
    assert_eq!(done[0].freed, [102]);
    assert_eq!(table.lane(0).slots, [0, 3, 4, 6, 7, 8, 10]);
    assert!(table.compact().is_empty());
}

#[test]
fn a_hole_at_the_end_is_cut_off_without_a_move() {
    let mut table = filled(1, 4, 6);
    table.evict(&Victims::All(&[5])).unwrap();
    assert_eq!(table.compaction_writes().collect::<Vec<_>>(), [(None, 101)]);
    assert_eq!(table.compact()[0].moves, []);
    assert_eq!((table.stranded(0), table.unfilled(0)), (0, 3));
}

#[test]
fn refusals_leave_the_table_as_it_was() {
    let mut table = filled(2, 4, 6);
    let before = table.clone();
    for bad in [
        table.evict(&Victims::All(&[6])),
        table.evict(&Victims::All(&[0, HOLE])),
        table.evict(&Victims::All(&[2, 2])),
        table.evict(&Victims::All(&[3, 2])),
        table.evict(&Victims::PerHead(&[&[1]])),
        table.evict(&Victims::PerHead(&[&[1], &[7]])),
        table.adopt(&[9], 4),
        table.replace_block(7, 8),
        table.check_append(5, 1),
        table.check_append(6, usize::MAX / 2),
        table.check_append(6, MAX_LANE_SLOTS),
    ] {
        assert!(bad.is_err());
        assert_eq!(table, before);
    }
    let mut left = 1;
    let short = table.append(6, 12, |_| {
        if left > 0 {
            left -= 1;
            Ok(300)
        } else {
            Err("none")
        }
    });
    assert_eq!(short, Err(AppendError::Take { error: "none", taken: vec![(None, 300)] }));
    assert_eq!(table, before);
}

#[test]
fn a_victim_is_lost_once() {
    let mut table = filled(1, 4, 6);
    table.evict(&Victims::All(&[2])).unwrap();
    assert_eq!(table.evict(&Victims::All(&[2])), Err(TableError::NotResident { head: None, position: 2 }));
}

#[test]
fn a_long_lane_is_small_when_recorded() {
    let mut table = filled(8, 16, 100_000);
    let victims: Vec<Position> = (50..90_000).collect();
    table.evict(&Victims::All(&victims)).unwrap();
    table.release_empty();
    let text = serde_json::to_string(&table).unwrap();
    assert!(text.len() < 8_000, "{}", text.len());
    assert_eq!(serde_json::from_str::<LayerTable>(&text).unwrap(), table);
}

#[test]
fn damaged_tables_are_refused() {
    let good = r#"{"block_size":4,"heads":2,"split":false,"lanes":[{"blocks":[0,2],"runs":[[0,3],[4294967295,2],[9,1]]}]}"#;
    serde_json::from_str::<LayerTable>(good).unwrap();
    for (from, to) in [
        ("\"block_size\":4", "\"block_size\":0"),
        ("\"block_size\":4", "\"block_size\":1000000"),
        ("\"heads\":2", "\"heads\":0"),
        ("\"split\":false", "\"split\":true"),
        ("[0,2]", "[0]"),
        ("[0,2]", "[0,4294967295]"),
        ("[9,1]", "[1,1]"),
        ("[9,1]", "[4294967294,2]"),
        ("[0,3]", "[0,4294967295]"),
        ("[4294967295,2]", "[4294967295,4294967295]"),
        ("[[0,3],[4294967295,2],[9,1]]", "[[4294967295,4],[9,1]]"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good);
        assert!(serde_json::from_str::<LayerTable>(&bad).is_err(), "{bad}");
    }
}
