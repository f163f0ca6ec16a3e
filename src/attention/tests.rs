//! The backend against a naive f64 reference, and the promises on bits.

use half::f16;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::event::attention::dequantise;
use crate::event::{Cells, Position, ScoreLevel};

use super::cpu::CpuAttention;
use super::*;

const THETA: f64 = 10_000.0;

/// A layer's cache, written out: everything that lanes borrow.
#[derive(Clone, Debug)]
struct Cache {
    shape: Shape,
    block_size: usize,
    half: bool,
    rope: Option<std::sync::Arc<Rope>>,
    /// Whether keys are rotated by their positions at read, not by their ranks.
    by_position: bool,
    heads: Vec<Rowed>,
}

/// One KV head's slots, K rows and V rows. Rows of holes are NaN, so that reading one shows.
type Rowed = (Vec<Position>, Vec<f32>, Vec<f32>);

fn rows(rng: &mut ChaCha8Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-2.0..2.0)).collect()
}

impl Cache {
    fn new(shape: Shape, block_size: usize, seed: u64, slots: usize, holes: f64, fresh: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let d = shape.head_dim();
        let head = |_| {
            let mut table: Vec<Position> = (0..slots as Position).collect();
            let (mut k, mut v) = (rows(&mut rng, slots * d), rows(&mut rng, slots * d));
            for slot in 0..slots - fresh {
                if rng.random_bool(holes) {
                    table[slot] = HOLE;
                    k[slot * d..][..d].fill(f32::NAN);
                    v[slot * d..][..d].fill(f32::NAN);
                }
            }
            (table, k, v)
        };
        let heads = (0..shape.kv_heads()).map(head).collect();
        Self { shape, block_size, half: false, rope: None, by_position: false, heads }
    }

    fn halved(mut self, half: bool) -> Self {
        self.half = half;
        if half {
            for (_, k, v) in &mut self.heads {
                k.iter_mut().chain(v).for_each(|x| *x = f16::from_f32(*x).to_f32());
            }
        }
        self
    }

    fn before_rope(mut self, before: bool) -> Self {
        self.rope = before.then(|| Rope::new(self.shape.head_dim(), THETA, 64).into());
        self
    }

    fn slots(&self) -> usize {
        self.heads[0].0.len()
    }

    /// Lanes over the first `slots` slots, in pages of whole blocks.
    fn lanes<R>(&self, slots: usize, use_them: impl FnOnce(&[HeadLane<'_>]) -> R) -> R {
        let d = self.shape.head_dim();
        let page = self.block_size * d;
        let pages = |rows: &[f32]| -> Vec<Vec<f32>> {
            let mut pages: Vec<Vec<f32>> = rows[..slots * d].chunks(page).map(<[f32]>::to_vec).collect();
            for rows in &mut pages {
                rows.resize(page, f32::NAN);
            }
            pages
        };
        let to_half = |pages: &[Vec<f32>]| -> Vec<Vec<f16>> {
            pages.iter().map(|p| p.iter().map(|&x| f16::from_f32(x)).collect()).collect()
        };
        let full: Vec<_> = self.heads.iter().map(|(_, k, v)| [pages(k), pages(v)]).collect();
        let half: Vec<_> = full.iter().map(|kv| kv.each_ref().map(|p| to_half(p))).collect();
        let full: Vec<_> = full
            .iter()
            .map(|kv| kv.each_ref().map(|p| p.iter().map(Vec::as_slice).collect::<Vec<_>>()))
            .collect();
        let half: Vec<_> = half
            .iter()
            .map(|kv| kv.each_ref().map(|p| p.iter().map(Vec::as_slice).collect::<Vec<_>>()))
            .collect();
        let lanes: Vec<_> = (0..self.heads.len())
            .map(|h| {
                let side = |i: usize| {
                    if self.half { Pages::F16(&half[h][i]) } else { Pages::F32(&full[h][i]) }
                };
                HeadLane {
                    slots: &self.heads[h].0[..slots],
                    block_size: self.block_size,
                    k: side(0),
                    v: side(1),
                    rotation: match self.rope.as_deref() {
                        None => Rotation::None,
                        Some(rope) if self.by_position => Rotation::ByPosition(rope),
                        Some(rope) => Rotation::ByRank(rope),
                    },
                    scoring: Scoring::default(),
                }
            })
            .collect();
        use_them(&lanes)
    }

    /// Rows of V at the union's slots, as a read set stages them.
    fn staged(&self, selection: &Selection) -> Vec<Vec<f32>> {
        let d = self.shape.head_dim();
        let of = |(lane, (_, _, v)): (&LaneSelection, &Rowed)| {
            lane.slots().iter().flat_map(|&s| v[s as usize * d..][..d].to_vec()).collect()
        };
        selection.lanes().iter().zip(&self.heads).map(of).collect()
    }
}

/// One query head's probabilities and output, in f64.
fn reference(cache: &Cache, query: &[f32], position: Position, head: usize) -> (Vec<f64>, Vec<f64>) {
    let d = cache.shape.head_dim();
    let (slots, k, v) = &cache.heads[head / cache.shape.group()];
    let wide = |row: &[f32]| row.iter().copied().map(f64::from).collect::<Vec<_>>();
    let turned = |row: &[f32], rank: usize| -> Vec<f64> {
        let mut row = wide(row);
        if cache.rope.is_some() {
            for i in 0..d / 2 {
                let (sin, cos) = (rank as f64 * THETA.powf(-2.0 * i as f64 / d as f64)).sin_cos();
                (row[i], row[i + d / 2]) =
                    (row[i] * cos - row[i + d / 2] * sin, row[i + d / 2] * cos + row[i] * sin);
            }
        }
        row
    };
    let seen: Vec<usize> = (0..slots.len()).filter(|&s| slots[s] != HOLE && slots[s] <= position).collect();
    let query = turned(&query[head * d..][..d], seen.len().saturating_sub(1));
    let score = |(rank, &slot): (usize, &usize)| {
        let key = turned(&k[slot * d..][..d], rank);
        query.iter().zip(&key).map(|(a, b)| a * b).sum::<f64>() / (d as f64).sqrt()
    };
    let scores: Vec<f64> = seen.iter().enumerate().map(score).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    let (mut p, mut out) = (vec![0.0; slots.len()], vec![0.0; d]);
    for (&slot, score) in seen.iter().zip(&scores) {
        p[slot] = (score - max).exp() / total;
        for (sum, x) in out.iter_mut().zip(&v[slot * d..]) {
            *sum += p[slot] * f64::from(*x);
        }
    }
    (p, out)
}

fn close(got: &[f32], want: &[f64], bound: f64) -> Result<(), TestCaseError> {
    prop_assert_eq!(got.len(), want.len());
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        prop_assert!((f64::from(g) - w).abs() <= bound, "at {}: {} instead of {}", i, g, w);
    }
    Ok(())
}

fn bits(xs: &[f32]) -> Vec<u32> {
    xs.iter().map(|x| x.to_bits()).collect()
}

/// A query of the newest token.
fn newest(cache: &Cache, seed: u64) -> (Vec<f32>, Position) {
    let rows = rows(&mut ChaCha8Rng::seed_from_u64(seed ^ 1), cache.shape.width());
    (rows, cache.slots() as Position - 1)
}

prop_compose! {
    fn caches()(
        kv_heads in 1usize..=4, group in 1usize..=8, half_dim in 1usize..=32,
        block_size in prop::sample::select(vec![1usize, 8, 16, 128]),
        slots in 1usize..300, holes in prop::sample::select(vec![0.0, 0.3, 0.95]),
        fresh in prop::sample::select(vec![1usize, 7, 64]),
        half: bool, before: bool, seed: u64,
    ) -> (Cache, usize, u64) {
        let shape = Shape::new(kv_heads * group, kv_heads, 2 * half_dim).unwrap();
        let fresh = fresh.min(slots);
        (Cache::new(shape, block_size, seed, slots, holes, fresh).halved(half).before_rope(before), fresh, seed)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn decode_is_attention((cache, _, seed) in caches()) {
        let shape = cache.shape;
        let (rows, first) = newest(&cache, seed);
        let mut attention = CpuAttention::new(shape);
        let mut out = vec![0.0; shape.width()];
        cache.lanes(cache.slots(), |lanes| {
            attention.scores(Queries { rows: &rows, first }, lanes);
            attention.weighted_sum(lanes, &mut out);
        });
        for head in 0..shape.heads() {
            let (p, o) = reference(&cache, &rows, first, head);
            close(attention.probabilities().row(head), &p, 1e-5)?;
            close(&out[head * shape.head_dim()..][..shape.head_dim()], &o, 4e-5)?;
        }
    }

    #[test]
    fn prefill_is_attention_and_its_sums_are_what_the_slots_received((cache, fresh, seed) in caches()) {
        let (shape, slots) = (cache.shape, cache.slots());
        let rows = rows(&mut ChaCha8Rng::seed_from_u64(seed ^ 2), fresh * shape.width());
        let first = (slots - fresh) as Position;
        let mut attention = CpuAttention::new(shape);
        let mut out = vec![0.0; rows.len()];
        let wants = Wants { column_sums: true, last_row: true };
        cache.lanes(slots, |lanes| attention.prefill(Queries { rows: &rows, first }, lanes, wants, &mut [], &mut out));
        let mut sums = vec![vec![0.0; slots]; shape.kv_heads()];
        for (t, query) in rows.chunks_exact(shape.width()).enumerate() {
            for head in 0..shape.heads() {
                let (p, o) = reference(&cache, query, first + t as Position, head);
                let at = t * shape.width() + head * shape.head_dim();
                close(&out[at..][..shape.head_dim()], &o, 4e-5)?;
                let sums = &mut sums[head / shape.group()];
                sums.iter_mut().zip(&p).for_each(|(sum, p)| *sum += p / shape.group() as f64);
                if t + 1 == fresh {
                    close(attention.probabilities().row(head), &p, 1e-5)?;
                }
            }
        }
        for (h, sums) in sums.iter().enumerate() {
            close(attention.column_sums(h), sums, 1e-5 * fresh as f64)?;
        }
    }

    #[test]
    fn chunks_of_any_size_give_the_same_bits((cache, fresh, seed) in caches(), chunk in 1usize..70) {
        let (shape, slots) = (cache.shape, cache.slots());
        let rows = rows(&mut ChaCha8Rng::seed_from_u64(seed ^ 3), fresh * shape.width());
        let first = slots - fresh;
        let run = |chunk: usize| {
            let mut attention = CpuAttention::new(shape);
            let mut out = vec![0.0; rows.len()];
            let chunks = rows.chunks(chunk * shape.width()).zip(out.chunks_mut(chunk * shape.width()));
            let mut at = first;
            for (rows, out) in chunks {
                let queries = Queries { rows, first: at as Position };
                at += rows.len() / shape.width();
                cache.lanes(at, |lanes| attention.prefill(queries, lanes, Wants::default(), &mut [], out));
            }
            out
        };
        prop_assert_eq!(bits(&run(chunk)), bits(&run(fresh)));
    }

    #[test]
    fn decode_is_a_prefill_of_one_token_bit_for_bit((cache, _, seed) in caches()) {
        let shape = cache.shape;
        let (rows, first) = newest(&cache, seed);
        let (mut a, mut b) = (CpuAttention::new(shape), CpuAttention::new(shape));
        let (mut decoded, mut prefilled) = (vec![0.0; shape.width()], vec![0.0; shape.width()]);
        let mut sums = vec![0.0; cache.slots()];
        cache.lanes(cache.slots(), |lanes| {
            let query = Queries { rows: &rows, first };
            a.scores(query, lanes);
            a.weighted_sum(lanes, &mut decoded);
            b.prefill(query, lanes, Wants { column_sums: true, last_row: true }, &mut [], &mut prefilled);
        });
        prop_assert_eq!(bits(&decoded), bits(&prefilled));
        for head in 0..shape.heads() {
            prop_assert_eq!(bits(a.probabilities().row(head)), bits(b.probabilities().row(head)));
        }
        a.probabilities().add_group_mean(0, &mut sums);
        prop_assert_eq!(bits(&sums), bits(b.column_sums(0)));
    }

    #[test]
    fn a_selection_of_everything_is_the_full_sum_bit_for_bit((cache, _, seed) in caches(), more in 0usize..3) {
        let shape = cache.shape;
        let (rows, first) = newest(&cache, seed);
        let mut attention = CpuAttention::new(shape);
        let (mut full, mut read) = (vec![0.0; shape.width()], vec![0.0; shape.width()]);
        cache.lanes(cache.slots(), |lanes| {
            attention.scores(Queries { rows: &rows, first }, lanes);
            attention.weighted_sum(lanes, &mut full);
            let selection = attention.select_top(lanes, cache.slots() + more, true);
            assert!(selection.lanes().iter().all(|l| l.dropped().iter().all(|&d| d == 0.0)));
            let staged = cache.staged(selection);
            let half: Vec<Vec<f16>> =
                staged.iter().map(|r| r.iter().map(|&x| f16::from_f32(x)).collect()).collect();
            let values: Vec<Rows<'_>> = if cache.half {
                half.iter().map(|r| Rows::F16(r)).collect()
            } else {
                staged.iter().map(|r| Rows::F32(r)).collect()
            };
            attention.weighted_sum_selected(&values, &mut read);
        });
        prop_assert_eq!(bits(&full), bits(&read));
    }

    #[test]
    fn a_selection_is_the_largest_and_self_and_accounts_for_the_rest(
        (cache, _, seed) in caches(), n in 0usize..40, include_self: bool,
    ) {
        let shape = cache.shape;
        let (rows, first) = newest(&cache, seed);
        let mut attention = CpuAttention::new(shape);
        cache.lanes(cache.slots(), |lanes| {
            attention.scores(Queries { rows: &rows, first }, lanes);
            attention.select_top(lanes, n, include_self);
        });
        let (mut asked, mut union) = (0, 0);
        for h in 0..shape.kv_heads() {
            let lane = attention.selection().lane(h);
            let table = &cache.heads[h].0;
            let mut expected_union = std::collections::BTreeSet::new();
            for (i, row) in attention.probabilities().rows(h).enumerate() {
                let mut order: Vec<usize> = (0..row.len()).filter(|&s| table[s] != HOLE).collect();
                order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
                order.truncate(n);
                if include_self && !order.contains(&(row.len() - 1)) {
                    order.push(row.len() - 1);
                }
                asked += order.len() as u64;
                let used: f64 = order.iter().map(|&s| f64::from(row[s])).sum();
                prop_assert!((1.0 - used - f64::from(lane.dropped()[i])).abs() < 1e-5);
                for (&slot, &weight) in lane.slots().iter().zip(lane.weights(i)) {
                    let expected = if order.contains(&(slot as usize)) { row[slot as usize] } else { 0.0 };
                    prop_assert_eq!(weight, expected);
                }
                expected_union.extend(order.iter().map(|&s| s as u32));
            }
            prop_assert_eq!(lane.slots(), expected_union.into_iter().collect::<Vec<_>>());
            union += lane.slots().len() as u64;
        }
        prop_assert_eq!(attention.selection().asked_rows(), asked);
        prop_assert_eq!(attention.selection().union_rows(), union);
    }

    #[test]
    fn keys_rotated_at_read_have_the_bits_of_keys_rotated_at_write(
        (cache, fresh, seed) in caches(), theta in 100.0..1e6,
    ) {
        let shape = cache.shape;
        let d = shape.head_dim();
        let slots = cache.slots();
        let cache = Cache::new(shape, cache.block_size, seed, slots, 0.0, fresh);
        let rope = std::sync::Arc::new(Rope::new(d, theta, 100));
        let raw = rows(&mut ChaCha8Rng::seed_from_u64(seed ^ 4), fresh * shape.width());
        let first = slots - fresh;
        let (mut written, mut turned) = (cache.clone(), raw.clone());
        for (_, k, _) in &mut written.heads {
            k.chunks_exact_mut(d).enumerate().for_each(|(position, key)| rope.apply(key, position));
        }
        for (t, heads) in turned.chunks_exact_mut(shape.width()).enumerate() {
            rope.apply_heads(heads, d, first + t);
        }
        let read = Cache { rope: Some(rope), ..cache };
        let run = |cache: &Cache, rows: &[f32]| {
            let mut out = vec![0.0; rows.len()];
            let queries = Queries { rows, first: first as Position };
            cache.lanes(slots, |lanes| {
                CpuAttention::new(shape).prefill(queries, lanes, Wants::default(), &mut [], &mut out)
            });
            out
        };
        prop_assert_eq!(bits(&run(&read, &raw)), bits(&run(&written, &turned)));
    }

    #[test]
    fn keys_rotated_by_position_are_where_they_were_whatever_was_lost(
        (cache, fresh, seed) in caches(), theta in 100.0..1e6,
    ) {
        let shape = cache.shape;
        let d = shape.head_dim();
        let slots = cache.slots();
        let cache = Cache::new(shape, cache.block_size, seed, slots, 0.4, fresh);
        let rope = std::sync::Arc::new(Rope::new(d, theta, 100));
        let raw = rows(&mut ChaCha8Rng::seed_from_u64(seed ^ 4), fresh * shape.width());
        let newest = *cache.heads[0].0.last().unwrap();
        let first = newest as usize + 1 - fresh;
        let (mut written, mut turned) = (cache.clone(), raw.clone());
        for (slots, k, _) in &mut written.heads {
            for (key, &position) in k.chunks_exact_mut(d).zip(&*slots).filter(|(_, p)| **p != HOLE) {
                rope.apply(key, position as usize);
            }
        }
        for (t, heads) in turned.chunks_exact_mut(shape.width()).enumerate() {
            rope.apply_heads(heads, d, first + t);
        }
        let read = Cache { rope: Some(rope), by_position: true, ..cache };
        let run = |cache: &Cache, rows: &[f32]| {
            let mut out = vec![0.0; rows.len()];
            let queries = Queries { rows, first: first as Position };
            cache.lanes(slots, |lanes| {
                CpuAttention::new(shape).prefill(queries, lanes, Wants::default(), &mut [], &mut out)
            });
            out
        };
        prop_assert_eq!(bits(&run(&read, &raw)), bits(&run(&written, &turned)));
    }

    #[test]
    fn pictures_account_for_all_mass_at_every_level(
        (cache, _, seed) in caches(), k in 1u32..20, n in prop::option::of(1usize..20),
    ) {
        let shape = cache.shape;
        let (rows, first) = newest(&cache, seed);
        let mut attention = CpuAttention::new(shape);
        cache.lanes(cache.slots(), |lanes| {
            attention.scores(Queries { rows: &rows, first }, lanes);
            if let Some(n) = n {
                attention.select_top(lanes, n, true);
            }
            let read = n.map(|_| attention.selection());
            assert!(observe(ScoreLevel::Off, 3, attention.probabilities(), read, lanes).is_empty());
            for level in [ScoreLevel::Full, ScoreLevel::Top(k), ScoreLevel::Blocks] {
                let groups = observe(level, 3, attention.probabilities(), read, lanes);
                prop_assert_eq!(groups.len(), shape.kv_heads());
                for (h, group) in groups.iter().enumerate() {
                    let live: Vec<_> = lanes[h].slots.iter().copied().filter(|&p| p != HOLE).collect();
                    prop_assert_eq!(group.iter_positions().collect::<Vec<_>>(), live.clone());
                    prop_assert_eq!((group.layer, usize::from(group.kv_head)), (3, h));
                    for (i, row) in group.rows.iter().enumerate() {
                        prop_assert_eq!(usize::from(row.head), h * shape.group() + i);
                        let cells: Vec<u8> = match &row.cells {
                            Cells::Full(cells) => {
                                prop_assert_eq!(cells.len(), live.len());
                                cells.clone()
                            }
                            Cells::Top(cells) => {
                                prop_assert!(cells.len() <= k as usize && cells.is_sorted_by(|a, b| a.0 < b.0));
                                cells.iter().map(|c| c.1).collect()
                            }
                            Cells::Blocks(cells) => {
                                prop_assert_eq!(cells.len(), lanes[h].slots.len().div_ceil(cache.block_size));
                                cells.clone()
                            }
                        };
                        let carried: f32 = cells.iter().copied().map(dequantise).sum();
                        prop_assert!((0.0..=1.0).contains(&row.dropped));
                        prop_assert!((carried + row.dropped - 1.0).abs() < 0.023, "{} + {}", carried, row.dropped);
                        if let Some(read) = read {
                            prop_assert!(row.dropped >= read.lane(h).dropped()[i]);
                        }
                    }
                }
            }
            Ok(())
        })?;
    }
}

/// Keeps every row.
#[derive(Default)]
struct Kept(Vec<(Position, Vec<f32>)>);

impl RowSink for Kept {
    fn row(&mut self, query: Position, row: &[f32]) {
        self.0.push((query, row.to_vec()));
    }
}

#[test]
fn sinks_get_every_row_that_the_sums_are_made_of() {
    let shape = Shape::new(8, 4, 16).unwrap();
    let fresh = 37;
    let cache = Cache::new(shape, 16, 5, 200, 0.1, fresh);
    let rows = rows(&mut ChaCha8Rng::seed_from_u64(6), fresh * shape.width());
    let first = (cache.slots() - fresh) as Position;
    let mut attention = CpuAttention::new(shape);
    let (mut out, mut plain) = (vec![0.0; rows.len()], vec![0.0; rows.len()]);
    let wants = Wants { column_sums: true, last_row: true };
    let mut kept: Vec<Kept> = (0..4).map(|_| Kept::default()).collect();
    let mut sinks: Vec<&mut dyn RowSink> = kept.iter_mut().map(|sink| sink as _).collect();
    cache.lanes(cache.slots(), |lanes| {
        attention.prefill(Queries { rows: &rows, first }, lanes, wants, &mut [], &mut plain);
        attention.prefill(Queries { rows: &rows, first }, lanes, wants, &mut sinks, &mut out);
    });
    assert_eq!(bits(&out), bits(&plain));
    for (h, Kept(rows)) in kept.iter().enumerate() {
        assert!(rows.iter().map(|&(query, _)| query).eq(first..first + fresh as Position));
        let mut sums = vec![0.0; cache.slots()];
        for (query, row) in rows {
            assert_eq!(row.len(), *query as usize + 1);
            sums.iter_mut().zip(row).for_each(|(sum, p)| *sum += p);
        }
        assert_eq!(bits(&sums), bits(attention.column_sums(h)));
        let mut last = vec![0.0; cache.slots()];
        attention.probabilities().add_group_mean(h, &mut last);
        assert_eq!(bits(&rows[fresh - 1].1), bits(&last));
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let shape = Shape::new(8, 4, 64).unwrap();
    let cache = Cache::new(shape, 16, 5, 2_600, 0.1, 40);
    let (rows, first) = newest(&cache, 5);
    let chunk = super::tests::rows(&mut ChaCha8Rng::seed_from_u64(6), 40 * shape.width());
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut attention = CpuAttention::new(shape);
            let (mut out, mut prefilled) = (vec![0.0; shape.width()], vec![0.0; chunk.len()]);
            cache.lanes(cache.slots(), |lanes| {
                attention.scores(Queries { rows: &rows, first }, lanes);
                attention.weighted_sum(lanes, &mut out);
                let queries = Queries { rows: &chunk, first: first - 39 };
                let wants = Wants { column_sums: true, last_row: true };
                attention.prefill(queries, lanes, wants, &mut [], &mut prefilled);
            });
            let sums: Vec<u32> = (0..4).flat_map(|h| bits(attention.column_sums(h))).collect();
            (bits(&out), bits(&prefilled), sums)
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(4));
}

#[test]
fn long_lanes_are_summed_range_by_range() {
    let shape = Shape::new(2, 1, 8).unwrap();
    let mut cache = Cache::new(shape, 24, 11, 3 * RANGE_SLOTS + 5, 0.5, 1);
    let (table, k, v) = &mut cache.heads[0];
    for slot in RANGE_SLOTS..2 * RANGE_SLOTS {
        table[slot] = HOLE;
        k[slot * 8..][..8].fill(f32::NAN);
        v[slot * 8..][..8].fill(f32::NAN);
    }
    let (rows, first) = newest(&cache, 11);
    let mut attention = CpuAttention::new(shape);
    let (mut full, mut read) = (vec![0.0; shape.width()], vec![0.0; shape.width()]);
    cache.lanes(cache.slots(), |lanes| {
        attention.scores(Queries { rows: &rows, first }, lanes);
        attention.weighted_sum(lanes, &mut full);
        let staged = cache.staged(attention.select_top(lanes, usize::MAX, false));
        attention.weighted_sum_selected(&[Rows::F32(&staged[0])], &mut read);
    });
    assert_eq!(bits(&full), bits(&read));
    for head in 0..2 {
        let (p, out) = reference(&cache, &rows, first, head);
        close(attention.probabilities().row(head), &p, 1e-6).unwrap();
        close(&full[head * 8..][..8], &out, 1e-5).unwrap();
    }
}

#[test]
fn a_query_is_blind_to_later_rows_even_to_bad_ones() {
    let shape = Shape::new(2, 1, 8).unwrap();
    let mut cache = Cache::new(shape, 4, 9, 10, 0.0, 10);
    let (_, k, v) = &mut cache.heads[0];
    k[9 * 8..].fill(f32::NAN);
    v[9 * 8..].fill(f32::INFINITY);
    let rows = rows(&mut ChaCha8Rng::seed_from_u64(9), 10 * shape.width());
    let mut out = vec![0.0; rows.len()];
    cache.lanes(10, |lanes| {
        CpuAttention::new(shape).prefill(
            Queries { rows: &rows, first: 0 },
            lanes,
            Wants::default(),
            &mut [],
            &mut out,
        );
    });
    let (before, last) = out.split_at(9 * shape.width());
    assert!(before.iter().all(|x| x.is_finite()));
    assert!(last.iter().all(|x| x.is_nan()));
}

#[test]
fn bad_numbers_and_empty_lanes_go_through_every_stage() {
    let shape = Shape::new(4, 2, 4).unwrap();
    for poison in [f32::NAN, f32::INFINITY, f32::MAX] {
        let mut cache = Cache::new(shape, 8, 3, 20, 0.0, 1);
        cache.heads[0].1[5] = poison;
        let rows = vec![2.0; shape.width()];
        let mut attention = CpuAttention::new(shape);
        let mut out = vec![0.0; shape.width()];
        cache.lanes(20, |lanes| {
            attention.scores(Queries { rows: &rows, first: 19 }, lanes);
            let staged = cache.staged(attention.select_top(lanes, 3, true));
            let values: Vec<_> = staged.iter().map(|r| Rows::F32(r)).collect();
            attention.weighted_sum_selected(&values, &mut out);
            for row in
                &observe(ScoreLevel::Full, 0, attention.probabilities(), Some(attention.selection()), lanes)
                    [0]
                .rows
            {
                assert!((0.0..=1.0).contains(&row.dropped));
            }
        });
    }
    let cache = Cache::new(shape, 8, 3, 0, 0.0, 0);
    let mut attention = CpuAttention::new(shape);
    let mut out = vec![1.0; shape.width()];
    cache.lanes(0, |lanes| {
        let query = Queries { rows: &[1.0; 16], first: 0 };
        attention.scores(query, lanes);
        attention.weighted_sum(lanes, &mut out);
        assert_eq!(out, [0.0; 16]);
        assert_eq!(attention.select_top(lanes, 3, true).union_rows(), 0);
        attention.weighted_sum_selected(&[Rows::F32(&[]), Rows::F32(&[])], &mut out);
        attention.prefill(query, lanes, Wants { column_sums: true, last_row: true }, &mut [], &mut out);
        assert_eq!(out, [0.0; 16]);
    });
}

#[test]
fn a_backend_reused_for_another_sequence_starts_clean() {
    let shape = Shape::new(4, 2, 8).unwrap();
    let (long, short) = (Cache::new(shape, 16, 1, 200, 0.2, 1), Cache::new(shape, 16, 2, 9, 0.0, 1));
    let run = |attention: &mut CpuAttention, cache: &Cache| {
        let (rows, first) = newest(cache, 7);
        let mut out = vec![0.0; shape.width()];
        cache.lanes(cache.slots(), |lanes| {
            attention.scores(Queries { rows: &rows, first }, lanes);
            let staged = cache.staged(attention.select_top(lanes, 2, true));
            let values: Vec<_> = staged.iter().map(|r| Rows::F32(r)).collect();
            attention.weighted_sum_selected(&values, &mut out);
        });
        bits(&out)
    };
    let mut used = CpuAttention::new(shape);
    run(&mut used, &long);
    assert_eq!(run(&mut used, &short), run(&mut CpuAttention::new(shape), &short));
}
