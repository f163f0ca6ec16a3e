//! A frame as SVG: grounds and picture glyphs are rectangles, letters are runs pinned to the grid.

use std::fmt::Write as _;

use ratatui::buffer::{Buffer, Cell, CellWidth};
use ratatui::style::{Color, Modifier};

use super::shapes::{CELL_HEIGHT, CELL_WIDTH, Shape, shapes};
use crate::ui::theme::{Page, rgb};

/// Space around the frame.
const MARGIN: f32 = 12.0;
/// Size of letters; a monospace letter is some 0.6 of it wide.
const FONT_SIZE: f32 = 15.0;
/// Where letters stand in a cell, from its top.
const BASELINE: f32 = 13.5;

/// The frame as a self-contained SVG document. `page` says what stands for the terminal's own colours.
///
/// Every run of letters is given the width it must take (`textLength`), so that the picture stays aligned in whatever
/// font there is.
pub fn svg(buf: &Buffer, page: Page, title: &str) -> String {
    let mut writer = Writer { out: String::new(), page };
    writer.head(buf, title);
    for y in buf.area.top()..buf.area.bottom() {
        let cells: Vec<Placed> = super::row(buf, y)
            .map(|(x, cell)| Placed::new(f32::from(x - buf.area.x), f32::from(y - buf.area.y), cell, page))
            .collect();
        writer.grounds(&cells);
        writer.pictures(&cells);
        writer.letters(&cells);
    }
    writer.out.push_str("</g>\n</svg>\n");
    writer.out
}

/// A cell with its place on the page and its colours resolved.
struct Placed<'a> {
    x: f32,
    y: f32,
    width: f32,
    symbol: &'a str,
    foreground: [u8; 3],
    background: [u8; 3],
    modifier: Modifier,
    shapes: Option<Vec<Shape>>,
}

impl<'a> Placed<'a> {
    fn new(column: f32, row: f32, cell: &'a Cell, page: Page) -> Self {
        let resolve = |color: Color, own: [u8; 3]| rgb(color).unwrap_or(own);
        let mut foreground = resolve(cell.fg, page.foreground);
        let mut background = resolve(cell.bg, page.background);
        if cell.modifier.contains(Modifier::REVERSED) {
            std::mem::swap(&mut foreground, &mut background);
        }
        let mut chars = cell.symbol().chars();
        let shapes = match (chars.next(), chars.next()) {
            (Some(glyph), None) => shapes(glyph),
            _ => None,
        };
        Self {
            x: MARGIN + column * CELL_WIDTH,
            y: MARGIN + row * CELL_HEIGHT,
            width: f32::from(cell.cell_width().max(1)) * CELL_WIDTH,
            symbol: cell.symbol(),
            foreground,
            background,
            modifier: cell.modifier,
            shapes,
        }
    }

    fn opacity(&self) -> f32 {
        if self.modifier.contains(Modifier::DIM) { 0.6 } else { 1.0 }
    }

    fn is_letter(&self) -> bool {
        let lined = self.modifier.intersects(Modifier::UNDERLINED | Modifier::CROSSED_OUT);
        self.shapes.is_none() && (self.symbol != " " || lined) && !self.modifier.contains(Modifier::HIDDEN)
    }

    /// Whether two letters can share a run.
    fn looks_like(&self, other: &Self) -> bool {
        (self.foreground, self.modifier) == (other.foreground, other.modifier)
    }

    /// Letters of one column each share a run; a wide or compound one is pinned alone, where fonts disagree most.
    fn is_plain(&self) -> bool {
        self.width <= CELL_WIDTH && self.symbol.is_ascii()
    }
}

struct Writer {
    out: String,
    page: Page,
}

impl Writer {
    fn head(&mut self, buf: &Buffer, title: &str) {
        let width = f32::from(buf.area.width) * CELL_WIDTH + 2.0 * MARGIN;
        let height = f32::from(buf.area.height) * CELL_HEIGHT + 2.0 * MARGIN;
        let (ground, title) = (hex(self.page.background), escape(title));
        self.write(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} \
             {height}\" role=\"img\">\n<title>{title}</title>\n\
             <rect width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{ground}\"/>\n\
             <g font-family=\"ui-monospace, 'JetBrains Mono', 'DejaVu Sans Mono', Menlo, Consolas, monospace\" \
             font-size=\"{FONT_SIZE}\" xml:space=\"preserve\">\n",
        ));
    }

    /// Neighbours on the same ground are one rectangle.
    fn grounds(&mut self, cells: &[Placed<'_>]) {
        for run in cells.chunk_by(|a, b| a.background == b.background) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            if first.background != self.page.background {
                let shape = Shape {
                    x: first.x,
                    y: first.y,
                    width: last.x + last.width - first.x,
                    height: CELL_HEIGHT,
                    opacity: 1.0,
                };
                self.rect(shape, first.background);
            }
        }
    }

    /// Equal picture glyphs side by side are one rectangle where they touch.
    fn pictures(&mut self, cells: &[Placed<'_>]) {
        let alike = |a: &Placed<'_>, b: &Placed<'_>| {
            a.symbol == b.symbol && a.looks_like(b) && a.shapes.is_some() && a.modifier == b.modifier
        };
        for run in cells.chunk_by(alike) {
            let Some(first) = run.first() else { continue };
            for &shape in first.shapes.iter().flatten() {
                let placed = |cell: &Placed<'_>, width: f32| Shape {
                    x: cell.x + shape.x,
                    y: cell.y + shape.y,
                    width,
                    opacity: shape.opacity * cell.opacity(),
                    ..shape
                };
                if shape.width >= CELL_WIDTH {
                    self.rect(placed(first, CELL_WIDTH * run.len() as f32), first.foreground);
                } else {
                    for cell in run {
                        self.rect(placed(cell, shape.width), cell.foreground);
                    }
                }
            }
        }
    }

    fn letters(&mut self, cells: &[Placed<'_>]) {
        let share = |a: &Placed<'_>, b: &Placed<'_>| {
            // A blank inside a run is part of it, whatever colour it would have.
            let continues = a.is_plain() && b.is_plain() && a.looks_like(b);
            continues && a.shapes.is_none() && b.shapes.is_none()
        };
        for run in cells.chunk_by(share) {
            let Some(from) = run.iter().position(Placed::is_letter) else { continue };
            let to = run.iter().rposition(Placed::is_letter).map_or(from, |last| last + 1);
            self.run(&run[from..to]);
        }
    }

    fn run(&mut self, run: &[Placed<'_>]) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
        let (x, y) = (first.x, first.y + BASELINE);
        let width = last.x + last.width - first.x;
        let text: String = run.iter().map(|cell| escape(cell.symbol)).collect();
        let fill = hex(first.foreground);
        let mut attributes = String::new();
        for (modifier, attribute) in [
            (Modifier::BOLD, " font-weight=\"bold\""),
            (Modifier::ITALIC, " font-style=\"italic\""),
            (Modifier::DIM, " fill-opacity=\"0.6\""),
        ] {
            if first.modifier.contains(modifier) {
                attributes.push_str(attribute);
            }
        }
        self.write(format_args!(
            "<text x=\"{x}\" y=\"{y}\" textLength=\"{width}\" lengthAdjust=\"spacingAndGlyphs\" \
             fill=\"{fill}\"{attributes}>{text}</text>\n"
        ));
        // Drawn rather than asked for: not every renderer puts text decorations under a stretched run.
        for (modifier, y) in [(Modifier::UNDERLINED, 15.5), (Modifier::CROSSED_OUT, 9.0)] {
            if first.modifier.contains(modifier) {
                let line = Shape { x, y: first.y + y, width, height: 1.0, opacity: first.opacity() };
                self.rect(line, first.foreground);
            }
        }
    }

    fn rect(&mut self, shape: Shape, fill: [u8; 3]) {
        let Shape { x, y, width, height, opacity } = shape;
        let fill = hex(fill);
        let opacity = if opacity < 1.0 { format!(" fill-opacity=\"{opacity}\"") } else { String::new() };
        // Crisp edges: half-blocks that touch must not show a seam.
        self.write(format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{fill}\"{opacity} \
             shape-rendering=\"crispEdges\"/>\n"
        ));
    }

    fn write(&mut self, arguments: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.out.write_fmt(arguments);
    }
}

fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Text as XML allows it: markup escaped, characters that XML has no way to say replaced.
fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, char| {
        match char {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\u{0}'..='\u{8}' | '\u{B}' | '\u{C}' | '\u{E}'..='\u{1F}' | '\u{FFFE}' | '\u{FFFF}' => {
                out.push('\u{FFFD}');
            }
            char => out.push(char),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use ratatui::layout::Rect;
    use ratatui::style::Style;

    use super::*;

    const PAGE: Page = Page { background: [17, 21, 28], foreground: [213, 218, 224] };

    fn draw(text: &str, style: Style) -> String {
        let mut buf = Buffer::empty(Rect::new(0, 0, 6, 1));
        buf.set_string(0, 0, text, style);
        svg(&buf, PAGE, "a <b> & \"c\"")
    }

    #[test]
    fn markup_in_text_and_title_is_escaped() {
        let out = draw("<&>", Style::new());
        assert!(out.contains("<title>a &lt;b&gt; &amp; &quot;c&quot;</title>"), "{out}");
        assert!(out.contains(">&lt;&amp;&gt;</text>"), "{out}");
    }

    #[test]
    fn letters_are_pinned_to_the_grid() {
        let out = draw("ab cd", Style::new());
        let run = "<text x=\"12\" y=\"25.5\" textLength=\"45\" lengthAdjust=\"spacingAndGlyphs\" fill=\"#d5dae0\">ab \
                   cd</text>";
        assert!(out.contains(run), "{out}");
        assert!(draw("日本", Style::new()).contains("textLength=\"18\""));
    }

    #[test]
    fn half_blocks_are_rectangles_and_merge() {
        let out = draw("▀▀", Style::new().fg(Color::Rgb(1, 2, 3)).bg(Color::Rgb(4, 5, 6)));
        assert!(out.contains("<rect x=\"12\" y=\"12\" width=\"18\" height=\"18\" fill=\"#040506\""), "{out}");
        assert!(out.contains("<rect x=\"12\" y=\"12\" width=\"18\" height=\"9\" fill=\"#010203\""), "{out}");
        assert!(!out.contains("<text"), "{out}");
    }

    #[test]
    fn reversed_text_swaps_with_the_page() {
        let out = draw("x", Style::new().add_modifier(Modifier::REVERSED));
        assert!(out.contains("width=\"9\" height=\"18\" fill=\"#d5dae0\""), "{out}");
        assert!(out.contains("fill=\"#11151c\">x</text>"), "{out}");
    }

    #[test]
    fn crossed_out_text_is_crossed_out() {
        let out = draw("x", Style::new().add_modifier(Modifier::CROSSED_OUT));
        assert!(out.contains("y=\"21\" width=\"9\" height=\"1\""), "{out}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_balanced_elements(text in ".{0,12}") {
            let out = draw(&crate::ui::text::safe(text.as_bytes(), crate::ui::theme::Symbols::Block), Style::new());
            let opened = out.matches("<text").count();
            proptest::prop_assert_eq!(opened, out.matches("</text>").count());
            proptest::prop_assert!(out.ends_with("</g>\n</svg>\n"));
            proptest::prop_assert!(!out.chars().any(|c| c.is_control() && c != '\n'));
        }
    }
}
