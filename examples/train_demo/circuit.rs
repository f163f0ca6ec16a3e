//! The hand-built start: from random weights this model finds no retrieval within hours of a CPU, from these it does
//! within minutes. Layer 0 copies the last four tokens beside each token; layers 1 and 2 look for where the same
//! n-gram stood before and copy what followed it (induction); every other head rests on the first token (a sink) until
//! it learns something better to look at.

use candle_core::{Device, Result, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::attention::HEAD_DIM;
use super::net::Net;

/// Tokens back that layer 0 copies, one per query head.
const OFFSETS: usize = 4;
/// Numbers of a copy.
const COPY: usize = 16;
/// Deviation of the embeddings, and the constant that every token carries in dimension 0.
const SPREAD: f64 = 0.02;
const CONSTANT: f64 = 0.1;
/// What the first token carries in its own dimension.
const MARK: f64 = 0.3;
/// How much all writers to the residual stream, and the embeddings, are scaled up at the end: the function stays, and
/// the optimiser's first steps are smaller beside it.
const SCALE: f64 = 5.0;

/// A retrieving KV head: layer, KV head, length of the n-gram it looks for, logit of a full match.
const RETRIEVERS: [(usize, usize, usize, f64); 3] = [(1, 0, 3, 40.0), (1, 1, 2, 28.0), (2, 0, 4, 48.0)];
/// Logits of the first token, in retrieving heads and in all others.
const SINK_OF_RETRIEVERS: f64 = 14.0;
const SINK: f64 = 9.0;

/// A matrix in plain numbers, `[rows][cols]`.
struct Matrix {
    cols: usize,
    x: Vec<f64>,
}

impl Matrix {
    fn of(var: &Var) -> Result<Self> {
        let x: Vec<f32> = var.flatten_all()?.to_vec1()?;
        Ok(Self { cols: var.dim(1)?, x: x.into_iter().map(f64::from).collect() })
    }

    fn store(&self, var: &Var) -> Result<()> {
        let x: Vec<f32> = self.x.iter().map(|&x| x as f32).collect();
        var.set(&Tensor::from_vec(x, var.shape(), &Device::Cpu)?)
    }

    fn row(&mut self, row: usize) -> &mut [f64] {
        &mut self.x[row * self.cols..][..self.cols]
    }

    fn scale_row(&mut self, row: usize, by: f64) -> &mut [f64] {
        let row = self.row(row);
        for x in row.iter_mut() {
            *x *= by;
        }
        row
    }

    fn scale(&mut self, by: f64) {
        self.x.iter_mut().for_each(|x| *x *= by);
    }

    fn clear_column(&mut self, col: usize) {
        self.x.iter_mut().skip(col).step_by(self.cols).for_each(|x| *x = 0.0);
    }
}

/// `rows` random orthonormal rows of `cols` numbers.
fn orthonormal(rows: usize, cols: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<f64>> {
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(rows);
    while basis.len() < rows {
        let mut x: Vec<f64> = (0..cols).map(|_| StandardNormal.sample(rng)).collect();
        for b in &basis {
            let dot: f64 = x.iter().zip(b).map(|(x, b)| x * b).sum();
            x.iter_mut().zip(b).for_each(|(x, b)| *x -= dot * b);
        }
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        for x in &mut x {
            *x /= norm;
        }
        basis.push(x);
    }
    basis
}

/// Builds the circuit into random weights.
pub(crate) fn build(net: &Net, bos: u32, rng: &mut ChaCha8Rng) -> Result<()> {
    let shape = net.shape;
    let (dim, group) = (shape.dim, shape.group());
    let reserved = 1..=OFFSETS * COPY;
    let mark = OFFSETS * COPY + 1;
    let free = mark + 1..dim;
    let slot = HEAD_DIM / 2 - 1;

    let mut embedding = Matrix::of(&net.embedding)?;
    for id in 0..shape.vocab {
        let row = embedding.row(id);
        row[reserved.clone()].fill(0.0);
        row[mark] = 0.0;
        row[0] = CONSTANT;
    }
    let row = embedding.row(bos as usize);
    row.fill(0.0);
    (row[0], row[mark]) = (CONSTANT, MARK);
    embedding.scale(SCALE);
    embedding.store(&net.embedding)?;
    net.norm.set(&(net.norm.ones_like()? / SCALE)?)?;

    let rms = ((SPREAD * SPREAD * free.len() as f64 + CONSTANT * CONSTANT) / dim as f64).sqrt();
    let (constant, unit) = (CONSTANT / rms, SPREAD / rms);
    let marked = MARK / ((MARK * MARK + CONSTANT * CONSTANT) / dim as f64).sqrt();
    let frequency = |i: usize| shape.theta.powf(-(i as f64) / (HEAD_DIM / 2) as f64);
    // A constant vector turned by `delta` positions: the score of two such peaks where their turns meet.
    let turned = |delta: f64, sharpness: f64| -> Vec<f64> {
        let half = HEAD_DIM / 2;
        let angle = |i: usize| frequency(i % half) * delta;
        (0..HEAD_DIM)
            .map(|i| sharpness.sqrt() * if i < half { angle(i).cos() } else { angle(i).sin() })
            .collect()
    };
    let spread_over = |rows: usize, rng: &mut ChaCha8Rng| -> Vec<Vec<f64>> {
        let place = |x: Vec<f64>| {
            let mut row = vec![0.0; dim];
            row[free.clone()].copy_from_slice(&x);
            row
        };
        orthonormal(rows, free.len(), rng).into_iter().map(place).collect()
    };
    let read = spread_over(HEAD_DIM, rng);
    let write = SPREAD * 2.0;
    let copied = write * unit / rms;

    for (l, layer) in net.layers.iter().enumerate() {
        let (mut q, mut k, mut v) = (Matrix::of(&layer.q)?, Matrix::of(&layer.k)?, Matrix::of(&layer.v)?);
        let (mut o, mut down) = (Matrix::of(&layer.o)?, Matrix::of(&layer.down)?);
        o.scale(0.02);
        down.scale(0.02);
        for i in reserved.clone().filter(|_| l == 0).chain([mark]) {
            o.row(i).fill(0.0);
            down.row(i).fill(0.0);
        }
        for h in 0..shape.kv_heads {
            if l == 0 && h * group < OFFSETS {
                let key = turned(1.0, 45.0);
                for (i, (key, read)) in key.iter().zip(&read).enumerate() {
                    k.scale_row(h * HEAD_DIM + i, 0.1)[0] = key / constant;
                    v.row(h * HEAD_DIM + i).copy_from_slice(read);
                }
                for j in h * group..(h + 1) * group {
                    let query = turned(-(j as f64), 45.0);
                    let sharper = if j > 0 { 1.3 } else { 1.0 };
                    for (i, query) in query.iter().enumerate() {
                        q.scale_row(j * HEAD_DIM + i, 0.1)[0] = query / constant * sharper;
                        o.clear_column(j * HEAD_DIM + i);
                    }
                    if j < OFFSETS {
                        for i in 0..COPY {
                            o.row(1 + j * COPY + i)[j * HEAD_DIM + i] = write;
                        }
                    }
                }
                continue;
            }
            let retriever = RETRIEVERS.iter().find(|r| (r.0, r.1) == (l, h));
            if let Some(&(_, _, n, logit)) = retriever {
                // Only slowly turning pairs, so that a match counts the same at any distance.
                let slots: Vec<usize> =
                    (HEAD_DIM / 4..HEAD_DIM / 2).chain(HEAD_DIM * 3 / 4..HEAD_DIM).collect();
                let width = OFFSETS * COPY;
                let project = orthonormal(slots.len(), width, rng);
                let gain = (logit * (HEAD_DIM as f64).sqrt() / (n * COPY) as f64).sqrt()
                    * (width as f64 / slots.len() as f64).sqrt();
                for i in 0..HEAD_DIM {
                    k.row(h * HEAD_DIM + i).fill(0.0);
                    (0..group).for_each(|j| q.row((h * group + j) * HEAD_DIM + i).fill(0.0));
                }
                for (&i, project) in slots.iter().zip(&project) {
                    let mut query = vec![0.0; dim];
                    for c in 0..n * COPY {
                        let p = project[c] * gain;
                        k.row(h * HEAD_DIM + i)[1 + c] = p / copied;
                        if c < COPY {
                            query.iter_mut().zip(&read[c]).for_each(|(q, r)| *q += p * r / unit);
                        } else {
                            query[1 + c - COPY] = p / copied;
                        }
                    }
                    // The query heads of a group start unlike, or they would stay copies of each other.
                    for j in 0..group {
                        let by = 1.0 - 0.3 * j as f64;
                        let row = q.row((h * group + j) * HEAD_DIM + i);
                        row.iter_mut().zip(&query).for_each(|(x, q)| *x = q * by);
                    }
                }
                let values = spread_over(HEAD_DIM, rng);
                let gain = SPREAD * 2.0 * dim as f64 / (HEAD_DIM * group) as f64 * 0.5;
                for (i, value) in values.iter().enumerate() {
                    v.row(h * HEAD_DIM + i).copy_from_slice(value);
                    for j in h * group..(h + 1) * group {
                        for (d, x) in value.iter().enumerate() {
                            o.row(d)[j * HEAD_DIM + i] = x * gain;
                        }
                    }
                }
            }
            let logit = if retriever.is_some() { SINK_OF_RETRIEVERS } else { SINK };
            let root = (logit * (HEAD_DIM as f64).sqrt()).sqrt();
            let key = k.row(h * HEAD_DIM + slot);
            key.fill(0.0);
            key[mark] = root / marked;
            for j in h * group..(h + 1) * group {
                let query = q.row(j * HEAD_DIM + slot);
                query.fill(0.0);
                query[0] = root / constant;
            }
        }
        if l > 0 {
            v.clear_column(mark);
        }
        o.scale(SCALE);
        down.scale(SCALE);
        for (matrix, var) in [(q, &layer.q), (k, &layer.k), (v, &layer.v), (o, &layer.o), (down, &layer.down)]
        {
            matrix.store(var)?;
        }
    }
    Ok(())
}
