//! An NVIDIA GPU through the driver, beside the tensor library on the same context and the same stream: what either starts
//! comes in one order, so nothing has to wait for the other.
//!
//! Source of names and rules: NVIDIA CUDA driver API and cuBLAS; cudarc and candle have them in Rust.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Device;
use candle_core::cuda_backend::cudarc::cublas::CudaBlas;
use candle_core::cuda_backend::cudarc::cublas::result::sgemm_strided_batched;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
use candle_core::cuda_backend::cudarc::driver::sys::{CUdevice_attribute, CUresult};
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaModule, CudaStream, DriverError, result};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;

use super::gpu::{Array, DeviceError, Gpu, Launch, Products, Result};
use super::kernels;

/// Lowest compute capability that the kernels are compiled for.
const LOWEST: (i32, i32) = (8, 0);

/// One GPU. Clones are the same one.
#[derive(Clone)]
pub struct Cuda(Arc<Opened>);

struct Opened {
    ordinal: usize,
    tensors: Device,
    stream: Arc<CudaStream>,
    blas: Arc<CudaBlas>,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: Mutex<HashMap<String, CudaFunction>>,
}

/// A piece of the device's memory.
pub struct Piece {
    on: Arc<Opened>,
    address: u64,
}

impl Drop for Piece {
    fn drop(&mut self) {
        let _ = self.on.stream.context().bind_to_thread();
        // SAFETY: the address came from an allocation on this stream and is freed once. The stream does so after all that
        // was asked of it before.
        // Nothing can be done about memory that cannot be given back.
        let _ = unsafe { result::free_async(self.address, self.on.stream.cu_stream()) };
    }
}

/// GPUs that this process has opened: a context, its stream and what was loaded into it are made once.
static OPENED: Mutex<Vec<Cuda>> = Mutex::new(Vec::new());

impl Cuda {
    /// The GPU of this number.
    ///
    /// # Errors
    /// There is no driver or no such GPU, or it is too old for the kernels.
    pub fn open(ordinal: usize) -> Result<Self> {
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cuda) = opened.iter().find(|cuda| cuda.0.ordinal == ordinal) {
            return Ok(cuda.clone());
        }
        let absent = |error: &dyn std::fmt::Display| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            DeviceError::Absent(format!(
                "--device cuda:{ordinal}: the GPU cannot be used ({line}); kvista doctor tells more, or use --device cpu"
            ))
        };
        let tensors = Device::new_cuda_with_stream(ordinal).map_err(|error| absent(&error))?;
        let device = tensors.as_cuda_device().map_err(|error| absent(&error))?;
        // SAFETY: there is one stream for everything, so no two of them have to be told of each other's work.
        unsafe { device.disable_event_tracking() };
        let stream = device.cuda_stream();
        let attribute = |which| stream.context().attribute(which).map_err(|error| absent(&named(error)));
        let capability = (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < LOWEST {
            return Err(absent(&format!(
                "its compute capability is {}.{}, the kernels need {}.{}",
                capability.0, capability.1, LOWEST.0, LOWEST.1
            )));
        }
        let blas = device.cublas_handle();
        let cuda = Self(Arc::new(Opened {
            ordinal,
            stream,
            blas,
            tensors: tensors.clone(),
            modules: Mutex::default(),
            functions: Mutex::default(),
        }));
        opened.push(cuda.clone());
        Ok(cuda)
    }

    /// What the tensor library calls it.
    pub fn tensors(&self) -> Device {
        self.0.tensors.clone()
    }

    /// Makes the device that of the calling thread.
    fn enter(&self) -> Result<()> {
        self.0.stream.context().bind_to_thread().map_err(|error| failed("cuCtxSetCurrent", error))
    }

    fn function(&self, launch: &Launch<'_>) -> Result<CudaFunction> {
        let mut functions = self.0.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(launch.kernel) {
            return Ok(function.clone());
        }
        let mut modules = self.0.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = if let Some(module) = modules.get(launch.file) {
            Arc::clone(module)
        } else {
            let image = kernels::fatbin(launch.file).ok_or_else(|| DeviceError::Call {
                call: "cuModuleLoadData".into(),
                text: format!("this build carries no kernels/{}.cu", launch.file),
            })?;
            let module = self
                .0
                .stream
                .context()
                .load_module(Ptx::from_binary(image.to_vec()))
                .map_err(|error| failed("cuModuleLoadData", error))?;
            modules.insert(launch.file, Arc::clone(&module));
            module
        };
        let function =
            module.load_function(launch.kernel).map_err(|error| failed("cuModuleGetFunction", error))?;
        functions.insert(launch.kernel.into(), function.clone());
        Ok(function)
    }
}

/// The driver's own name for what went wrong.
fn named(error: DriverError) -> String {
    error.error_name().map_or_else(|_| format!("{:?}", error.0), |name| name.to_string_lossy().into_owned())
}

fn failed(call: &str, error: DriverError) -> DeviceError {
    DeviceError::Call { call: call.into(), text: named(error) }
}

impl Gpu for Cuda {
    type Memory = Piece;

    fn allocate(&self, what: &'static str, bytes: usize) -> Result<Piece> {
        self.enter()?;
        // SAFETY: the stream is alive as long as this device is.
        match unsafe { result::malloc_async(self.0.stream.cu_stream(), bytes) } {
            Ok(address) => Ok(Piece { on: Arc::clone(&self.0), address }),
            Err(error) if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = self.0.stream.context().mem_get_info().unwrap_or_default();
                Err(DeviceError::OutOfMemory {
                    what,
                    asked_bytes: bytes as u64,
                    free_bytes: free as u64,
                    total_bytes: total as u64,
                })
            }
            Err(error) => Err(failed("cuMemAllocAsync", error)),
        }
    }

    fn array(&self, memory: &Piece) -> Array {
        Array::at(memory.address)
    }

    fn upload(&self, to: Array, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the array is a part of an allocation of this device that has room for them, as the caller says. The bytes
        // are pageable memory, which the driver has read before it returns.
        unsafe { result::memcpy_htod_async(to.address(), bytes, self.0.stream.cu_stream()) }
            .map_err(|error| failed("cuMemcpyHtoDAsync", error))
    }

    fn download(&self, from: Array, to: &mut [u8]) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: as for an upload; the bytes are not touched before the stream has been waited for.
        unsafe { result::memcpy_dtoh_async(to, from.address(), self.0.stream.cu_stream()) }
            .map_err(|error| failed("cuMemcpyDtoHAsync", error))?;
        self.0.stream.synchronize().map_err(|error| failed("cuStreamSynchronize", error))
    }

    fn copy(&self, from: Array, to: Array, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: both arrays are parts of allocations of this device that are so long, as the caller says, and not of the
        // same one.
        unsafe { result::memcpy_dtod_async(to.address(), from.address(), bytes, self.0.stream.cu_stream()) }
            .map_err(|error| failed("cuMemcpyDtoDAsync", error))
    }

    fn clear(&self, at: Array, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the array is a part of an allocation of this device that is so long, as the caller says.
        unsafe { result::memset_d8_async(at.address(), 0, bytes, self.0.stream.cu_stream()) }
            .map_err(|error| failed("cuMemsetD8Async", error))
    }

    fn wait(&self) -> Result<()> {
        self.0.stream.synchronize().map_err(|error| failed("cuStreamSynchronize", error))
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.enter()?;
        let function = self.function(launch)?;
        let mut cells: Vec<u64> = launch.args.iter().map(|arg| arg.bits()).collect();
        let mut cells: Vec<*mut c_void> =
            cells.iter_mut().map(|cell| std::ptr::from_mut(cell).cast()).collect();
        let [x, y, z] = launch.grid;
        // SAFETY: `super::launch` gives each kernel the arguments of its declaration in their order, each in a cell of its own
        // that is at least as long as the parameter (the hosts of these GPUs put the lowest byte first). The driver has read
        // them when it returns.
        unsafe {
            result::launch_kernel(
                function.cu_function(),
                (x, y, z),
                (launch.block, 1, 1),
                0,
                self.0.stream.cu_stream(),
                &mut cells,
            )
        }
        .map_err(|error| failed(launch.kernel, error))
    }

    fn multiply(&self, products: &Products) -> Result<()> {
        let Products { count, m, n, k, a, b, transposed, out } = *products;
        if count == 0 || m == 0 || n == 0 {
            return Ok(());
        }
        self.enter()?;
        let (one, zero) = (1.0f32, 0.0f32);
        // cuBLAS has columns one after the other: its result is the transpose, so the second factor comes first.
        let op = if transposed { CUBLAS_OP_T } else { CUBLAS_OP_N };
        // SAFETY: the matrices lie within allocations of this device, as the caller says; the two factors of the sum are read
        // before this returns, since the handle takes them from the host.
        unsafe {
            sgemm_strided_batched(
                *self.0.blas.handle(),
                op,
                CUBLAS_OP_N,
                n as i32,
                m as i32,
                k as i32,
                &raw const one,
                b.array.address() as *const f32,
                b.row_stride as i32,
                b.stride as i64,
                a.array.address() as *const f32,
                a.row_stride as i32,
                a.stride as i64,
                &raw const zero,
                out.array.address() as *mut f32,
                out.row_stride as i32,
                out.stride as i64,
                count as i32,
            )
        }
        .map_err(|error| DeviceError::Call {
            call: "cublasSgemmStridedBatched".into(),
            text: format!("{error:?}"),
        })
    }
}
