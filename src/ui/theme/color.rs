//! Colour depth: what a terminal can show, and the nearest thing it has to a colour it cannot.

use clap::ValueEnum;
use ratatui::style::{Color, Style};

/// How many colours a terminal shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// None: glyphs and attributes carry everything.
    None,
    /// The 16 named colours, which the person's terminal defines.
    Ansi,
    /// The 256 colours of xterm.
    Indexed,
    /// Red, green and blue, 8 bits each.
    True,
}

/// What `--color` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// What the terminal seems able to show; none with NO_COLOR or a dumb terminal.
    #[default]
    Auto,
    /// As auto, but NO_COLOR and redirection are ignored.
    Always,
    /// No colour at all.
    Never,
    /// The 256 colours of xterm.
    #[value(name = "256")]
    Indexed,
    /// The 16 named colours.
    #[value(name = "16")]
    Ansi,
}

/// What is known about a terminal, gathered by the caller.
#[derive(Clone, Debug, Default)]
pub struct Terminal {
    /// Whether the output goes to a terminal.
    pub is_terminal: bool,
    /// `NO_COLOR`, `COLORTERM`, `TERM`, `SSH_CONNECTION`, in that order.
    pub variables: [Option<String>; 4],
}

impl Terminal {
    /// Reads the variables that matter through `get`.
    pub fn new(is_terminal: bool, get: impl Fn(&str) -> Option<String>) -> Self {
        Self { is_terminal, variables: ["NO_COLOR", "COLORTERM", "TERM", "SSH_CONNECTION"].map(get) }
    }

    fn able(&self) -> Depth {
        let [_, colorterm, term, ssh] = self.variables.each_ref().map(Option::as_deref);
        let term = term.unwrap_or("");
        let knows_true_color = matches!(colorterm, Some("truecolor" | "24bit"))
            || term.ends_with("-direct")
            || ["kitty", "ghostty", "alacritty", "wezterm", "foot"].iter().any(|name| term.contains(name));
        if term == "dumb" {
            Depth::None
        } else if knows_true_color {
            // A full-screen heat map in true colour is some 360 kB a frame; 256 colours save two fifths of that.
            if ssh.is_some() { Depth::Indexed } else { Depth::True }
        } else if term.contains("256color") {
            Depth::Indexed
        } else {
            Depth::Ansi
        }
    }
}

impl Depth {
    /// The depth to draw with.
    pub fn detect(choice: ColorChoice, terminal: &Terminal) -> Self {
        let no_color = terminal.variables[0].as_deref().is_some_and(|value| !value.is_empty());
        match choice {
            ColorChoice::Never => Self::None,
            ColorChoice::Ansi => Self::Ansi,
            ColorChoice::Indexed => Self::Indexed,
            ColorChoice::Always => terminal.able().max(Self::Ansi),
            ColorChoice::Auto if no_color || !terminal.is_terminal => Self::None,
            ColorChoice::Auto => terminal.able(),
        }
    }

    /// The nearest colour of this depth, by distance in OKLab.
    pub fn nearest(self, color: Color) -> Color {
        let (Some(rgb), false) = (rgb(color), self.has(color)) else { return color };
        match self {
            Self::None => Color::Reset,
            // The first 16 of the 256 are the person's own and look like anything; the cube and the greys are fixed.
            Self::Indexed => Color::Indexed(nearest_of(rgb, 16..=255)),
            Self::Ansi => ANSI[usize::from(nearest_of(rgb, 0..=15))].0,
            Self::True => color,
        }
    }

    /// A style brought to this depth.
    pub(super) fn style(self, style: Style) -> Style {
        let bring = |color: Option<Color>| match self {
            Self::None => None,
            _ => color.map(|color| self.nearest(color)),
        };
        Style { fg: bring(style.fg), bg: bring(style.bg), underline_color: None, ..style }
    }

    const fn has(self, color: Color) -> bool {
        match color {
            Color::Reset => true,
            Color::Rgb(..) => matches!(self, Self::True),
            Color::Indexed(_) => matches!(self, Self::True | Self::Indexed),
            _ => !matches!(self, Self::None),
        }
    }
}

/// The 16 named colours with the values xterm gives them.
const ANSI: [(Color, [u8; 3]); 16] = [
    (Color::Black, [0, 0, 0]),
    (Color::Red, [205, 0, 0]),
    (Color::Green, [0, 205, 0]),
    (Color::Yellow, [205, 205, 0]),
    (Color::Blue, [0, 0, 238]),
    (Color::Magenta, [205, 0, 205]),
    (Color::Cyan, [0, 205, 205]),
    (Color::Gray, [229, 229, 229]),
    (Color::DarkGray, [127, 127, 127]),
    (Color::LightRed, [255, 0, 0]),
    (Color::LightGreen, [0, 255, 0]),
    (Color::LightYellow, [255, 255, 0]),
    (Color::LightBlue, [92, 92, 255]),
    (Color::LightMagenta, [255, 0, 255]),
    (Color::LightCyan, [0, 255, 255]),
    (Color::White, [255, 255, 255]),
];

/// Red, green and blue of a colour as xterm shows it; `None` for the terminal's own.
pub fn rgb(color: Color) -> Option<[u8; 3]> {
    match color {
        Color::Reset => None,
        Color::Rgb(r, g, b) => Some([r, g, b]),
        Color::Indexed(index) => Some(indexed(index)),
        named => ANSI.iter().find(|(name, _)| *name == named).map(|&(_, rgb)| rgb),
    }
}

/// Red, green and blue of one of xterm's 256 colours: 16 named, a 6×6×6 cube, 24 greys.
fn indexed(index: u8) -> [u8; 3] {
    match index {
        0..=15 => ANSI[usize::from(index)].1,
        16..=231 => {
            let level = |i: u8| if i == 0 { 0 } else { 55 + 40 * i };
            let i = index - 16;
            [level(i / 36), level(i / 6 % 6), level(i % 6)]
        }
        232..=255 => [8 + 10 * (index - 232); 3],
    }
}

fn oklab([r, g, b]: [u8; 3]) -> [f32; 4] {
    colorgrad::Color::from_rgba8(r, g, b, 255).to_oklaba()
}

/// Whether a colour in OKLab is plainly not a grey.
fn is_chromatic([_, a, b, _]: [f32; 4]) -> bool {
    a.hypot(b) > 0.06
}

fn nearest_of(color: [u8; 3], among: std::ops::RangeInclusive<u8>) -> u8 {
    let wanted = oklab(color);
    // The 16 are so few that a grey is often the nearest to a colour; but then what it stood for is gone.
    let must_be_chromatic = is_chromatic(wanted) && *among.end() < 16;
    let among = among.filter(|&index| !must_be_chromatic || is_chromatic(oklab(indexed(index))));
    let distance =
        |index: u8| -> f32 { oklab(indexed(index)).iter().zip(wanted).map(|(a, b)| (a - b) * (a - b)).sum() };
    among.min_by(|&a, &b| distance(a).total_cmp(&distance(b))).expect("the range is not empty")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terminal(pairs: &[(&str, &str)]) -> Terminal {
        Terminal::new(true, |name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn detection_follows_the_variables() {
        let cases: [(&[(&str, &str)], Depth); 8] = [
            (&[("TERM", "xterm-256color")], Depth::Indexed),
            (&[("TERM", "xterm-256color"), ("COLORTERM", "truecolor")], Depth::True),
            (&[("TERM", "xterm-kitty")], Depth::True),
            (&[("TERM", "xterm-kitty"), ("SSH_CONNECTION", "a b")], Depth::Indexed),
            (&[("TERM", "linux")], Depth::Ansi),
            (&[("TERM", "dumb"), ("COLORTERM", "truecolor")], Depth::None),
            (&[("TERM", "xterm-256color"), ("NO_COLOR", "1")], Depth::None),
            (&[("TERM", "xterm-256color"), ("NO_COLOR", "")], Depth::Indexed),
        ];
        for (pairs, depth) in cases {
            assert_eq!(Depth::detect(ColorChoice::Auto, &terminal(pairs)), depth, "{pairs:?}");
        }
    }

    #[test]
    fn a_choice_wins_over_the_surroundings() {
        let quiet = terminal(&[("TERM", "dumb"), ("NO_COLOR", "1")]);
        assert_eq!(Depth::detect(ColorChoice::Always, &quiet), Depth::Ansi);
        assert_eq!(Depth::detect(ColorChoice::Indexed, &quiet), Depth::Indexed);
        assert_eq!(Depth::detect(ColorChoice::Ansi, &quiet), Depth::Ansi);
        let redirected = Terminal { is_terminal: false, ..terminal(&[("COLORTERM", "truecolor")]) };
        assert_eq!(Depth::detect(ColorChoice::Auto, &redirected), Depth::None);
        assert_eq!(Depth::detect(ColorChoice::Always, &redirected), Depth::True);
        assert_eq!(Depth::detect(ColorChoice::Never, &redirected), Depth::None);
    }

    #[test]
    fn nearest_colours_are_the_ones_an_eye_would_pick() {
        assert_eq!(Depth::Indexed.nearest(Color::Rgb(95, 135, 175)), Color::Indexed(67));
        assert_eq!(Depth::Indexed.nearest(Color::Rgb(8, 8, 8)), Color::Indexed(232));
        assert_eq!(Depth::Ansi.nearest(Color::Rgb(250, 10, 10)), Color::LightRed);
        assert_eq!(Depth::Ansi.nearest(Color::Indexed(21)), Color::Blue);
        assert_eq!(Depth::Ansi.nearest(Color::Rgb(63, 155, 217)), Color::Cyan);
        assert_eq!(Depth::Ansi.nearest(Color::Rgb(120, 128, 126)), Color::DarkGray);
        assert_eq!(Depth::True.nearest(Color::Rgb(1, 2, 3)), Color::Rgb(1, 2, 3));
        assert_eq!(Depth::None.nearest(Color::Green), Color::Reset);
        assert_eq!(Depth::Ansi.nearest(Color::Reset), Color::Reset);
    }

    #[test]
    fn the_cube_and_the_greys_have_their_xterm_values() {
        assert_eq!(indexed(16), [0, 0, 0]);
        assert_eq!(indexed(67), [95, 135, 175]);
        assert_eq!(indexed(231), [255, 255, 255]);
        assert_eq!(indexed(255), [238, 238, 238]);
    }
}
