//! Pages that go into codes, against a plain reference that keeps every row by itself and rounds it by the letter.

use half::f16;
use proptest::prelude::*;

use super::*;

const GROUP: usize = 32;

/// One token in one lane of the reference.
#[derive(Clone)]
struct Slot {
    position: Position,
    live: bool,
    k: Vec<f32>,
    v: Vec<f32>,
    v_coded: bool,
}

/// One page: its slots, and whether its keys are in codes.
#[derive(Clone, Default)]
struct Page {
    slots: Vec<Slot>,
    k_coded: bool,
}

/// One lane, by the rules as they are written down.
#[derive(Clone, Default)]
struct Lane {
    pages: Vec<Page>,
}

/// The largest f16 at most `x`, found by trying.
fn down(x: f32) -> f32 {
    let near = f16::from_f32(x);
    let candidates = [near.to_bits().wrapping_sub(1), near.to_bits(), near.to_bits() + 1, 0x8001];
    let fits = candidates.map(|bits| f16::from_bits(bits).to_f32()).into_iter().filter(|y| *y <= x);
    fits.fold(f32::NEG_INFINITY, f32::max)
}

/// Rounds a group to what its codes stand for.
fn rounded(xs: &[f32], bits: u8) -> Vec<f32> {
    let levels = f32::from((1u16 << bits) - 1);
    let min = xs.iter().copied().fold(f32::INFINITY, f32::min);
    let max = xs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let z = down(min);
    let s = -down(-((max - z) / levels));
    let code = |x: f32| if s == 0.0 { 0.0 } else { ((x - z) / s).round().clamp(0.0, levels) };
    xs.iter().map(|&x| code(x) * s + z).collect()
}

impl Page {
    fn code_keys(&mut self, bits: u8) {
        for channel in 0..self.slots[0].k.len() {
            let live = self.slots.iter().filter(|s| s.live).map(|s| s.k[channel]).collect::<Vec<_>>();
            let mut back = rounded(&live, bits).into_iter();
            for slot in self.slots.iter_mut().filter(|s| s.live) {
                slot.k[channel] = back.next().unwrap();
            }
        }
        self.k_coded = true;
    }
}

impl Lane {
    fn append(&mut self, slot: Slot) {
        match self.pages.last_mut() {
            Some(page) if page.slots.len() < GROUP => page.slots.push(slot),
            _ => self.pages.push(Page { slots: vec![slot], k_coded: false }),
        }
    }

    fn settle(&mut self, bits: u8, residual: usize) {
        let exact: usize = self.pages.iter().filter(|p| !p.k_coded).map(|p| p.slots.len()).sum();
        let pages = exact / residual * residual / GROUP;
        self.pages.iter_mut().filter(|p| !p.k_coded).take(pages).for_each(|p| p.code_keys(bits));
        let mut newest = 0;
        for slot in self.pages.iter_mut().rev().flat_map(|p| p.slots.iter_mut().rev()).filter(|s| s.live) {
            newest += 1;
            if newest > residual && !slot.v_coded {
                slot.v = slot.v.chunks(GROUP).flat_map(|group| rounded(group, bits)).collect();
                slot.v_coded = true;
            }
        }
        // What was lost inside the window goes along when the window has moved past it.
        let slots: Vec<&mut Slot> = self.pages.iter_mut().flat_map(|p| &mut p.slots).collect();
        let end = slots.iter().rposition(|s| s.v_coded).unwrap_or(0);
        slots.into_iter().take(end).for_each(|s| s.v_coded = true);
    }

    fn evict(&mut self, victims: &[Position]) {
        for slot in self.pages.iter_mut().flat_map(|p| &mut p.slots) {
            slot.live &= !victims.contains(&slot.position);
        }
        self.pages.retain(|p| p.slots.iter().any(|s| s.live));
    }

    fn compact(&mut self, bits: u8) {
        let Some(first) = self.pages.iter().position(|p| p.slots.iter().any(|s| !s.live)) else { return };
        let rest = self.pages.split_off(first);
        let of_codes = |p: &&Page| p.k_coded;
        let coded = rest.iter().filter(of_codes).flat_map(|p| &p.slots).filter(|s| s.live).count();
        let kept: Vec<Slot> = rest.into_iter().flat_map(|p| p.slots).filter(|s| s.live).collect();
        for (i, slots) in kept.chunks(GROUP).enumerate() {
            let mut page = Page { slots: slots.to_vec(), k_coded: false };
            if (i + 1) * GROUP <= coded {
                page.code_keys(bits);
            }
            self.pages.push(page);
        }
    }

    /// Live, stranded, unfilled bytes of K and of V.
    fn bytes(&self, bits: u8, d: usize) -> [[u64; 3]; 2] {
        let settled = (d * usize::from(bits) / 8 + d / GROUP * 4) as u64;
        let bytes = |coded: bool| if coded { settled } else { 4 * d as u64 };
        let mut sums = [[0; 3]; 2];
        for page in &self.pages {
            // Rows of V go into codes in order, those of holes among them.
            let v_codes = page.slots.iter().rposition(|s| s.v_coded).map_or(0, |i| i + 1);
            for row in 0..GROUP {
                let state = page.slots.get(row).map_or(2, |s| usize::from(!s.live));
                sums[0][state] += bytes(page.k_coded);
                sums[1][state] += bytes(row < v_codes);
            }
        }
        sums
    }
}

#[derive(Clone, Debug)]
struct Act {
    append: usize,
    /// Per (layer, head), a victim is every n-th live position from some start; `None` spares all.
    victims: [Option<(usize, usize)>; 2],
    gang: bool,
    /// The newest go too.
    tail: usize,
    compact: bool,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let victims = || prop::option::of((0..7usize, 1..9usize));
    let act = ([victims(), victims()], any::<bool>(), 0..50usize, any::<bool>(), 1..70usize, 0..4u8);
    let act = act.prop_map(|(victims, gang, tail, compact, append, kind)| Act {
        // Decode steps, chunks, and steps that feed one token and forget many.
        append: if kind == 0 { append } else { 1 + append % 3 },
        victims: if kind == 1 { victims } else { [None; 2] },
        gang,
        tail: if kind == 1 && tail < 6 { tail } else { 0 },
        compact,
    });
    prop::collection::vec(act, 1..60)
}

struct Run {
    cache: Cache,
    /// By head.
    lanes: [Lane; 2],
    next: Position,
    bits: u8,
    residual: usize,
    rng: u64,
}

impl Run {
    fn new(bits: u8, residual: u32, groups: usize, host: bool) -> Self {
        let cache = Cache::new(CacheConfig {
            shape: KvShape { layers: 1, kv_heads: 2, head_dim: groups * GROUP },
            block_size: GROUP as u32,
            dtype: KvDtype::Kivi { bits, residual },
            host_v_from_layer: host.then_some(0),
            ..config()
        });
        let mut cache = cache.unwrap();
        cache.add(0);
        Self { cache, lanes: Default::default(), next: 0, bits, residual: residual as usize, rng: 1 }
    }

    /// Values of many sizes, the same in every run.
    fn value(&mut self) -> f32 {
        self.rng = self.rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = ((self.rng >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * 3.0;
        if (self.rng >> 33).is_multiple_of(16) { x * 40.0 } else { x }
    }

    fn append(&mut self, n: usize) {
        let d = self.cache.config.shape.head_dim;
        let [k, v] = [(); 2].map(|()| (0..n * 2 * d).map(|_| self.value()).collect::<Vec<f32>>());
        self.cache.reserve(0, self.next, n).unwrap();
        self.cache.write(0, 0, self.next, &k, &v).unwrap();
        for (i, head) in (0..n).flat_map(|i| [(i, 0), (i, 1)]) {
            let row = (i * 2 + head) * d..(i * 2 + head + 1) * d;
            self.lanes[head].append(Slot {
                position: self.next + i as Position,
                live: true,
                k: k[row.clone()].to_vec(),
                v: v[row].to_vec(),
                v_coded: false,
            });
        }
        self.next += n as Position;
        self.check();
        self.cache.quantise(0, 0).unwrap();
        self.lanes.iter_mut().for_each(|lane| lane.settle(self.bits, self.residual));
        self.check();
    }

    fn evict(&mut self, act: &Act) {
        let chosen = |head: usize| {
            let live: Vec<Position> =
                self.cache.table(0, 0).resident_ranges(head as Head).flatten().collect();
            let tail = live.len() - act.tail.min(live.len());
            let every = act.victims[head];
            let is = |i: usize| {
                i >= tail || every.is_some_and(|(start, n)| i >= start && (i - start).is_multiple_of(n))
            };
            live.iter().enumerate().filter(|&(i, _)| is(i)).map(|(_, &p)| p).collect::<Vec<_>>()
        };
        let mut sets = [chosen(0), chosen(1)];
        if act.gang {
            sets[0].retain(|p| self.cache.table(0, 0).slot_of(1, *p).is_some());
            sets[1] = sets[0].clone();
            self.cache.evict(0, 0, &Victims::All(&sets[0])).unwrap();
        } else {
            self.cache.evict(0, 0, &Victims::PerHead(&[&sets[0], &sets[1]])).unwrap();
        }
        for (lane, set) in self.lanes.iter_mut().zip(&sets) {
            lane.evict(set);
        }
        self.check();
    }

    fn compact(&mut self) {
        self.cache.compact(0, 0).unwrap();
        self.lanes.iter_mut().for_each(|lane| lane.compact(self.bits));
        self.check();
    }

    fn check(&self) {
        let mut sums = [[0u64; 3]; 2];
        for (head, lane) in self.lanes.iter().enumerate() {
            let table = self.cache.table(0, 0);
            let (k, v) = self.cache.pages(0, 0, head as Head);
            let slots: Vec<&Slot> = lane.pages.iter().flat_map(|p| &p.slots).collect();
            assert_eq!(slots.len(), table.lane(head as Head).slots.len());
            for (i, slot) in slots.iter().enumerate().filter(|(_, s)| s.live) {
                assert_eq!(table.lane(head as Head).slots[i], slot.position);
                assert_eq!(row(k, i), slot.k, "K of {}", slot.position);
                assert_eq!(row(v, i), slot.v, "V of {}", slot.position);
            }
            for (sum, part) in sums.iter_mut().zip(lane.bytes(self.bits, self.cache.config.shape.head_dim)) {
                sum.iter_mut().zip(part).for_each(|(sum, bytes)| *sum += bytes);
            }
            let live_v: u64 = self.cache.live_value_bytes(0, 0, head as Head);
            assert_eq!(live_v, lane.bytes(self.bits, self.cache.config.shape.head_dim)[1][0]);
        }
        let usage = self.cache.usage();
        let mut want = [[0; 3]; 2];
        let v_tier = usize::from(self.cache.config.v_on_host(0));
        for i in 0..3 {
            want[0][i] += sums[0][i];
            want[v_tier][i] += sums[1][i];
        }
        let told = usage.map(|t| [t.live_bytes, t.stranded_bytes, t.unfilled_bytes]);
        assert_eq!(told, want);
        assert_eq!(usage.map(|t| t.allocated_bytes()), self.cache.held_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_and_bytes_are_those_of_the_plain_reference(
        acts in acts(),
        bits in prop::sample::select(vec![2u8, 4]),
        residual in prop::sample::select(vec![32u32, 64, 96]),
        groups in 1..3usize,
        host in any::<bool>(),
    ) {
        let mut run = Run::new(bits, residual, groups, host);
        for act in &acts {
            run.append(act.append);
            run.evict(act);
            if act.compact {
                run.compact();
            }
            run.cache.take_ops(0);
        }
        run.cache.remove(0);
        prop_assert_eq!(run.cache.held_bytes(), [0, 0]);
        prop_assert_eq!(run.cache.usage().map(|t| t.allocated_bytes()), [0, 0]);
        prop_assert_eq!(run.cache.pool.count(Home::Device), Count::default());
        prop_assert_eq!(run.cache.pool.count(Home::Host), Count::default());
    }
}

#[test]
fn the_exact_window_of_keys_is_a_saw_and_that_of_values_a_band() {
    let mut run = Run::new(4, 64, 1, false);
    let exact = |run: &Run| {
        let (k, v) = run.cache.pages(0, 0, 0);
        let [Pages::Coded(k), Pages::Coded(v)] = [k, v] else { panic!("pages in codes") };
        let slots = run.cache.table(0, 0).lane(0).slots.len();
        (slots - k.in_codes(), slots - v.in_codes())
    };
    run.append(150);
    assert_eq!(exact(&run), (22, 64));
    let mut seen = Vec::new();
    for _ in 0..44 {
        run.append(1);
        run.cache.take_ops(0);
        seen.push(exact(&run));
    }
    assert_eq!(seen[..41].iter().map(|s| s.0).collect::<Vec<_>>(), (23..64).collect::<Vec<_>>());
    assert_eq!(seen[41..].iter().map(|s| s.0).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(seen.iter().all(|s| s.1 == 64));
}

#[test]
fn errors_are_told_once_by_layer_and_channel() {
    let mut run = Run::new(2, 32, 1, false);
    run.append(40);
    let told = run.cache.take_coding();
    assert_eq!(told.len(), 1);
    let coding = &told[0];
    assert_eq!((coding.k.rows, coding.v.rows, coding.recoded_rows), (64, 16, 0));
    let (k, v) = (coding.k.relative().unwrap(), coding.v.relative().unwrap());
    assert!(k > 0.1 && k < 0.8 && v > 0.1 && v < 0.8, "{k} {v}");
    assert_eq!(coding.k_channels.len(), 64);
    let channel = |c: &u8| f64::from(crate::event::attention::dequantise(*c));
    assert!(coding.k_channels.iter().all(|c| channel(c) > 0.0));
    assert!(coding.k_channels.iter().map(channel).fold(0.0, f64::max) > k);
    assert!(run.cache.take_coding().is_empty());
    run.append(1);
    let coding = run.cache.take_coding().remove(0);
    assert_eq!((coding.k.rows, coding.v.rows, coding.k_channels.len()), (0, 2, 0));
    run.cache.evict(0, 0, &Victims::All(&[3])).unwrap();
    run.cache.compact(0, 0).unwrap();
    // 31 rows of each head's coded page survive; they wait, decoded, for the window to fill.
    assert_eq!(run.cache.take_coding()[0].recoded_rows, 62);
}

#[test]
fn a_cache_of_codes_shares_no_prefix() {
    for dtype in [KvDtype::Int8, KvDtype::Kivi { bits: 4, residual: 64 }] {
        let shape = KvShape { layers: 1, kv_heads: 1, head_dim: GROUP };
        let mut cache = Cache::new(CacheConfig { shape, block_size: 32, dtype, ..config() }).unwrap();
        cache.add(0);
        cache.reserve(0, 0, 40).unwrap();
        cache.write(0, 0, 0, &[1.0; 40 * GROUP], &[1.0; 40 * GROUP]).unwrap();
        cache.offer_prefix(0, &ids(40));
        cache.add(1);
        assert_eq!(cache.share_prefix(1, &ids(40)), 0);
    }
}

#[test]
fn what_does_not_go_with_the_group_is_refused_in_one_line() {
    let fits = |text: &str, block_size, head_dim| {
        text.parse::<KvDtype>().and_then(|dtype| {
            dtype.check(block_size, head_dim).map_err(|e| e.to_string())?;
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
            Ok(dtype)
        })
    };
    for text in KvDtype::NAMES {
        let dtype = fits(text, text.parse::<KvDtype>().unwrap().usual_block_size(), 64).unwrap();
        assert_eq!(dtype.name(), text);
    }
    assert!(fits("int8", 7, 3).is_ok() && fits("int2:residual=128", 32, 32).is_ok());
    let wrong = [
        ("int4", 16, 64),
        ("int4", 32, 48),
        ("int2:residual=0", 32, 64),
        ("int2:residual=48", 32, 64),
        ("int2:residual=-1", 32, 64),
        ("int2:window=3", 32, 64),
        ("int8:residual=32", 32, 64),
        ("int3", 32, 64),
        ("", 32, 64),
    ];
    for (text, block_size, head_dim) in wrong {
        let error = fits(text, block_size, head_dim).unwrap_err();
        assert!(!error.is_empty() && !error.contains('\n'), "{error}");
    }
}
