//! A GPU that is emulated: memory of this process between guards, the kernels compiled for the host, products by loops.
//!
//! One of the two queues does what it is asked for at once, the other as late as it may: when somebody waits for it. Work
//! that needs the other queue's and does not come behind its mark therefore sees memory as it was before.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use candle_core::Tensor;
use kvista::device::gpu::{
    Array, DeviceError, Gpu, Launch, Matrices, Products, Result, elements, elements_of,
};

use crate::device::is_real;
use crate::host::{Arg, Buffer, Kernels, load};

/// The device and one of its queues. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Emulated {
    open: Arc<Open>,
    queue: Queue,
    /// The order in which threads run.
    schedule: u32,
}

/// A device while somebody has a handle of it. Then both queues come to their end.
struct Open(Arc<Mutex<State>>);

impl Drop for Open {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            locked(&self.0).run_all();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    Compute,
    Copies,
}

struct State {
    memory: Memory,
    queues: [Steps; 2],
    /// The queue that does nothing before it must.
    late: Queue,
    /// Of the queue that computes, the steps that the one of copies is known to be behind.
    copies_behind: u64,
    /// Allocations and kernels that still succeed; then the device is lost.
    lives: Option<usize>,
    is_lost: bool,
    /// Bytes that the host asked for.
    fetched: u64,
}

/// What a queue was asked for.
#[derive(Default)]
struct Steps {
    done: u64,
    to_do: VecDeque<Step>,
}

enum Step {
    Work(Box<dyn FnOnce(&mut Memory) + Send>),
    /// So many steps of a queue come first.
    After(Queue, u64),
    Mark(Arc<OnceLock<Instant>>),
}

/// Memory by where it begins.
#[derive(Default)]
struct Memory {
    pieces: BTreeMap<u64, Held>,
    taken: u64,
    /// Most bytes that were there at once: of the device, of the host.
    most: [usize; 2],
}

struct Held {
    buffer: Buffer,
    /// No other piece ever has it.
    number: u64,
    on_host: bool,
    /// Steps that the queue that computes was asked for by then, the taking included; 0 for the host's memory.
    taken_at: u64,
}

/// A piece of a piece of memory, which somebody means to use.
#[derive(Clone, Copy)]
struct Part {
    start: u64,
    number: u64,
    from: usize,
    bytes: usize,
}

/// A piece of memory.
pub(crate) struct Piece {
    state: Arc<Mutex<State>>,
    start: u64,
}

/// A piece of the host's memory.
pub(crate) struct Pinned(Piece);

/// How far a queue had come.
pub(crate) struct Mark {
    queue: Queue,
    /// Steps, itself included.
    steps: u64,
    reached: Arc<OnceLock<Instant>>,
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A test that fails while it holds the state still gives its memory back.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Piece {
    fn drop(&mut self) {
        let start = self.start;
        let mut state = locked(&self.state);
        if std::thread::panicking() {
            state.memory.pieces.remove(&start);
            return;
        }
        state.ask(Queue::Compute, Step::Work(Box::new(move |memory| drop(memory.pieces.remove(&start)))));
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            locked(&self.0.state).run_all();
        }
    }
}

impl Memory {
    /// The piece that an address is in.
    fn find(&self, address: u64) -> Option<(u64, &Held)> {
        let (&start, held) = self.pieces.range(..=address).next_back()?;
        (address - start <= held.buffer.len() as u64).then_some((start, held))
    }

    fn part(&self, at: Array, bytes: usize) -> Part {
        let (start, held) = self.find(at.address()).expect("memory of the device");
        let from = (at.address() - start) as usize;
        assert!(from + bytes <= held.buffer.len(), "within one piece of memory");
        Part { start, number: held.number, from, bytes }
    }

    /// Bytes that were there when they were asked for.
    fn bytes(&mut self, part: Part) -> &mut [u8] {
        self.check(part);
        let held = self.pieces.get_mut(&part.start).expect("just found");
        &mut held.buffer.bytes_mut()[part.from..part.from + part.bytes]
    }

    fn check(&self, part: Part) {
        let is_there = self.pieces.get(&part.start).is_some_and(|held| held.number == part.number);
        assert!(is_there, "memory was given back before a queue was done with it");
    }

    fn take(&mut self, bytes: usize, on_host: bool, taken_at: u64) -> u64 {
        let mut buffer = Buffer::poisoned(bytes);
        let start = buffer.arg().bits();
        self.taken += 1;
        self.pieces.insert(start, Held { buffer, number: self.taken, on_host, taken_at });
        let most = &mut self.most[usize::from(on_host)];
        let now = self.pieces.values().filter(|held| held.on_host == on_host).map(|held| held.buffer.len());
        *most = (*most).max(now.sum());
        start
    }
}

impl State {
    fn ask(&mut self, queue: Queue, step: Step) {
        self.queues[queue as usize].to_do.push_back(step);
        if queue != self.late {
            self.run(queue, u64::MAX);
        }
    }

    /// Does what a queue was asked for, as far as that step.
    fn run(&mut self, queue: Queue, until: u64) {
        loop {
            let steps = &mut self.queues[queue as usize];
            if steps.done >= until {
                return;
            }
            let Some(step) = steps.to_do.pop_front() else { return };
            steps.done += 1;
            match step {
                Step::Work(_) if self.is_lost && queue == Queue::Copies => {}
                Step::Work(work) => work(&mut self.memory),
                Step::After(other, steps) => self.run(other, steps),
                Step::Mark(reached) => reached.set(Instant::now()).expect("reached once"),
            }
        }
    }

    fn run_all(&mut self) {
        for queue in [Queue::Compute, Queue::Copies] {
            self.run(queue, u64::MAX);
        }
    }

    /// The host waits for a queue, and with it knows what memory it has.
    fn finish(&mut self, queue: Queue) {
        self.run(queue, u64::MAX);
        if queue == Queue::Compute {
            self.copies_behind = self.asked(queue);
        }
    }

    fn asked(&self, queue: Queue) -> u64 {
        let steps = &self.queues[queue as usize];
        steps.done + steps.to_do.len() as u64
    }

    /// What a queue means to use, which it may.
    fn part(&self, queue: Queue, at: Array, bytes: usize) -> Part {
        let part = self.memory.part(at, bytes);
        let held = &self.memory.pieces[&part.start];
        assert!(
            queue == Queue::Compute || self.copies_behind >= held.taken_at,
            "the queue of copies is behind no mark of the other one since this memory was taken"
        );
        part
    }

    fn live(&mut self, call: &str) -> Result<()> {
        match &mut self.lives {
            None => return Ok(()),
            Some(0) => {}
            Some(lives) => {
                *lives -= 1;
                return Ok(());
            }
        }
        self.is_lost = true;
        Err(DeviceError::Call { call: call.into(), text: "the device is lost".into() })
    }
}

/// Whether there is something that kernels run on: a GPU, where the tests run on one, else a compiler to make them with
/// for this one; says so if not.
pub(crate) fn is_there() -> bool {
    is_real() || kernels("combine").is_some()
}

fn kernels(file: &str) -> Option<Arc<Kernels>> {
    load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(file).with_extension("cu"))
}

impl Emulated {
    /// The queue that computes. Under every other schedule it is the late one.
    pub(crate) fn new(schedule: u32) -> Self {
        let late = if schedule.is_multiple_of(2) { Queue::Copies } else { Queue::Compute };
        Self::with(schedule, late, None)
    }

    /// One that is lost after so many allocations and kernels.
    pub(crate) fn mortal(lives: usize) -> Self {
        Self::with(0, Queue::Copies, Some(lives))
    }

    fn with(schedule: u32, late: Queue, lives: Option<usize>) -> Self {
        let state = State {
            memory: Memory::default(),
            queues: Default::default(),
            late,
            copies_behind: 0,
            lives,
            is_lost: false,
            fetched: 0,
        };
        Self { open: Arc::new(Open(Arc::new(Mutex::new(state)))), queue: Queue::Compute, schedule }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.open.0)
    }

    /// Bytes that the host has asked for so far.
    pub(crate) fn fetched(&self) -> u64 {
        self.state().fetched
    }

    /// Bytes of its memory in use.
    pub(crate) fn used(&self) -> usize {
        self.used_where(false)
    }

    /// Bytes of the host's page-locked memory in use.
    pub(crate) fn used_host(&self) -> usize {
        self.used_where(true)
    }

    /// Most bytes of its memory and of the host's that were in use at once. What the queue that computes has not given back
    /// yet is in use: let it not be the late one.
    pub(crate) fn most_used(&self) -> [usize; 2] {
        self.state().memory.most
    }

    fn used_where(&self, on_host: bool) -> usize {
        let mut state = self.state();
        state.run(Queue::Compute, u64::MAX);
        let pieces = state.memory.pieces.values();
        pieces.filter(|held| held.on_host == on_host).map(|held| held.buffer.len()).sum()
    }

    /// Work that uses parts of memory, in a queue's order.
    fn ask(
        &self,
        queue: Queue,
        parts: &[(Array, usize)],
        work: impl FnOnce(&mut Memory, &[Part]) + Send + 'static,
    ) {
        let mut state = self.state();
        let parts: Vec<Part> = parts.iter().map(|&(at, bytes)| state.part(queue, at, bytes)).collect();
        let work = move |memory: &mut Memory| {
            for &part in &parts {
                memory.check(part);
            }
            work(memory, &parts);
        };
        state.ask(queue, Step::Work(Box::new(work)));
    }

    fn fill(&self, queue: Queue, to: Array, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.ask(queue, &[(to, bytes.len())], move |memory, parts| {
                memory.bytes(parts[0]).copy_from_slice(&bytes);
            });
        }
    }

    fn fetch(&self, queue: Queue, from: Array, to: &mut [u8]) {
        if !to.is_empty() {
            let mut state = self.state();
            let part = state.part(queue, from, to.len());
            state.finish(queue);
            to.copy_from_slice(state.memory.bytes(part));
        }
    }
}

/// Elements of matrices, from the first to the last.
fn span(matrices: &Matrices, count: usize, rows: usize, columns: usize) -> (Array, usize) {
    let len = (count - 1) * matrices.stride + (rows - 1) * matrices.row_stride + columns;
    (matrices.array, 4 * len)
}

fn floats(memory: &mut Memory, part: Part) -> Vec<f32> {
    bytemuck::cast_slice(memory.bytes(part)).to_vec()
}

impl Gpu for Emulated {
    type Memory = Piece;
    type Pinned = Pinned;
    type Mark = Mark;

    fn copies(&self) -> Self {
        Self { queue: Queue::Copies, ..self.clone() }
    }

    fn mark(&self) -> Result<Mark> {
        let reached = Arc::default();
        let mut state = self.state();
        state.ask(self.queue, Step::Mark(Arc::clone(&reached)));
        Ok(Mark { queue: self.queue, steps: state.asked(self.queue), reached })
    }

    fn after(&self, mark: &Mark) -> Result<()> {
        let mut state = self.state();
        if self.queue == Queue::Copies && mark.queue == Queue::Compute {
            state.copies_behind = state.copies_behind.max(mark.steps);
        }
        state.ask(self.queue, Step::After(mark.queue, mark.steps));
        Ok(())
    }

    fn elapsed_ns(&self, from: &Mark, to: &Mark) -> Result<u64> {
        let mut state = self.state();
        let [from, to] = [from, to].map(|mark| {
            state.run(mark.queue, mark.steps);
            *mark.reached.get().expect("the queue has come so far")
        });
        Ok(to.saturating_duration_since(from).as_nanos() as u64)
    }

    fn allocate(&self, _: &'static str, bytes: usize) -> Result<Piece> {
        let mut state = self.state();
        state.live("allocate")?;
        state.ask(Queue::Compute, Step::Work(Box::new(|_| {})));
        let taken_at = state.asked(Queue::Compute);
        let start = state.memory.take(bytes, false, taken_at);
        drop(state);
        let piece = Piece { state: Arc::clone(&self.open.0), start };
        if self.queue == Queue::Copies {
            self.after(&Self { queue: Queue::Compute, ..self.clone() }.mark()?)?;
        }
        Ok(piece)
    }

    fn array(&self, memory: &Piece) -> Array {
        Array::at(memory.start)
    }

    fn allocate_host(&self, _: &'static str, bytes: usize) -> Result<Pinned> {
        let mut state = self.state();
        state.live("allocate_host")?;
        let start = state.memory.take(bytes, true, 0);
        Ok(Pinned(Piece { state: Arc::clone(&self.open.0), start }))
    }

    fn host_array(&self, pinned: &Pinned) -> Array {
        Array::at(pinned.0.start)
    }

    fn upload(&self, to: Array, bytes: &[u8]) -> Result<()> {
        self.fill(self.queue, to, bytes.to_vec());
        Ok(())
    }

    fn download(&self, from: Array, to: &mut [u8]) -> Result<()> {
        self.state().fetched += to.len() as u64;
        self.fetch(self.queue, from, to);
        Ok(())
    }

    fn copy(&self, from: Array, to: Array, bytes: usize) -> Result<()> {
        if bytes > 0 {
            self.ask(self.queue, &[(from, bytes), (to, bytes)], |memory, parts| {
                let between = memory.bytes(parts[0]).to_vec();
                memory.bytes(parts[1]).copy_from_slice(&between);
            });
        }
        Ok(())
    }

    fn clear(&self, at: Array, bytes: usize) -> Result<()> {
        self.fill(self.queue, at, vec![0; bytes]);
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        self.state().finish(self.queue);
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        assert!(launch.grid.iter().all(|&blocks| blocks > 0), "{}: a grid of no blocks", launch.kernel);
        self.state().live(launch.kernel)?;
        let kernels = kernels(launch.file).expect("the compiler is there");
        let args: Vec<Arg> = launch.args.iter().map(|arg| Arg::of_bits(arg.bits())).collect();
        let arrays: Vec<(Array, usize)> = launch
            .args
            .iter()
            .filter_map(|arg| match arg {
                kvista::device::gpu::Arg::Array(array) if *array != Array::NONE => Some((*array, 0)),
                _ => None,
            })
            .collect();
        let (kernel, block, schedule) = (launch.kernel.to_owned(), launch.block as usize, self.schedule);
        let grid = launch.grid.map(|n| n as usize);
        self.ask(self.queue, &arrays, move |memory, _| {
            kernels.try_run(&kernel, grid, block, &args, schedule).unwrap();
            // Nothing beside any array was written.
            memory.pieces.values_mut().for_each(|held| held.buffer.check());
        });
        Ok(())
    }

    fn multiply(&self, products: &Products) -> Result<()> {
        if self.queue == Queue::Copies {
            return Err(DeviceError::Limit("the queue of copies does no matrix products".into()));
        }
        let Products { count, m, n, k, a, b, transposed, out } = *products;
        let right = if transposed { span(&b, count, n, k) } else { span(&b, count, k, n) };
        let parts = [span(&a, count, m, k), right, span(&out, count, m, n)];
        self.ask(self.queue, &parts, move |memory, parts| {
            let (left, right) = (floats(memory, parts[0]), floats(memory, parts[1]));
            let mut sums = floats(memory, parts[2]);
            for i in 0..count {
                for row in 0..m {
                    let of_left = &left[i * a.stride + row * a.row_stride..][..k];
                    for column in 0..n {
                        let at = |j: usize| {
                            let (row, column) = if transposed { (column, j) } else { (j, column) };
                            right[i * b.stride + row * b.row_stride + column]
                        };
                        sums[i * out.stride + row * out.row_stride + column] =
                            of_left.iter().enumerate().map(|(j, x)| x * at(j)).sum();
                    }
                }
            }
            memory.bytes(parts[2]).copy_from_slice(bytemuck::cast_slice(&sums));
        });
        Ok(())
    }

    fn read_tensor(&self, tensor: &Tensor, to: Array) -> Result<()> {
        elements_of(tensor)?;
        let elements = tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).unwrap();
        self.fill(Queue::Compute, to, bytemuck::cast_slice(&elements).to_vec());
        Ok(())
    }

    fn tensor(&self, from: Array, rows: usize, columns: usize) -> Result<Tensor> {
        let mut all = vec![0.0f32; elements(rows, columns)?];
        self.fetch(Queue::Compute, from, bytemuck::cast_slice_mut(&mut all));
        Ok(Tensor::from_vec(all, (rows, columns), &candle_core::Device::Cpu).unwrap())
    }
}
