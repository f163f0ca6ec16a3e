//! Differentiable operations that the library would make of many small ones: normalisation, gated activation, weighted
//! loss.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor, bail};

use super::kernel::exp;

/// The numbers of a contiguous f32 tensor on the CPU.
pub(crate) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("the tensor is not contiguous"),
    }
}

/// The numbers of a tensor, copied.
pub(crate) fn values(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

/// `x / rms(x) · weight` per row of `[rows, dim]`.
pub(crate) struct RmsNorm {
    pub(crate) eps: f32,
}

impl RmsNorm {
    fn inverse(&self, x: &[f32]) -> f32 {
        let sum: f32 = x.iter().map(|x| x * x).sum();
        1.0 / (sum / x.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (contiguous(x, xl)?, contiguous(w, wl)?);
        let mut out = vec![0.0; x.len()];
        for (out, x) in out.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
            let r = self.inverse(x);
            for ((out, x), w) in out.iter_mut().zip(x).zip(w) {
                *out = x * r * w;
            }
        }
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let shape = x.shape().clone();
        let (x, w, grad) = (values(x)?, values(w)?, values(grad)?);
        let dim = w.len();
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; dim]);
        let rows = x.chunks_exact(dim).zip(grad.chunks_exact(dim)).zip(dx.chunks_exact_mut(dim));
        for ((x, g), dx) in rows {
            let r = self.inverse(x);
            let dot: f32 = x.iter().zip(g).zip(&w).map(|((x, g), w)| x * g * w).sum();
            let c = dot * r * r / dim as f32;
            for i in 0..dim {
                dx[i] = r * (w[i] * g[i] - x[i] * c);
                dw[i] += g[i] * x[i] * r;
            }
        }
        Ok((Some(Tensor::from_vec(dx, shape, &Device::Cpu)?), Some(Tensor::from_vec(dw, dim, &Device::Cpu)?)))
    }
}

/// `silu(gate) · up`.
pub(crate) struct SwiGlu;

#[inline]
fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        g: &CpuStorage,
        gl: &Layout,
        u: &CpuStorage,
        ul: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (g, u) = (contiguous(g, gl)?, contiguous(u, ul)?);
        let out = g.iter().zip(u).map(|(&g, &u)| g * sigmoid(g) * u).collect();
        Ok((CpuStorage::F32(out), gl.shape().clone()))
    }

    fn bwd(
        &self,
        g: &Tensor,
        u: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let shape = g.shape().clone();
        let (mut g, mut u, grad) = (values(g)?, values(u)?, values(grad)?);
        for ((g, u), d) in g.iter_mut().zip(&mut u).zip(grad) {
            let s = sigmoid(*g);
            let (dg, du) = (d * *u * s * (1.0 + *g * (1.0 - s)), d * *g * s);
            (*g, *u) = (dg, du);
        }
        Ok((
            Some(Tensor::from_vec(g, &shape, &Device::Cpu)?),
            Some(Tensor::from_vec(u, shape, &Device::Cpu)?),
        ))
    }
}

/// Weighted negative log-likelihood, a part of a batch's weighted mean: logits `[rows, vocab]` to a scalar.
pub(crate) struct Loss {
    pub(crate) targets: Vec<u32>,
    pub(crate) weights: Vec<f32>,
    /// What the sum is divided by: the weights of this and of all other parts of the batch.
    pub(crate) total: f64,
}

/// What a row of logits says of its target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// Negative log-likelihood, nats.
    pub(crate) nll: f32,
    /// Whether the target is the likeliest.
    pub(crate) right: bool,
}

fn outcome(logits: &[f32], target: u32) -> (Outcome, f32, f32) {
    let max = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let sum: f32 = logits.iter().map(|&x| exp(x - max)).sum();
    let of_target = logits[target as usize];
    (Outcome { nll: sum.ln() + max - of_target, right: of_target >= max }, max, sum)
}

/// The outcomes of all rows.
pub(crate) fn outcomes(logits: &Tensor, targets: &[u32]) -> Result<Vec<Outcome>> {
    let vocab = logits.dim(1)?;
    Ok(values(logits)?.chunks_exact(vocab).zip(targets).map(|(row, &t)| outcome(row, t).0).collect())
}

impl CustomOp1 for Loss {
    fn name(&self) -> &'static str {
        "weighted-loss"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let vocab = layout.shape().dims2()?.1;
        let rows = contiguous(logits, layout)?.chunks_exact(vocab);
        let losses: Vec<f32> = rows.zip(&self.targets).map(|(row, &t)| outcome(row, t).0.nll).collect();
        let sum: f64 = losses.iter().zip(&self.weights).map(|(l, w)| f64::from(l * w)).sum();
        Ok((CpuStorage::F32(vec![(sum / self.total) as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let shape = logits.shape().clone();
        let vocab = logits.dim(1)?;
        let scale = (f64::from(grad.to_scalar::<f32>()?) / self.total) as f32;
        let mut x = values(logits)?;
        x.chunks_exact_mut(vocab).zip(&self.targets).zip(&self.weights).for_each(|((row, &t), &w)| {
            let (_, max, sum) = outcome(row, t);
            for x in row.iter_mut() {
                *x = exp(*x - max) / sum * w * scale;
            }
            row[t as usize] -= w * scale;
        });
        Ok(Some(Tensor::from_vec(x, shape, &Device::Cpu)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    fn var(from: f32, rows: usize, cols: usize) -> Var {
        let x: Vec<f32> = (0..rows * cols).map(|i| ((i as f32 * 0.7 + from).sin()) * 1.5).collect();
        Var::from_vec(x, (rows, cols), &Device::Cpu).unwrap()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn normalisation_and_its_gradients() {
        let (x, w, weight) = (var(0.0, 5, 24), var(1.0, 1, 24), var(2.0, 5, 24));
        let w = Var::from_tensor(&w.flatten_all().unwrap()).unwrap();
        let ours = x.apply_op2(&w, RmsNorm { eps: 1e-5 }).unwrap();
        let mean = x.sqr().unwrap().mean_keepdim(1).unwrap();
        let theirs =
            x.broadcast_div(&(mean + 1e-5).unwrap().sqrt().unwrap()).unwrap().broadcast_mul(&w).unwrap();
        assert!(distance(&ours, &theirs) < 1e-5);
        let grads = |y: Tensor| (y * weight.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let (ours, theirs) = (grads(ours), grads(theirs));
        for x in [&x, &w] {
            assert!(distance(ours.get(x).unwrap(), theirs.get(x).unwrap()) < 1e-4);
        }
    }

    #[test]
    fn gating_and_its_gradients() {
        let (g, u, weight) = (var(0.0, 5, 24), var(1.0, 5, 24), var(2.0, 5, 24));
        let ours = g.apply_op2(&u, SwiGlu).unwrap();
        let theirs = (candle_nn::ops::silu(&g).unwrap() * u.as_tensor()).unwrap();
        assert!(distance(&ours, &theirs) < 1e-6);
        let grads = |y: Tensor| (y * weight.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let (ours, theirs) = (grads(ours), grads(theirs));
        for x in [&g, &u] {
            assert!(distance(ours.get(x).unwrap(), theirs.get(x).unwrap()) < 1e-5);
        }
    }

    #[test]
    fn the_loss_is_a_weighted_mean_and_so_is_its_gradient() {
        let logits = var(0.3, 6, 11);
        let (targets, weights) = (vec![3, 0, 10, 5, 5, 1], vec![1.0, 0.0, 4.0, 0.5, 0.1, 2.0]);
        let log = candle_nn::ops::log_softmax(&logits, 1).unwrap();
        let index = Tensor::from_slice(&targets, (6, 1), &Device::Cpu).unwrap();
        let picked = log.gather(&index, 1).unwrap().flatten_all().unwrap();
        let w = Tensor::from_slice(&weights, 6, &Device::Cpu).unwrap();
        let theirs = ((picked * w).unwrap().sum_all().unwrap() / -7.6).unwrap();
        let right = outcomes(&logits, &targets).unwrap();
        assert!(right.iter().all(|o| o.nll > 0.0) && right.iter().any(|o| !o.right));
        let ours = logits.apply_op1(Loss { targets, weights, total: 7.6 }).unwrap();
        assert!(distance(&ours, &theirs) < 1e-5);
        let (ours, theirs) = (ours.backward().unwrap(), theirs.backward().unwrap());
        assert!(distance(ours.get(&logits).unwrap(), theirs.get(&logits).unwrap()) < 1e-5);
    }
}
