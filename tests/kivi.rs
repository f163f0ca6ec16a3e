//! KIVI's pages and the attention over them against `golden/kivi.py`, which shares no code with them.

use kvista::attention::cpu::CpuAttention;
use kvista::attention::{self, Attention, HeadLane, Queries, Rotation, Scoring, Shape};
use kvista::cache::{Cache, CacheConfig, KvDtype, KvShape, Pages, RopeMode};
use kvista::quant::CodedRows;
use serde::Deserialize;

const HEAD_DIM: usize = 32;
const PROMPT: usize = 70;
const EVERY: usize = 9;

#[derive(Deserialize)]
struct Golden {
    k_times_1024: Vec<Vec<i32>>,
    v_times_1024: Vec<Vec<i32>>,
    query: Vec<f32>,
    runs: std::collections::BTreeMap<u8, Run>,
}

#[derive(Deserialize)]
struct Run {
    /// After the prompt and after every token: keys and values in codes.
    coded: Vec<[usize; 2]>,
    /// What every ninth row is read as.
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
    out: Vec<f64>,
}

fn pages(cache: &Cache) -> [(usize, Vec<CodedRows<'_>>); 2] {
    let (k, v) = cache.pages(0, 0, 0);
    [k, v].map(|pages| {
        let Pages::Coded(list) = pages else { panic!("pages in codes") };
        (list.in_codes(), (0..list.len()).map(|i| list.page(i)).collect())
    })
}

fn check_rows(pages: &[CodedRows<'_>], golden: &[Vec<f32>], what: &str) {
    for (row, want) in golden.iter().enumerate() {
        let at = row * EVERY;
        let mut got = [0.0; HEAD_DIM];
        pages[at / 32].cut(at % 32, at % 32 + 1).decode(&mut got);
        assert_eq!(got[..], want[..], "{what} of token {at}");
    }
}

#[test]
fn pages_and_attention_are_those_of_the_reference() {
    let golden: Golden = serde_json::from_str(include_str!("golden/kivi.json")).unwrap();
    let rows = |ints: &[Vec<i32>]| ints.iter().flatten().map(|&x| x as f32 / 1024.0).collect::<Vec<f32>>();
    let (k, v) = (rows(&golden.k_times_1024), rows(&golden.v_times_1024));
    for (&bits, run) in &golden.runs {
        let mut cache = Cache::new(CacheConfig {
            shape: KvShape { layers: 1, kv_heads: 1, head_dim: HEAD_DIM },
            block_size: 32,
            blocks: 0,
            dtype: KvDtype::Kivi { bits, residual: 32 },
            rope: RopeMode::Post,
            host_v_from_layer: None,
            far_blocks: false,
            salt: [0; 32],
        })
        .unwrap();
        cache.add(0);
        let mut told = Vec::new();
        let tokens = k.len() / HEAD_DIM;
        for (first, n) in std::iter::once((0, PROMPT)).chain((PROMPT..tokens).map(|t| (t, 1))) {
            let of = |all: &[f32]| all[first * HEAD_DIM..(first + n) * HEAD_DIM].to_vec();
            cache.reserve(0, first as u32, n).unwrap();
            cache.write(0, 0, first as u32, &of(&k), &of(&v)).unwrap();
            cache.quantise(0, 0).unwrap();
            cache.take_ops(0);
            told.push(pages(&cache).map(|(coded, _)| coded));
        }
        assert_eq!(told, run.coded, "{bits} bits");

        let [(_, keys), (_, values)] = pages(&cache);
        check_rows(&keys, &run.k, "keys");
        check_rows(&values, &run.v, "values");

        let slots: Vec<u32> = (0..tokens as u32).collect();
        let lanes = [HeadLane {
            slots: &slots,
            block_size: 32,
            k: attention::Pages::Coded(&keys),
            v: attention::Pages::Coded(&values),
            rotation: Rotation::None,
            scoring: Scoring::default(),
        }];
        let mut attention = CpuAttention::new(Shape::new(1, 1, HEAD_DIM).unwrap());
        attention.scores(Queries { rows: &golden.query, first: tokens as u32 - 1 }, &lanes);
        let mut out = [0.0; HEAD_DIM];
        attention.weighted_sum(&lanes, &mut out);
        for (got, want) in out.iter().zip(&run.out) {
            assert!((f64::from(*got) - want).abs() < 1e-4, "{bits} bits: {got} {want}");
        }
    }
}
