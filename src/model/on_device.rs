//! The decoder's linear algebra with the weights on a device of the tensor library. The stream of a forward stays there from
//! the first layer to the last; what attention takes in and gives out stays there too, or passes the host.
//!
//! Weights keep the type they came in, and the activations of a product are rounded to it, as is usual on GPUs. A model of
//! less than [`WIDENED_BYTES`] is widened to f32 instead: it is so small that its speed is not a matter of bytes, and then
//! its outputs are those of the processor up to the order of sums.

use std::sync::Arc;

use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Module, Tensor};

use super::config::Activation;
use super::decoder::{Decoder, Layer, Qkv};
use super::matrix::{Linear, Matrix, Weights};
use super::{Config, Result};

/// Weights of which less than so many bytes are widened.
const WIDENED_BYTES: u64 = 256 << 20;

/// The weights of a decoder on a device.
#[derive(Debug)]
pub struct OnDevice {
    device: Device,
    layers: Vec<PlacedLayer>,
    final_norm: Tensor,
    head: Product,
    eps: f32,
}

#[derive(Debug)]
struct PlacedLayer {
    attention_norm: Tensor,
    qkv: Vec<Product>,
    /// Of each head's queries and keys.
    qk_norms: Option<[Tensor; 2]>,
    output: Product,
    output_norm: Option<Tensor>,
    mlp_norm: Tensor,
    gate_up: Vec<Product>,
    down: Product,
    down_norm: Option<Tensor>,
}

/// A matrix that rows are multiplied with, and its part of the bias.
#[derive(Debug)]
struct Product {
    matrix: Placed,
    bias: Option<Tensor>,
}

#[derive(Debug)]
enum Placed {
    /// `[outputs][inputs]`, and the type that rows are put into.
    Dense(Tensor),
    Quantised(QMatMul),
}

impl Product {
    fn place(matrix: &Matrix, bias: &[f32], device: &Device, widened: bool) -> Result<Self> {
        let [outputs, inputs] = matrix.shape();
        let dense = |tensor: Tensor| -> Result<Placed> {
            let wide = if widened { tensor.to_dtype(DType::F32)? } else { tensor };
            Ok(Placed::Dense(wide))
        };
        let shape = (outputs, inputs);
        let matrix = match matrix.weights() {
            Weights::F32(elements) => dense(Tensor::from_slice(elements, shape, device)?)?,
            Weights::F16(elements) => dense(Tensor::from_slice(elements, shape, device)?)?,
            Weights::Bf16(elements) => dense(Tensor::from_slice(elements, shape, device)?)?,
            Weights::Quantised(tensor) => {
                let storage = QStorage::from_data(tensor.data()?, device, tensor.dtype())?;
                let tensor = Arc::new(QTensor::new(storage, shape)?);
                Placed::Quantised(QMatMul::from_arc(tensor)?)
            }
        };
        let bias = if bias.is_empty() { None } else { Some(Tensor::from_slice(bias, outputs, device)?) };
        Ok(Self { matrix, bias })
    }

    /// Every part of a projection.
    fn parts(linear: &Linear, device: &Device, widened: bool) -> Result<Vec<Self>> {
        let (mut first, mut parts) = (0, Vec::new());
        for matrix in linear.parts() {
            let [outputs, _] = matrix.shape();
            let bias = linear.bias().get(first..first + outputs).unwrap_or_default();
            parts.push(Self::place(matrix, bias, device, widened)?);
            first += outputs;
        }
        Ok(parts)
    }

    /// A projection of one part.
    fn one(linear: &Linear, device: &Device, widened: bool) -> Result<Self> {
        let [matrix] = linear.parts() else { unreachable!("such a projection has one matrix") };
        Self::place(matrix, linear.bias(), device, widened)
    }

    /// Rows `[n][inputs]` of f32 times the matrix: `[n][outputs]`.
    fn of(&self, x: &Tensor) -> Result<Tensor> {
        let product = match &self.matrix {
            Placed::Dense(weights) if weights.dtype() == DType::F32 => x.matmul(&weights.t()?)?,
            Placed::Dense(weights) => {
                x.to_dtype(weights.dtype())?.matmul(&weights.t()?)?.to_dtype(DType::F32)?
            }
            Placed::Quantised(product) => product.forward(x)?,
        };
        Ok(match &self.bias {
            Some(bias) => product.broadcast_add(bias)?,
            None => product,
        })
    }
}

/// Parts side by side.
fn side_by_side(parts: &[Product], x: &Tensor) -> Result<Tensor> {
    let rows: Vec<Tensor> = parts.iter().map(|part| part.of(x)).collect::<Result<_>>()?;
    Ok(if let [one] = &*rows { one.clone() } else { Tensor::cat(&rows, 1)? })
}

impl OnDevice {
    /// Copies the weights of a decoder to a device.
    ///
    /// # Errors
    /// Faults of the tensor library, here and below: there is no more memory, or the device fails.
    pub(super) fn place(decoder: &Decoder, device: &Device) -> Result<Self> {
        let (layers, final_norm, head) = decoder.parts();
        let bytes = layers.iter().map(Layer::bytes).sum::<u64>() + head.bytes();
        let widened = bytes < WIDENED_BYTES;
        let vector = |elements: &[f32]| -> Result<Tensor> {
            Ok(Tensor::from_slice(elements, elements.len(), device)?)
        };
        let optional = |norm: &Option<Vec<f32>>| norm.as_deref().map(vector).transpose();
        let place = |layer: &Layer| -> Result<PlacedLayer> {
            Ok(PlacedLayer {
                attention_norm: vector(&layer.attention_norm)?,
                qkv: Product::parts(&layer.qkv, device, widened)?,
                qk_norms: match &layer.qk_norms {
                    Some([q, k]) => Some([vector(q)?, vector(k)?]),
                    None => None,
                },
                output: Product::one(&layer.output, device, widened)?,
                output_norm: optional(&layer.output_norm)?,
                mlp_norm: vector(&layer.mlp_norm)?,
                gate_up: Product::parts(&layer.gate_up, device, widened)?,
                down: Product::one(&layer.down, device, widened)?,
                down_norm: optional(&layer.down_norm)?,
            })
        };
        Ok(Self {
            device: device.clone(),
            layers: layers.iter().map(place).collect::<Result<_>>()?,
            final_norm: vector(final_norm)?,
            head: Product::place(head, &[], device, widened)?,
            eps: decoder.config().rms_norm_eps as f32,
        })
    }

    /// Where the weights are.
    pub(super) const fn device(&self) -> &Device {
        &self.device
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(candle_nn::ops::rms_norm(x, weight, self.eps)?)
    }

    /// Adds what a part of a layer made to the stream, through a norm if it has one.
    fn add(&self, x: &Tensor, made: Tensor, norm: Option<&Tensor>) -> Result<Tensor> {
        let made = match norm {
            Some(norm) => self.norm(&made, norm)?,
            None => made,
        };
        Ok((x + made)?)
    }

    fn start(&self, rows: &[f32], hidden: usize) -> Result<Tensor> {
        Ok(Tensor::from_slice(rows, (rows.len() / hidden, hidden), &self.device)?)
    }

    /// Rows of queries, keys and values side by side, on the host.
    fn qkv(&self, layer: usize, x: &Tensor) -> Result<Vec<f32>> {
        let layer = &self.layers[layer];
        let fused = side_by_side(&layer.qkv, &self.norm(x, &layer.attention_norm)?)?;
        Ok(fused.flatten_all()?.to_vec1()?)
    }

    /// Rows of queries, keys and values, each as a tensor of its own.
    fn rows(&self, layer: usize, x: &Tensor, config: &Config) -> Result<DeviceRows> {
        let Config { heads, kv_heads, head_dim, .. } = *config;
        let layer = &self.layers[layer];
        let x = self.norm(x, &layer.attention_norm)?;
        let [mut q, mut k, v] = if let [q, k, v] = &*layer.qkv {
            [q.of(&x)?, k.of(&x)?, v.of(&x)?]
        } else {
            let fused = side_by_side(&layer.qkv, &x)?;
            let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
            let part = |from, width| -> Result<Tensor> { Ok(fused.narrow(1, from, width)?.contiguous()?) };
            [part(0, q_width)?, part(q_width, kv_width)?, part(q_width + kv_width, kv_width)?]
        };
        if let Some([of_q, of_k]) = &layer.qk_norms {
            for (rows, weight) in [(&mut q, of_q), (&mut k, of_k)] {
                let by_head = rows.reshape(((), head_dim))?;
                *rows = self.norm(&by_head, weight)?.reshape(rows.shape())?;
            }
        }
        let scale = f64::from(config.arch.query_scale);
        if (scale - 1.0).abs() > 0.0 {
            q = q.affine(scale, 0.0)?;
        }
        Ok(DeviceRows { q, k, v })
    }

    fn mix(&self, layer: usize, x: &Tensor, attention: &Tensor, config: &Config) -> Result<Tensor> {
        let layer = &self.layers[layer];
        let x = self.add(x, layer.output.of(attention)?, layer.output_norm.as_ref())?;
        let normed = self.norm(&x, &layer.mlp_norm)?;
        let (gate, up) = match &*layer.gate_up {
            [gate, up] => (gate.of(&normed)?, up.of(&normed)?),
            parts => {
                let both = side_by_side(parts, &normed)?;
                let width = config.intermediate;
                (both.narrow(1, 0, width)?.contiguous()?, both.narrow(1, width, width)?.contiguous()?)
            }
        };
        let gate = match config.arch.activation {
            Activation::Silu => gate.silu()?,
            Activation::GeluTanh => gate.gelu()?,
        };
        self.add(&x, layer.down.of(&(gate * up)?)?, layer.down_norm.as_ref())
    }

    fn logits(&self, x: &Tensor) -> Result<Vec<f32>> {
        let logits = self.head.of(&self.norm(x, &self.final_norm)?)?;
        Ok(logits.flatten_all()?.to_vec1()?)
    }
}

/// Queries, keys and values of a layer before rotation, where the weights are: of f32, contiguous, one row per token.
#[derive(Debug)]
pub struct DeviceRows {
    /// `[n][heads * head_dim]`.
    pub q: Tensor,
    /// `[n][kv_heads * head_dim]`.
    pub k: Tensor,
    /// `[n][kv_heads * head_dim]`.
    pub v: Tensor,
}

/// The rows that pass through the layers, where the weights are: `[n][hidden]`.
#[derive(Debug)]
pub enum Stream {
    /// On the processor.
    Host(Vec<f32>),
    /// On a device.
    Device(Tensor),
}

impl Stream {
    /// Some of the rows, in the order of their indices.
    ///
    /// # Errors
    /// Faults of the tensor library.
    pub fn rows(&self, indices: &[usize], hidden: usize) -> Result<Self> {
        match self {
            Self::Host(x) => {
                Ok(Self::Host(indices.iter().flat_map(|i| &x[i * hidden..][..hidden]).copied().collect()))
            }
            Self::Device(x) => {
                let indices: Vec<u32> = indices.iter().map(|&i| i as u32).collect();
                let indices = Tensor::from_slice(&indices, indices.len(), x.device())?;
                Ok(Self::Device(x.index_select(&indices, 0)?))
            }
        }
    }
}

const NO_DEVICE: &str = "rows stay on a device where there is one";

/// Where a decoder's products are computed.
#[derive(Clone, Debug, Default)]
pub enum Arithmetic {
    /// On the processor, where the decoder itself has its weights.
    #[default]
    Host,
    /// On a device that has a copy of them.
    Device(Arc<OnDevice>),
}

impl Arithmetic {
    /// As [`Decoder::embed`]; rows are looked up on the host.
    ///
    /// # Errors
    /// As there; so below.
    pub fn embed(&self, decoder: &Decoder, ids: &[u32]) -> Result<Stream> {
        let rows = decoder.embed(ids)?;
        match self {
            Self::Host => Ok(Stream::Host(rows)),
            Self::Device(weights) => Ok(Stream::Device(weights.start(&rows, decoder.config().hidden)?)),
        }
    }

    /// As [`Decoder::qkv`].
    pub fn qkv(&self, decoder: &Decoder, layer: usize, x: &Stream) -> Result<Qkv> {
        match (self, x) {
            (Self::Device(weights), Stream::Device(x)) => {
                Ok(decoder.split_qkv(layer, &weights.qkv(layer, x)?))
            }
            (_, Stream::Host(x)) => decoder.qkv(layer, x),
            (Self::Host, Stream::Device(_)) => unreachable!("the stream began on the processor"),
        }
    }

    /// As [`Decoder::mix`].
    pub fn mix(&self, decoder: &Decoder, layer: usize, x: Stream, attention: &[f32]) -> Result<Stream> {
        match (self, x) {
            (Self::Device(weights), Stream::Device(x)) => {
                let config = decoder.config();
                let attention = weights.start(attention, config.heads * config.head_dim)?;
                Ok(Stream::Device(weights.mix(layer, &x, &attention, config)?))
            }
            (_, Stream::Host(x)) => Ok(Stream::Host(decoder.mix(layer, x, attention)?)),
            (Self::Host, Stream::Device(_)) => unreachable!("the stream began on the processor"),
        }
    }

    /// As [`qkv`](Self::qkv), the rows staying where the weights are.
    ///
    /// # Panics
    /// That is the processor; so below.
    pub fn rows(&self, decoder: &Decoder, layer: usize, x: &Stream) -> Result<DeviceRows> {
        let (Self::Device(weights), Stream::Device(x)) = (self, x) else { unreachable!("{NO_DEVICE}") };
        weights.rows(layer, x, decoder.config())
    }

    /// As [`mix`](Self::mix), attention's output being where the weights are: `[n][heads * head_dim]`.
    pub fn mix_rows(
        &self,
        decoder: &Decoder,
        layer: usize,
        x: &Stream,
        attention: &Tensor,
    ) -> Result<Stream> {
        let (Self::Device(weights), Stream::Device(x)) = (self, x) else { unreachable!("{NO_DEVICE}") };
        Ok(Stream::Device(weights.mix(layer, x, attention, decoder.config())?))
    }

    /// As [`Decoder::logits`].
    pub fn logits(&self, decoder: &Decoder, x: &Stream) -> Result<Vec<f32>> {
        match (self, x) {
            (Self::Device(weights), Stream::Device(x)) => {
                let mut logits = weights.logits(x)?;
                decoder.cap(&mut logits);
                Ok(logits)
            }
            (_, Stream::Host(x)) => decoder.logits(x),
            (Self::Host, Stream::Device(_)) => unreachable!("the stream began on the processor"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::decoder::tests::odd_config;
    use super::super::precision::Precision;
    use super::*;
    use crate::model::config::{Arch, Biases};
    use crate::model::demo;
    use half::f16;

    fn near(got: &[f32], want: &[f32], bound: f32) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= bound, "{got} is not {want}");
        }
    }

    /// Two layers through either arithmetic.
    fn same(decoder: &Decoder, ids: &[u32], bound: f32) {
        let device = Arithmetic::Device(Arc::new(OnDevice::place(decoder, &Device::Cpu).unwrap()));
        let host = Arithmetic::Host;
        let both = [&host, &device].map(|arithmetic| {
            let mut x = arithmetic.embed(decoder, ids).unwrap();
            let mut seen = Vec::new();
            for layer in 0..2 {
                let qkv = arithmetic.qkv(decoder, layer, &x).unwrap();
                if let Arithmetic::Device(_) = arithmetic {
                    let rows = arithmetic.rows(decoder, layer, &x).unwrap();
                    for (tensor, row) in [(&rows.q, &qkv.q), (&rows.k, &qkv.k), (&rows.v, &qkv.v)] {
                        near(&tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(), row, bound);
                    }
                    x = arithmetic.mix_rows(decoder, layer, &x, &rows.q).unwrap();
                } else {
                    x = arithmetic.mix(decoder, layer, x, &qkv.q).unwrap();
                }
                seen.extend([qkv.q, qkv.k, qkv.v].concat());
            }
            let rows = x.rows(&[ids.len() - 1, 0], decoder.config().hidden).unwrap();
            (seen, arithmetic.logits(decoder, &rows).unwrap())
        });
        near(&both[1].0, &both[0].0, bound);
        near(&both[1].1, &both[0].1, bound);
    }

    #[test]
    fn a_device_computes_what_the_processor_does() {
        same(&Decoder::random(odd_config(), 5).unwrap(), &[7, 0, 299], 1e-4);
        same(&demo::load().unwrap().decoder, &[300, 301, 12], 2e-4);
    }

    #[test]
    fn every_family_is_the_same_on_a_device() {
        let biases = Biases { qkv: true, output: true, mlp: true };
        let gemma = Arch {
            qk_norm: true,
            post_norms: true,
            norm_offset: 1.0,
            activation: Activation::GeluTanh,
            embedding_scale: 4.0,
            query_scale: 0.7,
            logit_softcap: Some(3.0),
            ..Arch::default()
        };
        for arch in [
            Arch { biases, ..Arch::default() },
            Arch { fused: true, ..Arch::default() },
            Arch { fused: true, biases, ..Arch::default() },
            gemma,
        ] {
            let config = Config { arch, ..odd_config() };
            same(&Decoder::random(config, 11).unwrap(), &[1, 2, 3, 4], 1e-4);
        }
    }

    #[test]
    fn half_weights_stay_half_where_there_are_many() {
        let halves: Vec<f16> = (0..24).map(|i| f16::from_f32(i as f32 / 8.0)).collect();
        let matrix = Matrix::f16(halves.clone().into(), [4, 6]);
        let x = Tensor::from_slice(&[1.0f32, -2.0, 0.5, 4.0, 0.25, -1.0], (1, 6), &Device::Cpu).unwrap();
        for widened in [false, true] {
            let product = Product::place(&matrix, &[0.5; 4], &Device::Cpu, widened).unwrap();
            let Placed::Dense(weights) = &product.matrix else { panic!("halves are dense") };
            assert_eq!(weights.dtype() == DType::F16, !widened);
            let got: Vec<f32> = product.of(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let x: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
            let want: Vec<f32> = halves
                .chunks(6)
                .map(|row| 0.5 + row.iter().zip(&x).map(|(w, x)| w.to_f32() * x).sum::<f32>())
                .collect();
            near(&got, &want, 1e-6);
        }
    }

    #[test]
    fn quantised_weights_go_to_the_device_as_they_are() {
        let decoder = demo::load_as(Some("q8_0".parse::<Precision>().unwrap())).unwrap().decoder;
        // Activations are rounded to eight bits there.
        same(&decoder, &[300, 301, 12], 0.5);
    }
}
