//! A finished frame as a file: plain text, ANSI, SVG, JSON, and a dump of glyphs and styles for tests.

mod dump;
mod shapes;
mod svg;

use std::fmt::Write as _;

use ratatui::buffer::{Buffer, Cell, CellWidth};
use ratatui::style::{Color, Modifier, Style};

pub use dump::styled_dump;
pub use svg::svg;

/// The glyphs, a line each, without the blanks at the end.
pub fn text(buf: &Buffer) -> String {
    lines(buf).map(|line| line + "\n").collect()
}

/// `{"width":…,"height":…,"lines":[…]}`: a line for each row, without the blanks at the end.
pub fn json(buf: &Buffer) -> String {
    let lines: Vec<String> = lines(buf).collect();
    serde_json::json!({ "width": buf.area.width, "height": buf.area.height, "lines": lines }).to_string()
}

/// Glyphs with SGR sequences, as a terminal would show them; every line ends with its attributes reset.
pub fn ansi(buf: &Buffer) -> String {
    let mut out = String::new();
    for y in buf.area.top()..buf.area.bottom() {
        let mut style = Style::reset();
        let blank_from = row(buf, y).filter(|(_, cell)| !is_blank(cell)).last().map_or(0, |(x, _)| x + 1);
        for (_, cell) in row(buf, y).take_while(|&(x, _)| x < blank_from) {
            if cell.style() != style {
                style = cell.style();
                push_sgr(&mut out, cell);
            }
            out.push_str(cell.symbol());
        }
        out.push_str("\x1b[0m\n");
    }
    out
}

/// The cells of a line that start a glyph, with their columns: what lies under the right part of a wide one is skipped.
fn row(buf: &Buffer, y: u16) -> impl Iterator<Item = (u16, &Cell)> {
    let mut next = buf.area.left();
    (buf.area.left()..buf.area.right()).filter_map(move |x| {
        if x < next {
            return None;
        }
        let cell = buf.cell((x, y))?;
        next = x.saturating_add(cell.cell_width().max(1));
        Some((x, cell))
    })
}

fn lines(buf: &Buffer) -> impl Iterator<Item = String> {
    (buf.area.top()..buf.area.bottom()).map(|y| {
        let mut line: String = row(buf, y).map(|(_, cell)| cell.symbol()).collect();
        line.truncate(line.trim_end_matches(' ').len());
        line
    })
}

fn is_blank(cell: &Cell) -> bool {
    let shows = Modifier::REVERSED | Modifier::UNDERLINED | Modifier::CROSSED_OUT;
    cell.symbol() == " " && cell.bg == Color::Reset && !cell.modifier.intersects(shows)
}

const SGR: [(Modifier, u8); 8] = [
    (Modifier::BOLD, 1),
    (Modifier::DIM, 2),
    (Modifier::ITALIC, 3),
    (Modifier::UNDERLINED, 4),
    (Modifier::SLOW_BLINK, 5),
    (Modifier::REVERSED, 7),
    (Modifier::HIDDEN, 8),
    (Modifier::CROSSED_OUT, 9),
];

fn push_sgr(out: &mut String, cell: &Cell) {
    out.push_str("\x1b[0");
    for (modifier, code) in SGR {
        if cell.modifier.contains(modifier) {
            let _ = write!(out, ";{code}");
        }
    }
    push_color(out, cell.fg, 30);
    push_color(out, cell.bg, 40);
    out.push('m');
}

/// The parameters of a colour; `base` is 30 for text, 40 for ground.
fn push_color(out: &mut String, color: Color, base: u8) {
    let named = [
        Color::Black,
        Color::Red,
        Color::Green,
        Color::Yellow,
        Color::Blue,
        Color::Magenta,
        Color::Cyan,
        Color::Gray,
        Color::DarkGray,
        Color::LightRed,
        Color::LightGreen,
        Color::LightYellow,
        Color::LightBlue,
        Color::LightMagenta,
        Color::LightCyan,
        Color::White,
    ];
    // Writing to a string cannot fail.
    let _ = match color {
        Color::Reset => Ok(()),
        Color::Rgb(r, g, b) => write!(out, ";{};2;{r};{g};{b}", base + 8),
        Color::Indexed(index) => write!(out, ";{};5;{index}", base + 8),
        color => match named.iter().position(|&name| name == color) {
            Some(index @ 0..=7) => write!(out, ";{}", base + index as u8),
            Some(index) => write!(out, ";{}", base + 52 + index as u8),
            None => Ok(()),
        },
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::layout::Rect;

    fn frame() -> Buffer {
        let mut buf = Buffer::empty(Rect::new(0, 0, 8, 2));
        buf.set_string(0, 0, "日\"a\"", Style::new().fg(Color::Rgb(1, 2, 3)).add_modifier(Modifier::BOLD));
        buf.set_string(0, 1, "x", Style::new().fg(Color::LightRed).bg(Color::Indexed(240)));
        buf
    }

    #[test]
    fn text_skips_the_right_half_of_wide_letters() {
        assert_eq!(text(&frame()), "日\"a\"\nx\n");
    }

    #[test]
    fn json_is_json() {
        let value: serde_json::Value = serde_json::from_str(&json(&frame())).unwrap();
        assert_eq!(value, serde_json::json!({"width": 8, "height": 2, "lines": ["日\"a\"", "x"]}));
    }

    #[test]
    fn ansi_changes_attributes_only_where_they_change() {
        assert_eq!(ansi(&frame()), "\x1b[0;1;38;2;1;2;3m日\"a\"\x1b[0m\n\x1b[0;91;48;5;240mx\x1b[0m\n");
    }

    #[test]
    fn ansi_read_by_a_terminal_gives_the_same_cells() {
        let buf = frame();
        let mut parser = vt100::Parser::new(
            std::num::NonZeroU16::new(2).unwrap(),
            std::num::NonZeroU16::new(8).unwrap(),
            0,
        );
        parser.process(ansi(&buf).replace('\n', "\r\n").trim_end().as_bytes());
        let cell = parser.screen().cell(0, 0).unwrap();
        assert_eq!((cell.contents(), cell.bold()), ("日", true));
        assert_eq!(cell.fgcolor(), vt100::Color::Rgb(1, 2, 3));
        let cell = parser.screen().cell(1, 0).unwrap();
        assert_eq!((cell.fgcolor(), cell.bgcolor()), (vt100::Color::Idx(9), vt100::Color::Idx(240)));
    }
}
