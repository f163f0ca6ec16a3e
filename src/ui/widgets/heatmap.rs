//! A grid of values as colour, or as glyphs of growing weight where there is none.

use std::ops::Range;

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Style};
use ratatui::widgets::Widget;

use super::{Binning, Bins, columns, put, put_char, put_right};
use crate::ui::text;
use crate::ui::theme::{Role, Styles};

/// A heat map of `rows × columns` values between 0 and 1; `None` is a value that does not exist, and stays ground.
///
/// With enough colours a cell shows two rows (`▀`), else one. Columns that do not fit are binned, the same number in
/// each cell, and the line below says how many and how they became one. Rows that do not fit scroll.
#[derive(Clone)]
pub struct Heatmap<'a> {
    styles: &'a Styles,
    values: &'a [Option<f32>],
    columns: usize,
    binning: Binning,
    first_row: usize,
    row_labels: &'a [String],
    column_label: Option<&'a dyn Fn(usize) -> String>,
    cursor: Option<(usize, usize)>,
    whole_cells: bool,
}

/// Where things are in an area.
struct Frame {
    cells: Rect,
    axis: Option<u16>,
    bins: Bins,
    rows: Range<usize>,
    rows_per_line: usize,
}

impl<'a> Heatmap<'a> {
    /// Values in row-major order; an incomplete last row is left out.
    pub const fn new(styles: &'a Styles, values: &'a [Option<f32>], columns: usize) -> Self {
        Self {
            styles,
            values,
            columns,
            binning: Binning::Max,
            first_row: 0,
            row_labels: &[],
            column_label: None,
            cursor: None,
            whole_cells: false,
        }
    }

    /// A line for every row also where two would fit a cell, so that figures can stand beside it.
    #[must_use]
    pub const fn whole_cells(mut self) -> Self {
        self.whole_cells = true;
        self
    }

    /// How columns that share a cell become one.
    #[must_use]
    pub const fn binning(mut self, binning: Binning) -> Self {
        self.binning = binning;
        self
    }

    /// The first row shown; it gives way where the cursor would not be visible.
    #[must_use]
    pub const fn first_row(mut self, row: usize) -> Self {
        self.first_row = row;
        self
    }

    /// Labels left of the rows.
    #[must_use]
    pub const fn row_labels(mut self, labels: &'a [String]) -> Self {
        self.row_labels = labels;
        self
    }

    /// Labels below the columns: of the first, the last and the one under the cursor.
    #[must_use]
    pub const fn column_label(mut self, label: &'a dyn Fn(usize) -> String) -> Self {
        self.column_label = Some(label);
        self
    }

    /// Row and column under the cursor.
    #[must_use]
    pub const fn cursor(mut self, row: usize, column: usize) -> Self {
        self.cursor = Some((row, column));
        self
    }

    /// Number of rows.
    pub const fn rows(&self) -> usize {
        match self.values.len().checked_div(self.columns) {
            Some(rows) => rows,
            None => 0,
        }
    }

    /// What lies under a cell of the screen: a row and the columns binned there.
    pub fn at(&self, area: Rect, position: Position) -> Option<(usize, Range<usize>)> {
        let frame = self.frame(area);
        if !frame.cells.contains(position) {
            return None;
        }
        let line = usize::from(position.y - frame.cells.y);
        let row = frame.rows.start + line * frame.rows_per_line;
        let columns = frame.bins.values(usize::from(position.x - frame.cells.x));
        (frame.rows.contains(&row) && !columns.is_empty()).then_some((row, columns))
    }

    fn frame(&self, area: Rect) -> Frame {
        let has_axis = area.height >= 3;
        let label_width = self.row_labels.iter().map(|label| text::width(label)).max().map_or(0, |n| n + 1);
        // Labels never take more than half the picture.
        let label_width = columns(label_width).min(area.width / 2);
        let cells = Rect {
            x: area.x + label_width,
            width: area.width - label_width,
            height: area.height - u16::from(has_axis),
            ..area
        };
        let rows_per_line = if self.styles.heat_in_half_blocks() && !self.whole_cells { 2 } else { 1 };
        let shown = (usize::from(cells.height) * rows_per_line).min(self.rows());
        let mut first = self.first_row.min(self.rows() - shown);
        if let Some((row, _)) = self.cursor.filter(|&(row, _)| row < self.rows() && shown > 0) {
            first = first.clamp((row + 1).saturating_sub(shown), row);
        }
        Frame {
            cells,
            axis: has_axis.then(|| area.bottom() - 1),
            bins: Bins::new(self.columns, cells.width),
            rows: first..first + shown,
            rows_per_line,
        }
    }

    fn value(&self, row: usize, columns: Range<usize>) -> Option<f32> {
        let row = self.values.get(row * self.columns..(row + 1) * self.columns)?;
        self.binning.join(row.get(columns)?.iter().copied())
    }

    fn cell(&self, frame: &Frame, row: usize, bin: usize) -> (char, Style) {
        let columns = frame.bins.values(bin);
        let value = |row: usize| {
            (row < frame.rows.end)
                .then(|| self.value(row, columns.clone()))
                .flatten()
                .map(|v| self.styles.heat(v))
        };
        if frame.rows_per_line == 1 {
            let patch = self.styles.heat_in_half_blocks().then_some('█');
            return value(row).map_or((' ', Style::new()), |heat| {
                (patch.unwrap_or(heat.glyph), Style::new().fg(heat.color))
            });
        }
        match (value(row), value(row + 1)) {
            (None, None) => (' ', Style::new()),
            (Some(upper), None) => ('▀', Style::new().fg(upper.color)),
            (None, Some(lower)) => ('▄', Style::new().fg(lower.color)),
            (Some(upper), Some(lower)) => ('▀', Style::new().fg(upper.color).bg(lower.color)),
        }
    }

    fn draw_cursor(&self, frame: &Frame, buf: &mut Buffer) {
        let Some((row, column)) = self.cursor else { return };
        let (true, Some(bin)) = (frame.rows.contains(&row), frame.bins.cell(column)) else { return };
        let line = (row - frame.rows.start) / frame.rows_per_line;
        let (x, y) = (frame.cells.x + columns(bin), frame.cells.y + columns(line));
        if frame.rows_per_line == 1 {
            if let Some(cell) = buf.cell_mut((x, y)) {
                cell.set_style(self.styles[Role::Cursor]);
            }
        } else {
            // The row that shares the cell keeps its colour; the half under the cursor becomes the mark.
            let is_upper = (row - frame.rows.start).is_multiple_of(2);
            let other = if is_upper { row + 1 } else { row - 1 };
            let ground = |row: usize| {
                self.value(row, frame.bins.values(bin)).map_or(Color::Reset, |v| self.styles.heat(v).color)
            };
            let other = if frame.rows.contains(&other) { ground(other) } else { Color::Reset };
            // The terminal's own text colour is on no ramp.
            let style = Style::new().fg(Color::Reset).bg(other);
            put_char(buf, frame.cells, x, y, if is_upper { '▀' } else { '▄' }, style);
        }
        if let Some(y) = frame.axis {
            put_char(
                buf,
                frame.cells.union(Rect { y, height: 1, ..frame.cells }),
                x,
                y,
                '^',
                self.styles[Role::Accent],
            );
        }
    }

    fn draw_axis(&self, frame: &Frame, area: Rect, buf: &mut Buffer) {
        let Some(y) = frame.axis else { return };
        let axis = Rect { y, height: 1, ..frame.cells };
        let dim = self.styles[Role::Dim];
        if frame.bins.per_cell() > 1 {
            // Under the row labels, where the axis has nothing to say; else at its end.
            let note = format!("{} of {}", self.binning.word(), frame.bins.per_cell());
            let corner = Rect { y, height: 1, width: frame.cells.x - area.x, ..area };
            if text::width(&note) < usize::from(corner.width) {
                put(buf, corner, corner.x, y, &note, dim);
            } else {
                put_right(buf, axis, axis.right(), y, &format!(" {note}"), dim);
            }
        }
        let (Some(label), Some(last)) = (self.column_label, self.columns.checked_sub(1)) else { return };
        let end = axis.x.saturating_add(columns(frame.bins.cells())).min(axis.right());
        let first = label(0);
        let last = label(last);
        let free = |from: u16, to: u16, buf: &Buffer| {
            (from..to).all(|x| buf.cell((x, y)).is_some_and(|cell| cell.symbol() == " "))
        };
        let first_end = axis.x.saturating_add(columns(text::width(&first)));
        if first_end <= end && free(axis.x, first_end, buf) {
            put(buf, axis, axis.x, y, &first, dim);
        }
        if let Some((_, column)) = self.cursor
            && let Some(bin) = frame.bins.cell(column)
        {
            let text = label(column);
            let x = axis.x.saturating_add(columns(bin)).saturating_add(1);
            if free(x, x.saturating_add(columns(text::width(&text))), buf) {
                put(buf, axis, x, y, &text, self.styles[Role::Accent]);
            }
        }
        let last_start = end.saturating_sub(columns(text::width(&last)));
        if last_start > first_end && free(last_start.saturating_sub(1), end, buf) {
            put(buf, axis, last_start, y, &last, dim);
        }
    }

    fn draw_row_labels(&self, frame: &Frame, area: Rect, buf: &mut Buffer) {
        let room = Rect { width: (frame.cells.x - area.x).saturating_sub(1), ..frame.cells };
        let room = Rect { x: area.x, ..room };
        for (line, y) in (frame.cells.y..frame.cells.bottom()).enumerate() {
            let first = frame.rows.start + line * frame.rows_per_line;
            let rows = first..(first + frame.rows_per_line).min(frame.rows.end);
            // Of two rows on a line the one under the cursor is named, else the upper.
            let under_cursor = self.cursor.map(|(row, _)| row).filter(|row| rows.contains(row));
            let Some(label) = self.row_labels.get(under_cursor.unwrap_or(first)).filter(|_| !rows.is_empty())
            else {
                continue;
            };
            let role = if under_cursor.is_some() { Role::Cursor } else { Role::Dim };
            put_right(buf, room, room.right(), y, label, self.styles[role]);
        }
    }
}

impl Widget for &Heatmap<'_> {
    fn render(self, area: Rect, buf: &mut Buffer) {
        let area = area.intersection(buf.area);
        if area.is_empty() {
            return;
        }
        let frame = self.frame(area);
        for (line, y) in (frame.cells.y..frame.cells.bottom()).enumerate() {
            let row = frame.rows.start + line * frame.rows_per_line;
            if row >= frame.rows.end {
                break;
            }
            for bin in 0..frame.bins.cells() {
                let (glyph, style) = self.cell(&frame, row, bin);
                put_char(buf, frame.cells, frame.cells.x + columns(bin), y, glyph, style);
            }
        }
        self.draw_row_labels(&frame, area, buf);
        self.draw_cursor(&frame, buf);
        self.draw_axis(&frame, area, buf);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::export::{styled_dump, text};
    use crate::ui::theme::{dark, plain};

    fn ramp(rows: usize, columns: usize) -> Vec<Option<f32>> {
        (0..rows * columns).map(|i| Some(i as f32 / (rows * columns - 1) as f32)).collect()
    }

    #[test]
    fn two_rows_share_a_cell_where_there_is_colour() {
        let mut values = ramp(3, 4);
        values[5] = None;
        let mut buf = Buffer::empty(Rect::new(0, 0, 4, 2));
        (&Heatmap::new(&dark(), &values, 4)).render(buf.area, &mut buf);
        insta::assert_snapshot!(styled_dump(&buf), @r#"
        |▀▀▀▀|
        |▀▀▀▀|
        |abcd|
        |efgh|
        a = fg #440154 bg #34628d
        b = fg #461566
        c = fg #45317c bg #248d8c
        d = fg #3d4b88 bg #34a77e
        e = fg #67c65d
        f = fg #a0d93b
        g = fg #d9e329
        h = fg #fee825
        "#);
    }

    #[test]
    fn glyphs_carry_the_values_where_there_is_none() {
        let labels = ["l0", "l1", "l2"].map(str::to_owned);
        let mut values = ramp(3, 9);
        values[4] = None;
        let mut buf = Buffer::empty(Rect::new(0, 0, 12, 4));
        let label = |column: usize| column.to_string();
        (&Heatmap::new(&plain(), &values, 9).row_labels(&labels).column_label(&label).cursor(1, 4))
            .render(buf.area, &mut buf);
        insta::assert_snapshot!(styled_dump(&buf), @r#"
        |l0 ...: :---|
        |l1 ===+++***|
        |l2 ###%%%@@@|
        |   0   ^4  8|
        |aa..........|
        |bb.....b....|
        |aa..........|
        |...a...cc..a|
        a = dim
        b = reversed
        c = bold
        "#);
    }

    #[test]
    fn the_cursor_leaves_the_row_it_shares_a_cell_with() {
        let values = ramp(4, 3);
        let labels = ["a", "b", "c", "d"].map(str::to_owned);
        let mut buf = Buffer::empty(Rect::new(0, 0, 5, 3));
        (&Heatmap::new(&dark(), &values, 3).row_labels(&labels).cursor(3, 1)).render(buf.area, &mut buf);
        insta::assert_snapshot!(styled_dump(&buf), @r#"
        |a ▀▀▀|
        |d ▀▄▀|
        |   ^ |
        |a.bcd|
        |e.fgh|
        |...i.|
        a = fg #8a93a0
        b = fg #440154 bg #3d4b88
        c = fg #461566 bg #34628d
        d = fg #45317c bg #2a788e
        e = reversed
        f = fg #248d8c bg #a0d93b
        g = bg #34a77e
        h = fg #67c65d bg #fee825
        i = fg #6cb6ff
        "#);
    }

    #[test]
    fn binned_columns_say_so_and_keep_the_largest() {
        let mut values = vec![Some(0.0); 40];
        values[33] = Some(1.0);
        let mut buf = Buffer::empty(Rect::new(0, 0, 10, 3));
        (&Heatmap::new(&plain(), &values, 40)).render(buf.area, &mut buf);
        assert_eq!(text(&buf), "........@.\n\n  max of 4\n");
    }

    #[test]
    fn the_cursor_stays_visible_and_cells_map_back() {
        let values = ramp(50, 8);
        let styles = plain();
        let area = Rect::new(0, 0, 8, 12);
        let map = Heatmap::new(&styles, &values, 8).cursor(40, 3);
        let (row, columns) = map.at(area, Position::new(3, 10)).unwrap();
        assert_eq!((row, columns), (40, 3..4));
        assert_eq!(map.at(area, Position::new(3, 11)), None);
    }
}
