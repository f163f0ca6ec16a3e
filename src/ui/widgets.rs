//! Pictures that know nothing of the application's state: each is a small struct with a builder, drawn by
//! `impl Widget for &T`.
//!
//! All of them take any area, empty ones included, and draw what fits. Pictures that a person points at can be asked
//! what lies under a cell, with the same geometry they draw by.

mod bars;
mod bins;
mod block_grid;
mod chrome;
mod heatmap;
mod histogram;
mod legend;

mod time_strip;
mod token_flow;

use ratatui::buffer::{Buffer, CellWidth};
use ratatui::layout::Rect;
use ratatui::style::Style;
use unicode_segmentation::UnicodeSegmentation;

use super::theme::Symbols;

pub use bars::{Gauge, Part, StackedBar};
pub use bins::{Binning, Bins};
pub use block_grid::{Block, BlockGrid, BlockKind};
pub use chrome::{Panel, Popup};
pub use heatmap::Heatmap;
pub use histogram::{Histogram, Mark};
pub use legend::{Entry, KeyHints, Legend};
pub use time_strip::TimeStrip;
pub use token_flow::{TokenFlow, TokenLayout};

/// Writes text at a cell of an area, cut at the area's right edge, and returns the column after it. Nothing is drawn
/// outside the area, wherever `x` and `y` point.
pub fn put(buf: &mut Buffer, area: Rect, x: u16, y: u16, text: &str, style: impl Into<Style>) -> u16 {
    let area = area.intersection(buf.area);
    if y < area.y || y >= area.bottom() || x < area.x || x >= area.right() {
        return x;
    }
    buf.set_stringn(x, y, text, usize::from(area.right() - x), style).0
}

/// [`put`], but ending at column `right` (exclusive); text too long for the area loses its beginning.
fn put_right(buf: &mut Buffer, area: Rect, right: u16, y: u16, text: &str, style: impl Into<Style>) {
    let mut room = right.min(area.right()).saturating_sub(area.x);
    let mut start = text.len();
    for (index, cluster) in text.grapheme_indices(true).rev() {
        let Some(left) = room.checked_sub(cluster.cell_width()) else { break };
        room = left;
        start = index;
    }
    put(buf, area, area.x + room, y, &text[start..], style);
}

/// One glyph in one cell, if the cell is in the area.
fn put_char(buf: &mut Buffer, area: Rect, x: u16, y: u16, glyph: char, style: impl Into<Style>) {
    if area.contains((x, y).into())
        && let Some(cell) = buf.cell_mut((x, y))
    {
        cell.set_char(glyph).set_style(style);
    }
}

/// A vertical bar in one column of an area, `share` of its height. Whatever is more than nothing shows.
pub(in crate::ui) fn draw_column(
    buf: &mut Buffer,
    area: Rect,
    column: u16,
    share: f64,
    symbols: Symbols,
    style: Style,
) {
    let bars = symbols.bars();
    let steps = bars.len();
    let share = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
    let filled = (share * f64::from(area.height) * steps as f64).round() as usize;
    let filled = if share > 0.0 { filled.max(1) } else { 0 };
    for (i, y) in (area.y..area.bottom()).rev().enumerate() {
        match filled.saturating_sub(i * steps) {
            0 => break,
            rest => put_char(buf, area, area.x.saturating_add(column), y, bars[rest.min(steps) - 1], style),
        }
    }
}

/// Columns as the type of a coordinate.
fn columns(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ratatui::widgets::Widget;

    use super::*;
    use crate::ui::theme::{Styles, dark, plain};

    /// A large buffer of `x`, and an area in it; drawing must leave everything else as it was.
    fn draw_within(area: Rect, widget: impl Widget) -> Result<(), TestCaseError> {
        let mut buf = Buffer::filled(Rect::new(0, 0, 60, 30), ratatui::buffer::Cell::new("x"));
        let before = buf.clone();
        widget.render(area, &mut buf);
        for position in buf.area.positions().filter(|position| !area.contains(*position)) {
            prop_assert_eq!(&buf[position], &before[position], "{} drew at {}", area, position);
        }
        Ok(())
    }

    fn area() -> impl Strategy<Value = Rect> {
        let size = prop_oneof![Just((0, 0)), Just((1, 1)), Just((10, 3)), (0_u16..40, 0_u16..20)];
        (0_u16..20, 0_u16..10, size).prop_map(|(x, y, (width, height))| Rect::new(x, y, width, height))
    }

    fn styles() -> impl Strategy<Value = Styles> {
        prop_oneof![Just(dark()), Just(plain())]
    }

    fn values() -> impl Strategy<Value = Vec<Option<f32>>> {
        proptest::collection::vec(proptest::option::of(any::<f32>()), 0..300)
    }

    proptest! {
        #[test]
        fn heat_maps_stay_in_their_area(
            (area, styles, values) in (area(), styles(), values()),
            (columns, first, row, column) in (0_usize..80, 0_usize..50, 0_usize..50, 0_usize..80),
            labels in proptest::collection::vec("\\PC{0,12}", 0..20),
        ) {
            let label = |column: usize| format!("column {column}");
            let map = Heatmap::new(&styles, &values, columns)
                .first_row(first).row_labels(&labels).column_label(&label).cursor(row, column);
            draw_within(area, &map)?;
            for position in area.positions() {
                if let Some((row, columns)) = map.at(area, position) {
                    prop_assert!(row < map.rows() && !columns.is_empty());
                }
            }
        }

        #[test]
        fn block_grids_stay_in_their_area(
            (area, styles) in (area(), styles()),
            cells in proptest::collection::vec((0_usize..6, any::<f32>()), 0..300),
            (first_id, line, cursor, per_line) in (any::<u32>(), 0_usize..99, 0_usize..400, proptest::option::of(0_u16..99)),
        ) {
            let cells: Vec<Block> = cells
                .into_iter()
                .map(|(kind, occupancy)| Block { kind: BlockKind::ALL[kind], occupancy })
                .collect();
            let mut grid = BlockGrid::new(&styles, &cells).first_id(first_id as usize).first_line(line).cursor(cursor);
            if let Some(per_line) = per_line {
                grid = grid.per_line(per_line);
            }
            draw_within(area, &grid)?;
            for position in area.positions() {
                prop_assert!(grid.at(area, position).is_none_or(|index| index < cells.len()));
            }
        }

        #[test]
        fn bars_stay_in_their_area(
            (area, styles) in (area(), styles()),
            numbers in proptest::collection::vec(any::<f64>(), 0..20),
            (whole, text) in (proptest::option::of(any::<f64>()), "\\PC{0,20}"),
        ) {
            let parts: Vec<Part<'_>> = numbers
                .iter()
                .map(|&value| Part { label: &text, value, style: Style::new(), letter: 'p' })
                .collect();
            let bar = StackedBar::new(&styles, &parts);
            draw_within(area, &whole.map_or_else(|| bar.clone(), |whole| bar.clone().whole(whole)))?;
            let share = numbers.first().copied().unwrap_or(0.0);
            draw_within(area, &Gauge::new(&styles, share).label(&text).figure(&text))?;
        }

        #[test]
        fn charts_stay_in_their_area(
            (area, styles, values) in (area(), styles(), values()),
            counts in proptest::collection::vec(any::<u64>(), 0..100),
            (bucket, first, cursor, from, to) in (0_usize..120, 0_u64..99, any::<u64>(), any::<u64>(), any::<u64>()),
        ) {
            let marks = [Mark { label: "p50", bucket }, Mark { label: "max", bucket: bucket / 2 }];
            let label = |bucket: usize| format!("{bucket}");
            draw_within(area, &Histogram::new(&styles, &counts).marks(&marks).bucket_label(&label))?;
            let bookmarks = [cursor, from % 400];
            let strip = TimeStrip::new(&styles, first, &values)
                .cursor(cursor % 400).selection(from % 400..to % 400).bookmarks(&bookmarks);
            draw_within(area, &strip)?;
        }

        #[test]
        fn texts_stay_in_their_area(
            (area, styles, other_width) in (area(), styles(), 0_u16..60),
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..8), 0..60),
            (line, cursor, title) in (0_usize..50, 0_usize..80, "\\PC{0,30}"),
        ) {
            // The layout need not have been made for this width: a resize may come between.
            let layout = TokenLayout::new(pieces.iter().map(Vec::as_slice), other_width, styles.symbols());
            let flow = TokenFlow::new(&styles, &layout, &|_| Style::new());
            let flow = flow.first_line(line).cursor(cursor);
            draw_within(area, &flow)?;
            for position in area.positions() {
                prop_assert!(flow.at(area, position).is_none_or(|token| token < pieces.len()));
            }
            draw_within(area, &Panel::new(&styles, &title).note(&title).focus(true))?;
            draw_within(area, &Popup::new(&styles, &title, other_width, other_width))?;
            let entries = [Entry { glyph: 'x', style: Style::new(), label: &title }; 3];
            draw_within(area, &Legend::new(&styles, &entries))?;
            draw_within(area, &KeyHints::new(&styles, &[(&title, &title), ("q", "quit")]))?;
        }

        #[test]
        fn areas_beyond_the_buffer_are_clipped((area, values) in (area(), values())) {
            let styles = dark();
            let mut buf = Buffer::empty(Rect::new(0, 0, 12, 4));
            (&Heatmap::new(&styles, &values, 7)).render(area, &mut buf);
            (&TimeStrip::new(&styles, 0, &values)).render(area, &mut buf);
            (&Panel::new(&styles, "title")).render(area, &mut buf);
            (&Popup::new(&styles, "title", 5, 5)).render(area, &mut buf);
        }
    }

    #[test]
    fn text_is_cut_at_the_edges_of_its_area() {
        let mut buf = Buffer::empty(Rect::new(0, 0, 6, 2));
        let area = Rect::new(1, 0, 4, 1);
        assert_eq!(put(&mut buf, area, 2, 0, "abcdef", Style::new()), 5);
        put(&mut buf, area, 2, 1, "no", Style::new());
        put(&mut buf, area, 9, 0, "no", Style::new());
        assert_eq!(buf, Buffer::with_lines(["  abc ", "      "]));
    }

    #[test]
    fn right_aligned_text_loses_its_beginning() {
        let mut buf = Buffer::empty(Rect::new(0, 0, 6, 1));
        put_right(&mut buf, Rect::new(1, 0, 4, 1), 4, 0, "12345", Style::new());
        assert_eq!(buf, Buffer::with_lines([" 345  "]));
    }

    #[test]
    fn wide_letters_at_the_edge_do_not_spill() {
        let mut buf = Buffer::empty(Rect::new(0, 0, 4, 1));
        put(&mut buf, Rect::new(0, 0, 3, 1), 0, 0, "日本", Style::new());
        assert_eq!(buf.cell((2, 0)).map(ratatui::buffer::Cell::symbol), Some(" "));
    }
}
