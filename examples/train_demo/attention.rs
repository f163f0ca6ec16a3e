//! Causal attention with rotary positions as one differentiable operation: score rows live in a tile of queries and are
//! computed again on the way back, so memory grows with the length and not with its square (the scheme of
//! FlashAttention, arXiv 2205.14135, with whole rows instead of running maxima).

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};

use super::kernel::{LANES, Panels, add_outer, exp_row, scores, weighted_rows};

/// Width of a head; the kernels are written for it.
pub(crate) const HEAD_DIM: usize = 32;
/// Queries whose score rows are held at once.
const TILE: usize = 32;

/// What a query may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mask {
    /// Itself and everything before.
    Causal,
    /// Itself, the last `window` − 1 before it, and the first `sinks` of all.
    Window { window: usize, sinks: usize },
}

impl Mask {
    /// The positions between the sinks and the window of query `i`, which it may not look at.
    fn hidden(self, i: usize) -> std::ops::Range<usize> {
        match self {
            Self::Causal => 0..0,
            Self::Window { window, sinks } => sinks..(i + 1).saturating_sub(window).max(sinks),
        }
    }
}

/// Cosines and sines of each token's rotation: `[rows][HEAD_DIM / 2]`.
#[derive(Debug)]
pub(crate) struct Rotation {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    /// Rotations of tokens at these positions, frequencies `theta^(-2i / HEAD_DIM)`.
    pub(crate) fn new(positions: &[u32], theta: f64) -> Self {
        let half = HEAD_DIM / 2;
        let angle = |i: usize| {
            let frequency = theta.powf(-((i % half) as f64) / half as f64);
            f64::from(positions[i / half]) * frequency
        };
        let n = positions.len() * half;
        Self {
            cos: (0..n).map(|i| angle(i).cos() as f32).collect(),
            sin: (0..n).map(|i| angle(i).sin() as f32).collect(),
        }
    }

    /// Rotates a head's row forth (`sign` 1) or back (`sign` −1): pairs (i, i + HEAD_DIM / 2).
    fn apply(&self, row: usize, sign: f32, x: &mut [f32; HEAD_DIM]) {
        let half = HEAD_DIM / 2;
        let (cos, sin) = (&self.cos[row * half..][..half], &self.sin[row * half..][..half]);
        for i in 0..half {
            let (a, b, s) = (x[i], x[i + half], sin[i] * sign);
            x[i] = a * cos[i] - b * s;
            x[i + half] = b * cos[i] + a * s;
        }
    }
}

/// The operation on q `[rows, heads · 32]`, k and v `[rows, kv_heads · 32]`, giving `[rows, heads · 32]`; rows are
/// sequences of `len` tokens one after the other.
#[derive(Clone)]
pub(crate) struct CausalAttention {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) len: usize,
    pub(crate) mask: Mask,
    pub(crate) rotation: Arc<Rotation>,
}

type Head = Vec<[f32; HEAD_DIM]>;

/// One KV head of one sequence with the query heads that share it.
struct Group {
    k: Head,
    v: Head,
    q: Vec<Head>,
}

/// Gradients of a [`Group`].
struct GroupGrad {
    dk: Head,
    dv: Head,
    dq: Vec<Head>,
}

impl CausalAttention {
    fn group_size(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// One head of one sequence out of `[rows, heads · 32]`, rotated where asked.
    fn gather(&self, x: &[f32], heads: usize, seq: usize, head: usize, rotate: bool) -> Head {
        let width = heads * HEAD_DIM;
        (seq * self.len..(seq + 1) * self.len)
            .map(|row| {
                let mut out = [0.0; HEAD_DIM];
                out.copy_from_slice(&x[row * width + head * HEAD_DIM..][..HEAD_DIM]);
                if rotate {
                    self.rotation.apply(row, 1.0, &mut out);
                }
                out
            })
            .collect()
    }

    fn group(&self, q: &[f32], k: &[f32], v: &[f32], task: usize) -> Group {
        let (seq, kv) = (task / self.kv_heads, task % self.kv_heads);
        let g = self.group_size();
        Group {
            k: self.gather(k, self.kv_heads, seq, kv, true),
            v: self.gather(v, self.kv_heads, seq, kv, false),
            q: (0..g).map(|j| self.gather(q, self.heads, seq, kv * g + j, true)).collect(),
        }
    }

    /// Probabilities of the queries from `first` on, in `p`: one row of `width` columns each, zero where hidden.
    fn probabilities(&self, q: &Head, k: &Panels, first: usize, width: usize, p: &mut [f32]) {
        let scale = 1.0 / (HEAD_DIM as f32).sqrt();
        scores(&q[first..first + TILE], k, width, p);
        for (r, row) in p.chunks_exact_mut(width).enumerate().take(TILE) {
            let i = first + r;
            row[i + 1..].fill(f32::NEG_INFINITY);
            row[self.mask.hidden(i)].fill(f32::NEG_INFINITY);
            exp_row(row, scale);
        }
    }

    fn forward(&self, group: &Group) -> Vec<Head> {
        let k = Panels::new(&group.k);
        let mut p = vec![0.0; TILE * self.len];
        let outputs = group.q.iter().map(|q| {
            let mut out = vec![[0.0; HEAD_DIM]; self.len];
            for first in (0..self.len).step_by(TILE) {
                let width = first + TILE;
                let p = &mut p[..TILE * width];
                self.probabilities(q, &k, first, width, p);
                weighted_rows(p, width, &group.v, &mut out[first..first + TILE]);
            }
            out
        });
        outputs.collect()
    }

    fn backward(&self, group: &Group, outputs: &[Head], grads: &[Head]) -> GroupGrad {
        let scale = 1.0 / (HEAD_DIM as f32).sqrt();
        let (k, v) = (Panels::new(&group.k), Panels::new(&group.v));
        let zero = || vec![[0.0; HEAD_DIM]; self.len];
        let mut grad = GroupGrad { dk: zero(), dv: zero(), dq: Vec::new() };
        let (mut p, mut dp) = (vec![0.0; TILE * self.len], vec![0.0; TILE * self.len]);
        for ((q, out), d_out) in group.q.iter().zip(outputs).zip(grads) {
            let mut dq = zero();
            for first in (0..self.len).step_by(TILE) {
                let width = first + TILE;
                let (p, dp) = (&mut p[..TILE * width], &mut dp[..TILE * width]);
                let tile = first..first + TILE;
                self.probabilities(q, &k, first, width, p);
                scores(&d_out[tile.clone()], &v, width, dp);
                add_outer(p, width, &d_out[tile.clone()], &mut grad.dv);
                for (r, i) in tile.clone().enumerate() {
                    let mean: f32 = out[i].iter().zip(&d_out[i]).map(|(a, b)| a * b).sum();
                    let (p, dp) = (&p[r * width..][..width], &mut dp[r * width..][..width]);
                    for (d, &p) in dp.iter_mut().zip(p) {
                        *d = p * (*d - mean) * scale;
                    }
                }
                weighted_rows(dp, width, &group.k, &mut dq[tile.clone()]);
                add_outer(dp, width, &q[tile], &mut grad.dk);
            }
            grad.dq.push(dq);
        }
        grad
    }

    /// Writes a head of one sequence into `[rows, heads · 32]`, rotated back where asked.
    fn scatter(&self, head: &Head, x: &mut [f32], heads: usize, task: (usize, usize), rotate_back: bool) {
        let width = heads * HEAD_DIM;
        for (i, row) in head.iter().enumerate() {
            let at = task.0 * self.len + i;
            let mut row = *row;
            if rotate_back {
                self.rotation.apply(at, -1.0, &mut row);
            }
            x[at * width + task.1 * HEAD_DIM..][..HEAD_DIM].copy_from_slice(&row);
        }
    }

    fn tasks(&self, rows: usize) -> Result<usize> {
        if !rows.is_multiple_of(self.len) || !self.len.is_multiple_of(TILE.max(LANES)) {
            bail!("attention takes whole sequences whose length is a multiple of {}", TILE.max(LANES));
        }
        Ok(rows / self.len * self.kv_heads)
    }
}

impl CustomOp3 for CausalAttention {
    fn name(&self) -> &'static str {
        "causal-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) =
            (super::ops::contiguous(q, ql)?, super::ops::contiguous(k, kl)?, super::ops::contiguous(v, vl)?);
        let rows = ql.shape().dims2()?.0;
        let heads: Vec<Vec<Head>> =
            (0..self.tasks(rows)?).map(|task| self.forward(&self.group(q, k, v, task))).collect();
        let mut out = vec![0.0; q.len()];
        let g = self.group_size();
        for (task, group) in heads.iter().enumerate() {
            for (j, head) in group.iter().enumerate() {
                let at = (task / self.kv_heads, task % self.kv_heads * g + j);
                self.scatter(head, &mut out, self.heads, at, false);
            }
        }
        Ok((CpuStorage::F32(out), ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        use super::ops::values;
        let (shape, kv_shape) = (q.shape().clone(), k.shape().clone());
        let (q, k, v, out, grad) = (values(q)?, values(k)?, values(v)?, values(res)?, values(grad)?);
        let g = self.group_size();
        let tasks = self.tasks(shape.dims2()?.0)?;
        let grads: Vec<GroupGrad> = (0..tasks)
            .map(|task| {
                let (seq, kv) = (task / self.kv_heads, task % self.kv_heads);
                let heads = |x: &[f32]| -> Vec<Head> {
                    (0..g).map(|j| self.gather(x, self.heads, seq, kv * g + j, false)).collect()
                };
                self.backward(&self.group(&q, &k, &v, task), &heads(&out), &heads(&grad))
            })
            .collect();
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        for (task, group) in grads.iter().enumerate() {
            let (seq, kv) = (task / self.kv_heads, task % self.kv_heads);
            self.scatter(&group.dk, &mut dk, self.kv_heads, (seq, kv), true);
            self.scatter(&group.dv, &mut dv, self.kv_heads, (seq, kv), false);
            for (j, head) in group.dq.iter().enumerate() {
                self.scatter(head, &mut dq, self.heads, (seq, kv * g + j), true);
            }
        }
        let tensor = |x: Vec<f32>, shape: &Shape| Tensor::from_vec(x, shape, &Device::Cpu).map(Some);
        Ok((tensor(dq, &shape)?, tensor(dk, &kv_shape)?, tensor(dv, &kv_shape)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    fn var(seed: u32, rows: usize, cols: usize) -> Var {
        let mut state = seed;
        let x = (0..rows * cols).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        });
        Var::from_vec(x.collect::<Vec<f32>>(), (rows, cols), &Device::Cpu).unwrap()
    }

    /// The same from the library's own operations.
    fn plain(op: &CausalAttention, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let (rows, half) = (q.dim(0).unwrap(), HEAD_DIM / 2);
        let (seqs, len) = (rows / op.len, op.len);
        let table = |x: &[f32]| Tensor::from_slice(x, (seqs, 1, len, half), &Device::Cpu).unwrap();
        let (cos, sin) = (table(&op.rotation.cos), table(&op.rotation.sin));
        let split = |x: &Tensor, heads: usize| {
            x.reshape((seqs, len, heads, HEAD_DIM)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap()
        };
        let rotate = |x: Tensor| {
            let (a, b) = (x.narrow(3, 0, half).unwrap(), x.narrow(3, half, half).unwrap());
            let mul = |x: &Tensor, t: &Tensor| x.broadcast_mul(t).unwrap();
            let first = (mul(&a, &cos) - mul(&b, &sin)).unwrap();
            let second = (mul(&b, &cos) + mul(&a, &sin)).unwrap();
            Tensor::cat(&[first, second], 3).unwrap()
        };
        let g = op.heads / op.kv_heads;
        let widen = |x: Tensor| {
            let x = x.unsqueeze(2).unwrap().broadcast_as((seqs, op.kv_heads, g, len, HEAD_DIM)).unwrap();
            x.reshape((seqs, op.heads, len, HEAD_DIM)).unwrap()
        };
        let (q, k, v) =
            (rotate(split(q, op.heads)), widen(rotate(split(k, op.kv_heads))), widen(split(v, op.kv_heads)));
        let mask: Vec<f32> = (0..len * len)
            .map(|x| (x / len, x % len))
            .map(|(i, j)| if j > i || op.mask.hidden(i).contains(&j) { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let mask = Tensor::from_vec(mask, (1, 1, len, len), &Device::Cpu).unwrap();
        let s = (q.matmul(&k.t().unwrap()).unwrap() / (HEAD_DIM as f64).sqrt()).unwrap();
        let p = candle_nn::ops::softmax(&s.broadcast_add(&mask).unwrap(), 3).unwrap();
        let out = p.matmul(&v.contiguous().unwrap()).unwrap();
        out.transpose(1, 2).unwrap().reshape((rows, op.heads * HEAD_DIM)).unwrap()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn it_is_attention_and_so_are_its_gradients() {
        for mask in [Mask::Causal, Mask::Window { window: 20, sinks: 4 }] {
            let (heads, kv_heads, len, seqs) = (4, 2, 96, 2);
            let positions: Vec<u32> = (0..2 * len as u32).map(|i| i * 3 % 400).collect();
            let rotation = Arc::new(Rotation::new(&positions, 1e4));
            let op = CausalAttention { heads, kv_heads, len, mask, rotation };
            let (q, k, v) = (
                var(1, seqs * len, heads * HEAD_DIM),
                var(2, seqs * len, kv_heads * HEAD_DIM),
                var(3, seqs * len, kv_heads * HEAD_DIM),
            );
            let weight = var(4, seqs * len, heads * HEAD_DIM);
            let ours = q.apply_op3(&k, &v, op.clone()).unwrap();
            let theirs = plain(&op, &q, &k, &v);
            assert!(distance(&ours, &theirs) < 2e-5);
            let grads = |y: Tensor| (y * weight.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
            let (ours, theirs) = (grads(ours), grads(theirs));
            for x in [&q, &k, &v] {
                assert!(distance(ours.get(x).unwrap(), theirs.get(x).unwrap()) < 2e-4);
            }
        }
    }
}
