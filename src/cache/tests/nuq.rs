//! Pages in non-uniform codes: what lies there stays as it is, and every byte is counted.

use proptest::prelude::*;

use super::*;
use crate::quant::{OUTLIER_BYTES, StoredRows};

const D: usize = 16;
const HEADS: usize = 2;

#[derive(Clone, Debug)]
struct Act {
    append: usize,
    /// Of the positions of each head; `None` for a decision of the gang by the first.
    victims: [u64; HEADS],
    gang: bool,
    evict: bool,
    compact: bool,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = (prop_oneof![3 => 1..4usize, 1 => 1..30usize], any::<[u64; HEADS]>(), any::<[bool; 3]>());
    let act = act.prop_map(|(append, victims, [gang, evict, compact])| Act {
        append,
        // A quarter of them.
        victims: victims.map(|bits| bits & bits.rotate_left(17)),
        gang,
        evict,
        compact,
    });
    prop::collection::vec(act, 1..30)
}

struct Run {
    cache: Cache,
    nuq: Nuq,
    next: Position,
    /// K and V of every resident as they were first read, exact or in codes, by head and position.
    read: [BTreeMap<Position, [Vec<f32>; 2]>; HEADS],
    /// What was written, by position: K and V of both heads.
    written: Vec<[Vec<f32>; 2]>,
    rng: u64,
}

impl Run {
    fn new(dtype: &str, block_size: u32, host: bool) -> Self {
        let dtype = dtype.parse().unwrap();
        let KvDtype::Nuq(nuq) = dtype else { panic!("non-uniform codes") };
        let mut cache = Cache::new(CacheConfig {
            shape: KvShape { layers: 1, kv_heads: HEADS as Head, head_dim: D },
            block_size,
            dtype,
            rope: RopeMode::Pre,
            host_v_from_layer: host.then_some(0),
            ..config()
        })
        .unwrap();
        cache.add(0);
        Self { cache, nuq, next: 0, read: Default::default(), written: Vec::new(), rng: 1 }
    }

    fn value(&mut self) -> f32 {
        self.rng = self.rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = (self.rng >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
        if (self.rng >> 33).is_multiple_of(50) { x * 40.0 } else { x }
    }

    fn is_calibrated(&self) -> bool {
        self.cache.sequences[&0].calibration.as_ref().unwrap().is_done(0)
    }

    fn append(&mut self, n: usize) {
        let before = self.is_calibrated();
        let (mut k, mut v) = (Vec::new(), Vec::new());
        for _ in 0..n {
            let rows = [(); 2].map(|()| (0..HEADS * D).map(|_| self.value()).collect::<Vec<f32>>());
            k.extend_from_slice(&rows[0]);
            v.extend_from_slice(&rows[1]);
            self.written.push(rows);
        }
        self.cache.reserve(0, self.next, n).unwrap();
        self.cache.write(0, 0, self.next, &k, &v).unwrap();
        let fresh = self.next..self.next + n as Position;
        self.next += n as Position;
        self.read_new(fresh.clone());
        if !before {
            for position in fresh {
                for (head, read) in self.read.iter().enumerate() {
                    let own = |part: usize| &self.written[position as usize][part][head * D..][..D];
                    assert_eq!(read[&position], [0, 1].map(|part| own(part).to_vec()), "exact at first");
                }
            }
        }
        self.check();
        self.cache.quantise(0, 0).unwrap();
        assert_eq!(self.is_calibrated(), self.next >= self.nuq.calibrate);
        if !before && self.is_calibrated() {
            let exact = self.read.clone();
            self.read = Default::default();
            self.read_new(self.nuq.first..self.next);
            for (now, exact) in self.read.iter_mut().zip(exact) {
                assert!(
                    exact.iter().filter(|(p, _)| **p >= self.nuq.first).all(|(p, _)| now.contains_key(p))
                );
                now.extend(exact.into_iter().filter(|(p, _)| *p < self.nuq.first));
            }
        }
        self.check();
        self.cache.take_ops(0);
    }

    fn read_new(&mut self, positions: std::ops::Range<Position>) {
        for (head, read) in self.read.iter_mut().enumerate() {
            let (k, v) = self.cache.pages(0, 0, head as Head);
            for position in positions.clone() {
                if let Some(slot) = self.cache.table(0, 0).slot_of(head as Head, position) {
                    read.insert(position, [row(k, slot), row(v, slot)]);
                }
            }
        }
    }

    fn lose(&mut self, act: &Act) {
        if act.evict {
            let chosen = |head: usize, bits: u64| -> Vec<Position> {
                let live = self.read[head].keys().enumerate();
                live.filter(|(i, _)| bits >> (i % 64) & 1 == 1).map(|(_, &p)| p).collect()
            };
            let mut sets = [0, 1].map(|head| chosen(head, act.victims[head]));
            if act.gang {
                sets[0].retain(|p| self.read[1].contains_key(p));
                sets[1] = sets[0].clone();
                self.cache.evict(0, 0, &Victims::All(&sets[0])).unwrap();
            } else {
                self.cache.evict(0, 0, &Victims::PerHead(&[&sets[0], &sets[1]])).unwrap();
            }
            for (read, set) in self.read.iter_mut().zip(&sets) {
                read.retain(|p, _| !set.contains(p));
            }
            self.check();
        }
        if act.compact {
            self.cache.compact(0, 0).unwrap();
            self.check();
        }
        self.cache.take_ops(0);
    }

    /// Whole lanes, copied as they are stored, read the same.
    fn check_copies(&self) {
        for head in 0..HEADS as Head {
            let Pages::Coded(values) = self.cache.pages(0, 0, head).1 else { panic!("pages in codes") };
            let mut copies = StoredRows::default();
            (0..values.len()).for_each(|i| copies.push(values.page(i)));
            let Some(rows) = copies.rows() else { continue };
            for (&position, [_, value]) in &self.read[usize::from(head)] {
                let slot = self.cache.table(0, 0).slot_of(head, position).unwrap();
                let mut copied = [0.0; D];
                rows.cut(slot, slot + 1).decode(&mut copied);
                assert_eq!(copied[..], value[..], "head {head} position {position}");
            }
            assert_eq!(copies.bytes(), rows.bytes());
        }
    }

    fn check(&self) {
        self.check_copies();
        let mut live = [0u64; 2];
        for (head, read) in self.read.iter().enumerate() {
            let (k, v) = self.cache.pages(0, 0, head as Head);
            let table = self.cache.table(0, 0);
            assert!(table.resident_ranges(head as Head).flatten().eq(read.keys().copied()));
            for (&position, rows) in read {
                let slot = table.slot_of(head as Head, position).unwrap();
                assert_eq!([row(k, slot), row(v, slot)], *rows, "head {head} position {position}");
                for (part, pages) in [(0, k), (1, v)] {
                    let Pages::Coded(list) = pages else { panic!("pages in codes") };
                    live[part] += list.row(slot).bytes() as u64;
                }
            }
        }
        assert_eq!(live[1], (0..HEADS as Head).map(|h| self.cache.live_value_bytes(0, 0, h)).sum::<u64>());
        let usage = self.cache.usage();
        let told = usage.map(|t| t.live_bytes);
        let host = self.cache.config.v_on_host(0);
        assert_eq!(told, if host { live } else { [live[0] + live[1], 0] });
        assert_eq!(usage.map(|t| t.allocated_bytes()), self.cache.held_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_stay_as_they_were_coded_and_bytes_are_those_held(
        acts in acts(),
        dtype in prop::sample::select(vec![
            "nuq4:calibrate=33",
            "nuq3:outliers=0,first=0,calibrate=40",
            "nuq2:outliers=0.2,first=9,calibrate=41",
        ]),
        block_size in prop::sample::select(vec![1u32, 4, 16]),
        host in any::<bool>(),
    ) {
        let mut run = Run::new(dtype, block_size, host);
        for act in &acts {
            run.append(act.append);
            run.lose(act);
        }
        run.cache.remove(0);
        prop_assert_eq!(run.cache.held_bytes(), [0, 0]);
        prop_assert_eq!(run.cache.usage().map(|t| t.allocated_bytes()), [0, 0]);
        for home in [Home::Device, Home::Host] {
            prop_assert_eq!(run.cache.pool.count(home), Count::default());
        }
    }
}

#[test]
fn a_row_takes_its_codes_and_four_bytes_an_outlier() {
    let mut run = Run::new("nuq3:outliers=0.1,calibrate=200", 16, false);
    run.append(230);
    let (k, v) = run.cache.pages(0, 0, 0);
    let [Pages::Coded(k), Pages::Coded(v)] = [k, v] else { panic!("pages in codes") };
    assert_eq!((k.in_codes(), v.in_codes()), (229, 229));
    // The first token: 16 f32.
    assert_eq!((k.row(0).bytes(), v.row(0).bytes()), (64, 64));
    assert_eq!(run.read[0][&0][0], run.written[0][0][..D]);
    // 16 codes of 3 bits and the number of outliers; of a value two thresholds as well.
    let share = |part: usize, dense: usize| {
        let list = [k, v][part];
        let outliers: usize = (1..200).map(|slot| (list.row(slot).bytes() - dense) / OUTLIER_BYTES).sum();
        assert!((1..200).all(|slot| (list.row(slot).bytes() - dense).is_multiple_of(OUTLIER_BYTES)));
        outliers as f64 / (199 * D) as f64
    };
    let shares = [share(0, 6 + 2), share(1, 6 + 2 + 4)];
    // Of 199 values ten lie beyond the percentile on each side; of a token's 32 two, of both heads together.
    assert!((shares[0] - 0.1).abs() < 0.002, "{shares:?}");
    assert!((shares[1] - 4.0 / 32.0).abs() < 0.02, "{shares:?}");
    let told = run.cache.take_coding();
    assert_eq!((told[0].k.rows, told[0].v.rows, told[0].recoded_rows), (458, 458, 0));
    assert_eq!(told[0].k_channels.len(), HEADS * D);
}

#[test]
fn a_short_prompt_calibrates_where_it_ends_but_not_on_next_to_nothing() {
    let mut run = Run::new("nuq4", 16, false);
    run.append(10);
    run.cache.reserve(0, 10, 0).unwrap();
    run.cache.end_calibration(0);
    run.nuq.calibrate = 1 + Nuq::LEAST_TOKENS;
    run.append(22);
    assert!(!run.is_calibrated());
    run.append(1);
    assert!(run.is_calibrated());
    let mut run = Run::new("nuq4", 16, false);
    run.append(100);
    assert!(!run.is_calibrated());
    run.cache.end_calibration(0);
    run.nuq.calibrate = 100;
    run.append(1);
    assert!(run.is_calibrated());
}

#[test]
fn sequences_calibrate_for_themselves() {
    let mut run = Run::new("nuq4:calibrate=33", 4, false);
    run.append(40);
    run.cache.add(1);
    run.cache.reserve(1, 0, 40).unwrap();
    let twice = |part: usize| run.written.iter().flat_map(|w| &w[part]).map(|x| 2.0 * x).collect::<Vec<_>>();
    let (k, v) = (twice(0), twice(1));
    run.cache.write(1, 0, 0, &k, &v).unwrap();
    run.cache.quantise(1, 0).unwrap();
    let (k, v) = run.cache.pages(1, 0, 1);
    for (position, [key, value]) in &run.read[1] {
        let doubled = |row: &[f32]| row.iter().map(|x| 2.0 * x).collect::<Vec<_>>();
        assert_eq!(row(k, *position as usize), doubled(key));
        assert_eq!(row(v, *position as usize), doubled(value));
    }
}

#[test]
fn what_is_spelled_is_printed_and_what_is_wrong_refused_in_one_line() {
    for (text, canonical) in [
        ("nuq4", "nuq4"),
        ("nuq3:outliers=0.01,first=1,calibrate=2048", "nuq3"),
        ("nuq2:calibrate=128,outliers=0.005", "nuq2:outliers=0.005,calibrate=128"),
        ("nuq4:outliers=0,first=0", "nuq4:outliers=0,first=0"),
        ("nuq4:outliers=0.000001", "nuq4:outliers=0.000001"),
    ] {
        let dtype: KvDtype = text.parse().unwrap();
        assert_eq!(dtype.to_string(), canonical);
        assert_eq!(canonical.parse(), Ok(dtype));
        dtype.check(16, 64).unwrap();
        dtype.check(1, 8).unwrap();
    }
    let error = "nuq3".parse::<KvDtype>().unwrap().check(16, 12).unwrap_err().to_string();
    assert!(error.contains("nuq3") && error.contains("12") && error.contains('8'), "{error}");
    for (text, hint) in [
        ("nuq4:outliers=0.3", "outliers=0.3"),
        ("nuq4:outliers=-0.1", "outliers=0..0.2"),
        ("nuq4:outliers=NaN", "outliers=NaN"),
        ("nuq4:first=2000", "first=0..1024"),
        ("nuq4:calibrate=31", "calibrate=32"),
        ("nuq4:first=100,calibrate=110", "32"),
        ("nuq4:residual=32", "residual=32"),
        ("nuq4:", "outliers"),
        ("nuq5", "nuq4, nuq3 or nuq2"),
    ] {
        let error = text.parse::<KvDtype>().unwrap_err();
        assert!(error.contains(hint) && !error.contains('\n'), "{text}: {error}");
    }
}
