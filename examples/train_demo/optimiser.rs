//! The two optimisers: Muon for the matrices inside the layers (Jordan et al., github.com/KellerJordan/Muon: momentum,
//! then the nearest orthogonal matrix by five Newton–Schulz steps), AdamW without decay for embeddings and norms.
//! The library's own AdamW keeps its moments to itself, so that a run could not be resumed from a checkpoint.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

use super::net::Net;

const MUON_RATE: f64 = 0.01;
const MUON_DECAY: f64 = 0.01;
const ADAM_RATE: f64 = 3e-3;
const ADAM_BETAS: (f64, f64) = (0.9, 0.98);
const ADAM_EPS: f64 = 1e-8;
/// Gradients longer than this, all together, are scaled down to it.
const CLIP: f64 = 1.0;

/// What is kept of a parameter's gradients.
struct Moments {
    name: String,
    var: Var,
    mean: Tensor,
    /// Of the squares; only where Adam is used.
    square: Option<Tensor>,
}

/// The optimiser's state: one entry per parameter, in the order of [`Net::parameters`].
pub(crate) struct Optimiser(Vec<Moments>);

impl Optimiser {
    /// With moments of zero.
    pub(crate) fn new(net: &Net) -> Result<Self> {
        let moments = |(name, var): (String, &Var)| {
            let inner_matrix = var.rank() == 2 && !name.contains("embed");
            let square = if inner_matrix { None } else { Some(var.zeros_like()?) };
            Ok(Moments { name, var: var.clone(), mean: var.zeros_like()?, square })
        };
        Ok(Self(net.parameters().into_iter().map(moments).collect::<Result<_>>()?))
    }

    /// The moments by name, to be kept: `NAME.m`, and `NAME.v` where Adam is used.
    pub(crate) fn moments(&self) -> HashMap<String, Tensor> {
        let means = self.0.iter().map(|p| (format!("{}.m", p.name), p.mean.clone()));
        let squares = self.0.iter().filter_map(|p| Some((format!("{}.v", p.name), p.square.clone()?)));
        means.chain(squares).collect()
    }

    /// Takes kept moments back.
    pub(crate) fn restore(&mut self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let kept = |name: String| {
            tensors.get(&name).cloned().ok_or_else(|| candle_core::Error::msg(format!("no tensor {name}")))
        };
        for p in &mut self.0 {
            p.mean = kept(format!("{}.m", p.name))?;
            if let Some(square) = &mut p.square {
                *square = kept(format!("{}.v", p.name))?;
            }
        }
        Ok(())
    }

    /// One step along the sum of the parts' gradients: `step` counts from 0, `rate` scales the learning rates, as many
    /// threads work as there are parts.
    pub(crate) fn step(&mut self, parts: &[GradStore], step: usize, rate: f64) -> Result<()> {
        let sum = |var: &Var| -> Result<Option<Tensor>> {
            let mut grads = parts.iter().filter_map(|part| part.get(var));
            let Some(first) = grads.next() else { return Ok(None) };
            grads.try_fold(first.clone(), |sum, grad| sum + grad).map(Some)
        };
        let mut grads = self.0.iter().map(|p| sum(&p.var)).collect::<Result<Vec<_>>>()?;
        let mut square = 0.0;
        for grad in grads.iter().flatten() {
            square += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        let clip = (CLIP / (square.sqrt() + 1e-6)).min(1.0);
        let share = self.0.len().div_ceil(parts.len().max(1));
        std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .0
                .chunks_mut(share)
                .zip(grads.chunks_mut(share))
                .map(|(moments, grads)| {
                    scope.spawn(move || {
                        for (moments, grad) in moments.iter_mut().zip(grads) {
                            if let Some(grad) = grad.take() {
                                moments.update(&(grad * clip)?, step, rate)?;
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            threads.into_iter().try_for_each(|t| t.join().expect("an update does not panic"))
        })
    }
}

impl Moments {
    fn update(&mut self, grad: &Tensor, step: usize, rate: f64) -> Result<()> {
        if self.square.is_some() { self.adam(grad, step, rate) } else { self.muon(grad, step, rate) }
    }

    fn muon(&mut self, grad: &Tensor, step: usize, rate: f64) -> Result<()> {
        let momentum = 0.85 + 0.1 * (step as f64 / 300.0).min(1.0);
        self.mean = ((&self.mean * momentum)? + grad)?;
        let update = orthogonal(&(grad + (&self.mean * momentum)?)?)?;
        let (rows, cols) = self.var.dims2()?;
        let rate = MUON_RATE * rate;
        let stretch = (rows as f64 / cols as f64).max(1.0).sqrt();
        self.var.set(&((self.var.as_tensor() * (1.0 - rate * MUON_DECAY))? - (update * (rate * stretch))?)?)
    }

    fn adam(&mut self, grad: &Tensor, step: usize, rate: f64) -> Result<()> {
        let (b1, b2) = ADAM_BETAS;
        self.mean = ((&self.mean * b1)? + (grad * (1.0 - b1))?)?;
        let mean = (&self.mean / (1.0 - b1.powi(step as i32 + 1)))?;
        let square = self.square.as_mut().expect("kept where Adam is used");
        *square = ((&*square * b2)? + (grad.sqr()? * (1.0 - b2))?)?;
        let root = ((&*square / (1.0 - b2.powi(step as i32 + 1)))?.sqrt()? + ADAM_EPS)?;
        self.var.set(&(self.var.as_tensor() - ((mean / root)? * (ADAM_RATE * rate))?)?)
    }
}

/// About the nearest orthogonal matrix: singular values between 0.7 and 1.2.
fn orthogonal(x: &Tensor) -> Result<Tensor> {
    let norm = x.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
    let (rows, cols) = x.dims2()?;
    let tall = rows > cols;
    let mut x = (x / f64::from(norm + 1e-7))?;
    if tall {
        x = x.t()?.contiguous()?;
    }
    for _ in 0..5 {
        let a = x.matmul(&x.t()?)?;
        let b = ((&a * -4.775)? + (a.matmul(&a)? * 2.0315)?)?;
        x = ((&x * 3.4445)? + b.matmul(&x)?)?;
    }
    if tall { x.t()?.contiguous() } else { Ok(x) }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_update_is_near_orthogonal() {
        for (rows, cols) in [(24, 40), (40, 24), (16, 16)] {
            let x: Vec<f32> = (0..rows * cols).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
            let x = Tensor::from_vec(x, (rows, cols), &Device::Cpu).unwrap();
            let y = orthogonal(&x).unwrap();
            let small = if rows > cols { y.t().unwrap().matmul(&y) } else { y.matmul(&y.t().unwrap()) };
            let gram: Vec<Vec<f32>> = small.unwrap().to_vec2().unwrap();
            let trace: f32 = (0..gram.len()).map(|i| gram[i][i]).sum::<f32>() / gram.len() as f32;
            assert!((0.4..1.5).contains(&trace), "{trace}");
            // It keeps the direction of steepest descent.
            let dot = (x * y).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(dot > 0.0);
        }
    }
}
