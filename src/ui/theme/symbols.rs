//! Which glyphs a font is trusted to have.

use clap::ValueEnum;
use ratatui::symbols::border;

/// What `--symbols` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Symbols {
    /// Blocks, and braille for fine lines. Nothing is said in braille alone.
    Braille,
    /// Block elements and box drawing.
    #[default]
    Block,
    /// Nothing beyond ASCII.
    Ascii,
}

impl Symbols {
    /// Whether only ASCII may be drawn.
    pub const fn is_ascii(self) -> bool {
        matches!(self, Self::Ascii)
    }

    /// One of two spellings.
    pub const fn pick<T: Copy>(self, unicode: T, ascii: T) -> T {
        if self.is_ascii() { ascii } else { unicode }
    }

    /// Glyphs of growing weight for values from 0 to 1. A missing value is a blank, which is why the lightest is not.
    pub const fn shades(self) -> &'static [char] {
        self.pick(&['·', '░', '▒', '▓', '█'], &['.', ':', '-', '=', '+', '*', '#', '%', '@'])
    }

    /// The shade of a value; what lies outside 0 to 1 counts as the nearer end.
    pub fn shade(self, value: f32) -> char {
        pick_by(self.shades(), value)
    }

    /// Bars of growing height for values from 0 to 1, without an empty one: what is there shows.
    pub const fn bars(self) -> &'static [char] {
        self.pick(&['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'], &['.', '-', '=', '+', '#'])
    }

    /// Left parts of a full cell, an eighth to seven eighths, for the end of a horizontal bar.
    pub const fn left_parts(self) -> &'static [char] {
        self.pick(&['▏', '▎', '▍', '▌', '▋', '▊', '▉'], &[])
    }

    /// A full cell of a bar.
    pub const fn full(self) -> char {
        self.pick('█', '#')
    }

    /// What shows that text was cut.
    pub const fn ellipsis(self) -> char {
        self.pick('…', '~')
    }

    /// Stands where a figure is missing.
    pub const fn missing(self) -> char {
        self.pick('–', '-')
    }

    /// Separates short items on a line.
    pub const fn dot(self) -> char {
        self.pick('·', '|')
    }

    /// Pane borders.
    pub const fn border(self) -> border::Set<'static> {
        match self {
            Self::Ascii => border::Set {
                top_left: "+",
                top_right: "+",
                bottom_left: "+",
                bottom_right: "+",
                vertical_left: "|",
                vertical_right: "|",
                horizontal_top: "-",
                horizontal_bottom: "-",
            },
            _ => border::PLAIN,
        }
    }

    /// Borders of the pane with focus: heavier, so that focus shows without colour.
    pub const fn border_focus(self) -> border::Set<'static> {
        match self {
            Self::Ascii => border::Set {
                top_left: "#",
                top_right: "#",
                bottom_left: "#",
                bottom_right: "#",
                vertical_left: "|",
                vertical_right: "|",
                horizontal_top: "=",
                horizontal_bottom: "=",
            },
            _ => border::THICK,
        }
    }
}

/// The element of `glyphs` for a value between 0 and 1.
pub(super) fn pick_by(glyphs: &[char], value: f32) -> char {
    let index = (value.clamp(0.0, 1.0) * glyphs.len() as f32) as usize;
    glyphs[index.min(glyphs.len() - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_means_ascii() {
        let s = Symbols::Ascii;
        let glyphs = s.shades().iter().chain(s.bars()).chain(s.left_parts()).copied();
        for glyph in glyphs.chain([s.full(), s.ellipsis(), s.missing(), s.dot()]) {
            assert!(glyph.is_ascii_graphic(), "{glyph:?}");
        }
        for set in [s.border(), s.border_focus()] {
            assert!(set.top_left.is_ascii() && set.horizontal_top.is_ascii() && set.vertical_left.is_ascii());
        }
    }

    #[test]
    fn shades_cover_the_range() {
        assert_eq!(Symbols::Ascii.shade(0.0), '.');
        assert_eq!(Symbols::Ascii.shade(1.0), '@');
        assert_eq!(Symbols::Block.shade(f32::NAN), '·');
        assert_eq!(Symbols::Block.shade(9.0), '█');
    }
}
