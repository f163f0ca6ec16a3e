//! KCache: all K stays on the device, V lives on the host, and a step brings back the N rows that matter.
//!
//! Source: He and Wu, "Efficient LLM Inference with Kcache", arXiv 2404.18057; mechanism read in the abstract. A query
//! head computes its probabilities over all cached K, and only the N rows of V with the highest are pulled; the first
//! L layers are exempt and read everything. Only the abstract could be read, so what it leaves open is our reading,
//! and two switches say so: `renorm` (scale the N probabilities to sum to 1; off) and `include_self` (the new token is
//! read beside the N, not among them; on). Ties in the top N go to the lower position.
//!
//! The rule's numbers are here; the selection itself is attention's.

use super::param::Param;
use super::read::ReadRule;
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use crate::event::Layer;

pub(super) const ENTRY: Entry = Entry {
    name: "kcache",
    title: "KCache",
    doc: "reads only the N rows of V with the highest probability per query head; V of those layers lives on the host",
    source: Source {
        paper: "Efficient LLM Inference with Kcache",
        arxiv: "2404.18057",
        at: "abstract and introduction",
        evidence: Evidence::Abstract,
    },
    source_defaults: "N of 32, 64 or 128 and L of 0 or 1, as secondary texts report",
    acts: "at every generated token; the prompt reads everything",
    granularity: Granularity::Head,
    params: &[
        Param::int("n", (1, 1 << 20), 64, "rows of V read per query head and step")
            .steps(1.0, 16.0)
            .live()
            .headline(),
        Param::int(
            "l",
            (0, 1024),
            1,
            "first layers that are exempt: they keep V on the device and read it all",
        ),
        Param::switch("renorm", false, "scale the probabilities of the rows read so that they sum to 1")
            .live(),
        Param::switch("include_self", true, "read the new token beside the N rows, not among them").live(),
    ],
    deviations: &[
        "top N per query head; under grouped-query attention the rows pulled are the union over the group",
        "renorm and include_self stand for what the text we could read leaves open",
    ],
    build: Build::Read(|spec| {
        ReadRule::Kcache(Kcache {
            n: spec.int("n"),
            exempt_layers: spec.int("l"),
            renorm: spec.switch("renorm"),
            include_self: spec.switch("include_self"),
        })
    }),
};

/// The numbers of a KCache read set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kcache {
    /// Rows of V read per query head and step, at least 1. With N or fewer cached, everything is read.
    pub n: u32,
    /// First layers that are exempt.
    pub exempt_layers: u32,
    /// Scale the probabilities of the rows read so that they sum to 1.
    pub renorm: bool,
    /// Read the new token beside the N rows, not among them.
    pub include_self: bool,
}

impl Kcache {
    /// Whether a layer reads everything.
    pub const fn is_exempt(&self, layer: Layer) -> bool {
        (layer as u32) < self.exempt_layers
    }

    /// Whether the home of a layer's V is the host; otherwise it is the device, as that of every K.
    pub const fn values_on_host(&self, layer: Layer) -> bool {
        !self.is_exempt(layer)
    }
}
