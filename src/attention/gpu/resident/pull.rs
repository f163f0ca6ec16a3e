//! A read set: what is chosen, pulled from the host while others are scored, and summed.

use std::cell::OnceCell;
use std::ops::Range;

use super::kept::{KeptLayer, from_part};
use super::reused::PulledLast;
use super::{Choice, GpuAttention, NowPart, TopRows};
use crate::attention::gpu::decode::split;
use crate::attention::gpu::heads;
use crate::device::gpu::{Array, Gpu, Result};
use crate::device::launch::{CountReused, GatherKept, GatherRows, KeptRows, SelectTop, Union, Weighted};
use crate::event::{Layer, SeqId};

/// How rows are pulled from the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pull {
    /// One launch reads them where they lie, in mapped memory.
    #[default]
    Gather,
    /// The host is told which, and asks for a copy of each.
    Copies,
    /// The one of the two that takes less time when it is first tried.
    Fastest,
}

/// How long the copies of a layer took, and how long the rest waited for them (measured).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullTime {
    /// Decoder layer.
    pub layer: Layer,
    /// New rows to the host, in the queue of copies.
    pub push_ns: u64,
    /// Rows from the host, behind them.
    pub copy_ns: u64,
    /// What of both was not hidden behind other work.
    pub stall_ns: u64,
}

/// A pull under way.
pub(in crate::attention::gpu) struct Pulled<M> {
    /// When it began in the queue of copies, where it is clocked.
    pub(super) begun: Option<M>,
    /// When its rows are there.
    pub(super) done: M,
}

/// Where the rows of a layer go, of all parts of the step; with what was pulled before, where that is kept.
struct Staged {
    rows: Array,
    kept: Option<(KeptRows, Option<KeptRows>)>,
}

/// How large the choices of a step are.
#[derive(Clone, Copy)]
pub(super) struct Choices {
    parts: usize,
    pub(super) heads: usize,
    kv_heads: usize,
    /// Most rows of a union.
    pub(super) list: usize,
    /// Most that it will be in a longer context.
    most: usize,
}

impl Choices {
    /// Words of a layer's counts, of what was asked for, of what was dropped, and of what was reused, each of all parts.
    const fn lengths(self) -> [usize; 4] {
        let Self { parts, heads, kv_heads, .. } = self;
        [parts * kv_heads, parts * heads, parts * heads, parts * kv_heads]
    }

    fn words(self) -> usize {
        self.lengths().iter().sum()
    }
}

/// Where what the layer under way chose lies, from a part on.
pub(super) struct Chosen {
    /// `[part][kv_head]`: rows of the union.
    pub(super) counts: Array,
    /// `[part][head]`: rows that were asked for.
    asked: Array,
    /// `[part][head]`: the mass that was not.
    pub(super) dropped: Array,
    /// `[part][kv_head]`: rows of the union that the query before chose too.
    reused: Array,
    /// `[part][kv_head][list]`: the slots of the union.
    pub(super) slots: Array,
}

impl<G: Gpu> GpuAttention<G> {
    pub(super) fn choices_of_step(&self) -> Choices {
        let step = &self.batch.step;
        let slots = step.positions.iter().max().map_or(0, |&last| last as usize + 1);
        let n = step.read.map_or(0, |read| read.n);
        let most = self.shape.group().saturating_mul(n.saturating_add(1));
        Choices {
            parts: step.parts.last().map_or(0, |&last| last as usize + 1),
            heads: self.shape.heads(),
            kv_heads: self.shape.kv_heads(),
            list: slots.min(most),
            most,
        }
    }

    pub(super) fn chosen(&self, choices: Choices, part: usize) -> Chosen {
        let (gpu, rooms) = (&self.gpu, &self.batch.rooms);
        let mut at = usize::from(self.batch.now().layer) * choices.words();
        let mut array = |length: usize, of_part: usize| {
            let array = rooms.choices.array(gpu).offset(4 * (at + part * of_part));
            at += length;
            array
        };
        let [counts, asked, dropped, reused] = choices.lengths();
        Chosen {
            counts: array(counts, choices.kv_heads),
            asked: array(asked, choices.heads),
            dropped: array(dropped, choices.heads),
            reused: array(reused, choices.kv_heads),
            slots: rooms.chosen.array(gpu).offset(4 * part * choices.kv_heads * choices.list),
        }
    }

    /// Scores, choices and pulls of either half of the parts, then the sums of either.
    pub(super) fn decode_chosen(&mut self, parts: Range<usize>, stride: usize, rows: Array) -> Result<()> {
        let read = self.batch.step.read.expect("values live on the host under a read set");
        let choices = self.choices_of_step();
        let layers = self.batch.step.layers;
        self.batch.rooms.choices.of(&self.gpu, 4 * layers * choices.words())?;
        self.batch.rooms.chosen.of(&self.gpu, 4 * choices.parts * choices.kv_heads * choices.list)?;
        let row_bytes = self.pool.cell().row_bytes(self.shape.head_dim());
        let staged = self.place_staged(&parts, choices, row_bytes)?;
        self.batch.rooms.weights.of(&self.gpu, 4 * choices.parts * choices.heads * choices.list)?;
        let middle = parts.start + parts.len().div_ceil(2);
        let mut pulled = Vec::new();
        for half in [parts.start..middle, middle..parts.end] {
            if half.is_empty() {
                continue;
            }
            let own = rows.offset(4 * (half.start - parts.start) * choices.heads * stride);
            self.decode_rows(half.clone(), stride, own, false)?;
            self.choose_rows(half.clone(), stride, own, read, choices)?;
            let begun = self.pull_rows(half.clone(), choices, &staged)?;
            pulled.push((half, Pulled { begun, done: self.batch.copies.mark()? }));
        }
        for (half, pulled) in pulled {
            self.wait_for(pulled)?;
            self.sum_chosen(half, read, choices, staged.rows)?;
        }
        let layer = self.batch.now().layer;
        let finds = staged.kept.is_some_and(|(_, before)| before.is_some());
        self.batch.chosen[usize::from(layer)].push((parts, finds));
        Ok(())
    }

    /// What is asked for from now on comes behind a pull of the layer under way. Where it is clocked, so is the wait.
    pub(in crate::attention::gpu) fn wait_for(&mut self, pulled: Pulled<G::Mark>) -> Result<()> {
        let Pulled { begun, done } = pulled;
        let Some(begun) = begun else { return self.gpu.after(&done) };
        let waits = self.gpu.mark()?;
        self.gpu.after(&done)?;
        let goes_on = self.gpu.mark()?;
        self.batch.pulls.push((self.batch.now().layer, [begun, done, waits, goes_on]));
        Ok(())
    }

    /// A mark in the queue of copies, where the step is clocked.
    pub(super) fn clocked_copies(&self) -> Result<Option<G::Mark>> {
        self.batch.step.clocked.then(|| self.batch.copies.mark()).transpose()
    }

    /// Where rows of the parts are pulled to.
    fn place_staged(&mut self, parts: &Range<usize>, choices: Choices, row_bytes: usize) -> Result<Staged> {
        let layer = usize::from(self.batch.now().layer);
        if self.batch.keeps {
            while self.batch.kept.len() <= layer {
                self.batch.kept.push(KeptLayer::new());
            }
            // Of some parts alone nobody knows the counts of the others.
            if *parts == (0..choices.parts) {
                let sequences: Vec<SeqId> = self.batch.now().parts.iter().map(|part| part.sequence).collect();
                let sizes = [choices.kv_heads, choices.list, row_bytes];
                let (to, before) = self.batch.kept[layer].turn(&self.gpu, &sequences, sizes)?;
                return Ok(Staged { rows: to.rows, kept: Some((to, before)) });
            }
            self.batch.kept[layer].forget();
        }
        let all = choices.parts * choices.kv_heads * choices.list;
        Ok(Staged { rows: self.batch.rooms.staged.of(&self.gpu, all * row_bytes)?, kept: None })
    }

    fn choose_rows(
        &mut self,
        half: Range<usize>,
        stride: usize,
        rows: Array,
        read: TopRows,
        choices: Choices,
    ) -> Result<()> {
        let heads = heads(self.shape);
        let now = self.batch.now();
        let (positions, lanes) = (now.tables.positions, now.lanes(half.start, heads.kv_heads));
        let Chosen { counts, asked, dropped, slots, .. } = self.chosen(choices, half.start);
        let weights = self.batch.rooms.weights.array(&self.gpu);
        let words = half.len() * heads.heads * SelectTop::words(stride);
        let top = SelectTop {
            heads,
            sequences: half.len(),
            slots: stride,
            marks: self.rooms.marks.of(&self.gpu, 4 * words)?,
            counts: asked,
            list: Array::NONE,
            list_stride: 0,
            rows,
            row_stride: stride,
            positions,
            lanes,
            n: read.n,
            own: read.own,
        };
        top.launch(&self.gpu)?;
        let weights = weights.offset(4 * half.start * choices.heads * choices.list);
        Union { of: top, slots, counts, weights, dropped, list_stride: choices.list }.launch(&self.gpu)?;
        if self.batch.step.counted { self.count_reused(&half, choices) } else { Ok(()) }
    }

    /// Counts how much of what a half chose its queries before chose too.
    fn count_reused(&mut self, half: &Range<usize>, choices: Choices) -> Result<()> {
        let Chosen { counts, reused, slots, .. } = self.chosen(choices, half.start);
        let now = self.batch.now();
        let (layer, kv_heads) = (usize::from(now.layer), choices.kv_heads);
        let sequences = now.parts.iter().map(|part| part.sequence as usize + 1).max().unwrap_or(0);
        let (owners, positions) = (now.owners.offset(4 * half.start), now.tables.positions);
        let lanes = now.lanes(half.start, kv_heads);
        while self.batch.pulled_last.len() <= layer {
            self.batch.pulled_last.push(PulledLast::new());
        }
        let sizes = [sequences, kv_heads, choices.list, choices.most];
        let (pulled, pulled_counts, pulled_stride) = self.batch.pulled_last[layer].of(&self.gpu, sizes)?;
        let count = CountReused {
            kv_heads,
            sequences: half.len(),
            reused,
            pulled,
            pulled_counts,
            pulled_stride,
            slots,
            slot_stride: choices.list,
            counts,
            owners,
            positions,
            lanes,
        };
        count.launch(&self.gpu)
    }

    /// Begins to pull what a half chose; when that began, where it is clocked.
    fn pull_rows(
        &mut self,
        half: Range<usize>,
        choices: Choices,
        staged: &Staged,
    ) -> Result<Option<G::Mark>> {
        let chosen = self.gpu.mark()?;
        self.batch.copies.after(&chosen)?;
        let begun = self.clocked_copies()?;
        match self.batch.pull {
            Pull::Gather => self.gather_chosen(half, choices, staged)?,
            Pull::Copies => self.copy_chosen(half, choices, staged.rows)?,
            Pull::Fastest => {
                let mut marks = vec![self.batch.copies.mark()?];
                self.gather_chosen(half.clone(), choices, staged)?;
                marks.push(self.batch.copies.mark()?);
                self.copy_chosen(half, choices, staged.rows)?;
                marks.push(self.batch.copies.mark()?);
                let ns = |i: usize| self.batch.copies.elapsed_ns(&marks[i], &marks[i + 1]);
                self.batch.pull = if ns(0)? <= ns(1)? { Pull::Gather } else { Pull::Copies };
            }
        }
        Ok(begun)
    }

    fn gather_chosen(&self, half: Range<usize>, choices: Choices, staged: &Staged) -> Result<()> {
        let now = self.batch.now();
        let Chosen { counts, slots, .. } = self.chosen(choices, half.start);
        let row_bytes = now.tables.cell.row_bytes(self.shape.head_dim());
        let first = half.start * choices.kv_heads * choices.list * row_bytes;
        let gather = GatherRows {
            kv_heads: choices.kv_heads,
            sequences: half.len(),
            rows: choices.list,
            row_bytes,
            block_size: now.tables.block_size,
            staged: staged.rows.offset(first),
            row_stride: choices.list,
            slab: now.tables.v,
            slots,
            slot_stride: choices.list,
            counts,
            blocks: now.tables.blocks,
            lanes: now.lanes(half.start, choices.kv_heads),
        };
        let Some((to, before)) = staged.kept else { return gather.launch(&self.batch.copies) };
        let own = |kept: KeptRows| from_part(kept, half.start, choices.kv_heads, row_bytes);
        let positions = now.tables.positions;
        let kept = GatherKept { of: gather, positions, staged: own(to), before: before.map(own) };
        kept.launch(&self.batch.copies)
    }

    fn copy_chosen(&self, half: Range<usize>, choices: Choices, staged: Array) -> Result<()> {
        let (now, copies) = (self.batch.now(), &self.batch.copies);
        let Chosen { counts, slots, .. } = self.chosen(choices, half.start);
        let mut of_counts = vec![0u32; half.len() * choices.kv_heads];
        copies.download(counts, bytemuck::cast_slice_mut(&mut of_counts))?;
        let mut of_slots = vec![0u32; half.len() * choices.kv_heads * choices.list];
        copies.download(slots, bytemuck::cast_slice_mut(&mut of_slots))?;
        let row_bytes = now.tables.cell.row_bytes(self.shape.head_dim());
        let lists = of_counts.iter().zip(of_slots.chunks(choices.list.max(1)));
        for (lane, (&count, slots)) in lists.enumerate() {
            let (part, head) = (half.start + lane / choices.kv_heads, lane % choices.kv_heads);
            let first = (part * choices.kv_heads + head) * choices.list;
            let pages = self.batch.now().parts[part].pages.get(head).map_or(&[][..], Vec::as_slice);
            for (i, &slot) in slots[..count as usize].iter().enumerate() {
                let (page, row) =
                    (pages[slot as usize / now.tables.block_size], slot as usize % now.tables.block_size);
                let from = (page as usize * now.tables.block_size + row) * row_bytes;
                copies.copy(now.tables.v.offset(from), staged.offset((first + i) * row_bytes), row_bytes)?;
            }
        }
        Ok(())
    }

    fn sum_chosen(
        &mut self,
        half: Range<usize>,
        read: TopRows,
        choices: Choices,
        staged: Array,
    ) -> Result<()> {
        let heads = heads(self.shape);
        let now = self.batch.now();
        let Chosen { counts, dropped, .. } = self.chosen(choices, half.start);
        let row_bytes = now.tables.cell.row_bytes(heads.head_dim);
        let (gpu, rooms) = (&self.gpu, &self.batch.rooms);
        let first = half.start * choices.kv_heads * choices.list;
        let partial = Weighted::partial_elements(heads, half.len(), choices.list);
        let weighted = Weighted {
            cell: now.tables.cell,
            heads,
            sequences: half.len(),
            rows: choices.list,
            staged: staged.offset(first * row_bytes),
            row_stride: choices.list,
            weights: rooms.weights.array(gpu).offset(4 * half.start * choices.heads * choices.list),
            weight_stride: choices.list,
            counts,
            dropped: if read.renorm { dropped } else { Array::NONE },
            partial: self.rooms.partial.of(gpu, 4 * partial)?,
            out: now.out.offset(4 * now.parts[half.start].first_row * self.shape.width()),
        };
        weighted.launch(gpu)
    }

    pub(super) fn pull_times(&mut self) -> Result<Vec<PullTime>> {
        let mut times: Vec<PullTime> = Vec::new();
        for (layer, [begun, done, waits, goes_on]) in std::mem::take(&mut self.batch.pulls) {
            let copy_ns = self.gpu.elapsed_ns(&begun, &done)?;
            let stall_ns = self.gpu.elapsed_ns(&waits, &goes_on)?;
            match times.last_mut().filter(|last| last.layer == layer) {
                Some(last) => {
                    (last.copy_ns, last.stall_ns) = (last.copy_ns + copy_ns, last.stall_ns + stall_ns);
                }
                None => times.push(PullTime { layer, push_ns: 0, copy_ns, stall_ns }),
            }
        }
        for (layer, [begun, done]) in std::mem::take(&mut self.batch.pushes) {
            let push_ns = self.gpu.elapsed_ns(&begun, &done)?;
            if let Some(time) = times.iter_mut().find(|time| time.layer == layer) {
                time.push_ns = push_ns;
            }
        }
        Ok(times)
    }

    pub(super) fn fetch_choices(&mut self) -> Result<Vec<Vec<Choice>>> {
        let choices = self.choices_of_step();
        if self.batch.chosen.iter().all(Vec::is_empty) {
            return Ok(Vec::new());
        }
        let mut words = vec![0u32; self.batch.step.layers * choices.words()];
        let base = self.batch.rooms.choices.array(&self.gpu);
        self.gpu.download(base, bytemuck::cast_slice_mut(&mut words))?;
        let of_layer = |(words, chosen): (&[u32], &Vec<(Range<usize>, bool)>)| -> Vec<Choice> {
            if chosen.is_empty() {
                return Vec::new();
            }
            let [counts, asked, dropped, reused] = split(words, choices.lengths());
            (0..choices.parts)
                .map(|part| {
                    let Some((_, finds)) = chosen.iter().find(|(parts, _)| parts.contains(&part)) else {
                        return Choice::default();
                    };
                    let own = |words: &'_ [u32], n: usize| words[part * n..][..n].to_vec();
                    let sum = |words: &'_ [u32], n: usize| own(words, n).into_iter().map(u64::from).sum();
                    Choice {
                        finds_kept: *finds,
                        asked: sum(asked, choices.heads),
                        rows: sum(counts, choices.kv_heads),
                        reused: sum(reused, choices.kv_heads),
                        dropped: own(dropped, choices.heads).into_iter().map(f32::from_bits).collect(),
                    }
                })
                .collect()
        };
        Ok(words.chunks(choices.words().max(1)).zip(&self.batch.chosen).map(of_layer).collect())
    }

    /// The probabilities of a part of the latest decode, and its selection, as those that the backend tells.
    pub(super) fn fetch_part(&mut self, part: usize) -> Result<()> {
        let heads = self.shape.heads();
        let now = self.batch.now();
        let (first, stride) = (now.decoded.0.start, now.decoded.1);
        let reads = now.values_on_host;
        self.scored.slots.clone_from(&now.parts[part].slots);
        let rows = self.batch.rooms.rows.array(&self.gpu).offset(4 * (part - first) * heads * stride);
        self.rows = OnceCell::from(self.fetch_rows(rows, stride)?);
        if !reads {
            return Ok(());
        }
        let choices = self.choices_of_step();
        let list = choices.list;
        let Chosen { counts, asked, dropped, slots, .. } = self.chosen(choices, part);
        let weights = self.batch.rooms.weights.array(&self.gpu).offset(4 * part * heads * list);
        let fetch = |(array, n): (Array, usize)| -> Result<Vec<u32>> {
            let mut words = vec![0; n];
            self.gpu.download(array, bytemuck::cast_slice_mut(&mut words))?;
            Ok(words)
        };
        let words: Vec<Vec<u32>> = [
            (counts, choices.kv_heads),
            (asked, heads),
            (dropped, heads),
            (slots, choices.kv_heads * list),
            (weights, heads * list),
        ]
        .into_iter()
        .map(fetch)
        .collect::<Result<_>>()?;
        self.take_selection(std::array::from_fn(|i| &*words[i]), list);
        Ok(())
    }
}

impl NowPart {
    /// Slots of the longest lane.
    pub(super) fn most(&self) -> usize {
        self.slots.iter().copied().max().unwrap_or(0)
    }
}
