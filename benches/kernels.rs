//! How fast decode reads pages, on a GPU; `.ci/gpu` runs it. Launches and scenes are those of the kernels' tests.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is how a measurement fails, also in what the tests share")]
#![allow(dead_code, reason = "the tests use the rest of the rooms that both share")]

#[path = "../tests/cuda/gpu.rs"]
mod gpu;
#[path = "../tests/cuda/host.rs"]
mod host;
#[path = "../tests/cuda/scene.rs"]
mod scene;

use std::time::Instant;

use gpu::{Memory, Module, is_wanted, synchronise};
use host::{Arg, NULL};
use scene::{ALL_POSITIONS, Cell, NO_CAP, SPLIT};

/// Launches timed together; the best of some such batches is told.
const LAUNCHES: u32 = 20;
const BATCHES: u32 = 5;

fn seconds(launch: impl Fn()) -> f64 {
    let batch = || {
        let start = Instant::now();
        (0..LAUNCHES).for_each(|_| launch());
        synchronise();
        start.elapsed().as_secs_f64() / f64::from(LAUNCHES)
    };
    batch();
    (0..BATCHES).map(|_| batch()).fold(f64::INFINITY, f64::min)
}

/// K and V of `kv_heads` heads of 128 elements in blocks of 32, contexts as given; bytes read over time, beside a copy
/// within the device's memory (which reads and writes).
fn main() {
    if !is_wanted() {
        return println!("nothing measured: KVISTA_GPU is not set; .ci/gpu runs this where there is a GPU");
    }
    const D: usize = 128;
    const BLOCK: usize = 32;
    let bytes = 1usize << 30;
    let (from, to) = (Memory::new(bytes), Memory::new(bytes));
    let copy = seconds(|| to.copy(&from, bytes));
    println!("copy: {:.0} GB/s read and written", 2.0 * bytes as f64 / copy / 1e9);
    let combine = Module::load("combine");
    for (cell, file) in [
        (Cell::F16, "decode_exact"),
        (Cell::Bf16, "decode_exact"),
        (Cell::Int8, "decode_codes"),
        (Cell::Int4, "decode_codes"),
        (Cell::Int2, "decode_codes"),
    ] {
        let module = Module::load(file);
        for (kv_heads, group) in [(32usize, 1usize), (8, 4), (8, 8)] {
            for (sequences, slots) in [(1usize, 4096usize), (1, 32_768), (16, 8192)] {
                let (heads, blocks, splits) = (kv_heads * group, slots / BLOCK, slots / SPLIT);
                let slab_bytes = sequences * slots * kv_heads * cell.row_bytes(D);
                // Zeros: what is computed does not matter, what is read does.
                let zeros = vec![0u8; slab_bytes.max(sequences * heads * D * 4)];
                let filled = |bytes: usize| {
                    let memory = Memory::new(bytes);
                    memory.write(&zeros[..bytes]);
                    memory
                };
                let of_words = |words: Vec<u32>| {
                    let memory = Memory::new(4 * words.len());
                    memory.write(&words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<_>>());
                    memory
                };
                let (k, v) = (filled(slab_bytes), filled(slab_bytes));
                let queries = filled(sequences * heads * D * 4);
                let rows = sequences * heads;
                let (partial, max_sum) = (Memory::new(rows * splits * D * 4), Memory::new(rows * splits * 8));
                let (out, totals) = (Memory::new(rows * D * 4), Memory::new(rows * 8));
                let scores = Memory::new(rows * slots * 4);
                // Gangs in an order that no prefetcher likes: a stride that is coprime with their number.
                let gangs = (sequences * blocks) as u32;
                let tables = of_words((0..gangs).map(|i| (i * 7919) % gangs * kv_heads as u32).collect());
                let positions = of_words((0..(sequences * slots) as u32).map(|i| i % slots as u32).collect());
                let lane = |i: usize| {
                    let (sequence, head) = (i / kv_heads, i % kv_heads);
                    let coded = if cell.is_kivi() { slots } else { 0 };
                    [sequence * blocks, sequence * slots, slots, head, coded, coded, slots, 0]
                        .map(|x| x as u32)
                };
                let lanes = of_words((0..sequences * kv_heads).flat_map(lane).collect());
                let name = format!("decode_{}_d128_g{group}", cell.name());
                let run = |scores: Arg| {
                    let mut args = vec![
                        partial.arg(),
                        max_sum.arg(),
                        scores,
                        NULL,
                        NULL,
                        queries.arg(),
                        k.arg(),
                        v.arg(),
                    ];
                    args.extend([NULL, NULL, tables.arg(), positions.arg(), lanes.arg()]);
                    args.extend([heads, kv_heads, D, BLOCK, splits, slots, blocks, 0].map(Arg::from));
                    args.extend([Arg::from(0.088f32), ALL_POSITIONS.into(), NO_CAP.into()]);
                    module.launch(&name, [splits, kv_heads, sequences], 128, &args);
                    let mut args = vec![out.arg(), totals.arg(), partial.arg(), max_sum.arg(), lanes.arg()];
                    args.extend([heads, kv_heads, D, splits].map(Arg::from));
                    combine.launch("decode_combine", [heads, sequences, 1], 256, &args);
                };
                let (plain, observed) = (seconds(|| run(NULL)), seconds(|| run(scores.arg())));
                println!(
                    "{name}: {sequences} x {slots} slots, {kv_heads} KV heads: {:.1} us, {:.0} GB/s; every score written: {:.1} us",
                    plain * 1e6,
                    2.0 * slab_bytes as f64 / plain / 1e9,
                    observed * 1e6
                );
            }
        }
    }
}
