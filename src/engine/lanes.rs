//! From the cache's pages to what attention reads, and the staging that V rows are pulled into.

use half::f16;

use crate::attention::{self, HeadLane, Rope, Rows};
use crate::cache::{self, Cache, LaneView};
use crate::event::{Head, Layer, SeqId};

/// Pages of one KV head in table order.
enum PageSlices<'a> {
    F32(Vec<&'a [f32]>),
    F16(Vec<&'a [f16]>),
}

impl<'a> PageSlices<'a> {
    fn of(pages: &cache::Pages<'a>) -> Self {
        match pages {
            cache::Pages::F32(list) => Self::F32((0..list.len()).map(|i| list.page(i)).collect()),
            cache::Pages::F16(list) => Self::F16((0..list.len()).map(|i| list.page(i)).collect()),
        }
    }

    fn view(&self) -> attention::Pages<'_> {
        match self {
            Self::F32(pages) => attention::Pages::F32(pages),
            Self::F16(pages) => attention::Pages::F16(pages),
        }
    }
}

/// All KV heads of one (sequence, layer).
pub(super) struct Lanes<'a> {
    views: Vec<LaneView<'a>>,
    keys: Vec<PageSlices<'a>>,
    values: Vec<PageSlices<'a>>,
}

impl<'a> Lanes<'a> {
    pub(super) fn of(cache: &'a Cache, seq: SeqId, layer: Layer) -> Self {
        let table = cache.table(seq, layer);
        let heads = 0..table.heads();
        let (keys, values) = heads
            .clone()
            .map(|h| {
                let (k, v) = cache.pages(seq, layer, h);
                (PageSlices::of(&k), PageSlices::of(&v))
            })
            .unzip();
        Self { views: heads.map(|h| table.lane(h)).collect(), keys, values }
    }

    /// The lanes with V where it lies.
    pub(super) fn resident<'s>(&'s self, rope: Option<&'s Rope>) -> Vec<HeadLane<'s>> {
        self.with_values(rope, |h| self.values[h].view())
    }

    fn with_values<'s>(
        &'s self,
        rope: Option<&'s Rope>,
        values: impl Fn(usize) -> attention::Pages<'s>,
    ) -> Vec<HeadLane<'s>> {
        (0..self.views.len())
            .map(|h| HeadLane {
                slots: self.views[h].slots,
                block_size: self.views[h].block_size as usize,
                k: self.keys[h].view(),
                v: values(h),
                rope,
            })
            .collect()
    }
}

/// Rows of one KV head copied to the device tier.
#[derive(Default)]
pub(super) struct Staging {
    f32: Vec<f32>,
    f16: Vec<f16>,
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
        match cache.pages(seq, layer, head).1 {
            cache::Pages::F32(list) => {
                match slots {
                    Some(slots) => {
                        for &s in slots {
                            self.f32.extend_from_slice(list.row(s as usize));
                        }
                    }
                    None => (0..list.len()).for_each(|i| self.f32.extend_from_slice(list.page(i))),
                }
                size_of_val(&*self.f32) as u64
            }
            cache::Pages::F16(list) => {
                match slots {
                    Some(slots) => {
                        for &s in slots {
                            self.f16.extend_from_slice(list.row(s as usize));
                        }
                    }
                    None => (0..list.len()).for_each(|i| self.f16.extend_from_slice(list.page(i))),
                }
                size_of_val(&*self.f16) as u64
            }
        }
    }

    pub(super) fn rows(&self) -> Rows<'_> {
        if self.f16.is_empty() { Rows::F32(&self.f32) } else { Rows::F16(&self.f16) }
    }

    /// The staged rows as pages of `block_elements`, when whole pages were pulled.
    fn pages(&self, block_elements: usize) -> PageSlices<'_> {
        if self.f16.is_empty() {
            PageSlices::F32(self.f32.chunks(block_elements).collect())
        } else {
            PageSlices::F16(self.f16.chunks(block_elements).collect())
        }
    }
}

/// Whole lanes staged, as pages.
pub(super) struct StagedPages<'a>(Vec<PageSlices<'a>>);

impl<'a> StagedPages<'a> {
    pub(super) fn of(staging: &'a [Staging], block_elements: usize) -> Self {
        Self(staging.iter().map(|s| s.pages(block_elements)).collect())
    }

    /// The lanes with V as staged.
    pub(super) fn lanes<'s>(&'s self, lanes: &'s Lanes<'_>, rope: Option<&'s Rope>) -> Vec<HeadLane<'s>> {
        lanes.with_values(rope, |h| self.0[h].view())
    }
}
