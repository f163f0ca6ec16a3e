//! Tables: words set in columns of constant width, and bars within a line.

use ratatui::style::Style;

use crate::event::Provenance;
use crate::ui::draw::{Pen, Scene};
use crate::ui::text;
use crate::ui::theme::Role;

/// Figures: set right in a column, blanks before them.
pub(super) fn right(words: &str, width: u16) -> String {
    let blank = usize::from(width).saturating_sub(text::width(words));
    format!("{}{words}", " ".repeat(blank))
}

/// Words: set left in a column, blanks behind them.
pub(super) fn left(words: &str, width: u16) -> String {
    let blank = usize::from(width).saturating_sub(text::width(words));
    format!("{words}{}", " ".repeat(blank))
}

/// A title with the mark of its figures' provenance.
pub(super) fn marked(title: &str, provenance: Provenance) -> String {
    format!("{title} {}", provenance.mark())
}

/// A thin bar of `width` columns, filled from the left in halves of a column: bars of neighbouring lines stay apart.
/// Whatever is more than nothing shows.
pub(super) fn bar(pen: &mut Pen<'_, '_>, share: f64, width: u16, style: Style) {
    let symbols = pen.styles().symbols();
    let (whole, half) = symbols.pick(("━", "╸"), ("=", "-"));
    let share = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
    let filled = (share * f64::from(width) * 2.0).round() as usize;
    let filled = if share > 0.0 { filled.max(1) } else { 0 };
    pen.styled(&whole.repeat(filled / 2), style).styled(&half.repeat(filled % 2), style);
    pen.skip(width - (filled / 2 + filled % 2).min(usize::from(width)) as u16);
}

/// The keys of a command as a person would press them, for hints inside a pane.
pub(super) fn key(scene: &Scene<'_>, command: &str) -> String {
    scene.app.keymap.keys_of(command).next().map(ToString::to_string).unwrap_or_default()
}

/// `name value`, the name dim; a dot before it unless the line begins.
pub(super) fn fact<'p, 'b, 's>(
    pen: &'p mut Pen<'b, 's>,
    name: &str,
    figure: &str,
    provenance: Provenance,
) -> &'p mut Pen<'b, 's> {
    pen.dot().put(name, Role::Dim).put(" ", Role::Dim).figure(figure.trim(), provenance)
}

#[cfg(test)]
mod tests {
    use ratatui::buffer::Buffer;
    use ratatui::layout::Rect;

    use super::*;
    use crate::ui::theme::{dark, plain};

    #[test]
    fn columns_keep_their_width_and_never_cut() {
        assert_eq!(right("12", 4), "  12");
        assert_eq!(left("日", 4), "日  ");
        assert_eq!(right("12345", 4), "12345");
        assert_eq!(marked("rank", Provenance::Derived), "rank d");
    }

    #[test]
    fn a_bar_shows_the_least_and_fills_up() {
        for (styles, least, full) in [(dark(), "╸   ", "━━━━"), (plain(), "-   ", "====")] {
            for (share, expected) in
                [(0.0, "    "), (1e-9, least), (1.0, full), (7.0, full), (f64::NAN, "    ")]
            {
                let mut buf = Buffer::empty(Rect::new(0, 0, 4, 1));
                let area = buf.area;
                bar(&mut Pen::new(&mut buf, area, &styles), share, 4, Style::new());
                let drawn: String = buf.content.iter().map(ratatui::buffer::Cell::symbol).collect();
                assert_eq!(drawn, expected, "{share}");
            }
        }
    }
}
