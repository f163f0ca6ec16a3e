//! Frames around pictures.

use ratatui::buffer::Buffer;
use ratatui::layout::{Margin, Rect, Size};
use ratatui::widgets::{Block, Clear, Widget};

use super::{columns, put, put_right};
use crate::ui::text;
use crate::ui::theme::{Role, Styles};

/// A titled border that shows focus by weight as well as colour. An area too small to spare a border gets none, and the
/// content takes all of it.
#[derive(Clone, Debug)]
pub struct Panel<'a> {
    styles: &'a Styles,
    title: &'a str,
    note: &'a str,
    has_focus: bool,
}

impl<'a> Panel<'a> {
    /// A panel without focus.
    pub const fn new(styles: &'a Styles, title: &'a str) -> Self {
        Self { styles, title, note: "", has_focus: false }
    }

    /// A short text at the right end of the upper border: a range, a state, a legend.
    #[must_use]
    pub const fn note(mut self, note: &'a str) -> Self {
        self.note = note;
        self
    }

    /// Whether keys go here.
    #[must_use]
    pub const fn focus(mut self, has_focus: bool) -> Self {
        self.has_focus = has_focus;
        self
    }

    /// Where the content goes.
    pub fn inner(&self, area: Rect) -> Rect {
        if Self::is_bordered(area) { area.inner(Margin::new(1, 1)) } else { area }
    }

    const fn is_bordered(area: Rect) -> bool {
        area.width >= 6 && area.height >= 4
    }
}

impl Widget for &Panel<'_> {
    fn render(self, area: Rect, buf: &mut Buffer) {
        let area = area.intersection(buf.area);
        if !Panel::is_bordered(area) {
            return;
        }
        let symbols = self.styles.symbols();
        let (set, style) = if self.has_focus {
            (symbols.border_focus(), self.styles[Role::BorderFocus])
        } else {
            (symbols.border(), self.styles[Role::Border])
        };
        Block::bordered().border_set(set).border_style(style).render(area, buf);

        let top = Rect { x: area.x + 2, width: area.width - 4, height: 1, ..area };
        let title = text::fit(self.title, usize::from(top.width.saturating_sub(2)), symbols);
        let mut end = top.x;
        if !title.is_empty() {
            end = put(buf, top, top.x, top.y, &format!(" {title} "), self.styles[Role::Title]);
        }
        let note_width = columns(text::width(self.note)).saturating_add(2);
        if !self.note.is_empty() && end.saturating_add(note_width) <= top.right() {
            put_right(buf, top, top.right(), top.y, &format!(" {} ", self.note), self.styles[Role::Hint]);
        }
    }
}

/// A panel over everything else, in the middle of an area, with the ground beneath it cleared.
#[derive(Clone, Debug)]
pub struct Popup<'a> {
    panel: Panel<'a>,
    size: Size,
}

impl<'a> Popup<'a> {
    /// A pop-up whose content is `width` × `height`; it shrinks to what there is.
    pub const fn new(styles: &'a Styles, title: &'a str, width: u16, height: u16) -> Self {
        Self { panel: Panel::new(styles, title).focus(true), size: Size { width, height } }
    }

    /// A short text at the right end of the upper border.
    #[must_use]
    pub const fn note(mut self, note: &'a str) -> Self {
        self.panel = self.panel.note(note);
        self
    }

    /// Where it goes, border included.
    pub fn area(&self, within: Rect) -> Rect {
        let width = self.size.width.saturating_add(2).min(within.width);
        let height = self.size.height.saturating_add(2).min(within.height);
        Rect {
            x: within.x + (within.width - width) / 2,
            y: within.y + (within.height - height) / 2,
            width,
            height,
        }
    }

    /// Where the content goes.
    pub fn inner(&self, within: Rect) -> Rect {
        self.panel.inner(self.area(within))
    }
}

impl Widget for &Popup<'_> {
    fn render(self, area: Rect, buf: &mut Buffer) {
        let area = self.area(area.intersection(buf.area));
        Clear.render(area, buf);
        buf.set_style(area, self.panel.styles[Role::Screen]);
        self.panel.render(area, buf);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::export::styled_dump;
    use crate::ui::theme::{dark, plain};

    #[test]
    fn panels_show_title_note_and_focus() {
        let mut buf = Buffer::empty(Rect::new(0, 0, 20, 4));
        (&Panel::new(&plain(), "Blocks").note("9 of 12").focus(true)).render(buf.area, &mut buf);
        insta::assert_snapshot!(styled_dump(&buf), @r#"
        |#= Blocks =========#|
        ||                  ||
        ||                  ||
        |#==================#|
        |aaaaaaaaaaaaaaaaaaaa|
        |a..................a|
        |a..................a|
        |aaaaaaaaaaaaaaaaaaaa|
        a = bold
        "#);
        let mut buf = Buffer::empty(Rect::new(0, 0, 20, 4));
        (&Panel::new(&dark(), "A long title indeed").note("9 of 12")).render(buf.area, &mut buf);
        insta::assert_snapshot!(styled_dump(&buf), @r#"
        |┌─ A long title … ─┐|
        |│                  │|
        |│                  │|
        |└──────────────────┘|
        |aabbbbbbbbbbbbbbbbaa|
        |a..................a|
        |a..................a|
        |aaaaaaaaaaaaaaaaaaaa|
        a = fg #4a5462
        b = bold
        "#);
    }

    #[test]
    fn small_panels_give_their_border_to_the_content() {
        let styles = dark();
        let panel = Panel::new(&styles, "x");
        assert_eq!(panel.inner(Rect::new(3, 3, 10, 3)), Rect::new(3, 3, 10, 3));
        assert_eq!(panel.inner(Rect::new(3, 3, 10, 4)), Rect::new(4, 4, 8, 2));
    }

    #[test]
    fn popups_are_centred_and_clear_what_is_beneath() {
        let styles = plain();
        let mut buf = Buffer::with_lines(["xxxxxxxxxxxx"; 6]);
        let popup = Popup::new(&styles, "Go", 6, 2);
        (&popup).render(buf.area, &mut buf);
        assert_eq!(popup.inner(buf.area), Rect::new(3, 2, 6, 2));
        assert_eq!(
            crate::ui::export::text(&buf),
            "xxxxxxxxxxxx\nxx#= Go =#xx\nxx|      |xx\nxx|      |xx\nxx#======#xx\nxxxxxxxxxxxx\n"
        );
    }
}
