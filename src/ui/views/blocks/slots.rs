//! Slots: those of the block under the cursor with their tokens, and all of the cursor's lane.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::Widget;

use super::Place;
use crate::cache::HOLE;
use crate::event::Head;
use crate::ui::draw::{Pen, Scene, pane, split_bottom, split_top};
use crate::ui::text;
use crate::ui::theme::Role;
use crate::ui::views::columns::{left, right};
use crate::ui::views::first_row;
use crate::ui::widgets::{Entry, Legend};

/// Columns of a slot with its token's text, and with its position alone.
const WITH_TEXT: u16 = 18;
const ALONE: u16 = 6;
/// Columns of a block's id at the start of a line of slots.
const LABEL: u16 = 8;

/// Lines for the block under the cursor: its rule, and its slots in as few lines as hold them.
pub(super) fn detail_height(scene: &Scene<'_>, area: Rect) -> u16 {
    let size = scene.run().map_or(1, |run| run.settings.block_size);
    let lines = |cell: u16| size.div_ceil(u32::from((area.width / cell).max(1))) as u16;
    let (roomy, tight) = (lines(WITH_TEXT) + 1, lines(ALONE) + 1);
    if roomy <= area.height { roomy } else { tight.min(area.height) }
}

/// The slots of one block: position and text, a hole, or nothing yet.
pub(super) fn detail(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let Some(place) = Place::of(scene) else { return };
    let lane = place.table.lane(place.head);
    let Some(block) = place.block.filter(|&block| block < lane.block_count()) else { return };
    let written = lane.block_slots(block);
    let size = lane.block_size as usize;
    let live = written.iter().filter(|&&p| p != HOLE).count();
    let title = format!("block {} of L{} KV head {}", lane.block(block), scene.layer(), place.head);
    let counts =
        format!("{live} live, {} stranded, {} unfilled m", written.len() - live, size - written.len());
    let note = match (place.slot, scene.position()) {
        (None, Some(position)) => format!("token {position} is not here, its neighbours are; {counts}"),
        _ => format!("{} of {} in its table; {counts}", block + 1, lane.block_count()),
    };
    let inner = pane(buf, area, scene, &title, &note, None);
    let per_line = |cell: u16| usize::from((inner.width / cell).max(1));
    let roomy = size.div_ceil(per_line(WITH_TEXT)) <= usize::from(inner.height);
    let cell = if roomy { WITH_TEXT } else { ALONE };
    let columns = per_line(cell);
    let shown = columns * usize::from(inner.height);
    let mut pen = Pen::new(buf, inner, scene.styles);
    for slot in 0..size.min(shown) {
        if slot > 0 && slot % columns == 0 {
            pen.newline();
        }
        slot_cell(&mut pen, scene, written.get(slot).copied(), cell, place.slot == Some(block * size + slot));
    }
}

fn slot_cell(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, slot: Option<u32>, width: u16, here: bool) {
    let symbols = scene.symbols();
    let room = width - 1;
    let (words, role) = match slot {
        None => (right(symbols.pick("·", "."), ALONE - 1), Role::Unfilled),
        Some(HOLE) => (right(symbols.pick("×", "x"), ALONE - 1), Role::Stranded),
        Some(position) => (right(&position.to_string(), ALONE - 1), Role::Text),
    };
    let (from, _) = pen.at();
    pen.put(&words, role);
    let token = slot.filter(|&p| p != HOLE).and_then(|p| scene.seq()?.tokens.get(p as usize));
    if room >= WITH_TEXT - 1 {
        let word = token.map(|t| format!("'{}'", text::safe(&t.piece.0, symbols))).unwrap_or_default();
        let room = room - ALONE;
        pen.skip(1).put(&left(&text::fit(&word, usize::from(room), symbols), room), Role::Title);
    }
    if here {
        pen.restyle(from, room, scene.styles[Role::Cursor]);
    }
    pen.skip(1);
}

/// Every slot of the cursor's lane, whole blocks on a line; then of the layer's other KV heads, as far as there is room.
pub(super) fn map(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let Some(place) = Place::of(scene) else { return };
    let title = format!("slots of L{} KV head {}", scene.layer(), place.head);
    let inner = pane(buf, area, scene, &title, "", None);
    let (mut rest, _) = split_bottom(inner, u16::from(inner.height >= 4));
    rest = split_top(rest, lane_lines(buf, rest, scene, &place, place.head)).1;
    let others = if place.table.is_split() { place.table.heads() } else { 0 };
    for head in (0..others).filter(|&head| head != place.head) {
        if rest.height < 3 {
            break;
        }
        Pen::new(buf, rest, scene.styles).put(&format!("KV head {head}"), Role::Dim);
        let used = lane_lines(buf, split_top(rest, 1).1, scene, &place, head);
        rest = split_top(rest, used + 1).1;
    }
    let (live, hole, blank) = glyphs(scene);
    let entries = [
        Entry { glyph: live, style: scene.styles[Role::Live], label: "live" },
        Entry {
            glyph: hole,
            style: scene.styles[Role::Stranded],
            label: "stranded: evicted, its block still held",
        },
        Entry { glyph: blank, style: scene.styles[Role::Unfilled], label: "unfilled" },
    ];
    let legend = Rect { y: rest.y, height: 1, ..inner }.intersection(inner);
    (&Legend::new(scene.styles, &entries)).render(legend, buf);
}

fn glyphs(scene: &Scene<'_>) -> (char, char, char) {
    scene.symbols().pick(('■', '×', '·'), ('#', 'x', '.'))
}

/// The slots of one KV head, the cursor's block marked in its own; returns the lines used.
fn lane_lines(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, place: &Place<'_>, head: Head) -> u16 {
    let lane = place.table.lane(head);
    let size = lane.block_size as usize;
    let label = if area.width >= 30 { LABEL } else { 0 };
    let room = usize::from(area.width.saturating_sub(label));
    let per_line = (room / (size + 1)).max(1);
    let lines = lane.block_count().div_ceil(per_line);
    let marked = place.block.filter(|_| head == place.head);
    let current = marked.map_or(lines.saturating_sub(1), |block| block / per_line);
    let first = first_row(current, lines, area.height);
    let (live, hole, blank) = glyphs(scene);
    for (row, line) in (first..lines).take(usize::from(area.height)).enumerate() {
        let mut pen = Pen::new(buf, Rect { y: area.y + row as u16, height: 1, ..area }, scene.styles);
        if label > 0 {
            pen.put(&right(&format!("#{}", lane.block(line * per_line)), LABEL - 2), Role::Dim).column(label);
        }
        for block in line * per_line..lane.block_count().min((line + 1) * per_line) {
            let written = lane.block_slots(block);
            for slot in 0..size.min(room) {
                let (glyph, role) = match written.get(slot) {
                    Some(&HOLE) => (hole, Role::Stranded),
                    Some(_) => (live, Role::Live),
                    None => (blank, Role::Unfilled),
                };
                let mut style = scene.styles[role];
                if marked == Some(block) {
                    style = style.patch(scene.styles[Role::Selection]);
                }
                if head == place.head && place.slot == Some(block * size + slot) {
                    style = style.patch(scene.styles[Role::Cursor]);
                }
                pen.glyph(glyph, style);
            }
            pen.skip(1);
        }
    }
    (lines - first).min(usize::from(area.height)) as u16
}
