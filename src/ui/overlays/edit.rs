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

/// Most lines of a turn that are in sight.
const TURN_LINES: usize = 6;

/// A turn, on the lowest lines: it grows with what is typed. Above it why it was refused, or what Enter does.
pub(super) fn turn(
    buf: &mut Buffer,
    area: Rect,
    scene: &Scene<'_>,
    line: &LineEdit,
    error: Option<&str>,
    sent: bool,
) {
    let mark = if scene.app.chats() { " you: " } else { " go on with: " };
    let width = area.width.saturating_sub(mark.len() as u16 + 1);
    let lines = laid_out(line, width, scene).0.lines().clamp(1, TURN_LINES);
    let height = area.height.min(lines as u16 + 1);
    let area = Rect { y: area.bottom() - height, height, ..area };
    Clear.render(area, buf);
    buf.set_style(area, scene.styles[Role::Screen]);
    let mut pen = Pen::new(buf, area, scene.styles);
    if height > 1 {
        match error {
            Some(error) => pen.put(" ", Role::Bad).foreign(error, Role::Bad),
            None if sent => pen.put(" the engine hears it after the present step", Role::Dim),
            None if scene.app.chats() => pen.put(
                " the next turn goes through the chat template and on with the same cache; Enter says it",
                Role::Dim,
            ),
            None => {
                pen.put(" text that the model goes on with, on the same cache; Enter feeds it", Role::Dim)
            }
        };
        pen.newline();
    }
    pen.put(mark, Role::Key);
    let (x, y) = pen.at();
    field(buf, Rect { x, y, width, height: area.bottom() - y }, scene, line);
}

/// Text being typed, wrapped over the lines there are, the caret always in sight.
pub(super) fn field(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, line: &LineEdit) {
    let (layout, at) = laid_out(line, area.width, scene);
    let style = |_: usize| -> Style { scene.styles[Role::Text] };
    (&TokenFlow::new(scene.styles, &layout, &style).cursor(at)).render(area, buf);
}

/// Text being typed at a width, and the letter that the caret stands on.
fn laid_out(line: &LineEdit, width: u16, scene: &Scene<'_>) -> (TokenLayout, usize) {
    let (text, caret) = (line.text(), line.caret());
    let mut before: Vec<&str> = text[..caret].graphemes(true).rev().take(NEAR).collect();
    before.reverse();
    let at = before.len();
    let after = text[caret..].graphemes(true).take(NEAR);
    // A blank behind the text is where the caret stands at its end.
    let pieces = before.into_iter().chain(after).chain([" "]).map(str::as_bytes);
    (TokenLayout::new(pieces, width, scene.symbols()), at)
}
