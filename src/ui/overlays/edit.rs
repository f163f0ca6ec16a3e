//! Lines being typed: the filter over the lists, and the prompt.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::widgets::{Clear, Widget};
use unicode_segmentation::UnicodeSegmentation;

use super::popup;
use crate::app::LineEdit;
use crate::ui::draw::{Pen, Scene};
use crate::ui::theme::Role;
use crate::ui::widgets::{TokenFlow, TokenLayout};

/// Letters on either side of the caret that are laid out: more than any screen shows.
const NEAR: usize = 16 * 1024;

/// The filter, on the lowest line, with what is wrong with it or what it can ask.
pub(super) fn filter(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, line: &LineEdit) {
    let height = area.height.min(2);
    let area = Rect { y: area.bottom() - height, height, ..area };
    Clear.render(area, buf);
    buf.set_style(area, scene.styles[Role::Screen]);
    let mut pen = Pen::new(buf, area, scene.styles);
    if height == 2 {
        match &scene.app.filter_error {
            Some(error) => pen.put(" ", Role::Bad).foreign(error, Role::Bad),
            None => pen.put(" fields kind step layer head position token reason score cutoff rank margin age, with = != < <= > >= ~; words", Role::Dim),
        };
        pen.newline();
    }
    pen.put(" /", Role::Key);
    let (x, y) = pen.at();
    field(buf, Rect { x, y, width: area.right().saturating_sub(x), height: 1 }, scene, line);
}

/// The prompt, in a pop-up that holds several lines.
pub(super) fn prompt(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, line: &LineEdit) {
    let size = ((area.width * 4 / 5).clamp(20, 120), (area.height * 2 / 3).clamp(3, 24));
    let note = format!("{} characters", line.text().chars().count());
    let inner = popup(buf, area, scene, "prompt: Enter runs it", &note, size);
    field(buf, inner, scene, line);
}

/// Text being typed, wrapped over the lines there are, the caret always in sight.
pub(super) fn field(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, line: &LineEdit) {
    let (text, caret) = (line.text(), line.caret());
    let mut before: Vec<&str> = text[..caret].graphemes(true).rev().take(NEAR).collect();
    before.reverse();
    let at = before.len();
    let after = text[caret..].graphemes(true).take(NEAR);
    // A blank behind the text is where the caret stands at its end.
    let pieces = before.into_iter().chain(after).chain([" "]).map(str::as_bytes);
    let layout = TokenLayout::new(pieces, area.width, scene.symbols());
    let style = |_: usize| -> Style { scene.styles[Role::Text] };
    (&TokenFlow::new(scene.styles, &layout, &style).cursor(at)).render(area, buf);
}
