//! KVQuant's pages and the attention over them against `golden/kvquant.py`, which shares no code with them.

use std::collections::BTreeMap;

use kvista::attention::cpu::CpuAttention;
use kvista::attention::{self, Attention, HeadLane, Queries, Rope, Rotation, Scoring, Shape};
use kvista::cache::{Cache, CacheConfig, KvDtype, KvShape, Nuq, Pages, RopeMode};
use kvista::quant::{CodedRows, OUTLIER_BYTES};
use serde::Deserialize;

const HEAD_DIM: usize = 16;
const HEADS: usize = 2;
const PROMPT: usize = 70;
const FIRST: u32 = 2;
const EVERY: usize = 9;
const BLOCK: usize = 16;

#[derive(Deserialize)]
struct Golden {
    k_times_1024: Vec<Vec<i32>>,
    v_times_1024: Vec<Vec<i32>>,
    query: Vec<f32>,
    runs: BTreeMap<u8, Run>,
}

#[derive(Deserialize)]
struct Run {
    /// Of keys and of values, ascending.
    codebooks: [Vec<f32>; 2],
    /// Of keys and of values, all tokens.
    outliers: [usize; 2],
    /// What every ninth row is read as, both heads.
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
    /// By head.
    out: Vec<Vec<f64>>,
}

fn pages(cache: &Cache, head: usize) -> [Vec<CodedRows<'_>>; 2] {
    let (k, v) = cache.pages(0, 0, head as u16);
    [k, v].map(|pages| {
        let Pages::Coded(list) = pages else { panic!("pages in codes") };
        (0..list.len()).map(|i| list.page(i)).collect()
    })
}

fn check_rows(pages: &[CodedRows<'_>], head: usize, golden: &[Vec<f32>], what: &str) {
    for (row, want) in golden.iter().enumerate() {
        let at = row * EVERY;
        let mut got = [0.0; HEAD_DIM];
        pages[at / BLOCK].cut(at % BLOCK, at % BLOCK + 1).decode(&mut got);
        for (got, want) in got.iter().zip(&want[head * HEAD_DIM..]) {
            // Sums of a cluster may run in another order, by a last bit of the points.
            assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{what} of token {at}: {got} {want}");
        }
    }
}

#[test]
fn pages_and_attention_are_those_of_the_reference() {
    let golden: Golden = serde_json::from_str(include_str!("golden/kvquant.json")).unwrap();
    let rows = |ints: &[Vec<i32>]| ints.iter().flatten().map(|&x| x as f32 / 1024.0).collect::<Vec<f32>>();
    let (k, v) = (rows(&golden.k_times_1024), rows(&golden.v_times_1024));
    let tokens = golden.k_times_1024.len();
    let rope = Rope::new(HEAD_DIM, 10_000.0, 128);
    for (&bits, run) in &golden.runs {
        let mut cache = Cache::new(CacheConfig {
            shape: KvShape { layers: 1, kv_heads: HEADS as u16, head_dim: HEAD_DIM },
            block_size: BLOCK as u32,
            blocks: 0,
            dtype: KvDtype::Nuq(Nuq { bits, outliers_ppm: 50_000, first: FIRST, calibrate: 60 }),
            rope: RopeMode::Pre,
            host_v_from_layer: None,
            far_blocks: false,
            salt: [0; 32],
        })
        .unwrap();
        cache.add(0);
        for (first, n) in std::iter::once((0, PROMPT)).chain((PROMPT..tokens).map(|t| (t, 1))) {
            let of = |all: &[f32]| all[first * HEADS * HEAD_DIM..(first + n) * HEADS * HEAD_DIM].to_vec();
            cache.reserve(0, first as u32, n).unwrap();
            cache.write(0, 0, first as u32, &of(&k), &of(&v)).unwrap();
            cache.quantise(0, 0).unwrap();
            cache.take_ops(0);
        }

        let heads: Vec<_> = (0..HEADS).map(|head| pages(&cache, head)).collect();
        let mut outliers = [0; 2];
        for (head, [keys, values]) in heads.iter().enumerate() {
            check_rows(keys, head, &run.k, "keys");
            check_rows(values, head, &run.v, "values");
            for (part, (pages, thresholds)) in [(keys, 0), (values, 4)].into_iter().enumerate() {
                let dense = HEAD_DIM * usize::from(bits) / 8 + 2 + thresholds;
                for slot in FIRST as usize..tokens {
                    let row = pages[slot / BLOCK].cut(slot % BLOCK, slot % BLOCK + 1);
                    outliers[part] += (row.bytes() - dense) / OUTLIER_BYTES;
                }
            }
        }
        assert_eq!(outliers, run.outliers, "{bits} bits");
        let points = cache.codebooks(0, 0).expect("calibrated");
        for (points, want) in points.iter().zip(&run.codebooks) {
            assert_eq!(points.len(), 1 << bits);
            assert!(points.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{points:?} {want:?}");
        }

        let slots: Vec<u32> = (0..tokens as u32).collect();
        let lanes: Vec<_> = heads
            .iter()
            .map(|[keys, values]| HeadLane {
                slots: &slots,
                block_size: BLOCK,
                k: attention::Pages::Coded(keys),
                v: attention::Pages::Coded(values),
                rotation: Rotation::ByPosition(&rope),
                scoring: Scoring::default(),
            })
            .collect();
        let mut attention = CpuAttention::new(Shape::new(HEADS, HEADS, HEAD_DIM).unwrap());
        attention.scores(Queries { rows: &golden.query, first: tokens as u32 - 1 }, &lanes);
        let mut out = [0.0; HEADS * HEAD_DIM];
        attention.weighted_sum(&lanes, &mut out);
        for (got, want) in out.iter().zip(run.out.iter().flatten()) {
            assert!((f64::from(*got) - want).abs() < 1e-4, "{bits} bits: {got} {want}");
        }
    }
}
