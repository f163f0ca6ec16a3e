//! Time: playing, stepping, jumping; the axis and what is marked on it.

use std::ops::Bound;

use super::params::{DEFAULT_PACE, MAX_PACE, MIN_PACE};
use super::{App, Scale};
use crate::engine::{Command, Status};
use crate::event::StepId;
use crate::state::StepSummary;

/// Steps a replay shows per tick at most: beyond it time is lost rather than the screen blocked.
const MAX_STEPS_PER_TICK: u64 = 64;
/// A step with this many times the victims of the one before begins a burst.
const BURST: u32 = 4;

/// How far a replay is on its way to the next step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Playback {
    /// Time played since the shown step, ns: of the clock at a pace, of the recording without one.
    since_ns: f64,
}

impl App {
    // Showing a step.

    /// Shows a step, as near as it is known; `None` follows the newest one.
    pub(super) fn show(&mut self, at: Option<StepId>) {
        self.played = Playback::default();
        let Some((first, last)) = self.known_steps() else { return };
        let Some(step) = at.map(|step| step.clamp(first, last)) else { return self.follow() };
        match self.tape.state_at(step) {
            Ok(state) => {
                self.time.at = Some(state.step.unwrap_or(step));
                self.state = Some(state);
                if let Some((_, head)) = &mut self.time.selection {
                    *head = step;
                }
                self.keep_cursor_inside();
                self.keep_axis_around(step);
            }
            Err(why) => self.say(why),
        }
    }

    /// Shows the newest step and stays with it.
    pub(super) fn follow(&mut self) {
        self.frozen = false;
        self.log.following = true;
        if self.is_live() {
            self.time.at = None;
            self.show_edge();
        } else if let Some((_, last)) = self.known_steps() {
            self.show(Some(last));
        }
    }

    /// The shown step, or the newest.
    fn here(&self) -> Option<StepId> {
        self.time.at.or_else(|| self.tape.last())
    }

    fn at_edge(&self) -> bool {
        self.time.at.is_none() || self.time.at == self.tape.last()
    }

    /// Walks the recorded steps; arriving at the live edge follows it.
    pub(super) fn step_by(&mut self, by: i64) {
        let Some((here, (_, last))) = self.here().zip(self.known_steps()) else { return };
        let target = here.saturating_add_signed(by);
        if self.is_live() && target >= last && by > 0 {
            return self.follow();
        }
        if !self.is_live() {
            self.status = Status::Paused;
        }
        let target = if by > 0 { self.tape.at_or_after(target) } else { Some(target) };
        self.show(target.or(Some(last)));
    }

    pub(super) fn step_forward(&mut self) {
        if !self.is_live() || !self.at_edge() {
            return self.step_by(1);
        }
        self.follow();
        match self.status {
            Status::Paused | Status::Running => self.ask(Command::StepOnce),
            _ => self.say(self.why_idle()),
        }
    }

    pub(super) fn play_or_pause(&mut self) {
        if !self.is_live() {
            return self.play_or_pause_replay();
        }
        match self.status {
            Status::Paused => {
                self.follow();
                self.story.played = true;
                self.ask(Command::Play);
            }
            Status::Running => self.ask(Command::Pause),
            _ => self.say(self.why_idle()),
        }
    }

    fn play_or_pause_replay(&mut self) {
        if self.status == Status::Running {
            self.status = Status::Paused;
            return;
        }
        self.status = Status::Running;
        self.played = Playback::default();
        if self.at_edge() {
            // At the end: play it again.
            let start = self.time.looped.map(|(a, _)| a).or_else(|| self.tape.first());
            self.show(start);
        }
    }

    fn why_idle(&self) -> String {
        match &self.status {
            Status::Loading { what, .. } => format!("still loading {what}"),
            Status::Reference => "the full-cache answer is being computed first".to_owned(),
            Status::Finished(finish) => format!("the run has ended ({}): r runs it again", finish.words()),
            Status::Failed(why) => format!("{why}; r runs it again"),
            _ => "the engine has ended: q leaves".to_owned(),
        }
    }

    pub(super) fn toggle_frozen(&mut self) {
        if self.frozen {
            return self.follow();
        }
        self.frozen = true;
        self.time.at = self.step();
        self.say("frozen: capture goes on, F follows it again".to_owned());
    }

    // Playing a recording.

    /// Lets a playing recording go on by `passed_ns` of the clock.
    pub(super) fn play(&mut self, passed_ns: u64) {
        if self.is_live() || self.status != Status::Running {
            return;
        }
        let Some((here, (_, last))) = self.here().zip(self.known_steps()) else { return };
        let end = self.time.looped.map_or(last, |(_, b)| b.min(last));
        self.played.since_ns += passed_ns as f64 * if self.pace.is_some() { 1.0 } else { self.speed };
        let mut step = here;
        for _ in 0..MAX_STEPS_PER_TICK {
            let due_ns = self.gap_ns(step);
            if step >= end || self.played.since_ns < due_ns {
                break;
            }
            self.played.since_ns -= due_ns;
            step = self.tape.at_or_after(step + 1).unwrap_or(last);
        }
        let left = self.played;
        if step != here {
            self.show(Some(step));
            self.played = left;
            self.played.since_ns = left.since_ns.min(self.gap_ns(step));
        }
        if step >= end {
            match self.time.looped {
                Some((start, _)) => self.show(Some(start)),
                None => self.status = Status::Paused,
            }
        }
    }

    /// Time from a step to the next one, ns.
    fn gap_ns(&self, step: StepId) -> f64 {
        if let Some(pace) = self.pace {
            return 1e9 / pace;
        }
        match (self.timeline.get(step), self.timeline.get(step + 1)) {
            (Some(a), Some(b)) => b.start_ns.saturating_sub(a.start_ns) as f64,
            _ => 1e9 / DEFAULT_PACE,
        }
    }

    pub(super) fn scale_pace(&mut self, factor: f64) {
        match self.pace {
            Some(pace) => self.set_pace(Some((pace * factor).clamp(MIN_PACE, MAX_PACE))),
            None if self.is_live() => self.set_pace(Some(DEFAULT_PACE)),
            None => {
                self.speed = (self.speed * factor).clamp(1.0 / 1024.0, 1024.0);
                self.say(format!("recorded time × {}", self.speed));
            }
        }
    }

    pub(super) fn default_pace(&mut self) {
        if self.pace.is_none() && !self.is_live() {
            self.speed = 1.0;
            self.say("recorded time".to_owned());
        } else {
            self.set_pace(Some(DEFAULT_PACE));
        }
    }

    pub(super) fn toggle_pace(&mut self) {
        self.set_pace(if self.pace.is_some() { None } else { Some(DEFAULT_PACE) });
    }

    /// Puts a pace in force and says so.
    pub(super) fn set_pace(&mut self, pace: Option<f64>) {
        self.pace = pace;
        if self.is_live() {
            self.ask(Command::Pace(pace));
        }
        self.say(match pace {
            Some(pace) => format!("{pace} steps per second"),
            None if self.is_live() => "as fast as it goes".to_owned(),
            None => format!("recorded time × {}", self.speed),
        });
    }

    // Jumping.

    pub(super) fn jump_to_tenth(&mut self, tenth: u64) {
        if let Some((first, last)) = self.known_steps() {
            self.show(Some(first + (last - first) * tenth / 10));
        }
    }

    /// The next or previous summary that `wanted` holds for, together with the one before it.
    fn seek(
        &self,
        forward: bool,
        wanted: impl Fn(&StepSummary, Option<&StepSummary>) -> bool,
    ) -> Option<StepId> {
        let here = self.here()?;
        let before = |s: &StepSummary| s.step.checked_sub(1).and_then(|p| self.timeline.get(p));
        let hit = |s: &&StepSummary| wanted(s, before(s));
        let found = if forward {
            self.timeline.iter().filter(|s| s.step > here).find(hit)
        } else {
            self.timeline.iter().rev().filter(|s| s.step < here).find(hit)
        };
        found.map(|s| s.step)
    }

    pub(super) fn seek_eviction(&mut self, forward: bool) {
        match self.seek(forward, |s, _| s.victims > 0) {
            Some(step) => self.show(Some(step)),
            None => self.say(format!("no {} eviction", if forward { "later" } else { "earlier" })),
        }
    }

    pub(super) fn seek_mark(&mut self, forward: bool) {
        let Some(here) = self.here() else { return };
        let found = if self.bookmarks.is_empty() {
            let burst = |s: &StepSummary, before: Option<&StepSummary>| {
                s.victims > before.map_or(0, |b| b.victims.saturating_mul(BURST))
            };
            self.seek(forward, burst)
        } else if forward {
            self.bookmarks.range((Bound::Excluded(here), Bound::Unbounded)).next().copied()
        } else {
            self.bookmarks.range(..here).next_back().copied()
        };
        match found {
            Some(step) => self.show(Some(step)),
            None => self.say(format!("no {} bookmark or burst", if forward { "later" } else { "earlier" })),
        }
    }

    pub(super) fn toggle_bookmark(&mut self) {
        let Some(step) = self.step() else { return };
        let added = !self.bookmarks.remove(&step);
        if added {
            self.bookmarks.insert(step);
        }
        self.say(format!("bookmark {} step {step}", if added { "at" } else { "removed from" }));
    }

    // The axis.

    /// The range shown, all known steps by default.
    fn axis(&self) -> Option<(StepId, StepId)> {
        self.time.range.or_else(|| self.known_steps())
    }

    /// Zooms so that the shown step keeps its place.
    pub(super) fn zoom_time(&mut self, factor: f64) {
        let (Some((a, b)), Some((first, last)), Some(here)) = (self.axis(), self.known_steps(), self.here())
        else {
            return;
        };
        let here = here.clamp(a, b);
        let shrink = |span: u64| (span as f64 * factor).round() as u64;
        let (left, right) = (shrink(here - a), shrink(b - here));
        // At least a few steps, or zooming out again could not grow.
        let right = if factor > 1.0 && left + right < 4 { 4 } else { right };
        self.set_axis(here.saturating_sub(left), here.saturating_add(right), first, last);
    }

    pub(super) fn pan_time(&mut self, direction: i64) {
        let (Some((a, b)), Some((first, last))) = (self.axis(), self.known_steps()) else { return };
        let span = b - a;
        let by = (span / 4).max(1) as i64 * direction;
        let start = a.saturating_add_signed(by).clamp(first, last.saturating_sub(span).max(first));
        self.set_axis(start, start + span, first, last);
    }

    fn set_axis(&mut self, a: StepId, b: StepId, first: StepId, last: StepId) {
        let (a, b) = (a.max(first), b.min(last));
        self.time.range = (a > first || b < last).then_some((a, b.max(a)));
    }

    /// The cursor never leaves the axis: it takes the axis along.
    fn keep_axis_around(&mut self, step: StepId) {
        if let Some((a, b)) = self.time.range.filter(|&(a, b)| step < a || step > b) {
            let span = b - a;
            let start = if step < a { step } else { step - span.min(step) };
            self.time.range = Some((start, start + span));
        }
    }

    pub(super) fn centre_time(&mut self) {
        let (Some((a, b)), Some((first, last)), Some(here)) = (self.axis(), self.known_steps(), self.here())
        else {
            return;
        };
        let span = b - a;
        let start = here.saturating_sub(span / 2).clamp(first, last.saturating_sub(span).max(first));
        if self.time.range.is_none() || start == a {
            self.time.range = None;
        } else {
            self.set_axis(start, start + span, first, last);
        }
    }

    pub(super) fn start_range(&mut self) {
        if let Some(here) = self.here() {
            self.time.selection = Some((here, here));
            self.say("move to extend the range, Enter zooms to it, L loops it".to_owned());
        }
    }

    pub(super) fn swap_range(&mut self) {
        if let Some((anchor, head)) = self.time.selection {
            self.time.selection = Some((head, anchor));
            self.show(Some(anchor));
        }
    }

    pub(super) fn zoom_to_range(&mut self) {
        if let Some((a, b)) = self.time.selection.take() {
            self.time.range = Some((a.min(b), a.max(b)));
        }
    }

    pub(super) fn toggle_loop(&mut self) {
        if self.time.looped.take().is_some() {
            return self.say("no loop".to_owned());
        }
        let selected = self.time.selection.take().map(|(a, b)| (a.min(b), a.max(b)));
        if self.is_live() {
            return self.say("loops are for recordings".to_owned());
        }
        if let Some((a, b)) = selected.or_else(|| self.axis()) {
            self.time.looped = Some((a, b));
            self.say(format!("steps {a} to {b} again and again"));
            self.show(Some(a));
        }
    }

    pub(super) fn next_scale(&mut self) {
        self.scale = match self.scale {
            Scale::Linear => Scale::Log,
            Scale::Log => Scale::Rank,
            Scale::Rank => Scale::Linear,
        };
        self.say(format!("{:?} scale", self.scale).to_lowercase());
    }
}
