//! The attention picture's cells: those of the formula, and the mass in none of them.

use kvista::event::attention::quantise;
use rand::Rng;

use crate::host::{Buffer, floats, kernels, same_bits, within};
use crate::scene::{Plan, pick, seeded};
use crate::select::{bare, marked, top, words};

const RANGE: usize = 2048;

/// The smallest value of each cell.
fn bounds() -> Vec<f32> {
    let lowest = |cell: u8| {
        let (mut below, mut at) = (0, 2.0f32.to_bits());
        while at - below > 1 {
            let middle = below + (at - below) / 2;
            if quantise(f32::from_bits(middle)) >= cell { at = middle } else { below = middle }
        }
        f32::from_bits(at)
    };
    std::iter::once(0.0).chain((1..=255).map(lowest)).collect()
}

/// Rows of probabilities of all sizes, few of them large.
fn probabilities(rng: &mut rand_chacha::ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n)
        .map(|_| 2.0f32.powf(-rng.random_range(0.0..22.0f32)))
        .map(|p| if p < 2e-7 { 0.0 } else { p })
        .collect()
}

#[test]
fn cells_are_those_of_the_formula_and_the_rest_is_lost() {
    let (Some(kernels), Some(select)) = (kernels("picture"), kernels("select")) else { return };
    let bounds = bounds();
    for seed in 0..16 {
        let mut rng = seeded(12_000 + seed);
        let most = *pick(&mut rng, &[1, 300, 2047, 2049, 4500]);
        let scene = bare(&mut rng, most);
        let Plan { sequences, kv_heads, group, .. } = scene.plan;
        let (heads, stride, list) = (scene.plan.heads(), most + 1, *pick(&mut rng, &[1usize, 7, 64]));
        let rows = sequences * heads;
        let per = *pick(&mut rng, &[1usize, 1, 16]);
        let mut values = probabilities(&mut rng, rows * stride);
        if seed == 3 {
            values[0] = f32::NAN;
        }
        let ranges = most.div_ceil(RANGE);
        let chosen = list.min(most);
        let (cells, lost, top_cells, top_lost, marks, counts, lists) = same_bits(|schedule| {
            let mut input = Buffer::of_f32(&values);
            let mut table = Buffer::of_f32(&bounds);
            let mut positions = Buffer::of_u32(&scene.positions);
            let mut lanes = scene.lane_words();
            let mut cells = Buffer::room((rows * stride).div_ceil(4));
            let mut lost = Buffer::room(rows * ranges);
            let args = [
                cells.arg(),
                lost.arg(),
                input.arg(),
                table.arg(),
                lanes.arg(),
                heads.into(),
                kv_heads.into(),
                per.into(),
                stride.into(),
                stride.into(),
            ];
            let grid = [most.div_ceil(per).div_ceil(RANGE), heads, sequences];
            kernels.run("picture_cells", grid, 256, &args, schedule);
            let word_stride = words(most);
            let mut marks = Buffer::room(rows * word_stride);
            let mut counts = Buffer::room(rows);
            let mut lists = Buffer::room(rows * chosen);
            let args = [
                marks.arg(),
                counts.arg(),
                lists.arg(),
                input.arg(),
                positions.arg(),
                lanes.arg(),
                heads.into(),
                kv_heads.into(),
                stride.into(),
                word_stride.into(),
                chosen.into(),
                chosen.into(),
                0usize.into(),
            ];
            select.run("select_top", [heads, sequences, 1], 512, &args, schedule);
            let mut top_cells = Buffer::room((rows * chosen).div_ceil(4));
            let mut top_lost = Buffer::room(rows * ranges);
            let args = [
                top_cells.arg(),
                top_lost.arg(),
                input.arg(),
                marks.arg(),
                lists.arg(),
                counts.arg(),
                table.arg(),
                lanes.arg(),
                heads.into(),
                kv_heads.into(),
                stride.into(),
                word_stride.into(),
                chosen.into(),
            ];
            kernels.run("picture_top", [ranges, heads, sequences], 256, &args, schedule);
            let bytes = |buffer: &mut Buffer| bytemuck::cast_slice::<u32, u8>(&buffer.u32s()).to_vec();
            let (cells, top_cells) = (bytes(&mut cells), bytes(&mut top_cells));
            (cells, lost.u32s(), top_cells, top_lost.u32s(), marks.u32s(), counts.u32s(), lists.u32s())
        });
        let (lost, top_lost) = (floats(&lost), floats(&top_lost));
        for (row, values) in values.chunks(stride).enumerate() {
            let lane = &scene.lanes[row / group];
            let n = lane.slots().div_ceil(per);
            let want: Vec<u8> = values[..n].iter().map(|&p| quantise(p)).collect();
            assert_eq!(cells[row * stride..][..n], want, "{:?}", scene.plan);
            let own = &lost[row * most.div_ceil(per).div_ceil(RANGE)..][..n.div_ceil(RANGE)];
            let mass: f64 = values[..n].iter().filter(|&&p| quantise(p) == 0).map(|&p| f64::from(p)).sum();
            let got: f64 = own.iter().map(|&x| f64::from(x)).sum();
            assert!(
                (got - mass).abs() <= 1e-6 * mass.max(1e-9) || got.is_nan() && mass.is_nan(),
                "{got} {mass}"
            );
            // What no mark is at, and what is too small, is lost.
            let at = row * chosen;
            let choice = top(&values[..lane.slots()], lane, chosen, false);
            assert_eq!(&lists[at..][..counts[row] as usize], choice);
            let word_stride = words(most);
            for (i, &slot) in choice.iter().enumerate() {
                assert!(marked(&marks[row * word_stride..], slot as usize));
                assert_eq!(top_cells[at + i], quantise(values[slot as usize]));
            }
            let outside = (0..lane.slots() as u32)
                .filter(|s| !choice.contains(s) || quantise(values[*s as usize]) == 0);
            let mass: f64 = outside.map(|slot| f64::from(values[slot as usize])).sum();
            let own = &top_lost[row * ranges..][..lane.slots().div_ceil(RANGE)];
            let got: f64 = own.iter().map(|&x| f64::from(x)).sum();
            assert!(
                (got - mass).abs() <= 1e-5 * mass.max(1e-9) || got.is_nan() && mass.is_nan(),
                "{got} {mass}"
            );
        }
    }
}

#[test]
fn what_a_head_did_not_read_is_nothing() {
    let Some(kernels) = kernels("picture") else { return };
    for seed in 0..8 {
        let mut rng = seeded(12_500 + seed);
        let most = *pick(&mut rng, &[1, 2047, 2049, 4500]);
        let scene = bare(&mut rng, most);
        let Plan { sequences, kv_heads, group, .. } = scene.plan;
        let (heads, stride, list_stride) = (scene.plan.heads(), most + 2, 40);
        let rows = sequences * heads;
        let values = probabilities(&mut rng, rows * stride);
        let mut counts = Vec::new();
        let mut slots = vec![u32::MAX; scene.lanes.len() * list_stride];
        for (i, lane) in scene.lanes.iter().enumerate() {
            let mut own: Vec<u32> = (0..rng.random_range(0..=list_stride))
                .map(|_| rng.random_range(0..lane.slots() as u32))
                .collect();
            own.sort_unstable();
            own.dedup();
            slots[i * list_stride..][..own.len()].copy_from_slice(&own);
            counts.push(own.len() as u32);
        }
        let weights = probabilities(&mut rng, rows * list_stride);
        let used = same_bits(|schedule| {
            let mut input = Buffer::of_f32(&values);
            let mut weights = Buffer::of_f32(&weights);
            let mut slots = Buffer::of_u32(&slots);
            let mut counts = Buffer::of_u32(&counts);
            let mut lanes = scene.lane_words();
            let args = [
                input.arg(),
                weights.arg(),
                slots.arg(),
                counts.arg(),
                lanes.arg(),
                heads.into(),
                kv_heads.into(),
                stride.into(),
                list_stride.into(),
            ];
            kernels.run("used_rows", [most.div_ceil(RANGE), heads, sequences], 256, &args, schedule);
            input.u32s()
        });
        for (row, used) in floats(&used).chunks(stride).enumerate() {
            let (lane, n) = (row / group, counts[row / group] as usize);
            let mut want = vec![0.0; scene.lanes[lane].slots()];
            for (i, &slot) in slots[lane * list_stride..][..n].iter().enumerate() {
                want[slot as usize] = weights[row * list_stride + i];
            }
            within("a weight", 0.0, used.iter().zip(&want).map(|(&got, &want)| (got, f64::from(want), 1.0)));
        }
    }
}
