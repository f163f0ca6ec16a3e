//! Lists to choose from: themes, exports, bookmarks.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::popup;
use crate::app::ExportKind;
use crate::ui::draw::{Pen, Scene};
use crate::ui::text;
use crate::ui::theme::Role;

/// Themes; the selected one is in force as a preview.
pub(super) fn themes(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, selected: usize) {
    let rows: Vec<(String, String)> = scene
        .app
        .themes
        .iter()
        .map(|name| (text::safe(name.as_bytes(), scene.symbols()), String::new()))
        .collect();
    menu(buf, area, scene, "theme", "Enter keeps it, Esc goes back", &rows, selected);
}

/// What this screen can be exported as.
pub(super) fn exports(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, selected: usize) {
    let rows: Vec<(String, String)> =
        ExportKind::ALL.iter().map(|kind| (kind.name().to_owned(), kind.doc().to_owned())).collect();
    menu(buf, area, scene, "export", "Enter writes a file", &rows, selected);
}

/// Bookmarked steps.
pub(super) fn bookmarks(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, selected: usize) {
    let rows: Vec<(String, String)> =
        scene.app.bookmark_rows().into_iter().map(|row| (format!("step {}", row.step), row.what)).collect();
    menu(buf, area, scene, "bookmarks", "Enter goes there", &rows, selected);
}

fn menu(
    buf: &mut Buffer,
    area: Rect,
    scene: &Scene<'_>,
    title: &str,
    note: &str,
    rows: &[(String, String)],
    selected: usize,
) {
    let first = rows.iter().map(|(name, _)| text::width(name)).max().unwrap_or(0);
    let second = rows.iter().map(|(_, what)| text::width(what)).max().unwrap_or(0);
    let least = text::width(title) + text::width(note) + 6;
    let width = (first + second + 5).max(least).min(100) as u16;
    let inner = popup(buf, area, scene, title, note, (width, rows.len().clamp(1, 40) as u16));
    let mut pen = Pen::new(buf, inner, scene.styles);
    if rows.is_empty() {
        pen.put("none yet", Role::Dim);
    }
    let height = usize::from(inner.height);
    let top = selected.saturating_sub(height / 2).min(rows.len().saturating_sub(height));
    for (i, (name, what)) in rows.iter().enumerate().skip(top) {
        if pen.is_full() {
            return;
        }
        let here = i == selected;
        pen.put(if here { scene.symbols().pick("▸ ", "> ") } else { "  " }, Role::Accent);
        pen.put(name, if here { Role::Title } else { Role::Text });
        pen.column(first as u16 + 4).put(what, Role::Dim);
        if here {
            pen.restyle(inner.x, inner.width, scene.styles[Role::Selection]);
        }
        pen.newline();
    }
}
