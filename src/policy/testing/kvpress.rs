//! Goldens of NVIDIA/kvpress 0.5.5: which positions it keeps. `tests/kvpress/goldens.py` made them.

use serde::Deserialize;

use crate::event::Position;

/// Where the scores at the cut are nearer than this, relatively, the order of floating-point sums decides.
const CLOSE: f64 = 1e-5;

/// One case: a rule on one layer.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Golden {
    pub(crate) rule: String,
    /// Share of the tokens that goes.
    pub(crate) ratio: f64,
    pub(crate) window: u32,
    pub(crate) layer: crate::event::Layer,
    /// Per KV head, ascending.
    pub(crate) kept: Vec<Vec<Position>>,
    /// Per KV head, from the last kept score to the first lost, as a share of the first.
    pub(crate) gaps: Vec<f64>,
    /// Of random tensors.
    #[serde(default)]
    pub(crate) shape: usize,
    #[serde(default)]
    pub(crate) heads: usize,
    #[serde(default)]
    pub(crate) kv_heads: usize,
    #[serde(default)]
    pub(crate) size: usize,
    #[serde(default)]
    pub(crate) length: usize,
}

/// How the goldens came out.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    /// Heads that keep the same positions.
    pub(crate) equal: usize,
    /// Heads that do not, whose scores at the cut are close.
    pub(crate) close: usize,
    /// Cases whose budget is not more than the window, which kvista refuses.
    pub(crate) refused: usize,
}

impl Golden {
    /// The rule as kvista spells it; `None` where kvista refuses the budget.
    pub(crate) fn policy(&self) -> Option<String> {
        let slots = self.kept.iter().map(Vec::len).sum::<usize>() / self.kept.len();
        let (rule, window) = (self.rule.trim_start_matches("adakv+"), self.window);
        let spelled = match rule {
            "streaming" => format!("streaming:budget={slots},sinks=4"),
            "observed" => format!("h2o:budget={slots},recent=0,variant=kvpress"),
            "tova" => format!("tova:budget={slots},variant=kvpress"),
            "snapkv" => format!("snapkv:budget={slots},window={window},variant=kvpress"),
            "pyramidkv" => {
                format!("pyramidkv:budget={}%,window={window},variant=kvpress", (1.0 - self.ratio) * 100.0)
            }
            other => format!("{other}:budget={slots}"),
        };
        let windowed = matches!(rule, "snapkv" | "pyramidkv");
        let fits = !windowed || slots > window as usize;
        fits.then(|| if self.rule.starts_with("adakv") { spelled + "+adakv" } else { spelled })
    }

    /// Compares what each KV head keeps.
    ///
    /// # Panics
    /// A head keeps other positions although the scores at the cut are apart.
    pub(crate) fn check(&self, kept: &[Vec<Position>], agreement: &mut Agreement) {
        assert_eq!(kept.len(), self.kept.len());
        for (head, (ours, theirs)) in kept.iter().zip(&self.kept).enumerate() {
            if ours == theirs {
                agreement.equal += 1;
                continue;
            }
            let policy = self.policy();
            assert!(
                self.gaps[head] < CLOSE,
                "{policy:?}, shape {}, layer {}, head {head}: {ours:?} kept, by kvpress {theirs:?}",
                self.shape,
                self.layer
            );
            agreement.close += 1;
        }
    }
}
