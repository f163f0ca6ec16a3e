//! Accumulators against the rules' own, bit for bit, over decode steps and prefill chunks.

use kvista::policy::{Accumulators, Needs, Site};
use rand::Rng;

use crate::host::{Buffer, NULL, floats, kernels, same_bits};
use crate::scene::{Cell, HOLE, Plan, Scene, pick, seeded};

const CASES: u64 = 20;

#[test]
fn accumulators_have_the_bits_of_the_rules() {
    let Some(kernels) = kernels("accumulate") else { return };
    for seed in 0..CASES {
        let mut rng = seeded(5000 + seed);
        let queries = *pick(&mut rng, &[1, 1, 5, 33]);
        let plan = Plan {
            cell: Cell::F32,
            sequences: if queries == 1 { 2 } else { 1 },
            kv_heads: rng.random_range(1..4),
            group: rng.random_range(1..9),
            head_dim: 8,
            block_size: 16,
            slots: *pick(&mut rng, &[40, 256, 300]),
            holes: 0.2,
            fresh: queries,
        };
        let scene = Scene::new(plan, &mut rng);
        let Plan { sequences, kv_heads, group, .. } = plan;
        let (heads, most) = (plan.heads(), scene.most_slots());
        let (stride, reach) = (most + 1, 3 * most + 50);
        // Rows as attention gives them: 0 where a query does not see; what lies behind a lane is not read.
        let mut rows = vec![f32::NAN; sequences * heads * queries * stride];
        for (i, lane) in scene.lanes.iter().enumerate() {
            for row in 0..group * queries {
                let (head, query) = (i * group + row / queries, row % queries);
                for slot in 0..lane.slots() {
                    let seen = lane.sees(lane.query + query as u32, slot);
                    rows[(head * queries + query) * stride + slot] =
                        if seen { rng.random_range(0.0..0.1) } else { 0.0 };
                }
            }
        }
        let first = scene.lanes.iter().map(|lane| lane.query).min().unwrap();
        let newest = scene.lanes.iter().map(|lane| lane.query).max().unwrap() + queries as u32;
        let span_len = rng.random_range(first..=newest);
        let window = rng.random_range(1..20u32);
        let ring_rows = rng.random_range(queries..40);
        let before: Vec<f32> = (0..scene.lanes.len() * reach).map(|_| rng.random_range(0.0..3.0)).collect();
        let only_sum = seed.is_multiple_of(5);
        // Whose sums they are: in another order than the launch has them, or as they come.
        let swapped = sequences > 1 && seed.is_multiple_of(2);
        let owner = |sequence: usize| if swapped { sequences - 1 - sequence } else { sequence };
        let owners: Vec<u32> = (0..sequences).map(|sequence| owner(sequence) as u32).collect();
        let result = same_bits(|schedule| {
            // Sums go on from what they were; what is added one by one is compared from 0 on.
            let zeros = || Buffer::zeros(before.len());
            let mut kept = [Buffer::of_f32(&before), zeros(), zeros()];
            let mut count = Buffer::zeros(scene.lanes.len() * reach);
            let mut last = Buffer::room(scene.lanes.len() * reach);
            let mut ring = Buffer::room(scene.lanes.len() * ring_rows * reach);
            let mut input = Buffer::of_f32(&rows);
            let mut positions = Buffer::of_u32(&scene.positions);
            let mut lanes = scene.lane_words();
            let mut owners = Buffer::of_u32(&owners);
            let owners = if swapped { owners.arg() } else { NULL };
            let optional = |arg| if only_sum { NULL } else { arg };
            let args = [
                kept[0].arg(),
                optional(kept[1].arg()),
                optional(count.arg()),
                optional(last.arg()),
                optional(kept[2].arg()),
                optional(ring.arg()),
                owners,
                input.arg(),
                positions.arg(),
                lanes.arg(),
                heads.into(),
                kv_heads.into(),
                queries.into(),
                stride.into(),
                reach.into(),
                ring_rows.into(),
                span_len.saturating_sub(window).into(),
                span_len.into(),
            ];
            kernels.run("accumulate", [most.div_ceil(256), kv_heads, sequences], 256, &args, schedule);
            let grid = [most.div_ceil(256), kv_heads, sequences];
            // What the slots have of it, the squares not among it.
            let kinds = if only_sum { 1 } else { 4 };
            let mut taken = Buffer::room(scene.lanes.len() * kinds * stride);
            let args = [
                taken.arg(),
                kept[0].arg(),
                NULL,
                optional(count.arg()),
                optional(last.arg()),
                optional(kept[2].arg()),
                owners,
                positions.arg(),
                lanes.arg(),
                kv_heads.into(),
                reach.into(),
                stride.into(),
            ];
            kernels.run("take_sums", grid, 256, &args, schedule);
            // Scores by the sum, the mean and the newest row, of each head and of all.
            let mut scored = Vec::new();
            for (by_sum, by_count) in [(true, false), (true, true), (false, false)] {
                for heads in [kv_heads, 1] {
                    let mut scores = Buffer::room(scene.lanes.len() * stride);
                    let args = [
                        scores.arg(),
                        if by_sum { kept[0].arg() } else { NULL },
                        if by_count { count.arg() } else { NULL },
                        last.arg(),
                        owners,
                        positions.arg(),
                        lanes.arg(),
                        kv_heads.into(),
                        reach.into(),
                        stride.into(),
                    ];
                    if only_sum && (by_count || !by_sum) {
                        continue;
                    }
                    kernels.run("score_slots", [grid[0], heads, sequences], 256, &args, schedule);
                    scored.push(scores.u32s());
                }
            }
            let [sum, squares, window] = [0, 1, 2].map(|i| kept[i].u32s());
            (sum, squares, window, count.u32s(), last.u32s(), ring.u32s(), taken.u32s(), scored)
        });
        let (sum, squares, in_window, count, last, ring, taken, scored) = &result;
        let kept_at = |i: usize| (owner(i / kv_heads) * kv_heads + i % kv_heads) * reach;
        let value = |by: usize, i: usize, position: u32| {
            let at = kept_at(i) + position as usize;
            let bits = |of: &[u32]| f32::from_bits(of[at]);
            match by {
                0 => bits(sum),
                1 => bits(sum) / count[at].max(1) as f32,
                _ => bits(last),
            }
        };
        for (i, lane) in scene.lanes.iter().enumerate() {
            for (slot, &position) in lane.positions.iter().enumerate() {
                let kinds: &[&[u32]] = if only_sum { &[sum] } else { &[sum, count, last, in_window] };
                for (kind, kept) in kinds.iter().enumerate() {
                    let got = taken[(i * kinds.len() + kind) * stride + slot];
                    // The newest row has nothing of a position that no query of the chunk comes to.
                    let unseen = kind == 2 && position != HOLE && position > lane.query + queries as u32 - 1;
                    let want = if position == HOLE { 0 } else { kept[kept_at(i) + position as usize] };
                    assert!(got == want || unseen, "{plan:?}, kind {kind}");
                }
                for (n, scores) in scored.iter().enumerate() {
                    let (by, as_one) = (n / 2, n % 2 == 1);
                    if as_one && i % kv_heads > 0 || by == 2 && position > lane.query + queries as u32 - 1 {
                        continue;
                    }
                    let heads = if as_one { kv_heads } else { 1 };
                    let all = (0..heads).map(|head| value(by, i + head, position));
                    let want =
                        if position == HOLE { 0.0 } else { all.reduce(|a, b| a + b).unwrap() / heads as f32 };
                    let got = f32::from_bits(scores[i * stride + slot]);
                    assert_eq!(got.to_bits(), want.to_bits(), "{plan:?}, by {by}, as one {as_one}");
                }
            }
        }
        for (i, lane) in scene.lanes.iter().enumerate() {
            let needs =
                Needs { sum: true, squares: true, count: true, last_row: true, window, ..Needs::NONE };
            let site = Site { span_len, prompt_len: span_len, ..Site::default() };
            let mut acc = Accumulators::at(needs, site);
            // The means, with the rounding of attention's own.
            let weight = 1.0 / group as f32;
            let mean = |query: usize, slot: usize| {
                let total = (0..group).fold(0.0f32, |total, g| {
                    total + rows[((i * group + g) * queries + query) * stride + slot]
                });
                total * weight
            };
            let live: Vec<usize> = (0..lane.slots()).filter(|&s| lane.positions[s] != HOLE).collect();
            let of = |slots: &[usize]| slots.iter().map(|&s| lane.positions[s]).collect::<Vec<u32>>();
            let mut column = vec![0.0f32; live.len()];
            for query in 0..queries {
                let position = lane.query + query as u32;
                let seen: Vec<usize> = live.iter().copied().filter(|&s| lane.sees(position, s)).collect();
                let row: Vec<f32> = seen.iter().map(|&s| mean(query, s)).collect();
                acc.observe_row(position, &of(&seen), &row);
                column.iter_mut().zip(&row).for_each(|(sum, p)| *sum += p);
                for (&slot, p) in seen.iter().zip(&row).filter(|_| !only_sum) {
                    let at = (kept_at(i) / reach * ring_rows + position as usize % ring_rows) * reach
                        + lane.positions[slot] as usize;
                    assert_eq!(ring[at], p.to_bits());
                }
            }
            let newest: Vec<f32> = live.iter().map(|&s| mean(queries - 1, s)).collect();
            acc.observe_prefill(&of(&live), queries as u32, &column, &newest);
            let mut untouched = vec![true; reach];
            for &slot in &live {
                let position = lane.positions[slot];
                let at = kept_at(i) + position as usize;
                untouched[position as usize] = false;
                assert_eq!(floats(&sum[at..=at])[0], before[at] + acc.sum(position), "{plan:?}");
                if only_sum {
                    continue;
                }
                assert_eq!(squares[at], acc.squares(position).to_bits());
                assert_eq!(in_window[at], acc.window(position).to_bits());
                assert_eq!(count[at], acc.count(position));
                assert_eq!(last[at], acc.last_row(position).to_bits());
            }
            for position in (0..reach).filter(|&p| untouched[p]) {
                let at = kept_at(i) + position;
                assert_eq!(sum[at], before[at].to_bits());
            }
        }
    }
}
