//! A GPU that is emulated: memory of this process between guards, the kernels compiled for the host, products by loops.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use kvista::device::gpu::{Array, DeviceError, Gpu, Launch, Matrices, Products, Result};

use crate::host::{Arg, Buffer, Kernels, load};

/// Memory by where it begins.
type Pieces = BTreeMap<u64, Buffer>;

/// The device. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Emulated {
    pieces: Arc<Mutex<Pieces>>,
    /// The order in which threads run.
    schedule: u32,
    /// Allocations and kernels that still succeed; then the device is lost.
    lives: Option<Arc<Mutex<usize>>>,
}

/// A piece of memory.
pub(crate) struct Piece {
    pieces: Arc<Mutex<Pieces>>,
    start: u64,
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.pieces.lock().unwrap().remove(&self.start);
    }
}

/// Whether there is a compiler to make the kernels with; says so if not.
pub(crate) fn is_there() -> bool {
    kernels("combine").is_some()
}

fn kernels(file: &str) -> Option<Arc<Kernels>> {
    load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(file).with_extension("cu"))
}

impl Emulated {
    pub(crate) fn new(schedule: u32) -> Self {
        Self { schedule, ..Self::default() }
    }

    /// One that is lost after so many allocations and kernels.
    pub(crate) fn mortal(lives: usize) -> Self {
        Self { lives: Some(Arc::new(Mutex::new(lives))), ..Self::default() }
    }

    /// Bytes of memory in use.
    pub(crate) fn used(&self) -> usize {
        self.pieces.lock().unwrap().values().map(Buffer::len).sum()
    }

    fn live(&self, call: &str) -> Result<()> {
        let Some(lives) = &self.lives else { return Ok(()) };
        let mut lives = lives.lock().unwrap();
        if *lives == 0 {
            return Err(DeviceError::Call { call: call.into(), text: "the device is lost".into() });
        }
        *lives -= 1;
        Ok(())
    }

    /// Something done with bytes of memory, which must all be of one piece.
    fn with<T>(&self, at: Array, bytes: usize, what: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut pieces = self.pieces.lock().unwrap();
        let (&start, piece) = pieces.range_mut(..=at.address()).next_back().expect("memory of the device");
        let from = (at.address() - start) as usize;
        what(&mut piece.bytes_mut()[from..from + bytes])
    }

    /// An element of a matrix.
    fn floats(&self, matrices: &Matrices, count: usize, rows: usize, columns: usize) -> Vec<f32> {
        let len = (count - 1) * matrices.stride + (rows - 1) * matrices.row_stride + columns;
        self.with(matrices.array, 4 * len, |bytes| bytemuck::cast_slice(bytes).to_vec())
    }
}

impl Gpu for Emulated {
    type Memory = Piece;

    fn allocate(&self, _: &'static str, bytes: usize) -> Result<Piece> {
        self.live("allocate")?;
        let mut buffer = Buffer::poisoned(bytes);
        let start = buffer.arg().bits();
        self.pieces.lock().unwrap().insert(start, buffer);
        Ok(Piece { pieces: Arc::clone(&self.pieces), start })
    }

    fn array(&self, memory: &Piece) -> Array {
        Array::at(memory.start)
    }

    fn upload(&self, to: Array, bytes: &[u8]) -> Result<()> {
        if !bytes.is_empty() {
            self.with(to, bytes.len(), |at| at.copy_from_slice(bytes));
        }
        Ok(())
    }

    fn download(&self, from: Array, to: &mut [u8]) -> Result<()> {
        if !to.is_empty() {
            self.with(from, to.len(), |at| to.copy_from_slice(at));
        }
        Ok(())
    }

    fn copy(&self, from: Array, to: Array, bytes: usize) -> Result<()> {
        let mut between = vec![0; bytes];
        self.download(from, &mut between)?;
        self.upload(to, &between)
    }

    fn clear(&self, at: Array, bytes: usize) -> Result<()> {
        if bytes > 0 {
            self.with(at, bytes, |at| at.fill(0));
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.live(launch.kernel)?;
        let kernels = kernels(launch.file).expect("the compiler is there");
        let args: Vec<Arg> = launch.args.iter().map(|arg| Arg::of_bits(arg.bits())).collect();
        let grid = launch.grid.map(|n| n as usize);
        kernels.try_run(launch.kernel, grid, launch.block as usize, &args, self.schedule).unwrap();
        // Nothing beside any array was written.
        self.pieces.lock().unwrap().values_mut().for_each(Buffer::check);
        Ok(())
    }

    fn multiply(&self, products: &Products) -> Result<()> {
        let Products { count, m, n, k, a, b, transposed, out } = *products;
        let left = self.floats(&a, count, m, k);
        let right = if transposed { self.floats(&b, count, n, k) } else { self.floats(&b, count, k, n) };
        for i in 0..count {
            for row in 0..m {
                let mut sums = vec![0.0f32; n];
                for (column, sum) in sums.iter_mut().enumerate() {
                    let of_left = &left[i * a.stride + row * a.row_stride..][..k];
                    let at = |j: usize| {
                        let (row, column) = if transposed { (column, j) } else { (j, column) };
                        right[i * b.stride + row * b.row_stride + column]
                    };
                    *sum = of_left.iter().enumerate().map(|(j, x)| x * at(j)).sum();
                }
                let to = out.array.offset(4 * (i * out.stride + row * out.row_stride));
                self.upload(to, bytemuck::cast_slice(&sums))?;
            }
        }
        Ok(())
    }
}
