//! Block ids and who holds their slots: reference counts and the byte ledger. No bytes here.
//!
//! Ids come in *frames* of `kv_heads` consecutive ids, so that a gang is one frame. Singles come from frames already in
//! part use first, and the lowest free id always goes first: the same calls give the same ids.

use std::collections::BTreeSet;
use std::ops::Range;

use super::config::Exhausted;
use crate::event::{BlockId, Head};

/// Where the pages of a block live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// K and V on the device.
    Device = 0,
    /// V on the host, K on the device.
    Host = 1,
    /// K and V on the host.
    Far = 2,
}

/// Keys or values of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    K = 0,
    V = 1,
}

/// Rows of one [`Part`] in codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Coded {
    /// Rows that pages hold so.
    pub(super) rows: usize,
    /// Those of slots that are filled, and of slots that are live.
    pub(super) filled: usize,
    pub(super) live: usize,
    /// Outliers kept beside the codes, and those of slots that are live.
    pub(super) outliers: usize,
    pub(super) live_outliers: usize,
}

/// Slots counted by [`Home`], each physical slot once however many sequences share it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) blocks: usize,
    /// Slots that were ever handed to a position since the block was taken.
    pub(super) filled: usize,
    /// Slots that at least one sequence still holds.
    pub(super) live: usize,
    /// By [`Part`], the rows that went into codes after they were written.
    pub(super) coded: [Coded; 2],
}

/// Blocks about to be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Demand {
    /// Whole frames.
    pub(super) gangs: usize,
    /// Blocks of single heads.
    pub(super) singles: usize,
}

#[derive(Clone, Copy, Debug)]
struct Meta {
    /// Tables that hold the block; 0 is free.
    owners: u32,
    filled: u32,
    live: u32,
    home: Home,
    coded: [CodedRun; 2],
}

/// The rows of one [`Part`] of a block that are in codes: one run.
#[derive(Clone, Copy, Debug, Default)]
struct CodedRun {
    from: u32,
    to: u32,
    live: u32,
    outliers: u32,
    live_outliers: u32,
}

impl CodedRun {
    const EMPTY: Self = Self { from: 0, to: 0, live: 0, outliers: 0, live_outliers: 0 };

    fn contains(&self, row: usize) -> bool {
        (self.from as usize..self.to as usize).contains(&row)
    }

    /// Rows of it that are among the first `n`.
    fn within(&self, n: u32) -> u32 {
        self.to.min(n) - self.from.min(n)
    }
}

const FREE: Meta = Meta { owners: 0, filled: 0, live: 0, home: Home::Device, coded: [CodedRun::EMPTY; 2] };

impl Meta {
    /// Forgets what is in codes, in the count too.
    fn uncount_coded(&mut self, count: &mut Count) {
        for part in 0..2 {
            self.uncount_part(part, count);
        }
    }

    fn uncount_part(&mut self, part: usize, count: &mut Count) {
        let run = std::mem::take(&mut self.coded[part]);
        let coded = &mut count.coded[part];
        coded.rows -= (run.to - run.from) as usize;
        coded.filled -= run.within(self.filled) as usize;
        coded.live -= run.live as usize;
        coded.outliers -= run.outliers as usize;
        coded.live_outliers -= run.live_outliers as usize;
    }
}

#[derive(Clone, Debug)]
pub(super) struct Pool {
    heads: BlockId,
    width: usize,
    capacity: BlockId,
    /// Frames that exist so far, in use or free.
    frames: BlockId,
    free_frames: BTreeSet<BlockId>,
    /// Frames with some blocks in use and some free.
    partial: BTreeSet<BlockId>,
    in_use: usize,
    metas: Vec<Meta>,
    /// Tables that hold a slot live, per slot of every block.
    holders: Vec<u32>,
    /// By [`Part`], outliers of a slot's row; as long as the last slot that ever had one.
    outliers: Vec<[u16; 2]>,
    counts: [Count; 3],
}

impl Pool {
    /// `capacity` is a multiple of `heads`.
    pub(super) const fn new(heads: BlockId, width: usize, capacity: BlockId) -> Self {
        Self {
            heads,
            width,
            capacity,
            frames: 0,
            free_frames: BTreeSet::new(),
            partial: BTreeSet::new(),
            in_use: 0,
            metas: Vec::new(),
            holders: Vec::new(),
            outliers: Vec::new(),
            counts: [Count {
                blocks: 0,
                filled: 0,
                live: 0,
                coded: [Coded { rows: 0, filled: 0, live: 0, outliers: 0, live_outliers: 0 }; 2],
            }; 3],
        }
    }

    pub(super) const fn count(&self, home: Home) -> Count {
        self.counts[home as usize]
    }

    pub(super) fn owners(&self, id: BlockId) -> u32 {
        self.metas[id as usize].owners
    }

    pub(super) fn home(&self, id: BlockId) -> Home {
        self.metas[id as usize].home
    }

    /// Whether a demand can be met; taking it cannot fail then.
    pub(super) fn check(&self, demand: Demand) -> Result<(), Exhausted> {
        let heads = self.heads as usize;
        let (free, frames) = (self.free(), self.whole_frames());
        let in_partial = free - frames * heads;
        let opened = demand.singles.saturating_sub(in_partial).div_ceil(heads);
        if demand.gangs + opened <= frames {
            return Ok(());
        }
        Err(Exhausted {
            needed: demand.gangs * heads + demand.singles,
            free,
            whole: frames * heads,
            capacity: self.capacity as usize,
        })
    }

    pub(super) const fn free(&self) -> usize {
        self.capacity as usize - self.in_use
    }

    fn whole_frames(&self) -> usize {
        self.free_frames.len() + (self.capacity / self.heads - self.frames) as usize
    }

    /// A gang for no key, a single for a KV head. The demand was checked.
    pub(super) fn take(&mut self, key: Option<Head>, home: Home) -> BlockId {
        if key.is_none() { self.take_gang(home) } else { self.take_single(home) }
    }

    /// The lowest free frame's first id. All its blocks get one owner.
    fn take_gang(&mut self, home: Home) -> BlockId {
        let frame = self.free_frames.pop_first().unwrap_or_else(|| self.open_frame());
        let first = frame * self.heads;
        for id in first..first + self.heads {
            self.own(id, home);
        }
        first
    }

    /// The lowest free id of a frame in part use, else of the lowest free frame.
    fn take_single(&mut self, home: Home) -> BlockId {
        let frame = match self.partial.first() {
            Some(&frame) => frame,
            None => self.free_frames.pop_first().unwrap_or_else(|| self.open_frame()),
        };
        let mut ids = frame * self.heads..(frame + 1) * self.heads;
        let id = ids.find(|&id| self.owners(id) == 0).expect("the frame has a free block");
        self.own(id, home);
        self.file(frame);
        id
    }

    /// The only owner moves the pages of a block; none of it is in codes.
    pub(super) fn rehome(&mut self, id: BlockId, home: Home) {
        let meta = &mut self.metas[id as usize];
        debug_assert!(
            meta.owners == 1 && meta.coded.iter().all(|run| run.from == run.to),
            "moved while shared, or in codes"
        );
        let (filled, live) = (meta.filled as usize, meta.live as usize);
        let from = &mut self.counts[std::mem::replace(&mut meta.home, home) as usize];
        (from.blocks, from.filled, from.live) = (from.blocks - 1, from.filled - filled, from.live - live);
        let to = &mut self.counts[home as usize];
        (to.blocks, to.filled, to.live) = (to.blocks + 1, to.filled + filled, to.live + live);
    }

    fn open_frame(&mut self) -> BlockId {
        let frame = self.frames;
        debug_assert!(frame < self.capacity / self.heads, "the demand was checked");
        self.frames += 1;
        let ids = (self.frames * self.heads) as usize;
        self.metas.resize(ids, FREE);
        self.holders.resize(ids * self.width, 0);
        frame
    }

    fn own(&mut self, id: BlockId, home: Home) {
        self.metas[id as usize] = Meta { owners: 1, home, ..FREE };
        self.counts[home as usize].blocks += 1;
        self.in_use += 1;
    }

    /// Puts a frame where its use says it belongs.
    fn file(&mut self, frame: BlockId) {
        let ids = (frame * self.heads) as usize..((frame + 1) * self.heads) as usize;
        let (total, used) = (ids.len(), self.metas[ids].iter().filter(|m| m.owners > 0).count());
        self.partial.remove(&frame);
        if used == 0 {
            self.free_frames.insert(frame);
        } else if used < total {
            self.partial.insert(frame);
        }
    }

    /// One more table holds all slots of a full block.
    pub(super) fn share(&mut self, id: BlockId) {
        debug_assert_eq!(self.metas[id as usize].live as usize, self.width, "only full blocks are shared");
        self.metas[id as usize].owners += 1;
        for holders in &mut self.holders[id as usize * self.width..][..self.width] {
            *holders += 1;
        }
    }

    /// The only owner puts positions into `n` slots from `row` on.
    pub(super) fn fill(&mut self, id: BlockId, row: usize, n: usize) {
        self.holders[id as usize * self.width + row..][..n].fill(1);
        self.outliers.iter_mut().skip(id as usize * self.width + row).take(n).for_each(|n| *n = [0; 2]);
        let meta = &mut self.metas[id as usize];
        let filled = meta.filled;
        meta.filled += n as u32;
        meta.live += n as u32;
        let count = &mut self.counts[meta.home as usize];
        count.filled += n;
        count.live += n;
        for (run, coded) in meta.coded.iter_mut().zip(&mut count.coded) {
            let rows = run.within(meta.filled) - run.within(filled);
            run.live += rows;
            coded.filled += rows as usize;
            coded.live += rows as usize;
        }
    }

    /// The only owner, who let go of every slot, starts the block afresh.
    pub(super) fn clear(&mut self, id: BlockId) {
        let meta = &mut self.metas[id as usize];
        debug_assert!(meta.owners == 1 && meta.live == 0, "cleared while held");
        let count = &mut self.counts[meta.home as usize];
        meta.uncount_coded(count);
        count.filled -= meta.filled as usize;
        meta.filled = 0;
    }

    /// From now on `rows` of a part are in codes, and no others. Their outliers are to be noted anew.
    pub(super) fn code(&mut self, id: BlockId, part: Part, rows: Range<usize>) {
        let meta = &mut self.metas[id as usize];
        debug_assert_eq!(meta.owners, 1, "shared pages stay as they are");
        let count = &mut self.counts[meta.home as usize];
        meta.uncount_part(part as usize, count);
        let filled = rows.start.min(meta.filled as usize)..rows.end.min(meta.filled as usize);
        let holders = &self.holders[id as usize * self.width..][filled.clone()];
        let live = holders.iter().filter(|&&n| n > 0).count();
        meta.coded[part as usize] =
            CodedRun { from: rows.start as u32, to: rows.end as u32, live: live as u32, ..CodedRun::EMPTY };
        let coded = &mut count.coded[part as usize];
        coded.rows += rows.len();
        coded.filled += filled.len();
        coded.live += live;
    }

    /// The row of a live slot in codes has `n` outliers beside it.
    pub(super) fn note_outliers(&mut self, id: BlockId, part: Part, row: usize, n: usize) {
        if n == 0 {
            return;
        }
        let slot = id as usize * self.width + row;
        if self.outliers.len() <= slot {
            self.outliers.resize(slot + 1, [0; 2]);
        }
        self.outliers[slot][part as usize] = n as u16;
        let meta = &mut self.metas[id as usize];
        let coded = &mut self.counts[meta.home as usize].coded[part as usize];
        let run = &mut meta.coded[part as usize];
        debug_assert!(run.contains(row) && self.holders[slot] > 0, "a live row in codes");
        run.outliers += n as u32;
        run.live_outliers += n as u32;
        coded.outliers += n;
        coded.live_outliers += n;
    }

    /// A table lets go of a slot that it held live.
    pub(super) fn let_go(&mut self, id: BlockId, row: usize) {
        let holders = &mut self.holders[id as usize * self.width + row];
        *holders -= 1;
        if *holders == 0 {
            let meta = &mut self.metas[id as usize];
            meta.live -= 1;
            let count = &mut self.counts[meta.home as usize];
            count.live -= 1;
            let outliers = self.outliers.get(id as usize * self.width + row).copied().unwrap_or_default();
            let parts = meta.coded.iter_mut().zip(&mut count.coded).zip(outliers);
            for ((run, coded), outliers) in parts.filter(|((run, _), _)| run.contains(row)) {
                run.live -= 1;
                coded.live -= 1;
                run.live_outliers -= u32::from(outliers);
                coded.live_outliers -= usize::from(outliers);
            }
        }
    }

    /// A table gives the block back; true if it was the last. A table that shares the block lets go of its slots first.
    pub(super) fn release(&mut self, id: BlockId) -> bool {
        let meta = &mut self.metas[id as usize];
        meta.owners -= 1;
        if meta.owners > 0 {
            return false;
        }
        let count = &mut self.counts[meta.home as usize];
        meta.uncount_coded(count);
        count.blocks -= 1;
        count.filled -= meta.filled as usize;
        count.live -= meta.live as usize;
        *meta = FREE;
        self.in_use -= 1;
        self.file(id / self.heads);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn singles_fill_partly_used_frames_and_the_lowest_frame_comes_back_first() {
        let mut pool = Pool::new(2, 4, 8);
        assert_eq!([pool.take_gang(Home::Device), pool.take_gang(Home::Device)], [0, 2]);
        assert_eq!(pool.take_single(Home::Device), 4);
        assert_eq!(pool.take_gang(Home::Device), 6);
        assert!(pool.release(2) && pool.release(3) && pool.release(1));
        assert_eq!(pool.take_single(Home::Device), 1);
        assert_eq!(pool.take_single(Home::Device), 5);
        assert_eq!(pool.take_gang(Home::Device), 2);
    }

    #[test]
    fn a_demand_counts_the_frames_that_singles_open() {
        let mut pool = Pool::new(2, 4, 6);
        pool.take_single(Home::Host);
        let fits = |gangs, singles| pool.check(Demand { gangs, singles }).is_ok();
        assert!(fits(2, 1) && fits(1, 3) && fits(0, 5));
        assert!(!fits(3, 0) && !fits(2, 2) && !fits(0, 6));
        assert_eq!(
            pool.check(Demand { gangs: 2, singles: 2 }),
            Err(Exhausted { needed: 6, free: 5, whole: 4, capacity: 6 })
        );
    }

    #[test]
    fn a_shared_slot_lives_until_its_last_holder_lets_go() {
        let mut pool = Pool::new(1, 2, 4);
        let id = pool.take_gang(Home::Host);
        pool.fill(id, 0, 2);
        pool.share(id);
        pool.let_go(id, 1);
        assert_eq!(pool.count(Home::Host), Count { blocks: 1, filled: 2, live: 2, ..Count::default() });
        pool.let_go(id, 1);
        assert_eq!(pool.count(Home::Host), Count { blocks: 1, filled: 2, live: 1, ..Count::default() });
        pool.let_go(id, 0);
        assert!(!pool.release(id));
        assert!(pool.release(id));
        assert_eq!(pool.count(Home::Host), Count::default());
    }
}
