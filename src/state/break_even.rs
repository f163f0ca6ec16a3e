//! From which context pulling the rows that matter costs less time than reading all of them where they lie.
//!
//! KCache (arXiv 2404.18057) reads the N' rows of V per (sequence, layer, KV head) that it pulls from the host, where the
//! full cache reads all `s` on the device. Decode is bound by bandwidth: with nothing hidden, pulling wins when
//! `(s - N') / read > N' / pull`, so from `s* = N' (1 + read / pull)` on. The expression is ours, the paper's own could not
//! be read. Choosing the rows is not in it: near `s*` the choice decides.
//!
//! Everything comes from what a keyframe holds, so a replay knows it wherever it starts.

use std::ops::Range;

use super::{Quote, SeqState, State, StepSummary};
use crate::event::{LayerTraffic, Phase, Provenance, Stage};
use crate::policy::ReadRule;

/// How fast the decode steps of a run read rows and pull rows, GB/s (bytes per ns). Derived: bytes over time, each the
/// median of the decode steps; launching, gathering and waiting are part of the time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowRates {
    /// Rows read where they lie on the device. On a CPU those are values, over the time of their sum; a GPU scores and
    /// sums in one go, so there it is keys and values over the time of scores, choice and sum.
    pub read_gbps: f64,
    /// Rows pulled from the host.
    pub pull_gbps: f64,
}

/// Where some layers of the newest step stand. All figures are means over its (sequence, layer, KV head); derived.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakEven {
    /// N': rows pulled.
    pub pulled_rows: f64,
    /// `s`: rows that the full cache would read.
    pub context_rows: f64,
    /// At which speed.
    pub rates: RowRates,
}

impl BreakEven {
    /// `s*` at the measured speeds, rows: N' (1 + read / pull).
    pub fn rows(&self) -> f64 {
        self.rows_at(self.rates.pull_gbps)
    }

    /// `s*` over a link of another speed, rows.
    pub fn rows_at(&self, link_gbps: f64) -> f64 {
        self.pulled_rows * (1.0 + self.rates.read_gbps / link_gbps)
    }

    /// How many times `s*` the present context is: from 1 on, pulling costs less.
    pub fn reached(&self) -> f64 {
        self.context_rows / self.rows()
    }
}

impl State {
    /// The speeds of this run; `None` before the first decode step under KCache, and while the newest step is another.
    pub fn row_rates(&self) -> Option<RowRates> {
        let ReadRule::Kcache(kcache) = self.read_rule()? else { return None };
        let newest = self.history.last().filter(|step| pulls(step))?;
        let moved = self.traffic.last_sum();
        // Rows that are kept do not cross the link again.
        let kept_rows = if self.run.settings.keep_pulled { moved.reused_rows } else { 0 };
        let row_bytes = moved.h2d_bytes as f64 / moved.rows.saturating_sub(kept_rows) as f64;
        let typical = |figure: fn(&StepSummary) -> u64| {
            let mut figures: Vec<u64> = self.history.iter().filter(|s| pulls(s)).map(figure).collect();
            let middle = figures.len() / 2;
            *figures.select_nth_unstable(middle).1 as f64
        };
        let pulled_bytes = typical(|step| step.h2d_bytes);
        // The history counts what is resident; how much of it is read, and where, is as in the newest step.
        let resident = typical(|step| step.resident) / newest.resident as f64;
        let exempt = 0..kcache.exempt_layers as usize;
        let (_, exempt_rows) = self.read_in(&exempt);
        let (_, all_rows) = self.read_in(&(0..usize::MAX));
        // The new token's own row never left.
        let own_rows = if kcache.include_self { self.read_in(&(exempt.end..usize::MAX)).0 } else { 0.0 };
        let value_bytes = (exempt_rows * resident + own_rows) * row_bytes + pulled_bytes;
        let ns = |phases: &[Phase]| -> u64 {
            phases.iter().map(|&p| Quote::of(&self.latency.decode.phases[p as usize]).p50).sum()
        };
        let (read_bytes, read_ns) = if self.run.settings.device == "cpu" {
            (value_bytes, ns(&[Phase::WeightedSum]))
        } else {
            let key_bytes = all_rows * resident * row_bytes;
            (key_bytes + value_bytes, ns(&[Phase::Score, Phase::Select, Phase::WeightedSum]))
        };
        // A device that is clocked in some steps tells there how long its copies took, waited for or not.
        let decode = &self.latency.decode;
        let pull_ns = match decode.timing() {
            Provenance::Sampled => {
                let copy_ns = self.traffic.sum().copy_ns.saturating_sub(self.traffic.prompt_copy_ns);
                copy_ns as f64 / decode.clocked() as f64
            }
            _ => ns(&[Phase::VPull]) as f64,
        };
        let (read_gbps, pull_gbps) = (read_bytes / read_ns as f64, pulled_bytes / pull_ns);
        let known = |gbps: f64| gbps.is_finite() && gbps > 0.0;
        (known(read_gbps) && known(pull_gbps)).then_some(RowRates { read_gbps, pull_gbps })
    }

    /// The break-even of the newest step over some layers; `None` where they pulled nothing.
    pub fn break_even(&self, rates: RowRates, layers: Range<usize>) -> Option<BreakEven> {
        let from = self.host_v_from_layer()?;
        let layers = layers.start.max(from)..layers.end;
        let keeps = self.run.settings.keep_pulled;
        let crossing = |t: &LayerTraffic| t.rows.saturating_sub(if keeps { t.reused_rows } else { 0 });
        let pulled: u64 =
            self.traffic.last.get(layers.start..)?.iter().take(layers.len()).map(crossing).sum();
        let (lanes, rows) = self.read_in(&layers);
        let even = BreakEven { pulled_rows: pulled as f64 / lanes, context_rows: rows / lanes, rates };
        (pulled > 0 && lanes > 0.0).then_some(even)
    }

    /// (Sequence, layer, KV head) that took part in the newest step, of some layers, and the rows that they hold, as far as
    /// a window sees them.
    fn read_in(&self, layers: &Range<usize>) -> (f64, f64) {
        let model = &self.run.model;
        let took_part =
            |seq: &&SeqState| seq.tokens.last().is_some_and(|token| Some(token.step) == self.step);
        let lanes = self.seqs.iter().filter(took_part).flat_map(|seq| seq.resident.iter().enumerate());
        lanes
            .map(|(lane, &rows)| (lane / model.kv_heads as usize, rows))
            .filter(|(layer, _)| layers.contains(layer))
            .map(|(layer, rows)| f64::from(model.window(layer).map_or(rows, |window| rows.min(window))))
            .fold((0.0, 0.0), |(lanes, sum), rows| (lanes + 1.0, sum + rows))
    }
}

/// Whether a step decoded, and pulled rows for that.
fn pulls(step: &StepSummary) -> bool {
    step.stage == Stage::Decode && step.h2d_bytes > 0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::step::tests::plain_step;
    use crate::event::{LayerTraffic, ModelCard, RunInfo, Settings, Step, TableOps};

    const STEPS: u64 = 100;

    fn run(read: &str, device: &str) -> Arc<RunInfo> {
        let model = ModelCard { layers: 2, heads: 1, kv_heads: 1, head_dim: 2, ..ModelCard::default() };
        let settings = Settings { read: read.into(), device: device.into(), ..Settings::default() };
        Arc::new(RunInfo { model, settings, ..RunInfo::default() })
    }

    /// Step `i` of a run of two layers; from the tenth on, layer 1 pulls 5 rows of 8 bytes in 20 ns. Summing takes 120 ns.
    fn step(i: u64) -> Step {
        let mut step = plain_step(i);
        let part = &mut step.seqs[0];
        part.resident.push(i as u32 + 1);
        if i.is_multiple_of(16) {
            part.tables[0].taken = vec![i as u32 / 8];
            part.tables.push(TableOps { layer: 1, taken: vec![i as u32 / 8 + 1], ..TableOps::default() });
        }
        step.layer_ns.push(step.layer_ns[0]);
        for (layer, sum_ns) in [(0, 100), (1, 20)] {
            step.layer_ns[layer][Phase::WeightedSum as usize] = sum_ns;
            step.layer_ns[layer][Phase::Score as usize] = 50;
        }
        if i >= 10 {
            step.layer_ns[1][Phase::VPull as usize] = 20;
            step.layer_ns[1][Phase::Select as usize] = 10;
            let moved = LayerTraffic { layer: 1, h2d_bytes: 5 * 8, rows: 5, ..LayerTraffic::default() };
            step.traffic = vec![moved];
        }
        step
    }

    fn folded(run: &Arc<RunInfo>, steps: u64) -> State {
        let mut state = State::new(Arc::clone(run)).unwrap();
        (0..steps).for_each(|i| state.fold(&step(i)).unwrap());
        state
    }

    #[track_caller]
    fn close(a: f64, b: f64) {
        assert!((a / b - 1.0).abs() < 1e-9, "{a} against {b}");
    }

    #[test]
    fn it_follows_from_rows_and_measured_speeds() {
        let run = run("kcache:n=4,l=1", "cpu");
        let state = folded(&run, STEPS);
        let rates = state.row_rates().unwrap();
        close(rates.pull_gbps, 40.0 / 20.0);
        // The step in the middle had 56 tokens: as many values in layer 0, 5 pulled ones and the new one in layer 1.
        close(rates.read_gbps, 62.0 * 8.0 / 120.0);
        let even = state.break_even(rates, 0..2).unwrap();
        assert_eq!((even.pulled_rows, even.context_rows), (5.0, 100.0));
        close(even.rows(), 5.0 * (1.0 + 62.0 * 8.0 / 120.0 / 2.0));
        close(even.reached(), 100.0 / even.rows());
        close(even.rows_at(rates.read_gbps), 10.0);
        assert_eq!(state.break_even(rates, 1..2), Some(even));
        assert_eq!(state.break_even(rates, 0..1), None, "an exempt layer pulls nothing");
        let sought = State::from_keyframe(Arc::clone(&run), &state.keyframe()).unwrap();
        assert_eq!(sought.row_rates(), Some(rates));
        assert_eq!(sought.break_even(rates, 0..2), Some(even));
    }

    #[test]
    fn a_gpu_reads_keys_and_values_in_one_go() {
        let rates = folded(&run("kcache:n=4,l=1", "cuda:0"), STEPS).row_rates().unwrap();
        close(rates.read_gbps, (2.0 * 56.0 + 62.0) * 8.0 / (100.0 + 10.0 + 120.0));
    }

    /// A device is clocked in some steps, of the prompt too: how fast rows are pulled is told by decode steps alone.
    #[test]
    fn a_device_that_is_clocked_now_and_then_pulls_as_fast_as_its_decode_steps_say() {
        let run = run("kcache:n=4,l=1", "cuda:0");
        let mut state = State::new(Arc::clone(&run)).unwrap();
        for i in 0..STEPS {
            let mut step = step(i);
            step.timing = Provenance::Sampled;
            if i < 12 {
                step.seqs[0].stage = Stage::Prefill;
            }
            if i % 32 == 10 {
                // Copies are hidden but for a tenth.
                step.layer_ns[1][Phase::VPull as usize] = 2;
                step.traffic[0].copy_ns = if i == 10 { 7_000 } else { 20 };
            } else {
                step.layer_ns.clear();
                step.outer_ns = Default::default();
            }
            state.fold(&step).unwrap();
        }
        assert_eq!((state.latency.decode.clocked(), state.traffic.sum().copy_ns), (2, 7_040));
        let rates = state.row_rates().unwrap();
        close(rates.pull_gbps, 40.0 / 20.0);
        let sought = State::from_keyframe(run, &state.keyframe()).unwrap();
        assert_eq!(sought.row_rates(), Some(rates));
    }

    #[test]
    fn it_is_not_known_before_rows_were_pulled_nor_without_kcache() {
        assert_eq!(folded(&run("kcache:n=4,l=1", "cpu"), 10).row_rates(), None);
        assert!(folded(&run("kcache:n=4,l=1", "cpu"), 11).row_rates().is_some());
        for read in ["", "quest:budget=64"] {
            assert_eq!(folded(&run(read, "cpu"), STEPS).row_rates(), None);
        }
        let run = run("kcache:n=4,l=1", "cpu");
        let mut state = folded(&run, STEPS);
        let mut prompt = step(STEPS);
        prompt.seqs[0].stage = Stage::Prefill;
        state.fold(&prompt).unwrap();
        assert_eq!(state.row_rates(), None, "a chunk of the prompt pulls everything");
    }
}
