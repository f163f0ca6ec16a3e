//! The answer: what was expected, what came, and where it parts from other runs.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::app::Divergence;
use crate::state::Turn;
use crate::ui::draw::{Pen, Scene};
use crate::ui::text;
use crate::ui::theme::Role;

/// Lines it would fill: the answer, then one per comparison.
pub(super) fn lines(scene: &Scene<'_>) -> u16 {
    if scene.seq().is_none() {
        return 0;
    }
    1 + scene.app.divergences.len() as u16
}

/// The answer and the comparisons, one per line where there are lines, else shortly behind one another.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    if area.is_empty() {
        return;
    }
    let divergences = &scene.app.divergences;
    let own_lines = usize::from(area.height) > divergences.len();
    let mut pen = Pen::new(buf, area, scene.styles);
    let behind = if own_lines || pen.lines() > 1 { 0 } else { divergences.len() as u16 * 28 };
    verdict(&mut pen, scene, area.width.saturating_sub(behind));
    for (i, divergence) in divergences.iter().enumerate() {
        if own_lines || (i == 0 && pen.lines() > 1) {
            pen.newline().put(" ", Role::Text);
        } else {
            pen.dot();
        }
        compare(&mut pen, divergence, own_lines);
    }
}

/// Right or wrong in the smallest room.
pub(super) fn short(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let Some(seq) = scene.seq() else { return };
    let mut pen = Pen::new(buf, area, scene.styles);
    mark(&mut pen, scene);
    pen.put(" ", Role::Text)
        .foreign(seq.turns().last().map(Turn::text).unwrap_or_default().trim_start(), Role::Generated);
}

fn verdict(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, width: u16) {
    let (Some(seq), Some(run)) = (scene.seq(), scene.run()) else { return };
    let symbols = scene.symbols();
    let from = pen.at().0;
    pen.put(" answer ", Role::Title);
    mark(pen, scene);
    if let Some(expected) = &run.expected {
        let expected = text::safe(expected.trim().as_bytes(), symbols);
        pen.put("  expected ", Role::Dim).put(&expected, Role::Text);
    }
    let turns = seq.turns();
    let generated = turns.last().map(Turn::text).unwrap_or_default();
    let generated = text::safe(generated.trim_start().as_bytes(), symbols);
    pen.put("  generated ", Role::Dim);
    if generated.is_empty() {
        pen.put("nothing yet", Role::Dim);
    } else {
        let used = usize::from(pen.at().0 - from);
        pen.put(
            &text::fit(&generated, usize::from(width).saturating_sub(used).max(8), symbols),
            Role::Generated,
        );
    }
    if let Some(finish) = seq.finish.filter(|_| pen.room() > 30) {
        pen.dot().put(finish.words(), Role::Dim);
    }
}

/// Glyph and word, so that it is not said by colour alone.
fn mark(pen: &mut Pen<'_, '_>, scene: &Scene<'_>) {
    let (Some(seq), Some(expected)) = (scene.seq(), scene.run().and_then(|run| run.expected.as_ref())) else {
        return;
    };
    let symbols = scene.symbols();
    match seq.answer(expected) {
        Some(true) => pen.put(symbols.pick("✔ right", "[ok] right"), Role::Good),
        Some(false) => pen.put(symbols.pick("✘ wrong", "[x] wrong"), Role::Bad),
        None => pen.put(symbols.pick("… open", "... open"), Role::Dim),
    };
}

/// Where a run parts from another one; `at_length` says what the other one had there.
fn compare(pen: &mut Pen<'_, '_>, divergence: &Divergence, at_length: bool) {
    pen.put("vs ", Role::Dim).put(divergence.with, Role::Text).put(": ", Role::Dim);
    match divergence.at {
        None if at_length => pen.put(&format!("equal for {} tokens", divergence.compared), Role::Good),
        None => pen.put(&format!("equal ({})", divergence.compared), Role::Good),
        Some(at) if !at_length => pen.put(&format!("differs at {}", at + 1), Role::Warn),
        Some(at) => {
            pen.put(&format!("differs from generated token {} on", at + 1), Role::Warn);
            pen.put(", there it was '", Role::Dim).foreign(&divergence.theirs, Role::Text).put("'", Role::Dim)
        }
    };
}
