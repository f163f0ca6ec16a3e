//! What glyphs mean and what keys do.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::widgets::Widget;

use super::{columns, put};
use crate::ui::text;
use crate::ui::theme::{Role, Styles};

/// One line of a legend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry<'a> {
    /// The glyph as the picture draws it.
    pub glyph: char,
    /// Its style.
    pub style: Style,
    /// What it means.
    pub label: &'a str,
}

impl Entry<'_> {
    fn width(&self) -> u16 {
        columns(2 + text::width(self.label))
    }
}

/// Glyphs and their meanings, flowing over as many lines as there are. An entry is shown whole or not at all.
#[derive(Clone, Debug)]
pub struct Legend<'a> {
    styles: &'a Styles,
    entries: &'a [Entry<'a>],
}

impl<'a> Legend<'a> {
    /// A legend.
    pub const fn new(styles: &'a Styles, entries: &'a [Entry<'a>]) -> Self {
        Self { styles, entries }
    }

    /// Lines it takes at a width.
    pub fn height(&self, width: u16) -> u16 {
        self.places(width).last().map_or(0, |(_, y, _)| y.saturating_add(1))
    }

    /// Entries with their places, relative to the upper left corner.
    fn places(&self, width: u16) -> impl Iterator<Item = (u16, u16, &Entry<'a>)> {
        let (mut x, mut y) = (0_u16, 0_u16);
        self.entries.iter().filter(move |entry| entry.width() <= width).map(move |entry| {
            if x > 0 && x.saturating_add(entry.width()) > width {
                (x, y) = (0, y.saturating_add(1));
            }
            let place = (x, y, entry);
            x = x.saturating_add(entry.width()).saturating_add(2);
            place
        })
    }
}

impl Widget for &Legend<'_> {
    fn render(self, area: Rect, buf: &mut Buffer) {
        let area = area.intersection(buf.area);
        for (x, y, entry) in self.places(area.width).take_while(|&(_, y, _)| y < area.height) {
            let (x, y) = (area.x + x, area.y + y);
            super::put_char(buf, area, x, y, entry.glyph, entry.style);
            put(buf, area, x + 2, y, entry.label, self.styles[Role::Dim]);
        }
    }
}

/// The line at the bottom that says what keys do here. Pairs are shown whole, in order, as many as fit.
#[derive(Clone, Debug)]
pub struct KeyHints<'a> {
    styles: &'a Styles,
    hints: &'a [(&'a str, &'a str)],
}

impl<'a> KeyHints<'a> {
    /// Pairs of key and what it does, the most useful first.
    pub const fn new(styles: &'a Styles, hints: &'a [(&'a str, &'a str)]) -> Self {
        Self { styles, hints }
    }
}

impl Widget for &KeyHints<'_> {
    fn render(self, area: Rect, buf: &mut Buffer) {
        let area = area.intersection(buf.area);
        let mut x = area.x;
        for (key, does) in self.hints {
            let width = columns(text::width(key) + 1 + text::width(does));
            if x.saturating_add(width) > area.right() {
                break;
            }
            x = put(buf, area, x, area.y, key, self.styles[Role::Key]);
            x = put(buf, area, x + 1, area.y, does, self.styles[Role::Hint]).saturating_add(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::export::{styled_dump, text as plain_text};
    use crate::ui::theme::dark;

    #[test]
    fn legends_flow_and_keep_entries_whole() {
        let styles = dark();
        let entries = ["live", "stranded", "free", "a label wider than the area"].map(|label| Entry {
            glyph: '█',
            style: styles[Role::Live],
            label,
        });
        let legend = Legend::new(&styles, &entries);
        assert_eq!(legend.height(20), 2);
        assert_eq!(legend.height(80), 1);
        let mut buf = Buffer::empty(Rect::new(0, 0, 20, 2));
        (&legend).render(buf.area, &mut buf);
        assert_eq!(plain_text(&buf), "█ live  █ stranded\n█ free\n");
    }

    #[test]
    fn key_hints_stop_before_the_first_that_does_not_fit() {
        let styles = dark();
        let hints = KeyHints::new(&styles, &[("q", "quit"), ("?", "help"), ("Space", "freeze")]);
        let mut buf = Buffer::empty(Rect::new(0, 0, 18, 1));
        (&hints).render(buf.area, &mut buf);
        insta::assert_snapshot!(styled_dump(&buf), @r#"
        |q quit  ? help    |
        |a.bbbb..a.bbbb....|
        a = fg #9ecbff bold
        b = fg #8a93a0
        "#);
    }
}
