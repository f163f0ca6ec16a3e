//! Weights of one projection, in the type that they are stored in, and their product with rows of activations.
//!
//! A matrix is `[outputs][inputs]`, as checkpoints have it. It stays in its stored type: a decode step reads every weight
//! once and is bound by memory, so half the bytes are nearly twice the speed. Products accumulate in f32.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::Result;
use super::bytes::Elements;
use crate::device::{self, Isa, Q8Block, Stored};

/// Rows of activations from which weights are packed and shared among the rows by a matrix product; below, each weight
/// row is read once for all of them.
const FEW_ROWS: usize = 8;
/// Weights per task of a product with few rows: some twenty microseconds of reading, so that sharing them out costs
/// little and no thread waits long for the last task.
const TASK_WEIGHTS: usize = 1 << 16;
/// Tasks from which they are shared out over threads: with fewer, waking one takes as long as it would save.
const FEWEST_SHARED: usize = 4;
/// Weight rows widened at a time for a matrix product.
const PANEL_ROWS: usize = 128;

/// A weight matrix `[outputs][inputs]`.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    outputs: usize,
    inputs: usize,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    F32(Elements<f32>),
    F16(Elements<f16>),
    Bf16(Elements<bf16>),
    /// Blocks of codes as candle and llama.cpp have them, rows apart.
    Quantised(QMatMul, Arc<QTensor>),
}

/// The weights of a matrix, `[outputs][inputs]`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Weights<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    Quantised(&'a QTensor),
}

impl Matrix {
    /// Full-precision weights.
    ///
    /// # Panics
    /// As many elements as the shape says must be there, here and in the other constructors.
    pub(super) fn f32(elements: Elements<f32>, [outputs, inputs]: [usize; 2]) -> Self {
        assert_eq!(elements.len(), outputs * inputs, "the elements of a matrix");
        Self { outputs, inputs, data: Data::F32(elements) }
    }

    /// Half-precision weights.
    pub(super) fn f16(elements: Elements<f16>, [outputs, inputs]: [usize; 2]) -> Self {
        assert_eq!(elements.len(), outputs * inputs, "the elements of a matrix");
        Self { outputs, inputs, data: Data::F16(elements) }
    }

    /// bfloat16 weights.
    pub(super) fn bf16(elements: Elements<bf16>, [outputs, inputs]: [usize; 2]) -> Self {
        assert_eq!(elements.len(), outputs * inputs, "the elements of a matrix");
        Self { outputs, inputs, data: Data::Bf16(elements) }
    }

    /// Quantised weights; f32, f16 and bf16 in candle's container are taken out of it.
    ///
    /// # Errors
    /// Faults of the tensor library.
    pub(super) fn quantised(tensor: QTensor) -> Result<Self> {
        let (outputs, inputs) = tensor.shape().dims2()?;
        if matches!(tensor.dtype(), GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16) {
            let elements: Vec<f32> = tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?;
            let wide = Self::f32(elements.into(), [outputs, inputs]);
            return match tensor.dtype() {
                GgmlDType::F16 => Ok(wide.narrowed_to_f16()),
                GgmlDType::BF16 => Ok(wide.narrowed_to_bf16()),
                _ => Ok(wide),
            };
        }
        let tensor = Arc::new(tensor);
        Ok(Self { outputs, inputs, data: Data::Quantised(QMatMul::from_arc(Arc::clone(&tensor))?, tensor) })
    }

    /// The same weights as f32 in memory.
    ///
    /// # Errors
    /// Faults of the tensor library.
    pub(super) fn widened(&self) -> Result<Self> {
        let shape = [self.outputs, self.inputs];
        let mut wide = vec![0.0; self.outputs * self.inputs];
        match &self.data {
            Data::F32(_) => return Ok(self.clone()),
            Data::Quantised(_, tensor) => {
                wide = tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?;
            }
            Data::F16(elements) => Isa::best().widen(Stored::F16(elements.as_slice()), &mut wide),
            Data::Bf16(elements) => Isa::best().widen(Stored::Bf16(elements.as_slice()), &mut wide),
        }
        Ok(Self::f32(wide.into(), shape))
    }

    /// The same weights in a block type of candle's.
    ///
    /// # Errors
    /// Rows that are not whole blocks: the tensor library says so.
    pub(super) fn quantise(&self, dtype: GgmlDType) -> Result<Self> {
        let wide = self.widened()?;
        let Data::F32(elements) = &wide.data else { unreachable!("widened to f32") };
        let tensor = Tensor::from_slice(elements.as_slice(), (self.outputs, self.inputs), &Device::Cpu)?;
        Self::quantised(QTensor::quantize(&tensor, dtype)?)
    }

    fn narrowed_to_f16(&self) -> Self {
        let Data::F32(elements) = &self.data else { unreachable!("called on f32 only") };
        let narrow: Vec<f16> = elements.as_slice().iter().map(|&x| f16::from_f32(x)).collect();
        Self::f16(narrow.into(), [self.outputs, self.inputs])
    }

    fn narrowed_to_bf16(&self) -> Self {
        let Data::F32(elements) = &self.data else { unreachable!("called on f32 only") };
        let narrow: Vec<bf16> = elements.as_slice().iter().map(|&x| bf16::from_f32(x)).collect();
        Self::bf16(narrow.into(), [self.outputs, self.inputs])
    }

    /// Elements of a product's row.
    pub(super) const fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes of the weights as they lie.
    pub(super) fn bytes(&self) -> u64 {
        (match &self.data {
            Data::F32(elements) => size_of_val(elements.as_slice()),
            Data::F16(elements) => size_of_val(elements.as_slice()),
            Data::Bf16(elements) => size_of_val(elements.as_slice()),
            Data::Quantised(_, tensor) => tensor.storage_size_in_bytes(),
        }) as u64
    }

    /// Reads every page of weights that are mapped, so that they are in memory.
    pub(super) fn touch(&self) {
        /// No system has smaller ones.
        const PAGE_BYTES: usize = 4096;
        fn pages<T>(elements: &Elements<T>) {
            if let Elements::Within(bytes, range) = elements {
                let mapped = &bytes.as_slice()[range.clone()];
                std::hint::black_box(mapped.iter().step_by(PAGE_BYTES).fold(0u8, |sum, byte| sum ^ byte));
            }
        }
        match &self.data {
            Data::F32(elements) => pages(elements),
            Data::F16(elements) => pages(elements),
            Data::Bf16(elements) => pages(elements),
            Data::Quantised(..) => {}
        }
    }

    /// Appends a weight row as f32: what an embedding looks up.
    ///
    /// # Errors
    /// Faults of the tensor library.
    pub(super) fn row(&self, index: usize, out: &mut Vec<f32>) -> Result<()> {
        let start = out.len();
        let range = index * self.inputs..(index + 1) * self.inputs;
        out.resize(start + self.inputs, 0.0);
        let (isa, to) = (Isa::best(), &mut out[start..]);
        match &self.data {
            Data::F32(elements) => isa.widen(Stored::F32(&elements.as_slice()[range]), to),
            Data::F16(elements) => isa.widen(Stored::F16(&elements.as_slice()[range]), to),
            Data::Bf16(elements) => isa.widen(Stored::Bf16(&elements.as_slice()[range]), to),
            Data::Quantised(_, tensor) => {
                let id = Tensor::from_slice(&[index as u32], 1, &Device::Cpu)?;
                let row: Vec<f32> = tensor.embedding(&id)?.flatten_all()?.to_vec1()?;
                to.copy_from_slice(&row);
            }
        }
        Ok(())
    }

    /// Rows `x` `[n][inputs]` times this matrix: row `i` of the result begins at `out[i * stride]` and has
    /// [`outputs`](Self::outputs) elements.
    ///
    /// # Errors
    /// Faults of the tensor library.
    pub(super) fn product(&self, x: &[f32], out: &mut [f32], stride: usize) -> Result<()> {
        match &self.data {
            Data::F32(elements) => self.dense(Stored::F32(elements.as_slice()), x, out, stride),
            Data::F16(elements) => self.dense(Stored::F16(elements.as_slice()), x, out, stride),
            Data::Bf16(elements) => self.dense(Stored::Bf16(elements.as_slice()), x, out, stride),
            Data::Quantised(product, _) => {
                let rows = x.len() / self.inputs;
                if let Some(weights) = self.stored().filter(|_| rows <= FEW_ROWS) {
                    to_rows(&few(&[weights], x, self.inputs), rows, out, stride);
                    return Ok(());
                }
                let x = Tensor::from_slice(x, (rows, self.inputs), &Device::Cpu)?;
                let product: Vec<f32> = product.forward(&x)?.flatten_all()?.to_vec1()?;
                for (row, out) in product.chunks_exact(self.outputs).zip(out.chunks_mut(stride)) {
                    out[..self.outputs].copy_from_slice(row);
                }
            }
        }
        Ok(())
    }

    fn dense(&self, weights: Stored<'_>, x: &[f32], out: &mut [f32], stride: usize) {
        if x.len() <= FEW_ROWS * self.inputs {
            return to_rows(&few(&[weights], x, self.inputs), x.len() / self.inputs, out, stride);
        }
        if let Stored::F32(weights) = weights {
            return device::matmul(x, weights, self.inputs, out, stride);
        }
        let mut panel = vec![0.0; PANEL_ROWS * self.inputs];
        for first in (0..self.outputs).step_by(PANEL_ROWS) {
            let last = self.outputs.min(first + PANEL_ROWS);
            let wide = &mut panel[..(last - first) * self.inputs];
            Isa::best().widen(weights.cut(first * self.inputs, last * self.inputs), wide);
            device::matmul(x, wide, self.inputs, &mut out[first..], stride);
        }
    }

    /// Outputs and inputs.
    pub(super) const fn shape(&self) -> [usize; 2] {
        [self.outputs, self.inputs]
    }

    /// The weights as they lie.
    pub(super) fn weights(&self) -> Weights<'_> {
        match &self.data {
            Data::F32(elements) => Weights::F32(elements.as_slice()),
            Data::F16(elements) => Weights::F16(elements.as_slice()),
            Data::Bf16(elements) => Weights::Bf16(elements.as_slice()),
            Data::Quantised(_, tensor) => Weights::Quantised(tensor),
        }
    }

    /// The weights, if they are read as they lie.
    fn stored(&self) -> Option<Stored<'_>> {
        match &self.data {
            Data::F32(elements) => Some(Stored::F32(elements.as_slice())),
            Data::F16(elements) => Some(Stored::F16(elements.as_slice())),
            Data::Bf16(elements) => Some(Stored::Bf16(elements.as_slice())),
            // A product of few rows is bound by memory: these codes are widened as fast as they come, with nothing lost of
            // the activations.
            Data::Quantised(_, tensor) if tensor.dtype() == GgmlDType::Q8_0 => match tensor.data() {
                Ok(Cow::Borrowed(bytes)) => Some(Stored::Q8(Q8Block::of(bytes))),
                _ => None,
            },
            Data::Quantised(..) => None,
        }
    }
}

/// Few rows `x` times matrices that lie one after the other, each weight read once for all rows: `[output][row]`.
fn few(parts: &[Stored<'_>], x: &[f32], inputs: usize) -> Vec<f32> {
    let rows = x.len() / inputs;
    let outputs: usize = parts.iter().map(|part| part.len() / inputs).sum();
    let mut columns = vec![0.0; outputs * rows];
    let mut tasks = Vec::new();
    let (mut rest, task_rows) = (&mut *columns, (TASK_WEIGHTS / inputs).max(1));
    for part in parts {
        let outputs = part.len() / inputs;
        for first in (0..outputs).step_by(task_rows) {
            let last = outputs.min(first + task_rows);
            let (out, after) = std::mem::take(&mut rest).split_at_mut((last - first) * rows);
            tasks.push((part.cut(first * inputs, last * inputs), out));
            rest = after;
        }
    }
    let isa = Isa::best();
    let product = |(weights, out): (Stored<'_>, &mut [f32])| {
        if rows == 1 {
            return isa.dot_rows(x, weights, Stored::NONE, out);
        }
        for (i, out) in out.chunks_exact_mut(rows).enumerate() {
            // A weight row stays in the first-level cache while every row of activations passes.
            let weights = weights.cut(i * inputs, (i + 1) * inputs);
            for (out, x) in out.iter_mut().zip(x.chunks_exact(inputs)) {
                isa.dot_rows(x, weights, Stored::NONE, std::slice::from_mut(out));
            }
        }
    };
    if tasks.len() < FEWEST_SHARED || rayon::current_num_threads() == 1 {
        tasks.into_iter().for_each(product);
    } else {
        tasks.into_par_iter().for_each(product);
    }
    columns
}

/// `[output][row]` to `[row][output]`, rows `stride` apart.
fn to_rows(columns: &[f32], rows: usize, out: &mut [f32], stride: usize) {
    if rows == 1 {
        return out[..columns.len()].copy_from_slice(columns);
    }
    for (o, column) in columns.chunks_exact(rows.max(1)).enumerate() {
        for (i, value) in column.iter().enumerate() {
            out[i * stride + o] = *value;
        }
    }
}

/// Matrices that share their input, side by side: their products are one row.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    parts: Vec<Matrix>,
    /// Added to every row; none is as long as nothing.
    bias: Vec<f32>,
    outputs: usize,
}

impl Linear {
    /// Parts in the order of the result, and the bias of all of them or none.
    ///
    /// # Panics
    /// Parts of different inputs, or a bias of another length than a row.
    pub(super) fn new(parts: Vec<Matrix>, bias: Vec<f32>) -> Self {
        let outputs = parts.iter().map(Matrix::outputs).sum();
        assert!(parts.iter().all(|part| part.inputs == parts[0].inputs), "parts share their input");
        assert!(bias.is_empty() || bias.len() == outputs, "a bias is as long as a row");
        Self { parts, bias, outputs }
    }

    /// Its parts in the order of the result.
    pub(super) fn parts(&self) -> &[Matrix] {
        &self.parts
    }

    /// Added to every row; may be empty.
    pub(super) fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Rows `x` `[n][inputs]` times the parts: `[n][outputs]`.
    ///
    /// # Errors
    /// Faults of the tensor library.
    pub(super) fn product(&self, x: &[f32]) -> Result<Vec<f32>> {
        let inputs = self.parts[0].inputs;
        let rows = x.len() / inputs;
        let mut out = vec![0.0; rows * self.outputs];
        let stored: Option<Vec<_>> = self.parts.iter().map(Matrix::stored).collect();
        if let Some(parts) = stored.filter(|_| rows <= FEW_ROWS) {
            // All parts are one task list: the fewer joins of threads, the better.
            to_rows(&few(&parts, x, inputs), rows, &mut out, self.outputs);
        } else {
            let mut first = 0;
            for part in &self.parts {
                part.product(x, &mut out[first..], self.outputs)?;
                first += part.outputs;
            }
        }
        if !self.bias.is_empty() {
            for row in out.chunks_exact_mut(self.outputs) {
                row.iter_mut().zip(&self.bias).for_each(|(x, bias)| *x += bias);
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, by: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * by) % 17) as f32 / 4.0 - 2.0).collect()
    }

    /// The product in f64, and the product of the matrix.
    fn both(matrix: &Matrix, wide: &[f32], rows: usize) -> (Vec<f32>, Vec<f32>) {
        let (inputs, outputs) = (matrix.inputs, matrix.outputs);
        let x = numbers(rows * inputs, 7);
        let exact = |x: &[f32], w: &[f32]| {
            x.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32
        };
        let want = x.chunks(inputs).flat_map(|x| wide.chunks(inputs).map(move |w| exact(x, w))).collect();
        let mut out = vec![f32::NAN; rows * outputs];
        matrix.product(&x, &mut out, outputs).unwrap();
        (want, out)
    }

    #[test]
    fn few_rows_and_many_are_the_same_product_in_every_type() {
        let shape @ [outputs, inputs] = [150, 100];
        let wide = numbers(outputs * inputs, 5);
        let half: Vec<f16> = wide.iter().map(|&x| f16::from_f32(x)).collect();
        let brain: Vec<bf16> = wide.iter().map(|&x| bf16::from_f32(x)).collect();
        let matrices = [
            Matrix::f32(wide.clone().into(), shape),
            Matrix::f16(half.into(), shape),
            Matrix::bf16(brain.into(), shape),
        ];
        for matrix in &matrices {
            for rows in [1, 2, FEW_ROWS, FEW_ROWS + 1, 40] {
                // Quarters below 3 are exact in all three types, and so are sums of their products.
                let (want, out) = both(matrix, &wide, rows);
                assert_eq!(out, want, "{rows} rows");
            }
            let mut row = vec![9.0];
            matrix.row(149, &mut row).unwrap();
            assert_eq!((row[0], &row[1..]), (9.0, &wide[149 * inputs..]));
        }
        assert_eq!(matrices.map(|m| m.bytes()), [60_000, 30_000, 30_000]);
    }

    #[test]
    fn quantised_weights_are_near_and_rows_must_be_whole_blocks() {
        let shape = [64, 96];
        let wide = numbers(64 * 96, 5);
        let matrix = Matrix::f32(wide.clone().into(), shape).quantise(GgmlDType::Q8_0).unwrap();
        assert_eq!(matrix.bytes(), 64 * 96 / 32 * 34);
        for rows in [1, 20] {
            let (want, out) = both(&matrix, &wide, rows);
            // Q8_0 rounds each weight and each activation by at most 1/254 of its block's largest, 2.
            let bound = 96.0 * 2.0 * (2.0 / 254.0) * 2.0;
            assert!(want.iter().zip(&out).all(|(a, b)| (a - b).abs() < bound));
            assert_ne!(want, out, "coded weights are not the weights themselves");
        }
        let mut row = Vec::new();
        matrix.row(3, &mut row).unwrap();
        assert!(row.iter().zip(&wide[3 * 96..]).all(|(a, b)| (a - b).abs() <= 2.0 / 254.0 + 1e-3));
        assert!(Matrix::f32(numbers(40, 3).into(), [2, 20]).quantise(GgmlDType::Q8_0).is_err());
    }

    #[test]
    fn parts_stand_side_by_side_with_their_bias() {
        let part = |outputs: usize| Matrix::f32(numbers(outputs * 4, 3).into(), [outputs, 4]);
        let x = numbers(2 * 4, 7);
        let linear = Linear::new(vec![part(2), part(3)], vec![100.0; 5]);
        let out = linear.product(&x).unwrap();
        let mut alone = vec![0.0; 6];
        part(3).product(&x, &mut alone, 3).unwrap();
        assert_eq!(out[2..5], [alone[0] + 100.0, alone[1] + 100.0, alone[2] + 100.0]);
        assert_eq!(out[7..10], [alone[3] + 100.0, alone[4] + 100.0, alone[5] + 100.0]);
        assert_eq!(linear.outputs, 5);
    }
}
