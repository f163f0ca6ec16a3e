//! Pages by block id: a block in use has one.

use crate::event::BlockId;

const HELD: &str = "a block in a table has its page";

/// One page per block in use, whatever a page is.
#[derive(Clone, Debug)]
pub(super) struct Shelf<P>(Vec<Option<P>>);

impl<P> Shelf<P> {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// The first page of a block.
    pub(super) fn put(&mut self, id: BlockId, page: P) {
        let id = id as usize;
        if self.0.len() <= id {
            self.0.resize_with(id + 1, || None);
        }
        debug_assert!(self.0[id].is_none(), "block {id} is taken twice");
        self.0[id] = Some(page);
    }

    /// Another page for a block that has one.
    pub(super) fn replace(&mut self, id: BlockId, page: P) {
        *self.page_mut(id) = page;
    }

    pub(super) fn free(&mut self, id: BlockId) {
        self.0[id as usize] = None;
    }

    pub(super) fn find(&self, id: BlockId) -> Option<&P> {
        self.0.get(id as usize)?.as_ref()
    }

    pub(super) fn page(&self, id: BlockId) -> &P {
        self.find(id).expect(HELD)
    }

    pub(super) fn page_mut(&mut self, id: BlockId) -> &mut P {
        self.0[id as usize].as_mut().expect(HELD)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &P> {
        self.0.iter().flatten()
    }
}

impl<P: Clone> Shelf<P> {
    pub(super) fn copy(&mut self, from: BlockId, to: BlockId) {
        let page = self.page(from).clone();
        self.put(to, page);
    }
}
