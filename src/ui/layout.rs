//! How much fits where, and how two columns share the width. No terminal is too small: panes are given up one by one until a single line is left.
//!
//! | screen | panes |
//! |---|---|
//! | from 160×45 | four: two columns of two |
//! | from 100 wide | two columns |
//! | from 60×15 | one column, and a strip of time |
//! | from 20×5 | one pane; digits switch it |
//! | below | one line |

use ratatui::layout::Rect;

/// How much fits on a screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breakpoint {
    /// A single status line.
    Line,
    /// One pane.
    Pane,
    /// One column and a strip of time.
    Column,
    /// Two columns.
    TwoColumns,
    /// Four panes.
    FourPanes,
}

impl Breakpoint {
    /// What fits on an area.
    pub const fn of(area: Rect) -> Self {
        match (area.width, area.height) {
            (0..20, _) | (_, 0..5) => Self::Line,
            (0..60, _) | (_, 0..15) => Self::Pane,
            (0..100, _) => Self::Column,
            (0..160, _) | (_, 0..45) => Self::TwoColumns,
            _ => Self::FourPanes,
        }
    }
}

/// Width of the left of two columns: what the view thinks best, or what the person chose with `|`, which goes from the
/// view's own share to a wide left column to a wide right one.
pub const fn left_width(total: u16, own: u16, preset: u8) -> u16 {
    match preset % 3 {
        0 => own,
        1 => (total as u32 * 7 / 10) as u16,
        _ => (total as u32 * 3 / 10) as u16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breakpoints_are_where_they_are_said_to_be() {
        let cases = [
            (160, 45, Breakpoint::FourPanes),
            (160, 44, Breakpoint::TwoColumns),
            (159, 60, Breakpoint::TwoColumns),
            (100, 15, Breakpoint::TwoColumns),
            (99, 45, Breakpoint::Column),
            (60, 15, Breakpoint::Column),
            (59, 15, Breakpoint::Pane),
            (200, 14, Breakpoint::Pane),
            (20, 5, Breakpoint::Pane),
            (19, 5, Breakpoint::Line),
            (200, 4, Breakpoint::Line),
            (0, 0, Breakpoint::Line),
        ];
        for (width, height, expected) in cases {
            let area = Rect::new(0, 0, width, height);
            assert_eq!(Breakpoint::of(area), expected, "{width}x{height}");
        }
    }

    #[test]
    fn the_left_column_is_its_own_then_wide_then_narrow() {
        let widths: Vec<u16> = (0..4).map(|preset| left_width(120, 55, preset)).collect();
        assert_eq!(widths, [55, 84, 36, 55]);
        assert_eq!(left_width(u16::MAX, 0, 1), 45_874);
    }
}
