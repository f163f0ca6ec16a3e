//! One sequence's side of the cache.

use std::collections::BTreeMap;

use super::config::CacheConfig;
use super::nuq::Calibration;
use super::prefix::Chain;
use super::table::LayerTable;
use crate::event::{Head, Layer, Position, TableOps};

/// What may come next in a layer within the step. Each turn may be skipped, none repeated or taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Adoption and appends, then one decision.
    Append,
    /// The decision was made.
    Compact,
    /// Survivors were moved.
    Done,
}

#[derive(Clone, Debug)]
pub(super) struct Sequence {
    pub(super) tables: Vec<LayerTable>,
    pub(super) turns: Vec<Turn>,
    /// The position to append next.
    pub(super) next: Position,
    /// Per layer, one past the last position whose rows are there.
    pub(super) written: Vec<Position>,
    /// Per layer, how often slots changed other than by appends.
    pub(super) rearranged: Vec<u64>,
    pub(super) chain: Chain,
    /// Nothing was evicted, nothing read in part, nothing put into codes: its pages can be shared.
    pub(super) lossless: bool,
    /// How rows go into codes where that is calibrated; `None` for other types of pages.
    pub(super) calibration: Option<Calibration>,
    pending: BTreeMap<(Layer, Option<Head>), TableOps>,
}

impl Sequence {
    pub(super) fn new(config: &CacheConfig) -> Self {
        let layers = usize::from(config.shape.layers);
        let table =
            LayerTable::new(config.shape.kv_heads, config.block_size).expect("the configuration was checked");
        Self {
            tables: vec![table; layers],
            next: 0,
            turns: vec![Turn::Append; layers],
            written: vec![0; layers],
            rearranged: vec![0; layers],
            chain: Chain::default(),
            lossless: !config.dtype.is_coded(),
            calibration: Calibration::of(config),
            pending: BTreeMap::new(),
        }
    }

    /// Whether nothing was ever appended.
    pub(super) const fn is_fresh(&self) -> bool {
        self.next == 0
    }

    /// The pending record of a layer's gang, or of one of its heads.
    pub(super) fn ops(&mut self, layer: Layer, head: Option<Head>) -> &mut TableOps {
        self.pending.entry((layer, head)).or_insert_with(|| TableOps { layer, head, ..TableOps::default() })
    }

    pub(super) fn take_ops(&mut self) -> Vec<TableOps> {
        self.turns.fill(Turn::Append);
        std::mem::take(&mut self.pending).into_values().collect()
    }
}
