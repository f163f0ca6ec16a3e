//! What attention leaves to each position, where policies go by sums of it: added up, kept and, where the rules go by sums
//! alone, decided on where the rows are.

use std::ops::Range;

use super::crush::{fixed_anchors, picture_of, sizes_of};
use super::{GpuAttention, Part};
use crate::attention::HOLE;
use crate::attention::gpu::heads;
use crate::device::gpu::{Array, Gpu, Result, Room};
use crate::device::launch::{Accumulate, CrushSizes, SelectKeep, SumLanes, Sums};
use crate::event::{Layer, Position};
use crate::policy::{CrushPicture, Ranked, RankedBy, SumKind};

/// What is kept of attention for a run's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptSums {
    /// The kinds, in the order of [`Needs::sums`](crate::policy::Needs::sums).
    pub kinds: Vec<SumKind>,
    /// Positions of the queries that [`SumKind::Window`] is of. Another window begins from nothing.
    pub window: Range<Position>,
    /// Sequences of the run.
    pub sequences: usize,
    /// Positions that a sequence will come to; there may be more.
    pub reach: usize,
}

/// A question about some parts of a layer, of which the policy decides.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// Decoder layer.
    pub layer: Layer,
    /// All parts of the layer in the step's order, so that their tables stay where they are.
    pub parts: &'a [Part<'a>],
    /// Those that are asked about.
    pub range: Range<usize>,
    /// Whether who is lost can be told by sums alone; else the sums themselves are wanted.
    pub ranked: Option<Ranked>,
    /// Of each of those parts, what its sequence draws from.
    pub seeds: Vec<u64>,
}

impl<'a> Question<'a> {
    /// The parts that are asked about.
    pub(super) fn asked(&self) -> impl Iterator<Item = &'a Part<'a>> + use<'a> {
        self.parts[self.range.clone()].iter()
    }
}

/// Positions of the residents of a lane.
pub(super) fn live(slots: &[Position]) -> impl DoubleEndedIterator<Item = Position> + '_ {
    slots.iter().copied().filter(|&position| position != HOLE)
}

/// What a part of a question has for an answer, per KV head; for one decision of all heads, of the first.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Per kind of sum a value per slot, 0 in a hole; counts as their bits.
    Sums(Vec<Vec<Vec<f32>>>),
    /// Who is lost, and under KVCrush what the decision looked like.
    Lost(Vec<Lost>, Option<CrushPicture>),
}

/// The slots that a lane loses.
#[derive(Clone, Debug, PartialEq)]
pub struct Lost {
    /// Ascending.
    pub slots: Vec<u32>,
    /// Their scores.
    pub scores: Vec<f32>,
    /// The lowest score that stayed, where anybody competed.
    pub cutoff: Option<f32>,
}

/// The sums of a layer, `[sequence][kv_head][stride]` of each kind.
pub(super) struct LayerSums<G: Gpu> {
    kinds: Vec<(SumKind, Room<G>)>,
    sequences: usize,
    stride: usize,
    window: Range<Position>,
}

impl<G: Gpu> LayerSums<G> {
    pub(super) const fn new() -> Self {
        Self { kinds: Vec::new(), sequences: 0, stride: 0, window: 0..0 }
    }

    /// Sees to sums of all sequences for positions below `end`.
    fn fit(&mut self, gpu: &G, kept: &KeptSums, kv_heads: usize, end: usize) -> Result<()> {
        if self.window != kept.window {
            let bytes = 4 * self.sequences * kv_heads * self.stride;
            for (_, room) in self.kinds.iter().filter(|(kind, _)| *kind == SumKind::Window) {
                gpu.clear(room.array(gpu), bytes)?;
            }
            self.window = kept.window.clone();
        }
        if kept.sequences <= self.sequences && end <= self.stride {
            return Ok(());
        }
        // Beyond what was foreseen, a conversation grows by turns.
        let stride = if end <= kept.reach { kept.reach } else { end + end / 4 };
        let rows = kept.sequences * kv_heads;
        let mut new = Vec::new();
        for &kind in &kept.kinds {
            let mut room = Room::new("sums of attention");
            let array = room.grown(gpu, 0, 4 * rows * stride)?;
            gpu.clear(array, 4 * rows * stride)?;
            if let Some((_, old)) = self.kinds.iter().find(|(of, _)| *of == kind) {
                let old = old.array(gpu);
                for row in 0..self.sequences * kv_heads {
                    let from = old.offset(4 * row * self.stride);
                    gpu.copy(from, array.offset(4 * row * stride), 4 * self.stride)?;
                }
            }
            new.push((kind, room));
        }
        (self.kinds, self.sequences, self.stride) = (new, kept.sequences, stride);
        Ok(())
    }

    /// Where they lie, for sequences that `owners` names.
    fn arrays(&self, gpu: &G, owners: Array) -> Sums {
        let mut sums = Sums::none(self.stride, owners);
        for (kind, room) in &self.kinds {
            *match kind {
                SumKind::Sum => &mut sums.sum,
                SumKind::Squares => &mut sums.squares,
                SumKind::Count => &mut sums.count,
                SumKind::LastRow => &mut sums.last,
                SumKind::Window => &mut sums.window,
            } = room.array(gpu);
        }
        sums
    }
}

/// Where the answer to a question lies among the words of all.
struct Asked {
    first: usize,
    words: usize,
    slots: usize,
    /// Places of a lane's list of victims.
    list: usize,
    /// Places of all lists; under KVCrush lanes take them as they come.
    places: usize,
    heads: usize,
    /// Where longer lists begin, if there are any.
    rest: usize,
    crush: Option<CrushSizes>,
}

impl Asked {
    fn new(question: &Question<'_>, first: usize, kinds: usize, kv_heads: usize) -> Self {
        let lanes = question.range.len() * kv_heads;
        let tables = || question.asked().flat_map(|part| &part.tables).map(|table| table.slots);
        let slots = tables().map(<[_]>::len).max().unwrap_or(0);
        let none = Self { first, words: 0, slots, list: 0, places: 0, heads: kv_heads, rest: 0, crush: None };
        let Some(ranked) = &question.ranked else { return Self { words: lanes * kinds * slots, ..none } };
        if let Some(crushing) = &ranked.crush {
            let sizes = sizes_of(question, ranked, crushing, kv_heads);
            return Self { words: sizes.answer(), places: sizes.places(), crush: Some(sizes), ..none };
        }
        let most = tables().map(|slots| live(slots).count()).max().unwrap_or(0);
        let list = most.saturating_sub(ranked.budget as usize);
        let asked =
            Self { list, places: lanes * list, heads: if ranked.as_one { 1 } else { kv_heads }, ..none };
        Self { words: asked.lengths(lanes).iter().sum(), ..asked }
    }

    /// Words of the victims, their scores, how many they are, and cutoffs, per KV head.
    fn lengths(&self, lanes: usize) -> [usize; 4] {
        [self.places, self.places, lanes, lanes]
    }

    /// What is known of a lane's victims: how many there are, the cutoff, and the first one's place.
    fn victims(&self, words: &[u32], lanes: usize, lane: usize) -> (usize, f32, usize) {
        let of_lane = |n: usize| words[2 * self.places + n * lanes + lane];
        let first = if self.crush.is_some() { of_lane(2) as usize } else { lane * self.list };
        (of_lane(0) as usize, f32::from_bits(of_lane(1)), first)
    }

    fn rest_words(&self) -> usize {
        self.crush.map_or(0, |sizes| sizes.rest())
    }
}

/// Of the sums those that a score is made of.
pub(super) fn of_score(sums: Sums, by: RankedBy) -> Sums {
    let Sums { sum, count, last, stride, owners, .. } = sums;
    let none = Sums::none(stride, owners);
    match by {
        RankedBy::Sum => Sums { sum, ..none },
        RankedBy::Mean => Sums { sum, count, ..none },
        RankedBy::LastRow => Sums { last, ..none },
    }
}

impl<G: Gpu> GpuAttention<G> {
    /// Sees to the sums of a layer, where any are kept, for the step's positions.
    pub(super) fn begin_sums_of_layer(&mut self, layer: usize) -> Result<()> {
        let Some(kept) = &self.batch.step.sums else { return Ok(()) };
        let end = self.batch.step.positions.iter().max().map_or(0, |&last| last as usize + 1);
        while self.batch.sums.len() <= layer {
            self.batch.sums.push(LayerSums::new());
        }
        self.batch.sums[layer].fit(&self.gpu, kept, self.shape.kv_heads(), end)
    }

    /// Where the sums of the layer under way lie for parts from one on, and the window's queries.
    pub(super) fn sums_of(&self, part: usize) -> Option<(Sums, Range<Position>)> {
        let kept = self.batch.step.sums.as_ref()?;
        let now = self.batch.now();
        let owners = now.owners.offset(4 * part);
        Some((self.batch.sums[usize::from(now.layer)].arrays(&self.gpu, owners), kept.window.clone()))
    }

    /// Adds the probabilities of some parts of one row each, where sums are kept.
    pub(super) fn accumulate_rows(&self, parts: Range<usize>, stride: usize, rows: Array) -> Result<()> {
        let Some((sums, window)) = self.sums_of(parts.start) else { return Ok(()) };
        let (heads, now) = (heads(self.shape), self.batch.now());
        let accumulate = Accumulate {
            heads,
            sequences: parts.len(),
            queries: 1,
            slots: stride,
            sums,
            window,
            rows,
            row_stride: stride,
            positions: now.tables.positions,
            lanes: now.lanes(parts.start, heads.kv_heads),
        };
        accumulate.launch(&self.gpu)
    }

    pub(super) fn answer(&mut self, questions: &[Question<'_>]) -> Result<Vec<Vec<Answer>>> {
        let kv_heads = self.shape.kv_heads();
        let kinds = self.batch.step.sums.as_ref().map_or(0, |kept| kept.kinds.len());
        let mut words = 0;
        let mut asked = Vec::new();
        for question in questions {
            let own = Asked::new(question, words, kinds, kv_heads);
            words += own.words;
            asked.push(own);
        }
        // Behind all that is fetched in any case, what may be.
        let mut all = words;
        for own in &mut asked {
            own.rest = all;
            all += own.rest_words();
        }
        let out = self.batch.rooms.answers.of(&self.gpu, 4 * all)?;
        for (question, asked) in questions.iter().zip(&asked) {
            self.begin_answer(question, asked, [asked.first, asked.rest].map(|at| out.offset(4 * at)))?;
        }
        let mut answers = vec![0u32; words];
        self.gpu.download(out, bytemuck::cast_slice_mut(&mut answers))?;
        let answer = |(question, asked): (&Question<'_>, &Asked)| {
            let words = &answers[asked.first..][..asked.words];
            let lanes = question.range.len() * kv_heads;
            let mut rest = Vec::new();
            let passes = |lane: usize| {
                let (n, _, first) = asked.victims(words, lanes, lane);
                first + n > asked.places
            };
            if asked.crush.is_some() && (0..lanes).any(passes) {
                rest = vec![0u32; asked.rest_words()];
                self.gpu.download(out.offset(4 * asked.rest), bytemuck::cast_slice_mut(&mut rest))?;
            }
            let of_part = |(i, part): (usize, &Part<'_>)| match question.ranked {
                Some(_) => {
                    let lost = lost_of(words, &rest, asked, lanes, i * kv_heads);
                    Answer::Lost(lost, asked.crush.map(|sizes| picture_of(words, &sizes, i)))
                }
                None => Answer::Sums(sums_of(words, asked, kinds, i * kv_heads, part)),
            };
            Ok(question.asked().enumerate().map(of_part).collect())
        };
        questions.iter().zip(&asked).map(answer).collect()
    }

    /// Starts what makes the answer to a question.
    fn begin_answer(
        &mut self,
        question: &Question<'_>,
        asked: &Asked,
        [out, rest]: [Array; 2],
    ) -> Result<()> {
        let (layer, kv_heads) = (usize::from(question.layer), self.shape.kv_heads());
        let (placed, words) =
            self.batch.standing.bring(&self.gpu, &self.pool, layer, question.parts, kv_heads)?;
        let mut more: Vec<u32> = question.parts.iter().map(|part| part.sequence).collect();
        let crush = question.ranked.and_then(|ranked| ranked.crush).zip(asked.crush);
        let anchors = crush.and_then(|(crushing, sizes)| fixed_anchors(question, &crushing, sizes.width()));
        more.extend(anchors.iter().flatten());
        let [lanes, owners] = words.patch(&self.gpu, &mut self.batch.rooms.asked_words, placed, &more)?;
        let anchors = anchors.map(|_| owners.offset(4 * question.parts.len()));
        let first = question.range.start;
        let of = SumLanes {
            kv_heads,
            sequences: question.range.len(),
            slots: asked.slots,
            sums: self.batch.sums[layer].arrays(&self.gpu, owners.offset(4 * first)),
            positions: placed.positions,
            lanes: super::lanes_from(lanes, first, kv_heads),
        };
        let Some(ranked) = question.ranked else { return of.take(out, &self.gpu) };
        if let Some((crushing, sizes)) = crush {
            return self.begin_crush(of, &ranked, &crushing, sizes, anchors, [out, rest]);
        }
        let Ranked { by, as_one, budget, protected, .. } = ranked;
        let scores = self.rooms.sums.of(&self.gpu, 4 * question.range.len() * kv_heads * asked.slots)?;
        let [victims, lost, counts, _] = asked.lengths(question.range.len() * kv_heads);
        let at = |words: usize| out.offset(4 * words);
        let select = SelectKeep {
            of: SumLanes { sums: of_score(of.sums, by), ..of },
            as_one,
            budget: budget as usize,
            sinks: protected.sinks,
            recent: protected.recent,
            scores,
            victims: at(0),
            lost: at(victims),
            list: asked.list,
            counts: at(victims + lost),
            cutoffs: at(victims + lost + counts),
        };
        select.launch(&self.gpu)
    }
}

/// Per KV head and kind what the slots of a part have.
fn sums_of(words: &[u32], asked: &Asked, kinds: usize, lane: usize, part: &Part<'_>) -> Vec<Vec<Vec<f32>>> {
    (0..asked.heads)
        .map(|head| {
            let slots = part.table(head).slots.len();
            let of_kind = |kind: usize| {
                let first = ((lane + head) * kinds + kind) * asked.slots;
                words[first..first + slots].iter().map(|&word| f32::from_bits(word)).collect()
            };
            (0..kinds).map(of_kind).collect()
        })
        .collect()
}

/// Per KV head who is lost of a part, whose first lane is `lane` of `lanes`. Where there were too few places, `rest` has
/// lists of all.
fn lost_of(words: &[u32], rest: &[u32], asked: &Asked, lanes: usize, lane: usize) -> Vec<Lost> {
    (lane..lane + asked.heads)
        .map(|lane| {
            let (n, cutoff, first) = asked.victims(words, lanes, lane);
            let (victims, scores) = match rest.len() / 2 {
                0 => (&words[first..], &words[asked.places + first..]),
                all => (&rest[lane * all / lanes..], &rest[all + lane * all / lanes..]),
            };
            Lost {
                slots: victims[..n].to_vec(),
                scores: scores[..n].iter().map(|&word| f32::from_bits(word)).collect(),
                cutoff: (!cutoff.is_nan()).then_some(cutoff),
            }
        })
        .collect()
}
