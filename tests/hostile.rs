//! Every parser on damaged input: no panic, no memory without bound, no input that it never comes back from.
//!
//! The drivers are those of the fuzzers (`fuzz/`); here they run on a fixed number of seeded mutations of good inputs,
//! so that the same build always tries the same bytes. `KVISTA_HOSTILE_ROUNDS=100` tries a hundred times as many.

// The allocator below counts; it hands every request on unchanged.
#![allow(unsafe_code)]

#[path = "../fuzz/src/lib.rs"]
mod drivers;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::mpsc;
use std::time::Duration;

use drivers::{Parser, parser};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Most that one input may make a parser hold, beyond the input's own size.
const MAX_HELD_BYTES: isize = 256 << 20;
/// An input that takes as long as this is taken for one that never ends.
const PATIENCE: Duration = Duration::from_secs(60);

thread_local! {
    static HELD_BYTES: Cell<isize> = const { Cell::new(0) };
    static MOST_HELD_BYTES: Cell<isize> = const { Cell::new(0) };
}

/// Counts what the present thread holds.
struct Counting;

impl Counting {
    fn add(bytes: isize) {
        let held = HELD_BYTES.get() + bytes;
        HELD_BYTES.set(held);
        MOST_HELD_BYTES.set(MOST_HELD_BYTES.get().max(held));
    }
}

// SAFETY: every call goes to the system's allocator with the arguments it came with; the counters are thread-local
// cells without destructors, so they allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size() as isize);
        // SAFETY: the caller's own promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size() as isize);
        // SAFETY: the caller's own promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::add(size as isize - layout.size() as isize);
        // SAFETY: the caller's own promises.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        Self::add(-(layout.size() as isize));
        // SAFETY: the caller's own promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Keeps an input whose driver panics, and says where.
struct Witness<'a> {
    parser: &'static str,
    round: usize,
    input: &'a [u8],
}

impl Witness<'_> {
    fn testify(&self) {
        let path = format!("{}/hostile-{}-{}", env!("CARGO_TARGET_TMPDIR"), self.parser, self.round);
        let kept = std::fs::write(&path, self.input).map_or_else(|e| e.to_string(), |()| path);
        eprintln!("{}, round {}, input of {} bytes: {kept}", self.parser, self.round, self.input.len());
    }
}

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.testify();
        }
    }
}

fn survives(name: &str) {
    let parser = parser(name);
    let seeds = (parser.seeds)();
    assert!(!seeds.is_empty());
    let (alive, heartbeat) = mpsc::channel::<()>();
    // A parser that hangs cannot be stopped, so the whole test program ends, with its name.
    std::thread::spawn(move || {
        loop {
            match heartbeat.recv_timeout(PATIENCE) {
                Ok(()) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    eprintln!("{}: an input has taken {} s", parser.name, PATIENCE.as_secs());
                    std::process::exit(1);
                }
            }
        }
    });
    for (i, seed) in seeds.iter().enumerate() {
        assert!(try_one(parser, i, seed), "{}: seed {i} is refused", parser.name);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let rounds = parser.rounds * rounds_factor();
    let mut taken = 0;
    for round in 0..rounds {
        taken += usize::from(try_one(parser, round, &mutated(&mut rng, &seeds)));
        alive.send(()).expect("the watch ends after this");
    }
    println!("{}: {taken} of {rounds} mutated inputs were taken", parser.name);
}

fn rounds_factor() -> usize {
    std::env::var("KVISTA_HOSTILE_ROUNDS").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

fn try_one(parser: &Parser, round: usize, input: &[u8]) -> bool {
    let witness = Witness { parser: parser.name, round, input };
    let before = HELD_BYTES.get();
    MOST_HELD_BYTES.set(before);
    let taken = (parser.drive)(input);
    let held = MOST_HELD_BYTES.get() - before - input.len() as isize;
    assert!(held <= MAX_HELD_BYTES, "{}: {held} bytes held", parser.name);
    drop(witness);
    taken
}

/// A seed after one to four of: a flipped bit, an odd byte, an overwritten number, a cut, a piece removed, repeated or
/// taken from another seed.
fn mutated(rng: &mut ChaCha8Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds.choose(rng).expect("there are seeds").clone();
    for _ in 0..*[1, 1, 1, 2, 4].choose(rng).unwrap_or(&1) {
        let other = seeds.choose(rng).expect("there are seeds");
        mutate(rng, &mut bytes, other);
    }
    bytes
}

fn mutate(rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = rng.random_range(0..=bytes.len());
    let end = (at + rng.random_range(0..64)).min(bytes.len());
    match rng.random_range(0..9) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
        1 if at < bytes.len() => {
            bytes[at] = *[0, 1, 0x7f, 0x80, 0xff, b'"', b'-', rng.random()].choose(rng).unwrap_or(&0);
        }
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..end)),
        4 => {
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        5 => {
            let from = rng.random_range(0..=other.len());
            let to = (from + rng.random_range(0..256)).min(other.len());
            bytes.splice(at..end, other[from..to].iter().copied());
        }
        6 => {
            let number = odd_number(rng);
            let size = *[1, 2, 4, 8].choose(rng).unwrap_or(&8);
            let room = &mut bytes[at..];
            let size = size.min(room.len());
            room[..size].copy_from_slice(&number.to_le_bytes()[..size]);
        }
        7 => replace_digits(rng, bytes, at),
        _ => {
            let inserted: Vec<u8> = (0..rng.random_range(1..9)).map(|_| rng.random()).collect();
            bytes.splice(at..at, inserted);
        }
    }
}

/// Numbers at the edges of what lengths, ids and indices can be.
fn odd_number(rng: &mut ChaCha8Rng) -> u64 {
    let edge = 1u64 << rng.random_range(0..64);
    *[0, edge - 1, edge, edge + 1, u64::MAX, rng.random_range(0..300), rng.random()].choose(rng).unwrap_or(&0)
}

/// Writes another number over the first digits from `at` on.
fn replace_digits(rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>, at: usize) {
    let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit).map(|i| at + i) else { return };
    let end = bytes[start..].iter().position(|b| !b.is_ascii_digit()).map_or(bytes.len(), |i| start + i);
    let number = match rng.random_range(0..6) {
        0 => "1e999".to_owned(),
        1 => format!("-{}", odd_number(rng)),
        2 => format!("{}.5", odd_number(rng)),
        _ => odd_number(rng).to_string(),
    };
    bytes.splice(start..end, number.into_bytes());
}

macro_rules! parsers {
    ($($name:ident)*) => {
        $(#[test] fn $name() { survives(stringify!($name)); })*

        #[test]
        fn every_parser_has_a_test() {
            assert_eq!(drivers::PARSERS.map(|parser| parser.name), [$(stringify!($name)),*]);
        }
    };
}

parsers! {
    recording messages repair views evict attention latency keyframe model_config weights gguf shards tokenizer word_list theme config
    policy read_set filter chord score_level prompt token_text
}

#[test]
#[should_panic(expected = "bytes held")]
fn what_holds_too_much_is_found() {
    let greedy = Parser {
        name: "greedy",
        seeds: Vec::new,
        drive: |_| std::hint::black_box(Vec::<u8>::with_capacity(MAX_HELD_BYTES as usize + 1)).is_empty(),
        rounds: 0,
    };
    try_one(&greedy, 0, b"");
}
