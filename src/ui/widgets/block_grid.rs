//! The pool, block by block.

use std::ops::Range;

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::Style;
use ratatui::widgets::Widget;

use super::{Entry, columns, put_char, put_right};
use crate::ui::text;
use crate::ui::theme::{Depth, Role, Styles};

/// What a block is, or what most of its slots are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockKind {
    /// Holds resident tokens.
    Live,
    /// Holds slots of evicted tokens beside others.
    Stranded,
    /// The last block of a table, part of it never written.
    Unfilled,
    /// Has more than one owner.
    Shared,
    /// Has its home in main memory.
    Host,
    /// Has no owner.
    Free,
}

impl BlockKind {
    /// All kinds, in the order of the legend.
    pub const ALL: [Self; 6] =
        [Self::Live, Self::Stranded, Self::Unfilled, Self::Shared, Self::Host, Self::Free];

    /// The word in the legend.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Stranded => "stranded",
            Self::Unfilled => "unfilled",
            Self::Shared => "shared",
            Self::Host => "host",
            Self::Free => "free",
        }
    }

    /// The role that draws it.
    pub const fn role(self) -> Role {
        match self {
            Self::Live => Role::Live,
            Self::Stranded => Role::Stranded,
            Self::Unfilled => Role::Unfilled,
            Self::Shared => Role::Shared,
            Self::Host => Role::Host,
            Self::Free => Role::Free,
        }
    }

    /// Its glyph. A live block shows how full it is; of the others the kind matters more, and each has a glyph of its
    /// own, so that a grid can be read without colour.
    fn glyph(self, styles: &Styles, occupancy: f32) -> char {
        let symbols = styles.symbols();
        match self {
            Self::Live if symbols.is_ascii() => symbols.shade(occupancy),
            Self::Live => {
                let bars = symbols.bars();
                bars[((occupancy.clamp(0.0, 1.0) * bars.len() as f32).ceil() as usize).clamp(1, bars.len())
                    - 1]
            }
            Self::Stranded => symbols.pick('▒', 'x'),
            Self::Unfilled => symbols.pick('░', 'u'),
            Self::Shared => symbols.pick('◆', 'S'),
            Self::Host => symbols.pick('○', 'h'),
            Self::Free => symbols.pick('·', ' '),
        }
    }
}

/// One block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// What it is.
    pub kind: BlockKind,
    /// Share of its slots that hold resident tokens, 0 to 1.
    pub occupancy: f32,
}

impl Block {
    /// How it is drawn. `leveled` draws stranded blocks as full as they are too, where colour tells them from live ones.
    pub fn cell(self, styles: &Styles, leveled: bool) -> (char, Style) {
        let by_colour = styles.depth() > Depth::None && !styles.symbols().is_ascii();
        let shape = if leveled && by_colour && self.kind == BlockKind::Stranded {
            BlockKind::Live
        } else {
            self.kind
        };
        (shape.glyph(styles, self.occupancy), styles[self.kind.role()])
    }
}

/// Blocks in reading order, one cell each, with the first id of every line at its left.
#[derive(Clone, Debug)]
pub struct BlockGrid<'a> {
    styles: &'a Styles,
    blocks: &'a [Block],
    first_id: usize,
    per_line: Option<u16>,
    first_line: usize,
    cursor: Option<usize>,
    leveled: bool,
}

struct Frame {
    cells: Rect,
    per_line: usize,
    lines: Range<usize>,
}

impl<'a> BlockGrid<'a> {
    /// A grid of blocks.
    pub const fn new(styles: &'a Styles, blocks: &'a [Block]) -> Self {
        Self { styles, blocks, first_id: 0, per_line: None, first_line: 0, cursor: None, leveled: false }
    }

    /// The id of the first block, for the labels.
    #[must_use]
    pub const fn first_id(mut self, id: usize) -> Self {
        self.first_id = id;
        self
    }

    /// Blocks on a line, such as those of a gang; without it as many as fit, in multiples of 8 where that is possible.
    #[must_use]
    pub const fn per_line(mut self, blocks: u16) -> Self {
        self.per_line = Some(blocks);
        self
    }

    /// The first line shown; it gives way where the cursor would not be visible.
    #[must_use]
    pub const fn first_line(mut self, line: usize) -> Self {
        self.first_line = line;
        self
    }

    /// Index of the block under the cursor.
    #[must_use]
    pub const fn cursor(mut self, index: usize) -> Self {
        self.cursor = Some(index);
        self
    }

    /// Draws stranded blocks as full as they are, see [`Block::cell`].
    #[must_use]
    pub const fn leveled(mut self) -> Self {
        self.leveled = true;
        self
    }

    /// The legend of the kinds there are.
    pub fn legend(styles: &Styles) -> [Entry<'static>; 6] {
        BlockKind::ALL.map(|kind| Entry {
            glyph: kind.glyph(styles, 1.0),
            style: styles[kind.role()],
            label: kind.name(),
        })
    }

    /// Index of the block drawn at a cell of the screen.
    pub fn at(&self, area: Rect, position: Position) -> Option<usize> {
        let frame = self.frame(area);
        let column = usize::from(position.x.checked_sub(frame.cells.x)?);
        let line = frame.lines.start + usize::from(position.y.checked_sub(frame.cells.y)?);
        let index = line * frame.per_line + column;
        (frame.cells.contains(position) && column < frame.per_line && index < self.blocks.len())
            .then_some(index)
    }

    /// Blocks on each line when drawn in an area: what a step down moves by.
    pub fn blocks_per_line(&self, area: Rect) -> usize {
        self.frame(area).per_line
    }

    fn frame(&self, area: Rect) -> Frame {
        let last_id = (self.first_id + self.blocks.len()).saturating_sub(1);
        let label = columns(last_id.to_string().len()).saturating_add(1);
        let label = if area.width > label.saturating_mul(2) { label } else { 0 };
        let cells = Rect { x: area.x + label, width: area.width - label, ..area };
        let per_line = match self.per_line {
            Some(n) => n.clamp(1, cells.width.max(1)),
            None if cells.width >= 8 => cells.width / 8 * 8,
            None => cells.width.max(1),
        };
        let per_line = usize::from(per_line);
        let lines = self.blocks.len().div_ceil(per_line);
        let shown = usize::from(cells.height).min(lines);
        let mut first = self.first_line.min(lines - shown);
        if let Some(cursor) = self.cursor.filter(|&cursor| cursor < self.blocks.len() && shown > 0) {
            let line = cursor / per_line;
            first = first.clamp((line + 1).saturating_sub(shown), line);
        }
        Frame { cells, per_line, lines: first..first + shown }
    }
}

impl Widget for &BlockGrid<'_> {
    fn render(self, area: Rect, buf: &mut Buffer) {
        let area = area.intersection(buf.area);
        if area.is_empty() {
            return;
        }
        let frame = self.frame(area);
        let labels = Rect { width: (frame.cells.x - area.x).saturating_sub(1), ..area };
        for (line, y) in frame.lines.clone().zip(frame.cells.y..) {
            let start = line * frame.per_line;
            put_right(
                buf,
                labels,
                labels.right(),
                y,
                &(self.first_id + start).to_string(),
                self.styles[Role::Dim],
            );
            let blocks = &self.blocks[start..(start + frame.per_line).min(self.blocks.len())];
            for (column, block) in blocks.iter().enumerate() {
                let (glyph, mut style) = block.cell(self.styles, self.leveled);
                if self.cursor == Some(start + column) {
                    style = style.patch(self.styles[Role::Cursor]);
                }
                put_char(buf, frame.cells, frame.cells.x + columns(column), y, glyph, style);
            }
        }
        if self.blocks.is_empty() {
            let note = text::fit("no blocks", usize::from(area.width), self.styles.symbols());
            super::put(buf, area, area.x, area.y, &note, self.styles[Role::Dim]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::export::{styled_dump, text};
    use crate::ui::theme::{dark, plain};

    fn blocks() -> Vec<Block> {
        let mut blocks = vec![Block { kind: BlockKind::Live, occupancy: 1.0 }; 4];
        blocks.extend((0..5).map(|i| Block { kind: BlockKind::Live, occupancy: i as f32 / 4.0 }));
        blocks.extend(BlockKind::ALL.map(|kind| Block { kind, occupancy: 0.5 }));
        blocks
    }

    #[test]
    fn blocks_show_kind_and_occupancy() {
        let mut buf = Buffer::empty(Rect::new(0, 0, 12, 2));
        (&BlockGrid::new(&dark(), &blocks()).cursor(3)).render(buf.area, &mut buf);
        insta::assert_snapshot!(styled_dump(&buf), @r#"
        | 0 ████▁▂▄▆ |
        | 8 █▄▒░◆○·  |
        |.a.bbbcbbbb.|
        |.a.bbdefge..|
        a = fg #8a93a0
        b = fg #62c4b4
        c = fg #62c4b4 reversed
        d = fg #e8837f
        e = fg #4a5462
        f = fg #c59bf0
        g = fg #f0a35e
        "#);
    }

    #[test]
    fn kinds_differ_without_colour() {
        let mut buf = Buffer::empty(Rect::new(0, 0, 12, 2));
        (&BlockGrid::new(&plain(), &blocks()).first_id(90)).render(buf.area, &mut buf);
        assert_eq!(text(&buf), " 90 @@@@.-+#\n 98 @+xuSh\n");
        let glyphs = BlockGrid::legend(&plain()).map(|entry| entry.glyph);
        for (i, glyph) in glyphs.iter().enumerate() {
            assert!(!glyphs[i + 1..].contains(glyph), "{glyph:?} stands for two kinds");
        }
    }

    #[test]
    fn cells_map_back_to_blocks_also_when_scrolled() {
        let many = vec![Block { kind: BlockKind::Free, occupancy: 0.0 }; 1000];
        let styles = dark();
        let grid = BlockGrid::new(&styles, &many).cursor(999);
        let area = Rect::new(2, 1, 20, 5);
        assert_eq!(grid.blocks_per_line(area), 16);
        assert_eq!(grid.at(area, Position::new(6, 5)), Some(992));
        assert_eq!(grid.at(area, Position::new(13, 5)), Some(999));
        assert_eq!(grid.at(area, Position::new(14, 5)), None);
        assert_eq!(grid.at(area, Position::new(2, 1)), None);
    }
}
