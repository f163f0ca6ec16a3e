//! What computes a run: the processor, or a GPU.

use std::sync::Arc;

use super::EngineError;
use crate::attention::cpu::CpuAttention;
use crate::attention::gpu::{self, GpuAttention};
use crate::attention::{Attention, Shape};
use crate::device::gpu::{DeviceError, Gpu};
use crate::event::Settings;
use crate::model::{Arithmetic, Config, Model};
use crate::policy::{ReadRule, ReadSet};

/// How `--device` spells the processor.
pub const CPU: &str = "cpu";

/// Makes attention for layers of a shape, over blocks of so many rows, at most so many.
type MakeAttention = dyn Fn(Shape, &Settings) -> Result<Box<dyn Attention>, DeviceError> + Send + Sync;

/// What computes: attention over pages, and products with weights.
#[derive(Clone)]
pub struct Backend(Option<Arc<OnGpu>>);

struct OnGpu {
    attention: Box<MakeAttention>,
    /// Where the tensor library computes: the same device.
    tensors: candle_core::Device,
}

impl Backend {
    /// The processor.
    pub const CPU: Self = Self(None);

    /// A GPU, and what the tensor library calls it.
    pub fn gpu(gpu: impl Gpu + Sync, tensors: candle_core::Device) -> Self {
        let attention = move |shape: Shape, settings: &Settings| {
            let cell = gpu::check(shape, &settings.kv_dtype)?;
            let (block_size, most) = (settings.block_size as usize, settings.blocks as usize);
            let attention = GpuAttention::new(gpu.clone(), shape, cell, block_size, most);
            Ok(Box::new(attention) as Box<dyn Attention>)
        };
        Self(Some(Arc::new(OnGpu { attention: Box::new(attention), tensors })))
    }

    /// What the settings name.
    ///
    /// # Errors
    /// A name that is none, or a device that is not to be had.
    pub fn of(settings: &Settings) -> Result<Self, EngineError> {
        match ordinal(&settings.device)? {
            None => Ok(Self::CPU),
            Some(ordinal) => Ok(open(ordinal)?),
        }
    }

    pub(super) const fn is_gpu(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn attention(
        &self,
        shape: Shape,
        settings: &Settings,
    ) -> Result<Box<dyn Attention>, EngineError> {
        match &self.0 {
            None => Ok(Box::new(CpuAttention::new(shape))),
            Some(on) => Ok((on.attention)(shape, settings)?),
        }
    }

    /// Where the weights of a model are multiplied with; a GPU gets its copy now.
    pub(super) fn arithmetic(&self, model: &Model) -> Result<Arithmetic, EngineError> {
        match &self.0 {
            None => Ok(Arithmetic::Host),
            Some(on) => match model.decoder.on_device(&on.tensors) {
                Ok(weights) => Ok(Arithmetic::Device(weights)),
                Err(error) if error.is_out_of_memory() => Err(EngineError::Setting(format!(
                    "the weights of model '{}' do not fit into the GPU's free memory: use --weights q8_0 or smaller, or \
                     --device cpu",
                    model.decoder.card().name
                ))),
                Err(error) => Err(error.into()),
            },
        }
    }
}

/// The number of the GPU that `--device` names; `None` for the processor.
fn ordinal(device: &str) -> Result<Option<usize>, EngineError> {
    let number = match device {
        CPU => return Ok(None),
        "cuda" => Some(0),
        other => other.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
    };
    match number {
        Some(number) => Ok(Some(number)),
        None => Err(EngineError::Setting(format!("--device {device}: use auto, cpu, cuda or cuda:N"))),
    }
}

#[cfg(feature = "cuda")]
fn open(ordinal: usize) -> Result<Backend, DeviceError> {
    let cuda = crate::device::cuda::Cuda::open(ordinal)?;
    let tensors = cuda.tensors();
    Ok(Backend::gpu(cuda, tensors))
}

#[cfg(not(feature = "cuda"))]
fn open(ordinal: usize) -> Result<Backend, DeviceError> {
    Err(DeviceError::Absent(format!(
        "--device cuda:{ordinal}: this build computes on the CPU alone: build with --features cuda, or use --device cpu"
    )))
}

/// What settings and recordings call a device that is to be had.
///
/// # Errors
/// A name that is none, or a device that is not to be had: one line.
pub fn named(device: &str) -> Result<String, EngineError> {
    match ordinal(device)? {
        None => Ok(CPU.into()),
        Some(ordinal) => open(ordinal).map(|_| format!("cuda:{ordinal}")).map_err(EngineError::from),
    }
}

/// What `--device auto` comes to, and why.
pub fn choose() -> (String, String) {
    match open(0) {
        Ok(_) => ("cuda:0".into(), "this build and this machine have a GPU".into()),
        Err(error) => (CPU.into(), reason(&error)),
    }
}

/// Why it is the processor, without what to do about it.
fn reason(error: &DeviceError) -> String {
    if cfg!(feature = "cuda") { error.to_string() } else { "this build has no CUDA".into() }
}

/// Whether a GPU can do what a run asks for.
///
/// # Errors
/// It cannot: one line.
pub(super) fn check(settings: &Settings, config: &Config, read: Option<&ReadSet>) -> Result<(), EngineError> {
    if ordinal(&settings.device)?.is_none() {
        return Ok(());
    }
    let refuse = |what: String| {
        Err(EngineError::Setting(format!("--device {}: {what}: use --device cpu", settings.device)))
    };
    let shape = Shape::new(config.heads, config.kv_heads, config.head_dim)
        .map_err(|e| EngineError::Setting(e.to_string()))?;
    let cell = gpu::check(shape, &settings.kv_dtype)?;
    if let Some(read) = read.filter(|read| matches!(read.rule(), ReadRule::Kcache(_)))
        && cell.goes_into_codes_later()
    {
        return Err(EngineError::Setting(format!(
            "--device {}: --read {read} pulls rows, and of {} pages no kernel adds up codes and exact ones: use --kv-dtype \
             f32, f16 or int8, or --device cpu",
            settings.device,
            cell.name()
        )));
    }
    if let Some(read) = read.filter(|read| read.rule().memory().is_some()) {
        return refuse(format!("--read {read} attends beyond a window, and no kernel does that yet"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Settings;

    #[test]
    fn a_device_is_named_or_refused_in_one_line() {
        for (name, number) in [("cpu", None), ("cuda", Some(0)), ("cuda:3", Some(3))] {
            assert_eq!(ordinal(name).unwrap(), number);
        }
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            let error = ordinal(name).unwrap_err();
            assert!(error.is_input() && !error.to_string().contains('\n'), "{error}");
        }
        assert!(Backend::of(&Settings::default()).unwrap().0.is_none());
        assert_eq!(named("cpu").unwrap(), CPU);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        let settings = Settings { device: "cuda".into(), ..Settings::default() };
        let error = Backend::of(&settings).err().expect("there is no GPU in this build");
        assert!(error.is_input() && error.to_string().contains("--features cuda"), "{error}");
        assert_eq!(choose(), ("cpu".into(), "this build has no CUDA".into()));
    }
}
