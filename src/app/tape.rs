//! Scrubbing: the state at any known step, the same way live and replayed.
//!
//! A state is never stored for every step. The tape keeps steps and a thinned-out set of states, and folds from the
//! nearest state before; what it folded on the way back to a step is kept for a while, so that walking back step by
//! step does not start over each time.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::event::{Cells, RunInfo, Step, StepId};
use crate::state::State;
use crate::trace::Recording;

/// Most steps a live tape keeps, and most bytes of steps and states (estimated).
const MAX_STEPS: usize = 8_192;
const MAX_BYTES: usize = 256 << 20;
/// A segment of a live tape ends once it has this many steps and weighs a quarter of a state …
const SEGMENT_STEPS: usize = 64;
/// … or this many steps or bytes, whatever a state weighs.
const MAX_SEGMENT_STEPS: usize = 512;
const MAX_SEGMENT_BYTES: usize = 16 << 20;
/// States kept from the last walks.
const MAX_SNAPSHOTS: usize = 24;
const MAX_SNAPSHOT_BYTES: usize = 64 << 20;
/// Steps read from a recording at a time.
const READ_AHEAD: usize = 64;
/// Steps that are folded rather than looking for a keyframe.
const NEAR: StepId = 48;

/// Where a replay's steps come from: a recording.
pub trait StepStore {
    /// The run recorded.
    fn run(&self) -> &Arc<RunInfo>;
    /// Steps there are, ascending; ids are missing where the recording has gaps.
    fn step_ids(&self) -> &[StepId];
    /// The steps with ids in a range, ascending.
    ///
    /// # Errors
    /// One clear line.
    fn read(&mut self, range: Range<StepId>) -> Result<Vec<Arc<Step>>, String>;
    /// The newest keyframe at or before a step: the step it was taken after, and its bytes.
    ///
    /// # Errors
    /// One clear line.
    fn keyframe_at_or_before(&mut self, step: StepId) -> Result<Option<(StepId, Vec<u8>)>, String>;
}

/// A recording file as a store.
pub struct Recorded {
    recording: Recording,
    run: Arc<RunInfo>,
    ids: Vec<StepId>,
}

impl Recorded {
    /// An opened recording.
    pub fn new(recording: Recording) -> Self {
        Self { run: Arc::new(recording.run().clone()), ids: recording.step_ids().collect(), recording }
    }
}

impl StepStore for Recorded {
    fn run(&self) -> &Arc<RunInfo> {
        &self.run
    }

    fn step_ids(&self) -> &[StepId] {
        &self.ids
    }

    fn read(&mut self, range: Range<StepId>) -> Result<Vec<Arc<Step>>, String> {
        self.recording.read(range).map(|step| step.map(Arc::new).map_err(|e| e.to_string())).collect()
    }

    fn keyframe_at_or_before(&mut self, step: StepId) -> Result<Option<(StepId, Vec<u8>)>, String> {
        self.recording.keyframe_at_or_before(step).map_err(|e| e.to_string())
    }
}

/// The known steps of a run.
pub struct Tape {
    reel: Reel,
    snapshots: Snapshots,
}

enum Reel {
    Live(Live),
    Replay(Replay),
}

impl Tape {
    /// An empty tape that a live run fills.
    pub fn live() -> Self {
        Self { reel: Reel::Live(Live::default()), snapshots: Snapshots::default() }
    }

    /// A recording.
    pub fn replay(store: Box<dyn StepStore>) -> Self {
        Self { reel: Reel::Replay(Replay { store, ahead: VecDeque::new() }), snapshots: Snapshots::default() }
    }

    /// Forgets everything: a run begins.
    ///
    /// # Errors
    /// One clear line when the run's shape is outside the bounds of a state.
    pub fn begin(&mut self, run: Arc<RunInfo>) -> Result<(), String> {
        if let Reel::Live(live) = &mut self.reel {
            *live = Live::default();
            self.snapshots = Snapshots::default();
            live.start(State::new(run).map_err(|e| e.to_string())?);
        }
        Ok(())
    }

    /// The newest step of a live run.
    ///
    /// # Errors
    /// One clear line when the step contradicts the ones before it; the tape then stands still until a run begins.
    pub fn push(&mut self, step: Arc<Step>) -> Result<(), String> {
        match &mut self.reel {
            Reel::Live(live) => live.push(step),
            Reel::Replay(_) => Ok(()),
        }
    }

    /// Steps were lost: the tape begins anew with the state that stands for them.
    pub fn resync(&mut self, state: State) {
        if let Reel::Live(live) = &mut self.reel {
            *live = Live::default();
            self.snapshots = Snapshots::default();
            live.start(state);
        }
    }

    /// The newest state of a live run.
    pub fn edge(&self) -> Option<&Arc<State>> {
        match &self.reel {
            Reel::Live(live) => live.edge.as_ref(),
            Reel::Replay(_) => None,
        }
    }

    /// The first step that can be shown.
    pub fn first(&self) -> Option<StepId> {
        match &self.reel {
            Reel::Live(live) => live.first(),
            Reel::Replay(replay) => replay.store.step_ids().first().copied(),
        }
    }

    /// The last one.
    pub fn last(&self) -> Option<StepId> {
        match &self.reel {
            Reel::Live(live) => live.edge.as_ref()?.step,
            Reel::Replay(replay) => replay.store.step_ids().last().copied(),
        }
    }

    /// The first known step that is not before `step`.
    pub fn at_or_after(&self, step: StepId) -> Option<StepId> {
        match &self.reel {
            Reel::Live(_) => self.first().zip(self.last()).map(|(a, b)| step.clamp(a, b)),
            Reel::Replay(replay) => {
                let ids = replay.store.step_ids();
                ids.get(ids.partition_point(|&id| id < step)).copied()
            }
        }
    }

    /// The state after `step`, or after the last known step before it.
    ///
    /// # Errors
    /// One clear line: the step is not known, or the recording is damaged there.
    pub fn state_at(&mut self, step: StepId) -> Result<Arc<State>, String> {
        match &mut self.reel {
            Reel::Live(live) => live.state_at(step, &mut self.snapshots),
            Reel::Replay(replay) => replay.state_at(step, &mut self.snapshots),
        }
    }
}

/// States met on the last walks, the oldest first.
#[derive(Default)]
struct Snapshots {
    states: VecDeque<(Arc<State>, usize)>,
    bytes: usize,
}

impl Snapshots {
    fn keep(&mut self, state: Arc<State>) {
        if self.states.iter().any(|(s, _)| s.step == state.step) {
            return;
        }
        let bytes = state_bytes(&state);
        self.bytes += bytes;
        self.states.push_back((state, bytes));
        while self.states.len() > MAX_SNAPSHOTS || (self.bytes > MAX_SNAPSHOT_BYTES && self.states.len() > 1)
        {
            if let Some((_, bytes)) = self.states.pop_front() {
                self.bytes -= bytes;
            }
        }
    }

    /// The newest state within steps `from..=to`.
    fn nearest(&self, from: StepId, to: StepId) -> Option<&Arc<State>> {
        let states = self.states.iter().map(|(state, _)| state);
        states.filter(|s| s.step.is_some_and(|at| at >= from && at <= to)).max_by_key(|s| s.step)
    }
}

/// Folds the steps onto a state, keeping a state now and then: about as many as there are steps between two of them, so
/// that walking back costs the least.
fn fold_on(
    base: &Arc<State>,
    steps: impl ExactSizeIterator<Item = Arc<Step>>,
    snapshots: &mut Snapshots,
) -> Result<Arc<State>, String> {
    let count = steps.len();
    if count == 0 {
        return Ok(Arc::clone(base));
    }
    let stride = count.isqrt().max(1);
    let mut state = State::clone(base);
    for (i, step) in steps.enumerate() {
        state.fold(&step).map_err(|e| e.to_string())?;
        let left = count - 1 - i;
        if left > 0 && left.is_multiple_of(stride) && left / stride <= MAX_SNAPSHOTS / 2 {
            snapshots.keep(Arc::new(state.clone()));
        }
    }
    let state = Arc::new(state);
    snapshots.keep(Arc::clone(&state));
    Ok(state)
}

/// The steps of a live run, in segments that each begin with a state. Whole segments are forgotten at the front.
#[derive(Default)]
struct Live {
    edge: Option<Arc<State>>,
    segments: VecDeque<Segment>,
    steps: usize,
    bytes: usize,
}

struct Segment {
    /// The state before the first step.
    base: Arc<State>,
    base_bytes: usize,
    steps: Vec<Arc<Step>>,
    step_bytes: usize,
}

impl Segment {
    /// The first step that can be shown from here: the base's own, or the first after an empty state.
    fn first(&self) -> Option<StepId> {
        self.base.step.or_else(|| self.steps.first().map(|s| s.step))
    }

    fn is_full(&self) -> bool {
        let (steps, bytes) = (self.steps.len(), self.step_bytes);
        steps >= MAX_SEGMENT_STEPS
            || bytes >= MAX_SEGMENT_BYTES
            || (steps >= SEGMENT_STEPS && bytes >= self.base_bytes / 4)
    }
}

impl Live {
    fn start(&mut self, state: State) {
        let state = Arc::new(state);
        self.begin_segment(Arc::clone(&state));
        self.edge = Some(state);
    }

    fn begin_segment(&mut self, base: Arc<State>) {
        let base_bytes = state_bytes(&base);
        self.bytes += base_bytes;
        self.segments.push_back(Segment { base, base_bytes, steps: Vec::new(), step_bytes: 0 });
    }

    fn first(&self) -> Option<StepId> {
        self.segments.front().and_then(Segment::first)
    }

    fn push(&mut self, step: Arc<Step>) -> Result<(), String> {
        let Some(mut edge) = self.edge.take() else { return Ok(()) };
        if self.segments.back().is_some_and(Segment::is_full) {
            self.begin_segment(Arc::clone(&edge));
            self.forget();
        }
        Arc::make_mut(&mut edge)
            .fold(&step)
            .map_err(|e| format!("the engine's steps contradict each other: {e}"))?;
        self.edge = Some(edge);
        let bytes = step_bytes(&step);
        if let Some(segment) = self.segments.back_mut() {
            segment.step_bytes += bytes;
            segment.steps.push(step);
        }
        self.bytes += bytes;
        self.steps += 1;
        Ok(())
    }

    /// Drops the oldest segments until the tape is within its bounds.
    fn forget(&mut self) {
        while self.segments.len() > 1 && (self.steps > MAX_STEPS || self.bytes > MAX_BYTES) {
            if let Some(old) = self.segments.pop_front() {
                self.steps -= old.steps.len();
                self.bytes -= old.base_bytes + old.step_bytes;
            }
        }
    }

    fn state_at(&self, step: StepId, snapshots: &mut Snapshots) -> Result<Arc<State>, String> {
        if let Some(edge) = self.edge.as_ref().filter(|e| e.step == Some(step)) {
            return Ok(Arc::clone(edge));
        }
        let at = self.segments.partition_point(|s| s.first().is_some_and(|first| first <= step));
        let segment = at
            .checked_sub(1)
            .and_then(|i| self.segments.get(i))
            .ok_or_else(|| format!("step {step} is no longer remembered"))?;
        let from = segment.first().unwrap_or(step);
        let base = snapshots.nearest(from, step).unwrap_or(&segment.base);
        let base = Arc::clone(base);
        let done = base.step.map_or(0, |s| s + 1);
        let start = segment.steps.partition_point(|s| s.step < done);
        let end = segment.steps.partition_point(|s| s.step <= step);
        fold_on(&base, segment.steps[start..end.max(start)].iter().cloned(), snapshots)
    }
}

struct Replay {
    store: Box<dyn StepStore>,
    /// Steps read but not asked for yet.
    ahead: VecDeque<Arc<Step>>,
}

impl Replay {
    fn state_at(&mut self, step: StepId, snapshots: &mut Snapshots) -> Result<Arc<State>, String> {
        let ids = self.store.step_ids();
        let index = ids.partition_point(|&id| id <= step).checked_sub(1);
        let (index, step) = index
            .and_then(|i| Some((i, *ids.get(i)?)))
            .ok_or_else(|| format!("the recording has no step {step} and none before it"))?;
        // Steps can be folded onto a state only while none is missing in between.
        let whole_from =
            ids[..index].iter().rev().zip(1..).take_while(|&(&id, back)| id + back == step).count();
        let whole_from = step - whole_from as StepId;
        let near = snapshots.nearest(whole_from.max(step.saturating_sub(NEAR)), step).cloned();
        let base = match near {
            Some(state) => state,
            None => self.base_for(step, whole_from, snapshots)?,
        };
        let mut state = base;
        // Long ways are folded in pieces, so that no more than one piece is in memory.
        loop {
            let next = state.step.map_or(0, |s| s + 1);
            if next > step {
                return Ok(state);
            }
            let steps = self.take(next, step)?;
            if steps.first().is_none_or(|first| first.step != next) {
                return Err(format!(
                    "step {next} cannot be read: the recording is damaged there, try `kvista repair`"
                ));
            }
            state = fold_on(&state, steps.into_iter(), snapshots)?;
        }
    }

    /// The best state to fold from: a keyframe, a state met before, or the empty one.
    fn base_for(
        &mut self,
        step: StepId,
        whole_from: StepId,
        snapshots: &Snapshots,
    ) -> Result<Arc<State>, String> {
        let known = snapshots.nearest(whole_from, step).cloned();
        let keyframe = self.store.keyframe_at_or_before(step)?;
        let run = Arc::clone(self.store.run());
        // A keyframe just before the whole part serves too: the first step of the part follows it.
        let usable = keyframe
            .filter(|(at, _)| at + 1 >= whole_from && known.as_ref().is_none_or(|k| k.step < Some(*at)));
        if let Some((at, bytes)) = usable {
            return State::from_keyframe(run, &bytes)
                .map(Arc::new)
                .map_err(|e| format!("keyframe of step {at}: {e}"));
        }
        match known {
            Some(state) => Ok(state),
            None if whole_from == 0 => State::new(run).map(Arc::new).map_err(|e| e.to_string()),
            None => Err(format!("step {step} follows a gap without a keyframe: it cannot be shown")),
        }
    }

    /// Steps from `next` on, up to `last`, as many as are read at a time.
    fn take(&mut self, next: StepId, last: StepId) -> Result<Vec<Arc<Step>>, String> {
        while self.ahead.front().is_some_and(|s| s.step < next) {
            self.ahead.pop_front();
        }
        if self.ahead.front().is_none_or(|s| s.step != next) {
            self.ahead = self.store.read(next..next.saturating_add(READ_AHEAD as StepId))?.into();
        }
        let count = self.ahead.iter().take_while(|s| s.step <= last).count();
        Ok(self.ahead.drain(..count).collect())
    }
}

/// About what a step takes in memory.
fn step_bytes(step: &Step) -> usize {
    let fixed = 512 + step.layer_ns.len() * 96 + step.tiers.len() * 48 + step.traffic.len() * 72;
    let parts = step.seqs.iter().map(|s| {
        let fed: usize = s.fed.iter().map(|f| 40 + f.piece.0.len()).sum();
        let tables: usize =
            s.tables.iter().map(|t| 112 + 4 * (t.taken.len() + t.freed.len() + 2 * t.copied.len())).sum();
        let evictions: usize = s.evictions.iter().map(|e| 80 + 6 * e.positions.len()).sum();
        let attention = s.attention.as_ref().map_or(0, attention_bytes);
        256 + fed + tables + evictions + attention + 4 * (s.resident.len() + s.dropped.len())
    });
    fixed + parts.sum::<usize>()
}

fn attention_bytes(map: &crate::event::AttentionMap) -> usize {
    let row = |cells: &Cells| match cells {
        Cells::Full(cells) | Cells::Blocks(cells) => cells.len(),
        Cells::Top(picks) => 8 * picks.len(),
    };
    map.groups
        .iter()
        .map(|g| 64 + 8 * g.positions.len() + g.rows.iter().map(|r| 48 + row(&r.cells)).sum::<usize>())
        .sum()
}

/// About what a state takes in memory.
fn state_bytes(state: &State) -> usize {
    let histograms = [&state.latency.prefill, &state.latency.decode]
        .iter()
        .flat_map(|set| set.phases.iter().chain(&set.layers).chain([&set.steps]))
        .chain([&state.latency.first_token, &state.latency.per_token, &state.latency.end_to_end])
        .map(|h| 128 + 8 * h.distinct_values())
        .sum::<usize>();
    let seqs: usize = state
        .seqs
        .iter()
        .map(|s| {
            let tokens: usize = s.tokens.iter().map(|t| 88 + t.piece.0.len()).sum();
            let lanes = |t: &crate::cache::LayerTable| if t.is_split() { t.heads() } else { 1 };
            let slots: usize =
                s.layers.iter().flat_map(|t| (0..lanes(t)).map(|h| t.lane(h).slots.len())).sum();
            tokens + 5 * slots + s.attention.as_ref().map_or(0, |(_, map)| attention_bytes(map))
        })
        .sum();
    let evictions: usize = state.evictions.iter().map(|d| 112 + 6 * d.eviction.positions.len()).sum();
    2_048 + histograms + seqs + evictions + state.history.len() * 128 + state.tuning.len() * 96
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::samples::{self, MemoryStore};

    fn folded(run: &Arc<RunInfo>, steps: &[Arc<Step>]) -> Vec<State> {
        let mut state = State::new(Arc::clone(run)).unwrap();
        steps
            .iter()
            .map(|step| {
                state.fold(step).unwrap();
                state.clone()
            })
            .collect()
    }

    fn live(run: &Arc<RunInfo>, steps: &[Arc<Step>]) -> Tape {
        let mut tape = Tape::live();
        tape.begin(Arc::clone(run)).unwrap();
        for step in steps {
            tape.push(Arc::clone(step)).unwrap();
        }
        tape
    }

    #[test]
    fn both_tapes_give_the_state_of_every_step_in_any_order() {
        let (run, steps) = samples::run(700);
        let want = folded(&run, &steps);
        let recorded = MemoryStore::new(Arc::clone(&run), steps.clone(), 97);
        for mut tape in [live(&run, &steps), Tape::replay(Box::new(recorded))] {
            assert_eq!((tape.first(), tape.last()), (Some(0), Some(699)));
            let forward = 0..700;
            let back = (0..700).rev();
            let jumps = (0..700).map(|i| i * 311 % 700);
            for at in forward.chain(back).chain(jumps) {
                let got = tape.state_at(at as StepId).unwrap();
                assert!(*got == want[at], "step {at}");
            }
        }
    }

    #[test]
    fn a_recording_gives_the_states_that_were_recorded() {
        let (run, steps) = samples::run(200);
        let want = folded(&run, &steps);
        let mut file = std::io::Cursor::new(Vec::new());
        let mut writer = crate::trace::Writer::new("x.mcap", &mut file, &run).unwrap();
        for (step, state) in steps.iter().zip(&want) {
            writer.step(step).unwrap();
            if step.step % 60 == 59 {
                writer.keyframe(step.step, state.at_ns, &state.keyframe()).unwrap();
            }
        }
        writer.finish().unwrap();
        let recording = Recording::from_bytes("x.mcap", file.into_inner()).unwrap();
        let mut tape = Tape::replay(Box::new(Recorded::new(recording)));
        for at in (0..200).chain((0..200).rev()).chain((0..200).map(|i| i * 71 % 200)) {
            assert!(*tape.state_at(at as StepId).unwrap() == want[at], "step {at}");
        }
    }

    #[test]
    fn stepping_back_reuses_what_was_folded() {
        let (run, steps) = samples::run(400);
        let mut tape = live(&run, &steps);
        tape.state_at(390).unwrap();
        assert!(tape.snapshots.states.len() > 1);
        assert!(tape.snapshots.nearest(340, 389).is_some());
    }

    #[test]
    fn a_live_tape_forgets_its_oldest_steps() {
        let (run, steps) = samples::run(MAX_STEPS + 1_200);
        let mut tape = live(&run, &steps);
        let first = tape.first().unwrap();
        assert!(first > 0);
        let Reel::Live(reel) = &tape.reel else { panic!("live") };
        assert!(reel.steps <= MAX_STEPS + MAX_SEGMENT_STEPS && reel.bytes <= MAX_BYTES + MAX_SEGMENT_BYTES);
        assert_eq!(tape.state_at(first).unwrap().step, Some(first));
        assert!(tape.state_at(first - 1).unwrap_err().contains("no longer remembered"));
    }

    #[test]
    fn a_gap_is_stepped_over_and_needs_a_keyframe_behind_it() {
        let (run, steps) = samples::run(40);
        let want = folded(&run, &steps);
        let mut store = MemoryStore::new(Arc::clone(&run), steps.clone(), 100);
        store.lose(10..20);
        let mut tape = Tape::replay(Box::new(store.clone()));
        assert!(*tape.state_at(15).unwrap() == want[9]);
        assert!(tape.state_at(25).unwrap_err().contains("gap"));
        store.add_keyframe(&want[19]);
        let mut tape = Tape::replay(Box::new(store));
        assert!(*tape.state_at(25).unwrap() == want[25]);
        assert_eq!(tape.at_or_after(12), Some(20));
    }

    #[test]
    fn a_resync_begins_the_tape_anew() {
        let (run, steps) = samples::run(30);
        let want = folded(&run, &steps);
        let mut tape = live(&run, &steps[..5]);
        tape.resync(want[19].clone());
        assert_eq!((tape.first(), tape.last()), (Some(19), Some(19)));
        tape.push(Arc::clone(&steps[20])).unwrap();
        assert!(*tape.state_at(19).unwrap() == want[19]);
        assert!(tape.state_at(3).is_err());
        assert!(tape.push(Arc::clone(&steps[25])).is_err());
    }
}
