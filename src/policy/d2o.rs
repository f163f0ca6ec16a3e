//! D2O: heavy hitters under layer budgets, and victims that go into kept tokens like them.
//!
//! Source: Wan et al., "D2O: Dynamic Discriminative Operations for Efficient Long-Context Inference of Large Language
//! Models", arXiv 2406.13035; rule read in the authors' code (AIoT-MLSys-Lab/D2O). It has two halves, and here they are
//! two: what is lost is an evictor's decision, and what becomes of it is a [merge](merge) that stands behind any evictor.

pub(super) mod merge;

use super::registry::{Evidence, Source};

const SOURCE: Source = Source {
    paper: "D2O: Dynamic Discriminative Operations for Efficient Long-Context Inference of Large Language Models",
    arxiv: "2406.13035",
    at: "github.com/AIoT-MLSys-Lab/D2O",
    evidence: Evidence::Source,
};
