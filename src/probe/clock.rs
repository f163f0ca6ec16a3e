//! A monotonic clock that starts with the run, and a stopwatch for the phases of a step.

use std::time::Instant;

use crate::event::{Layer, PHASES, Phase};

/// Nanoseconds since the run began. Copies share their origin.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that reads 0 now.
    #[expect(clippy::new_without_default, reason = "a clock starts when it is told to")]
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }

    /// Time since the run began.
    pub fn now_ns(&self) -> u64 {
        // 2^64 ns are 584 years.
        self.origin.elapsed().as_nanos() as u64
    }
}

/// Splits a step's time into phases, by layer.
///
/// A lap ends the time since the previous lap and books it. What reading the clock costs, measured when the timer is
/// made, is booked as [`Phase::Probe`] instead of the lap's own phase, so that the phases still add up to the time that
/// passed. Nothing is allocated between steps. A timer that is off only tells a step's start and duration.
#[derive(Clone, Debug)]
pub struct PhaseTimer {
    clock: Clock,
    on: bool,
    lap_cost_ns: u64,
    start_ns: u64,
    mark_ns: u64,
    layers: Vec<[u64; PHASES]>,
    outer: [u64; PHASES],
}

/// When a step ran, and what observing it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTime {
    /// Start, since the run began.
    pub start_ns: u64,
    /// Duration.
    pub wall_ns: u64,
    /// [`Phase::Probe`] within it, layers and the rest together, the timer's own cost included.
    pub probe_ns: u64,
}

impl PhaseTimer {
    /// A timer for a model of `layers` layers, on.
    pub fn new(clock: Clock, layers: usize) -> Self {
        Self {
            clock,
            on: true,
            lap_cost_ns: lap_cost_ns(clock),
            start_ns: clock.now_ns(),
            mark_ns: clock.now_ns(),
            layers: vec![[0; PHASES]; layers],
            outer: [0; PHASES],
        }
    }

    /// Begins a step; all phases are 0. `on` says whether its laps are taken: they may be sampled.
    pub fn begin(&mut self, on: bool) {
        self.on = on;
        self.layers.fill([0; PHASES]);
        self.outer = [0; PHASES];
        self.start_ns = self.clock.now_ns();
        self.mark_ns = self.start_ns;
    }

    /// Books the time since the previous lap (or the beginning) under a phase, of a layer or outside the layers. A layer
    /// that the model does not have counts as outside.
    #[inline]
    pub fn lap(&mut self, layer: Option<Layer>, phase: Phase) {
        if self.on {
            let now_ns = self.clock.now_ns();
            self.book(layer, phase, now_ns);
        }
    }

    /// Lets the time since the previous lap go unbooked: a wait that belongs to no phase, such as the pace.
    pub fn skip(&mut self) {
        if self.on {
            self.mark_ns = self.clock.now_ns();
        }
    }

    /// Books time that a device clocked itself.
    pub fn add(&mut self, layer: Option<Layer>, phase: Phase, ns: u64) {
        if self.on {
            self.phases_of(layer)[phase as usize] += ns;
        }
    }

    /// Moves time within a layer (or outside) from one phase to another, at most what is there: for a call that was
    /// clocked as a whole and knows its own parts.
    pub fn shift(&mut self, layer: Option<Layer>, from: Phase, to: Phase, ns: u64) {
        let phases = self.phases_of(layer);
        let ns = ns.min(phases[from as usize]);
        phases[from as usize] -= ns;
        phases[to as usize] += ns;
    }

    /// Ends the step.
    pub fn finish(&mut self) -> StepTime {
        let wall_ns = self.clock.now_ns().saturating_sub(self.start_ns);
        let probe = Phase::Probe as usize;
        let probe_ns = self.outer[probe] + self.layers.iter().map(|l| l[probe]).sum::<u64>();
        StepTime { start_ns: self.start_ns, wall_ns, probe_ns }
    }

    /// Whether laps are taken in this step.
    pub const fn is_on(&self) -> bool {
        self.on
    }

    /// Time per phase within each layer.
    pub fn layers(&self) -> &[[u64; PHASES]] {
        &self.layers
    }

    /// Time per phase outside the layers.
    pub const fn outer(&self) -> &[u64; PHASES] {
        &self.outer
    }

    /// What one lap costs on this machine (measured when the timer was made).
    pub const fn lap_cost_ns(&self) -> u64 {
        self.lap_cost_ns
    }

    fn book(&mut self, layer: Option<Layer>, phase: Phase, now_ns: u64) {
        let elapsed_ns = now_ns.saturating_sub(self.mark_ns);
        let own_ns = self.lap_cost_ns.min(elapsed_ns);
        self.mark_ns = now_ns;
        let phases = self.phases_of(layer);
        phases[phase as usize] += elapsed_ns - own_ns;
        phases[Phase::Probe as usize] += own_ns;
    }

    fn phases_of(&mut self, layer: Option<Layer>) -> &mut [u64; PHASES] {
        match layer.and_then(|layer| self.layers.get_mut(usize::from(layer))) {
            Some(phases) => phases,
            None => &mut self.outer,
        }
    }
}

/// The smallest of some means: what a reading costs where nothing comes between.
fn lap_cost_ns(clock: Clock) -> u64 {
    const ROUNDS: u64 = 8;
    const READINGS: u64 = 64;
    let mean_ns = |_| {
        let start_ns = clock.now_ns();
        for _ in 1..READINGS {
            std::hint::black_box(clock.now_ns());
        }
        (clock.now_ns() - start_ns) / READINGS
    };
    (0..ROUNDS).map(mean_ns).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(lap_cost_ns: u64) -> PhaseTimer {
        let mut timer = PhaseTimer::new(Clock::new(), 2);
        timer.begin(true);
        (timer.lap_cost_ns, timer.mark_ns) = (lap_cost_ns, 1_000);
        timer
    }

    #[test]
    fn laps_add_up_by_layer_and_the_clocks_cost_goes_to_the_probe() {
        let mut timer = timer(10);
        timer.book(None, Phase::Embed, 1_100);
        timer.book(Some(0), Phase::Score, 1_400);
        timer.book(Some(1), Phase::Score, 1_405);
        timer.book(Some(1), Phase::Score, 1_505);
        timer.book(Some(9), Phase::Logits, 1_600);
        assert_eq!(timer.outer()[Phase::Embed as usize], 90);
        assert_eq!(timer.outer()[Phase::Logits as usize], 85);
        assert_eq!(timer.layers()[0][Phase::Score as usize], 290);
        assert_eq!(timer.layers()[1][Phase::Score as usize], 90);
        assert_eq!(timer.finish().probe_ns, 10 + 10 + 5 + 10 + 10);
        let all: u64 = timer.layers().iter().flatten().chain(timer.outer()).sum();
        assert_eq!(all, 600, "phases add up to the time that passed");
    }

    #[test]
    fn a_shift_never_takes_more_than_there_is() {
        let mut timer = timer(0);
        timer.book(Some(1), Phase::Score, 1_100);
        timer.shift(Some(1), Phase::Score, Phase::WeightedSum, 40);
        timer.shift(Some(1), Phase::Score, Phase::Probe, 400);
        assert_eq!(timer.layers()[1][Phase::WeightedSum as usize], 40);
        assert_eq!(timer.layers()[1][Phase::Probe as usize], 60);
        assert_eq!(timer.layers()[1][Phase::Score as usize], 0);
    }

    #[test]
    fn a_timer_that_is_off_books_nothing_and_a_new_step_starts_from_zero() {
        let mut timer = timer(0);
        timer.book(Some(0), Phase::Mlp, 2_000);
        assert_eq!(timer.layers()[0][Phase::Mlp as usize], 1_000);
        timer.begin(false);
        timer.lap(Some(0), Phase::Mlp);
        timer.skip();
        assert!(timer.layers().iter().flatten().chain(timer.outer()).all(|&ns| ns == 0));
        assert!(!timer.is_on());
    }

    #[test]
    fn steps_lie_within_the_run() {
        let clock = Clock::new();
        let mut timer = PhaseTimer::new(clock, 1);
        let before_ns = clock.now_ns();
        timer.begin(true);
        timer.lap(None, Phase::Embed);
        let time = timer.finish();
        assert!(time.start_ns >= before_ns && time.start_ns + time.wall_ns <= clock.now_ns());
        assert!(time.probe_ns <= time.wall_ns);
    }
}
