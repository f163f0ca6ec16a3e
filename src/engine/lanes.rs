//! From the cache's pages to what attention reads, and the staging that V rows are pulled into.

use std::ops::Range;

use bytemuck::Pod;
use half::f16;

use super::memory::{BlockCopy, LayerMemory};
use crate::attention::{self, Attention, HeadLane, Rotation, Rows, Scoring};
use crate::cache::{self, Cache, LaneView, PageList};
use crate::event::{BlockId, Head, Layer, Position, SeqId};
use crate::policy::Infllm;
use crate::quant::{CodedRows, StoredRows};

/// Pages of one KV head in table order.
enum PageSlices<'a> {
    F32(Vec<&'a [f32]>),
    F16(Vec<&'a [f16]>),
    Coded(Vec<CodedRows<'a>>),
    /// On the backend's device, by block.
    Placed(Vec<BlockId>),
}

/// The pages of several heads, looked up side by side: a gang's blocks have ids in a row, and a long context has so many
/// that one head after the other would find none of them in the processor's cache.
fn side_by_side<'a, 'l, T: Pod>(lists: impl Iterator<Item = &'l PageList<'a, T>>) -> Vec<Vec<&'a [T]>>
where
    'a: 'l,
{
    let mut heads: Vec<_> = lists.map(|list| (list, Vec::with_capacity(list.len()))).collect();
    for i in 0..heads.iter().map(|(list, _)| list.len()).max().unwrap_or(0) {
        for (list, pages) in heads.iter_mut().filter(|(list, _)| i < list.len()) {
            pages.push(list.page(i));
        }
    }
    heads.into_iter().map(|(_, pages)| pages).collect()
}

impl<'a> PageSlices<'a> {
    /// Those of all heads of a layer, which are of one type.
    fn of_heads(heads: &[cache::Pages<'a>]) -> Vec<Self> {
        let f32s = heads.iter().filter_map(|pages| match pages {
            cache::Pages::F32(list) => Some(list),
            _ => None,
        });
        let f16s = heads.iter().filter_map(|pages| match pages {
            cache::Pages::F16(list) => Some(list),
            _ => None,
        });
        match heads.first() {
            Some(cache::Pages::F32(_)) => side_by_side(f32s).into_iter().map(Self::F32).collect(),
            Some(cache::Pages::F16(_)) => side_by_side(f16s).into_iter().map(Self::F16).collect(),
            _ => heads.iter().map(Self::of).collect(),
        }
    }

    fn of(pages: &cache::Pages<'a>) -> Self {
        match pages {
            cache::Pages::F32(list) => Self::F32((0..list.len()).map(|i| list.page(i)).collect()),
            cache::Pages::F16(list) => Self::F16((0..list.len()).map(|i| list.page(i)).collect()),
            cache::Pages::Coded(list) => Self::Coded((0..list.len()).map(|i| list.page(i)).collect()),
        }
    }

    /// Pages where they lie (`None`), as a copy has them, or not at all.
    fn recalled(
        pages: &cache::Pages<'a>,
        copy: impl Fn(usize) -> Option<Option<(&'a Copied, usize)>>,
    ) -> Self {
        match pages {
            cache::Pages::F32(list) => {
                let page = |i| match copy(i) {
                    None => list.page(i),
                    Some(Some((Copied::F32(rows), place))) => part(rows, place, list.page(i).len()),
                    Some(_) => &[],
                };
                Self::F32((0..list.len()).map(page).collect())
            }
            cache::Pages::F16(list) => {
                let page = |i| match copy(i) {
                    None => list.page(i),
                    Some(Some((Copied::F16(rows), place))) => part(rows, place, list.page(i).len()),
                    Some(_) => &[],
                };
                Self::F16((0..list.len()).map(page).collect())
            }
            cache::Pages::Coded(_) => Self::of(pages),
        }
    }

    fn view(&self) -> attention::Pages<'_> {
        match self {
            Self::F32(pages) => attention::Pages::F32(pages),
            Self::F16(pages) => attention::Pages::F16(pages),
            Self::Coded(pages) => attention::Pages::Coded(pages),
            Self::Placed(blocks) => attention::Pages::Placed(blocks),
        }
    }
}

/// The page at a place of a copied block, whose rows lie in one piece.
fn part<T>(rows: &[T], place: usize, len: usize) -> &[T] {
    &rows[place * len..][..len]
}

/// Rows of these slots in full precision, `[slot][head_dim]`.
pub(super) fn full_precision(pages: &cache::Pages<'_>, slots: &[u32]) -> Vec<f32> {
    let mut rows = Vec::new();
    for slot in slots.iter().map(|&slot| slot as usize) {
        match pages {
            cache::Pages::F32(list) => rows.extend_from_slice(list.row(slot)),
            cache::Pages::F16(list) => rows.extend(list.row(slot).iter().map(|x| x.to_f32())),
            cache::Pages::Coded(list) => {
                let row = list.row(slot);
                let end = rows.len() + row.row();
                rows.resize(end, 0.0);
                row.decode(&mut rows[end - row.row()..]);
            }
        }
    }
    rows
}

/// Bytes that the rows of these slots occupy.
pub(super) fn rows_bytes(pages: &cache::Pages<'_>, slots: impl Iterator<Item = usize>) -> u64 {
    let bytes: usize = match pages {
        cache::Pages::F32(list) => slots.map(|slot| size_of_val(list.row(slot))).sum(),
        cache::Pages::F16(list) => slots.map(|slot| size_of_val(list.row(slot))).sum(),
        cache::Pages::Coded(list) => slots.map(|slot| list.row(slot).bytes()).sum(),
    };
    bytes as u64
}

/// How attention reads the lanes of a layer.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) rotation: Rotation<'a>,
    pub(super) scoring: Scoring,
}

impl Reading<'_> {
    /// Rows as they lie, scores as they come.
    pub(super) const PLAIN: Self =
        Self { rotation: Rotation::None, scoring: Scoring { window: None, softcap: None } };
}

/// All KV heads of one (sequence, layer).
pub(super) struct Lanes<'a> {
    views: Vec<LaneView<'a>>,
    keys: Vec<PageSlices<'a>>,
    values: Vec<PageSlices<'a>>,
}

impl<'a> Lanes<'a> {
    /// As a backend reads them: the cache's own pages, or by their blocks where it keeps a copy. Values of the host are
    /// not among those.
    pub(super) fn read_by(attention: &mut dyn Attention, cache: &'a Cache, seq: SeqId, layer: Layer) -> Self {
        if attention.copies().is_none() {
            return Self::of(cache, seq, layer);
        }
        let table = cache.table(seq, layer);
        let views: Vec<_> = (0..table.heads()).map(|h| table.lane(h)).collect();
        let placed = |view: &LaneView<'a>| PageSlices::Placed(view.blocks().collect());
        let keys = views.iter().map(placed).collect();
        let values = if cache.config().v_on_host(layer) {
            views.iter().map(|_| PageSlices::F32(Vec::new())).collect()
        } else {
            views.iter().map(placed).collect()
        };
        Self { views, keys, values }
    }

    pub(super) fn of(cache: &'a Cache, seq: SeqId, layer: Layer) -> Self {
        let table = cache.table(seq, layer);
        let heads = 0..table.heads();
        let (keys, values): (Vec<_>, Vec<_>) = heads.clone().map(|h| cache.pages(seq, layer, h)).unzip();
        let (keys, values) = (PageSlices::of_heads(&keys), PageSlices::of_heads(&values));
        Self { views: heads.map(|h| table.lane(h)).collect(), keys, values }
    }

    /// The lanes with V where it lies.
    pub(super) fn resident<'s>(&'s self, reading: Reading<'s>) -> Vec<HeadLane<'s>> {
        self.with_values(reading, |h| self.values[h].view())
    }

    fn with_values<'s>(
        &'s self,
        Reading { rotation, scoring }: Reading<'s>,
        values: impl Fn(usize) -> attention::Pages<'s>,
    ) -> Vec<HeadLane<'s>> {
        (0..self.views.len())
            .map(|h| HeadLane {
                slots: self.views[h].slots,
                block_size: self.views[h].block_size as usize,
                k: self.keys[h].view(),
                v: values(h),
                rotation,
                scoring,
            })
            .collect()
    }
}

/// Rows of one KV head copied to the device tier.
#[derive(Default)]
pub(super) struct Staging {
    f32: Vec<f32>,
    f16: Vec<f16>,
    coded: StoredRows,
}

impl Staging {
    /// Copies the V rows of `slots` (all of them for `None`) of one KV head. Returns the bytes copied.
    pub(super) fn pull(
        &mut self,
        cache: &Cache,
        seq: SeqId,
        layer: Layer,
        head: Head,
        slots: Option<&[u32]>,
    ) -> u64 {
        self.f32.clear();
        self.f16.clear();
        self.coded.clear();
        match cache.pages(seq, layer, head).1 {
            cache::Pages::F32(list) => match slots {
                Some(slots) => slots.iter().for_each(|&s| self.f32.extend_from_slice(list.row(s as usize))),
                None => (0..list.len()).for_each(|i| self.f32.extend_from_slice(list.page(i))),
            },
            cache::Pages::F16(list) => match slots {
                Some(slots) => slots.iter().for_each(|&s| self.f16.extend_from_slice(list.row(s as usize))),
                None => (0..list.len()).for_each(|i| self.f16.extend_from_slice(list.page(i))),
            },
            cache::Pages::Coded(list) => match slots {
                Some(slots) => slots.iter().for_each(|&s| self.coded.push(list.row(s as usize))),
                None => (0..list.len()).for_each(|i| self.coded.push(list.page(i))),
            },
        }
        (size_of_val(&*self.f32) + size_of_val(&*self.f16) + self.coded.bytes()) as u64
    }

    pub(super) fn rows(&self) -> Rows<'_> {
        match self.coded.rows() {
            Some(rows) => Rows::Coded(rows),
            None if self.f16.is_empty() => Rows::F32(&self.f32),
            None => Rows::F16(&self.f16),
        }
    }

    /// The staged rows as pages of `block_size` rows of `head_dim` elements, when whole pages were pulled.
    fn pages(&self, block_size: usize, head_dim: usize) -> PageSlices<'_> {
        let elements = block_size * head_dim;
        match self.rows() {
            Rows::F32(rows) => PageSlices::F32(rows.chunks(elements).collect()),
            Rows::F16(rows) => PageSlices::F16(rows.chunks(elements).collect()),
            Rows::Coded(rows) => {
                let page = |first| rows.cut(first, first + block_size);
                PageSlices::Coded((0..rows.rows()).step_by(block_size).map(page).collect())
            }
        }
    }
}

/// Whole lanes staged, as pages.
pub(super) struct StagedPages<'a>(Vec<PageSlices<'a>>);

impl<'a> StagedPages<'a> {
    pub(super) fn of(staging: &'a [Staging], block_size: usize, head_dim: usize) -> Self {
        Self(staging.iter().map(|s| s.pages(block_size, head_dim)).collect())
    }

    /// The lanes with V as staged.
    pub(super) fn lanes<'s>(&'s self, lanes: &'s Lanes<'_>, reading: Reading<'s>) -> Vec<HeadLane<'s>> {
        lanes.with_values(reading, |h| self.0[h].view())
    }
}

/// Rows of a block of a memory, copied to the device.
#[derive(Clone, Debug)]
pub(super) enum Copied {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

impl Copied {
    /// Copies the rows of these slots.
    ///
    /// # Panics
    /// They are in codes: the page type was checked.
    pub(super) fn rows(pages: &cache::Pages<'_>, mut slots: Range<usize>) -> Self {
        match pages {
            cache::Pages::F32(list) => Self::F32(slots.flat_map(|slot| list.row(slot)).copied().collect()),
            cache::Pages::F16(list) => Self::F16(slots.flat_map(|slot| list.row(slot)).copied().collect()),
            cache::Pages::Coded(_) => unreachable!("row {:?} is in codes", slots.next()),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        (match self {
            Self::F32(rows) => size_of_val(&**rows),
            Self::F16(rows) => size_of_val(&**rows),
        }) as u64
    }
}

/// All KV heads of one (sequence, layer) as a step reads them: pages on the device where they lie, blocks of the memory
/// as they were copied, nothing where a block was not retrieved.
pub(super) struct RecalledLanes<'a> {
    block_size: usize,
    keys: Vec<PageSlices<'a>>,
    values: Vec<PageSlices<'a>>,
}

impl<'a> RecalledLanes<'a> {
    pub(super) fn of(
        cache: &'a Cache,
        (seq, layer): (SeqId, Layer),
        infllm: Infllm,
        memory: &'a LayerMemory,
    ) -> Self {
        let block_size = cache.config().block_size as usize;
        // The block of the memory in which a page lies, and its place there.
        let place = |page: usize| {
            let slot = (page * block_size).checked_sub(infllm.init as usize)?;
            let (block, place) = (slot / infllm.block as usize, slot % infllm.block as usize / block_size);
            (block < memory.blocks()).then_some((block, place))
        };
        let (keys, values) = (0..cache.table(seq, layer).heads())
            .map(|h| {
                let (keys, values) = cache.pages(seq, layer, h);
                let copy = |page, rows: fn(&BlockCopy) -> &[Copied]| {
                    place(page).map(|(block, place)| {
                        memory.copy_of(block).map(|copy| (&rows(copy)[usize::from(h)], place))
                    })
                };
                (
                    PageSlices::recalled(&keys, |page| copy(page, |c| &c.keys)),
                    PageSlices::recalled(&values, |page| copy(page, |c| &c.values)),
                )
            })
            .unzip();
        Self { block_size, keys, values }
    }

    /// The lanes with `slots`, all heads alike.
    pub(super) fn lanes<'s>(
        &'s self,
        slots: &'s [Position],
        Reading { rotation, scoring }: Reading<'s>,
    ) -> Vec<HeadLane<'s>> {
        let pages = self.keys.iter().zip(&self.values);
        let lane = |(k, v): (&'s PageSlices<'a>, &'s PageSlices<'a>)| HeadLane {
            slots,
            block_size: self.block_size,
            k: k.view(),
            v: v.view(),
            rotation,
            scoring,
        };
        pages.map(lane).collect()
    }
}
