//! Questions and faults.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::popup;
use crate::ui::draw::{Pen, Scene};
use crate::ui::text;
use crate::ui::theme::Role;

/// Leave although a recording is being written?
pub(super) fn confirm_quit(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let inner = popup(buf, area, scene, "quit?", "", (48, 3));
    let mut pen = Pen::new(buf, inner, scene.styles);
    pen.put("A recording is being written", Role::Text);
    if let Some(path) = &scene.app.recording {
        pen.put(": ", Role::Text).foreign(path, Role::Accent);
    }
    pen.newline().put("It will be finished first.", Role::Dim).newline();
    for (key, does) in scene.app.footer() {
        pen.put(&key, Role::Key).put(" ", Role::Text).put(does, Role::Hint).put("  ", Role::Text);
    }
}

/// Something went wrong in another thread; the view behind stays usable.
pub(super) fn fault(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, message: &str) {
    let safe = text::safe(message.as_bytes(), scene.symbols());
    let width = area.width.saturating_sub(8).clamp(20, 90);
    let lines = (text::width(&safe) as u16 / width.max(1)).saturating_add(3).min(20);
    let inner = popup(buf, area, scene, "fault", "Esc closes this", (width, lines));
    let mut pen = Pen::new(buf, inner, scene.styles);
    pen.wrapped(&safe, Role::Bad, 0);
    pen.put("What was drawn before stays as it is.", Role::Dim);
}
