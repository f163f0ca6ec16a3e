//! One line per lane: a gang while a layer's KV heads agree, else each KV head; a cell per block or per few.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::Place;
use super::holdings::Holdings;
use crate::event::{Head, Provenance};
use crate::ui::draw::{Pen, Scene, split_top};
use crate::ui::number;
use crate::ui::theme::{Depth, Role};
use crate::ui::views::columns::{marked, right};
use crate::ui::views::first_row;
use crate::ui::widgets::{Bins, Block, BlockKind};

/// Columns of a lane's name, and of each of its figures.
const LABEL: u16 = 9;
const FIGURE: u16 = 7;
const FIGURES: [(&str, Role); 4] =
    [("blocks", Role::Text), ("live", Role::Live), ("strand", Role::Stranded), ("unfill", Role::Dim)];

/// A line: a layer, and its KV head once the heads have parted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    layer: usize,
    head: Option<Head>,
}

impl Row {
    pub(super) fn all(scene: &Scene<'_>) -> Vec<Self> {
        let tables = scene.seq().into_iter().flat_map(|s| s.layers.iter().enumerate());
        tables.flat_map(|(layer, table)| table.keys().map(move |head| Self { layer, head })).collect()
    }

    fn is_cursor(self, scene: &Scene<'_>) -> bool {
        self.layer == scene.layer() && self.head.is_none_or(|head| head == scene.kv_head())
    }
}

/// Lines for all lanes and their titles, leaving room for the block below.
pub(super) fn height(rows: usize, available: u16) -> u16 {
    let wanted = u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(1);
    let spare = if available >= 7 { 3 } else { 0 };
    wanted.min((available - spare).max(2)).min(available)
}

/// What a cell stands for, in words for the pane's rule.
pub(super) fn note(scene: &Scene<'_>, rows: &[Row], width: u16) -> String {
    let size = scene.run().map_or(1, |run| run.settings.block_size);
    let per_cell = Bins::new(most(scene, rows), cells_width(width)).per_cell();
    let cell =
        if per_cell > 1 { format!("a cell is {per_cell} blocks") } else { "a cell is a block".to_owned() };
    let layer = scene.layer();
    let window = scene.run().and_then(|run| run.model.window(layer));
    let window = window.map_or_else(String::new, |window| format!(", L{layer} looks at the last {window}"));
    format!("{cell} of {size} slots, {} lanes{window}", rows.len())
}

/// Blocks of the longest lane: all share one scale, so that equal length means equal memory.
fn most(scene: &Scene<'_>, rows: &[Row]) -> usize {
    let Some(seq) = scene.seq() else { return 0 };
    rows.iter().map(|row| seq.layers[row.layer].lane(row.head.unwrap_or(0)).block_count()).max().unwrap_or(0)
}

const fn has_figures(width: u16) -> bool {
    width >= 68
}

const fn cells_width(width: u16) -> u16 {
    width.saturating_sub(LABEL + if has_figures(width) { FIGURES.len() as u16 * FIGURE + 2 } else { 0 })
}

pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, holdings: &Holdings, rows: &[Row]) {
    let (heading, lines) = split_top(area, u16::from(area.height >= 3));
    titles(&mut Pen::new(buf, heading, scene.styles), area.width);
    scene.note_rows(lines.height);
    let selected = rows.iter().position(|row| row.is_cursor(scene)).unwrap_or(0);
    let first = first_row(selected, rows.len(), lines.height);
    let picture = Picture::new(most(scene, rows), cells_width(area.width));
    for (i, &row) in rows.iter().skip(first).take(usize::from(lines.height)).enumerate() {
        let place = Rect { y: lines.y + i as u16, height: 1, ..lines };
        lane(&mut Pen::new(buf, place, scene.styles), scene, holdings, row, &picture);
    }
}

fn titles(pen: &mut Pen<'_, '_>, width: u16) {
    pen.put("lane", Role::Dim).column(LABEL).put("blocks in table order", Role::Dim);
    if has_figures(width) {
        pen.column(width - FIGURES.len() as u16 * FIGURE - 2);
        for (name, _) in FIGURES {
            pen.put(&right(name, FIGURE), Role::Dim);
        }
        pen.put(&marked("", Provenance::Measured), Role::Dim);
    }
}

/// How blocks become cells: several to a cell, or several columns to a block, the last of them blank.
struct Picture {
    bins: Bins,
    columns: u16,
}

impl Picture {
    fn new(most: usize, width: u16) -> Self {
        let columns = usize::from(width).checked_div(most).unwrap_or(1).clamp(1, 3) as u16;
        Self { bins: Bins::new(most, width), columns }
    }
}

fn lane(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, holdings: &Holdings, row: Row, picture: &Picture) {
    let Some(table) = scene.seq().and_then(|s| s.layers.get(row.layer)) else { return };
    let head = row.head.unwrap_or(0);
    let lane = table.lane(head);
    let here = row.is_cursor(scene);
    let name = row.head.map_or_else(|| "all".to_owned(), |head| format!("KV{head}"));
    pen.put(if here { scene.symbols().pick("▸", ">") } else { " " }, Role::Accent);
    pen.put(&format!("L{:<2} {name}", row.layer), if here { Role::Accent } else { Role::Dim }).column(LABEL);
    let width = pen.room();
    let under_cursor = Place::of(scene).filter(|_| here).and_then(|place| place.block);
    for cell in 0..picture.bins.cells() {
        let blocks = picture.bins.values(cell).start..picture.bins.values(cell).end.min(lane.block_count());
        if blocks.is_empty() {
            break;
        }
        let drawn = joined(blocks.clone().map(|i| holdings.block(lane.block(i))));
        let (glyph, mut style) = drawn.cell(scene.styles, true);
        if under_cursor.is_some_and(|block| blocks.contains(&block)) {
            style = style.patch(scene.styles[Role::Cursor]);
        }
        for _ in 0..picture.columns.saturating_sub(1).max(1) {
            pen.glyph(glyph, style);
        }
        pen.skip(u16::from(picture.columns > 1));
    }
    if has_figures(width + LABEL) {
        pen.column(width + LABEL - FIGURES.len() as u16 * FIGURE - 2);
        let counts = [lane.block_count(), table.live(head), table.stranded(head), table.unfilled(head)];
        for (count, (_, role)) in counts.into_iter().zip(FIGURES) {
            let role = if count == 0 { Role::Dim } else { role };
            pen.put(&right(&number::count(count as u64), FIGURE), role);
        }
    }
}

/// Several blocks in a cell: the mean of how full they are; stranded or shared if any is.
fn joined(blocks: impl ExactSizeIterator<Item = Block>) -> Block {
    let n = blocks.len().max(1) as f32;
    blocks.fold(Block { kind: BlockKind::Live, occupancy: 0.0 }, |sum, block| Block {
        kind: match (sum.kind, block.kind) {
            (BlockKind::Shared, _) | (_, BlockKind::Shared) => BlockKind::Shared,
            (BlockKind::Stranded, _) | (_, BlockKind::Stranded) => BlockKind::Stranded,
            (kind, _) => kind,
        },
        occupancy: sum.occupancy + block.occupancy / n,
    })
}

/// What the height of a cell means; without colour glyphs tell kinds, not heights.
pub(super) fn height_words(scene: &Scene<'_>) -> &'static str {
    if scene.styles.depth() > Depth::None { "height: share of slots that hold tokens" } else { "" }
}
