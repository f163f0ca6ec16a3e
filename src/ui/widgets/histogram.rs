//! How often what: bars over buckets, with percentiles marked.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::Widget;

use super::{Bins, columns, put, put_char, put_right};
use crate::ui::number;
use crate::ui::text;
use crate::ui::theme::{Role, Styles};

/// A named bucket, such as the one that holds the median.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark<'a> {
    /// `p50`, `max` …
    pub label: &'a str,
    /// Index of the bucket.
    pub bucket: usize,
}

/// Counts in buckets, spaced as the caller spaced them (latencies: by powers). Buckets that do not fit are added up, the
/// same number in each column. A bucket that holds anything shows.
#[derive(Clone)]
pub struct Histogram<'a> {
    styles: &'a Styles,
    counts: &'a [u64],
    marks: &'a [Mark<'a>],
    bucket_label: Option<&'a dyn Fn(usize) -> String>,
    role: Role,
}

impl<'a> Histogram<'a> {
    /// Bars for counts.
    pub const fn new(styles: &'a Styles, counts: &'a [u64]) -> Self {
        Self { styles, counts, marks: &[], bucket_label: None, role: Role::Accent }
    }

    /// Buckets named above the bars, the most important first: one that has no room left is not named.
    #[must_use]
    pub const fn marks(mut self, marks: &'a [Mark<'a>]) -> Self {
        self.marks = marks;
        self
    }

    /// The lower end of a bucket, for the axis below.
    #[must_use]
    pub const fn bucket_label(mut self, label: &'a dyn Fn(usize) -> String) -> Self {
        self.bucket_label = Some(label);
        self
    }

    /// What the bars mean.
    #[must_use]
    pub const fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    fn draw_marks(&self, bins: Bins, bars: Rect, y: u16, buf: &mut Buffer) {
        let line = Rect { y, height: 1, ..bars };
        let mut taken: Vec<(u16, u16)> = Vec::new();
        for mark in self.marks {
            let Some(cell) = bins.cell(mark.bucket) else { continue };
            let width = columns(text::width(mark.label));
            let x = (line.x + columns(cell)).min(line.right().saturating_sub(width)).max(line.x);
            let end = x.saturating_add(width);
            if end > line.right() || taken.iter().any(|&(from, to)| x <= to && from <= end) {
                continue;
            }
            taken.push((x, end));
            put(buf, line, x, y, mark.label, self.styles[Role::Title]);
        }
    }

    fn draw_axis(&self, bins: Bins, bars: Rect, y: u16, buf: &mut Buffer) {
        let (Some(label), Some(last)) = (self.bucket_label, self.counts.len().checked_sub(1)) else { return };
        let line = Rect { y, height: 1, ..bars };
        let dim = self.styles[Role::Dim];
        // Three labels are enough to read a logarithmic axis: its ends and its middle.
        let used = columns(bins.cells());
        let first_end = put(buf, line, line.x, y, &label(0), dim);
        let text_of_last = label(last);
        let last_start = (line.x + used).saturating_sub(columns(text::width(&text_of_last)));
        let middle_cell = bins.cells() / 2;
        let text_of_middle = label(bins.values(middle_cell).start);
        let middle = line.x + columns(middle_cell);
        if last_start <= first_end {
            return;
        }
        put_right(buf, line, line.x + used, y, &text_of_last, dim);
        if middle > first_end && middle.saturating_add(columns(text::width(&text_of_middle))) < last_start {
            put(buf, line, middle, y, &text_of_middle, dim);
        }
    }
}

impl Widget for &Histogram<'_> {
    fn render(self, area: Rect, buf: &mut Buffer) {
        let area = area.intersection(buf.area);
        if area.is_empty() {
            return;
        }
        let has_marks = area.height >= 2 && !self.marks.is_empty();
        let has_axis = area.height >= 3 && self.bucket_label.is_some();
        // The scale: how many the highest bar stands for.
        let scale_width = columns(number::COUNT_WIDTH + 1);
        let scale_width = if area.width > 4 * scale_width { scale_width } else { 0 };
        let bars = Rect {
            x: area.x + scale_width,
            y: area.y + u16::from(has_marks),
            width: area.width - scale_width,
            height: area.height - u16::from(has_marks) - u16::from(has_axis),
        };
        let bins = Bins::new(self.counts.len(), bars.width);
        let count =
            |cell: usize| self.counts[bins.values(cell)].iter().fold(0, |sum: u64, &n| sum.saturating_add(n));
        let highest = (0..bins.cells()).map(count).max().unwrap_or(0);
        for cell in 0..bins.cells() {
            let share = if highest == 0 { 0.0 } else { count(cell) as f64 / highest as f64 };
            super::draw_column(
                buf,
                bars,
                columns(cell),
                share,
                self.styles.symbols(),
                self.styles[self.role],
            );
        }
        if scale_width > 0 {
            put(buf, area, area.x, bars.y, &number::count(highest), self.styles[Role::Dim]);
        }
        if has_marks {
            self.draw_marks(bins, bars, area.y, buf);
            for mark in self.marks {
                if let Some(cell) = bins.cell(mark.bucket).filter(|&cell| count(cell) == 0) {
                    let x = bars.x + columns(cell);
                    put_char(buf, bars, x, bars.bottom().saturating_sub(1), '\'', self.styles[Role::Title]);
                }
            }
        }
        if has_axis {
            self.draw_axis(bins, bars, area.bottom() - 1, buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::export::{styled_dump, text};
    use crate::ui::theme::{dark, plain};

    const COUNTS: [u64; 16] = [0, 0, 1, 3, 9, 40, 80, 64, 30, 12, 6, 3, 1, 0, 0, 1];

    #[test]
    fn bars_marks_and_axis() {
        let marks = [("p50", 6), ("p99", 12), ("max", 15)].map(|(label, bucket)| Mark { label, bucket });
        let label = |bucket: usize| format!("{}us", 1 << bucket);
        let mut buf = Buffer::empty(Rect::new(0, 0, 26, 6));
        (&Histogram::new(&dark(), &COUNTS).marks(&marks).bucket_label(&label)).render(buf.area, &mut buf);
        insta::assert_snapshot!(styled_dump(&buf), @r#"
        |            p50   p99     |
        |   80       █▂            |
        |            ██            |
        |           ███▄           |
        |        ▁▁▄████▅▂▁▁  ▁    |
        |      1us      32768us    |
        |............aaa...aaa.....|
        |bbbbb.......cc............|
        |............cc............|
        |...........cccc...........|
        |........ccccccccccc..c....|
        |......bbb......bbbbbbb....|
        a = bold
        b = fg #8a93a0
        c = fg #6cb6ff
        "#);
    }

    #[test]
    fn a_single_sample_shows_and_buckets_add_up() {
        let mut buf = Buffer::empty(Rect::new(0, 0, 8, 2));
        (&Histogram::new(&plain(), &COUNTS)).render(buf.area, &mut buf);
        assert_eq!(text(&buf), "   #\n .=#=...\n");
    }
}
