//! The fingerprint by which live and replay are compared.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::SeqState;
use crate::event::{Crush, Merge, Step, TableOps};

/// A chained hash over decisions, residency, token ids and byte counts. Clock readings, histograms, overhead,
/// attention pictures and drop counts are left out: the same seed and build give the same hash again.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash([u8; 32]);

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateHash({self})")
    }
}

impl StateHash {
    /// The hash after one more step; `seqs` are the sequences as folded, so residency is what the reducer derived, not
    /// what the step claims.
    pub(super) fn chain(self, step: &Step, seqs: &[SeqState]) -> Self {
        let mut h = Hasher(blake3::Hasher::new());
        h.0.update(&self.0);
        h.number(step.step);
        for part in &step.seqs {
            h.number(part.seq.into());
            h.number(part.first.into());
            h.numbers(part.fed.iter().map(|t| t.id));
            h.optional(part.sampled.as_ref().map(|t| t.id));
            h.optional(part.finish.map(|f| f as u32));
            part.tables.iter().for_each(|ops| h.table(ops));
            for e in &part.evictions {
                h.number(e.layer.into());
                h.optional(e.head.map(u32::from));
                h.number(e.reason as u64);
                h.optional(e.cutoff.map(f32::to_bits));
                h.numbers(e.positions.iter().copied());
                h.numbers(e.scores.iter().map(|s| u32::from(s.to_bits())));
            }
            part.merges.iter().for_each(|merge| h.merge(merge));
            part.crush.iter().for_each(|crush| h.crush(crush));
            if let Some(seq) = seqs.get(part.seq as usize) {
                h.numbers(seq.resident.iter().copied());
            }
        }
        for tier in &step.tiers {
            h.number(tier.tier as u64);
            for bytes in [tier.live_bytes, tier.stranded_bytes, tier.unfilled_bytes, tier.copies_bytes] {
                h.number(bytes);
            }
        }
        for t in &step.traffic {
            h.number(t.layer.into());
            for n in [t.h2d_bytes, t.d2h_bytes, t.rows, t.asked_rows, t.reused_rows] {
                h.number(n);
            }
        }
        // What a picture looked up is left out.
        for r in &step.reads {
            h.number(r.layer.into());
            r.counts()[..8].iter().for_each(|&n| h.number(n));
        }
        for t in &step.tuning {
            for text in [&t.name, &t.from, &t.to] {
                h.text(text);
            }
        }
        Self(*h.0.finalize().as_bytes())
    }
}

/// Feeds numbers in a self-delimiting form.
struct Hasher(blake3::Hasher);

impl Hasher {
    fn number(&mut self, n: u64) {
        self.0.update(&n.to_le_bytes());
    }

    fn numbers(&mut self, ns: impl ExactSizeIterator<Item = u32>) {
        self.number(ns.len() as u64);
        ns.for_each(|n| {
            self.0.update(&n.to_le_bytes());
        });
    }

    fn optional(&mut self, n: Option<u32>) {
        self.number(n.map_or(u64::MAX, u64::from));
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    /// Nothing is fed where nothing was merged, so that such runs keep their hashes.
    fn merge(&mut self, merge: &Merge) {
        self.text("merge");
        self.number(merge.layer.into());
        self.number(merge.head.into());
        self.optional(merge.with.map(u32::from));
        self.number(merge.merged.into());
        self.number(merge.apart.into());
        self.text(&merge.fates.0);
        self.optional(merge.threshold.map(f32::to_bits));
        self.number(merge.arcs.len() as u64);
        for arc in &merge.arcs {
            self.numbers([arc.from, arc.into, arc.targets, arc.weight.to_bits()].into_iter());
        }
    }

    /// Who was kept to stand for others is decided too, and victims do not tell it.
    fn crush(&mut self, crush: &Crush) {
        self.number(crush.layer.into());
        self.numbers(crush.first.iter().copied());
        self.text(&crush.fates);
        self.numbers(crush.distances.iter().copied());
    }

    fn table(&mut self, ops: &TableOps) {
        self.number(ops.layer.into());
        self.optional(ops.head.map(u32::from));
        self.numbers(ops.adopted.iter().copied());
        self.number(ops.copied.len() as u64);
        for &(from, to) in &ops.copied {
            self.number(from.into());
            self.number(to.into());
        }
        self.numbers(ops.taken.iter().copied());
        self.numbers(ops.freed.iter().copied());
        self.number(ops.compacted.into());
    }
}
