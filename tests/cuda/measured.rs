//! A decode step as `benches/kernels.rs` measures it: contexts of chance that are filled on the device, every launch by
//! itself. What is measured is run here first, small.

use std::cell::RefCell;
use std::sync::Arc;

use crate::gpu::{self, is_wanted};
use crate::host::{Arg, Buffer, Kernels, NULL, floats, kernels};
use crate::scene::{ALL_POSITIONS, Cell, NO_CAP, SPLIT, seeded, uniform};

/// Elements of a row, and slots of a block.
const D: usize = 128;
const BLOCK: usize = 32;
/// Standard deviation of what is filled in, over that of the sum which the kernel takes a multiple of.
const STEP: f32 = 1.0 / 37_837.227;

/// What is decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) cell: Cell,
    pub(crate) kv_heads: usize,
    pub(crate) group: usize,
    /// Of every sequence.
    pub(crate) slots: usize,
    pub(crate) sequences: usize,
}

impl Shape {
    /// As many sequences as it takes for so many bytes of K and V.
    pub(crate) fn of(cell: Cell, kv_heads: usize, group: usize, slots: usize, least_bytes: usize) -> Self {
        let one = Self { cell, kv_heads, group, slots, sequences: 1 };
        Self { sequences: least_bytes.div_ceil(one.bytes()), ..one }
    }

    /// Bytes of K and V that a step reads.
    pub(crate) fn bytes(&self) -> usize {
        2 * self.sequences * self.kv_heads * self.slots * self.cell.row_bytes(D)
    }

    const fn heads(&self) -> usize {
        self.kv_heads * self.group
    }
}

/// What a step leaves besides its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Observed {
    Nothing,
    /// Sums of probabilities per block.
    BlockSums,
    /// Every probability.
    Rows,
}

/// An array of the GPU, or of this process where its kernels are emulated.
enum Memory {
    Gpu(gpu::Memory),
    Host(RefCell<Buffer>),
}

impl Memory {
    fn room(bytes: usize) -> Self {
        if is_wanted() {
            return Self::Gpu(gpu::Memory::new(bytes));
        }
        Self::Host(RefCell::new(Buffer::poisoned(bytes)))
    }

    fn of(bytes: &[u8]) -> Self {
        let memory = Self::room(bytes.len());
        match &memory {
            Self::Gpu(memory) => memory.write(bytes),
            Self::Host(buffer) => buffer.borrow_mut().bytes_mut().copy_from_slice(bytes),
        }
        memory
    }

    fn of_words(words: impl IntoIterator<Item = u32>) -> Self {
        Self::of(&words.into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<_>>())
    }

    fn arg(&self) -> Arg {
        match self {
            Self::Gpu(memory) => memory.arg(),
            Self::Host(buffer) => buffer.borrow_mut().arg(),
        }
    }

    /// Its first numbers.
    fn floats(&self, n: usize) -> Vec<f32> {
        let bytes = match self {
            Self::Gpu(memory) => memory.read(4 * n),
            Self::Host(buffer) => buffer.borrow_mut().bytes(),
        };
        let words = bytes.as_chunks::<4>().0.iter().take(n);
        floats(&words.map(|&word| u32::from_ne_bytes(word)).collect::<Vec<_>>())
    }
}

fn start(kernels: &Kernels, name: &str, grid: [usize; 3], block: usize, args: &[Arg]) {
    match kernels {
        Kernels::Gpu(module) => module.launch(name, grid, block, args),
        Kernels::Host(_) => kernels.run(name, grid, block, args, 0),
    }
}

/// The kernels of a page type's steps.
#[derive(Clone)]
pub(crate) struct Files {
    decode: Arc<Kernels>,
    combine: Arc<Kernels>,
    fill: Arc<Kernels>,
}

impl Files {
    /// `None` where they cannot be compiled.
    pub(crate) fn of(cell: Cell) -> Option<Self> {
        let decode = match cell {
            Cell::F32 | Cell::F16 | Cell::Bf16 => "decode_exact",
            Cell::Int8 | Cell::Int4 | Cell::Int2 => "decode_codes",
        };
        Some(Self { decode: kernels(decode)?, combine: kernels("combine")?, fill: kernels("fill")? })
    }
}

/// A step and all its arrays, K and V twice: a step over the others leaves nothing of these in a cache.
pub(crate) struct Step {
    shape: Shape,
    files: Files,
    slabs: [[Memory; 2]; 2],
    queries: Memory,
    blocks: Memory,
    positions: Memory,
    lanes: Memory,
    partial: Memory,
    max_sum: Memory,
    totals: Memory,
    out: Memory,
    rows: Memory,
    block_sums: Memory,
}

impl Step {
    pub(crate) fn new(shape: Shape, files: &Files) -> Self {
        let Shape { cell, kv_heads, slots, sequences, .. } = shape;
        let (blocks, splits) = (slots.div_ceil(BLOCK), slots.div_ceil(SPLIT));
        // Gangs in an order that no prefetcher likes: a stride that is coprime with their number.
        let gangs = sequences * blocks;
        let rows = sequences * shape.heads();
        let lane = |i: usize| {
            let (sequence, head) = (i / kv_heads, i % kv_heads);
            let coded = if cell.is_kivi() { slots } else { 0 };
            [sequence * blocks, sequence * slots, slots, head, coded, coded, slots, 0].map(|word| word as u32)
        };
        let slab = || Memory::room(gangs * kv_heads * BLOCK * cell.row_bytes(D));
        let queries = uniform(&mut seeded(1), rows * D, 1.0);
        let step = Self {
            shape,
            files: files.clone(),
            slabs: [[slab(), slab()], [slab(), slab()]],
            queries: Memory::of_words(queries.into_iter().map(f32::to_bits)),
            blocks: Memory::of_words((0..gangs).map(|i| (i * 7919 % gangs * kv_heads) as u32)),
            positions: Memory::of_words((0..sequences * slots).map(|i| (i % slots) as u32)),
            lanes: Memory::of_words((0..sequences * kv_heads).flat_map(lane)),
            partial: Memory::room(rows * splits * D * 4),
            max_sum: Memory::room(rows * splits * 8),
            totals: Memory::room(rows * 8),
            out: Memory::room(rows * D * 4),
            rows: Memory::room(rows * slots * 4),
            block_sums: Memory::room(rows * blocks * 4),
        };
        step.slabs.iter().flatten().enumerate().for_each(|(seed, slab)| step.fill(slab, seed));
        step
    }

    /// Numbers of chance, so that bits change as often as in a real context. What has no kernel that fills it gets rows of
    /// f16 that take as many bytes: any bits are codes, and scales and zeros are halves.
    fn fill(&self, slab: &Memory, seed: usize) {
        let Shape { cell, kv_heads, slots, sequences, .. } = self.shape;
        let (name, elements) = match cell {
            Cell::F32 | Cell::F16 | Cell::Int8 => (cell.name(), D),
            Cell::Bf16 | Cell::Int4 | Cell::Int2 => ("f16", cell.row_bytes(D) / 2),
        };
        let mut args = vec![slab.arg(), self.blocks.arg(), self.lanes.arg(), seed.into(), STEP.into()];
        args.extend([elements, BLOCK].map(Arg::from));
        let grid = [slots.div_ceil(8), kv_heads, sequences];
        start(&self.files.fill, &format!("fill_rows_{name}"), grid, 256, &args);
    }

    pub(crate) fn run(&self, observed: Observed) {
        self.decode(&self.slabs[0], observed);
    }

    /// The same over the other K and V.
    pub(crate) fn run_elsewhere(&self) {
        self.decode(&self.slabs[1], Observed::Nothing);
    }

    fn decode(&self, [k, v]: &[Memory; 2], observed: Observed) {
        let Shape { cell, kv_heads, group, slots, sequences } = self.shape;
        let (heads, blocks, splits) = (self.shape.heads(), slots.div_ceil(BLOCK), slots.div_ceil(SPLIT));
        let wanted = |what, memory: &Memory| if observed == what { memory.arg() } else { NULL };
        let mut args = vec![self.partial.arg(), self.max_sum.arg()];
        args.extend([wanted(Observed::Rows, &self.rows), wanted(Observed::BlockSums, &self.block_sums)]);
        args.extend([NULL, self.queries.arg(), k.arg(), v.arg(), NULL, NULL]);
        args.extend([self.blocks.arg(), self.positions.arg(), self.lanes.arg()]);
        args.extend([heads, kv_heads, D, BLOCK, splits, slots, blocks, 0].map(Arg::from));
        args.extend([Arg::from(0.088f32), ALL_POSITIONS.into(), NO_CAP.into()]);
        let of_block = if group == 1 { 1 } else { 4 * group.div_ceil(4).min(2) };
        let name = format!("decode_{}_d128_g{of_block}", cell.name());
        let grid = [splits, kv_heads * group.div_ceil(of_block), sequences];
        start(&self.files.decode, &name, grid, 128, &args);

        let mut args = vec![self.out.arg(), self.totals.arg(), self.partial.arg(), self.max_sum.arg()];
        args.push(self.lanes.arg());
        args.extend([heads, kv_heads, D, splits].map(Arg::from));
        start(&self.files.combine, "decode_combine", [heads, sequences, 1], 256, &args);
        match observed {
            Observed::Nothing => {}
            Observed::BlockSums => {
                let mut args = vec![self.block_sums.arg(), self.max_sum.arg(), self.totals.arg()];
                args.push(self.lanes.arg());
                args.extend([heads, kv_heads, BLOCK, splits, blocks].map(Arg::from));
                let grid = [blocks.div_ceil(256), heads, sequences];
                start(&self.files.combine, "decode_block_sums", grid, 256, &args);
            }
            Observed::Rows => {
                let mut args = vec![self.rows.arg(), self.totals.arg(), self.lanes.arg()];
                args.extend([heads, kv_heads, slots].map(Arg::from));
                let grid = [slots.div_ceil(256), heads, sequences];
                start(&self.files.combine, "decode_rows", grid, 256, &args);
            }
        }
    }

    /// Runs it in every way, and looks at what comes out.
    ///
    /// # Panics
    /// Outputs are no numbers, or probabilities do not sum to 1.
    pub(crate) fn check(&self) {
        let (rows, slots) = (self.shape.sequences * self.shape.heads(), self.shape.slots);
        for observed in [Observed::Nothing, Observed::BlockSums, Observed::Rows] {
            self.run(observed);
            let out = self.out.floats(rows * D);
            assert!(out.iter().all(|x| x.is_finite()), "{:?}: an output is no number", self.shape);
            assert!(out.iter().any(|&x| x != 0.0), "{:?}: every output is 0", self.shape);
            let (memory, cells) = match observed {
                Observed::Nothing => continue,
                Observed::BlockSums => (&self.block_sums, slots.div_ceil(BLOCK)),
                Observed::Rows => (&self.rows, slots),
            };
            for head in memory.floats(rows * cells).chunks_exact(cells) {
                let sum: f64 = head.iter().map(|&p| f64::from(p)).sum();
                assert!((sum - 1.0).abs() < 1e-3, "{:?}: {observed:?} sum to {sum}", self.shape);
            }
        }
        self.run_elsewhere();
    }
}

#[test]
fn what_is_measured_is_a_decode_step() {
    for cell in Cell::ALL {
        let Some(files) = Files::of(cell) else { return };
        for (kv_heads, group, slots) in [(2, 1, 96), (1, 4, 320), (2, 8, 64)] {
            let one = Shape { cell, kv_heads, group, slots, sequences: 1 };
            let shape = Shape::of(cell, kv_heads, group, slots, 2 * one.bytes() + 1);
            assert_eq!(shape.sequences, 3);
            Step::new(shape, &files).check();
        }
    }
}
