//! Page storage of one tier, by block id.

use std::ops::Range;

use bytemuck::Pod;
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::coding;
use super::dtype::KvDtype;
use super::kivi::KiviStore;
use super::nuq::NuqStore;
use super::pool::Part;
use super::slabs::Slabs;
use super::table::{LaneView, RowMove};
use crate::event::BlockId;
use crate::quant::{Codec, CodedRows, NuqCodec};

/// Pages of one kind (K or V) in one tier, `[slot][head_dim]` each.
#[derive(Clone, Debug)]
pub(super) enum Arena {
    F32(Store<f32>),
    F16(Store<f16>),
    /// Rows in codes from the start, as bytes.
    Codes(Store<u8>, Codec),
    /// Rows that go into codes later.
    Kivi(KiviStore),
    /// Rows that go into codes after a calibration.
    Nuq(NuqStore),
}

#[derive(Clone, Debug)]
pub(super) struct Store<T: Pod> {
    pages: Slabs<T>,
    /// Elements per row.
    row: usize,
    /// Rows per page.
    width: usize,
}

/// Pages of one KV head in table order. Cheap to make and to copy: nothing is gathered.
#[derive(Clone, Copy, Debug)]
pub enum Pages<'a> {
    /// Full precision.
    F32(PageList<'a, f32>),
    /// Half precision.
    F16(PageList<'a, f16>),
    /// In codes, or on the way there.
    Coded(CodedPages<'a>),
}

/// Pages of rows in codes.
#[derive(Clone, Copy, Debug)]
pub struct CodedPages<'a> {
    lane: LaneView<'a>,
    store: CodedStore<'a>,
}

#[derive(Clone, Copy, Debug)]
enum CodedStore<'a> {
    Codes(&'a Store<u8>, Codec),
    Kivi(&'a KiviStore),
    Nuq(&'a NuqStore, &'a NuqCodec),
}

impl<'a> CodedPages<'a> {
    /// Number of pages.
    pub const fn len(&self) -> usize {
        self.lane.block_count()
    }

    /// Whether there is no page.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All rows of the `i`-th page. Which count is in the lane's slots.
    pub fn page(&self, i: usize) -> CodedRows<'a> {
        let id = self.lane.block(i);
        match self.store {
            CodedStore::Codes(store, codec) => CodedRows::new(codec, store.page(id), &[]),
            CodedStore::Kivi(store) => store.rows(id),
            CodedStore::Nuq(store, codec) => store.rows(id, codec),
        }
    }

    /// The row of a slot, counted in table order.
    pub fn row(&self, slot: usize) -> CodedRows<'a> {
        let width = self.lane.block_size as usize;
        self.page(slot / width).cut(slot % width, slot % width + 1)
    }

    /// Slots of the lane that are in codes: the leading ones, or where the first tokens stay exact the last ones. Those
    /// of other pages than the last of them (the first) are so in the whole page.
    pub fn in_codes(&self) -> usize {
        match self.store {
            CodedStore::Codes(..) => self.lane.slots.len(),
            CodedStore::Kivi(store) => coding::in_codes(self.lane, |i| store.in_codes(self.lane.block(i))),
            CodedStore::Nuq(store, _) => {
                let slots = |i| self.lane.block_slots(i).len();
                (0..self.len()).map(|i| slots(i).saturating_sub(store.exact_rows(self.lane.block(i)))).sum()
            }
        }
    }
}

/// Pages of one element type.
#[derive(Clone, Copy, Debug)]
pub struct PageList<'a, T: Pod> {
    lane: LaneView<'a>,
    store: &'a Store<T>,
    /// Where the pages are that are not there.
    far: &'a Store<T>,
}

impl<'a, T: Pod> PageList<'a, T> {
    /// Number of pages.
    pub const fn len(&self) -> usize {
        self.lane.block_count()
    }

    /// Whether there is no page.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `i`-th page, `[block_size][head_dim]`. Which rows count is in the lane's slots; the others hold whatever was
    /// there before.
    pub fn page(&self, i: usize) -> &'a [T] {
        held(self.store, self.far, self.lane.block(i))
    }

    /// The row of a slot, counted in table order.
    pub fn row(&self, slot: usize) -> &'a [T] {
        let (width, row) = (self.store.width, self.store.row);
        &self.page(slot / width)[slot % width * row..][..row]
    }

    /// All pages in table order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [T]> + use<'a, T> {
        let (store, far) = (self.store, self.far);
        self.lane.blocks().map(move |id| held(store, far, id))
    }
}

/// The page of a block, in whichever store it is.
fn held<'a, T: Pod>(store: &'a Store<T>, far: &'a Store<T>, id: BlockId) -> &'a [T] {
    store.pages.find(id).unwrap_or_else(|| far.pages.page(id))
}

impl<T: Pod> Store<T> {
    const fn new(row: usize, width: usize) -> Self {
        Self { pages: Slabs::new(row * width), row, width }
    }

    fn allocate(&mut self, id: BlockId) {
        self.pages.allocate(id);
    }

    fn free(&mut self, id: BlockId) {
        self.pages.free(id);
    }

    fn page(&self, id: BlockId) -> &[T] {
        self.pages.page(id)
    }

    /// Copies a page to another tier and gives up the first; returns its bytes.
    fn move_page(&mut self, to: &mut Self, id: BlockId) -> usize {
        to.allocate(id);
        let page = self.page(id);
        to.pages.page_mut(id).copy_from_slice(page);
        let bytes = size_of_val(page);
        self.free(id);
        bytes
    }

    fn copy_page(&mut self, from: BlockId, to: BlockId) {
        self.allocate(to);
        self.pages.copy((from, 0), (to, 0), self.row * self.width);
    }

    /// Moves rows of one lane whose blocks, in table order, are `blocks`.
    fn move_rows(&mut self, blocks: &[BlockId], moves: &[RowMove]) {
        let (width, row) = (self.width, self.row);
        for run in moves {
            let (mut from, mut to, mut left) = (run.from as usize, run.to as usize, run.len as usize);
            while left > 0 {
                let n = left.min(width - from % width).min(width - to % width);
                let source = (blocks[from / width], from % width * row);
                let target = (blocks[to / width], to % width * row);
                self.pages.copy(source, target, n * row);
                (from, to, left) = (from + n, to + n, left - n);
            }
        }
    }

    /// Writes `n` rows from slot `slot` on; `put` fills row `i`.
    fn write(&mut self, lane: LaneView<'_>, slot: usize, n: usize, put: impl Fn(usize, &mut [T])) {
        let (width, row) = (self.width, self.row);
        for i in 0..n {
            let slot = slot + i;
            let page = self.pages.page_mut(lane.block(slot / width));
            put(i, &mut page[slot % width * row..][..row]);
        }
    }

    fn held_bytes(&self) -> usize {
        self.pages.len() * self.row * self.width * size_of::<T>()
    }
}

/// The same call on either element type.
macro_rules! on {
    ($arena:expr, $store:ident => $call:expr) => {
        match $arena {
            Arena::F32($store) => $call,
            Arena::F16($store) => $call,
            Arena::Codes($store, _) => $call,
            Arena::Kivi($store) => $call,
            Arena::Nuq($store) => $call,
        }
    };
}

impl Arena {
    pub(super) fn new(dtype: KvDtype, part: Part, row: usize, width: usize) -> Self {
        match (dtype, dtype.codec(part == Part::K, row)) {
            (KvDtype::F16, _) => Self::F16(Store::new(row, width)),
            (KvDtype::Int8, Some(codec)) => Self::Codes(Store::new(codec.row_bytes(), width), codec),
            (KvDtype::Kivi { .. }, Some(codec)) => Self::Kivi(KiviStore::new(codec, row, width)),
            (KvDtype::Nuq(nuq), _) => Self::Nuq(NuqStore::new(nuq.layout(part, row), width)),
            _ => Self::F32(Store::new(row, width)),
        }
    }

    /// The store of rows that go into codes later.
    ///
    /// # Panics
    /// The pages are of another type.
    pub(super) fn kivi_mut(&mut self) -> &mut KiviStore {
        let Self::Kivi(store) = self else { unreachable!("the page type was checked") };
        store
    }

    /// The store of rows that go into codes after a calibration.
    ///
    /// # Panics
    /// The pages are of another type.
    pub(super) fn nuq_mut(&mut self) -> &mut NuqStore {
        let Self::Nuq(store) = self else { unreachable!("the page type was checked") };
        store
    }

    /// The rows of a page in codes that went there after they were written, and the outliers of each of them.
    pub(super) fn coded(&self, id: BlockId) -> Option<(Range<usize>, Vec<usize>)> {
        match self {
            Self::Kivi(store) => Some((0..store.in_codes(id), Vec::new())),
            Self::Nuq(store) => Some(store.coded(id)),
            Self::F32(_) | Self::F16(_) | Self::Codes(..) => None,
        }
    }

    pub(super) fn allocate(&mut self, id: BlockId) {
        on!(self, s => s.allocate(id));
    }

    pub(super) fn free(&mut self, id: BlockId) {
        on!(self, s => s.free(id));
    }

    /// Moves a page of exact rows to another tier; returns its bytes.
    ///
    /// # Panics
    /// The pages hold codes: their type was checked.
    pub(super) fn move_page(&mut self, to: &mut Self, id: BlockId) -> usize {
        match (self, to) {
            (Self::F32(from), Self::F32(to)) => from.move_page(to, id),
            (Self::F16(from), Self::F16(to)) => from.move_page(to, id),
            _ => unreachable!("the page type was checked"),
        }
    }

    /// Allocates the page of `to` as a copy.
    pub(super) fn copy_page(&mut self, from: BlockId, to: BlockId) {
        on!(self, s => s.copy_page(from, to));
    }

    /// Moves the survivors of one lane together, `blocks` being its pages as they were; they stay as they are before the
    /// page `first`. Returns the rows that had to be decoded.
    pub(super) fn move_rows(
        &mut self,
        blocks: &[BlockId],
        first: usize,
        kept: &[usize],
        moves: &[RowMove],
    ) -> u64 {
        match self {
            Self::F32(store) => store.move_rows(blocks, moves),
            Self::F16(store) => store.move_rows(blocks, moves),
            Self::Codes(store, _) => store.move_rows(blocks, moves),
            Self::Kivi(store) => return store.gather(blocks, first, kept),
            Self::Nuq(store) => store.gather(blocks, first, kept),
        }
        0
    }

    /// Bytes of pages really held, found by walking them.
    pub(super) fn held_bytes(&self) -> usize {
        on!(self, s => s.held_bytes())
    }

    /// The pages of a lane; those that are not here are in `far`, which is of the same type. `nuq` is how its rows went into
    /// codes, where a calibration says that.
    pub(super) fn pages<'a>(
        &'a self,
        far: &'a Self,
        lane: LaneView<'a>,
        nuq: Option<&'a NuqCodec>,
    ) -> Pages<'a> {
        match (self, far) {
            (Self::Nuq(store), _) => {
                let codec = nuq.expect("a lane of such pages has its codec");
                Pages::Coded(CodedPages { lane, store: CodedStore::Nuq(store, codec) })
            }
            (Self::Codes(store, codec), _) => {
                Pages::Coded(CodedPages { lane, store: CodedStore::Codes(store, *codec) })
            }
            (Self::Kivi(store), _) => Pages::Coded(CodedPages { lane, store: CodedStore::Kivi(store) }),
            (Self::F32(store), Self::F32(far)) => Pages::F32(PageList { lane, store, far }),
            (Self::F16(store), Self::F16(far)) => Pages::F16(PageList { lane, store, far }),
            _ => unreachable!(),
        }
    }

    /// Writes `n` rows of a lane from slot `slot` on. Row `i` starts at `rows[i * stride]`. Where a calibration has to come
    /// first, it has not yet.
    pub(super) fn write(&mut self, lane: LaneView<'_>, slot: usize, n: usize, rows: &[f32], stride: usize) {
        match self {
            Self::F32(store) => store.write(lane, slot, n, |i, to| {
                to.copy_from_slice(&rows[i * stride..][..to.len()]);
            }),
            Self::F16(store) => store.write(lane, slot, n, |i, to| {
                to.convert_from_f32_slice(&rows[i * stride..][..to.len()]);
            }),
            Self::Codes(store, codec) => store.write(lane, slot, n, |i, to| {
                codec.encode(&rows[i * stride..][..codec.row()], &[true], to);
            }),
            Self::Kivi(store) => store.write(lane, slot, n, rows, stride),
            Self::Nuq(store) => store.write(lane, slot, n, rows, stride),
        }
    }
}
