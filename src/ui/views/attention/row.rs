//! One query head's row as it was recorded: every probability, the largest ones, or sums per block.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::Widget;

use crate::event::{AttentionMap, Cells, Position, Provenance, ScoreLevel, StepId, attention};
use crate::ui::draw::{Pen, Scene};
use crate::ui::number;
use crate::ui::theme::Role;
use crate::ui::views::columns::fact;
use crate::ui::views::heads;
use crate::ui::views::point_at;
use crate::ui::views::scale::Scaled;
use crate::ui::widgets::{Bins, TimeStrip};

/// Columns of the scale at the left of the bars.
const SCALE: u16 = 7;
/// Share of the drawn mass that "how concentrated" counts positions for.
const MOST_OF_IT: f32 = 0.9;

const fn gutter(width: u16) -> u16 {
    if width >= 50 { SCALE } else { 0 }
}

/// A row, ready to be drawn. The axis is positions, or blocks in table order at the level of blocks.
pub(super) struct Row {
    /// By place on the axis; `None` is not resident, or not among the recorded ones.
    pub(super) values: Vec<Option<f32>>,
    /// (place, value) above zero, largest first.
    pub(super) largest: Vec<(usize, f32)>,
    /// First and last position of each block, where blocks are the axis and their table has not changed since.
    pub(super) ranges: Option<Vec<(Position, Position)>>,
    pub(super) level: ScoreLevel,
    /// Mass that no cell carries.
    dropped: f32,
    /// Positions resident when the row was taken.
    resident: usize,
    /// Where the cursor's token is on the axis.
    pub(super) cursor: Option<usize>,
}

impl Row {
    /// The row of the cursor's layer and query head.
    pub(super) fn of(scene: &Scene<'_>, map: &AttentionMap) -> Option<Self> {
        let seq = scene.seq()?;
        let group = map.group(scene.layer() as u16, scene.kv_head())?;
        let row = group.rows.iter().find(|row| usize::from(row.head) == scene.head())?;
        let mut values = vec![None; seq.tokens.len()];
        let mut ranges = None;
        match &row.cells {
            Cells::Full(cells) => {
                for (position, &q) in group.iter_positions().zip(cells) {
                    if let Some(value) = values.get_mut(position as usize) {
                        *value = Some(attention::dequantise(q));
                    }
                }
            }
            Cells::Top(picks) => {
                for &(position, q) in picks {
                    if let Some(value) = values.get_mut(position as usize) {
                        *value = Some(attention::dequantise(q));
                    }
                }
            }
            Cells::Blocks(cells) => {
                values = cells.iter().map(|&q| Some(attention::dequantise(q))).collect();
                ranges = heads::block_ranges(seq, group).filter(|ranges| ranges.len() == cells.len());
            }
        }
        let mut largest: Vec<(usize, f32)> = values
            .iter()
            .enumerate()
            .filter_map(|(i, v)| Some((i, (*v)?)))
            .filter(|&(_, v)| v > 0.0)
            .collect();
        largest.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let position = scene.position();
        let cursor = match (&row.cells, &ranges) {
            (Cells::Blocks(_), None) => None,
            (Cells::Blocks(_), Some(ranges)) => {
                position.and_then(|p| ranges.iter().position(|&(first, last)| (first..=last).contains(&p)))
            }
            _ => position.map(|p| p as usize),
        };
        let (dropped, resident, level) = (row.dropped, group.len(), map.level);
        Some(Self { values, largest, ranges, level, dropped, resident, cursor })
    }

    /// What a place on the axis is called.
    pub(super) const fn unit(&self) -> &'static str {
        if matches!(self.level, ScoreLevel::Blocks) { "block" } else { "position" }
    }

    /// The row in figures, and a word where the picture is older than the shown step.
    pub(super) fn facts(&self, pen: &mut Pen<'_, '_>, scene: &Scene<'_>, step: StepId) {
        let symbols = scene.symbols();
        let age = scene.state().and_then(|s| s.step).map_or(0, |shown| shown.saturating_sub(step));
        if age > 0 {
            pen.put(&format!("{age} steps old: newer pictures were left out"), Role::Warn);
        }
        if let Some(&(place, value)) = self.largest.first() {
            fact(pen, "largest", &number::decimal(value.into(), symbols), Provenance::Measured);
            pen.put(&format!(" at {} {place}", self.unit()), Role::Dim);
        }
        fact(pen, "not drawn", &number::percent(self.dropped.into(), symbols), Provenance::Measured);
        let sum: f32 = self.largest.iter().map(|&(_, v)| v).sum();
        let mut running = 0.0;
        let enough = self.largest.iter().position(|&(_, v)| {
            running += v;
            running >= MOST_OF_IT * sum
        });
        if let Some(n) = enough {
            fact(pen, "90% of it in", &(n + 1).to_string(), Provenance::Derived);
        }
        fact(pen, "resident", &self.resident.to_string(), Provenance::Measured);
    }

    /// Places on the axis that share a column of the bars.
    pub(super) fn per_column(&self, width: u16) -> usize {
        Bins::new(self.values.len(), width - gutter(width)).per_cell()
    }

    /// Bars along the axis, the cursor's place marked; what is not resident stays blank.
    pub(super) fn bars(&self, buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
        let scaled = Scaled::new(scene.app.scale, self.values.iter().copied().flatten());
        let gutter = gutter(area.width);
        let bars = Rect { x: area.x + gutter, width: area.width - gutter, ..area };
        if gutter > 0 && area.height >= 2 {
            let mut pen = Pen::new(buf, Rect { width: gutter, ..area }, scene.styles);
            pen.put(&number::decimal(scaled.most().into(), scene.symbols()), Role::Dim);
            let word = format!("{:?}", scene.app.scale).to_lowercase();
            let foot = Rect { y: area.bottom() - 2, height: 1, width: gutter, ..area };
            if area.height >= 3 {
                Pen::new(buf, foot, scene.styles).put(&word, Role::Dim);
            }
        }
        let heights: Vec<Option<f32>> = self.values.iter().map(|v| v.map(|p| scaled.at(p))).collect();
        (&TimeStrip::new(scene.styles, 0, &heights).highest(1.0)).render(bars, buf);
        self.mark_cursor(buf, bars, scene);
    }

    /// A thin line through the cursor's column, and its place on the axis below.
    fn mark_cursor(&self, buf: &mut Buffer, bars: Rect, scene: &Scene<'_>) {
        let bins = Bins::new(self.values.len(), bars.width);
        let Some(column) = self.cursor.and_then(|place| Some((place, bins.cell(place)?))) else { return };
        let (place, column) = (column.0, bars.x + column.1 as u16);
        let symbols = scene.symbols();
        let bars_end = bars.bottom() - u16::from(bars.height >= 2);
        for y in bars.y..bars_end {
            let Some(cell) = buf.cell_mut((column, y)) else { continue };
            if cell.symbol() == " " {
                cell.set_char(symbols.pick('┊', '|')).set_style(scene.styles[Role::Dim]);
            } else {
                cell.set_style(scene.styles[Role::Warn]);
            }
        }
        if bars.height >= 2 {
            let line = Rect { y: bars_end, height: 1, ..bars };
            point_at(buf, line, scene, column - bars.x, &format!("{} {place}", self.unit()));
        }
    }
}
