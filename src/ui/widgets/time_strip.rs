//! A value per step along time, with the time cursor, a range and bookmarks.

use std::ops::Range;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::Widget;

use super::{Binning, Bins, columns, put_char, put_right};
use crate::ui::text;
use crate::ui::theme::{Role, Styles};

/// A strip of bars over the steps of a window. From two lines on, the last one carries the marks: `^` the cursor, `*` a
/// bookmark, a line under the selected range. Steps that do not fit share a column, which shows the largest.
#[derive(Clone, Debug)]
pub struct TimeStrip<'a> {
    styles: &'a Styles,
    values: &'a [Option<f32>],
    first_step: u64,
    highest: Option<f32>,
    role: Role,
    cursor: Option<u64>,
    selection: Option<Range<u64>>,
    bookmarks: &'a [u64],
}

impl<'a> TimeStrip<'a> {
    /// Values of consecutive steps from `first_step` on; `None` where a step has none.
    pub const fn new(styles: &'a Styles, first_step: u64, values: &'a [Option<f32>]) -> Self {
        Self {
            styles,
            values,
            first_step,
            highest: None,
            role: Role::Accent,
            cursor: None,
            selection: None,
            bookmarks: &[],
        }
    }

    /// The value of a full bar; without it, the largest value there is.
    #[must_use]
    pub const fn highest(mut self, highest: f32) -> Self {
        self.highest = Some(highest);
        self
    }

    /// What the bars mean.
    #[must_use]
    pub const fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// The step everything shows.
    #[must_use]
    pub const fn cursor(mut self, step: u64) -> Self {
        self.cursor = Some(step);
        self
    }

    /// A range of steps, its end exclusive.
    #[must_use]
    pub const fn selection(mut self, steps: Range<u64>) -> Self {
        self.selection = Some(steps);
        self
    }

    /// Steps a person marked.
    #[must_use]
    pub const fn bookmarks(mut self, steps: &'a [u64]) -> Self {
        self.bookmarks = steps;
        self
    }

    /// The steps drawn in a column of the screen.
    pub fn at(&self, area: Rect, x: u16) -> Option<Range<u64>> {
        let bins = Bins::new(self.values.len(), area.width);
        let values = bins.values(usize::from(x.checked_sub(area.x)?));
        let step = |index: usize| self.first_step + index as u64;
        (x < area.right() && !values.is_empty()).then(|| step(values.start)..step(values.end))
    }

    fn column(&self, bins: Bins, step: u64) -> Option<u16> {
        let index = usize::try_from(step.checked_sub(self.first_step)?).ok()?;
        bins.cell(index).map(columns)
    }

    fn draw_marks(&self, bins: Bins, line: Rect, buf: &mut Buffer) {
        let symbols = self.styles.symbols();
        if let Some(range) = &self.selection {
            let steps = self.first_step..self.first_step + self.values.len() as u64;
            let (first, last) = (range.start.max(steps.start), range.end.min(steps.end));
            if first < last
                && let (Some(from), Some(to)) = (self.column(bins, first), self.column(bins, last - 1))
            {
                for x in from..=to {
                    put_char(
                        buf,
                        line,
                        line.x + x,
                        line.y,
                        symbols.pick('━', '='),
                        self.styles[Role::Accent],
                    );
                }
            }
        }
        for &step in self.bookmarks {
            if let Some(x) = self.column(bins, step) {
                put_char(buf, line, line.x + x, line.y, symbols.pick('◆', '*'), self.styles[Role::Warn]);
            }
        }
        if let Some(x) = self.cursor.and_then(|step| self.column(bins, step)) {
            put_char(buf, line, line.x + x, line.y, symbols.pick('▲', '^'), self.styles[Role::Title]);
        }
        if bins.per_cell() > 1 {
            let note = format!("{} of {}", Binning::Max.word(), bins.per_cell());
            let start = line.right().saturating_sub(columns(text::width(&note)));
            if (start..line.right()).all(|x| buf.cell((x, line.y)).is_some_and(|cell| cell.symbol() == " ")) {
                put_right(buf, line, line.right(), line.y, &note, self.styles[Role::Dim]);
            }
        }
    }
}

impl Widget for &TimeStrip<'_> {
    fn render(self, area: Rect, buf: &mut Buffer) {
        let area = area.intersection(buf.area);
        if area.is_empty() {
            return;
        }
        let symbols = self.styles.symbols();
        let bins = Bins::new(self.values.len(), area.width);
        let has_marks = area.height >= 2;
        let bars = Rect { height: area.height - u16::from(has_marks), ..area };
        let present = || self.values.iter().copied().flatten().filter(|value| value.is_finite());
        let highest = self.highest.unwrap_or_else(|| present().fold(0.0, f32::max));
        for cell in 0..bins.cells() {
            let Some(value) = Binning::Max.join(self.values[bins.values(cell)].iter().copied()) else {
                continue;
            };
            let share = if highest > 0.0 { f64::from(value / highest) } else { 0.0 };
            if share > 0.0 {
                super::draw_column(buf, bars, columns(cell), share, symbols, self.styles[self.role]);
            } else {
                // Nothing happened in these steps, which is not the same as no steps.
                let (x, y) = (bars.x + columns(cell), bars.bottom() - 1);
                put_char(buf, bars, x, y, symbols.pick('·', '_'), self.styles[Role::Dim]);
            }
        }
        if let Some(range) = &self.selection {
            for cell in 0..bins.cells() {
                let steps = self.at(area, area.x + columns(cell));
                if steps.is_some_and(|steps| steps.start < range.end && range.start < steps.end) {
                    let column = Rect { x: area.x + columns(cell), width: 1, ..bars };
                    buf.set_style(column, self.styles[Role::Selection]);
                }
            }
        }
        if has_marks {
            self.draw_marks(bins, Rect { y: bars.bottom(), height: 1, ..area }, buf);
        }
        if let Some(x) = self.cursor.and_then(|step| self.column(bins, step)) {
            // With a line of marks the cursor is pointed at from below, and its bar can stay a bar.
            let role = if has_marks { Role::Title } else { Role::Cursor };
            buf.set_style(Rect { x: area.x + x, width: 1, ..bars }, self.styles[role]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::export::{styled_dump, text};
    use crate::ui::theme::{dark, plain};

    #[test]
    fn bars_cursor_range_and_bookmarks() {
        let values: Vec<_> = (0..10).map(|i| (i != 4).then_some(i as f32)).collect();
        let mut buf = Buffer::empty(Rect::new(0, 0, 10, 3));
        (&TimeStrip::new(&dark(), 100, &values).cursor(107).selection(101..104).bookmarks(&[102, 99, 900]))
            .render(buf.area, &mut buf);
        insta::assert_snapshot!(styled_dump(&buf), @r#"
        |     ▁▃▄▆█|
        |·▂▄▅ █████|
        | ━◆━   ▲  |
        |.aaa.bbcbb|
        |deee.bbcbb|
        |.bfb...c..|
        a = bg #26364a
        b = fg #6cb6ff
        c = bold
        d = fg #8a93a0
        e = fg #6cb6ff bg #26364a
        f = fg #e3c26f
        "#);
    }

    #[test]
    fn many_steps_share_columns_and_say_so() {
        let mut values = vec![Some(0.0); 100];
        values[42] = Some(5.0);
        let styles = plain();
        let strip = TimeStrip::new(&styles, 0, &values).cursor(42);
        let mut buf = Buffer::empty(Rect::new(0, 0, 20, 2));
        (&strip).render(buf.area, &mut buf);
        assert_eq!(text(&buf), "________#___________\n        ^   max of 5\n");
        assert_eq!(strip.at(buf.area, 8), Some(40..45));
        assert_eq!(strip.at(buf.area, 20), None);
    }
}
