//! The one cursor: what moving means in each pane.

use super::{App, Cursor, View};
use crate::event::{Position, StepId};

/// What a pane is made of, and so what its motions move.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Terrain {
    /// Lines of tokens.
    Text,
    /// Tokens across, query heads down.
    Heads,
    /// Tokens across, (layer, KV head) lanes down.
    Lanes,
    /// Layers down.
    Layers,
    /// Steps across.
    Steps,
    /// The Evictions list.
    Victims,
    /// The Log.
    Log,
    /// Lines to scroll.
    Lines,
}

impl App {
    fn terrain(&self) -> Terrain {
        match (self.view, self.pane_name()) {
            (_, "text") => Terrain::Text,
            (_, "row" | "heads" | "attention") => Terrain::Heads,
            (_, "tables" | "pool" | "blocks") => Terrain::Lanes,
            (View::Traffic | View::Latency, "layers") => Terrain::Layers,
            (_, "timeline") => Terrain::Steps,
            (_, "victims") => Terrain::Victims,
            (_, "log") => Terrain::Log,
            _ => Terrain::Lines,
        }
    }

    // Views and panes.

    /// Puts the picture where a command line asks: a view, a step (`None` stays), a cursor.
    pub fn look_at(&mut self, view: View, at: Option<StepId>, cursor: Cursor) {
        if at.is_some() {
            self.show(at);
        }
        self.cursor = cursor;
        self.open_view(view);
    }

    pub(super) fn open_view(&mut self, view: View) {
        if self.view != view {
            self.view = view;
            self.pane = 0;
            self.scroll = 0;
        }
        self.story.visited(view);
        self.refresh();
        if view == View::Evictions
            && let Some(position) = self.cursor.position
        {
            let (heads, kv_heads) = self.heads();
            let kv_head = self.cursor.head / (heads / kv_heads.max(1)).max(1);
            self.victims.select_token(self.cursor.seq, position, (self.cursor.layer, kv_head));
        }
    }

    pub(super) fn focus(&mut self, pane: usize) {
        if self.pane != pane {
            self.pane = pane;
            self.scroll = 0;
        }
    }

    pub(super) fn cycle_pane(&mut self, by: isize) {
        let panes = self.view.panes().len() as isize;
        self.focus((self.pane as isize + by).rem_euclid(panes) as usize);
    }

    /// The nearest pane in a direction, by what is drawn; without a drawing, the next in drawing order.
    pub(super) fn focus_towards(&mut self, dx: i32, dy: i32) {
        let Some(here) = self.viewport.panes.get(self.pane).filter(|_| !self.zoomed) else {
            return self.cycle_pane((dx + dy) as isize);
        };
        // Twice the centre, so that it stays whole.
        let centre =
            |[x, y, w, h]: [u16; 4]| (2 * i32::from(x) + i32::from(w), 2 * i32::from(y) + i32::from(h));
        let (x, y) = centre(*here);
        let ahead = |&(i, pane): &(usize, &[u16; 4])| {
            let (px, py) = centre(*pane);
            i != self.pane && pane[2] > 0 && pane[3] > 0 && (px - x) * dx + (py - y) * dy > 0
        };
        let cost = |&(_, pane): &(usize, &[u16; 4])| {
            let (px, py) = centre(*pane);
            let (along, across) = if dx != 0 { (px - x, py - y) } else { (py - y, px - x) };
            along.abs() + 3 * across.abs()
        };
        let panes = self.viewport.panes.iter().enumerate().take(self.view.panes().len());
        if let Some((pane, _)) = panes.filter(ahead).min_by_key(cost) {
            self.focus(pane);
        }
    }

    // Motions.

    /// Moves within the focused pane: `dx` to the right, `dy` down.
    pub(super) fn move_by(&mut self, dx: i64, dy: i64) {
        match self.terrain() {
            Terrain::Text => {
                let line = i64::from(self.viewport.tokens_per_line.max(1));
                self.move_token(dx + dy * line);
            }
            Terrain::Heads => {
                self.move_token(dx);
                self.move_head(dy);
            }
            Terrain::Lanes => {
                self.move_token(dx);
                self.move_lane(dy);
            }
            Terrain::Layers => self.move_layer(dy),
            Terrain::Steps => {
                if dx != 0 {
                    self.step_by(dx);
                }
            }
            Terrain::Victims => self.select_victim(self.victims.rows.selected as i64 + dy),
            Terrain::Log => self.select_line(self.log.lines.selected as i64 + dy),
            Terrain::Lines => self.scroll = self.scroll.saturating_add_signed(dy as isize),
        }
    }

    pub(super) fn page(&mut self, direction: i64, part: i64) {
        let rows = (i64::from(self.viewport.rows.max(2)) / part).max(1);
        match self.terrain() {
            Terrain::Steps => self.step_by(direction * rows),
            _ => self.move_by(0, direction * rows),
        }
    }

    pub(super) fn scroll_by(&mut self, lines: i32) {
        match self.terrain() {
            Terrain::Steps => self.step_by(i64::from(lines)),
            _ => self.move_by(0, i64::from(lines)),
        }
    }

    pub(super) fn move_to_end(&mut self, last: bool) {
        let end = if last { i64::MAX } else { 0 };
        match self.terrain() {
            Terrain::Victims => self.select_victim(end),
            Terrain::Log => self.select_line(end),
            Terrain::Lines => self.scroll = if last { usize::MAX / 2 } else { 0 },
            Terrain::Steps => {
                let known = self.known_steps();
                if last { self.follow() } else { self.show(known.map(|(first, _)| first)) }
            }
            Terrain::Layers => self.cursor.layer = if last { self.layers().saturating_sub(1) } else { 0 },
            Terrain::Text | Terrain::Heads | Terrain::Lanes => self.put_token(end),
        }
    }

    fn tokens(&self) -> usize {
        self.state.as_ref().and_then(|s| s.seq(self.cursor.seq)).map_or(0, |s| s.tokens.len())
    }

    fn layers(&self) -> u16 {
        self.run.as_ref().map_or(0, |r| r.model.layers as u16)
    }

    /// Query heads of a layer, and KV heads.
    fn heads(&self) -> (u16, u16) {
        self.run.as_ref().map_or((0, 0), |r| (r.model.heads as u16, r.model.kv_heads as u16))
    }

    /// The first motion selects the newest token; later ones move from there.
    fn move_token(&mut self, by: i64) {
        if by != 0 {
            let here = self.cursor.position.map_or(i64::MAX, i64::from);
            self.put_token(if self.cursor.position.is_none() { here } else { here.saturating_add(by) });
        }
    }

    fn put_token(&mut self, position: i64) {
        let tokens = self.tokens() as i64;
        if tokens > 0 {
            self.cursor.position = Some(position.clamp(0, tokens - 1) as Position);
            self.story.looked_at(self.cursor.position);
        }
    }

    pub(super) fn select_position(&mut self, position: Position) {
        self.put_token(i64::from(position));
    }

    pub(super) fn move_layer(&mut self, by: i64) {
        let last = i64::from(self.layers()) - 1;
        self.cursor.layer = (i64::from(self.cursor.layer) + by).clamp(0, last.max(0)) as u16;
    }

    pub(super) fn move_head(&mut self, by: i64) {
        let last = i64::from(self.heads().0) - 1;
        self.cursor.head = (i64::from(self.cursor.head) + by).clamp(0, last.max(0)) as u16;
    }

    /// Lanes run through the KV heads of one layer into the next layer.
    fn move_lane(&mut self, by: i64) {
        let (heads, kv_heads) = self.heads();
        if by == 0 || kv_heads == 0 {
            return;
        }
        let group = (heads / kv_heads).max(1);
        let kv = i64::from(kv_heads);
        let lane = i64::from(self.cursor.layer) * kv + i64::from(self.cursor.head / group);
        let lane = (lane + by).clamp(0, i64::from(self.layers()) * kv - 1);
        self.cursor.layer = (lane / kv) as u16;
        self.cursor.head = (lane % kv) as u16 * group;
    }

    fn select_victim(&mut self, index: i64) {
        let last = self.victims.rows.len() as i64 - 1;
        self.victims.rows.selected = index.clamp(0, last.max(0)) as usize;
        self.follow_victim();
    }

    /// The cursor goes where the selected victim was lost.
    fn follow_victim(&mut self) {
        let Some(row) = self.victims.rows.current() else { return };
        let (seq, position, layer, head) = (row.seq, row.position, row.layer, row.head);
        self.cursor.seq = seq;
        self.cursor.position = Some(position);
        self.cursor.layer = layer;
        if let Some(kv_head) = head {
            let (heads, kv_heads) = self.heads();
            self.cursor.head = kv_head * (heads / kv_heads.max(1)).max(1);
        }
        self.story.looked_at(Some(position));
    }

    fn select_line(&mut self, index: i64) {
        let last = self.log.lines.len() as i64 - 1;
        self.log.lines.selected = index.clamp(0, last.max(0)) as usize;
        self.log.following = index >= last;
    }

    pub(super) fn next_match(&mut self, by: i64) {
        if self.view == View::Log {
            self.select_line(self.log.lines.selected as i64 + by);
        } else {
            if self.view != View::Evictions {
                self.open_view(View::Evictions);
            }
            self.select_victim(self.victims.rows.selected as i64 + by);
        }
    }

    /// To the victim that the twin has read most since it was lost.
    pub(super) fn select_worst(&mut self) {
        if self.view != View::Evictions {
            self.open_view(View::Evictions);
            self.refresh();
        }
        match self.victims.worst() {
            Some(index) => self.select_victim(index as i64),
            None => self.say("no victim here is known to be regretted: kvista run --shadow tells".to_owned()),
        }
    }

    pub(super) fn next_sort(&mut self) {
        self.sort = ((self.sort.0 + 1) % super::VICTIM_COLUMNS.len(), false);
        self.say(format!("sorted by {}", super::VICTIM_COLUMNS[self.sort.0].name()));
    }

    /// From the selected thing to what explains it.
    pub(super) fn drill(&mut self) {
        match self.view {
            View::Overview => {
                let view = match self.pane_name() {
                    "text" => View::Text,
                    "blocks" => View::Blocks,
                    "attention" => View::Attention,
                    _ => View::Log,
                };
                self.open_view(view);
            }
            View::Evictions => self.drill_victim(),
            View::Log => {
                if let Some(step) = self.log.lines.current().map(|l| l.step) {
                    self.show(Some(step));
                }
            }
            _ => self.drill_token(),
        }
    }

    /// To the last step in which the victim was still there, and who read it then.
    fn drill_victim(&mut self) {
        let Some(step) = self.victims.rows.current().map(|row| row.step) else { return };
        self.follow_victim();
        let before: StepId = step.saturating_sub(1);
        self.open_view(View::Attention);
        self.show(Some(before));
        self.say(format!("step {before}, the last one before it was lost; F returns"));
    }

    /// A lost token: why it was lost. Another one: where it lies.
    fn drill_token(&mut self) {
        let lost = self.state.as_ref().zip(self.cursor.position).is_some_and(|(state, position)| {
            state
                .seq(self.cursor.seq)
                .and_then(|s| s.tokens.get(position as usize))
                .is_some_and(|t| t.lost > 0)
        });
        self.open_view(if lost { View::Evictions } else { View::Blocks });
    }

    /// A step further back has fewer tokens.
    pub(super) fn keep_cursor_inside(&mut self) {
        let tokens = self.tokens();
        if let Some(position) = self.cursor.position {
            self.cursor.position = (tokens > 0).then(|| position.min(tokens as Position - 1));
        }
        self.cursor.layer = self.cursor.layer.min(self.layers().saturating_sub(1));
        self.cursor.head = self.cursor.head.min(self.heads().0.saturating_sub(1));
    }
}
