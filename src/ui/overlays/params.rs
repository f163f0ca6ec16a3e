//! The parameter panel: what can be turned, what it is set to, and where that comes from.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::{edit, popup};
use crate::app::{Origin, ParamRow};
use crate::ui::draw::{Pen, Scene, split_bottom};
use crate::ui::theme::Role;

/// Columns of a row: name, value, origin.
const NAME: u16 = 20;
const VALUE: u16 = 22;
const ORIGIN: u16 = 14;

/// Rows with the selected one explained below.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let params = &scene.app.params;
    // What it does and what it takes, two lines each; a line before them where there is one to spare.
    let about = if area.height < 30 { 4 } else { 5 };
    let size = (76.min(area.width.saturating_sub(4)), (params.rows.len() as u16 + about).min(area.height));
    let inner = popup(buf, area, scene, "parameters", "A/B: Space", size);
    let (list, below) = split_bottom(inner, if inner.height > 8 { about } else { 1 });
    let height = usize::from(list.height);
    let first = params.selected.saturating_sub(height / 2).min(params.rows.len().saturating_sub(height));
    for (i, row) in params.rows.iter().enumerate().skip(first).take(height) {
        let place = Rect { y: list.y + (i - first) as u16, height: 1, ..list };
        draw_row(buf, place, scene, row, i == params.selected);
    }
    if let Some(row) = params.rows.get(params.selected) {
        explain(&mut Pen::new(buf, below, scene.styles), row, params.error.as_deref());
    }
}

fn draw_row(buf: &mut Buffer, place: Rect, scene: &Scene<'_>, row: &ParamRow, here: bool) {
    let mut pen = Pen::new(buf, place, scene.styles);
    pen.put(if here { scene.symbols().pick("▸ ", "> ") } else { "  " }, Role::Accent);
    if row.indented {
        pen.skip(2);
    }
    if row.wraps {
        pen.put("+", Role::Dim);
    }
    pen.put(row.name, if here { Role::Title } else { Role::Text }).column(NAME);
    let (x, y) = pen.at();
    let by_hand = row.origin == Origin::ByHand;
    pen.foreign(&row.value, if by_hand { Role::Accent } else { Role::Text });
    pen.column(NAME + VALUE).put(row.origin.words(), if by_hand { Role::Accent } else { Role::Dim });
    pen.column(NAME + VALUE + ORIGIN);
    if row.waiting {
        pen.put("waits for r", Role::Warn);
    } else {
        pen.put(if row.live { "live" } else { "at re-run" }, Role::Dim);
    }
    if here {
        buf.set_style(place, scene.styles[Role::Selection]);
        if let Some(line) = &scene.app.params.edit {
            let field = Rect { x, y, width: VALUE.min(place.right().saturating_sub(x)), height: 1 };
            Pen::new(buf, field, scene.styles).put(&" ".repeat(usize::from(field.width)), Role::Text);
            edit::field(buf, field, scene, line);
        }
    }
}

fn explain(pen: &mut Pen<'_, '_>, row: &ParamRow, error: Option<&str>) {
    let one_line = pen.lines() < 2;
    if pen.lines() > 4 {
        pen.newline();
    }
    if let Some(error) = error {
        pen.foreign(error, Role::Bad);
        return;
    }
    pen.wrapped(row.doc, Role::Text, 0);
    if !one_line {
        if row.value != row.baseline {
            pen.put("started with ", Role::Dim).foreign(&row.baseline, Role::Dim).put("; takes ", Role::Dim);
        }
        pen.wrapped(&row.range, Role::Dim, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::NAME;
    use crate::policy::REGISTRY;

    #[test]
    fn every_name_leaves_a_gap_before_its_value() {
        for param in REGISTRY.iter().flat_map(|entry| entry.params) {
            assert!(4 + param.name.len() < usize::from(NAME), "{}", param.name);
        }
    }
}
