//! Runs under InfLLM: who is where, what moves, and what is read.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Case, cases, check_tiers};
use crate::engine::Engine;
use crate::event::{Layer, ScoreLevel, Stage, Step};
use crate::policy::Infllm;

/// A read set that goes with blocks of so many slots, whole blocks everywhere.
fn infllms(block_size: u32) -> impl Strategy<Value = String> {
    (0..=2u32, 1..=24u32, 1..=2u32, 0..=4u32, 1..=5u32, 1..=5u32).prop_map(
        move |(init, local, block, topk, repr, cache)| {
            let (init, block) = (init * block_size, block * block_size);
            format!("infllm:local={local},init={init},block={block},topk={topk},repr={repr},cache={cache}")
        },
    )
}

/// Any shape and prompt, with pages that hold exact rows and a memory that fits their blocks.
fn remembering() -> impl Strategy<Value = Case> {
    (cases(), 1..=6u32, 1..=2u32).prop_flat_map(|(case, block_size, batch)| {
        infllms(block_size).prop_map(move |read| {
            case.with(|s| {
                (s.block_size, s.batch, s.read) = (block_size, batch, read);
                if s.kv_dtype == "int8" {
                    s.kv_dtype = "f32".into();
                }
            })
        })
    })
}

/// Blocks and bytes of a step under InfLLM.
pub(super) fn check(engine: &Engine, step: &Step, infllm: Infllm) {
    let config = engine.model.decoder.config();
    let row_bytes = engine.cache.config().dtype.written_row_bytes(config.head_dim) as u64;
    let block_bytes = u64::from(infllm.block) * 2 * config.kv_heads as u64 * row_bytes;
    let fed: Vec<_> = step.seqs.iter().filter(|s| !s.fed.is_empty()).collect();
    let before: u64 = fed.iter().map(|s| u64::from(infllm.blocks(s.first))).sum();
    let after: u64 = fed.iter().map(|s| u64::from(infllm.blocks(s.first + s.fed.len() as u32))).sum();
    let moved: BTreeMap<Layer, _> = step.traffic.iter().map(|t| (t.layer, t)).collect();
    assert_eq!(step.reads.len(), if fed.is_empty() { 0 } else { config.layers });
    for r in &step.reads {
        assert_eq!((r.pages, r.asked), (before, r.read));
        let most =
            fed.iter().map(|s| infllm.retrieved().min(infllm.blocks(s.first) as usize) as u64).sum::<u64>();
        assert_eq!(r.read, most, "as many blocks as may be are read");
        assert!(r.loaded <= r.read && r.read_bytes <= r.dense_bytes);
        assert_eq!(r.dense_bytes - r.read_bytes, (before - r.read) * block_bytes, "all else is read");
        assert_eq!(r.index_bytes, before * (config.kv_heads * config.head_dim * 4) as u64);
        let (h2d, d2h) = moved.get(&r.layer).map_or((0, 0), |t| (t.h2d_bytes, t.d2h_bytes));
        assert_eq!((h2d, d2h), (r.loaded * block_bytes, (after - before) * block_bytes));
    }
    let copies = step.tiers[0].copies_bytes;
    assert!(
        copies <= (engine.sequences.len() * config.layers) as u64 * u64::from(infllm.cache) * block_bytes
    );
    for part in fed.into_iter().filter(|s| s.stage == Stage::Decode) {
        if engine.picture_level() == ScoreLevel::Off {
            assert!(part.dropped.is_empty());
            continue;
        }
        assert_eq!(part.dropped.len(), config.layers * config.kv_heads);
        let reads_all = infllm.blocks(part.first) as usize <= infllm.retrieved();
        for &mass in &part.dropped {
            assert!((0.0..=1.0).contains(&mass) && (!reads_all || mass == 0.0), "{mass}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_row_is_in_one_home_and_every_move_is_counted(case in remembering()) {
        case.run(|engine, step| {
            let memory = engine.read.as_ref().unwrap().rule().memory().unwrap();
            check_tiers(engine, step);
            check(engine, step, memory);
        });
        prop_assert_eq!(case.said(), case.said());
    }

    /// Keys rotated at read have the bits of keys rotated at write, so a window that holds everything changes nothing.
    #[test]
    fn a_window_that_holds_everything_is_the_full_cache(case in cases()) {
        let case = case.with(|s| (s.kv_dtype, s.block_size) = ("f32".into(), 4));
        let full = case.said();
        let read = case.with(|s| s.read = "infllm:local=4096,init=0,block=4".into());
        prop_assert_eq!(read.said(), full);
    }

    /// Rows that go to the host and come back as copies are the rows they were.
    #[test]
    fn a_memory_that_is_read_whole_is_none(case in cases(), block_size in 1..=5u32, local in 1..=24u32, init in 0..=2u32) {
        let case = case.with(|s| {
            s.block_size = block_size;
            if s.kv_dtype == "int8" {
                s.kv_dtype = "f16".into();
            }
        });
        let said = |block: u32| {
            let init = init * block_size;
            let read = format!("infllm:local={local},init={init},block={block},topk=200,cache=200");
            case.with(|s| s.read = read).said()
        };
        prop_assert_eq!(said(block_size), said(10_000 * block_size));
    }

    #[test]
    fn the_picture_changes_nothing_that_is_said(case in remembering()) {
        let off = case.with(|s| s.scores = ScoreLevel::Off).said();
        prop_assert_eq!(case.with(|s| s.scores = ScoreLevel::Full).said(), off);
    }
}
