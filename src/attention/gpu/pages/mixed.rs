//! Pages whose rows are exact at first and go into codes later (KIVI, arXiv 2402.02750): a block has a page of codes, of
//! exact rows, or both, and says how many of its leading rows are in codes. A row has the same place in either.

use super::super::as_bytes;
use super::{Home, Paged, Pool, Stretch, no_page};
use crate::attention::Rows;
use crate::device::gpu::{Array, DeviceError, Gpu, Result};
use crate::device::launch::Cell;
use crate::event::BlockId;

/// Where the rows of a block lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::attention::gpu) struct MixedPlace {
    pub(in crate::attention::gpu) home: Home,
    /// The page of rows in codes, and that of exact ones; 0 where there is none, whose rows nobody reads.
    pub(in crate::attention::gpu) pages: [u32; 2],
    /// Leading rows in codes: keys, values.
    pub(in crate::attention::gpu) in_codes: [usize; 2],
}

impl<G: Gpu> Pool<G> {
    /// Slabs of exact keys and values beside those of codes.
    pub(in crate::attention::gpu) fn exact_slabs(&self, gpu: &G, home: Home) -> [Array; 2] {
        self.exact.slabs(gpu, home)
    }

    pub(in crate::attention::gpu) fn find_mixed(&self, block: BlockId) -> Result<MixedPlace> {
        let places = [&self.pages, &self.exact].map(|paged: &Paged<G>| paged.place(block));
        let home = places[0].or(places[1]).ok_or_else(|| no_page(block))?.home;
        let pages = places.map(|place| place.map_or(0, |place| place.page));
        let in_codes = self.in_codes.get(block as usize).copied().unwrap_or_default();
        Ok(MixedPlace { home, pages, in_codes: in_codes.map(|rows| rows as usize) })
    }

    /// Rows as the cache has them, in codes and exact, and how many of the block's are in codes from now on.
    pub(super) fn put_mixed(&mut self, gpu: &G, stretches: &[Stretch<'_>], home: Home) -> Result<()> {
        let (mut codes, mut exact) = (Vec::new(), Vec::new());
        for stretch in stretches {
            let parts = [(0, stretch.keys), (1, stretch.values)];
            for (part, rows) in parts.into_iter().filter_map(|(part, rows)| Some((part, rows?))) {
                codes.clear();
                exact.clear();
                let Rows::Coded(rows) = rows else { return Err(self.other_type()) };
                rows.copy_stored(&mut codes, &mut exact);
                let mut to = stretch.row;
                for (cell, bytes) in [(self.cell, &*codes), (Cell::F32, as_bytes(&exact))] {
                    if bytes.is_empty() {
                        continue;
                    }
                    let row_bytes = cell.row_bytes(self.head_dim);
                    let paged = if cell == Cell::F32 { &mut self.exact } else { &mut self.pages };
                    let page = paged.put(gpu, stretch.block, home)? as usize;
                    let at = (page * self.block_size + to) * row_bytes;
                    gpu.upload(paged.slabs(gpu, home)[part].offset(at), bytes)?;
                    to += bytes.len() / row_bytes;
                }
            }
            self.note_codes(stretch.block, home, stretch.in_codes);
        }
        Ok(())
    }

    /// A page of which nothing is read is given back.
    fn note_codes(&mut self, block: BlockId, home: Home, in_codes: [usize; 2]) {
        let id = block as usize;
        if self.in_codes.len() <= id {
            self.in_codes.resize(id + 1, [0; 2]);
        }
        self.in_codes[id] = in_codes.map(|rows| rows as u32);
        let parts = if home == Home::Device { &in_codes[..] } else { &in_codes[..1] };
        if parts.iter().all(|&rows| rows == self.block_size) {
            self.exact.free(block);
        }
        if parts.iter().all(|&rows| rows == 0) {
            self.pages.free(block);
        }
    }

    fn other_type(&self) -> DeviceError {
        DeviceError::Limit(format!("pages of another type than {} cannot be read", self.cell.name()))
    }
}
