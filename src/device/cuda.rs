//! An NVIDIA GPU through the driver, beside the tensor library on the same context and the same stream: what either starts
//! comes in one order, so nothing has to wait for the other. Copies may go into a second stream.
//!
//! Source of names and rules: NVIDIA CUDA driver API and cuBLAS; cudarc and candle have them in Rust. Arrays are addresses of
//! one space for the device's memory and the host's page-locked memory ("Unified Addressing" there), in which `cuMemcpyAsync`
//! tells by the addresses which way to copy.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::cublas::CudaBlas;
use candle_core::cuda_backend::cudarc::cublas::result::sgemm_strided_batched;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
use candle_core::cuda_backend::cudarc::driver::sys::{
    CU_MEMHOSTALLOC_DEVICEMAP, CU_MEMHOSTALLOC_PORTABLE, CUdevice_attribute, CUevent_flags,
    CUmemPool_attribute, CUresult, cuMemHostGetDevicePointer_v2, cuMemcpyAsync,
};
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaFunction, CudaModule, CudaStream, DevicePtr, DevicePtrMut, DriverError, result,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, Device, Storage, Tensor};

use super::gpu::{Array, DeviceError, Gpu, Launch, Products, Result, elements, elements_of};
use super::kernels;

/// Lowest compute capability that the kernels are compiled for.
const LOWEST: (i32, i32) = (8, 0);

/// One GPU and one of its queues. Clones are the same one.
#[derive(Clone)]
pub struct Cuda {
    on: Arc<Opened>,
    /// Where what is asked of this handle goes.
    queue: Queue,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    Compute,
    Copies,
}

struct Opened {
    ordinal: usize,
    tensors: Device,
    /// The tensor library's. Memory is taken and given back in its order.
    stream: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    blas: Arc<CudaBlas>,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: Mutex<HashMap<String, CudaFunction>>,
}

impl Opened {
    /// Lets the driver keep memory that is given back, for what is taken next: else it returns all of it to the system each
    /// time that the host waits, which every step does.
    fn keep_memory(&self) {
        let mut threshold = u64::MAX;
        let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the device is the context's, the pool its own, and a threshold is 64 bits, which are read before this
        // returns. Where it cannot be had, allocations take longer and nothing else.
        let _ = unsafe {
            result::device::get_mem_pool(self.stream.context().cu_device()).and_then(|pool| {
                result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast())
            })
        };
    }

    /// Waits for the device, then returns to the system what the driver kept: pieces that lie apart are no room for a
    /// larger one.
    fn give_back_unused(&self) -> std::result::Result<(), DriverError> {
        self.stream.context().synchronize()?;
        // SAFETY: as above; what is in use stays.
        unsafe {
            let pool = result::device::get_mem_pool(self.stream.context().cu_device())?;
            result::mem_pool::trim_to(pool, 0)
        }
    }
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

/// A piece of the host's memory, page-locked and mapped for the device.
pub struct Pinned {
    on: Arc<Opened>,
    /// As the host has it.
    host: usize,
    /// As the device has it.
    address: u64,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Kernels may still be reading it. The first call may only tell of an earlier failure, and not wait; a device that
        // fails again is lost and reads no more.
        let context = self.on.stream.context();
        let _ = context.synchronize().or_else(|_| context.synchronize());
        // SAFETY: the address came from `cuMemHostAlloc`, is freed once, and nothing that was asked for uses it any more.
        // Nothing can be done about memory that cannot be given back.
        let _ = unsafe { result::free_host(self.host as *mut c_void) };
    }
}

/// How far a queue had come.
pub struct Mark(CudaEvent);

/// GPUs that this process has opened: a context, its stream and what was loaded into it are made once.
static OPENED: Mutex<Vec<Cuda>> = Mutex::new(Vec::new());

impl Cuda {
    /// The GPU of this number.
    ///
    /// # Errors
    /// There is no driver or no such GPU, or it is too old for the kernels.
    pub fn open(ordinal: usize) -> Result<Self> {
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cuda) = opened.iter().find(|cuda| cuda.on.ordinal == ordinal) {
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
        // SAFETY: the tensor library has one stream, so no two of them have to be told of each other's work. The queue of
        // copies is told by marks.
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
        // Rows that are pulled are few and waited for: their kernels go first where there is room for a block.
        let copies = result::stream::get_priority_range()
            .and_then(|(_, highest)| stream.context().new_stream_with_priority(highest))
            .map_err(|error| absent(&named(error)))?;
        let blas = device.cublas_handle();
        let on = Arc::new(Opened {
            ordinal,
            stream,
            copies,
            blas,
            tensors: tensors.clone(),
            modules: Mutex::default(),
            functions: Mutex::default(),
        });
        on.keep_memory();
        let cuda = Self { on, queue: Queue::Compute };
        opened.push(cuda.clone());
        Ok(cuda)
    }

    /// What the tensor library calls it.
    pub fn tensors(&self) -> Device {
        self.on.tensors.clone()
    }

    /// Makes the device that of the calling thread.
    fn enter(&self) -> Result<()> {
        self.on.stream.context().bind_to_thread().map_err(|error| failed("cuCtxSetCurrent", error))
    }

    /// The stream of this handle's queue.
    fn stream(&self) -> &CudaStream {
        match self.queue {
            Queue::Compute => &self.on.stream,
            Queue::Copies => &self.on.copies,
        }
    }

    /// Copies between any two addresses, in a stream's order.
    ///
    /// # Safety
    /// Both are of arrays of this device or of memory of the host that are so long, and do not overlap; memory of the host that
    /// is not page-locked stays until the stream has been waited for, unless it is only read.
    unsafe fn copied(&self, stream: &CudaStream, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: as the caller says. Pageable memory has been read, or staged, when the driver returns.
        unsafe { cuMemcpyAsync(to, from, bytes, stream.cu_stream()) }
            .result()
            .map_err(|error| failed("cuMemcpyAsync", error))
    }

    /// Takes memory. Where there is none, the host waits for what was given back to be free, and asks once more.
    fn taken<T>(
        &self,
        take: impl Fn() -> std::result::Result<T, DriverError>,
    ) -> std::result::Result<T, DriverError> {
        match take() {
            Err(error) if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                self.on.give_back_unused()?;
                take()
            }
            taken => taken,
        }
    }

    /// Why memory of the device cannot be taken.
    fn no_room(&self, what: &'static str, bytes: usize, error: DriverError) -> DeviceError {
        if error.0 != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return failed("cuMemAllocAsync", error);
        }
        let (free, total) = self.on.stream.context().mem_get_info().unwrap_or_default();
        DeviceError::OutOfMemory {
            what,
            asked_bytes: bytes as u64,
            free_bytes: free as u64,
            total_bytes: total as u64,
        }
    }

    fn function(&self, launch: &Launch<'_>) -> Result<CudaFunction> {
        let mut functions = self.on.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(launch.kernel) {
            return Ok(function.clone());
        }
        let mut modules = self.on.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = if let Some(module) = modules.get(launch.file) {
            Arc::clone(module)
        } else {
            let image = kernels::fatbin(launch.file).ok_or_else(|| DeviceError::Call {
                call: "cuModuleLoadData".into(),
                text: format!("this build carries no kernels/{}.cu", launch.file),
            })?;
            let module = self
                .on
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

/// A tensor's storage is not where it should be.
fn elsewhere(error: &dyn std::fmt::Display) -> DeviceError {
    let text = error.to_string();
    DeviceError::Limit(format!(
        "a tensor of another device has no rows to copy ({})",
        text.lines().next().unwrap_or_default()
    ))
}

impl Gpu for Cuda {
    type Memory = Piece;
    type Pinned = Pinned;
    type Mark = Mark;

    fn copies(&self) -> Self {
        Self { on: Arc::clone(&self.on), queue: Queue::Copies }
    }

    fn mark(&self) -> Result<Mark> {
        // Not one without times, which cudarc would make.
        let event = self.stream().record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        event.map(Mark).map_err(|error| failed("cuEventRecord", error))
    }

    fn after(&self, mark: &Mark) -> Result<()> {
        self.stream().wait(&mark.0).map_err(|error| failed("cuStreamWaitEvent", error))
    }

    fn elapsed_ns(&self, from: &Mark, to: &Mark) -> Result<u64> {
        let ms = from.0.elapsed_ms(&to.0).map_err(|error| failed("cuEventElapsedTime", error))?;
        Ok((f64::from(ms).max(0.0) * 1e6) as u64)
    }

    fn allocate(&self, what: &'static str, bytes: usize) -> Result<Piece> {
        self.enter()?;
        // SAFETY: the stream is alive as long as this device is.
        match self.taken(|| unsafe { result::malloc_async(self.on.stream.cu_stream(), bytes.max(1)) }) {
            Ok(address) => {
                let piece = Piece { on: Arc::clone(&self.on), address };
                if self.queue == Queue::Copies {
                    // It may be memory that the other queue still reads and has given back.
                    self.on
                        .copies
                        .join(&self.on.stream)
                        .map_err(|error| failed("cuStreamWaitEvent", error))?;
                }
                Ok(piece)
            }
            Err(error) => Err(self.no_room(what, bytes, error)),
        }
    }

    fn array(&self, memory: &Piece) -> Array {
        Array::at(memory.address)
    }

    fn allocate_host(&self, what: &'static str, bytes: usize) -> Result<Pinned> {
        self.enter()?;
        // Not write-combined: the host reads it.
        let flags = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: whatever is in it, it is taken for bytes.
        let host = match unsafe { result::malloc_host(bytes.max(1), flags) } {
            Ok(host) => host,
            Err(error) if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                return Err(DeviceError::host_memory(what, bytes));
            }
            Err(error) => return Err(failed("cuMemHostAlloc", error)),
        };
        // From here on it is given back.
        let mut pinned = Pinned { on: Arc::clone(&self.on), host: host as usize, address: 0 };
        // SAFETY: the memory was taken with the flag that maps it; the address is written before this returns.
        unsafe { cuMemHostGetDevicePointer_v2(&raw mut pinned.address, host, 0) }
            .result()
            .map_err(|error| failed("cuMemHostGetDevicePointer", error))?;
        Ok(pinned)
    }

    fn host_array(&self, pinned: &Pinned) -> Array {
        Array::at(pinned.address)
    }

    fn upload(&self, to: Array, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the array is part of memory that has room for them, as the caller says.
        unsafe { self.copied(self.stream(), bytes.as_ptr() as u64, to.address(), bytes.len()) }
    }

    fn download(&self, from: Array, to: &mut [u8]) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        // SAFETY: as for an upload; the bytes are not touched before the stream has been waited for.
        unsafe { self.copied(self.stream(), from.address(), to.as_mut_ptr() as u64, to.len()) }?;
        self.wait()
    }

    fn copy(&self, from: Array, to: Array, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both arrays are parts of memory that is so long, as the caller says, and not of the same piece.
        unsafe { self.copied(self.stream(), from.address(), to.address(), bytes) }
    }

    fn clear(&self, at: Array, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the array is part of memory that is so long, as the caller says. Mapped memory of the host is set like the
        // device's own.
        unsafe { result::memset_d8_async(at.address(), 0, bytes, self.stream().cu_stream()) }
            .map_err(|error| failed("cuMemsetD8Async", error))
    }

    fn wait(&self) -> Result<()> {
        self.stream().synchronize().map_err(|error| failed("cuStreamSynchronize", error))
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
                self.stream().cu_stream(),
                &mut cells,
            )
        }
        .map_err(|error| failed(launch.kernel, error))
    }

    fn multiply(&self, products: &Products) -> Result<()> {
        if self.queue == Queue::Copies {
            return Err(DeviceError::Limit("the queue of copies does no matrix products".into()));
        }
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
                *self.on.blas.handle(),
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

    fn read_tensor(&self, tensor: &Tensor, to: Array) -> Result<()> {
        let (start, end) = elements_of(tensor)?;
        if start == end {
            return Ok(());
        }
        let (storage, _) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            return Err(elsewhere(&"it is the host's"));
        };
        if !tensor.device().same_device(&self.on.tensors) {
            return Err(elsewhere(&"it is another GPU's"));
        }
        let slice = storage.as_cuda_slice::<f32>().map_err(|error| elsewhere(&error))?;
        let (address, _reads) = slice.device_ptr(&self.on.stream);
        // SAFETY: the layout's elements lie within the storage, the array has room for them, as the caller says. The tensor
        // library gives the storage back in the same stream's order.
        unsafe { self.copied(&self.on.stream, address + 4 * start as u64, to.address(), 4 * (end - start)) }
    }

    fn tensor(&self, from: Array, rows: usize, columns: usize) -> Result<Tensor> {
        let elements = elements(rows, columns)?;
        let device = self.on.tensors.as_cuda_device().map_err(|error| elsewhere(&error))?;
        self.enter()?;
        // SAFETY: every element is written below before anything in the stream's order reads it.
        let allocated = self.taken(|| unsafe { self.on.stream.alloc::<f32>(elements) });
        let mut slice = allocated.map_err(|error| self.no_room("a tensor", 4 * elements, error))?;
        let (address, writes) = slice.device_ptr_mut(&self.on.stream);
        // SAFETY: the slice is so long, and so is the array, as the caller says.
        unsafe { self.copied(&self.on.stream, from.address(), address, 4 * elements) }?;
        drop(writes);
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
        Ok(Tensor::from_storage(storage, (rows, columns), BackpropOp::none(), false))
    }
}
