//! The pool as it lies in memory: every block by id, who holds it, and what the bytes of each tier are used for.

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::widgets::Widget;

use super::holdings::Holdings;
use super::{POOL, Place, lanes};
use crate::event::{BlockId, Provenance, TierUse};
use crate::ui::draw::{Pen, Scene, pane, split_bottom, split_top};
use crate::ui::number;
use crate::ui::theme::Role;
use crate::ui::views::columns::fact;
use crate::ui::views::memory;
use crate::ui::widgets::{Block, BlockGrid, BlockKind, Entry, Legend, Part, StackedBar};

/// Most blocks of a pool that are drawn, lowest ids first: more lines than any screen has.
const MAX_BLOCKS: usize = 1 << 16;

pub(super) fn pane_of(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, holdings: &Holdings) {
    let free = holdings.capacity.saturating_sub(holdings.len());
    let note = format!("{} of {} blocks held, {free} free m", holdings.len(), holdings.capacity);
    let inner = pane(buf, area, scene, "pool", &note, Some(POOL));
    let lines = u16::from(inner.height >= 5) + u16::from(inner.height >= 9);
    let (facts, rest) = split_top(inner, lines);
    let mut pen = Pen::new(buf, facts, scene.styles);
    stranded(&mut pen, scene);
    pen.newline();
    fragmentation(&mut pen, scene, holdings);
    let tiers = if inner.height >= 6 { memory::height(scene) } else { 0 };
    let layers = u16::from(inner.height >= 9);
    let legend = u16::from(inner.height >= 8) + u16::from(inner.height >= 8 && inner.width < 64);
    let (picture, _) = split_bottom(rest, tiers + layers + legend);
    let used = grid(buf, picture, scene, holdings);
    let (_, below) = split_top(rest, used);
    let (row, below) = split_top(below, legend);
    kinds(buf, row, scene);
    let (row, gauges) = split_top(below, layers);
    by_layer(buf, row, scene, holdings);
    memory::tiers(buf, gauges, scene);
}

/// What evictions left behind in blocks that are held, and what compaction did about it.
fn stranded(pen: &mut Pen<'_, '_>, scene: &Scene<'_>) {
    let Some(state) = scene.state() else { return };
    let tables = state.seqs.iter().flat_map(|seq| &seq.layers);
    let slots: usize =
        tables.map(|table| (0..table.heads()).map(|head| table.stranded(head)).sum::<usize>()).sum();
    let sum = |of: fn(&TierUse) -> u64| state.tiers.iter().map(of).sum::<u64>();
    let (bytes, all) = (sum(|t| t.stranded_bytes), sum(TierUse::allocated_bytes));
    fact(pen, "stranded slots", &slots.to_string(), Provenance::Measured);
    pen.dot().figure(number::bytes(bytes).trim(), Provenance::Measured);
    let share = bytes as f64 / all.max(1) as f64;
    pen.dot().figure(number::percent(share, scene.symbols()).trim(), Provenance::Derived);
    if state.compacted.layers > 0 {
        fact(pen, "compactions", &state.compacted.layers.to_string(), Provenance::Measured);
        fact(pen, "rows moved", &state.compacted.rows.to_string(), Provenance::Measured);
    }
}

/// What one decision covers, when holes are closed, and free blocks between held ones.
fn fragmentation(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, holdings: &Holdings) {
    let symbols = scene.symbols();
    if let Some(policy) = scene.policy() {
        pen.put("decides ", Role::Dim).put(policy.spec().parts()[0].granularity().words(), Role::Text);
    }
    if let Some(most) = scene.run().map(|run| run.settings.compact).filter(|&share| share < 1.0) {
        let share = number::percent(most, symbols);
        pen.dot().put(&format!("compacts above {} stranded", share.trim()), Role::Dim);
    }
    let holes = holdings.end() - holdings.len();
    let share = holes as f64 / holdings.end().max(1) as f64;
    fact(pen, "holes between", &holes.to_string(), Provenance::Measured);
    fact(pen, "fragmentation", &number::percent(share, symbols), Provenance::Derived);
    if holdings.shared() > 0 {
        fact(pen, "shared blocks", &holdings.shared().to_string(), Provenance::Measured);
    }
}

/// The blocks up to the highest id in use; what lies behind is free and told in a line. Returns the lines it took.
fn grid(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, holdings: &Holdings) -> u16 {
    let end = holdings.end().min(MAX_BLOCKS);
    let mut blocks = vec![Block { kind: BlockKind::Free, occupancy: 0.0 }; end];
    let mut in_lane = vec![false; end];
    for held in holdings.iter().take_while(|h| (h.id as usize) < end) {
        blocks[held.id as usize] = holdings.drawn(held);
        in_lane[held.id as usize] = usize::from(held.layer) == scene.layer() && held.head == scene.kv_head();
    }
    let behind = holdings.capacity - end;
    let (area, tail) = split_bottom(area, u16::from(behind > 0 && area.height >= 3));
    let mut picture = BlockGrid::new(scene.styles, &blocks).leveled();
    if let Some(id) = under_cursor(scene).filter(|&id| (id as usize) < end) {
        picture = picture.cursor(id as usize);
    }
    (&picture).render(area, buf);
    for cell in area.intersection(buf.area).positions() {
        let index = picture.at(area, Position::new(cell.x, cell.y));
        if index.is_some_and(|index| in_lane[index] && under_cursor(scene) != Some(index as BlockId)) {
            buf.set_style(Rect { x: cell.x, y: cell.y, width: 1, height: 1 }, scene.styles[Role::Selection]);
        }
    }
    let lines = end.div_ceil(picture.blocks_per_line(area).max(1));
    let used = lines.min(usize::from(area.height)) as u16;
    if !tail.is_empty() {
        let words = format!("{end} to {}: free, {behind} blocks m", holdings.capacity - 1);
        let row = Rect { y: area.y + used, height: 1, ..area };
        Pen::new(buf, row, scene.styles).put(&words, Role::Dim);
    }
    used + tail.height
}

/// The block that holds the cursor's token for the cursor's head, or its neighbours.
fn under_cursor(scene: &Scene<'_>) -> Option<BlockId> {
    let place = Place::of(scene)?;
    let lane = place.table.lane(place.head);
    place.block.filter(|&block| block < lane.block_count()).map(|block| lane.block(block))
}

fn kinds(buf: &mut Buffer, row: Rect, scene: &Scene<'_>) {
    let styles = scene.styles;
    let lane = format!("of L{} KV{}", scene.layer(), scene.kv_head());
    let one = |kind: BlockKind, occupancy: f32, label| {
        let (glyph, style) = Block { kind, occupancy }.cell(styles, true);
        Entry { glyph, style, label }
    };
    let words = lanes::height_words(scene);
    let mut entries = vec![
        one(BlockKind::Live, 1.0, "live"),
        one(BlockKind::Stranded, 0.5, "with stranded slots"),
        one(BlockKind::Shared, 1.0, "shared"),
        one(BlockKind::Free, 0.0, "free"),
        Entry { glyph: ' ', style: styles[Role::Selection], label: &lane },
    ];
    if !words.is_empty() {
        entries.push(Entry { glyph: styles.symbols().dot(), style: styles[Role::Dim], label: words });
    }
    (&Legend::new(styles, &entries)).render(row, buf);
}

/// How many of the held blocks each layer has.
fn by_layer(buf: &mut Buffer, row: Rect, scene: &Scene<'_>, holdings: &Holdings) {
    const LABEL: u16 = 7;
    let layers = scene.run().map_or(0, |run| run.model.layers as usize);
    let mut counts = vec![0_u32; layers];
    for held in holdings.iter() {
        if let Some(count) = counts.get_mut(usize::from(held.layer)) {
            *count += 1;
        }
    }
    let labels: Vec<String> = counts.iter().enumerate().map(|(layer, n)| format!("L{layer} {n}")).collect();
    let parts: Vec<Part<'_>> = counts
        .iter()
        .zip(&labels)
        .enumerate()
        .map(|(layer, (&count, label))| {
            let role = match (layer == scene.layer(), layer % 2) {
                (true, _) => Role::Accent,
                (false, 0) => Role::Dim,
                (false, _) => Role::Border,
            };
            let letter = char::from_digit((layer % 36) as u32, 36).unwrap_or('?');
            Part { label, value: count.into(), style: scene.styles[role], letter }
        })
        .collect();
    Pen::new(buf, row, scene.styles).put("layers", Role::Dim);
    let bar = Rect { x: row.x + LABEL.min(row.width), width: row.width.saturating_sub(LABEL + 2), ..row };
    (&StackedBar::new(scene.styles, &parts)).render(bar, buf);
    let mut pen = Pen::new(buf, row, scene.styles);
    let mark = scene.styles.mark(Provenance::Measured);
    pen.column(row.width.saturating_sub(1)).styled(&mark.content, mark.style);
}
