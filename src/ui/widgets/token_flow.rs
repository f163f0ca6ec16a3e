//! Token text as it reads, every token with a look of its own.

use std::ops::Range;

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::widgets::Widget;

use crate::ui::text;
use crate::ui::theme::{Role, Styles, Symbols};

/// Where the glyphs of tokens go at a width. Made once for a text and a width, drawn many times.
///
/// A token that fits on a line is not split over two, a wider one starts where it stands; a line feed is drawn and ends
/// its line. A token without any bytes is drawn as `∅`, and one whose bytes are part of another token's character as `·`,
/// so that every token can be seen and pointed at.
#[derive(Clone, Debug, Default)]
pub struct TokenLayout {
    glyphs: Vec<Placed>,
    /// The text of all glyphs, one after the other.
    text: String,
    /// Index of the first glyph of each token, and of none at the end.
    tokens: Vec<u32>,
    /// Glyphs of each line.
    lines: Vec<Range<u32>>,
}

#[derive(Clone, Debug)]
struct Placed {
    /// Start in the text; the next glyph's start is its end.
    start: u32,
    token: u32,
    line: u32,
    x: u16,
    width: u16,
    is_picture: bool,
}

impl TokenLayout {
    /// Lays tokens out. At a width of 0 there are no lines.
    pub fn new<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, width: u16, symbols: Symbols) -> Self {
        let mut layout = Self::default();
        let mut line = Line { x: 0, first: 0, number: 0 };
        let pieces: Vec<&[u8]> = pieces.into_iter().collect();
        for piece in text::whole_characters(&pieces, symbols) {
            layout.push(&piece, width, symbols, &mut line);
        }
        layout.tokens.push(layout.glyphs.len() as u32);
        if width > 0 && (line.first as usize) < layout.glyphs.len() {
            layout.lines.push(line.first..layout.glyphs.len() as u32);
        }
        layout
    }

    fn push(&mut self, piece: &[u8], width: u16, symbols: Symbols, line: &mut Line) {
        let token = self.tokens.len() as u32;
        self.tokens.push(self.glyphs.len() as u32);
        let empty = symbols.pick("∅", "~").as_bytes();
        let piece = if piece.is_empty() { empty } else { piece };
        // A line feed inside a token makes it span lines anyway, so only what stands before it counts.
        let unbroken = text::glyphs(piece, symbols)
            .scan(false, |is_over, glyph| {
                let counts = !*is_over;
                *is_over |= glyph.breaks_line;
                counts.then_some(usize::from(glyph.width))
            })
            .take(usize::from(width) + 1)
            .sum::<usize>();
        if line.x > 0 && unbroken <= usize::from(width) && usize::from(line.x) + unbroken > usize::from(width)
        {
            self.end_line(width, line);
        }
        for glyph in text::glyphs(piece, symbols) {
            if line.x > 0 && line.x.saturating_add(glyph.width) > width {
                self.end_line(width, line);
            }
            self.glyphs.push(Placed {
                start: self.text.len() as u32,
                token,
                line: line.number,
                x: line.x,
                width: glyph.width,
                is_picture: glyph.is_picture,
            });
            self.text.push_str(&glyph.text);
            line.x = line.x.saturating_add(glyph.width);
            if glyph.breaks_line {
                self.end_line(width, line);
            }
        }
    }

    fn end_line(&mut self, width: u16, line: &mut Line) {
        let end = self.glyphs.len() as u32;
        if width > 0 {
            self.lines.push(line.first..end);
        }
        *line = Line { x: 0, first: end, number: line.number + 1 };
    }

    /// Number of lines.
    pub fn lines(&self) -> usize {
        self.lines.len()
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }

    /// The line a token starts on.
    pub fn line_of(&self, token: usize) -> Option<usize> {
        self.first_glyph(token).map(|glyph| glyph.line as usize)
    }

    /// Column and line a token starts at.
    pub fn place_of(&self, token: usize) -> Option<(u16, usize)> {
        self.first_glyph(token).map(|glyph| (glyph.x, glyph.line as usize))
    }

    /// The token at a column of a line.
    pub fn token_at(&self, x: u16, line: usize) -> Option<usize> {
        self.glyphs_of(line)
            .iter()
            .find(|glyph| (glyph.x..glyph.x.saturating_add(glyph.width)).contains(&x))
            .map(|glyph| glyph.token as usize)
    }

    /// The token nearest to a column of a line: what moving the cursor up or down arrives at.
    pub fn token_near(&self, x: u16, line: usize) -> Option<usize> {
        let glyphs = self.glyphs_of(line);
        glyphs.iter().rev().find(|glyph| glyph.x <= x).or(glyphs.first()).map(|glyph| glyph.token as usize)
    }

    fn first_glyph(&self, token: usize) -> Option<&Placed> {
        let (&first, &end) = (self.tokens.get(token)?, self.tokens.get(token + 1)?);
        self.glyphs.get(first as usize).filter(|_| first < end)
    }

    fn glyphs_of(&self, line: usize) -> &[Placed] {
        self.lines.get(line).map_or(&[], |range| &self.glyphs[range.start as usize..range.end as usize])
    }

    fn symbol(&self, index: usize) -> &str {
        let end = self.glyphs.get(index + 1).map_or(self.text.len(), |next| next.start as usize);
        &self.text[self.glyphs[index].start as usize..end]
    }
}

struct Line {
    x: u16,
    first: u32,
    number: u32,
}

/// Draws a [`TokenLayout`], scrolled to a line, each token in the style that the caller says.
#[derive(Clone)]
pub struct TokenFlow<'a> {
    styles: &'a Styles,
    layout: &'a TokenLayout,
    style_of: &'a dyn Fn(usize) -> Style,
    first_line: usize,
    cursor: Option<usize>,
}

impl<'a> TokenFlow<'a> {
    /// Tokens of a layout, made for the width of the area, with `style_of(token)`.
    pub const fn new(
        styles: &'a Styles,
        layout: &'a TokenLayout,
        style_of: &'a dyn Fn(usize) -> Style,
    ) -> Self {
        Self { styles, layout, style_of, first_line: 0, cursor: None }
    }

    /// The first line shown; it gives way where the cursor would not be visible.
    #[must_use]
    pub const fn first_line(mut self, line: usize) -> Self {
        self.first_line = line;
        self
    }

    /// The token under the cursor.
    #[must_use]
    pub const fn cursor(mut self, token: usize) -> Self {
        self.cursor = Some(token);
        self
    }

    /// The lines drawn in an area.
    pub fn visible(&self, area: Rect) -> Range<usize> {
        let shown = usize::from(area.height).min(self.layout.lines());
        let mut first = self.first_line.min(self.layout.lines() - shown);
        if let Some(line) = self.cursor.and_then(|token| self.layout.line_of(token)).filter(|_| shown > 0) {
            first = first.clamp((line + 1).saturating_sub(shown), line);
        }
        first..first + shown
    }

    /// The token drawn at a cell of the screen.
    pub fn at(&self, area: Rect, position: Position) -> Option<usize> {
        let line = self.visible(area).start + usize::from(position.y.checked_sub(area.y)?);
        let x = position.x.checked_sub(area.x)?;
        area.contains(position).then(|| self.layout.token_at(x, line)).flatten()
    }
}

impl Widget for &TokenFlow<'_> {
    fn render(self, area: Rect, buf: &mut Buffer) {
        let area = area.intersection(buf.area);
        for (line, y) in self.visible(area).zip(area.y..area.bottom()) {
            let range = self.layout.lines[line].clone();
            for index in range.start as usize..range.end as usize {
                let glyph = &self.layout.glyphs[index];
                if glyph.x.saturating_add(glyph.width) > area.width {
                    break;
                }
                let token = glyph.token as usize;
                let mut style = (self.style_of)(token);
                if glyph.is_picture {
                    style = style.add_modifier(Modifier::DIM);
                }
                if self.cursor == Some(token) {
                    style = style.patch(self.styles[Role::Cursor]);
                }
                super::put(buf, area, area.x + glyph.x, y, self.layout.symbol(index), style);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ui::export::{styled_dump, text};
    use crate::ui::theme::{dark, plain};

    fn layout(pieces: &[&str], width: u16) -> TokenLayout {
        TokenLayout::new(pieces.iter().map(|piece| piece.as_bytes()), width, Symbols::Block)
    }

    #[test]
    fn tokens_wrap_whole_and_line_feeds_end_lines() {
        let pieces = ["The", " pass", "key", " is", "\n", "", "日本", "abcdefghijklm"];
        let layout = layout(&pieces, 9);
        let mut buf = Buffer::empty(Rect::new(0, 0, 9, 6));
        let styles = dark();
        (&TokenFlow::new(&styles, &layout, &|_| Style::new())).render(buf.area, &mut buf);
        assert_eq!(text(&buf), "The pass\nkey is⏎\n∅日本abcd\nefghijklm\n\n\n");
        assert_eq!(layout.lines(), 4);
        assert_eq!(layout.place_of(2), Some((0, 1)));
        assert_eq!(layout.token_at(2, 2), Some(6));
        assert_eq!(layout.token_at(6, 1), Some(4));
        assert_eq!(layout.token_at(7, 1), None);
        assert_eq!(layout.token_near(8, 1), Some(4));
    }

    #[test]
    fn tokens_keep_their_styles_and_the_cursor_shows() {
        let styles = dark();
        let layout = layout(&["a", "b\u{1b}", "c"], 9);
        let looks = [styles[Role::Evicted], styles[Role::Resident], styles[Role::Generated]];
        let mut buf = Buffer::empty(Rect::new(0, 0, 6, 1));
        (&TokenFlow::new(&styles, &layout, &|token| looks[token]).cursor(2)).render(buf.area, &mut buf);
        insta::assert_snapshot!(styled_dump(&buf), @r#"
        |ab␛c  |
        |a.bc..|
        a = fg #e8837f dim crossed-out
        b = dim
        c = fg #62c4b4 bold reversed
        "#);
    }

    #[test]
    fn a_character_spread_over_tokens_is_drawn_whole() {
        let drawn = |pieces: &[&[u8]]| {
            let layout = TokenLayout::new(pieces.iter().copied(), 40, Symbols::Block);
            let mut buf = Buffer::empty(Rect::new(0, 0, 40, 1));
            (&TokenFlow::new(&dark(), &layout, &|_| Style::new())).render(buf.area, &mut buf);
            assert_eq!(layout.tokens(), pieces.len());
            text(&buf).trim_end().to_owned()
        };
        // As byte fallback and byte-level merges cut them.
        assert_eq!(drawn(&[b" a", b"\xe2", b"\x98", b"\x83", b"b"]), " a☃··b");
        assert_eq!(drawn(&[b" \xf0\x9f", b"\xa6\x99 ", b"\xe6", b"\x97\xa5\xe6\x9c", b"\xac"]), " 🦙 日本·");
        // Not whole yet: the next token may complete it, and then it was not drawn in pieces before.
        assert_eq!(drawn(&[b"a", b"\xf0\x9f", b"\xa6"]), "a··");
        assert_eq!(drawn(&[b"a", b"\xf0\x9f", b"", b"\xa6\x99"]), "a🦙∅·");
        // Never whole.
        assert_eq!(drawn(&[b"a\xe2", b"b", b"\xff", b"\x80"]), "a⟨xE2⟩b⟨xFF⟩⟨x80⟩");
    }

    #[test]
    fn the_cursor_is_scrolled_into_view() {
        let pieces = vec!["12345"; 40];
        let layout = layout(&pieces, 5);
        let styles = plain();
        let flow = TokenFlow::new(&styles, &layout, &|_| Style::new()).cursor(30);
        let area = Rect::new(0, 0, 5, 10);
        assert_eq!(flow.visible(area), 21..31);
        assert_eq!(flow.clone().first_line(28).visible(area), 28..38);
        assert_eq!(flow.at(area, Position::new(0, 9)), Some(30));
    }

    proptest! {
        #[test]
        fn every_token_has_a_place_that_maps_back(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..6), 0..30),
            width in 0_u16..20,
        ) {
            let layout = TokenLayout::new(pieces.iter().map(Vec::as_slice), width, Symbols::Ascii);
            prop_assert_eq!(layout.tokens(), pieces.len());
            for token in 0..pieces.len() {
                let (x, line) = layout.place_of(token).unwrap();
                if width > 0 {
                    prop_assert!(line < layout.lines());
                    prop_assert_eq!(layout.token_at(x, line), Some(token));
                }
            }
            for line in 0..layout.lines() {
                let glyphs = layout.glyphs_of(line);
                prop_assert!(!glyphs.is_empty());
                let last = glyphs.last().unwrap();
                prop_assert!(last.x + last.width <= width || glyphs.len() == 1);
            }
        }
    }
}
