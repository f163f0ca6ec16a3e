//! What every view looks at.

use std::cell::RefCell;

use ratatui::layout::Rect;

use super::split_left;
use crate::app::{App, Viewport};
use crate::event::{Head, Position, RunInfo};
use crate::policy::{Merging, Policy, ReadSet, parse_merge, parse_policy, parse_read};
use crate::state::{SeqState, State};
use crate::ui::layout::{Breakpoint, left_width};
use crate::ui::theme::{Styles, Symbols};

/// The application, the styles, and shorthands for what views ask of them. What a view learns about its size while it
/// draws is noted here, since drawing returns nothing.
pub(in crate::ui) struct Scene<'a> {
    pub(in crate::ui) app: &'a App,
    pub(in crate::ui) styles: &'a Styles,
    /// How much fits on the whole screen.
    pub(in crate::ui) breakpoint: Breakpoint,
    viewport: RefCell<Viewport>,
}

impl<'a> Scene<'a> {
    pub(in crate::ui) fn new(app: &'a App, styles: &'a Styles, screen: Rect) -> Self {
        let panes = vec![[0; 4]; app.view.panes().len()];
        let viewport = Viewport { panes, ..Viewport::default() };
        Self { app, styles, breakpoint: Breakpoint::of(screen), viewport: viewport.into() }
    }

    /// Two columns: the view's own share for the left one, unless the person chose another.
    pub(in crate::ui) fn columns(&self, area: Rect, own: u16) -> (Rect, Rect) {
        split_left(area, left_width(area.width, own, self.app.preset))
    }

    /// Notes where a pane was drawn.
    pub(in crate::ui) fn note_pane(&self, index: usize, area: Rect) {
        if let Some(pane) = self.viewport.borrow_mut().panes.get_mut(index) {
            *pane = [area.x, area.y, area.width, area.height];
        }
    }

    /// Notes how many rows the view's list, or failing that the view, has.
    pub(in crate::ui) fn note_rows(&self, rows: u16) {
        self.viewport.borrow_mut().rows = rows;
    }

    /// Notes how many tokens a line of text has, on average.
    pub(in crate::ui) fn note_tokens_per_line(&self, tokens: u16) {
        self.viewport.borrow_mut().tokens_per_line = tokens;
    }

    /// What was noted while drawing.
    pub(in crate::ui) fn into_viewport(self) -> Viewport {
        self.viewport.into_inner()
    }

    pub(in crate::ui) fn state(&self) -> Option<&'a State> {
        self.app.state.as_deref()
    }

    pub(in crate::ui) fn run(&self) -> Option<&'a RunInfo> {
        self.app.run.as_deref()
    }

    pub(in crate::ui) const fn symbols(&self) -> Symbols {
        self.styles.symbols()
    }

    /// The sequence under the cursor.
    pub(in crate::ui) fn seq(&self) -> Option<&'a SeqState> {
        self.state()?.seq(self.app.cursor.seq)
    }

    /// The token under the cursor, or the newest one.
    pub(in crate::ui) fn position(&self) -> Option<Position> {
        let newest = (self.seq()?.tokens.len() as Position).checked_sub(1)?;
        Some(self.app.cursor.position.map_or(newest, |p| p.min(newest)))
    }

    /// Layer of the cursor, within the model.
    pub(in crate::ui) fn layer(&self) -> usize {
        let layers = self.run().map_or(1, |run| run.model.layers as usize);
        usize::from(self.app.cursor.layer).min(layers.saturating_sub(1))
    }

    /// Query head of the cursor, within the model.
    pub(in crate::ui) fn head(&self) -> usize {
        let heads = self.run().map_or(1, |run| run.model.heads as usize);
        usize::from(self.app.cursor.head).min(heads.saturating_sub(1))
    }

    /// KV head that the cursor's query head reads.
    pub(in crate::ui) fn kv_head(&self) -> Head {
        self.run().map_or(0, |run| {
            let group = (run.model.heads / run.model.kv_heads.max(1)).max(1) as usize;
            (self.head() / group) as Head
        })
    }

    /// The eviction policy as it is in force: the run's, with the changes made since.
    pub(in crate::ui) fn policy(&self) -> Option<Policy> {
        let mut policy = parse_policy(&self.run()?.settings.policy).ok()?;
        for (_, tuning) in self.state().into_iter().flat_map(|s| &s.tuning) {
            // What is not this rule's parameter belongs to another one.
            let _ = policy.set(&tuning.name, &tuning.to);
        }
        Some(policy)
    }

    /// The merge rule as it is in force, if there is one.
    pub(in crate::ui) fn merging(&self) -> Option<Merging> {
        let mut merging = parse_merge(&self.run()?.settings.merge).ok()?;
        for (_, tuning) in self.state().into_iter().flat_map(|s| &s.tuning) {
            let _ = merging.set(&tuning.name, &tuning.to);
        }
        Some(merging)
    }

    /// The read set as it is in force, if there is one.
    pub(in crate::ui) fn read_set(&self) -> Option<ReadSet> {
        let read = &self.run()?.settings.read;
        let mut set = (!read.is_empty()).then(|| parse_read(read).ok())??;
        for (_, tuning) in self.state().into_iter().flat_map(|s| &s.tuning) {
            let _ = set.set(&tuning.name, &tuning.to);
        }
        Some(set)
    }
}
