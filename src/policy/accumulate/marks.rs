//! A history of marks: one bit per query and token, counted over the newest queries.

use crate::event::Position;

/// Marks of the newest `history` queries, and how many each position has.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    history: usize,
    /// Ring of bit sets over positions, as long as the history once it is full.
    rows: Vec<Vec<u64>>,
    /// Row to write next.
    next: usize,
    counts: Vec<u32>,
}

impl Marks {
    pub(super) fn new(history: u32) -> Self {
        Self { history: history as usize, ..Self::default() }
    }

    /// Enters the marks of the next query; positions are below `len`.
    pub(super) fn push(&mut self, len: usize, marked: impl Iterator<Item = Position>) {
        if self.counts.len() < len {
            self.counts.resize(len, 0);
        }
        if self.rows.len() < self.history {
            self.next = self.rows.len();
            self.rows.push(Vec::new());
        }
        let row = &mut self.rows[self.next];
        for (i, word) in row.iter_mut().enumerate() {
            let mut rest = std::mem::take(word);
            while rest != 0 {
                self.counts[i * 64 + rest.trailing_zeros() as usize] -= 1;
                rest &= rest - 1;
            }
        }
        row.resize(len.div_ceil(64), 0);
        for position in marked {
            let at = position as usize;
            row[at / 64] |= 1 << (at % 64);
            self.counts[at] += 1;
        }
        self.next = (self.next + 1) % self.history;
    }

    /// Marks of a position in the history.
    pub(super) fn count(&self, position: Position) -> u32 {
        self.counts.get(position as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_the_history_is_not_counted() {
        let mut marks = Marks::new(3);
        for query in 0..200u32 {
            // Position p is marked by every query behind it that it divides.
            marks.push(query as usize + 1, (1..=query).filter(|p| query % p == 0));
        }
        let expected = |p: u32| (197..200).filter(|q| q % p == 0).count() as u32;
        assert!((1..200).all(|p| marks.count(p) == expected(p)));
        assert_eq!((marks.count(0), marks.count(5000)), (0, 0));
    }
}
