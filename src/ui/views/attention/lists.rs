//! What a head reads most, and what lies around the cursor.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::row::Row;
use crate::event::ScoreLevel;
use crate::ui::draw::{Pen, Scene, split_left};
use crate::ui::number;
use crate::ui::text;
use crate::ui::theme::Role;
use crate::ui::views::columns::{bar, right};

/// Columns of the list of the most read, and of the one around the cursor.
const LARGEST: u16 = 52;
const AROUND: u16 = 34;
/// Columns of a bar.
const BAR: u16 = 10;

pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, row: &Row) {
    if area.is_empty() {
        return;
    }
    if area.width >= LARGEST + AROUND - 10 {
        let (left, side) = split_left(area, (area.width - AROUND).min(LARGEST + 8));
        largest(buf, left, scene, row);
        around(buf, side, scene, row);
    } else {
        largest(buf, area, scene, row);
    }
}

/// The ten largest, or as many as there are lines.
fn largest(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, row: &Row) {
    let symbols = scene.symbols();
    let mut pen = Pen::new(buf, area, scene.styles);
    if area.height >= 3 {
        pen.put(&format!("rank    p m   sum d  {}", " ".repeat(usize::from(BAR))), Role::Dim);
        pen.put(&format!("{} read most", right(row.unit(), 8)), Role::Dim).newline();
    }
    let most = row.largest.first().map_or(1.0, |&(_, p)| p);
    let mut sum = 0.0;
    for (rank, &(place, p)) in row.largest.iter().take(10).enumerate() {
        if pen.is_full() {
            return;
        }
        sum += p;
        let here = row.cursor == Some(place);
        pen.put(&format!("{:>4} ", rank + 1), Role::Dim);
        pen.put(&number::decimal(p.into(), symbols), Role::Text).skip(1);
        pen.put(&number::percent(f64::from(sum).min(1.0), symbols), Role::Dim).skip(2);
        bar(&mut pen, f64::from(p / most), BAR, scene.styles[Role::Accent]);
        pen.put(&right(&place.to_string(), 8), if here { Role::Accent } else { Role::Text }).skip(1);
        name(&mut pen, scene, row, place);
        pen.newline();
    }
    if row.largest.is_empty() {
        pen.put("nothing above the smallest recorded probability", Role::Dim);
    }
}

/// The token at a place, or the positions of a block.
fn name(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, row: &Row, place: usize) {
    if row.level == ScoreLevel::Blocks {
        match row.ranges.as_ref().and_then(|ranges| ranges.get(place)) {
            Some((first, last)) => pen.put(&format!("positions {first} to {last}"), Role::Dim),
            None => pen.put("its table has changed since", Role::Dim),
        };
    } else if let Some(token) = scene.seq().and_then(|s| s.tokens.get(place)) {
        let words = text::safe(&token.piece.0, scene.symbols());
        pen.put(&format!("'{words}'"), Role::Title);
    }
}

/// Tokens before and after the cursor's with what the head gave them.
fn around(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, row: &Row) {
    let (Some(seq), Some(position)) = (scene.seq(), scene.position()) else { return };
    let mut pen = Pen::new(buf, area, scene.styles);
    if row.level == ScoreLevel::Blocks {
        pen.put("sums per block do not tell positions", Role::Dim);
        return;
    }
    if area.height >= 3 {
        pen.put(&format!("{}  around the cursor", right("p m", 6)), Role::Dim).newline();
    }
    let rows = usize::from(pen.lines());
    let first = (position as usize).saturating_sub(rows / 2).min(seq.tokens.len().saturating_sub(rows));
    let symbols = scene.symbols();
    for (place, token) in seq.tokens.iter().enumerate().skip(first).take(rows) {
        let line = pen.at();
        match row.values.get(place).copied().flatten() {
            Some(p) => pen.put(&number::decimal(p.into(), symbols), Role::Text),
            // At the level of the largest only, what is not recorded may be resident all the same.
            None if matches!(row.level, ScoreLevel::Top(_)) => {
                pen.put(&number::missing(6, symbols), Role::Dim)
            }
            None => pen.put(&right("lost", 6), Role::Bad),
        };
        pen.put(&right(&place.to_string(), 7), Role::Dim);
        let words = text::safe(&token.piece.0, symbols);
        pen.skip(1).put(&format!("'{words}'"), Role::Text);
        if place == position as usize {
            pen.restyle(line.0, area.width, scene.styles[Role::Selection]);
        }
        pen.newline();
    }
}
