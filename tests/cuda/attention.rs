//! The GPU backend as a whole, on the emulated device or a GPU, against the processor's.

use half::f16;
use kvista::attention::cpu::CpuAttention;
use kvista::attention::gpu::{GpuAttention, NewTokens, PageCopies, Stretch, check};
use kvista::attention::{
    Attention, HeadLane, PageBounds, Pages, Queries, Rope, Rotation, RowSink, Rows, Scoring, Shape, Wants,
};
use kvista::quant::{Codec, CodedRows, Grouping};
use proptest::prelude::*;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::device::{Device, device, is_real};
use crate::emulated::{self, Emulated};
use crate::scene::{HOLE, pick, seeded, uniform};

/// Slots of a page of rows that go into codes later, channels of a group.
const PAGE: usize = 32;
/// What two orders of a sum of f32 may differ by, relative to values of up to 2.
const BOUND: f32 = 2e-5;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    F32,
    F16,
    Int8,
    Int4,
    Int2,
}

impl Kind {
    const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Int8, Self::Int4, Self::Int2];

    const fn name(self) -> &'static str {
        ["f32", "f16", "int8", "int4", "int2"][self as usize]
    }

    /// Whether rows are exact at first and go into codes later.
    const fn is_mixed(self) -> bool {
        matches!(self, Self::Int4 | Self::Int2)
    }

    fn codec(self, part: usize, d: usize) -> Codec {
        let grouping = if part == 0 { Grouping::Channel(PAGE) } else { Grouping::Token(PAGE) };
        match self {
            Self::Int4 => Codec::new(4, grouping, d),
            Self::Int2 => Codec::new(2, grouping, d),
            _ => codec(d),
        }
    }
}

/// One KV head.
struct Head {
    slots: Vec<u32>,
    blocks: Vec<u32>,
    /// As written, `[slot][head_dim]`: keys, values.
    rows: [Vec<f32>; 2],
    /// The same as stored.
    f32: [Vec<f32>; 2],
    f16: [Vec<f16>; 2],
    codes: [Vec<u8>; 2],
    /// Pages of leading rows in codes and of exact ones, and how many of all are in codes.
    mixed: [Vec<(Vec<u8>, Vec<f32>)>; 2],
    in_codes: [usize; 2],
}

/// Leading rows of a lane in codes, the others exact: pages of keys that are so as a whole, rows of values.
fn mixed_pages(
    kind: Kind,
    part: usize,
    rows: &[f32],
    slots: &[u32],
    in_codes: usize,
) -> Vec<(Vec<u8>, Vec<f32>)> {
    let d = rows.len() / slots.len();
    let codec = kind.codec(part, d);
    let pages = rows.chunks(PAGE * d).zip(slots.chunks(PAGE)).enumerate();
    pages
        .map(|(i, (rows, slots))| {
            let n = in_codes.saturating_sub(i * PAGE).min(slots.len());
            let live: Vec<bool> = slots[..n].iter().map(|&p| p != HOLE).collect();
            let mut coded = vec![0; n * codec.row_bytes()];
            if n > 0 {
                codec.encode(&rows[..n * d], &live, &mut coded);
            }
            (coded, rows[n * d..].to_vec())
        })
        .collect()
}

struct Layer {
    shape: Shape,
    kind: Kind,
    block_size: usize,
    /// Tokens at the end that are in every lane.
    fresh: usize,
    scoring: Scoring,
    heads: Vec<Head>,
}

fn codec(d: usize) -> Codec {
    Codec::new(8, Grouping::Token(d), d)
}

impl Layer {
    fn chance(rng: &mut ChaCha8Rng, kind: Kind) -> Self {
        let (kv_heads, group) = (rng.random_range(1..4usize), rng.random_range(1..11usize));
        let d =
            *pick(rng, if kind.is_mixed() { &[32, 64, 96, 128, 32, 64] } else { &[8, 32, 40, 64, 80, 128] });
        let block_size = *pick(rng, if kind.is_mixed() { &[PAGE; 5] } else { &[1usize, 4, 16, 24, 64] });
        let fresh = rng.random_range(1..6usize);
        let most = *pick(rng, &[5usize, 30, 70, 260, 300]);
        let holes = *pick(rng, &[0.0, 0.2, 0.7]);
        let gang = rng.random_bool(0.5);
        let mut heads: Vec<Head> = Vec::new();
        let old = |rng: &mut ChaCha8Rng| -> Vec<u32> {
            (0..most as u32).map(|p| if rng.random_bool(holes) { HOLE } else { p }).collect()
        };
        let shared = old(rng);
        for h in 0..kv_heads {
            let mut slots = if gang { shared.clone() } else { old(rng) };
            if !gang {
                slots.truncate(rng.random_range(most / 2..=most));
            }
            slots.extend((0..fresh).map(|i| (most + i) as u32));
            let count = slots.len().div_ceil(block_size);
            // Ids in an order of chance, no two alike.
            let blocks = (0..count).map(|i| (i * 37 % 4096 * kv_heads + h) as u32).collect();
            let rows = [0, 1].map(|_| uniform(rng, slots.len() * d, 1.0));
            let f32 = rows.clone();
            let f16 = rows.each_ref().map(|rows| rows.iter().map(|&x| f16::from_f32(x)).collect());
            let codes = rows.each_ref().map(|rows| {
                let codec = codec(d);
                let mut coded = vec![0; slots.len() * codec.row_bytes()];
                codec.encode(rows, &vec![true; slots.len()], &mut coded);
                coded
            });
            let (mut mixed, mut in_codes) = ([Vec::new(), Vec::new()], [0; 2]);
            if kind.is_mixed() {
                let old = slots.len() - fresh;
                in_codes = [rng.random_range(0..=old / PAGE) * PAGE, rng.random_range(0..=old)];
                mixed = [0, 1].map(|part| mixed_pages(kind, part, &rows[part], &slots, in_codes[part]));
            }
            heads.push(Head { slots, blocks, rows, f32, f16, codes, mixed, in_codes });
        }
        let scoring = Scoring {
            window: rng.random_bool(0.3).then(|| rng.random_range(1..most as u32 + 8)),
            softcap: rng.random_bool(0.3).then(|| rng.random_range(0.3..4.0)),
        };
        Self {
            shape: Shape::new(kv_heads * group, kv_heads, d).unwrap(),
            kind,
            block_size,
            fresh,
            scoring,
            heads,
        }
    }

    /// Rows of a head as the cache has them.
    fn rows(&self, head: usize, part: usize, from: usize, to: usize) -> Rows<'_> {
        let (head, d) = (&self.heads[head], self.shape.head_dim());
        match self.kind {
            Kind::F32 => Rows::F32(&head.f32[part][from * d..to * d]),
            Kind::F16 => Rows::F16(&head.f16[part][from * d..to * d]),
            Kind::Int8 => Rows::Coded(CodedRows::new(codec(d), &head.codes[part], &[]).cut(from, to)),
            Kind::Int4 | Kind::Int2 => {
                let first = from / PAGE * PAGE;
                let (coded, exact) = &head.mixed[part][from / PAGE];
                let page = CodedRows::new(self.kind.codec(part, d), coded, exact);
                Rows::Coded(page.cut(from - first, to - first))
            }
        }
    }

    /// The old rows of a block as they came, then those in codes: keys, and values a row at a time.
    fn put_mixed(&self, copies: &mut dyn PageCopies, h: usize, i: usize, to: usize) {
        let (head, d, from) = (&self.heads[h], self.shape.head_dim(), i * PAGE);
        let exact = |part: usize| {
            let rows = &head.f32[part][from * d..to * d];
            Some(Rows::Coded(CodedRows::new(self.kind.codec(part, d), &[], rows)))
        };
        let stretch =
            Stretch { block: head.blocks[i], row: 0, keys: exact(0), values: exact(1), in_codes: [0; 2] };
        let mut stretches = vec![stretch];
        let [k, v] = head.in_codes.map(|n| n.saturating_sub(from).min(to - from));
        if k > 0 {
            let keys = Some(self.rows(h, 0, from, to));
            stretches.push(Stretch { keys, values: None, in_codes: [k, 0], ..stretch });
        }
        for row in 0..v {
            let values = Some(self.rows(h, 1, from + row, from + row + 1));
            stretches.push(Stretch { row, keys: None, values, in_codes: [k, row + 1], ..stretch });
        }
        copies.put(&stretches, false).unwrap();
    }

    /// Puts every row into the device's pages: the fresh ones as new tokens, the others as they are stored.
    fn fill(&self, copies: &mut dyn PageCopies, values_on_host: bool) {
        let d = self.shape.head_dim();
        let mut stretches = Vec::new();
        for (h, head) in self.heads.iter().enumerate() {
            let old = head.slots.len() - self.fresh;
            for (i, &block) in head.blocks.iter().enumerate() {
                let (from, to) = (i * self.block_size, ((i + 1) * self.block_size).min(old));
                if self.kind.is_mixed() {
                    if from < to {
                        self.put_mixed(copies, h, i, to);
                    }
                    continue;
                }
                // A block in two pieces.
                let middle = usize::midpoint(from, to.max(from));
                for (from, to) in [(from, middle), (middle, to)].into_iter().filter(|(from, to)| from < to) {
                    stretches.push(Stretch {
                        block,
                        row: from % self.block_size,
                        keys: Some(self.rows(h, 0, from, to)),
                        values: (!values_on_host).then(|| self.rows(h, 1, from, to)),
                        in_codes: [0; 2],
                    });
                }
            }
        }
        copies.put(&stretches, values_on_host).unwrap();
        let of_fresh = |part: usize| -> Vec<f32> {
            let rows = |token: usize| {
                self.heads.iter().flat_map(move |head| {
                    let slot = head.slots.len() - self.fresh + token;
                    head.rows[part][slot * d..(slot + 1) * d].to_vec()
                })
            };
            (0..self.fresh).flat_map(rows).collect()
        };
        let places: Vec<(usize, Vec<u32>)> = self
            .heads
            .iter()
            .map(|head| {
                let first = head.slots.len() - self.fresh;
                (first, head.blocks[first / self.block_size..].to_vec())
            })
            .collect();
        let (keys, values) = (of_fresh(0), of_fresh(1));
        let values = (!values_on_host).then_some(&*values);
        copies.append(NewTokens { keys: &keys, values, places: &places }).unwrap();
    }

    /// Calls with the lanes over pages of the host, and with those over the device's; values as asked.
    fn with_lanes<T>(
        &self,
        rotation: Rotation<'_>,
        values_on_host: bool,
        call: impl FnOnce(&[HeadLane<'_>], &[HeadLane<'_>]) -> T,
    ) -> T {
        let (d, size) = (self.shape.head_dim(), self.block_size);
        let f32: Vec<[Vec<&[f32]>; 2]> =
            self.heads.iter().map(|h| h.f32.each_ref().map(|r| r.chunks(size * d).collect())).collect();
        let f16: Vec<[Vec<&[f16]>; 2]> =
            self.heads.iter().map(|h| h.f16.each_ref().map(|r| r.chunks(size * d).collect())).collect();
        let codes: Vec<[Vec<CodedRows<'_>>; 2]> = self
            .heads
            .iter()
            .map(|head| {
                if self.kind.is_mixed() {
                    return [0, 1].map(|part| {
                        let codec = self.kind.codec(part, d);
                        let pages = head.mixed[part].iter();
                        pages.map(|(coded, exact)| CodedRows::new(codec, coded, exact)).collect()
                    });
                }
                head.codes.each_ref().map(|codes| {
                    let page = codes.chunks(size * (d + 4));
                    page.map(|page| CodedRows::new(codec(d), page, &[])).collect()
                })
            })
            .collect();
        let pages = |h: usize, part: usize| match self.kind {
            Kind::F32 => Pages::F32(&f32[h][part]),
            Kind::F16 => Pages::F16(&f16[h][part]),
            Kind::Int8 | Kind::Int4 | Kind::Int2 => Pages::Coded(&codes[h][part]),
        };
        let lane = |h: usize, k, v| HeadLane {
            slots: &self.heads[h].slots,
            block_size: size,
            k,
            v,
            rotation,
            scoring: self.scoring,
        };
        let own: Vec<_> = (0..self.heads.len()).map(|h| lane(h, pages(h, 0), pages(h, 1))).collect();
        let placed: Vec<_> = (0..self.heads.len())
            .map(|h| {
                let k = Pages::Placed(&self.heads[h].blocks);
                lane(h, k, if values_on_host { pages(h, 1) } else { k })
            })
            .collect();
        call(&own, &placed)
    }
}

fn near(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= BOUND, "{what}, element {i}: {got} is not {want}");
    }
}

/// The rows of a prefill, as they come.
#[derive(Default)]
struct Poured(Vec<(u32, Vec<f32>)>);

impl RowSink for Poured {
    fn row(&mut self, query: u32, row: &[f32]) {
        self.0.push((query, row.to_vec()));
    }
}

fn backends(layer: &Layer, values_on_host: bool, schedule: u32) -> (CpuAttention, GpuAttention<Device>) {
    let cell = check(layer.shape, layer.kind.name()).unwrap();
    let mut gpu = GpuAttention::new(device(schedule), layer.shape, cell, layer.block_size, 1 << 20);
    layer.fill(&mut gpu, values_on_host);
    (CpuAttention::new(layer.shape), gpu)
}

fn same_probabilities(cpu: &dyn Attention, gpu: &dyn Attention) {
    for head in 0..cpu.shape().heads() {
        near("probabilities", gpu.probabilities().row(head), cpu.probabilities().row(head));
    }
}

/// The stages of a decode step, those of a read set among them.
fn decodes(layer: &Layer, rotation: Rotation<'_>, rng: &mut ChaCha8Rng, schedule: u32) {
    let shape = layer.shape;
    let newest = *layer.heads[0].slots.last().unwrap();
    let rows = uniform(rng, shape.width(), 3.0);
    let query = Queries { rows: &rows, first: newest };
    let (mut cpu, mut gpu) = backends(layer, false, schedule);
    layer.with_lanes(rotation, false, |own, placed| {
        cpu.scores(query, own);
        gpu.scores(query, placed);
        same_probabilities(&cpu, &gpu);
        let (mut want, mut got) = (vec![0.0; shape.width()], vec![0.0; shape.width()]);
        cpu.weighted_sum(own, &mut want);
        gpu.weighted_sum(placed, &mut got);
        near("output", &got, &want);
        if let Rotation::None = rotation {
            by_pages(layer, query, [own, placed], [&mut cpu, &mut gpu], rng);
        }
    });
    if layer.kind.is_mixed() {
        // Rows of such pages are not pulled.
        assert!(gpu.take_fault().is_none());
        return;
    }
    let (mut cpu, mut gpu) = backends(layer, true, schedule);
    let n = rng.random_range(1..40);
    layer.with_lanes(rotation, true, |own, placed| {
        cpu.scores(query, own);
        gpu.scores(query, placed);
        same_probabilities(&cpu, &gpu);
        cpu.select_top(own, n, true);
        gpu.select_top(placed, n, true);
        let mut staged: Vec<kvista::quant::StoredRows> = Vec::new();
        let (mut f32, mut f16) = (Vec::new(), Vec::new());
        for (h, (want, got)) in cpu.selection().lanes().iter().zip(gpu.selection().lanes()).enumerate() {
            assert_eq!(got.slots(), want.slots(), "head {h}");
            assert_eq!(got.asked_rows(), want.asked_rows());
            near("mass left out", got.dropped(), want.dropped());
            let (mut of_f32, mut of_f16) = (Vec::new(), Vec::new());
            let mut of_codes = kvista::quant::StoredRows::default();
            for &slot in want.slots() {
                match layer.rows(h, 1, slot as usize, slot as usize + 1) {
                    Rows::F32(row) => of_f32.extend_from_slice(row),
                    Rows::F16(row) => of_f16.extend_from_slice(row),
                    Rows::Coded(row) => of_codes.push(row),
                }
            }
            staged.push(of_codes);
            f32.push(of_f32);
            f16.push(of_f16);
        }
        let values: Vec<Rows<'_>> = (0..layer.heads.len())
            .map(|h| match layer.kind {
                Kind::F32 => Rows::F32(&f32[h]),
                Kind::F16 => Rows::F16(&f16[h]),
                Kind::Int8 | Kind::Int4 | Kind::Int2 => Rows::Coded(staged[h].rows().unwrap()),
            })
            .collect();
        let (mut want, mut got) = (vec![0.0; shape.width()], vec![0.0; shape.width()]);
        cpu.weighted_sum_selected(&values, &mut want);
        gpu.weighted_sum_selected(&values, &mut got);
        near("sum over what was pulled", &got, &want);
    });
    assert!(gpu.take_fault().is_none());
}

fn by_pages(
    layer: &Layer,
    query: Queries<'_>,
    [own, placed]: [&[HeadLane<'_>]; 2],
    [cpu, gpu]: [&mut dyn Attention; 2],
    rng: &mut ChaCha8Rng,
) {
    let shape = layer.shape;
    let (page, most) = (rng.random_range(1..9), rng.random_range(0..6));
    let mut bounds = vec![PageBounds::default(); own.len()];
    for (bounds, lane) in bounds.iter_mut().zip(own) {
        bounds.follow(lane, page, shape.head_dim());
    }
    cpu.select_pages(query, own, &bounds, most);
    gpu.select_pages(query, placed, &bounds, most);
    for (got, want) in gpu.pages().lanes().iter().zip(cpu.pages().lanes()) {
        let read = |lane: &kvista::attention::LanePages, slots: usize| -> Vec<bool> {
            (0..slots).map(|slot| lane.reads(slot)).collect()
        };
        let slots = want.pages() * page;
        assert_eq!(read(got, slots), read(want, slots));
    }
    cpu.scores_of_pages(query, own);
    gpu.scores_of_pages(query, placed);
    same_probabilities(cpu, gpu);
    let (mut want, mut got) = (vec![0.0; shape.width()], vec![0.0; shape.width()]);
    cpu.weighted_sum_of_pages(own, &mut want);
    gpu.weighted_sum_of_pages(placed, &mut got);
    near("output of pages", &got, &want);
    cpu.scores(query, own);
    gpu.scores(query, placed);
    for (got, want) in
        gpu.select_chosen_pages(placed).lanes().iter().zip(cpu.select_chosen_pages(own).lanes())
    {
        assert_eq!(got.slots(), want.slots());
        near("mass left out", got.dropped(), want.dropped());
    }
}

/// The fresh tokens as a chunk.
fn prefills(layer: &Layer, rotation: Rotation<'_>, rng: &mut ChaCha8Rng, schedule: u32) {
    let shape = layer.shape;
    let newest = *layer.heads[0].slots.last().unwrap();
    let rows = uniform(rng, layer.fresh * shape.width(), 3.0);
    let queries = Queries { rows: &rows, first: newest + 1 - layer.fresh as u32 };
    let wants = Wants { column_sums: true, last_row: true };
    let values_on_host = rng.random_bool(0.5) && !layer.kind.is_mixed();
    let (mut cpu, mut gpu) = backends(layer, values_on_host, schedule);
    layer.with_lanes(rotation, values_on_host, |own, placed| {
        let mut outcomes = Vec::new();
        for (attention, lanes) in [(&mut cpu as &mut dyn Attention, own), (&mut gpu, placed)] {
            let mut sinks: Vec<Poured> = lanes.iter().map(|_| Poured::default()).collect();
            let mut refs: Vec<&mut dyn RowSink> = sinks.iter_mut().map(|sink| sink as _).collect();
            let mut out = vec![0.0; rows.len()];
            attention.prefill(queries, lanes, wants, &mut refs, &mut out);
            outcomes.push((out, sinks));
        }
        let [(want, rows_wanted), (got, rows_got)] = &outcomes[..] else { unreachable!() };
        near("output of a chunk", got, want);
        for (h, (want, got)) in rows_wanted.iter().zip(rows_got).enumerate() {
            assert_eq!(got.0.len(), want.0.len());
            for ((at, got), (position, want)) in got.0.iter().zip(&want.0) {
                assert_eq!(at, position);
                near("a query's row", got, want);
            }
            near("column sums", gpu.column_sums(h), cpu.column_sums(h));
        }
        same_probabilities(&cpu, &gpu);
    });
    assert!(gpu.take_fault().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 40, ..ProptestConfig::default() })]

    /// Groups of 1 to 10 heads, blocks of any size, holes, heads together and apart, every page type, keys before and after
    /// RoPE, windows and capped scores.
    #[test]
    fn a_gpu_attends_as_the_processor_does(seed in any::<u64>(), kind in 0usize..5, turned in 0usize..4) {
        if !emulated::is_there() {
            return Ok(());
        }
        let mut rng = seeded(seed);
        let layer = Layer::chance(&mut rng, Kind::ALL[kind]);
        let rope = Rope::new(layer.shape.head_dim(), 1e4, 512);
        let rotation = match turned {
            0 => Rotation::ByRank(&rope),
            1 => Rotation::ByPosition(&rope),
            _ => Rotation::None,
        };
        let schedule = (seed % 3) as u32;
        decodes(&layer, rotation, &mut rng, schedule);
        prefills(&layer, rotation, &mut rng, schedule);
    }
}

/// A device that is lost at any moment: one line, whatever was under way, and nothing panics.
#[test]
fn a_lost_device_is_an_error_not_a_panic() {
    if !emulated::is_there() || is_real() {
        return;
    }
    let mut rng = seeded(3);
    let layer = Layer::chance(&mut rng, Kind::F32);
    let shape = layer.shape;
    let rows = uniform(&mut rng, layer.fresh * shape.width(), 1.0);
    let newest = *layer.heads[0].slots.last().unwrap();
    let cell = check(shape, "f32").unwrap();
    let mut lost = 0;
    // From where the pages have just been filled.
    for lives in 12..66 {
        let device = Emulated::mortal(lives);
        let mut gpu = GpuAttention::new(device.clone(), shape, cell, layer.block_size, 1 << 20);
        layer.fill(&mut gpu, false);
        layer.with_lanes(Rotation::None, false, |_, placed| {
            let mut out = vec![0.0; rows.len()];
            let queries = Queries { rows: &rows, first: newest + 1 - layer.fresh as u32 };
            let wants = Wants { column_sums: true, last_row: true };
            gpu.prefill(queries, placed, wants, &mut [], &mut out);
            let query = Queries { rows: &rows[..shape.width()], first: newest };
            gpu.scores(query, placed);
            gpu.select_top(placed, 3, true);
            gpu.weighted_sum(placed, &mut out[..shape.width()]);
            assert_eq!(gpu.probabilities().slots(0), layer.heads[0].slots.len());
        });
        if let Some(error) = gpu.take_fault() {
            lost += 1;
            assert!(error.to_string().contains("the device is lost"), "{error}");
            assert!(!error.to_string().contains('\n'));
        }
        drop(gpu);
        assert_eq!(device.used(), 0, "memory is given back");
    }
    assert!((10..54).contains(&lost), "{lost} of 54");
}

#[test]
fn what_the_kernels_do_not_read_is_refused() {
    let shape = |d| Shape::new(4, 2, d).unwrap();
    for (d, dtype, says) in
        [(20, "f32", "heads of 20 elements"), (264, "f16", "heads of 264"), (64, "nuq4", "pages of nuq4")]
    {
        let error = check(shape(d), dtype).unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
    }
}
