//! Below the view: what to do next, what was just done, the line that repeats it, and the keys.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::Widget;

use crate::engine::Status;
use crate::ui::draw::{Pen, Scene};
use crate::ui::theme::Role;
use crate::ui::widgets::KeyHints;

/// Whether there is a notice or a hint.
pub(super) const fn has_note(scene: &Scene<'_>) -> bool {
    let app = scene.app;
    app.notice.is_some() || app.hint.is_some() || matches!(app.status, Status::Failed(_))
}

/// Whether settings were changed by hand.
pub(super) fn has_command(scene: &Scene<'_>) -> bool {
    scene.app.by_hand().is_some()
}

/// A failure, else what was just done or refused, else what to do next.
pub(super) fn note(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let app = scene.app;
    let mut pen = Pen::new(buf, area, scene.styles);
    let symbols = scene.symbols();
    if let Status::Failed(why) = &app.status {
        pen.put(symbols.pick(" ✘ ", " x "), Role::Bad).foreign(why, Role::Bad);
    } else if let Some(notice) = &app.notice {
        pen.put(symbols.pick(" ● ", " * "), Role::Warn).foreign(notice, Role::Text);
    } else if let Some(hint) = &app.hint {
        pen.put(symbols.pick(" ➜ ", " > "), Role::Key).foreign(hint, Role::Title);
    }
}

/// The line that repeats the run with everything changed by hand.
pub(super) fn command(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    if let (Some(line), false) = (scene.app.by_hand(), area.is_empty()) {
        Pen::new(buf, area, scene.styles).put(" $ ", Role::Key).foreign(&line, Role::Text);
    }
}

/// Keys that are useful here, from the registry.
pub(super) fn keys(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let footer = scene.app.footer();
    let hints: Vec<(&str, &str)> = footer.iter().map(|(key, does)| (key.as_str(), *does)).collect();
    let area = Rect { x: area.x + 1.min(area.width), width: area.width.saturating_sub(1), ..area };
    (&KeyHints::new(scene.styles, &hints)).render(area, buf);
}
