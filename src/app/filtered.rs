//! A list of rows under a filter: which of them are shown, and which one is selected.

use std::cmp::Ordering;

use super::filter::{Filter, Row};

/// Rows, those of them that match, and the selected one of these.
#[derive(Clone, Debug)]
pub struct Filtered<R> {
    /// All rows, matching or not. Whoever changes them calls [`Filtered::apply`].
    pub(super) all: Vec<R>,
    shown: Vec<u32>,
    /// Index into the shown rows.
    pub selected: usize,
}

impl<R> Default for Filtered<R> {
    fn default() -> Self {
        Self { all: Vec::new(), shown: Vec::new(), selected: 0 }
    }
}

impl<R> Filtered<R> {
    /// Number of rows that match.
    pub fn len(&self) -> usize {
        self.shown.len()
    }

    /// Whether no row matches.
    pub fn is_empty(&self) -> bool {
        self.shown.is_empty()
    }

    /// Rows before the filter.
    pub fn total(&self) -> usize {
        self.all.len()
    }

    /// A row by its place in the list.
    pub fn get(&self, index: usize) -> Option<&R> {
        self.shown.get(index).map(|&i| &self.all[i as usize])
    }

    /// The rows from `first` on.
    pub fn rows_from(&self, first: usize) -> impl ExactSizeIterator<Item = &R> {
        self.shown.iter().skip(first).map(|&i| &self.all[i as usize])
    }

    /// The selected row.
    pub fn current(&self) -> Option<&R> {
        self.get(self.selected)
    }

    /// Selects the row `index`, or the nearest there is.
    pub(super) fn select(&mut self, index: usize) {
        self.selected = index.min(self.shown.len().saturating_sub(1));
    }

    /// Shows the rows that match, in the order of all; the selection stays inside.
    pub(super) fn apply(&mut self, filter: &Filter)
    where
        R: Row,
    {
        self.shown.clear();
        self.shown.extend((0..self.all.len() as u32).filter(|&i| filter.matches(&self.all[i as usize])));
        self.select(self.selected);
    }

    /// Orders the rows that are shown.
    pub(super) fn sort_by(&mut self, compare: impl Fn(&R, &R) -> Ordering) {
        let all = &self.all;
        self.shown.sort_by(|&i, &j| compare(&all[i as usize], &all[j as usize]));
    }
}
