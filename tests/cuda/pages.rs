//! Read sets by pages: bounds exactly, uppers against f64, the choice against sorting.

use rand::Rng;

use crate::host::{Arg, Buffer, floats, kernels, same_bits, within};
use crate::scene::{Cell, HOLE, Plan, Scene, pick, seeded, uniform};
use crate::select::{marked, words};

/// Relative to the sum of magnitudes.
const BOUND: f64 = 1e-6;

#[test]
fn pages_are_bounded_and_the_largest_bounds_chosen() {
    let (Some(bounds), Some(select)) = (kernels("bounds"), kernels("select")) else { return };
    for cell in Cell::ALL {
        for seed in 0..8 {
            let mut rng = seeded(12_000 + seed);
            let plan = Plan { holes: *pick(&mut rng, &[0.0, 0.9]), ..Plan::chance(&mut rng, cell) };
            let scene = Scene::new(plan, &mut rng);
            let Plan { sequences, kv_heads, group, head_dim: d, block_size, .. } = plan;
            let (heads, most) = (plan.heads(), scene.most_slots());
            let page = *pick(&mut rng, &[1usize, 16, 20]);
            let pages = most.div_ceil(page);
            let (stride, n) = (pages + 1, rng.random_range(0..6usize));
            let queries = uniform(&mut rng, sequences * heads * d, 2.0);
            let (extents, uppers, page_marks, marks) = same_bits(|schedule| {
                let mut extents = Buffer::room(sequences * kv_heads * stride * 2 * d);
                let mut slab = Buffer::of_bytes(&scene.k);
                let mut exact = Buffer::of_bytes(&scene.exact_k);
                let mut tables = Buffer::of_u32(&scene.blocks);
                let mut positions = Buffer::of_u32(&scene.positions);
                let mut lanes = scene.lane_words();
                let mut args = vec![extents.arg(), slab.arg(), exact.arg()];
                args.extend([tables.arg(), positions.arg(), lanes.arg()]);
                args.extend([kv_heads, d, block_size, page, 0, stride].map(Arg::from));
                let grid = [pages.div_ceil(8), kv_heads, sequences];
                bounds.run(&format!("page_bounds_{}", cell.name()), grid, 256, &args, schedule);
                let mut uppers = Buffer::room(sequences * heads * stride);
                let mut rows = Buffer::of_f32(&queries);
                let mut args = vec![uppers.arg(), extents.arg(), rows.arg(), lanes.arg()];
                args.extend([heads, kv_heads, d, page, stride].map(Arg::from));
                bounds.run("page_uppers", grid, 256, &args, schedule);
                let mut marks = Buffer::room(sequences * heads * words(most));
                let mut page_marks = Buffer::room(sequences * heads * words(pages));
                let mut args = vec![marks.arg(), page_marks.arg(), uppers.arg(), lanes.arg()];
                args.extend([heads, kv_heads, page, stride, words(pages), words(most), n].map(Arg::from));
                select.run("select_pages", [heads, sequences, 1], 512, &args, schedule);
                (extents.u32s(), uppers.u32s(), page_marks.u32s(), marks.u32s())
            });
            let (extents, uppers) = (floats(&extents), floats(&uppers));
            for (i, lane) in scene.lanes.iter().enumerate() {
                let own = lane.slots().div_ceil(page);
                let live = |at: usize| {
                    (at * page..((at + 1) * page).min(lane.slots())).filter(|&s| lane.positions[s] != HOLE)
                };
                let extent = |at: usize, c: usize| {
                    let keys = live(at).map(|s| lane.keys[s * d + c]);
                    keys.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
                };
                for at in 0..own {
                    for c in 0..d {
                        let row = (i * stride + at) * 2 * d;
                        assert_eq!((extents[row + c], extents[row + d + c]), extent(at, c), "{plan:?}");
                    }
                }
                for g in 0..group {
                    let head = i * group + g;
                    let upper = |at: usize| {
                        let terms = (0..d).map(|c| {
                            let ((low, high), q) = (extent(at, c), f64::from(queries[head * d + c]));
                            (q * f64::from(low)).max(q * f64::from(high))
                        });
                        (terms.clone().sum::<f64>(), terms.map(f64::abs).sum::<f64>())
                    };
                    let own_uppers = &uppers[head * stride..][..own];
                    let (full, empty): (Vec<usize>, Vec<usize>) =
                        (0..own).partition(|&at| live(at).next().is_some());
                    assert!(empty.iter().all(|&at| own_uppers[at] == f32::NEG_INFINITY));
                    let cases = full.iter().map(|&at| (own_uppers[at], upper(at).0, upper(at).1));
                    within("upper", BOUND, cases);
                    let mut order: Vec<usize> = full.into_iter().filter(|&at| at + 1 < own).collect();
                    order.sort_by(|&a, &b| own_uppers[b].total_cmp(&own_uppers[a]).then(a.cmp(&b)));
                    order.truncate(n);
                    order.push(own - 1);
                    for at in 0..own {
                        assert_eq!(
                            marked(&page_marks[head * words(pages)..], at),
                            order.contains(&at),
                            "{plan:?}"
                        );
                    }
                    for slot in 0..lane.slots() {
                        let read = order.contains(&(slot / page));
                        assert_eq!(marked(&marks[head * words(most)..], slot), read, "{plan:?}");
                    }
                }
            }
        }
    }
}
