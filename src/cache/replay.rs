//! Tables from recorded steps: what a reducer does instead of holding pages.

use std::collections::BTreeMap;

use super::table::{AppendError, LayerTable, MAX_TABLE_SLOTS, TableError, Victims};
use crate::event::{BlockId, Eviction, Head, Layer, Position, SeqStep, TableOps};

/// What compaction moved in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Layers that were compacted.
    pub layers: u64,
    /// Rows that moved, one per (token, KV head).
    pub rows: u64,
}

impl Compacted {
    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { layers: self.layers.saturating_add(other.layers), rows: self.rows.saturating_add(other.rows) }
    }
}

/// Applies one sequence's part of a step to its tables, one per layer: blocks adopted (they hold the first of the tokens
/// fed), the other tokens appended to the blocks taken, victims evicted, empty blocks released, shared blocks copied, survivors compacted.
///
/// Copies come so late because compaction is what writes into a shared (always full) block; a block may have been taken,
/// shared and copied within one step, and the heads may have parted in it.
///
/// Returns what compaction moved.
///
/// # Errors
/// The step does not fit the tables (a damaged or hostile recording). The tables are then of no use any more.
pub fn replay(tables: &mut [LayerTable], step: &SeqStep) -> Result<Compacted, TableError> {
    let mut ops: Vec<&TableOps> = step.tables.iter().collect();
    ops.sort_by_key(|o| o.layer);
    let mut evictions: Vec<&Eviction> = step.evictions.iter().collect();
    evictions.sort_by_key(|e| e.layer);
    let last = ops.last().map(|o| (o.layer, o.head)).max(evictions.last().map(|e| (e.layer, e.head)));
    if let Some((layer, head)) = last.filter(|&(layer, _)| usize::from(layer) >= tables.len()) {
        return Err(TableError::NoLane { layer, head });
    }
    let (mut ops, mut evictions) = (&*ops, &*evictions);
    let mut compacted = Compacted::default();
    for (layer, table) in tables.iter_mut().enumerate() {
        let layer = layer as Layer;
        let mine = LayerStep {
            layer,
            ops: take_layer(&mut ops, |o| o.layer == layer),
            evictions: take_layer(&mut evictions, |e| e.layer == layer),
        };
        compacted = compacted.and(mine.apply(table, step)?);
    }
    Ok(compacted)
}

/// Cuts the leading items of one layer off a sorted slice.
fn take_layer<'s, T>(sorted: &mut &'s [T], is_layer: impl Fn(&T) -> bool) -> &'s [T] {
    let (mine, rest) = sorted.split_at(sorted.partition_point(is_layer));
    *sorted = rest;
    mine
}

struct LayerStep<'s> {
    layer: Layer,
    ops: &'s [&'s TableOps],
    evictions: &'s [&'s Eviction],
}

impl LayerStep<'_> {
    fn misfit(&self, what: &'static str) -> TableError {
        TableError::Blocks { layer: self.layer, what }
    }

    fn apply(&self, table: &mut LayerTable, step: &SeqStep) -> Result<Compacted, TableError> {
        let adopted = self.adopt(table)?;
        self.append(table, step, adopted)?;
        self.evict(table)?;
        let mut freed = table.release_empty();
        self.copy(table)?;
        let mut compacted = Compacted::default();
        if self.ops.iter().any(|o| o.compacted) {
            compacted.layers = 1;
            for lane in table.compact() {
                let heads = if lane.head.is_some() { 1 } else { u64::from(table.heads()) };
                compacted.rows += heads * lane.moves.iter().map(|run| u64::from(run.len)).sum::<u64>();
                freed.extend(lane.freed.iter().map(|&id| (lane.head, id)));
            }
        }
        self.check_freed(freed)?;
        Ok(compacted)
    }

    /// Ids of a whole gang must be ids.
    fn check_ids(
        &self,
        table: &LayerTable,
        mut ids: impl Iterator<Item = BlockId>,
        what: &'static str,
    ) -> Result<(), TableError> {
        let largest = BlockId::MAX - BlockId::from(table.heads() - 1);
        if ids.any(|id| id > largest) { Err(self.misfit(what)) } else { Ok(()) }
    }

    /// Returns how many of the step's leading tokens the adopted blocks hold.
    fn adopt(&self, table: &mut LayerTable) -> Result<usize, TableError> {
        let mut adopted = 0;
        for ops in self.ops.iter().filter(|o| !o.adopted.is_empty()) {
            self.check_ids(table, ops.adopted.iter().copied(), "adopted")?;
            let tokens = ops.adopted.len().saturating_mul(table.block_size() as usize);
            table.adopt(&ops.adopted, tokens)?;
            adopted += tokens;
        }
        Ok(adopted)
    }

    fn append(&self, table: &mut LayerTable, step: &SeqStep, adopted: usize) -> Result<(), TableError> {
        let rest = step.fed.len().checked_sub(adopted).ok_or_else(|| self.misfit("adopted"))?;
        let first = step.first.checked_add(adopted as Position).ok_or(TableError::OutOfOrder(step.first))?;
        // (key, id) in the order in which the table asks: stable, so ids of one lane keep their order.
        let mut taken: Vec<(Option<Head>, BlockId)> =
            self.ops.iter().flat_map(|o| o.taken.iter().map(|&id| (o.head, id))).collect();
        taken.sort_by_key(|&(head, _)| head);
        self.check_ids(table, taken.iter().map(|&(_, id)| id), "taken")?;
        let mut next = taken.iter();
        let take = |key| next.next().filter(|(head, _)| *head == key).map(|&(_, id)| id).ok_or(());
        table.append(first, rest, take).map_err(|error| match error {
            AppendError::Refused(error) => error,
            AppendError::Take { .. } => self.misfit("taken"),
        })?;
        if next.next().is_some() { Err(self.misfit("taken")) } else { Ok(()) }
    }

    /// A layer decides once per step, though the record may list the victims in parts: by head, by reason.
    fn evict(&self, table: &mut LayerTable) -> Result<(), TableError> {
        let mut all: Vec<Position> = Vec::new();
        let mut by_head: BTreeMap<Head, Vec<Position>> = BTreeMap::new();
        for eviction in self.evictions {
            match eviction.head {
                None => all.extend_from_slice(&eviction.positions),
                Some(head) if head < table.heads() => {
                    by_head.entry(head).or_default().extend_from_slice(&eviction.positions);
                }
                head => return Err(TableError::NoLane { layer: self.layer, head }),
            }
        }
        all.sort_unstable();
        if by_head.is_empty() {
            return table.evict(&Victims::All(&all));
        }
        let slots = all.len().saturating_mul(by_head.len());
        if slots > MAX_TABLE_SLOTS {
            return Err(TableError::TooLong { slots: slots as u64, limit: MAX_TABLE_SLOTS });
        }
        for positions in by_head.values_mut() {
            positions.extend_from_slice(&all);
            positions.sort_unstable();
        }
        let sets: Vec<&[Position]> =
            (0..table.heads()).map(|head| by_head.get(&head).map_or(&*all, |set| set)).collect();
        table.evict(&Victims::PerHead(&sets))
    }

    fn copy(&self, table: &mut LayerTable) -> Result<(), TableError> {
        let copied = || self.ops.iter().flat_map(|o| o.copied.iter().copied());
        self.check_ids(table, copied().map(|(_, to)| to), "copied")?;
        copied().try_for_each(|(from, to)| table.replace_block(from, to))
    }

    /// The blocks given back follow from the decisions; a recording that says otherwise is damaged.
    fn check_freed(&self, mut derived: Vec<(Option<Head>, BlockId)>) -> Result<(), TableError> {
        let mut recorded: Vec<(Option<Head>, BlockId)> =
            self.ops.iter().flat_map(|o| o.freed.iter().map(|&id| (o.head, id))).collect();
        recorded.sort_unstable();
        derived.sort_unstable();
        if recorded == derived { Ok(()) } else { Err(self.misfit("freed")) }
    }
}

#[cfg(test)]
mod tests;
