//! Histograms: per phase, per layer, and the figures users quote.
//!
//! All times are engine time: pauses and `--pace` are left out. Prefill chunks and decode tokens are kept apart.

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer, V2Serializer};
use serde::{Deserialize, Serialize};

use super::SeqState;
use crate::event::{PHASES, Phase, Provenance, Stage, Step};

/// Significant decimal digits: values are exact to 1 %.
const DIGITS: u8 = 2;
/// Longest time told apart: thirteen days.
const MAX_NS: u64 = 1 << 50;
/// Header of HdrHistogram's V2 form: cookie, bytes of counts, offset, digits, lowest and highest value, ratio.
const HEADER_BYTES: usize = 40;
/// Most histograms in a row of a keyframe.
const MAX_HISTOGRAMS: usize = super::MAX_LAYERS as usize;

/// The usual summary of a histogram, ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// Values recorded.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Largest.
    pub max: u64,
}

impl Quote {
    /// Summary of `h`; all zero when it is empty.
    pub fn of(h: &Histogram<u64>) -> Self {
        if h.is_empty() {
            return Self::default();
        }
        Self {
            count: h.len(),
            p50: h.value_at_quantile(0.5),
            p90: h.value_at_quantile(0.9),
            p99: h.value_at_quantile(0.99),
            max: h.max(),
        }
    }
}

/// Histograms of one stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseHistograms {
    /// Whole steps.
    #[serde(with = "one")]
    pub steps: Histogram<u64>,
    /// By [`Phase`], summed over layers.
    #[serde(with = "many")]
    pub phases: Vec<Histogram<u64>>,
    /// By layer, summed over phases.
    #[serde(with = "many")]
    pub layers: Vec<Histogram<u64>>,
}

impl PhaseHistograms {
    fn new(layers: usize) -> Self {
        Self { steps: empty(), phases: vec![empty(); PHASES], layers: vec![empty(); layers] }
    }

    /// Steps whose phases were clocked: on a device, where that costs, not all are.
    pub fn clocked(&self) -> u64 {
        self.layers.first().map_or(self.steps.len(), Histogram::len)
    }

    /// What the times of phases are.
    pub fn timing(&self) -> Provenance {
        if self.clocked() < self.steps.len() { Provenance::Sampled } else { Provenance::Measured }
    }

    fn fold(&mut self, step: &Step) {
        record(&mut self.steps, step.wall_ns);
        for phase in Phase::ALL {
            let ns = step.phase_ns(phase);
            if ns > 0 {
                record(&mut self.phases[phase as usize], ns);
            }
        }
        for (h, ns) in self.layers.iter_mut().zip(&step.layer_ns) {
            record(h, ns.iter().sum());
        }
    }
}

/// Every histogram of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Prefill chunks.
    pub prefill: PhaseHistograms,
    /// Decode steps.
    pub decode: PhaseHistograms,
    /// Time to first token, one value per sequence and turn.
    #[serde(with = "one")]
    pub first_token: Histogram<u64>,
    /// Time per generated token after the first.
    #[serde(with = "one")]
    pub per_token: Histogram<u64>,
    /// First token fed to the last sampled, one value per finished sequence and turn.
    #[serde(with = "one")]
    pub end_to_end: Histogram<u64>,
    /// Time spent observing, all steps.
    pub probe_ns: u64,
    /// Duration of all steps.
    pub wall_ns: u64,
    /// Tokens sampled in decode steps and the duration of those steps, for tokens per second.
    pub decoded: (u64, u64),
}

impl Latency {
    pub(super) fn new(layers: usize) -> Self {
        Self {
            prefill: PhaseHistograms::new(layers),
            decode: PhaseHistograms::new(layers),
            first_token: empty(),
            per_token: empty(),
            end_to_end: empty(),
            probe_ns: 0,
            wall_ns: 0,
            decoded: (0, 0),
        }
    }

    pub(super) fn fold(&mut self, step: &Step, seqs: &[SeqState]) {
        let prefill = step.stage() == Stage::Prefill;
        if prefill {
            self.prefill.fold(step);
        } else {
            self.decode.fold(step);
        }
        self.probe_ns = self.probe_ns.saturating_add(step.probe.ns);
        self.wall_ns = self.wall_ns.saturating_add(step.wall_ns);
        if !prefill {
            let sampled = step.seqs.iter().filter(|s| s.sampled.is_some()).count() as u64;
            self.decoded.0 += sampled;
            self.decoded.1 = self.decoded.1.saturating_add(step.wall_ns);
        }
        for part in &step.seqs {
            let Some(seq) = seqs.get(part.seq as usize) else { continue };
            if part.sampled.is_some() {
                // A later turn has a first token of its own.
                if seq.sampled_count == 1 || part.stage == Stage::Prefill {
                    record(&mut self.first_token, seq.engine_ns);
                } else {
                    record(&mut self.per_token, step.wall_ns);
                }
            }
            if part.finish.is_some() {
                record(&mut self.end_to_end, seq.engine_ns);
            }
        }
    }

    /// What the times of phases and of copies are, both stages together.
    pub fn timing(&self) -> Provenance {
        let all_clocked =
            [&self.prefill, &self.decode].map(PhaseHistograms::timing) == [Provenance::Measured; 2];
        if all_clocked { Provenance::Measured } else { Provenance::Sampled }
    }

    /// Generated tokens per second of decode time, all sequences together; `None` before the first. Derived:
    /// tokens sampled in decode steps / their duration.
    pub fn tokens_per_s(&self) -> Option<f64> {
        (self.decoded.1 > 0).then(|| self.decoded.0 as f64 * 1e9 / self.decoded.1 as f64)
    }

    /// Share of the steps' time spent observing. Derived: probe time / wall time.
    pub fn probe_overhead(&self) -> f64 {
        if self.wall_ns == 0 { 0.0 } else { self.probe_ns as f64 / self.wall_ns as f64 }
    }

    /// Every histogram by name, in HdrHistogram's V2 deflate form.
    pub fn encoded(&self) -> Vec<(String, Vec<u8>)> {
        let mut out = Vec::new();
        let mut put = |name: String, h: &Histogram<u64>| {
            let mut bytes = Vec::new();
            V2DeflateSerializer::new().serialize(h, &mut bytes).expect("writing to memory");
            out.push((name, bytes));
        };
        for (stage, set) in [("prefill", &self.prefill), ("decode", &self.decode)] {
            put(format!("{stage}/step"), &set.steps);
            for phase in Phase::ALL {
                put(format!("{stage}/phase/{}", phase.name()), &set.phases[phase as usize]);
            }
            for (l, h) in set.layers.iter().enumerate() {
                put(format!("{stage}/layer/{l}"), h);
            }
        }
        put("time to first token".into(), &self.first_token);
        put("time per token".into(), &self.per_token);
        put("end to end".into(), &self.end_to_end);
        out
    }
}

fn empty() -> Histogram<u64> {
    Histogram::new(DIGITS).expect("2 digits is in range")
}

/// Times are clamped to 13 days: an auto-resizing histogram grows with its largest value.
fn record(h: &mut Histogram<u64>, ns: u64) {
    h.record(ns.clamp(1, MAX_NS)).expect("auto-resizing covers every clamped value");
}

fn to_bytes(h: &Histogram<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    V2Serializer::new().serialize(h, &mut bytes).expect("writing to memory");
    bytes
}

/// The header decides how much memory a histogram takes, so it is checked before the crate believes it.
fn from_bytes(bytes: &[u8]) -> Result<Histogram<u64>, String> {
    let field = |at: usize, len: usize| {
        bytes.get(at..at + len).map(|b| b.iter().fold(0u64, |n, &byte| n << 8 | u64::from(byte)))
    };
    // The crate makes room for as many bytes of counts as the header claims, before it looks for them.
    if field(4, 4) != bytes.len().checked_sub(HEADER_BYTES).map(|n| n as u64) {
        return Err("a histogram that is cut".into());
    }
    let (digits, lowest, highest) = (field(12, 4), field(16, 8), field(24, 8));
    if digits != Some(DIGITS.into()) || lowest != Some(1) || highest.is_none_or(|ns| ns >= 2 * MAX_NS) {
        return Err("not a histogram of this version".into());
    }
    let mut h: Histogram<u64> =
        Deserializer::new().deserialize(&mut &bytes[..]).map_err(|e| format!("histogram: {e}"))?;
    h.auto(true);
    Ok(h)
}

mod one {
    use hdrhistogram::Histogram;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(h: &Histogram<u64>, s: S) -> Result<S::Ok, S::Error> {
        super::to_bytes(h).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Histogram<u64>, D::Error> {
        super::from_bytes(&Vec::<u8>::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

mod many {
    use hdrhistogram::Histogram;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(hs: &[Histogram<u64>], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(hs.iter().map(super::to_bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Histogram<u64>>, D::Error> {
        let all = Vec::<Vec<u8>>::deserialize(d)?;
        if all.len() > super::MAX_HISTOGRAMS {
            return Err(serde::de::Error::custom("too many histograms"));
        }
        all.iter().map(|bytes| super::from_bytes(bytes).map_err(serde::de::Error::custom)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_that_claims_more_than_its_bytes_is_refused() {
        let mut h = empty();
        record(&mut h, 1_000);
        let sound = to_bytes(&h);
        assert_eq!(from_bytes(&sound).as_ref(), Ok(&h));
        for claimed in [u32::MAX, 0, 1 << 29] {
            let mut bytes = sound.clone();
            bytes[4..8].copy_from_slice(&claimed.to_be_bytes());
            assert_eq!(from_bytes(&bytes), Err("a histogram that is cut".into()));
        }
        for len in 0..sound.len() {
            assert!(from_bytes(&sound[..len]).is_err());
        }
    }
}
