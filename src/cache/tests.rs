use super::*;

mod invariants;
mod kivi;
mod nuq;

const SHAPE: KvShape = KvShape { layers: 2, kv_heads: 2, head_dim: 3 };

fn config() -> CacheConfig {
    CacheConfig {
        shape: SHAPE,
        block_size: 4,
        blocks: 0,
        dtype: KvDtype::F32,
        rope: RopeMode::Post,
        host_v_from_layer: None,
        far_blocks: false,
        salt: [7; 32],
    }
}

/// What a row holds: a function of everything it depends on, so that a row in the wrong place shows.
fn element(token: u32, position: Position, layer: Layer, head: Head, is_v: bool, d: usize) -> f32 {
    let place = position * 8 + u32::from(layer) * 4 + u32::from(head) * 2 + u32::from(is_v);
    token as f32 + place as f32 / 1024.0 + d as f32 / 16384.0
}

fn rows(tokens: &[u32], first: Position, layer: Layer, is_v: bool) -> Vec<f32> {
    let mut out = Vec::new();
    for (position, &token) in (first..).zip(tokens) {
        for head in 0..SHAPE.kv_heads {
            out.extend((0..SHAPE.head_dim).map(|d| element(token, position, layer, head, is_v, d)));
        }
    }
    out
}

/// Reserves and writes `tokens` from `first` on in every layer.
fn feed(cache: &mut Cache, seq: SeqId, first: Position, tokens: &[u32]) -> Result<(), CacheError> {
    cache.reserve(seq, first, tokens.len())?;
    for layer in 0..SHAPE.layers {
        cache.write(
            seq,
            layer,
            first,
            &rows(tokens, first, layer, false),
            &rows(tokens, first, layer, true),
        )?;
    }
    Ok(())
}

fn row(pages: Pages<'_>, slot: usize) -> Vec<f32> {
    match pages {
        Pages::F32(list) => list.row(slot).to_vec(),
        Pages::F16(list) => list.row(slot).iter().map(|x| x.to_f32()).collect(),
        Pages::Coded(list) => {
            let row = list.row(slot);
            let mut out = vec![0.0; row.row()];
            row.decode(&mut out);
            out
        }
    }
}

fn ids(n: u32) -> Vec<u32> {
    (100..100 + n).collect()
}

#[test]
fn bad_configurations_are_refused_in_one_line() {
    let mut cases = vec![config(); 5];
    cases[0].block_size = 0;
    cases[1].shape.kv_heads = 0;
    cases[2].shape.layers = 0;
    cases[3].shape.head_dim = 0;
    cases[4].blocks = 3;
    for case in cases {
        let error = Cache::new(case).unwrap_err().to_string();
        assert!(!error.is_empty() && !error.contains('\n'), "{error}");
    }
}

#[test]
fn exhaustion_shows_before_anything_changed() {
    let mut cache = Cache::new(CacheConfig { blocks: 9, ..config() }).unwrap();
    cache.add(0);
    feed(&mut cache, 0, 0, &ids(8)).unwrap();
    let (usage, table) = (cache.usage(), cache.table(0, 1).clone());
    let error = cache.reserve(0, 8, 1).unwrap_err();
    assert_eq!(error, CacheError::Exhausted(Exhausted { needed: 4, free: 0, whole: 0, capacity: 8 }));
    assert_eq!((cache.usage(), cache.table(0, 1)), (usage, &table));
    assert_eq!(usage[0].live_bytes, usage[0].capacity_bytes);
}

#[test]
fn pages_hold_what_was_written_and_f16_rounds() {
    for dtype in [KvDtype::F32, KvDtype::F16] {
        let mut cache = Cache::new(CacheConfig { dtype, ..config() }).unwrap();
        cache.add(0);
        feed(&mut cache, 0, 0, &ids(6)).unwrap();
        let (k, v) = cache.pages(0, 1, 1);
        let exact = |is_v| element(105, 5, 1, 1, is_v, 2);
        let stored = |is_v| {
            if dtype == KvDtype::F32 { exact(is_v) } else { half::f16::from_f32(exact(is_v)).to_f32() }
        };
        assert_eq!((row(k, 5)[2], row(v, 5)[2]), (stored(false), stored(true)));
    }
}

#[test]
fn rows_must_be_reserved_first_and_come_in_order() {
    let mut cache = Cache::new(config()).unwrap();
    cache.add(0);
    let two = rows(&ids(2), 0, 0, false);
    assert!(cache.write(0, 0, 0, &two, &two).is_err());
    cache.reserve(0, 0, 2).unwrap();
    assert!(cache.write(0, 0, 1, &two, &two).is_err());
    assert!(cache.write(0, 0, 0, &two, &two[1..]).is_err());
    assert!(cache.write(0, 9, 0, &two, &two).is_err());
    assert!(cache.write(5, 0, 0, &two, &two).is_err());
    cache.write(0, 0, 0, &two, &two).unwrap();
    assert!(cache.write(0, 0, 0, &two, &two).is_err());
    assert!(cache.reserve(0, 3, 1).is_err());
}

#[test]
fn steps_that_could_not_be_replayed_are_refused() {
    let mut cache = Cache::new(config()).unwrap();
    cache.add(0);
    feed(&mut cache, 0, 0, &ids(6)).unwrap();
    cache.evict(0, 0, &Victims::All(&[1])).unwrap();
    let refused = |result: Result<(), CacheError>| matches!(result, Err(CacheError::OutOfOrder { .. }));
    assert!(refused(cache.evict(0, 0, &Victims::All(&[2]))));
    assert!(refused(cache.reserve(0, 6, 1)));
    cache.compact(0, 0).unwrap();
    assert!(refused(cache.evict(0, 0, &Victims::All(&[2]))));
    cache.evict(0, 1, &Victims::All(&[2])).unwrap();
    cache.take_ops(0);
    cache.reserve(0, 6, 1).unwrap();
}

#[test]
fn prefixes_are_shared_in_full_pages_under_equal_salts_only() {
    let mut cache = Cache::new(config()).unwrap();
    cache.add(0);
    feed(&mut cache, 0, 0, &ids(10)).unwrap();
    cache.offer_prefix(0, &ids(10));
    let held = cache.held_bytes();
    cache.add(1);
    assert_eq!(cache.share_prefix(1, &ids(11)), 8);
    assert_eq!(cache.held_bytes(), held);
    let blocks = |seq| cache.table(seq, 1).lane(1).blocks().take(2).collect::<Vec<_>>();
    assert_eq!(blocks(1), blocks(0));
    assert_eq!(cache.take_ops(1)[0].adopted.len(), 2);
    feed(&mut cache, 1, 8, &[1, 2]).unwrap();
    cache.add(2);
    let mut other = ids(8);
    other[5] = 0;
    assert_eq!(cache.share_prefix(2, &other), 4);
    assert_eq!(cache.share_prefix(2, &ids(8)), 0, "only onto an empty sequence");

    let salted = PrefixIndex::new(&CacheConfig { salt: [8; 32], ..config() });
    let pre = PrefixIndex::new(&CacheConfig { rope: RopeMode::Pre, ..config() });
    let half = PrefixIndex::new(&CacheConfig { dtype: KvDtype::F16, ..config() });
    let roots: std::collections::HashSet<_> =
        [&cache.prefixes, &salted, &pre, &half].iter().map(|i| i.root).collect();
    assert_eq!(roots.len(), 4);
}

#[test]
fn a_sequence_that_lost_something_stops_offering() {
    let mut cache = Cache::new(config()).unwrap();
    for (seq, evicts) in [(0, true), (1, false)] {
        cache.add(seq);
        feed(&mut cache, seq, 0, &ids(8)).unwrap();
        cache.offer_prefix(seq, &ids(8));
        if evicts {
            cache.evict(seq, 0, &Victims::All(&[3])).unwrap();
        } else {
            cache.mark_lossy(seq);
        }
        cache.offer_prefix(seq, &ids(8));
        cache.add(9);
        assert_eq!(cache.share_prefix(9, &ids(8)), 0);
    }
}

#[test]
fn a_lossy_sequence_adopts_but_does_not_hold_up() {
    let mut cache = Cache::new(config()).unwrap();
    cache.add(0);
    feed(&mut cache, 0, 0, &ids(8)).unwrap();
    cache.offer_prefix(0, &ids(8));
    cache.add(1);
    cache.mark_lossy(1);
    assert_eq!(cache.share_prefix(1, &ids(9)), 8);
    cache.remove(0);
    assert_eq!(row(cache.pages(1, 1, 1).1, 7)[0], element(107, 7, 1, 1, true, 0));
    cache.add(2);
    assert_eq!(cache.share_prefix(2, &ids(9)), 0);
}

#[test]
fn a_forced_decision_is_a_step_of_its_own() {
    let mut cache = Cache::new(CacheConfig { blocks: 8, ..config() }).unwrap();
    cache.add(0);
    feed(&mut cache, 0, 0, &ids(8)).unwrap();
    cache.take_ops(0);
    assert!(cache.reserve(0, 8, 1).is_err());
    for layer in 0..SHAPE.layers {
        cache.evict(0, layer, &Victims::All(&[0, 1, 2, 3])).unwrap();
    }
    let ops = cache.take_ops(0);
    assert_eq!(ops.iter().map(|o| o.freed.len()).collect::<Vec<_>>(), [1, 1]);
    feed(&mut cache, 0, 8, &[1]).unwrap();
}

#[test]
fn what_was_not_written_yet_is_not_offered() {
    let mut cache = Cache::new(config()).unwrap();
    cache.add(0);
    cache.reserve(0, 0, 8).unwrap();
    cache.offer_prefix(0, &ids(8));
    cache.add(1);
    assert_eq!(cache.share_prefix(1, &ids(8)), 0);
}

#[test]
fn compaction_copies_a_shared_page_first() {
    let mut cache = Cache::new(config()).unwrap();
    cache.add(0);
    feed(&mut cache, 0, 0, &ids(8)).unwrap();
    cache.offer_prefix(0, &ids(8));
    cache.add(1);
    cache.share_prefix(1, &ids(8));
    cache.take_ops(1);
    cache.evict(1, 0, &Victims::All(&[7])).unwrap();
    cache.compact(1, 0).unwrap();
    let ops = cache.take_ops(1);
    let tail = cache.table(0, 0).lane(0).block(1);
    assert_eq!(ops.len(), 1);
    assert_eq!(ops[0].copied[0].0, tail);
    assert!(ops[0].compacted);
    // The next append fills the copy, not the page of sequence 0.
    feed(&mut cache, 1, 8, &[1]).unwrap();
    assert_eq!(row(cache.pages(0, 0, 0).0, 7)[0], element(107, 7, 0, 0, false, 0));
    assert_eq!(row(cache.pages(1, 0, 0).0, 7)[0], element(1, 8, 0, 0, false, 0));
}

#[test]
fn a_compaction_without_room_for_its_copy_changes_nothing() {
    let mut cache = Cache::new(CacheConfig { blocks: 8, ..config() }).unwrap();
    cache.add(0);
    feed(&mut cache, 0, 0, &ids(8)).unwrap();
    cache.offer_prefix(0, &ids(8));
    cache.add(1);
    cache.share_prefix(1, &ids(8));
    cache.evict(1, 0, &Victims::All(&[2])).unwrap();
    let (table, usage) = (cache.table(1, 0).clone(), cache.usage());
    assert!(matches!(cache.compact(1, 0), Err(CacheError::Exhausted(_))));
    assert_eq!((cache.table(1, 0), cache.usage()), (&table, usage));
}

#[test]
fn blocks_sent_to_the_host_are_read_and_freed_there() {
    let mut cache = Cache::new(CacheConfig { far_blocks: true, blocks: 40, ..config() }).unwrap();
    cache.add(0);
    feed(&mut cache, 0, 0, &ids(13)).unwrap();
    let row_bytes = 12;
    assert_eq!(cache.send_to_host(0, 1, 4..12), 8 * 2 * 2 * row_bytes);
    let [device, host] = cache.usage();
    assert_eq!(
        (device.live_bytes, host.live_bytes),
        ((13 * 2 * 2 * 2 - 8 * 2 * 2) * row_bytes, 8 * 2 * 2 * row_bytes)
    );
    assert_eq!([device, host].map(|tier| tier.allocated_bytes()), cache.held_bytes());
    assert_eq!((host.unfilled_bytes, host.capacity_bytes), (0, 40 * 4 * 2 * row_bytes));
    feed(&mut cache, 0, 13, &ids(2)).unwrap();
    for (layer, head) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let (keys, values) = cache.pages(0, layer, head);
        for position in 0..13 {
            let token = 100 + position as u32;
            for (pages, is_v) in [(keys, false), (values, true)] {
                let want: Vec<f32> =
                    (0..3).map(|d| element(token, position as u32, layer, head, is_v, d)).collect();
                assert_eq!(row(pages, position), want, "layer {layer}, head {head}, position {position}");
            }
        }
    }
    cache.remove(0);
    assert_eq!(cache.held_bytes(), [0, 0]);
    assert_eq!(cache.usage().map(|t| t.allocated_bytes()), [0, 0]);
}

#[test]
fn tiers_are_counted_where_the_bytes_are() {
    let mut cache = Cache::new(CacheConfig { host_v_from_layer: Some(1), blocks: 40, ..config() }).unwrap();
    cache.add(0);
    feed(&mut cache, 0, 0, &ids(5)).unwrap();
    cache.note_copies(Tier::Device, 24);
    let [device, host] = cache.usage();
    let row = 12;
    assert_eq!((device.live_bytes, host.live_bytes), (5 * 2 * 3 * row, 5 * 2 * row));
    assert_eq!((device.unfilled_bytes, host.unfilled_bytes), (3 * 2 * 3 * row, 3 * 2 * row));
    assert_eq!(device.allocated_bytes() - 24, cache.held_bytes()[0]);
    assert_eq!(host.allocated_bytes(), cache.held_bytes()[1]);
    assert_eq!((device.capacity_bytes, host.capacity_bytes), (40 * 4 * 2 * row, 40 * 4 * row));
    cache.remove(0);
    assert_eq!(cache.held_bytes(), [0, 0]);
}
