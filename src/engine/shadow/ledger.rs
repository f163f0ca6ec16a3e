//! What the twin's attention finds on positions that the run has lost.

use std::cmp::Reverse;

use crate::attention::RowSink;
use crate::event::{Head, LaneRegret, Layer, Position};

/// The accounts of one sequence, per (layer, KV head), layer-major. A lane without victims has none.
#[derive(Default)]
pub(super) struct Ledger {
    lanes: Vec<Lane>,
}

/// The accounts of one (layer, KV head), by position up to its last victim.
#[derive(Clone, Default)]
pub(super) struct Lane {
    accounts: Vec<Account>,
    /// What came in since it was last asked.
    total: f64,
}

#[derive(Clone, Copy)]
struct Account {
    /// First query that misses the position; that of no query while it is resident.
    since: Position,
    /// What was not told yet.
    sum: f32,
}

impl Account {
    const RESIDENT: Self = Self { since: Position::MAX, sum: 0.0 };
}

impl RowSink for Lane {
    /// The twin loses nothing: slots are positions.
    fn row(&mut self, query: Position, row: &[f32]) {
        for (account, &p) in self.accounts.iter_mut().zip(row) {
            if account.since <= query {
                account.sum += p;
                self.total += f64::from(p);
            }
        }
    }
}

impl Ledger {
    /// One sink per lane of these, or none where the run has lost nothing in any of them.
    pub(super) fn sinks(&mut self, lanes: std::ops::Range<usize>) -> Vec<&mut dyn RowSink> {
        let lanes = self.lanes.get_mut(lanes).unwrap_or_default();
        if lanes.iter().all(|lane| lane.accounts.is_empty()) {
            return Vec::new();
        }
        lanes.iter_mut().map(|lane| lane as &mut dyn RowSink).collect()
    }

    /// Opens the accounts of positions that queries from `since` on miss in these lanes.
    pub(super) fn lose(&mut self, lanes: std::ops::Range<usize>, positions: &[Position], since: Position) {
        if self.lanes.len() < lanes.end {
            self.lanes.resize(lanes.end, Lane::default());
        }
        for lane in &mut self.lanes[lanes] {
            let end = positions.last().map_or(0, |&last| last as usize + 1);
            if lane.accounts.len() < end {
                lane.accounts.resize(end, Account::RESIDENT);
            }
            for &position in positions {
                lane.accounts[position as usize].since = since;
            }
        }
    }

    /// What came in since the last call, all victims together.
    pub(super) fn take_total(&mut self) -> f64 {
        self.lanes.iter_mut().map(|lane| std::mem::take(&mut lane.total)).sum()
    }

    /// Tells the `most` accounts that hold the most, and empties them. `ids` names a lane.
    pub(super) fn tell(&mut self, most: usize, ids: impl Fn(usize) -> (Layer, Head)) -> Vec<LaneRegret> {
        let mut open: Vec<(f32, usize, Position)> = Vec::new();
        for (l, lane) in self.lanes.iter().enumerate() {
            let held = (0..).zip(&lane.accounts).filter(|(_, account)| account.sum > 0.0);
            open.extend(held.map(|(position, account)| (account.sum, l, position)));
        }
        if open.len() > most {
            // Sums of probabilities are positive, so their bits have their order; equals go by lane and position.
            open.select_nth_unstable_by_key(most, |&(sum, lane, at)| (Reverse(sum.to_bits()), lane, at));
            open.truncate(most);
        }
        open.sort_unstable_by_key(|&(_, lane, at)| (lane, at));
        open.chunk_by(|a, b| a.1 == b.1)
            .map(|told| {
                let lane = told[0].1;
                let (layer, head) = ids(lane);
                for &(_, _, position) in told {
                    self.lanes[lane].accounts[position as usize].sum = 0.0;
                }
                LaneRegret { layer, head, told: told.iter().map(|&(sum, _, at)| (at, sum)).collect() }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_queries_after_the_loss_count_and_the_largest_accounts_are_told_first() {
        let mut ledger = Ledger::default();
        assert!(ledger.sinks(0..2).is_empty());
        ledger.lose(0..2, &[1, 2], 4);
        ledger.lose(1..2, &[0], 5);
        assert_eq!(ledger.sinks(0..2).len(), 2);
        for (query, row) in [(3, [0.5, 0.25, 0.125, 0.125]), (4, [0.5, 0.25, 0.125, 0.125])] {
            for sink in ledger.sinks(0..2) {
                sink.row(query, &row);
            }
        }
        ledger.sinks(1..2)[0].row(5, &[0.0625, 0.0, 0.0, 0.9]);
        assert_eq!(ledger.take_total(), 2.0 * 0.375 + 0.0625);
        assert_eq!(ledger.take_total(), 0.0);
        let name = |lane: usize| (lane as Layer, 0);
        let lane = |layer, told: &[(Position, f32)]| LaneRegret { layer, head: 0, told: told.to_vec() };
        assert_eq!(ledger.tell(3, name), [lane(0, &[(1, 0.25), (2, 0.125)]), lane(1, &[(1, 0.25)])]);
        assert_eq!(ledger.tell(3, name), [lane(1, &[(0, 0.0625), (2, 0.125)])]);
        assert!(ledger.tell(3, name).is_empty());
    }
}
