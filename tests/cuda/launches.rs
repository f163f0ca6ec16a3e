//! Launches as the program makes them, over batches: a read set from probabilities to output without the host, rows of
//! several sequences turned and appended, survivors moved together.

use std::cell::RefCell;

use kvista::attention::Rope;
use kvista::device::gpu::{Array, Gpu};
use kvista::device::launch::{
    Append, Cell as DeviceCell, CompactRows, CountReused, GatherKept, GatherRows, Heads, KeptRows, RopeRows,
    SelectTop, Union, Weighted,
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::codes::turns_of;
use crate::device::{Device, device};
use crate::emulated::is_there;
use crate::host::{floats, same_bits, within};
use crate::scene::{Cell, HOLE, LaneScene, Plan, Scene, pick, seeded, uniform};
use crate::select::top;

const CASES: u64 = 12;

/// A device, and the memory that a test has of it.
pub(crate) struct On {
    pub(crate) gpu: Device,
    pieces: RefCell<Vec<<Device as Gpu>::Memory>>,
}

impl On {
    pub(crate) fn new(schedule: u32) -> Self {
        Self { gpu: device(schedule), pieces: RefCell::default() }
    }

    /// Bytes of 0xff.
    pub(crate) fn room(&self, bytes: usize) -> Array {
        self.bytes(&vec![0xff; bytes])
    }

    pub(crate) fn bytes(&self, bytes: &[u8]) -> Array {
        let piece = self.gpu.allocate("a test", bytes.len().max(4)).unwrap();
        let array = self.gpu.array(&piece);
        self.gpu.upload(array, bytes).unwrap();
        self.pieces.borrow_mut().push(piece);
        array
    }

    pub(crate) fn words(&self, words: &[u32]) -> Array {
        self.bytes(bytemuck::cast_slice(words))
    }

    pub(crate) fn floats(&self, numbers: &[f32]) -> Array {
        self.bytes(bytemuck::cast_slice(numbers))
    }

    pub(crate) fn lanes(&self, scene: &Scene) -> Array {
        self.words(&scene.lanes.iter().flat_map(|lane| lane.words).collect::<Vec<_>>())
    }

    pub(crate) fn read(&self, array: Array, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        self.gpu.download(array, &mut read).unwrap();
        read
    }

    pub(crate) fn read_words(&self, array: Array, n: usize) -> Vec<u32> {
        self.read(array, 4 * n).as_chunks::<4>().0.iter().map(|&word| u32::from_ne_bytes(word)).collect()
    }
}

/// A scene of pages that the program knows, and how it calls their type.
pub(crate) fn scene(rng: &mut ChaCha8Rng) -> (Scene, DeviceCell) {
    let (cell, of_device) = *pick(
        rng,
        &[(Cell::F32, DeviceCell::F32), (Cell::F16, DeviceCell::F16), (Cell::Int8, DeviceCell::Int8)],
    );
    let plan = Plan { sequences: rng.random_range(1..=4), ..Plan::chance(rng, cell) };
    (Scene::new(plan, rng), of_device)
}

const fn heads(plan: Plan) -> Heads {
    Heads { heads: plan.heads(), kv_heads: plan.kv_heads, head_dim: plan.head_dim }
}

/// Probabilities of every head over what it sees, NaN behind a lane's last slot.
fn probabilities(rng: &mut ChaCha8Rng, scene: &Scene, stride: usize) -> Vec<f32> {
    let group = scene.plan.group;
    let mut rows = vec![f32::NAN; scene.lanes.len() * group * stride];
    for (row, numbers) in rows.chunks_exact_mut(stride).enumerate() {
        let lane = &scene.lanes[row / group];
        let numbers = &mut numbers[..lane.slots()];
        for (slot, p) in numbers.iter_mut().enumerate() {
            *p = if lane.sees(lane.query, slot) { rng.random_range(0.0f32..1.0).powi(8) } else { 0.0 };
        }
        let sum: f32 = numbers.iter().sum();
        for p in numbers {
            *p /= sum.max(f32::MIN_POSITIVE);
        }
    }
    rows
}

/// A read set of sequences `from .. to`: chosen, pulled and summed; the output of those sequences.
struct ReadSet<'a> {
    scene: &'a Scene,
    cell: DeviceCell,
    rows: &'a [f32],
    n: usize,
    own: bool,
    renorm: bool,
}

impl ReadSet<'_> {
    fn run(&self, schedule: u32, from: usize, to: usize) -> Vec<u32> {
        let Plan { kv_heads, head_dim, block_size, group, .. } = self.scene.plan;
        let (on, heads, sequences) = (On::new(schedule), heads(self.scene.plan), to - from);
        let most = self.scene.most_slots();
        let stride = self.rows.len() / (self.scene.lanes.len() * group);
        let list = most.min(group * (self.n + 1));
        let row_bytes = self.cell.row_bytes(head_dim);
        let of_head = |elements: usize| on.room(4 * sequences * heads.heads * elements);
        let of_lane = |elements: usize| on.room(4 * sequences * kv_heads * elements);
        let lanes = on.lanes(self.scene).offset(32 * from * kv_heads);
        let blocks = on.words(&self.scene.blocks);
        let of = SelectTop {
            heads,
            sequences,
            slots: most,
            marks: of_head(SelectTop::words(most)),
            counts: of_head(1),
            list: Array::NONE,
            list_stride: 0,
            rows: on.floats(self.rows).offset(4 * from * heads.heads * stride),
            row_stride: stride,
            positions: on.words(&self.scene.positions),
            lanes,
            n: self.n,
            own: self.own,
        };
        of.launch(&on.gpu).unwrap();
        let union = Union {
            of,
            slots: of_lane(list),
            counts: of_lane(1),
            weights: of_head(list),
            dropped: of_head(1),
            list_stride: list,
        };
        union.launch(&on.gpu).unwrap();
        let gather = GatherRows {
            kv_heads,
            sequences,
            row_bytes,
            block_size,
            rows: list,
            staged: on.room(sequences * kv_heads * (list + 1) * row_bytes),
            row_stride: list + 1,
            slab: on.bytes(&self.scene.v),
            slots: union.slots,
            slot_stride: list,
            counts: union.counts,
            blocks,
            lanes,
        };
        gather.launch(&on.gpu).unwrap();
        let weighted = Weighted {
            cell: self.cell,
            heads,
            sequences,
            rows: list,
            staged: gather.staged,
            row_stride: gather.row_stride,
            weights: union.weights,
            weight_stride: list,
            counts: union.counts,
            dropped: if self.renorm { union.dropped } else { Array::NONE },
            partial: of_head(Weighted::partial_elements(heads, 1, list) / heads.heads),
            out: of_head(head_dim),
        };
        weighted.launch(&on.gpu).unwrap();
        on.read_words(weighted.out, sequences * heads.heads * head_dim)
    }
}

/// Live slots of a lane by chance, ascending.
fn some_live(rng: &mut ChaCha8Rng, lane: &LaneScene, share: f64) -> Vec<usize> {
    (0..lane.slots()).filter(|&slot| lane.positions[slot] != HOLE && rng.random_bool(share)).collect()
}

/// Rows per lane at a stride, the rest 0.
fn strided(lists: &[Vec<u32>], stride: usize) -> Vec<u32> {
    lists.iter().flat_map(|list| list.iter().copied().chain(std::iter::repeat(0)).take(stride)).collect()
}

#[test]
fn rows_that_were_pulled_before_come_from_there_and_others_from_their_pages() {
    if !is_there() {
        return;
    }
    for seed in 0..CASES {
        let mut rng = seeded(26_000 + seed);
        let (scene, cell) = scene(&mut rng);
        let Plan { sequences, kv_heads, head_dim, block_size, .. } = scene.plan;
        let (row_bytes, list) = (cell.row_bytes(head_dim), scene.most_slots());
        let (stride, before_stride) = (list + 1, list + 2);
        let chosen: Vec<Vec<usize>> = scene.lanes.iter().map(|lane| some_live(&mut rng, lane, 0.4)).collect();
        let kept: Vec<Vec<usize>> = scene.lanes.iter().map(|lane| some_live(&mut rng, lane, 0.3)).collect();
        let positions_of = |lists: &[Vec<usize>]| -> Vec<Vec<u32>> {
            let of =
                |(lane, slots): (&LaneScene, &Vec<usize>)| slots.iter().map(|&s| lane.positions[s]).collect();
            scene.lanes.iter().zip(lists).map(of).collect()
        };
        let counts =
            |lists: &[Vec<usize>]| -> Vec<u32> { lists.iter().map(|list| list.len() as u32).collect() };
        let slots: Vec<Vec<u32>> = chosen.iter().map(|l| l.iter().map(|&s| s as u32).collect()).collect();
        let lanes = scene.lanes.len();
        // Rows that no page has.
        let before_rows: Vec<u8> = (0..lanes * before_stride * row_bytes).map(|_| rng.random()).collect();
        let with_before = !seed.is_multiple_of(4);
        let got = same_bits(|schedule| {
            let on = On::new(schedule);
            let of = GatherRows {
                kv_heads,
                sequences,
                row_bytes,
                block_size,
                rows: list,
                staged: Array::NONE,
                row_stride: stride,
                slab: on.bytes(&scene.v),
                slots: on.words(&strided(&slots, list)),
                slot_stride: list,
                counts: on.words(&counts(&chosen)),
                blocks: on.words(&scene.blocks),
                lanes: on.lanes(&scene),
            };
            let staged = KeptRows {
                rows: on.bytes(&vec![0; lanes * stride * row_bytes]),
                positions: on.words(&vec![0; lanes * stride]),
                counts: on.room(4 * lanes),
                stride,
            };
            let before = KeptRows {
                rows: on.bytes(&before_rows),
                positions: on.words(&strided(&positions_of(&kept), before_stride)),
                counts: on.words(&counts(&kept)),
                stride: before_stride,
            };
            let positions = on.words(&scene.positions);
            let gather = GatherKept { of, positions, staged, before: with_before.then_some(before) };
            gather.launch(&on.gpu).unwrap();
            let mut words: Vec<u32> =
                on.read(staged.rows, lanes * stride * row_bytes).into_iter().map(u32::from).collect();
            words.extend(on.read_words(staged.positions, lanes * stride));
            words.extend(on.read_words(staged.counts, lanes));
            words
        });
        let (bytes, rest) = got.split_at(lanes * stride * row_bytes);
        let (positions, of_counts) = rest.split_at(lanes * stride);
        assert_eq!(of_counts, counts(&chosen));
        assert_eq!(positions, strided(&positions_of(&chosen), stride));
        for (i, (lane, chosen)) in scene.lanes.iter().zip(&chosen).enumerate() {
            for (j, &slot) in chosen.iter().enumerate() {
                let of_before = kept[i].iter().position(|&s| s == slot).filter(|_| with_before);
                let want = match of_before {
                    Some(at) => &before_rows[(i * before_stride + at) * row_bytes..][..row_bytes],
                    None => &scene.v[lane.rows[slot] * row_bytes..][..row_bytes],
                };
                let got = &bytes[(i * stride + j) * row_bytes..][..row_bytes];
                assert!(
                    got.iter().zip(want).all(|(&got, &want)| got == u32::from(want)),
                    "lane {i}, slot {slot}"
                );
            }
        }
    }
}

#[test]
fn what_was_chosen_before_is_counted_and_gives_way() {
    if !is_there() {
        return;
    }
    for seed in 0..CASES {
        let mut rng = seeded(27_000 + seed);
        let (scene, _) = scene(&mut rng);
        let Plan { sequences, kv_heads, .. } = scene.plan;
        let (list, lanes) = (scene.most_slots(), scene.lanes.len());
        let stride = list + 3;
        // Sequences of the batch are some of the run's, in an order of their own.
        let owners: Vec<u32> = (0..sequences as u32).map(|i| 2 * (sequences as u32 - 1 - i)).collect();
        let places = 2 * sequences * kv_heads;
        let steps: Vec<Vec<Vec<usize>>> = [0.3, 0.6, 0.4]
            .map(|share| scene.lanes.iter().map(|lane| some_live(&mut rng, lane, share)).collect())
            .to_vec();
        let got = same_bits(|schedule| {
            let on = On::new(schedule);
            let pulled = on.room(4 * places * stride);
            let pulled_counts = on.words(&vec![0; places]);
            let count = |chosen: &Vec<Vec<usize>>| {
                let slots: Vec<Vec<u32>> =
                    chosen.iter().map(|l| l.iter().map(|&s| s as u32).collect()).collect();
                let counts: Vec<u32> = chosen.iter().map(|list| list.len() as u32).collect();
                let count = CountReused {
                    kv_heads,
                    sequences,
                    reused: on.room(4 * lanes),
                    pulled,
                    pulled_counts,
                    pulled_stride: stride,
                    slots: on.words(&strided(&slots, list)),
                    slot_stride: list,
                    counts: on.words(&counts),
                    owners: on.words(&owners),
                    positions: on.words(&scene.positions),
                    lanes: on.lanes(&scene),
                };
                count.launch(&on.gpu).unwrap();
                on.read_words(count.reused, lanes)
            };
            steps.iter().map(count).collect::<Vec<_>>()
        });
        let again = |before: &[usize], now: &[usize]| now.iter().filter(|slot| before.contains(slot)).count();
        assert_eq!(got[0], vec![0; lanes]);
        for (pair, got) in steps.windows(2).zip(&got[1..]) {
            let want: Vec<u32> = pair[0].iter().zip(&pair[1]).map(|(a, b)| again(a, b) as u32).collect();
            assert_eq!(*got, want);
        }
    }
}

#[test]
fn a_batch_reads_what_each_of_its_sequences_reads_alone() {
    if !is_there() {
        return;
    }
    for seed in 0..CASES {
        let mut rng = seeded(20_000 + seed);
        let (scene, cell) = scene(&mut rng);
        let Plan { sequences, group, head_dim: d, .. } = scene.plan;
        let stride = scene.most_slots() + 3;
        let rows = probabilities(&mut rng, &scene, stride);
        let (n, own) = (*pick(&mut rng, &[1, 4, 64, 400]), rng.random_bool(0.5));
        let set = ReadSet { scene: &scene, cell, rows: &rows, n, own, renorm: seed.is_multiple_of(2) };
        let together = same_bits(|schedule| set.run(schedule, 0, sequences));
        let alone: Vec<u32> = (0..sequences).flat_map(|s| set.run(0, s, s + 1)).collect();
        assert!(together == alone, "{:?}", scene.plan);
        // Halves, as they are pulled in turns.
        let halves = [set.run(0, 0, sequences / 2), set.run(0, sequences / 2, sequences)].concat();
        assert!(together == halves, "{:?}", scene.plan);
        for (row, out) in floats(&together).chunks_exact(d).enumerate() {
            let (lane, row) = (&scene.lanes[row / group], &rows[row * stride..]);
            let chosen = top(&row[..lane.slots()], lane, n, own);
            let read: f64 = chosen.iter().map(|&slot| f64::from(row[slot as usize])).sum();
            let by = if set.renorm && read > 0.0 { read } else { 1.0 };
            let cases = out.iter().enumerate().map(|(c, &got)| {
                let term = |&slot: &u32| {
                    f64::from(row[slot as usize]) * f64::from(lane.values[slot as usize * d + c]) / by
                };
                let terms = chosen.iter().map(term);
                (got, terms.clone().sum(), terms.map(f64::abs).sum())
            });
            // What is left of 1 is off by as much as the sum of what was left out.
            within("a read set's output", 1e-5 / by.min(1.0), cases);
        }
    }
}

#[test]
fn rows_of_several_sequences_are_turned_and_appended_at_once() {
    if !is_there() {
        return;
    }
    for seed in 0..CASES {
        let mut rng = seeded(21_000 + seed);
        let (scene, cell) = scene(&mut rng);
        let Plan { cell: stored, head_dim: d, block_size, .. } = scene.plan;
        let half = *pick(&mut rng, &[d / 2, d / 4]);
        let rope = Rope::with_frequencies((0..half).map(|i| 0.9f64.powi(i as i32)).collect(), 64);
        let turns = turns_of(&rope, half, 64);
        // Every lane's newest slots, more of some than of others, in no order.
        let mut places: Vec<(usize, usize)> = Vec::new();
        for (i, lane) in scene.lanes.iter().enumerate() {
            let new = rng.random_range(1..=lane.slots().min(5));
            places.extend((lane.slots() - new..lane.slots()).map(|slot| (i, slot)));
        }
        let by = rng.random_range(0..places.len());
        places.rotate_left(by);
        let rows = places.len();
        let angles: Vec<u32> = (0..rows).map(|_| rng.random_range(0..64)).collect();
        let (keys, values) = (uniform(&mut rng, rows * d, 3.0), uniform(&mut rng, rows * d, 3.0));
        let keys_only = seed.is_multiple_of(3);
        let (k, v) = same_bits(|schedule| {
            let on = On::new(schedule);
            let rotation = RopeRows {
                rows,
                head_dim: d,
                half,
                array: on.floats(&keys),
                turns: on.floats(&turns),
                angles: on.words(&angles),
            };
            rotation.launch(&on.gpu).unwrap();
            let column = |of: fn(&(usize, usize)) -> usize| {
                on.words(&places.iter().map(|place| of(place) as u32).collect::<Vec<_>>())
            };
            let append = Append {
                cell,
                rows,
                head_dim: d,
                block_size,
                k: on.room(scene.k.len()),
                v: on.room(scene.v.len()),
                keys: rotation.array,
                values: on.floats(&values),
                lane_of: column(|place| place.0),
                slots: column(|place| place.1),
                blocks: on.words(&scene.blocks),
                lanes: on.lanes(&scene),
                keys_only,
            };
            append.launch(&on.gpu).unwrap();
            (on.read(append.k, scene.k.len()), on.read(append.v, scene.v.len()))
        });
        let row_bytes = stored.row_bytes(d);
        let (mut want_k, mut want_v) = (vec![0xff; k.len()], vec![0xff; v.len()]);
        for (row, &(lane, slot)) in places.iter().enumerate() {
            let mut key = keys[row * d..][..d].to_vec();
            rope.apply(&mut key, angles[row] as usize);
            let at = scene.lanes[lane].rows[slot] * row_bytes;
            want_k[at..][..row_bytes].copy_from_slice(&stored.encode(false, &key, &[true], d).0);
            if !keys_only {
                let value = &values[row * d..][..d];
                want_v[at..][..row_bytes].copy_from_slice(&stored.encode(false, value, &[true], d).0);
            }
        }
        assert!(k == want_k && v == want_v, "{:?}", scene.plan);
    }
}

#[test]
fn survivors_of_a_batch_move_together() {
    if !is_there() {
        return;
    }
    for seed in 0..CASES {
        let mut rng = seeded(22_000 + seed);
        let (scene, _) = scene(&mut rng);
        let Plan { cell, sequences, kv_heads, head_dim, block_size, .. } = scene.plan;
        let row_bytes = cell.row_bytes(head_dim);
        // Some lanes keep what they have where it is.
        let first = |lane: &LaneScene| lane.positions.iter().position(|&position| position == HOLE);
        let moves: Vec<(usize, Vec<u32>)> = scene
            .lanes
            .iter()
            .map(|lane| {
                let Some(first) = first(lane).filter(|_| rng.random_bool(0.8)) else {
                    return (0, Vec::new());
                };
                let live = (first..lane.slots()).filter(|&slot| lane.positions[slot] != HOLE);
                (first, live.map(|slot| slot as u32).collect())
            })
            .collect();
        let stride = scene.most_slots();
        let mut kept = vec![u32::MAX; moves.len() * stride];
        for ((_, slots), kept) in moves.iter().zip(kept.chunks_exact_mut(stride)) {
            kept[..slots.len()].copy_from_slice(slots);
        }
        let keys_only = seed.is_multiple_of(3);
        let (k, v) = same_bits(|schedule| {
            let on = On::new(schedule);
            let v = on.bytes(&scene.v);
            let compact = CompactRows {
                kv_heads,
                sequences,
                block_size,
                k: on.bytes(&scene.k),
                v: if keys_only { Array::NONE } else { v },
                row_bytes: [row_bytes; 2],
                kept: on.words(&kept),
                kept_stride: stride,
                counts: on.words(&moves.iter().map(|(_, slots)| slots.len() as u32).collect::<Vec<_>>()),
                first: on.words(&moves.iter().map(|&(first, _)| first as u32).collect::<Vec<_>>()),
                blocks: on.words(&scene.blocks),
                lanes: on.lanes(&scene),
            };
            compact.launch(&on.gpu).unwrap();
            (on.read(compact.k, scene.k.len()), on.read(v, scene.v.len()))
        });
        let moved = |slab: &[u8]| {
            let mut after = slab.to_vec();
            for (lane, (first, slots)) in scene.lanes.iter().zip(&moves) {
                for (i, &slot) in slots.iter().enumerate() {
                    let (from, to) = (lane.rows[slot as usize] * row_bytes, lane.rows[first + i] * row_bytes);
                    after[to..][..row_bytes].copy_from_slice(&slab[from..][..row_bytes]);
                }
            }
            after
        };
        assert!(k == moved(&scene.k), "{:?}", scene.plan);
        assert!(v == if keys_only { scene.v.clone() } else { moved(&scene.v) }, "{:?}", scene.plan);
    }
}

#[test]
fn rows_that_are_no_words_are_refused() {
    if !is_there() {
        return;
    }
    let on = On::new(0);
    let none = Array::NONE;
    let gather = GatherRows {
        kv_heads: 1,
        sequences: 1,
        row_bytes: 6,
        block_size: 1,
        rows: 1,
        staged: none,
        row_stride: 1,
        slab: none,
        slots: none,
        slot_stride: 1,
        counts: none,
        blocks: none,
        lanes: none,
    };
    let refused = gather.launch(&on.gpu).unwrap_err().to_string();
    assert_eq!(refused, "on a GPU, rows of 6 bytes cannot be moved: they must be a multiple of 4");
}
