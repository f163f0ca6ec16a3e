//! Pages of one size by block id, side by side in large pieces of memory: blocks of a gang, whose ids follow each other,
//! lie in one row.

use bytemuck::Pod;
use memmap2::MmapMut;

use crate::event::BlockId;

/// Bytes of a slab. The system commits what is written.
const SLAB_BYTES: usize = 8 << 20;

const HELD: &str = "a block in a table has its page";

/// A page per block in use, of elements that may hold any bits.
#[derive(Debug)]
pub(super) struct Slabs<T> {
    memory: Vec<Slab>,
    /// Elements of a page.
    page: usize,
    /// Pages of a slab.
    per_slab: usize,
    /// Per block, whether it has a page.
    held: Vec<bool>,
    element: std::marker::PhantomData<T>,
}

#[derive(Debug)]
struct Slab(MmapMut);

impl Slab {
    fn new(bytes: usize) -> Self {
        // As when any other memory cannot be had; what a run will take is checked before it starts.
        let memory = MmapMut::map_anon(bytes)
            .unwrap_or_else(|error| panic!("{bytes} bytes for pages of the cache: {error}"));
        Self(memory)
    }

    /// Asks for pieces of 2 MiB, so that a long context takes few entries of the processor's address cache.
    fn coarse(self) -> Self {
        #[cfg(target_os = "linux")]
        // A system that has none gives small ones.
        let _ = self.0.advise(memmap2::Advice::HugePage);
        self
    }

    fn all<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.0)
    }

    fn all_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

impl<T: Pod> Slabs<T> {
    /// For pages of so many elements.
    pub(super) const fn new(page: usize) -> Self {
        let bytes = page * size_of::<T>();
        let per_slab = if bytes == 0 || bytes > SLAB_BYTES { 1 } else { SLAB_BYTES / bytes };
        Self { memory: Vec::new(), page, per_slab, held: Vec::new(), element: std::marker::PhantomData }
    }

    /// Gives a block its page, of zeros.
    pub(super) fn allocate(&mut self, id: BlockId) {
        let at = id as usize;
        while self.memory.len() <= at / self.per_slab {
            let slab = Slab::new((self.per_slab * self.page * size_of::<T>()).max(1));
            // A short run commits no more than it writes.
            self.memory.push(if self.memory.is_empty() { slab } else { slab.coarse() });
        }
        if self.held.len() <= at {
            self.held.resize(at + 1, false);
        }
        debug_assert!(!self.held[at], "block {id} is taken twice");
        self.held[at] = true;
        self.page_mut(id).fill(T::zeroed());
    }

    /// Takes a block's page away. Its memory waits for another.
    pub(super) fn free(&mut self, id: BlockId) {
        self.held[id as usize] = false;
    }

    pub(super) fn find(&self, id: BlockId) -> Option<&[T]> {
        let at = id as usize;
        if !*self.held.get(at)? {
            return None;
        }
        Some(&self.memory[at / self.per_slab].all()[self.place(id)..][..self.page])
    }

    pub(super) fn page(&self, id: BlockId) -> &[T] {
        self.find(id).expect(HELD)
    }

    pub(super) fn page_mut(&mut self, id: BlockId) -> &mut [T] {
        let (at, place) = (id as usize, self.place(id));
        assert!(self.held[at], "{HELD}");
        &mut self.memory[at / self.per_slab].all_mut()[place..][..self.page]
    }

    /// Copies `n` elements from a place in one page to one in another or the same, wherever they overlap.
    pub(super) fn copy(&mut self, (from, a): (BlockId, usize), (to, b): (BlockId, usize), n: usize) {
        let (source, target) = (self.place(from) + a, self.place(to) + b);
        let slab = |id: BlockId| id as usize / self.per_slab;
        if let Ok([from, to]) = self.memory.get_disjoint_mut([slab(from), slab(to)]) {
            to.all_mut::<T>()[target..][..n].copy_from_slice(&from.all()[source..][..n]);
        } else {
            self.memory[slab(from)].all_mut::<T>().copy_within(source..source + n, target);
        }
    }

    /// Number of pages held.
    pub(super) fn len(&self) -> usize {
        self.held.iter().filter(|&&held| held).count()
    }

    /// Where a block's page begins in its slab.
    const fn place(&self, id: BlockId) -> usize {
        id as usize % self.per_slab * self.page
    }
}

impl<T: Pod> Clone for Slabs<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::new(self.page);
        for id in (0..self.held.len() as BlockId).filter(|&id| self.held[id as usize]) {
            copy.allocate(id);
            copy.page_mut(id).copy_from_slice(self.page(id));
        }
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages so large that two blocks are in slabs apart, and so small that they share one.
    #[test]
    fn rows_move_within_a_page_between_pages_and_between_slabs() {
        for page in [4, SLAB_BYTES / 4, SLAB_BYTES] {
            let mut slabs = Slabs::<f32>::new(page);
            for id in [0, 2] {
                slabs.allocate(id);
            }
            slabs.page_mut(0)[..3].copy_from_slice(&[1.0, 2.0, 3.0]);
            slabs.copy((0, 0), (0, 1), 3);
            assert_eq!(slabs.page(0)[..4], [1.0, 1.0, 2.0, 3.0]);
            slabs.copy((0, 1), (2, 2), 2);
            assert_eq!(slabs.page(2)[..4], [0.0, 0.0, 1.0, 2.0]);
            assert!(slabs.find(1).is_none() && slabs.find(9).is_none());
            assert_eq!(slabs.len(), 2);
        }
    }

    #[test]
    fn a_copy_goes_its_own_way_and_a_page_that_is_taken_anew_is_empty() {
        let mut slabs = Slabs::<u8>::new(8);
        slabs.allocate(3);
        slabs.page_mut(3).fill(7);
        let copy = slabs.clone();
        slabs.free(3);
        assert!(slabs.find(3).is_none());
        slabs.allocate(3);
        assert_eq!((slabs.page(3), copy.page(3)), ([0; 8].as_slice(), [7; 8].as_slice()));
    }
}
