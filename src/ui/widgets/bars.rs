//! Horizontal bars of one line.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::widgets::Widget;

use super::{columns, put, put_char, put_right};
use crate::ui::text;
use crate::ui::theme::{Role, Styles};

/// One part of a [`StackedBar`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part<'a> {
    /// Its name, drawn inside where it fits.
    pub label: &'a str,
    /// How much; negative and non-finite values count as nothing.
    pub value: f64,
    /// Its style.
    pub style: Style,
    /// What fills it where colours cannot tell parts apart.
    pub letter: char,
}

/// Parts of a whole side by side. Widths are rounded so that they add up; a part that is there takes at least a column
/// as long as there is one to give.
#[derive(Clone, Debug)]
pub struct StackedBar<'a> {
    styles: &'a Styles,
    parts: &'a [Part<'a>],
    whole: Option<f64>,
}

impl<'a> StackedBar<'a> {
    /// A bar that the parts fill.
    pub const fn new(styles: &'a Styles, parts: &'a [Part<'a>]) -> Self {
        Self { styles, parts, whole: None }
    }

    /// What the full width stands for, such as a capacity; the parts' sum if that is larger.
    #[must_use]
    pub const fn whole(mut self, whole: f64) -> Self {
        self.whole = Some(whole);
        self
    }

    /// Columns of each part in a bar of `width`.
    pub fn widths(&self, width: u16) -> Vec<u16> {
        let amount = |part: &Part<'_>| if part.value.is_finite() { part.value.max(0.0) } else { 0.0 };
        let sum: f64 = self.parts.iter().map(amount).sum();
        let whole = self.whole.filter(|whole| whole.is_finite()).map_or(sum, |whole| whole.max(sum));
        if whole <= 0.0 || !whole.is_finite() {
            return vec![0; self.parts.len()];
        }
        // Ends are rounded, not widths: errors do not add up.
        let mut total = 0.0;
        let mut end = 0_u16;
        let mut widths: Vec<u16> = self
            .parts
            .iter()
            .map(|part| {
                total += amount(part);
                let next = (total / whole * f64::from(width)).round() as u16;
                let part_width = next - end;
                end = next;
                part_width
            })
            .collect();
        self.give_small_parts_a_column(&mut widths, width);
        widths
    }

    fn give_small_parts_a_column(&self, widths: &mut [u16], width: u16) {
        for index in 0..widths.len() {
            if widths[index] > 0
                || self.parts[index].value.partial_cmp(&0.0) != Some(std::cmp::Ordering::Greater)
            {
                continue;
            }
            if widths.iter().sum::<u16>() < width {
                widths[index] = 1;
            } else if let Some(widest) =
                (0..widths.len()).max_by_key(|&i| widths[i]).filter(|&i| widths[i] > 1)
            {
                widths[widest] -= 1;
                widths[index] = 1;
            }
        }
    }
}

impl Widget for &StackedBar<'_> {
    fn render(self, area: Rect, buf: &mut Buffer) {
        let area = area.intersection(buf.area);
        if area.is_empty() {
            return;
        }
        let line = Rect { height: 1, ..area };
        let has_color = self.styles.has_phase_colors();
        let mut x = line.x;
        for (part, width) in self.parts.iter().zip(self.widths(line.width)) {
            let cells = Rect { x, width, ..line };
            let glyph = if has_color { self.styles.symbols().full() } else { part.letter };
            for x in cells.x..cells.right() {
                put_char(buf, line, x, line.y, glyph, part.style);
            }
            // The name needs a column on either side to be told from its neighbours'.
            if text::width(part.label) + 2 <= usize::from(width) {
                let style = part.style.add_modifier(Modifier::REVERSED);
                put(buf, cells, x + 1, line.y, part.label, style);
            }
            x = cells.right();
        }
        let ground = if self.styles.symbols().is_ascii() { '.' } else { '░' };
        for x in x..line.right() {
            put_char(buf, line, x, line.y, ground, self.styles[Role::Free]);
        }
    }
}

/// A share of a limit: label, bar, figure.
#[derive(Clone, Debug)]
pub struct Gauge<'a> {
    styles: &'a Styles,
    share: f64,
    label: &'a str,
    figure: &'a str,
    role: Role,
}

impl<'a> Gauge<'a> {
    /// A gauge of a share from 0 to 1.
    pub const fn new(styles: &'a Styles, share: f64) -> Self {
        Self { styles, share, label: "", figure: "", role: Role::Accent }
    }

    /// Text before the bar.
    #[must_use]
    pub const fn label(mut self, label: &'a str) -> Self {
        self.label = label;
        self
    }

    /// Text after the bar, of constant width so that the bar stays where it is.
    #[must_use]
    pub const fn figure(mut self, figure: &'a str) -> Self {
        self.figure = figure;
        self
    }

    /// What the bar means.
    #[must_use]
    pub const fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }
}

impl Widget for &Gauge<'_> {
    fn render(self, area: Rect, buf: &mut Buffer) {
        let area = area.intersection(buf.area);
        if area.is_empty() {
            return;
        }
        let line = Rect { height: 1, ..area };
        let mut left = put(buf, line, line.x, line.y, self.label, self.styles[Role::Text]);
        let figure_width = columns(text::width(self.figure));
        let mut right = line.right();
        if !self.figure.is_empty() && figure_width <= right.saturating_sub(left) {
            put_right(buf, line, right, line.y, self.figure, self.styles[Role::Text]);
            right = right.saturating_sub(figure_width + 1);
        }
        if left > line.x {
            left = left.saturating_add(1);
        }
        let bar = Rect { x: left, width: right.saturating_sub(left), ..line };
        let symbols = self.styles.symbols();
        let parts = symbols.left_parts();
        let steps = parts.len() + 1;
        let share = if self.share.is_nan() { 0.0 } else { self.share.clamp(0.0, 1.0) };
        let filled = (share * f64::from(bar.width) * steps as f64).round() as usize;
        for (i, x) in (bar.x..bar.right()).enumerate() {
            let (glyph, role) = match filled.saturating_sub(i * steps) {
                0 => (symbols.pick('·', '.'), Role::Dim),
                rest if rest >= steps => (symbols.full(), self.role),
                rest => (parts[rest - 1], self.role),
            };
            put_char(buf, bar, x, bar.y, glyph, self.styles[role]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ui::export::{styled_dump, text};
    use crate::ui::theme::{dark, plain};

    fn part(label: &str, value: f64, letter: char) -> Part<'_> {
        Part { label, value, style: Style::new(), letter }
    }

    #[test]
    fn stacked_parts_show_names_letters_and_what_is_left() {
        let parts = [part("live", 50.0, 'l'), part("stranded", 25.0, 's'), part("tiny", 0.1, 't')];
        let styles = plain();
        let mut buf = Buffer::empty(Rect::new(0, 0, 20, 1));
        (&StackedBar::new(&styles, &parts).whole(100.0)).render(buf.area, &mut buf);
        assert_eq!(text(&buf), "lliveLllllssssst....\n".replace('L', "l"));
    }

    #[test]
    fn parts_have_their_colours() {
        let styles = dark();
        let parts = [
            Part { style: styles[Role::Live], ..part("live", 3.0, 'l') },
            Part { style: styles[Role::Stranded], ..part("", 1.0, 's') },
        ];
        let mut buf = Buffer::empty(Rect::new(0, 0, 8, 1));
        (&StackedBar::new(&styles, &parts)).render(buf.area, &mut buf);
        insta::assert_snapshot!(styled_dump(&buf), @r#"
        |█live███|
        |abbbbacc|
        a = fg #62c4b4
        b = fg #62c4b4 reversed
        c = fg #e8837f
        "#);
    }

    #[test]
    fn gauges_fill_in_eighths() {
        let mut buf = Buffer::empty(Rect::new(0, 0, 20, 1));
        (&Gauge::new(&dark(), 0.5).label("gpu").figure(" 50.0%")).render(buf.area, &mut buf);
        assert_eq!(text(&buf), "gpu ████▌····  50.0%\n");
        let mut buf = Buffer::empty(Rect::new(0, 0, 20, 1));
        (&Gauge::new(&plain(), 0.5).label("gpu").figure(" 50.0%")).render(buf.area, &mut buf);
        assert_eq!(text(&buf), "gpu #####....  50.0%\n");
    }

    proptest! {
        #[test]
        fn widths_add_up(values in proptest::collection::vec(0.0_f64..1e6, 0..14), width in 0_u16..200) {
            let parts: Vec<_> = values.iter().map(|&value| part("", value, 'x')).collect();
            let styles = plain();
            let widths = StackedBar::new(&styles, &parts).widths(width);
            let sum: u16 = widths.iter().sum();
            let expected = if values.iter().sum::<f64>() > 0.0 { width } else { 0 };
            prop_assert_eq!(sum, expected);
            let present = values.iter().filter(|&&value| value > 0.0).count();
            if present <= usize::from(width) {
                for (value, part_width) in values.iter().zip(widths) {
                    prop_assert_eq!(*value > 0.0, part_width > 0);
                }
            }
        }
    }
}
