//! Per-head attention: the cursor's row, all heads, and the token they read.

mod lists;
mod row;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::{heads, token};
use crate::ui::draw::{Pen, Scene, pane, split_bottom, split_top};
use crate::ui::layout::Breakpoint;
use crate::ui::theme::Role;
use row::Row;

/// Indices of the panes.
const ROW: usize = 0;
const HEADS: usize = 1;
const TOKEN: usize = 2;
/// Columns of the token's card beside the rest.
const CARD: u16 = 50;
/// Lines of the lists below a row's bars.
const LIST: u16 = 11;

/// The row above the heads; the token's card beside them where there is room.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    if scene.app.zoomed || scene.breakpoint <= Breakpoint::Pane || area.height < 10 {
        match scene.app.pane {
            HEADS => heads_pane(buf, area, scene),
            TOKEN => token::card_pane(buf, area, scene, Some(TOKEN)),
            _ => row_pane(buf, area, scene),
        }
        return;
    }
    let beside = area.width >= 130;
    let (main, side) = if beside { scene.columns(area, area.width - CARD) } else { (area, Rect::ZERO) };
    let (layer, all) = heads::row_counts(scene);
    let in_cells = |rows: u16| if scene.styles.heat_in_half_blocks() { rows.div_ceil(2) } else { rows };
    // The pane's rule, the titles and the axis take three lines; the row keeps enough for bars and a list.
    let spare = main.height.saturating_sub(12).max(main.height / 2);
    let wanted = [all, in_cells(all), in_cells(layer)].into_iter().map(|rows| rows.saturating_add(3));
    let height = wanted.clone().find(|&h| h <= spare).or_else(|| wanted.min()).unwrap_or(5);
    let (top, bottom) = split_bottom(main, height.clamp(5, (main.height / 2).max(5).max(spare.min(height))));
    heads_pane(buf, bottom, scene);
    if beside {
        token::card_pane(buf, side, scene, Some(TOKEN));
        row_pane(buf, top, scene);
    } else if scene.app.pane == TOKEN {
        token::card_pane(buf, top, scene, Some(TOKEN));
    } else {
        row_pane(buf, top, scene);
    }
}

fn heads_pane(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let below = Rect { height: area.height.saturating_sub(1), ..area };
    let inner = pane(buf, area, scene, "heads", &heads::most_note(scene, below), Some(HEADS));
    heads::most_heads(buf, inner, scene);
}

/// One query head's probabilities as bars, and below them what it reads most and what lies around the cursor.
fn row_pane(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let title = format!("L{} H{}, KV head {}", scene.layer(), scene.head(), scene.kv_head());
    let Some((step, map)) = scene.seq().and_then(|s| s.attention.as_ref()) else {
        let inner = pane(buf, area, scene, &title, "", Some(ROW));
        heads::missing(&mut Pen::new(buf, inner, scene.styles), scene);
        return;
    };
    let row = Row::of(scene, map);
    let bins = row.as_ref().map_or(1, |row| row.per_column(area.width));
    let bins = if bins > 1 { format!(", max of {bins}") } else { String::new() };
    let note = format!("query {} in step {step}, scores {}{bins}", map.query, map.level);
    let inner = pane(buf, area, scene, &title, &note, Some(ROW));
    let Some(row) = row else {
        Pen::new(buf, inner, scene.styles).put("this head is not in the picture", Role::Dim);
        return;
    };
    let (facts, rest) = split_top(inner, u16::from(inner.height >= 4));
    row.facts(&mut Pen::new(buf, facts, scene.styles), scene, *step);
    let list = match rest.height {
        0..6 => 0,
        height => (height / 2 + 1).min(LIST),
    };
    let (bars, lists) = split_bottom(rest, list);
    row.bars(buf, bars, scene);
    lists::render(buf, lists, scene, &row);
}
