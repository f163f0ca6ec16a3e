//! Attention of query heads as heat: over positions, or over blocks where only sums per block are known.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::Widget;

use super::scale::Scaled;
use crate::event::{AttentionGroup, AttentionMap, Cells, HeadRow, ScoreLevel, attention};
use crate::state::SeqState;
use crate::ui::draw::{Pen, Scene, split_top};
use crate::ui::number;
use crate::ui::theme::Role;
use crate::ui::widgets::{Bins, Heatmap};

/// Columns of the figures beside a row: mass not drawn; the largest probability.
const FIGURES: u16 = 22;
/// Least width of a picture that has them.
const MIN_WIDTH: u16 = 60;

/// Heat of the query heads of the cursor's layer, or of all layers; positions that are not resident stay blank.
pub(super) fn heads(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, all_layers: bool) {
    render(buf, area, scene, Shown { all_layers, figures: false });
}

/// Lines that [`heads`] takes, the axis included.
pub(super) fn height(scene: &Scene<'_>, all_layers: bool) -> u16 {
    let (layer, all) = row_counts(scene);
    let rows = if all_layers { all } else { layer };
    let lines = if scene.styles.heat_in_half_blocks() { rows.div_ceil(2) } else { rows };
    lines.saturating_add(1)
}

/// As much as fits: all layers' heads with figures beside them, all layers' heads, or the cursor's layer's.
pub(super) fn most_heads(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    render(buf, area, scene, Shown::most(area, scene));
}

/// Scale and bins of [`most_heads`], for a pane's note.
pub(super) fn most_note(scene: &Scene<'_>, area: Rect) -> String {
    let shown = Shown::most(area, scene);
    note_of(scene, area.width, shown)
}

/// Which heads, and whether figures stand beside them.
#[derive(Clone, Copy)]
struct Shown {
    all_layers: bool,
    figures: bool,
}

impl Shown {
    fn most(area: Rect, scene: &Scene<'_>) -> Self {
        let (layer, all) = row_counts(scene);
        let all_layers = height(scene, true) <= area.height;
        let rows = if all_layers { all } else { layer };
        // Titles above and the axis below take a line each.
        Self { all_layers, figures: rows.saturating_add(2) <= area.height && area.width >= MIN_WIDTH }
    }

    /// Columns of the picture with its labels.
    const fn width(self, width: u16) -> u16 {
        if self.figures { width - FIGURES } else { width }
    }

    fn label(self, layer: u16, head: u16) -> String {
        if self.all_layers { format!("L{layer} H{head}") } else { format!("H{head}") }
    }

    /// How positions or blocks become cells.
    fn bins(self, scene: &Scene<'_>, map: &AttentionMap, width: u16) -> Bins {
        let widest = map
            .groups
            .iter()
            .flat_map(|group| {
                group.rows.iter().map(move |row| self.label(group.layer, row.head).len() as u16 + 1)
            })
            .max()
            .unwrap_or(0);
        let width = self.width(width);
        Bins::new(axis_len(scene, map), width.saturating_sub(widest.min(width / 2)))
    }
}

/// Rows of one layer and of all, as lines of a screen at most.
pub(super) fn row_counts(scene: &Scene<'_>) -> (u16, u16) {
    let (layers, heads) = scene.run().map_or((0, 0), |run| (run.model.layers, run.model.heads));
    let lines = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    (lines(heads), lines(layers.saturating_mul(heads)))
}

fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, shown: Shown) {
    let Shown { all_layers, figures } = shown;
    let Some((_, map)) = scene.seq().and_then(|s| s.attention.as_ref()) else {
        missing(&mut Pen::new(buf, area, scene.styles), scene);
        return;
    };
    let (heading, area) = split_top(area, u16::from(figures));
    let width = shown.width(area.width);
    let rows: Vec<(&AttentionGroup, &HeadRow)> = map
        .groups
        .iter()
        .filter(|group| all_layers || usize::from(group.layer) == scene.layer())
        .flat_map(|group| group.rows.iter().map(move |row| (group, row)))
        .collect();
    let labels: Vec<String> = rows.iter().map(|(group, row)| shown.label(group.layer, row.head)).collect();
    let len = axis_len(scene, map);
    let bins = shown.bins(scene, map, area.width);
    let mut cells: Vec<Option<u8>> = vec![None; rows.len() * bins.cells()];
    for ((group, row), line) in rows.iter().zip(cells.chunks_mut(bins.cells().max(1))) {
        each_cell(group, row, len, |index, q| {
            if let Some(cell) = bins.cell(index).and_then(|bin| line.get_mut(bin)) {
                // The bytes are in the order of the probabilities they stand for.
                *cell = (*cell).max(Some(q));
            }
        });
    }
    let values: Vec<Option<f32>> = cells.iter().map(|q| q.map(attention::dequantise)).collect();
    let scaled = Scaled::new(scene.app.scale, values.iter().copied().flatten());
    let heat: Vec<Option<f32>> = values.iter().map(|v| v.map(|v| scaled.at(v))).collect();
    let selected = rows.iter().position(|(group, row)| {
        usize::from(group.layer) == scene.layer() && usize::from(row.head) == scene.head()
    });
    let label = |bin: usize| bins.values(bin).start.to_string();
    let mut picture =
        Heatmap::new(scene.styles, &heat, bins.cells()).row_labels(&labels).column_label(&label);
    if let (Some(row), Some(column)) = (selected, cursor_index(scene, map).and_then(|i| bins.cell(i))) {
        picture = picture.cursor(row, column);
    }
    if figures {
        picture = picture.whole_cells();
    }
    (&picture).render(Rect { width, ..area }, buf);
    if figures {
        Pen::new(buf, heading, scene.styles).column(width).put("  not drawn m   most m", Role::Dim);
        let beside = Rect { x: area.x + width, width: FIGURES, ..area };
        figures_beside(buf, beside, scene, &rows, &values, bins.cells());
    }
}

fn figures_beside(
    buf: &mut Buffer,
    area: Rect,
    scene: &Scene<'_>,
    rows: &[(&AttentionGroup, &HeadRow)],
    values: &[Option<f32>],
    columns: usize,
) {
    let mut pen = Pen::new(buf, area, scene.styles);
    for ((_, row), line) in rows.iter().zip(values.chunks(columns.max(1))) {
        let most = line.iter().copied().flatten().fold(0.0, f32::max);
        let role = if row.dropped >= 0.01 { Role::Text } else { Role::Dim };
        pen.skip(5).put(&number::percent(row.dropped.into(), scene.symbols()), role);
        pen.skip(4).put(&number::decimal(most.into(), scene.symbols()), Role::Dim).newline();
    }
}

/// Positions on the axis, or blocks of the longest table.
fn axis_len(scene: &Scene<'_>, map: &AttentionMap) -> usize {
    if map.level == ScoreLevel::Blocks {
        let blocks = |row: &HeadRow| if let Cells::Blocks(cells) = &row.cells { cells.len() } else { 0 };
        map.groups.iter().flat_map(|group| &group.rows).map(blocks).max().unwrap_or(0)
    } else {
        scene.seq().map_or(0, |s| s.tokens.len())
    }
}

/// Where the cursor's token is on the axis.
fn cursor_index(scene: &Scene<'_>, map: &AttentionMap) -> Option<usize> {
    let position = scene.position()?;
    if map.level != ScoreLevel::Blocks {
        return Some(position as usize);
    }
    let group = map.group(scene.layer() as u16, scene.kv_head())?;
    block_ranges(scene.seq()?, group)?.iter().position(|&(first, last)| (first..=last).contains(&position))
}

/// First and last position of each block of a picture of blocks; `None` once the table has changed since it was taken.
pub(super) fn block_ranges(seq: &SeqState, group: &AttentionGroup) -> Option<Vec<(u32, u32)>> {
    let table = seq.layers.get(usize::from(group.layer)).filter(|table| group.kv_head < table.heads())?;
    let same =
        table.resident_ranges(group.kv_head).map(|r| (r.start, r.end)).eq(group.positions.iter().copied());
    let lane = table.lane(group.kv_head);
    let live = |block: usize| lane.block_slots(block).iter().copied().filter(|&p| p != crate::cache::HOLE);
    same.then(|| {
        (0..lane.block_count())
            .map(|block| (live(block).next().unwrap_or(0), live(block).next_back().unwrap_or(0)))
            .collect()
    })
}

/// Why there is no picture, and which flag makes one.
pub(super) fn missing(pen: &mut Pen<'_, '_>, scene: &Scene<'_>) {
    match scene.run().map(|run| run.settings.scores) {
        Some(ScoreLevel::Off) => {
            pen.put("attention is not recorded in this run", Role::Text).newline();
            pen.put("--scores full ", Role::Key).put("shows every probability, ", Role::Dim);
            pen.put("--scores top:8 ", Role::Key).put("the largest, ", Role::Dim);
            pen.put("--scores blocks ", Role::Key).put("sums per block", Role::Dim);
        }
        _ => {
            pen.put("no attention picture yet", Role::Dim);
        }
    }
}

/// Scale and bins of the heads of one layer, for a pane's note.
pub(super) fn note(scene: &Scene<'_>, width: u16) -> String {
    note_of(scene, width, Shown { all_layers: false, figures: false })
}

fn note_of(scene: &Scene<'_>, width: u16, shown: Shown) -> String {
    let scale = format!("{:?}", scene.app.scale).to_lowercase();
    let Some((_, map)) = scene.seq().and_then(|s| s.attention.as_ref()) else { return String::new() };
    let per_cell = shown.bins(scene, map, width).per_cell();
    let bins = if per_cell > 1 { format!(", max of {per_cell}") } else { String::new() };
    match map.level {
        ScoreLevel::Blocks => format!("sum per block m, {scale}{bins}"),
        ScoreLevel::Top(k) => format!("{k} largest probabilities m, {scale}{bins}"),
        _ => format!("probability m, {scale}{bins}"),
    }
}

/// Every cell of a row by position, or by block where only sums per block are known. Resident positions that are not
/// among the largest count as 0.
fn each_cell(group: &AttentionGroup, row: &HeadRow, len: usize, mut see: impl FnMut(usize, u8)) {
    match &row.cells {
        Cells::Full(cells) => {
            for (position, &cell) in group.iter_positions().zip(cells) {
                see(position as usize, cell);
            }
        }
        Cells::Top(picks) => {
            let known = group.iter_positions().map(|p| p as usize).take_while(|&position| position < len);
            for position in known {
                see(position, 0);
            }
            for &(position, cell) in picks {
                see(position as usize, cell);
            }
        }
        Cells::Blocks(cells) => {
            for (block, &cell) in cells.iter().enumerate() {
                see(block, cell);
            }
        }
    }
}
