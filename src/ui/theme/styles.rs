//! [`Styles`]: the only authority on colours and symbols.

use std::ops::Index;

use ratatui::style::{Color, Style};
use ratatui::text::Span;

use super::color::Depth;
use super::ramp::Ramp;
use super::symbols::Symbols;
use super::{Page, ROLES, Role, Theme};
use crate::event::{PHASES, Phase, Provenance, Tier};

/// What became of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// Resident everywhere.
    Resident,
    /// Lost in some (layer, head).
    PartlyEvicted,
    /// Lost everywhere.
    Evicted,
    /// In the read set of this step.
    Pulled,
    /// Drawn by the model.
    Generated,
    /// Part of the question.
    Question,
    /// Kept as an attention sink.
    Sink,
}

impl Fate {
    /// The role that draws it.
    pub const fn role(self) -> Role {
        match self {
            Self::Resident => Role::Resident,
            Self::PartlyEvicted => Role::PartlyEvicted,
            Self::Evicted => Role::Evicted,
            Self::Pulled => Role::Pulled,
            Self::Generated => Role::Generated,
            Self::Question => Role::Question,
            Self::Sink => Role::Sink,
        }
    }

    /// One letter that says the same without colour.
    pub const fn letter(self) -> char {
        match self {
            Self::Resident => 'r',
            Self::PartlyEvicted => 'p',
            Self::Evicted => 'x',
            Self::Pulled => 'v',
            Self::Generated => 'g',
            Self::Question => 'q',
            Self::Sink => 's',
        }
    }
}

/// The role that draws a tier.
pub const fn tier_role(tier: Tier) -> Role {
    match tier {
        Tier::Device => Role::Device,
        Tier::Host => Role::Host,
        Tier::Disk => Role::Disk,
        Tier::Remote => Role::Remote,
    }
}

/// One letter for a phase, distinct from all others: what a bar is filled with where there is no colour.
pub const fn phase_letter(phase: Phase) -> char {
    match phase {
        Phase::Embed => 'e',
        Phase::Qkv => 'q',
        Phase::Append => 'a',
        Phase::Score => 's',
        Phase::Select => 'n',
        Phase::VPull => 'v',
        Phase::WeightedSum => 'w',
        Phase::Mlp => 'm',
        Phase::Logits => 'l',
        Phase::Sample => 'd',
        Phase::Policy => 'p',
        Phase::Probe => 'o',
    }
}

/// A heat value as a cell can show it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heat {
    /// Its colour on the ramp; the terminal's own without colours.
    pub color: Color,
    /// Its glyph: always right, and the only carrier without colours.
    pub glyph: char,
}

/// How everything looks on this terminal: a theme brought to its colour depth, and the glyphs its font has.
#[derive(Clone, Debug)]
pub struct Styles {
    depth: Depth,
    symbols: Symbols,
    page: Page,
    roles: [Style; ROLES],
    phases: [Style; PHASES],
    ramps: Vec<Ramp>,
    ramp: Option<usize>,
}

impl Index<Role> for Styles {
    type Output = Style;

    fn index(&self, role: Role) -> &Style {
        &self.roles[role as usize]
    }
}

impl Styles {
    pub(super) fn new(theme: &Theme, depth: Depth, symbols: Symbols) -> Self {
        Self {
            depth,
            symbols,
            page: theme.page,
            roles: theme.roles.map(|style| depth.style(style)),
            phases: theme.phases.map(|color| depth.style(Style::new().fg(color))),
            ramps: theme.ramps.iter().map(|ramp| ramp.at_depth(depth)).collect(),
            ramp: theme.ramp.filter(|_| depth > Depth::None),
        }
    }

    /// The style of a phase of a step.
    pub const fn phase(&self, phase: Phase) -> Style {
        self.phases[phase as usize]
    }

    /// Whether parts can be told apart by colour; where not, letters fill them. Twelve phases do not fit in 16 colours.
    pub fn has_phase_colors(&self) -> bool {
        self.depth >= Depth::Indexed
            && self.phases.iter().any(|style| style.fg.is_some_and(|color| color != Color::Reset))
    }

    /// A heat value on the ramp in use.
    pub fn heat(&self, value: f32) -> Heat {
        Heat {
            color: self.ramp.map_or(Color::Reset, |ramp| self.ramps[ramp].color(value)),
            glyph: self.symbols.shade(value),
        }
    }

    /// Whether heat may be drawn as plain patches of colour, two to a cell. With 16 colours too few steps are left to
    /// tell values apart, so glyphs carry them there too.
    pub const fn heat_in_half_blocks(&self) -> bool {
        self.ramp.is_some() && matches!(self.depth, Depth::Indexed | Depth::True) && !self.symbols.is_ascii()
    }

    /// Name of the ramp in use; `glyphs` without one.
    pub fn ramp_name(&self) -> &str {
        self.ramp.map_or("glyphs", |ramp| self.ramps[ramp].name())
    }

    /// Goes to the next ramp, if there is colour at all.
    pub fn next_ramp(&mut self) {
        self.ramp = self.ramp.map(|ramp| (ramp + 1) % self.ramps.len());
    }

    /// The glyphs that may be used.
    pub const fn symbols(&self) -> Symbols {
        self.symbols
    }

    /// The colours in use.
    pub const fn depth(&self) -> Depth {
        self.depth
    }

    /// What an export paints where a terminal would show its own colours.
    pub const fn page(&self) -> Page {
        self.page
    }

    /// The one-letter mark of a figure's provenance.
    pub fn mark(&self, provenance: Provenance) -> Span<'static> {
        let role = match provenance {
            Provenance::Measured => Role::Measured,
            Provenance::Sampled => Role::Sampled,
            Provenance::Derived => Role::Derived,
            Provenance::Modelled => Role::Modelled,
        };
        Span::styled(provenance.mark().to_string(), self[role])
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The styles most widget tests draw with.
    pub(crate) fn dark() -> Styles {
        Theme::built_in("dark").unwrap().styles(Depth::True, Symbols::Block)
    }

    /// Styles without colour, drawn in ASCII.
    pub(crate) fn plain() -> Styles {
        Theme::built_in("dark").unwrap().styles(Depth::None, Symbols::Ascii)
    }

    #[test]
    fn ramps_take_turns() {
        let mut styles = dark();
        let first = styles.ramp_name().to_owned();
        let mut names = vec![first.clone()];
        loop {
            styles.next_ramp();
            if styles.ramp_name() == first {
                break;
            }
            names.push(styles.ramp_name().to_owned());
        }
        for preset in super::super::PRESETS {
            assert!(names.iter().any(|name| name == preset), "{preset} is not among {names:?}");
        }
    }

    #[test]
    fn without_colours_heat_is_glyphs_and_stays_so() {
        let mut styles = plain();
        styles.next_ramp();
        assert_eq!(styles.ramp_name(), "glyphs");
        assert_eq!(styles.heat(0.0), Heat { color: Color::Reset, glyph: '.' });
        assert_eq!(styles.heat(1.0), Heat { color: Color::Reset, glyph: '@' });
        assert!(!styles.heat_in_half_blocks());
    }

    #[test]
    fn sixteen_colours_keep_the_glyphs() {
        let theme = Theme::built_in("dark").unwrap();
        assert!(!theme.styles(Depth::Ansi, Symbols::Block).heat_in_half_blocks());
        assert!(theme.styles(Depth::Indexed, Symbols::Block).heat_in_half_blocks());
        assert!(!theme.styles(Depth::True, Symbols::Ascii).heat_in_half_blocks());
    }

    #[test]
    fn phases_have_letters_and_colours_of_their_own() {
        let styles = dark();
        for (i, &a) in Phase::ALL.iter().enumerate() {
            for &b in &Phase::ALL[i + 1..] {
                assert_ne!(phase_letter(a), phase_letter(b), "{} and {}", a.name(), b.name());
                assert_ne!(styles.phase(a), styles.phase(b), "{} and {}", a.name(), b.name());
            }
        }
    }
}
