//! Block tables as strips: one line per layer, a cell per block or per few, as full as its slots are.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::event::{Head, Provenance};
use crate::state::SeqState;
use crate::ui::draw::{Pen, Scene};
use crate::ui::number;
use crate::ui::theme::Role;
use crate::ui::widgets::Bins;

/// Columns of a line's figures: live, stranded, unfilled slots.
const FIGURES: u16 = 21;
/// Columns of a line's name.
const LABEL: u16 = 8;

/// Lines that all strips take, the heading included.
pub(super) fn height(scene: &Scene<'_>) -> u16 {
    scene.seq().map_or(1, |seq| lanes(seq).len().min(1000) as u16 + 1)
}

/// Every (layer, KV head) with a table of its own: a layer has one until its heads part.
fn lanes(seq: &SeqState) -> Vec<(usize, Option<Head>)> {
    seq.layers
        .iter()
        .enumerate()
        .flat_map(|(layer, table)| table.keys().map(move |head| (layer, head)))
        .collect()
}

/// The strips: one per lane where they fit, else those of the cursor's KV head, the cursor's layer among them.
pub(super) fn layers(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let Some(seq) = scene.seq() else {
        Pen::new(buf, area, scene.styles).put("no block is in use", Role::Dim);
        return;
    };
    let figures = if area.width >= 60 { FIGURES } else { 0 };
    let mut area = area;
    if area.height >= 3 && figures > 0 {
        let mut pen = Pen::new(buf, area, scene.styles);
        pen.column(area.width - FIGURES).put(" live strand unfill ", Role::Dim);
        let mark = scene.styles.mark(Provenance::Measured);
        pen.styled(&mark.content, mark.style);
        area = Rect { y: area.y + 1, height: area.height - 1, ..area };
    }
    let mut lanes = lanes(seq);
    if lanes.len() > usize::from(area.height) {
        lanes = (0..seq.layers.len()).map(|layer| (layer, None)).collect();
    }
    let rows = usize::from(area.height).min(lanes.len());
    let here = lanes.iter().position(|&lane| is_here(scene, lane)).unwrap_or(0);
    let first = here.saturating_sub(rows / 2).min(lanes.len() - rows);
    let most = lanes
        .iter()
        .map(|&(layer, head)| seq.layers[layer].lane(head.unwrap_or(scene.kv_head())).block_count())
        .max()
        .unwrap_or(0);
    for (line, lane) in lanes[first..first + rows].iter().enumerate() {
        let row = Rect { y: area.y + line as u16, height: 1, ..area };
        strip(buf, row, scene, seq, *lane, most, figures);
    }
}

fn is_here(scene: &Scene<'_>, (layer, head): (usize, Option<Head>)) -> bool {
    layer == scene.layer() && head.is_none_or(|head| head == scene.kv_head())
}

/// Whether the heads of any layer have parted, in words for the title of strips on so many lines.
pub(super) fn heads_note(scene: &Scene<'_>, lines: u16) -> String {
    let split = scene.seq().is_some_and(|s| s.layers.iter().any(crate::cache::LayerTable::is_split));
    match (split, height(scene) <= lines) {
        (false, _) => "all KV heads alike".into(),
        (true, true) => "heads have parted".into(),
        (true, false) => format!("KV head {} of parted heads", scene.kv_head()),
    }
}

fn strip(
    buf: &mut Buffer,
    row: Rect,
    scene: &Scene<'_>,
    seq: &SeqState,
    lane: (usize, Option<Head>),
    most: usize,
    figures: u16,
) {
    let (layer, own) = lane;
    let head = own.unwrap_or(scene.kv_head());
    let table = &seq.layers[layer];
    let role = if is_here(scene, lane) { Role::Accent } else { Role::Dim };
    let lane = table.lane(head);
    let mut pen = Pen::new(buf, row, scene.styles);
    pen.put(&own.map_or_else(|| format!("L{layer}"), |head| format!("L{layer} KV{head}")), role);
    pen.column(LABEL.min(row.width / 4));
    let width = pen.room().saturating_sub(figures + u16::from(figures > 0));
    // All layers share one scale, so that strips of equal length mean equal memory.
    let bins = Bins::new(most, width);
    let holder =
        scene.position().and_then(|p| table.slot_of(head, p)).map(|slot| slot / lane.block_size as usize);
    let size = f64::from(lane.block_size);
    let bars = scene.symbols().bars();
    for cell in 0..bins.cells() {
        let blocks = bins.values(cell).start..bins.values(cell).end.min(lane.block_count());
        if blocks.is_empty() {
            break;
        }
        let written: usize = blocks.clone().map(|b| lane.block_slots(b).len()).sum();
        let live: usize = blocks
            .clone()
            .map(|b| lane.block_slots(b).iter().filter(|&&p| p != crate::cache::HOLE).count())
            .sum();
        let share = live as f64 / (blocks.len() as f64 * size);
        let index = ((share * bars.len() as f64).ceil() as usize).clamp(1, bars.len()) - 1;
        let mut style = scene.styles[if live < written { Role::Stranded } else { Role::Live }];
        if holder.is_some_and(|b| blocks.contains(&b)) {
            style = style.patch(scene.styles[Role::Cursor]);
        }
        pen.glyph(bars[index], style);
    }
    if figures > 0 {
        pen.column(row.width - figures);
        pen.put(&number::count(table.live(head) as u64), Role::Live).put(" ", Role::Dim);
        let stranded = table.stranded(head) as u64;
        pen.put(" ", Role::Dim);
        pen.put(&number::count(stranded), if stranded > 0 { Role::Stranded } else { Role::Dim });
        pen.put("  ", Role::Dim).put(&number::count(table.unfilled(head) as u64), Role::Dim);
    }
}
