//! Every instruction set of the machine that runs the tests against the reference, bit for bit.

use proptest::prelude::*;

use super::scalar::exp;
use super::*;

/// Bits, any NaN being like any other: which one comes out depends on the order of operands.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// Mostly numbers of one size, some of any.
fn number() -> impl Strategy<Value = f32> {
    prop_oneof![20 => -3.0f32..3.0, 1 => any::<f32>()]
}

fn f16s(x: &[f32]) -> Vec<f16> {
    x.iter().map(|&x| f16::from_f32(x)).collect()
}

fn bf16s(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&x| bf16::from_f32(x)).collect()
}

/// What the kernels that read rows give.
fn of_rows(isa: Isa, x: &[f32], rows: Stored<'_>, weights: &[f32]) -> Vec<u32> {
    let d = x.len();
    let (mut products, mut sum, mut wide) = (vec![1.0; weights.len()], x.to_vec(), vec![1.0; rows.len()]);
    isa.dot_rows(x, rows, rows.cut(d, rows.len()), &mut products);
    isa.add_rows(&mut sum, weights, rows, rows.cut(d, rows.len()));
    isa.widen(rows, &mut wide);
    [bits(&products), bits(&sum), bits(&wide)].concat()
}

/// What the kernels over one row give.
fn of_row(isa: Isa, row: &[f32]) -> Vec<u32> {
    let top = isa.max(row);
    let (mut powers, mut scaled) = (row.to_vec(), row.to_vec());
    let sum = isa.exp_and_sum(&mut powers, top);
    isa.scale(&mut scaled, 0.37);
    let mut gated = row.to_vec();
    isa.swiglu(row, &powers, &mut gated);
    // Which zero is the largest may differ; nothing comes of it.
    [bits(&[top + 0.0, isa.sum(row), sum]), bits(&powers), bits(&scaled), bits(&gated)].concat()
}

proptest! {
    #[test]
    fn every_instruction_set_gives_the_bits_of_the_reference(
        d in 1usize..150, n in 1usize..5, values in prop::collection::vec(number(), 150 * 5),
        x in prop::collection::vec(number(), 150), weights in prop::collection::vec(0.0f32..1.0, 5),
    ) {
        let (rows, x, weights) = (&values[..n * d], &x[..d], &weights[..n]);
        let (halves, uppers) = (f16s(rows), bf16s(rows));
        for isa in Isa::all() {
            for rows in [Stored::F32(rows), Stored::F16(&halves), Stored::Bf16(&uppers)] {
                prop_assert_eq!(
                    of_rows(isa, x, rows, weights), of_rows(Isa::SCALAR, x, rows, weights), "{} {:?}", isa, rows
                );
            }
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let (blocks, wide) = (Q8Block::of(&bytes[..n * 3 * 34]), values[..96].to_vec());
            prop_assert_eq!(
                of_rows(isa, &wide, Stored::Q8(blocks), weights),
                of_rows(Isa::SCALAR, &wide, Stored::Q8(blocks), weights), "{}", isa
            );
            prop_assert_eq!(bits(&[isa.dot(x, &rows[..d])]), bits(&[Isa::SCALAR.dot(x, &rows[..d])]));
            prop_assert_eq!(of_row(isa, rows), of_row(Isa::SCALAR, rows), "{}", isa);
        }
    }

    /// Whatever lies between two rows has a product with the query that the bound is not below.
    #[test]
    fn no_row_between_two_passes_their_bound(
        d in 1usize..100, q in prop::collection::vec(-3.0f32..3.0, 100), a in prop::collection::vec(-3.0f32..3.0, 100),
        b in prop::collection::vec(-3.0f32..3.0, 100), at in prop::collection::vec(0.0f32..=1.0, 100),
    ) {
        let (q, a, b) = (&q[..d], &a[..d], &b[..d]);
        let low: Vec<f32> = a.iter().zip(b).map(|(a, b)| a.min(*b)).collect();
        let high: Vec<f32> = a.iter().zip(b).map(|(a, b)| a.max(*b)).collect();
        let between = low.iter().zip(&high).zip(&at).map(|((l, h), at)| (l + (h - l) * at).clamp(*l, *h));
        let between: Vec<f32> = between.collect();
        let bound = Isa::SCALAR.upper_bound(q, &low, &high);
        for isa in Isa::all() {
            prop_assert_eq!(isa.upper_bound(q, &low, &high).to_bits(), bound.to_bits());
            for row in [a, b, &between] {
                prop_assert!(isa.dot(q, row) <= bound);
            }
        }
    }
}

#[test]
fn every_half_is_widened_exactly() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let halves: Vec<f16> = all.iter().map(|&bits| f16::from_bits(bits)).collect();
    let uppers: Vec<bf16> = all.iter().map(|&bits| bf16::from_bits(bits)).collect();
    for isa in Isa::all() {
        let (mut of_halves, mut of_uppers) = (vec![0.0; all.len()], vec![0.0; all.len()]);
        isa.widen(Stored::F16(&halves), &mut of_halves);
        isa.widen(Stored::Bf16(&uppers), &mut of_uppers);
        assert!(bits(&of_halves) == bits(&halves.iter().map(|x| x.to_f32()).collect::<Vec<_>>()), "{isa}");
        assert!(bits(&of_uppers) == bits(&uppers.iter().map(|x| x.to_f32()).collect::<Vec<_>>()), "{isa}");
    }
}

#[test]
fn exp_is_within_its_bound_over_its_whole_range() {
    let lowest = EXP_LOWEST.to_bits();
    for bits in ((-0.0f32).to_bits()..lowest).step_by(9973) {
        let x = f32::from_bits(bits);
        let want = f64::from(x).exp();
        assert!((f64::from(exp(x)) / want - 1.0).abs() <= 1e-7, "e^{x} came out as {}", exp(x));
    }
    assert_eq!((exp(0.0), exp(-0.0), exp(-88.0), exp(f32::NEG_INFINITY)), (1.0, 1.0, 0.0, 0.0));
    assert!(exp(f32::NAN).is_nan());
}

#[test]
fn a_gate_is_the_sigmoid_of_itself() {
    for gate in [-200.0, -87.0, -3.5, -0.25, 0.0, 1e-3, 2.0, 50.0, 300.0] {
        let want = f64::from(gate) / (1.0 + f64::from(-gate).exp()) * 1.5;
        for isa in Isa::all() {
            let mut out = [0.0; 3];
            isa.swiglu(&[gate; 3], &[1.5; 3], &mut out);
            assert!(
                out.iter().all(|&x| (f64::from(x) - want).abs() <= 3e-7 * want.abs().max(1e-30)),
                "{isa} {gate}"
            );
        }
    }
}

#[test]
fn a_product_covers_the_elements_beyond_whole_chunks() {
    for n in [1, 7, 19, 32, 33, 75] {
        let a: Vec<f32> = (1..=n).map(|i| i as f32).collect();
        for isa in Isa::all() {
            assert_eq!(isa.dot(&a, &a), (1..=n).map(|i| (i * i) as f32).sum::<f32>(), "{isa}, {n}");
        }
    }
}

#[test]
fn nothing_has_no_sum_and_no_largest() {
    for isa in Isa::all() {
        assert_eq!((isa.dot(&[], &[]), isa.sum(&[]), isa.max(&[])), (0.0, 0.0, f32::NEG_INFINITY));
        isa.add_rows(&mut [], &[1.0], Stored::F32(&[]), Stored::F32(&[]));
        isa.dot_rows(&[1.0], Stored::F32(&[]), Stored::F32(&[]), &mut []);
    }
}
