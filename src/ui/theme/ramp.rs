//! Heat ramps: a value between 0 and 1 as one of 32 colours.

use colorgrad::Gradient;
use ratatui::style::Color;

use super::color::Depth;

/// Steps of a ramp. Coarse on purpose: a value that wobbles within a step leaves its cell unchanged, and an unchanged
/// cell is not sent to the terminal again.
pub const LEVELS: usize = 32;

/// The ramps every theme can use by name. All but `turbo` grow evenly in lightness; `cividis` looks the same to people
/// with and without red-green colour blindness.
pub const PRESETS: [&str; 4] = ["cividis", "viridis", "magma", "turbo"];

/// A heat ramp, sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct Ramp {
    name: String,
    colors: [Color; LEVELS],
}

impl Ramp {
    /// One of [`PRESETS`].
    pub(super) fn preset(name: &str, reverse: bool) -> Option<Self> {
        let gradient = match name {
            "cividis" => colorgrad::preset::cividis().boxed(),
            "viridis" => colorgrad::preset::viridis().boxed(),
            "magma" => colorgrad::preset::magma().boxed(),
            "turbo" => colorgrad::preset::turbo().boxed(),
            _ => return None,
        };
        Some(Self::sample(name, gradient.as_ref(), reverse))
    }

    /// Evenly spaced stops, blended in OKLab. There must be at least one.
    pub(super) fn stops(name: &str, stops: &[[u8; 3]], reverse: bool) -> Self {
        let colors: Vec<_> =
            stops.iter().map(|&[r, g, b]| colorgrad::Color::from_rgba8(r, g, b, 255)).collect();
        let gradient: colorgrad::LinearGradient = colorgrad::GradientBuilder::new()
            .colors(&colors)
            .mode(colorgrad::BlendMode::Oklab)
            .build()
            .expect("any number of colours without a domain makes a gradient");
        Self::sample(name, &gradient, reverse)
    }

    fn sample(name: &str, gradient: &dyn Gradient, reverse: bool) -> Self {
        let colors = std::array::from_fn(|level| {
            let level = if reverse { LEVELS - 1 - level } else { level };
            let [r, g, b, _] = gradient.at(level as f32 / (LEVELS - 1) as f32).to_rgba8();
            Color::Rgb(r, g, b)
        });
        Self { name: name.to_owned(), colors }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The colour of a value; what lies outside 0 to 1 counts as the nearer end.
    pub fn color(&self, value: f32) -> Color {
        self.colors[level(value)]
    }

    pub(super) fn at_depth(&self, depth: Depth) -> Self {
        Self { name: self.name.clone(), colors: self.colors.map(|color| depth.nearest(color)) }
    }
}

/// The step of a value. NaN counts as 0: a caller that knows a value is missing says so with `None`.
fn level(value: f32) -> usize {
    ((value.clamp(0.0, 1.0) * LEVELS as f32) as usize).min(LEVELS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::theme::rgb;

    #[test]
    fn levels_split_the_range_evenly_and_take_anything() {
        assert_eq!(level(0.0), 0);
        assert_eq!(level(1.0), LEVELS - 1);
        assert_eq!(level(0.5), LEVELS / 2);
        assert_eq!(level(f32::NAN), 0);
        assert_eq!(level(f32::INFINITY), LEVELS - 1);
        assert_eq!(level(-3.0), 0);
    }

    #[test]
    fn presets_run_from_dark_to_light_and_back_when_reversed() {
        let brightness = |color| rgb(color).unwrap().iter().map(|&channel| u32::from(channel)).sum::<u32>();
        for name in ["cividis", "viridis", "magma"] {
            let ramp = Ramp::preset(name, false).unwrap();
            assert!(brightness(ramp.color(0.0)) < brightness(ramp.color(1.0)), "{name}");
            let reversed = Ramp::preset(name, true).unwrap();
            assert_eq!(reversed.color(0.0), ramp.color(1.0), "{name}");
        }
        for name in PRESETS {
            assert!(Ramp::preset(name, false).is_some(), "{name}");
        }
        assert_eq!(Ramp::preset("rainbow", false), None);
    }

    #[test]
    fn stops_are_met_at_both_ends() {
        let ramp = Ramp::stops("slate", &[[16, 20, 26], [232, 241, 255]], false);
        assert_eq!(ramp.color(0.0), Color::Rgb(16, 20, 26));
        assert_eq!(ramp.color(1.0), Color::Rgb(232, 241, 255));
        assert_eq!(Ramp::stops("one", &[[1, 2, 3]], false).color(0.5), Color::Rgb(1, 2, 3));
    }
}
