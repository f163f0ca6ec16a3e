//! Themes: what each role looks like, read from TOML in the shape helix made familiar.
//!
//! ```toml
//! inherits = "dark"            # start from another theme; without it, a theme starts from `dark`
//!
//! [page]                       # what an export paints where a terminal would show its own colours
//! background = "#101418"
//! foreground = "#d5dae0"
//!
//! [palette]                    # names for colours; an inherited role that uses a name follows the new colour
//! blue = "#58a6ff"
//!
//! [roles]                      # a colour, or a table; a role given here replaces the inherited one whole
//! title = { fg = "blue", mod = ["bold"] }
//! evicted = { fg = "#8b6f6f", mod = ["crossed-out"] }
//!
//! phases = ["#…", …]           # twelve colours, in the order of [`Phase`](crate::event::Phase)
//!
//! [ramp]
//! use = "cividis"              # the heat ramp at start: a preset, one of this table, or "glyphs"
//! reverse = false              # true on light grounds, so that large values stand out
//! slate = ["#10141a", "#4f6d8f", "#e8f1ff"]
//! ```
//!
//! (`phases` stands above the tables: TOML wants top-level keys first.) A colour is `#rgb`, `#rrggbb`, a palette name, an
//! ANSI name (`red`, `bright-red`) or `default`, the terminal's own. No theme sets a background unless it says so in
//! the role `screen`.
//!
//! A [`Theme`] is what the files say, in full colour. [`Theme::styles`] brings it down, once, to what the terminal can
//! show; widgets only ever see the resulting [`Styles`].

mod color;
mod error;
mod parse;
mod ramp;
mod styles;
mod symbols;

use ratatui::style::{Color, Style};

pub use color::{ColorChoice, Depth, Terminal, rgb};
pub use error::{At, ThemeError, nearest};
pub use ramp::{LEVELS, PRESETS, Ramp};
#[cfg(test)]
pub(crate) use styles::tests::{dark, plain};
pub use styles::{Fate, Heat, Styles, phase_letter, tier_role};
pub use symbols::Symbols;

use crate::event::PHASES;

macro_rules! roles {
    ($($variant:ident $name:literal $doc:literal,)+) => {
        /// What a piece of the picture *means*; the theme says how that looks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Role { $(#[doc = $doc] $variant,)+ }

        impl Role {
            /// Every role.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// The name in a theme file.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

roles! {
    Screen "screen" "The ground everything is drawn on; the terminal's own colours unless a theme says otherwise.",
    Text "text" "Ordinary text and figures.",
    Dim "dim" "What may be overlooked: axes, units, absent values.",
    Accent "accent" "The series or figure a picture is about.",
    Border "border" "Border of a pane without focus.",
    BorderFocus "border-focus" "Border of the pane with focus.",
    Selection "selection" "A selected row or range.",
    Cursor "cursor" "The one item under the cursor.",
    Good "good" "As it should be.",
    Bad "bad" "Wrong, lost, over a limit.",
    Warn "warn" "Worth a look: drops, pauses, near a limit.",
    Title "title" "Titles of panes and overlays.",
    Hint "hint" "What a key does.",
    Key "key" "A key to press.",
    Resident "resident" "Token resident in every (layer, head).",
    PartlyEvicted "partly-evicted" "Token lost in some (layer, head), resident in others.",
    Evicted "evicted" "Token lost everywhere.",
    Merged "merged" "Token whose rows went into others before it was lost, and rows that were altered so.",
    Pulled "pulled" "Token in the read set of this step: nothing is lost, this row was read.",
    Generated "generated" "Token the model drew.",
    Question "question" "Token of the question, fed after the context was compressed.",
    Sink "sink" "Token kept because it is among the first (attention sink).",
    Representative "representative" "Token kept because it stands for lost ones of like signature.",
    Device "device" "Bytes in the accelerator's memory.",
    Host "host" "Bytes in main memory.",
    Disk "disk" "Bytes in a file.",
    Remote "remote" "Bytes on another machine.",
    Live "live" "Slots that hold resident tokens.",
    Stranded "stranded" "Slots of evicted tokens in blocks that still hold others.",
    Unfilled "unfilled" "Slots never written in the last block of a table.",
    Shared "shared" "Blocks with more than one owner.",
    Free "free" "Blocks nobody owns.",
    Measured "measured" "Mark of a figure clocked or counted in this run.",
    Sampled "sampled" "Mark of a figure measured on some steps only.",
    Derived "derived" "Mark of a figure computed from measured ones.",
    Modelled "modelled" "Mark of a figure that assumes something not measured here.",
}

/// Number of roles.
pub(crate) const ROLES: usize = Role::ALL.len();

/// The colours an export paints where a terminal would show its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Ground, as red, green, blue.
    pub background: [u8; 3],
    /// Text, as red, green, blue.
    pub foreground: [u8; 3],
}

/// A theme file found outside the program, read by the caller.
#[derive(Clone, Debug)]
pub struct ThemeFile {
    /// How messages call it: a path.
    pub path: String,
    /// The whole text.
    pub text: String,
}

/// The built-in themes: name and TOML.
pub const BUILT_IN: [(&str, &str); 4] = [
    ("dark", include_str!("../../themes/dark.toml")),
    ("light", include_str!("../../themes/light.toml")),
    ("colour-blind", include_str!("../../themes/colour-blind.toml")),
    ("mono", include_str!("../../themes/mono.toml")),
];

/// What theme files say, in full colour.
#[derive(Clone, Debug)]
pub struct Theme {
    name: String,
    page: Page,
    roles: [Style; ROLES],
    phases: [Color; PHASES],
    ramps: Vec<Ramp>,
    /// Index into `ramps`; `None` where heat is drawn as glyphs even though there may be colours.
    ramp: Option<usize>,
}

impl Theme {
    /// A theme that comes with the program.
    ///
    /// # Errors
    /// [`ThemeError::Unknown`] when there is none of that name.
    pub fn built_in(name: &str) -> Result<Self, ThemeError> {
        Self::load(name, &|_| None)
    }

    /// A theme by name. `find` looks for a file of the person's own, which wins over a built-in of the same name and may
    /// inherit from it.
    ///
    /// # Errors
    /// One line that says where in which file what is wrong.
    pub fn load(name: &str, find: &dyn Fn(&str) -> Option<ThemeFile>) -> Result<Self, ThemeError> {
        parse::load(name, find)
    }

    /// The name it was loaded by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The styles for a terminal: every colour brought to what `depth` can show, once. Without colours the built-in theme
    /// `mono` stands in, since a theme's differences would vanish with its colours.
    pub fn styles(&self, depth: Depth, symbols: Symbols) -> Styles {
        if depth == Depth::None && self.name != "mono" {
            let mono = Self::built_in("mono").expect("the built-in themes parse: a test reads them all");
            return Self { page: self.page, ..mono }.styles(depth, symbols);
        }
        Styles::new(self, depth, symbols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_theme_loads() {
        for (name, _) in BUILT_IN {
            let theme = Theme::built_in(name).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(theme.name(), name);
        }
    }

    #[test]
    fn themes_without_colours_of_their_own_do_not_leak_those_of_dark() {
        for (name, text) in BUILT_IN {
            if name == "colour-blind" {
                continue;
            }
            for role in Role::ALL {
                let line = format!("\n{} = ", role.name());
                assert!(text.contains(&line), "{name} says nothing about {}", role.name());
            }
        }
    }

    #[test]
    fn only_a_theme_that_says_so_sets_a_background() {
        for (name, _) in BUILT_IN {
            let styles = Theme::built_in(name).unwrap().styles(Depth::True, Symbols::Block);
            assert_eq!(styles[Role::Screen].bg.unwrap_or(Color::Reset), Color::Reset, "{name}");
            assert_eq!(styles[Role::Text].bg, None, "{name}");
        }
    }

    #[test]
    fn without_colours_no_style_names_one() {
        for (name, _) in BUILT_IN {
            let styles = Theme::built_in(name).unwrap().styles(Depth::None, Symbols::Block);
            for role in Role::ALL {
                let style = styles[role];
                assert_eq!((style.fg, style.bg), (None, None), "{name}: {}", role.name());
            }
        }
    }

    #[test]
    fn fates_differ_without_colours() {
        let styles = Theme::built_in("dark").unwrap().styles(Depth::None, Symbols::Block);
        let fates =
            [Role::Resident, Role::PartlyEvicted, Role::Evicted, Role::Merged, Role::Pulled, Role::Generated];
        for (i, &a) in fates.iter().enumerate() {
            for &b in &fates[i + 1..] {
                assert_ne!(styles[a], styles[b], "{} and {}", a.name(), b.name());
            }
        }
    }

    #[test]
    fn lower_depths_only_use_what_they_have() {
        for (name, _) in BUILT_IN {
            let theme = Theme::built_in(name).unwrap();
            for role in Role::ALL {
                let indexed = theme.styles(Depth::Indexed, Symbols::Block)[role];
                let ansi = theme.styles(Depth::Ansi, Symbols::Block)[role];
                for color in [indexed.fg, indexed.bg, ansi.fg, ansi.bg].into_iter().flatten() {
                    assert!(!matches!(color, Color::Rgb(..)), "{name}: {} is {color}", role.name());
                }
                for color in [ansi.fg, ansi.bg].into_iter().flatten() {
                    assert!(!matches!(color, Color::Indexed(_)), "{name}: {} is {color}", role.name());
                }
            }
        }
    }
}
