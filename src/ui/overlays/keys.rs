//! The keys that go on from a chord begun, for a person who hesitates.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::{Clear, Widget};

use crate::app::Chord;
use crate::ui::draw::Pen;
use crate::ui::draw::Scene;
use crate::ui::theme::Role;
use crate::ui::widgets::Panel;

/// A panel at the lower right: it must not cover what the person looks at.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let keys = scene.app.continuations();
    if keys.is_empty() {
        return;
    }
    let height = (keys.len() as u16 + 2).min(area.height);
    let width = 44.min(area.width);
    let area = Rect {
        x: area.right() - width,
        y: area.bottom().saturating_sub(height + 1).max(area.y),
        width,
        height,
    }
    .intersection(area);
    Clear.render(area, buf);
    buf.set_style(area, scene.styles[Role::Screen]);
    let title = Chord(scene.app.pending_keys.clone()).to_string();
    let panel = Panel::new(scene.styles, &title).focus(true);
    (&panel).render(area, buf);
    let mut pen = Pen::new(buf, panel.inner(area), scene.styles);
    for (key, command) in keys {
        pen.put(&key, Role::Key).column(8).put(command.doc, Role::Text).newline();
    }
}
