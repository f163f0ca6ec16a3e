//! How fast decode reads pages, on a GPU; `.ci/gpu` runs it, and what it prints is a table for `kernels/RESULTS.md`.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is how a measurement fails, also in what the tests share")]
#![allow(dead_code, reason = "the tests use the rest of the rooms that both share")]

#[path = "../tests/cuda/gpu.rs"]
mod gpu;
#[path = "../tests/cuda/host.rs"]
mod host;
#[path = "../tests/cuda/measured.rs"]
mod measured;
#[path = "../tests/cuda/scene.rs"]
mod scene;

use gpu::{Event, Memory, is_wanted, synchronise};
use measured::{Files, Observed, Shape, Step};
use scene::Cell;

/// Times of which the median is told.
const RUNS: usize = 21;
/// Bytes of K and V that a step reads at least. More than the 256 MiB that outweigh any cache, so that what it takes to
/// start some kernels is little beside it.
const LEAST_BYTES: usize = 512 << 20;
/// Bytes that are written elsewhere before each.
const FLUSHED_BYTES: usize = 256 << 20;
/// Bytes of the copy that it is compared with, from one place to another.
const COPIED_BYTES: usize = 1 << 30;
const CONTEXTS: [usize; 4] = [2 << 10, 8 << 10, 32 << 10, 128 << 10];

/// Seconds on the device's own clock from before `work` to after it, in the middle of [`RUNS`]; before each of them
/// something else. Nothing waits in between, so that the device never does.
fn seconds(before: impl Fn(), work: impl Fn()) -> f64 {
    let runs: Vec<[Event; 2]> = (0..RUNS)
        .map(|_| {
            let events = [Event::new(), Event::new()];
            before();
            events[0].record();
            work();
            events[1].record();
            events
        })
        .collect();
    synchronise();
    let mut times: Vec<f64> = runs.iter().map(|[start, end]| end.seconds_since(start)).collect();
    times.sort_by(f64::total_cmp);
    times[RUNS / 2]
}

/// K and V of heads of 128 elements in blocks of 32, contexts as given; bytes read over time, as a share of what a copy
/// within the device's memory reads and writes.
fn main() {
    if !is_wanted() {
        return println!("nothing measured: KVISTA_GPU is not set; .ci/gpu runs this where there is a GPU");
    }
    let elsewhere = Memory::new(FLUSHED_BYTES);
    let flush = || elsewhere.clear(FLUSHED_BYTES);
    let copied = {
        let (from, to) = (Memory::new(COPIED_BYTES), Memory::new(COPIED_BYTES));
        from.clear(COPIED_BYTES);
        2.0 * COPIED_BYTES as f64 / seconds(flush, || to.copy(&from, COPIED_BYTES))
    };
    println!(
        "A copy within the device's memory: {:.0} GB/s read and written ({} MiB). An empty measurement: {:.1} us.",
        copied / 1e9,
        COPIED_BYTES >> 20,
        seconds(flush, || {}) * 1e6
    );
    println!(
        "Rows of 128 elements in blocks of 32 slots that lie anywhere. Medians of {RUNS}; before each, {} MiB are written \
         and as much K and V as the step reads are read, both elsewhere. Block sums, every probability: time beside that \
         of the step alone.\n",
        FLUSHED_BYTES >> 20
    );
    println!(
        "| pages | KV heads x group | context | sequences | K and V, MiB | us | GB/s | of a copy | block sums | every \
         probability |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    // The types that most runs have first: somebody may end this.
    for cell in [Cell::F16, Cell::Int8, Cell::F32, Cell::Bf16, Cell::Int4, Cell::Int2] {
        let files = Files::of(cell).unwrap();
        for (kv_heads, group) in [(8usize, 4usize), (32, 1), (8, 8)] {
            // Those two in every shape.
            if group != 4 && !matches!(cell, Cell::F16 | Cell::Int8) {
                continue;
            }
            for slots in CONTEXTS {
                let shape = Shape::of(cell, kv_heads, group, slots, LEAST_BYTES);
                let step = Step::new(shape, &files);
                step.check();
                let before = || {
                    flush();
                    step.run_elsewhere();
                };
                let [plain, sums, rows] = [Observed::Nothing, Observed::BlockSums, Observed::Rows]
                    .map(|observed| seconds(before, || step.run(observed)));
                let rate = shape.bytes() as f64 / plain;
                println!(
                    "| {} | {kv_heads} x {group} | {slots} | {} | {} | {:.1} | {:.0} | {:.1}% | {:.3} | {:.3} |",
                    cell.name(),
                    shape.sequences,
                    shape.bytes() >> 20,
                    plain * 1e6,
                    rate / 1e9,
                    100.0 * rate / copied,
                    sums / plain,
                    rows / plain
                );
            }
        }
    }
}
