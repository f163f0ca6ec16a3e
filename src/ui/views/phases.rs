//! Where the time of a step goes, phase by phase, as one bar.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::Widget;

use crate::event::{Phase, Provenance, Stage};
use crate::state::PhaseHistograms;
use crate::ui::draw::{Pen, Scene};
use crate::ui::number;
use crate::ui::theme::{Depth, Role, phase_letter};
use crate::ui::widgets::{Entry, Legend, Part, StackedBar};

/// Shares of the time of all steps of the present stage, with the median step at the right and the names below.
pub(super) fn breakdown(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let (Some(state), false) = (scene.state(), area.is_empty()) else { return };
    let (name, set) = match scene.seq().map(|s| s.stage) {
        Some(Stage::Decode) if !state.latency.decode.steps.is_empty() => ("decode", &state.latency.decode),
        _ => ("prefill", &state.latency.prefill),
    };
    let row = Rect { height: 1, ..area };
    let figure = if area.width >= 56 { 14 } else { 0 };
    Pen::new(buf, row, scene.styles).put(name, Role::Dim);
    let totals = totals_ns(set);
    let parts: Vec<Part<'_>> = Phase::ALL
        .into_iter()
        .map(|phase| Part {
            label: phase.name(),
            value: totals[phase as usize],
            style: scene.styles.phase(phase),
            letter: phase_letter(phase),
        })
        .collect();
    let bar = Rect { x: row.x + 8.min(row.width), width: row.width.saturating_sub(8 + figure), ..row };
    (&StackedBar::new(scene.styles, &parts)).render(bar, buf);
    if figure > 0 {
        let mut pen = Pen::new(buf, row, scene.styles);
        pen.column(area.width - figure + 1).put("p50", Role::Dim).put(" ", Role::Dim);
        pen.figure(
            &number::duration(set.steps.value_at_quantile(0.5), scene.symbols()),
            Provenance::Measured,
        );
    }
    let below = Rect { y: area.y + 1, height: area.height - 1, ..area };
    legend(buf, below, scene, &totals);
}

/// Time of all steps so far, by phase.
pub(super) fn totals_ns(set: &PhaseHistograms) -> Vec<f64> {
    set.phases.iter().map(|h| if h.is_empty() { 0.0 } else { h.mean() * h.len() as f64 }).collect()
}

fn legend(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, totals: &[f64]) {
    let sum: f64 = totals.iter().sum();
    let labels: Vec<(Phase, String)> = Phase::ALL
        .into_iter()
        .filter(|&phase| totals[phase as usize] > 0.0)
        .map(|phase| {
            let share = number::percent(totals[phase as usize] / sum, scene.symbols());
            (phase, format!("{} {} {}", phase.name(), share.trim(), Provenance::Derived.mark()))
        })
        .collect();
    let entries: Vec<Entry<'_>> = labels
        .iter()
        .map(|(phase, label)| Entry {
            glyph: if scene.styles.depth() == Depth::None {
                phase_letter(*phase)
            } else {
                scene.symbols().full()
            },
            style: scene.styles.phase(*phase),
            label,
        })
        .collect();
    (&Legend::new(scene.styles, &entries)).render(area, buf);
}
