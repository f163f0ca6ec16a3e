//! Runs under Quest: what is read, what it is held against, and the bounds it goes by.

use proptest::prelude::*;
use proptest::sample::select;

use super::{Case, cases, wild_cases};
use crate::attention::PageBounds;
use crate::cache::KvDtype;
use crate::engine::Engine;
use crate::engine::lanes::{Lanes, Reading};
use crate::event::{Layer, LayerReads, ScoreLevel, SeqId, Stage, Step};
use crate::policy::Quest;

pub(super) fn quests() -> impl Strategy<Value = String> {
    (1..=40u32, 1..=40u32, 0..=2u32, 0..=3u32).prop_map(|(budget, page, dense, min)| {
        format!("quest:budget={budget},page={page},dense={dense},min={min}")
    })
}

/// Whether a policy rotates keys at read, which Quest and KIVI's pages refuse.
pub(super) fn keeps_keys_unrotated(policy: &str) -> bool {
    crate::policy::parse_policy(policy).unwrap().rope() == crate::policy::Rope::Pre
}

/// Pages, bytes and mass of a step under Quest.
pub(super) fn check(engine: &Engine, step: &Step, quest: Quest, evicts: bool) {
    assert!(step.traffic.is_empty(), "nothing moves");
    let config = engine.model.decoder.config();
    let group = (config.heads / config.kv_heads) as u64;
    let decodes: Vec<_> =
        step.seqs.iter().filter(|s| s.stage == Stage::Decode && !s.fed.is_empty()).collect();
    let layers: Vec<Layer> =
        (0..config.layers as Layer).filter(|&layer| !quest.is_dense(layer) && !decodes.is_empty()).collect();
    assert_eq!(step.reads.iter().map(|r| r.layer).collect::<Vec<_>>(), layers);
    let most = quest.pages() as u64 + 1;
    for r in &step.reads {
        assert!(r.read <= r.pages && r.read <= r.asked && r.asked <= r.read * group);
        assert!(r.asked <= most * (decodes.len() * config.heads) as u64);
        assert!(r.read_bytes <= r.dense_bytes && (r.read < r.pages || r.read_bytes == r.dense_bytes));
        assert_eq!(r.index_bytes, r.pages * 2 * config.head_dim as u64 * 4);
        assert!(r.top_read <= r.top);
        assert_eq!(r.top > 0, engine.picture_level() != ScoreLevel::Off);
    }
    // Once the step is over nothing but a decision or codes changes the bytes.
    let settled = !matches!(engine.cache.config().dtype, KvDtype::Kivi { .. }) && step.victims() == 0;
    // Of two sequences one may have ended, and its pages are still there.
    if settled && engine.sequences.len() == 1 && decodes.len() == 1 && layers.len() == config.layers {
        let dense: u64 = step.reads.iter().map(|r| r.dense_bytes).sum();
        assert_eq!(dense, step.tiers[0].live_bytes);
    }
    for part in decodes {
        if engine.picture_level() == ScoreLevel::Off {
            assert!(part.dropped.is_empty(), "nobody scored what was not read");
            continue;
        }
        assert_eq!(part.dropped.len(), config.layers * config.kv_heads);
        for (l, &mass) in part.dropped.iter().enumerate() {
            assert!((0.0..=1.0).contains(&mass), "{mass}");
            let dense = quest.is_dense((l / config.kv_heads) as Layer);
            let reads_all =
                !evicts && most * u64::from(quest.page) > u64::from(part.first) + u64::from(quest.page);
            assert!(!(dense || reads_all) || mass == 0.0, "{mass} of a lane that is read whole");
        }
    }
}

/// Bounds kept up to date step by step are those of the pages as they lie, whatever was lost, moved or put into codes.
fn check_bounds(engine: &Engine, kept: &mut [Vec<PageBounds>], page: usize) {
    let config = engine.model.decoder.config();
    let d = config.head_dim;
    for (seq, kept) in kept.iter_mut().enumerate() {
        for layer in 0..config.layers {
            let pages = Lanes::of(&engine.cache, seq as SeqId, layer as Layer);
            for (h, lane) in pages.resident(Reading::PLAIN).iter().enumerate() {
                let kept = &mut kept[layer * config.kv_heads + h];
                kept.follow(lane, page, d);
                let mut anew = PageBounds::default();
                anew.follow(lane, page, d);
                assert_eq!((kept.pages(), kept.bytes()), (anew.pages(), anew.bytes()));
                for p in (0..anew.pages()).filter(|&p| anew.is_live(p)) {
                    for c in 0..2 * d {
                        let mut unit = vec![0.0; d];
                        unit[c / 2] = if c % 2 == 0 { 1.0 } else { -1.0 };
                        let (kept, anew) = (kept.upper(p, &unit), anew.upper(p, &unit));
                        // A row lost since it was bounded may leave its page's bounds wider, never narrower.
                        assert_eq!(kept.to_bits(), anew.to_bits(), "page {p}, channel {}", c / 2);
                    }
                }
            }
        }
    }
}

fn totals(case: &Case) -> LayerReads {
    let mut sum = LayerReads::default();
    case.run(|_, step| step.reads.iter().for_each(|r| sum.add(r)));
    sum
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bounds_follow_the_pages(case in wild_cases(), page in 1..=40usize) {
        let mut case = case;
        case.settings.read = String::new();
        // Whoever changes keys where they lie makes the bounds anew: the engine's own are looked at below.
        case.settings.merge = String::new();
        if keeps_keys_unrotated(&case.settings.policy) {
            case.settings.policy = "full".into();
        }
        let lanes = case.config.layers * case.config.kv_heads;
        let mut kept = vec![vec![PageBounds::default(); lanes]; case.settings.batch as usize];
        case.run(|engine, _| check_bounds(engine, &mut kept, page));
    }

    #[test]
    fn bounds_hold_where_a_merge_changes_keys(
        case in cases(),
        page in 1..=20u32,
        merge in select(vec!["d2o", "minicache:from=0"]),
    ) {
        let mut case = case;
        case.config.layers = case.config.layers.max(2);
        let case = case.with(|s| {
            s.policy = "h2o:budget=30%".into();
            s.merge = merge.into();
            s.read = format!("quest:budget=8,page={page},dense=0");
        });
        case.run(|engine, _| {
            let mut own: Vec<_> = engine.sequences.iter().map(|sequence| sequence.bounds.clone()).collect();
            check_bounds(engine, &mut own, page as usize);
        });
    }

    #[test]
    fn a_smaller_budget_reads_no_more(case in cases(), page in 1..=20u32, budget in 1..=60u32) {
        let quest = |budget: u32| {
            let forced = case.with(|s| s.read = format!("quest:budget={budget},page={page},dense=0,min=0"));
            totals(&forced)
        };
        let (less, more) = (quest(budget), quest(budget + page));
        prop_assert!(less.asked <= more.asked);
        prop_assert_eq!(less.dense_bytes, more.dense_bytes);
        prop_assert_eq!(less.pages, more.pages);
    }
}
