//! What a sweep found, as a heat picture: a row per policy, page type or read set, a column per task and budget.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::text;
use super::theme::{Role, Styles};
use super::widgets::put;
use crate::eval::sweep::{Summary, SweepTask, Tally};

/// A patch of colour, a space, the figure.
const CELL: u16 = 9;
const PATCH: u16 = 2;
const GAP: u16 = 2;
const TITLE: &str = "nats per answer token over the full cache (measured, paired)";

/// Rows of one picture: families in their order, each with a value per task and column.
struct Rows<'a> {
    families: Vec<&'a str>,
    columns: Vec<&'a str>,
    tallies: Vec<&'a Tally>,
}

impl<'a> Rows<'a> {
    fn of(tallies: impl Iterator<Item = &'a Tally>) -> Self {
        let mut rows = Self { families: Vec::new(), columns: Vec::new(), tallies: tallies.collect() };
        for tally in &rows.tallies {
            if !rows.families.contains(&tally.family.as_str()) {
                rows.families.push(&tally.family);
            }
            let column = tally.budget.as_deref().unwrap_or("");
            if !rows.columns.contains(&column) {
                rows.columns.push(column);
            }
        }
        rows
    }

    fn at(&self, family: &str, column: &str) -> Option<&'a Tally> {
        let here =
            |tally: &&&Tally| tally.family == family && tally.budget.as_deref().unwrap_or("") == column;
        self.tallies.iter().find(here).copied()
    }
}

/// The share of the ramp that a loss over full takes: nothing for none, all for a loss without end.
fn heat(nats: f64) -> f32 {
    (1.0 - (-nats.max(0.0)).exp()) as f32
}

/// The picture, as large as it must be. Every patch has its figure beside it.
pub fn picture(summary: &Summary, styles: &Styles) -> Buffer {
    let with_budget = Rows::of(summary.tallies.iter().filter(|tally| tally.budget.is_some()));
    let without = Rows::of(summary.tallies.iter().filter(|tally| tally.budget.is_none()));
    let names = summary.tallies.iter().map(|tally| text::width(&tally.family));
    let label = names.max().unwrap_or(0).max("without a budget".len()) as u16 + GAP;
    let columns = with_budget.columns.len().max(1) as u16;
    let group = columns * CELL + GAP;
    let width = (label + summary.tasks.len() as u16 * group).max(TITLE.len() as u16);
    let block = |rows: &Rows<'_>| if rows.families.is_empty() { 0 } else { rows.families.len() as u16 + 1 };
    let height = 4 + block(&with_budget) + block(&without) + u16::from(!summary.refused.is_empty());
    let mut buf = Buffer::empty(Rect::new(0, 0, width, height));
    buf.set_style(buf.area, styles[Role::Screen]);
    let mut painter = Painter { buf: &mut buf, styles, tasks: &summary.tasks, label, group };
    painter.head(TITLE);
    let mut y = painter.block(3, "budget", &with_budget);
    y = painter.block(y, "without a budget", &without);
    if !summary.refused.is_empty() {
        let left_out = format!("{} left out: the prompts are too short for them", summary.refused.len());
        painter.put(0, y, &left_out, Role::Dim);
    }
    buf
}

struct Painter<'a> {
    buf: &'a mut Buffer,
    styles: &'a Styles,
    tasks: &'a [SweepTask],
    label: u16,
    group: u16,
}

impl Painter<'_> {
    fn put(&mut self, x: u16, y: u16, text: &str, role: Role) -> u16 {
        put(self.buf, self.buf.area, x, y, text, self.styles[role])
    }

    fn patch(&mut self, x: u16, y: u16, value: f32) {
        let heat = self.styles.heat(value);
        let style = Style::new().fg(heat.color);
        let glyph = if self.styles.heat_in_half_blocks() { '\u{2588}' } else { heat.glyph };
        for x in x..x + PATCH {
            put(self.buf, self.buf.area, x, y, glyph.encode_utf8(&mut [0; 4]), style);
        }
    }

    /// Title, ramp and the tasks.
    fn head(&mut self, title: &str) {
        self.put(0, 0, title, Role::Title);
        let mut x = 0;
        for nats in [0.0, 0.1, 0.3, 1.0, 3.0] {
            self.patch(x, 1, heat(nats));
            x = self.put(x + PATCH + 1, 1, &format!("{nats}"), Role::Dim) + GAP;
        }
        for (i, task) in self.tasks.iter().enumerate() {
            let x = self.label + i as u16 * self.group;
            self.put(x, 2, task.name(), Role::Text);
        }
    }

    /// A heading with the columns, and the rows; returns the line after them.
    fn block(&mut self, y: u16, heading: &str, rows: &Rows<'_>) -> u16 {
        if rows.families.is_empty() {
            return y;
        }
        self.put(0, y, heading, Role::Dim);
        for task in 0..self.tasks.len() as u16 {
            for (c, column) in rows.columns.iter().enumerate() {
                let right = self.label + task * self.group + (c as u16 + 1) * CELL - 1;
                self.put(right.saturating_sub(column.len() as u16), y, column, Role::Dim);
            }
        }
        for (r, family) in rows.families.iter().enumerate() {
            let y = y + 1 + r as u16;
            self.put(0, y, family, Role::Text);
            for (c, column) in rows.columns.iter().enumerate() {
                for task in 0..self.tasks.len() {
                    let x = self.label + task as u16 * self.group + c as u16 * CELL;
                    match rows.at(family, column) {
                        Some(tally) => {
                            // A zero has no sign.
                            let nats =
                                (tally.columns[task].loss_over_full.value * 100.0).round() / 100.0 + 0.0;
                            self.patch(x, y, heat(nats));
                            self.put(x + PATCH, y, &format!("{nats:>6.2}"), Role::Text);
                        }
                        None => drop(self.put(x + CELL - 2, y, "-", Role::Dim)),
                    }
                }
            }
        }
        y + 1 + rows.families.len() as u16
    }
}

#[cfg(test)]
mod tests {
    use super::super::export;
    use super::super::theme::{dark, plain};
    use super::*;
    use crate::eval::Measure;
    use crate::eval::sweep::{Column, Refused};

    fn summary() -> Summary {
        let tally = |family: &str, budget: Option<&str>, nats: f64| Tally {
            cell: family.into(),
            family: family.into(),
            budget: budget.map(Into::into),
            kept: Measure::default(),
            bytes: Measure::default(),
            columns: [SweepTask::Passkey, SweepTask::Recall]
                .map(|task| Column {
                    task,
                    right: Measure::default(),
                    loss: Measure::default(),
                    loss_over_full: Measure { value: nats, ..Measure::default() },
                    places: Vec::new(),
                })
                .to_vec(),
            decision_us: Measure::default(),
            policy_us: Measure::default(),
            policy_share: Measure::default(),
        };
        Summary {
            tasks: vec![SweepTask::Passkey, SweepTask::Recall],
            tallies: vec![
                tally("full", None, 0.0),
                tally("h2o", Some("50%"), 0.01),
                tally("h2o", Some("25%"), 4.5),
                tally("streaming", Some("50%"), 12.25),
                tally("int4", None, -0.02),
            ],
            refused: vec![Refused { cell: "streaming 25%".into(), why: "too small".into() }],
        }
    }

    #[test]
    fn every_patch_has_its_figure() {
        insta::assert_snapshot!(export::text(&picture(&summary(), &plain())), @r"
        nats per answer token over the full cache (measured, paired)
        .. 0  .. 0.1  -- 0.3  ** 1  @@ 3
                          passkey             recall
        budget                 50%      25%        50%      25%
        h2o               ..  0.01 @@  4.50   ..  0.01 @@  4.50
        streaming         @@ 12.25        -   @@ 12.25        -
        without a budget
        full              ..  0.00            ..  0.00
        int4              .. -0.02            .. -0.02
        1 left out: the prompts are too short for them
        ");
    }

    #[test]
    fn more_loss_is_hotter() {
        let buf = picture(&summary(), &dark());
        let color = |y| buf[(18, y)].fg;
        assert_eq!((4..=5).map(|y| buf[(0, y)].symbol().to_owned()).collect::<String>(), "hs");
        assert_eq!(color(7), color(8), "full and int4 lose nothing");
        assert_ne!(color(4), color(5));
        assert!(heat(0.1) < heat(1.0) && heat(1.0) < heat(30.0) && heat(30.0) <= 1.0 && heat(-1.0) == 0.0);
    }
}
