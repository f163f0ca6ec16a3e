//! The block tables and the pool: which slot holds which token, what is stranded, what is free.

mod holdings;
mod lanes;
mod pool;
mod slots;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::token;
use crate::cache::{HOLE, LayerTable};
use crate::event::{Head, Position};
use crate::ui::draw::{Pen, Scene, pane, split_bottom, split_top};
use crate::ui::layout::Breakpoint;
use crate::ui::theme::Role;
use holdings::Holdings;

/// Indices of the panes.
const TABLES: usize = 0;
const POOL: usize = 1;
const TOKEN: usize = 2;

/// Tables at the left, pool and token at the right; tables above one of the others where the screen is narrow.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let holdings = Holdings::of(scene);
    if scene.app.zoomed || scene.breakpoint <= Breakpoint::Pane || area.height < 10 {
        match scene.app.pane {
            POOL => pool::pane_of(buf, area, scene, &holdings),
            TOKEN => token::card_pane(buf, area, scene, Some(TOKEN)),
            _ => tables(buf, area, scene, &holdings),
        }
    } else if area.width >= 100 {
        let (left, right) = scene.columns(area, area.width * 3 / 5);
        let (top, bottom) = split_bottom(right, (right.height * 2 / 5).clamp(6, 18));
        tables(buf, left, scene, &holdings);
        pool::pane_of(buf, top, scene, &holdings);
        token::card_pane(buf, bottom, scene, Some(TOKEN));
    } else {
        let (top, bottom) = split_bottom(area, area.height / 2);
        tables(buf, top, scene, &holdings);
        if scene.app.pane == TOKEN {
            token::card_pane(buf, bottom, scene, Some(TOKEN));
        } else {
            pool::pane_of(buf, bottom, scene, &holdings);
        }
    }
}

/// All lanes at a glance, then the block under the cursor slot by slot, then every slot of the cursor's lane.
fn tables(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, holdings: &Holdings) {
    let rows = lanes::Row::all(scene);
    let note = lanes::note(scene, &rows, area.width);
    let inner = pane(buf, area, scene, "block tables", &note, Some(TABLES));
    if rows.is_empty() {
        Pen::new(buf, inner, scene.styles).put("no block is in use", Role::Dim);
        return;
    }
    let (upper, rest) = split_top(inner, lanes::height(rows.len(), inner.height));
    lanes::render(buf, upper, scene, holdings, &rows);
    let (detail, rest) = split_top(rest, slots::detail_height(scene, rest));
    slots::detail(buf, detail, scene);
    if rest.height >= 4 {
        slots::map(buf, rest, scene);
    }
}

/// The cursor's token in its lane.
struct Place<'a> {
    table: &'a LayerTable,
    head: Head,
    /// Block that holds it, or its neighbours if it was lost; by table order.
    block: Option<usize>,
    /// Slot that holds it, by table order.
    slot: Option<usize>,
}

impl<'a> Place<'a> {
    fn of(scene: &Scene<'a>) -> Option<Self> {
        let table = scene.seq()?.layers.get(scene.layer())?;
        let head = scene.kv_head();
        let slot = scene.position().and_then(|p| table.slot_of(head, p));
        let near = slot.or_else(|| neighbour(table, head, scene.position()?));
        let block = near.map(|slot| slot / table.block_size() as usize);
        Some(Self { table, head, block, slot })
    }
}

/// The slot of the last resident token before a position, or of the first one.
fn neighbour(table: &LayerTable, head: Head, position: Position) -> Option<usize> {
    let slots = table.lane(head).slots;
    let live = |&(_, &p): &(usize, &Position)| p != HOLE;
    slots
        .iter()
        .enumerate()
        .filter(live)
        .take_while(|&(_, &p)| p < position)
        .last()
        .or_else(|| slots.iter().enumerate().find(live))
        .map(|(slot, _)| slot)
}
