//! A frame as a test can read it: ratatui's own dump shows glyphs only, and a change of colour would go unseen.

use std::fmt::Write as _;

use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};

/// Every glyph, then a letter for every style, then what the letters mean:
///
/// ```text
/// |▀ x |
/// |a b.|
/// a = fg #fde725 bg #440154
/// b = fg red bold
/// ```
///
/// Cells in the terminal's own style are dots in the second grid.
pub fn styled_dump(buf: &Buffer) -> String {
    let mut legend: Vec<String> = Vec::new();
    let mut glyphs = String::new();
    let mut letters = String::new();
    for y in buf.area.top()..buf.area.bottom() {
        glyphs.push('|');
        letters.push('|');
        for (_, cell) in super::row(buf, y) {
            glyphs.push_str(cell.symbol());
            let letter = letter(&describe(cell), &mut legend);
            for _ in 0..ratatui::buffer::CellWidth::cell_width(cell).max(1) {
                letters.push(letter);
            }
        }
        glyphs.push_str("|\n");
        letters.push_str("|\n");
    }
    let mut out = glyphs + &letters;
    for (index, style) in legend.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{} = {style}", nth_letter(index));
    }
    out
}

fn letter(style: &str, legend: &mut Vec<String>) -> char {
    if style.is_empty() {
        return '.';
    }
    let index = legend.iter().position(|known| known == style).unwrap_or_else(|| {
        legend.push(style.to_owned());
        legend.len() - 1
    });
    nth_letter(index)
}

/// a–z, A–Z, then whatever Unicode has from `Ā` on: a picture may have hundreds of styles.
fn nth_letter(index: usize) -> char {
    let ascii = ('a'..='z').chain('A'..='Z').nth(index);
    ascii.or_else(|| char::from_u32(0x100 + index as u32 - 52)).unwrap_or('?')
}

fn describe(cell: &Cell) -> String {
    let mut words = Vec::new();
    for (name, color) in [("fg", cell.fg), ("bg", cell.bg)] {
        match color {
            Color::Reset => {}
            Color::Rgb(r, g, b) => words.push(format!("{name} #{r:02x}{g:02x}{b:02x}")),
            color => words.push(format!("{name} {}", color.to_string().to_lowercase())),
        }
    }
    let modifiers = [
        (Modifier::BOLD, "bold"),
        (Modifier::DIM, "dim"),
        (Modifier::ITALIC, "italic"),
        (Modifier::UNDERLINED, "underlined"),
        (Modifier::REVERSED, "reversed"),
        (Modifier::CROSSED_OUT, "crossed-out"),
    ];
    words.extend(
        modifiers
            .into_iter()
            .filter(|(bit, _)| cell.modifier.contains(*bit))
            .map(|(_, word)| word.to_owned()),
    );
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::layout::Rect;
    use ratatui::style::Style;

    #[test]
    fn glyphs_styles_and_what_they_mean() {
        let mut buf = Buffer::empty(Rect::new(0, 0, 5, 1));
        buf.set_string(0, 0, "日", Style::new().fg(Color::Rgb(253, 231, 37)).add_modifier(Modifier::BOLD));
        buf.set_string(3, 0, "x", Style::new().bg(Color::Red));
        assert_eq!(styled_dump(&buf), "|日 x |\n|aa.b.|\na = fg #fde725 bold\nb = bg red\n");
    }

    #[test]
    fn letters_do_not_run_out() {
        assert_eq!((nth_letter(0), nth_letter(51), nth_letter(52)), ('a', 'Z', 'Ā'));
    }
}
