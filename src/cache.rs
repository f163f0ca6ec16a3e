//! Floor 2: the paged KV cache: pool, tables, tiers, prefix sharing.
//!
//! [`Cache`] is what an engine calls. Its parts: [`table`] says which position lies in which slot (pure, shared with the
//! reducers through [`replay()`]), a pool hands out block ids and counts who holds which slot, arenas hold the pages of
//! each tier, and an index finds prefixes whose pages can be shared.
//!
//! On a CPU run both tiers are arenas of RAM. K lives on the device, V's home is a matter of its layer; whole blocks can be
//! sent to the host for good ([`Cache::send_to_host`]).
//!
//! Pages may hold rows in codes of 8 to 2 bits ([`KvDtype`]). The tables do not know: what a slot's row is stored as is
//! its page's matter, and follows from the slots alone, never from values. A cache of such pages shares no prefix.

mod alter;
mod arena;
mod changes;
mod coding;
mod compaction;
mod config;
mod dtype;
mod kivi;
mod nuq;
mod pool;
mod prefix;
mod replay;
mod sequence;
mod shelf;
mod slabs;
pub mod table;

use std::collections::BTreeMap;
use std::convert::Infallible;

pub use alter::NewRows;
pub use arena::{CodedPages, PageList, Pages};
pub use changes::{ChangedRows, PageOp};
pub use config::{CacheConfig, CacheError, Exhausted, KvShape, MAX_BLOCKS, MAX_HEAD_DIM, RopeMode};
pub use dtype::{DtypeError, KIVI_GROUP, KvDtype, Nuq};
pub use replay::{Compacted, replay};
pub use table::{HOLE, LaneView, LayerTable, TableError, Victims};

use arena::Arena;
use changes::Changes;
use coding::Tally;
use nuq::Coder;
use pool::{Count, Demand, Home, Part, Pool};
use prefix::PrefixIndex;
use sequence::{Sequence, Turn};

use crate::event::{BlockId, Head, Layer, Position, SeqId, TableOps, Tier, TierUse};
use crate::quant::OUTLIER_BYTES;

/// The paged KV cache of one model, for any number of sequences.
///
/// Within a step a sequence adopts and appends, then each layer decides once, then it compacts; [`Self::take_ops`] ends
/// the step. Other orders are refused, because a recorded step could not be replayed to the same tables.
#[derive(Clone, Debug)]
pub struct Cache {
    config: CacheConfig,
    sequences: BTreeMap<SeqId, Sequence>,
    pool: Pool,
    pages: PageArenas,
    prefixes: PrefixIndex,
    tally: Tally,
    /// Bytes of copies per tier, as told by their maker: device, host.
    copies: [u64; 2],
    changes: Changes,
    /// Whether the arenas have pages; where not, a backend alone has them.
    has_pages: bool,
}

/// The pages of all tiers.
#[derive(Clone, Debug)]
struct PageArenas {
    /// K, on the device.
    keys: Arena,
    /// V: on the device, on the host.
    values: [Arena; 2],
    /// K on the host, of blocks whose home is [`Home::Far`].
    far_keys: Arena,
}

impl PageArenas {
    /// `in_codes` where rows go into codes as they are written, after a calibration.
    fn allocate(&mut self, id: BlockId, home: Home, in_codes: bool) {
        for arena in [&mut self.keys, &mut self.values[home as usize]] {
            match arena {
                Arena::Nuq(store) if in_codes => store.allocate_coded(id),
                arena => arena.allocate(id),
            }
        }
    }

    fn free(&mut self, id: BlockId, home: Home) {
        let (keys, values) = match home {
            Home::Far => (&mut self.far_keys, Home::Host),
            Home::Device | Home::Host => (&mut self.keys, home),
        };
        keys.free(id);
        self.values[values as usize].free(id);
    }

    /// Moves both pages of a block from the device to the host; returns their bytes.
    fn send(&mut self, id: BlockId) -> usize {
        let [device, host] = &mut self.values;
        self.keys.move_page(&mut self.far_keys, id) + device.move_page(host, id)
    }
}

impl Cache {
    /// An empty cache; pages are allocated as blocks are taken.
    ///
    /// # Errors
    /// A zero in the shape, a block size out of range, or a pool too small for one token.
    pub fn new(config: CacheConfig) -> Result<Self, CacheError> {
        config.check()?;
        let width = config.block_size as usize;
        let arena = |part| Arena::new(config.dtype, part, config.shape.head_dim, width);
        Ok(Self {
            config,
            sequences: BTreeMap::new(),
            pool: Pool::new(BlockId::from(config.shape.kv_heads), width, config.capacity_blocks()),
            pages: PageArenas {
                keys: arena(Part::K),
                values: [arena(Part::V), arena(Part::V)],
                far_keys: arena(Part::K),
            },
            prefixes: PrefixIndex::new(&config),
            tally: Tally::new(config.shape, config.dtype),
            copies: [0; 2],
            changes: Changes::default(),
            has_pages: true,
        })
    }

    /// An empty cache that says where every row lies and what that takes, and has no pages itself: a backend has them,
    /// and does to them what [`take_page_ops`](Self::take_page_ops) tells. Pages of rows that are stored for good as they
    /// are written.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    ///
    /// # Panics
    /// Rows go into codes later, or blocks may be sent to the host: then the cache itself has to read them.
    pub fn without_pages(config: CacheConfig) -> Result<Self, CacheError> {
        assert!(
            !config.dtype.goes_into_codes_later() && !config.far_blocks,
            "rows and pages that stay as they are"
        );
        Ok(Self { has_pages: false, changes: Changes::of_ops(), ..Self::new(config)? })
    }

    /// Whether rows can be read and written here.
    pub const fn has_pages(&self) -> bool {
        self.has_pages
    }

    /// How it was built.
    pub const fn config(&self) -> &CacheConfig {
        &self.config
    }

    /// Blocks not in use.
    pub const fn free_blocks(&self) -> usize {
        self.pool.free()
    }

    /// Begins a sequence; one that is there already stays as it is. Where pages go into codes it is lossy from the start.
    pub fn add(&mut self, seq: SeqId) {
        self.sequences.entry(seq).or_insert_with(|| Sequence::new(&self.config));
    }

    /// Ends a sequence and gives its blocks back; pages shared with others stay theirs.
    pub fn remove(&mut self, seq: SeqId) {
        let Some(mut sequence) = self.sequences.remove(&seq) else { return };
        self.prefixes.leave(seq, &mut sequence.chain);
        self.changes.remove(seq);
        for table in &sequence.tables {
            for head in 0..table.heads() {
                let lane = table.lane(head);
                for (i, id) in lane.blocks().enumerate() {
                    let slots = if self.pool.owners(id) > 1 { lane.block_slots(i) } else { &[] };
                    for row in (0..slots.len()).filter(|&row| slots[row] != HOLE) {
                        self.pool.let_go(id, row);
                    }
                    self.release(id);
                }
            }
        }
    }

    /// The block tables of one (sequence, layer).
    ///
    /// # Panics
    /// The sequence was never added, or the model has no such layer.
    pub fn table(&self, seq: SeqId, layer: Layer) -> &LayerTable {
        &self.sequences[&seq].tables[usize::from(layer)]
    }

    /// K and V pages of one KV head in table order; their rows go with the slots of [`LayerTable::lane`].
    ///
    /// # Panics
    /// The sequence was never added, or the model has no such layer or head.
    pub fn pages(&self, seq: SeqId, layer: Layer, head: Head) -> (Pages<'_>, Pages<'_>) {
        let sequence = &self.sequences[&seq];
        let lane = sequence.tables[usize::from(layer)].lane(head);
        let values = &self.pages.values[self.home(layer) as usize];
        let codecs = sequence.calibration.as_ref().map(|calibration| calibration.codecs(layer, head));
        let PageArenas { keys, far_keys, values: [_, host] } = &self.pages;
        (keys.pages(far_keys, lane, codecs.map(|c| c.0)), values.pages(host, lane, codecs.map(|c| c.1)))
    }

    /// Moves the blocks of these slots of all KV heads, K and V, to the host, which is their home from now on. Returns
    /// the bytes moved.
    ///
    /// # Panics
    /// The cache was not made for it ([`CacheConfig::far_blocks`]), the slots are not whole blocks, or they are not live
    /// on the device and this sequence's alone.
    pub fn send_to_host(&mut self, seq: SeqId, layer: Layer, slots: std::ops::Range<usize>) -> u64 {
        let width = self.config.block_size as usize;
        let whole = slots.start.is_multiple_of(width) && slots.end.is_multiple_of(width);
        assert!(self.config.far_blocks && whole, "whole blocks of a cache with a memory on the host");
        let table = &self.sequences[&seq].tables[usize::from(layer)];
        let mut bytes = 0;
        for head in 0..table.heads() {
            let lane = table.lane(head);
            for id in (slots.start / width..slots.end / width).map(|i| lane.block(i)) {
                bytes += self.pages.send(id) as u64;
                self.pool.rehome(id, Home::Far);
            }
        }
        bytes
    }

    fn home(&self, layer: Layer) -> Home {
        if self.config.v_on_host(layer) { Home::Host } else { Home::Device }
    }

    /// Takes over the pages of the longest known prefix of `tokens` and returns how many tokens that is: a multiple of
    /// the block size, 0 unless the sequence is empty. The engine goes on with the token behind them, so it passes all
    /// tokens but the last, whose logits it needs.
    pub fn share_prefix(&mut self, seq: SeqId, tokens: &[u32]) -> usize {
        let Some(sequence) = self.sequences.get_mut(&seq).filter(|s| s.is_fresh()) else { return 0 };
        let found = self.prefixes.find(tokens);
        let adopted = found.len() * self.config.block_size as usize;
        for layer in 0..self.config.shape.layers {
            let blocks: Vec<BlockId> = found.iter().map(|(_, blocks)| blocks[usize::from(layer)]).collect();
            let table = &mut sequence.tables[usize::from(layer)];
            table.adopt(&blocks, adopted).expect("full blocks, onto an empty table");
            for id in blocks.iter().flat_map(|&id| gang(id, self.config.shape.kv_heads)) {
                self.pool.share(id);
            }
            if !blocks.is_empty() {
                sequence.ops(layer, None).adopted = blocks;
            }
            sequence.written[usize::from(layer)] = adopted as Position;
            sequence.rearranged[usize::from(layer)] += 1;
        }
        sequence.next = adopted as Position;
        if sequence.lossless {
            let keys = found.into_iter().map(|(key, _)| key).collect();
            self.prefixes.hold(seq, &mut sequence.chain, keys);
        }
        adopted
    }

    /// Offers the full pages of `tokens` (ids from position 0 on) that the sequence has written in every layer. A no-op
    /// once the sequence has lost something or was marked lossy.
    pub fn offer_prefix(&mut self, seq: SeqId, tokens: &[u32]) {
        let Some(sequence) = self.sequences.get_mut(&seq).filter(|s| s.lossless) else { return };
        let written = sequence.written.iter().min().map_or(0, |&n| n as usize);
        let tables = &sequence.tables;
        let blocks_of = |page| tables.iter().map(|t| t.lane(0).block(page)).collect();
        self.prefixes.offer(seq, &mut sequence.chain, &tokens[..tokens.len().min(written)], blocks_of);
    }

    /// From now on the sequence computes with less than everything (a read set, for one): what it appends is not shared,
    /// and what it offered is withdrawn unless another lossless sequence holds it too. It may still adopt pages of others.
    pub fn mark_lossy(&mut self, seq: SeqId) {
        if let Some(sequence) = self.sequences.get_mut(&seq).filter(|s| s.lossless) {
            sequence.lossless = false;
            self.prefixes.leave(seq, &mut sequence.chain);
        }
    }

    /// Reserves slots for `n` tokens from position `first` on, in every layer. `first` is the position behind the last.
    ///
    /// # Errors
    /// [`CacheError::Exhausted`] before anything changed, so that it shows before the forward. To force a decision then,
    /// evict, and end that step with [`Self::take_ops`] (a step that feeds nothing) before reserving again.
    pub fn reserve(&mut self, seq: SeqId, first: Position, n: usize) -> Result<(), CacheError> {
        let sequence = self.sequences.get_mut(&seq).ok_or(CacheError::NoSequence(seq))?;
        if sequence.turns.iter().any(|&turn| turn != Turn::Append) {
            return Err(CacheError::OutOfOrder { seq, what: "an append after a decision" });
        }
        if first != sequence.next {
            return Err(TableError::OutOfOrder(first).into());
        }
        let mut demand = Demand::default();
        for table in &sequence.tables {
            table.check_append(first, n)?;
            if table.is_split() {
                demand.singles += table.blocks_needed(n);
            } else {
                demand.gangs += table.blocks_needed_by(0, n);
            }
        }
        self.pool.check(demand)?;
        for layer in 0..self.config.shape.layers {
            self.append(seq, layer, first, n);
        }
        self.sequences.get_mut(&seq).expect("found above").next = first + n as Position;
        Ok(())
    }

    /// Appends to one layer's table; the demand was checked.
    fn append(&mut self, seq: SeqId, layer: Layer, first: Position, n: usize) {
        let home = self.home(layer);
        let heads = self.config.shape.kv_heads;
        let width = self.config.block_size as usize;
        let sequence = self.sequences.get_mut(&seq).expect("the caller looked it up");
        let table = &mut sequence.tables[usize::from(layer)];
        let in_codes = sequence.calibration.as_ref().is_some_and(|calibration| calibration.is_done(layer));
        let mut taken = Vec::new();
        let take = |key: Option<Head>| {
            let id = self.pool.take(key, home);
            for id in members(key, id, heads) {
                if self.has_pages {
                    self.pages.allocate(id, home, in_codes);
                }
                if in_codes {
                    for part in [Part::K, Part::V] {
                        self.pool.code(id, part, 0..width);
                    }
                }
            }
            taken.push((key, id));
            Ok::<_, Infallible>(id)
        };
        table.append(first, n, take).expect("the append was checked");
        for head in 0..heads {
            let lane = table.lane(head);
            let (mut slot, end) = (lane.slots.len() - n, lane.slots.len());
            while slot < end {
                let rows = (width - slot % width).min(end - slot);
                self.pool.fill(lane.block(slot / width), slot % width, rows);
                slot += rows;
            }
        }
        for (key, id) in taken {
            sequence.ops(layer, key).taken.push(id);
        }
    }

    /// Writes K and V rows, `[tokens][kv_heads][head_dim]` each, of positions reserved in this step.
    ///
    /// # Errors
    /// The rows do not fit what was reserved.
    pub fn write(
        &mut self,
        seq: SeqId,
        layer: Layer,
        first: Position,
        k: &[f32],
        v: &[f32],
    ) -> Result<(), CacheError> {
        self.check_layer(layer)?;
        let misfit = CacheError::NotReserved { layer, first };
        let KvShape { kv_heads, head_dim, .. } = self.config.shape;
        let stride = usize::from(kv_heads) * head_dim;
        let n = k.len() / stride;
        if k.len() != v.len() || !k.len().is_multiple_of(stride) {
            return Err(misfit);
        }
        let home = self.home(layer);
        let sequence = self.sequences.get_mut(&seq).ok_or(CacheError::NoSequence(seq))?;
        let table = &sequence.tables[usize::from(layer)];
        // What follows the rows already written is this sequence's own: no shared page is touched.
        if first != sequence.written[usize::from(layer)] {
            return Err(misfit);
        }
        if n == 0 {
            return Ok(());
        }
        let calibration = sequence.calibration.as_ref().filter(|calibration| calibration.is_done(layer));
        let own = calibration.map(|calibration| calibration.thresholds(v, stride)).unwrap_or_default();
        for head in 0..kv_heads {
            let lane = table.lane(head);
            let slot = reserved_slot(lane, first, n).ok_or_else(|| misfit.clone())?;
            self.changes.write((seq, layer, head), lane, slot..slot + n);
            if let Some(calibration) = calibration {
                let mut coder = Coder {
                    keys: self.pages.keys.nuq_mut(),
                    values: self.pages.values[home as usize].nuq_mut(),
                    pool: &mut self.pool,
                    tally: &mut self.tally,
                };
                coder.append(calibration, (layer, head), lane, slot, [k, v], &own);
                continue;
            }
            let column = usize::from(head) * head_dim;
            self.pages.keys.write(lane, slot, n, &k[column..], stride);
            self.pages.values[home as usize].write(lane, slot, n, &v[column..], stride);
            if self.config.dtype == KvDtype::Int8 {
                let arenas =
                    [(Part::K, &self.pages.keys, k), (Part::V, &self.pages.values[home as usize], v)];
                let mut back = vec![0.0; head_dim];
                for (part, arena, rows) in arenas {
                    let Pages::Coded(pages) = arena.pages(arena, lane, None) else { continue };
                    for i in 0..n {
                        pages.row(slot + i).decode(&mut back);
                        let was = &rows[i * stride + column..][..head_dim];
                        self.tally.measure(layer, head, part, was, &back);
                    }
                }
            }
        }
        sequence.written[usize::from(layer)] = first + n as Position;
        Ok(())
    }

    /// Notes that a backend wrote the rows of `n` positions reserved in this step, where pages are its alone.
    ///
    /// # Errors
    /// They do not follow what was written.
    pub fn note_written(
        &mut self,
        seq: SeqId,
        layer: Layer,
        first: Position,
        n: usize,
    ) -> Result<(), CacheError> {
        self.check_layer(layer)?;
        debug_assert!(!self.has_pages, "rows are written here");
        let sequence = self.sequences.get_mut(&seq).ok_or(CacheError::NoSequence(seq))?;
        let written = &mut sequence.written[usize::from(layer)];
        let end = u64::from(first) + n as u64;
        if first != *written || end > u64::from(sequence.next) {
            return Err(CacheError::NotReserved { layer, first });
        }
        *written = end as Position;
        Ok(())
    }

    /// How often slots of a (sequence, layer) changed other than by appends: whoever keeps a copy of its tables looks at
    /// what was appended where this is as it was.
    ///
    /// # Panics
    /// The sequence was never added, or the model has no such layer.
    pub fn rearranged(&self, seq: SeqId, layer: Layer) -> u64 {
        self.sequences[&seq].rearranged[usize::from(layer)]
    }

    /// One decision of one layer: the victims' rows are lost, blocks without survivors are given back.
    ///
    /// # Errors
    /// A victim that is not resident, or a second decision within the step.
    pub fn evict(&mut self, seq: SeqId, layer: Layer, victims: &Victims<'_>) -> Result<(), CacheError> {
        self.check_layer(layer)?;
        if victims.is_empty() {
            return Ok(());
        }
        let sequence = self.sequences.get_mut(&seq).ok_or(CacheError::NoSequence(seq))?;
        if sequence.turns[usize::from(layer)] != Turn::Append {
            return Err(CacheError::OutOfOrder { seq, what: "a second decision of one layer" });
        }
        let table = &mut sequence.tables[usize::from(layer)];
        let width = self.config.block_size as usize;
        let mut lost = Vec::new();
        for head in 0..table.heads() {
            let lane = table.lane(head);
            let slots = victims.of(head).iter().filter_map(|&p| table.slot_of(head, p));
            lost.extend(slots.map(|slot| (lane.block(slot / width), slot % width)));
        }
        table.evict(victims)?;
        for (id, row) in lost {
            self.pool.let_go(id, row);
        }
        let freed = table.release_empty();
        sequence.turns[usize::from(layer)] = Turn::Compact;
        sequence.rearranged[usize::from(layer)] += 1;
        for &(key, id) in &freed {
            sequence.ops(layer, key).freed.push(id);
        }
        for (key, id) in freed {
            for id in members(key, id, self.config.shape.kv_heads) {
                self.release(id);
            }
        }
        self.mark_lossy(seq);
        Ok(())
    }

    /// One table gives a block back.
    fn release(&mut self, id: BlockId) {
        let home = self.pool.home(id);
        if self.pool.release(id) {
            self.changes.free(id);
            if self.has_pages {
                self.pages.free(id, home);
            }
        }
    }

    fn check_layer(&self, layer: Layer) -> Result<(), CacheError> {
        if layer < self.config.shape.layers { Ok(()) } else { Err(CacheError::NoLayer(layer)) }
    }

    /// What changed in the sequence's tables since the last call, as a step records it, layers and heads ascending. Ends
    /// the step: appends may follow again.
    pub fn take_ops(&mut self, seq: SeqId) -> Vec<TableOps> {
        self.sequences.get_mut(&seq).map(Sequence::take_ops).unwrap_or_default()
    }

    /// Tokens resident per (layer, KV head), layer-major.
    pub fn resident(&self, seq: SeqId, out: &mut Vec<u32>) {
        out.clear();
        let tables = self.sequences.get(&seq).map_or(&[][..], |s| &s.tables);
        out.extend(tables.iter().flat_map(|t| (0..t.heads()).map(|h| t.live(h) as u32)));
    }

    /// Tells how many bytes of second copies a tier holds now: V rows pulled to the device, for one.
    pub const fn note_copies(&mut self, tier: Tier, bytes: u64) {
        match tier {
            Tier::Device => self.copies[0] = bytes,
            Tier::Host => self.copies[1] = bytes,
            Tier::Disk | Tier::Remote => {}
        }
    }

    /// Bytes per tier, device and host (counted as they change).
    ///
    /// A tier's capacity is what it holds if every block belongs to a layer whose V lives there, all rows as they are
    /// written: a page in codes takes less (unless nearly all it has are outliers).
    pub fn usage(&self) -> [TierUse; 2] {
        let row_bytes = self.config.dtype.written_row_bytes(self.config.shape.head_dim) as u64;
        let width = u64::from(self.config.block_size);
        let blocks = if self.config.blocks == 0 { 0 } else { u64::from(self.config.capacity_blocks()) };
        let any_host = self.config.v_on_host(self.config.shape.layers - 1);
        let any_device = !self.config.v_on_host(0);
        let tier = |tier, held: &[(Home, Part)], capacity_rows: u64, copies_bytes| {
            let mut sum = TierUse { copies_bytes, ..TierUse::new(tier) };
            for &(home, part) in held {
                let [live, stranded, unfilled] = self.part_bytes(&self.pool.count(home), part);
                sum.live_bytes += live;
                sum.stranded_bytes += stranded;
                sum.unfilled_bytes += unfilled;
            }
            sum.capacity_bytes = blocks * width * capacity_rows * row_bytes;
            sum
        };
        let on_host = [(Home::Host, Part::V), (Home::Far, Part::K), (Home::Far, Part::V)];
        let host_rows = if self.config.far_blocks { 2 } else { u64::from(any_host) };
        let on_device = [(Home::Device, Part::K), (Home::Device, Part::V), (Home::Host, Part::K)];
        [
            tier(Tier::Device, &on_device, 1 + u64::from(any_device), self.copies[0]),
            tier(Tier::Host, &on_host, host_rows, self.copies[1]),
        ]
    }

    /// Live, stranded and unfilled bytes of K or V in some blocks.
    fn part_bytes(&self, count: &Count, part: Part) -> [u64; 3] {
        let (dtype, d) = (self.config.dtype, self.config.shape.head_dim);
        let coded = count.coded[part as usize];
        let bytes = |rows: usize, coded: usize, outliers: usize| {
            let exact = (rows - coded) * dtype.written_row_bytes(d);
            (exact + coded * dtype.settled_row_bytes(part, d) + outliers * OUTLIER_BYTES) as u64
        };
        let live = bytes(count.live, coded.live, coded.live_outliers);
        let filled = bytes(count.filled, coded.filled, coded.outliers);
        let held = bytes(count.blocks * self.config.block_size as usize, coded.rows, coded.outliers);
        [live, filled - live, held - filled]
    }

    /// Bytes of pages that the arenas of device and host really hold, found by walking them: what [`Self::usage`] must add
    /// up to, copies aside.
    pub fn held_bytes(&self) -> [u64; 2] {
        let PageArenas { keys, values: [device, host], far_keys } = &self.pages;
        [keys.held_bytes() + device.held_bytes(), far_keys.held_bytes() + host.held_bytes()]
            .map(|bytes| bytes as u64)
    }
}

/// The slot of the first of `n` positions that were appended together.
fn reserved_slot(lane: LaneView<'_>, first: Position, n: usize) -> Option<usize> {
    let last = *lane.slots.last()?;
    let slot = lane.slots.len().checked_sub(last.checked_sub(first)? as usize + 1)?;
    let rows = lane.slots.get(slot..slot + n)?;
    rows.iter().copied().eq(first..first + n as Position).then_some(slot)
}

/// The blocks of a gang entry.
fn gang(first: BlockId, heads: Head) -> std::ops::Range<BlockId> {
    first..first + BlockId::from(heads)
}

/// The blocks that an entry of a table stands for: all KV heads' for the gang, else itself.
fn members(key: Option<Head>, id: BlockId, heads: Head) -> std::ops::Range<BlockId> {
    gang(id, if key.is_none() { heads } else { 1 })
}

#[cfg(test)]
mod tests;
