//! Glyphs that are pictures rather than letters, as rectangles: no font draws them without gaps, and on a machine
//! without fonts they would not be drawn at all.

/// Width of a cell.
pub(super) const CELL_WIDTH: f32 = 9.0;
/// Height of a cell.
pub(super) const CELL_HEIGHT: f32 = 18.0;

/// A filled rectangle within a cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shape {
    pub(super) x: f32,
    pub(super) y: f32,
    pub(super) width: f32,
    pub(super) height: f32,
    pub(super) opacity: f32,
}

const fn solid(x: f32, y: f32, width: f32, height: f32) -> Shape {
    Shape { x, y, width, height, opacity: 1.0 }
}

/// The rectangles of a block element, a box-drawing line or a braille pattern; `None` for any other character.
pub(super) fn shapes(glyph: char) -> Option<Vec<Shape>> {
    let code = glyph as u32;
    match code {
        0x2800..=0x28FF => Some(braille(code - 0x2800)),
        0x2580..=0x2593 => block(code).map(|shape| vec![shape]),
        0x2500..=0x257F => arms(glyph).map(lines),
        _ => None,
    }
}

fn block(code: u32) -> Option<Shape> {
    let eighths = |n: u32| n as f32 / 8.0;
    Some(match code {
        0x2580 => solid(0.0, 0.0, CELL_WIDTH, CELL_HEIGHT / 2.0),
        // Lower parts grow from an eighth (U+2581) to the full cell (U+2588).
        0x2581..=0x2588 => {
            let height = CELL_HEIGHT * eighths(code - 0x2580);
            solid(0.0, CELL_HEIGHT - height, CELL_WIDTH, height)
        }
        // Left parts shrink from seven eighths (U+2589) to one (U+258F).
        0x2589..=0x258F => solid(0.0, 0.0, CELL_WIDTH * eighths(0x2590 - code), CELL_HEIGHT),
        0x2590 => solid(CELL_WIDTH / 2.0, 0.0, CELL_WIDTH / 2.0, CELL_HEIGHT),
        0x2591..=0x2593 => {
            Shape { opacity: (code - 0x2590) as f32 / 4.0, ..solid(0.0, 0.0, CELL_WIDTH, CELL_HEIGHT) }
        }
        _ => return None,
    })
}

/// Thickness of the lines that leave the middle of a cell upwards, downwards, to the left and to the right.
const fn arms(glyph: char) -> Option<[f32; 4]> {
    Some(match glyph {
        '─' => [0.0, 0.0, 1.0, 1.0],
        '│' => [1.0, 1.0, 0.0, 0.0],
        '┌' | '╭' => [0.0, 1.0, 0.0, 1.0],
        '┐' | '╮' => [0.0, 1.0, 1.0, 0.0],
        '└' | '╰' => [1.0, 0.0, 0.0, 1.0],
        '┘' | '╯' => [1.0, 0.0, 1.0, 0.0],
        '├' => [1.0, 1.0, 0.0, 1.0],
        '┤' => [1.0, 1.0, 1.0, 0.0],
        '┬' => [0.0, 1.0, 1.0, 1.0],
        '┴' => [1.0, 0.0, 1.0, 1.0],
        '┼' => [1.0, 1.0, 1.0, 1.0],
        '━' => [0.0, 0.0, 2.0, 2.0],
        '┃' => [2.0, 2.0, 0.0, 0.0],
        '┏' => [0.0, 2.0, 0.0, 2.0],
        '┓' => [0.0, 2.0, 2.0, 0.0],
        '┗' => [2.0, 0.0, 0.0, 2.0],
        '┛' => [2.0, 0.0, 2.0, 0.0],
        _ => return None,
    })
}

fn lines([up, down, left, right]: [f32; 4]) -> Vec<Shape> {
    let (x, y) = (CELL_WIDTH / 2.0, CELL_HEIGHT / 2.0);
    // Arms reach over the middle by half their thickness, so that corners are closed.
    let mut shapes = Vec::new();
    if up > 0.0 {
        shapes.push(solid(x - up / 2.0, 0.0, up, y + up / 2.0));
    }
    if down > 0.0 {
        shapes.push(solid(x - down / 2.0, y - down / 2.0, down, CELL_HEIGHT - y + down / 2.0));
    }
    if left > 0.0 {
        shapes.push(solid(0.0, y - left / 2.0, x + left / 2.0, left));
    }
    if right > 0.0 {
        shapes.push(solid(x - right / 2.0, y - right / 2.0, CELL_WIDTH - x + right / 2.0, right));
    }
    shapes
}

/// Dots 1 to 8 of a pattern are its bits; their places are two columns of four.
fn braille(bits: u32) -> Vec<Shape> {
    const PLACES: [(u8, u8); 8] = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)];
    const DOT: f32 = 2.0;
    PLACES
        .into_iter()
        .enumerate()
        .filter(|(bit, _)| bits >> bit & 1 == 1)
        .map(|(_, (column, row))| {
            let x = CELL_WIDTH * (f32::from(column) * 2.0 + 1.0) / 4.0;
            let y = CELL_HEIGHT * (f32::from(row) * 2.0 + 1.0) / 8.0;
            solid(x - DOT / 2.0, y - DOT / 2.0, DOT, DOT)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_their_sizes() {
        assert_eq!(shapes('█'), Some(vec![solid(0.0, 0.0, 9.0, 18.0)]));
        assert_eq!(shapes('▀'), Some(vec![solid(0.0, 0.0, 9.0, 9.0)]));
        assert_eq!(shapes('▄'), Some(vec![solid(0.0, 9.0, 9.0, 9.0)]));
        assert_eq!(shapes('▌'), Some(vec![solid(0.0, 0.0, 4.5, 18.0)]));
        assert_eq!(shapes('▐'), Some(vec![solid(4.5, 0.0, 4.5, 18.0)]));
        assert_eq!(shapes('▒').unwrap()[0].opacity, 0.5);
        assert_eq!(shapes('x'), None);
    }

    #[test]
    fn everything_stays_in_its_cell() {
        for glyph in ('\u{2500}'..='\u{2593}').chain('\u{2800}'..='\u{28FF}') {
            for shape in shapes(glyph).into_iter().flatten() {
                assert!(shape.x >= 0.0 && shape.x + shape.width <= CELL_WIDTH, "{glyph}");
                assert!(shape.y >= 0.0 && shape.y + shape.height <= CELL_HEIGHT, "{glyph}");
            }
        }
        assert_eq!(shapes('⣿').map(|dots| dots.len()), Some(8));
        assert_eq!(shapes('⠀').map(|dots| dots.len()), Some(0));
    }

    #[test]
    fn borders_are_lines_not_letters() {
        for set in [ratatui::symbols::border::PLAIN, ratatui::symbols::border::THICK] {
            for side in [set.top_left, set.top_right, set.bottom_left, set.vertical_left, set.horizontal_top]
            {
                assert!(shapes(side.chars().next().unwrap()).is_some(), "{side}");
            }
        }
    }
}
