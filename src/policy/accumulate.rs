//! Accumulators: what attention leaves behind for the rules. This scalar version is the reference.

use crate::event::Position;

/// Which accumulators a rule reads; the others are not kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Needs {
    /// Attention each token has received, summed over all queries so far.
    pub sum: bool,
    /// Attention each token received from the newest query.
    pub last_row: bool,
    /// Queries that could see each token.
    pub count: bool,
}

impl Needs {
    /// Nothing: attention may run without handing out probabilities.
    pub const NONE: Self = Self { sum: false, last_row: false, count: false };

    /// Whether attention must hand out probabilities.
    pub const fn attention(self) -> bool {
        self.sum || self.last_row
    }

    /// The kinds kept, in words; none for a rule that needs no attention.
    pub fn names(self) -> Vec<&'static str> {
        [(self.sum, "sum"), (self.last_row, "last row"), (self.count, "count")]
            .into_iter()
            .filter_map(|(needed, name)| needed.then_some(name))
            .collect()
    }

    /// Everything either side needs.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self {
            sum: self.sum || other.sum,
            last_row: self.last_row || other.last_row,
            count: self.count || other.count,
        }
    }
}

/// The accumulators of one (layer, KV head) of one sequence.
///
/// Rows come per slot and are kept per *position*, so evicting and compacting move nothing here; what was kept for an
/// evicted position is never read again. Four bytes per kind and position of the sequence.
///
/// Under grouped-query attention a row is the mean over the query heads that share the KV head. Sources that sum over
/// heads rank alike: the group size is one constant factor.
#[derive(Clone, Debug, Default)]
pub struct Accumulators {
    needs: Needs,
    sum: Vec<f32>,
    last_row: Vec<f32>,
    count: Vec<u32>,
}

impl Accumulators {
    /// Empty ones of the kinds in `needs`.
    pub fn new(needs: Needs) -> Self {
        Self { needs, ..Self::default() }
    }

    /// The kinds kept.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// Forgets everything; capacity stays.
    pub fn clear(&mut self) {
        self.sum.clear();
        self.last_row.clear();
        self.count.clear();
    }

    /// Takes in a prefill chunk: `col_sums[i]` is the attention that slot `i` received from the chunk's `queries`
    /// queries together, `last_row[i]` that of its last query alone. `positions[i]` is the position in slot `i`, in any
    /// order; the chunk's own tokens are among them and are the `queries` newest in a row.
    ///
    /// A slice of a kind that is not needed may be empty.
    pub fn observe_prefill(
        &mut self,
        positions: &[Position],
        queries: u32,
        col_sums: &[f32],
        last_row: &[f32],
    ) {
        let Some(&newest) = positions.iter().max() else { return };
        self.grow(newest);
        if self.needs.sum {
            add(&mut self.sum, positions, col_sums);
        }
        if self.needs.last_row {
            replace(&mut self.last_row, positions, last_row);
        }
        if self.needs.count {
            for &position in positions {
                // Causal: a token inside the chunk is seen by itself and the queries after it.
                self.count[position as usize] += queries.min(newest - position + 1);
            }
        }
    }

    /// Takes in the row of one query: `row[i]` is the attention on slot `i`, whose position is `positions[i]`.
    pub fn observe_decode(&mut self, positions: &[Position], row: &[f32]) {
        self.observe_prefill(positions, 1, row, row);
    }

    /// Attention received so far; 0 for a position never seen.
    pub fn sum(&self, position: Position) -> f32 {
        self.sum.get(position as usize).copied().unwrap_or_default()
    }

    /// Attention received from the newest query; 0 for a position never seen.
    pub fn last_row(&self, position: Position) -> f32 {
        self.last_row.get(position as usize).copied().unwrap_or_default()
    }

    /// Queries that could see the position.
    pub fn count(&self, position: Position) -> u32 {
        self.count.get(position as usize).copied().unwrap_or_default()
    }

    fn grow(&mut self, newest: Position) {
        let len = newest as usize + 1;
        if self.needs.sum && self.sum.len() < len {
            self.sum.resize(len, 0.0);
        }
        if self.needs.last_row && self.last_row.len() < len {
            self.last_row.resize(len, 0.0);
        }
        if self.needs.count && self.count.len() < len {
            self.count.resize(len, 0);
        }
    }
}

fn add(kept: &mut [f32], positions: &[Position], row: &[f32]) {
    debug_assert_eq!(positions.len(), row.len(), "one value per slot");
    for (&position, &value) in positions.iter().zip(row) {
        kept[position as usize] += value;
    }
}

fn replace(kept: &mut [f32], positions: &[Position], row: &[f32]) {
    debug_assert_eq!(positions.len(), row.len(), "one value per slot");
    for (&position, &value) in positions.iter().zip(row) {
        kept[position as usize] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Needs = Needs { sum: true, last_row: true, count: true };

    #[test]
    fn rows_land_on_positions_whatever_the_slot_order() {
        let mut acc = Accumulators::new(ALL);
        acc.observe_prefill(&[0, 1, 2], 3, &[2.0, 0.75, 0.25], &[0.5, 0.25, 0.25]);
        // Position 1 is evicted and its slot taken by position 3.
        acc.observe_decode(&[0, 3, 2], &[0.5, 0.125, 0.375]);
        assert_eq!([0, 1, 2, 3].map(|p| acc.sum(p)), [2.5, 0.75, 0.625, 0.125]);
        assert_eq!([0, 2, 3].map(|p| acc.last_row(p)), [0.5, 0.375, 0.125]);
        assert_eq!([0, 2, 3, 9].map(|p| acc.count(p)), [4, 2, 1, 0]);
    }

    #[test]
    fn counts_are_causal_in_every_chunk() {
        let mut acc = Accumulators::new(Needs { count: true, ..Needs::NONE });
        acc.observe_prefill(&[0, 1], 2, &[], &[]);
        acc.observe_prefill(&[0, 1, 2, 3, 4], 3, &[], &[]);
        assert_eq!([0, 1, 2, 3, 4].map(|p| acc.count(p)), [5, 4, 3, 2, 1]);
    }

    #[test]
    fn only_what_is_needed_is_kept() {
        let mut acc = Accumulators::new(Needs { sum: true, ..Needs::NONE });
        acc.observe_decode(&[0, 1], &[0.5, 0.5]);
        assert_eq!((acc.sum(1), acc.last_row(1), acc.count(1)), (0.5, 0.0, 0));
        acc.clear();
        assert_eq!(acc.sum(1), 0.0);
    }
}
