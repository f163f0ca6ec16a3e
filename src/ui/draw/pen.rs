//! Writing a line of styled words into a rectangle, never past its edge.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use crate::event::Provenance;
use crate::ui::text;
use crate::ui::theme::{Role, Styles};

/// Words from left to right, lines from top to bottom. What does not fit is cut, with a sign that it was.
pub(in crate::ui) struct Pen<'b, 's> {
    buf: &'b mut Buffer,
    styles: &'s Styles,
    area: Rect,
    x: u16,
    y: u16,
}

impl<'b, 's> Pen<'b, 's> {
    /// A pen at the top left of `area`.
    pub(in crate::ui) fn new(buf: &'b mut Buffer, area: Rect, styles: &'s Styles) -> Self {
        let area = area.intersection(buf.area);
        Self { buf, styles, area, x: area.x, y: area.y }
    }

    /// Columns left on the line.
    pub(in crate::ui) fn room(&self) -> u16 {
        if self.is_full() { 0 } else { self.area.right().saturating_sub(self.x) }
    }

    /// Lines left, the present one included.
    pub(in crate::ui) const fn lines(&self) -> u16 {
        self.area.bottom().saturating_sub(self.y)
    }

    /// Whether the last line is behind the pen.
    pub(in crate::ui) const fn is_full(&self) -> bool {
        self.y >= self.area.bottom() || self.area.width == 0
    }

    /// The present cell.
    pub(in crate::ui) const fn at(&self) -> (u16, u16) {
        (self.x, self.y)
    }

    /// Writes safe text in a role.
    pub(in crate::ui) fn put(&mut self, words: &str, role: Role) -> &mut Self {
        self.styled(words, self.styles[role])
    }

    /// Writes safe text in a style.
    pub(in crate::ui) fn styled(&mut self, words: &str, style: Style) -> &mut Self {
        let room = usize::from(self.room());
        if room > 0 && !words.is_empty() {
            let cut = text::fit(words, room, self.styles.symbols());
            (self.x, _) = self.buf.set_stringn(self.x, self.y, cut, room, style);
        }
        self
    }

    /// Writes text that came from a model, a recording or a file.
    pub(in crate::ui) fn foreign(&mut self, words: &str, role: Role) -> &mut Self {
        let safe = text::safe(words.as_bytes(), self.styles.symbols());
        self.put(&safe, role)
    }

    /// Writes a figure and the mark of how it came to be.
    pub(in crate::ui) fn figure(&mut self, figure: &str, provenance: Provenance) -> &mut Self {
        self.put(figure, Role::Text).put(" ", Role::Text);
        let mark = self.styles.mark(provenance);
        self.styled(&mark.content, mark.style)
    }

    /// Leaves columns blank.
    pub(in crate::ui) fn skip(&mut self, columns: u16) -> &mut Self {
        self.x = self.x.saturating_add(columns).min(self.area.right());
        self
    }

    /// Goes to a column, counted from the left edge.
    pub(in crate::ui) fn column(&mut self, column: u16) -> &mut Self {
        self.x = self.area.x.saturating_add(column).min(self.area.right());
        self
    }

    /// A dot between two items, if the line has begun.
    pub(in crate::ui) fn dot(&mut self) -> &mut Self {
        if self.x > self.area.x {
            let dot = self.styles.symbols().dot();
            self.put(&format!(" {dot} "), Role::Dim);
        }
        self
    }

    /// Goes to the next line.
    pub(in crate::ui) const fn newline(&mut self) -> &mut Self {
        self.x = self.area.x;
        self.y = self.y.saturating_add(1);
        self
    }

    /// Writes safe text over several lines, broken between words, the later lines indented; ends on a new line.
    pub(in crate::ui) fn wrapped(&mut self, words: &str, role: Role, indent: u16) -> &mut Self {
        let mut first = true;
        for word in words.split(' ').filter(|w| !w.is_empty()) {
            let width = text::width(word) as u16;
            if !first && self.room() < width + 1 {
                if self.lines() == 1 {
                    // Nothing follows the last line: its end is a word that is cut.
                    self.x = if self.room() > 1 { self.x + 1 } else { self.area.right() - 1 };
                    return self.put(word, role).newline();
                }
                self.newline().skip(indent);
            } else if !first {
                self.skip(1);
            }
            if self.is_full() {
                return self;
            }
            self.put(word, role);
            first = false;
        }
        self.newline()
    }

    /// The glyphs and colours it writes with.
    pub(in crate::ui) const fn styles(&self) -> &'s Styles {
        self.styles
    }

    /// A single glyph.
    pub(in crate::ui) fn glyph(&mut self, glyph: char, style: Style) -> &mut Self {
        self.styled(glyph.encode_utf8(&mut [0; 4]), style)
    }

    /// Paints the style over what stands in `columns` of the present line.
    pub(in crate::ui) fn restyle(&mut self, from: u16, columns: u16, style: Style) -> &mut Self {
        if !self.is_full() {
            let line = Rect { x: from, y: self.y, width: columns, height: 1 };
            self.buf.set_style(line.intersection(self.area), style);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::theme::dark;

    fn lines(words: &str, width: u16, height: u16) -> Vec<String> {
        let area = Rect { x: 0, y: 0, width, height };
        let mut buf = Buffer::empty(area);
        Pen::new(&mut buf, area, &dark()).wrapped(words, Role::Text, 0);
        let line = |y: u16| (0..width).map(|x| buf[(x, y)].symbol().to_owned()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    #[test]
    fn words_that_have_no_line_leave_a_sign() {
        assert_eq!(lines("one two three", 7, 2), ["one two", "three"]);
        assert_eq!(lines("one two three four", 7, 2), ["one two", "three …"]);
        assert_eq!(lines("one two three", 7, 1), ["one tw…"]);
        assert_eq!(lines("one three", 7, 1), ["one th…"]);
        assert_eq!(lines("one two three", 9, 1), ["one two …"]);
    }
}
