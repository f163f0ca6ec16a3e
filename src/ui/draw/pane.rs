//! Panes: a rule with a title, and the room below it.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::Pen;
use super::Scene;
use crate::ui::text;
use crate::ui::theme::Role;

/// Draws the rule of a pane and returns the room below it. One rule instead of four borders: at 80 columns every cell
/// counts. The focused pane has the heavier rule, so that focus shows without colour.
pub(in crate::ui) fn pane(
    buf: &mut Buffer,
    area: Rect,
    scene: &Scene<'_>,
    title: &str,
    note: &str,
    index: Option<usize>,
) -> Rect {
    let area = area.intersection(buf.area);
    if let Some(index) = index {
        scene.note_pane(index, area);
    }
    if area.height < 2 || area.width < 4 {
        return area;
    }
    let styles = scene.styles;
    let focused = index == Some(scene.app.pane);
    let set = if focused { styles.symbols().border_focus() } else { styles.symbols().border() };
    let rule = if focused { Role::BorderFocus } else { Role::Border };
    let line = set.horizontal_top.repeat(usize::from(area.width));
    let top = Rect { height: 1, ..area };
    Pen::new(buf, top, styles).put(&line, rule);
    Pen::new(buf, top, styles).skip(1).put(" ", rule).put(title, Role::Title).put(" ", rule);
    let used = text::width(title) + 4;
    let room = usize::from(area.width).saturating_sub(used + 3);
    if !note.is_empty() && room >= 6 {
        let cut = text::fit(note, room, styles.symbols());
        let width = text::width(&cut) as u16 + 2;
        Pen::new(buf, top, styles)
            .column(area.width - width - 1)
            .put(" ", rule)
            .put(&cut, Role::Dim)
            .put(" ", rule);
    }
    Rect { y: area.y + 1, height: area.height - 1, ..area }
}

/// Splits off the top `height` rows: (top, rest).
pub(in crate::ui) fn split_top(area: Rect, height: u16) -> (Rect, Rect) {
    let height = height.min(area.height);
    (Rect { height, ..area }, Rect { y: area.y + height, height: area.height - height, ..area })
}

/// Splits off the bottom `height` rows: (rest, bottom).
pub(in crate::ui) fn split_bottom(area: Rect, height: u16) -> (Rect, Rect) {
    split_top(area, area.height - height.min(area.height))
}

/// Splits off the left `width` columns, leaving one blank column between: (left, right).
pub(in crate::ui) fn split_left(area: Rect, width: u16) -> (Rect, Rect) {
    let width = width.min(area.width);
    let gap = u16::from(area.width > width);
    (Rect { width, ..area }, Rect { x: area.x + width + gap, width: area.width - width - gap, ..area })
}
