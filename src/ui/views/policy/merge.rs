//! The merge rule: what it is, how much it saved from being lost, and how far it moved what stayed.

use crate::event::{Drift, Provenance};
use crate::ui::draw::{Pen, Scene};
use crate::ui::number;
use crate::ui::theme::Role;

use super::{fact, rule};

/// The rule and its figures by layer; nothing where no rule merges.
pub(super) fn render(pen: &mut Pen<'_, '_>, scene: &Scene<'_>) {
    let Some(merging) = scene.merging() else { return };
    pen.newline();
    pen.put(merging.entry().title, Role::Merged)
        .put("  what is merged is altered, not lost", Role::Dim)
        .newline();
    rule(pen, merging.spec());
    let Some(log) = scene.state().map(|state| &state.merging).filter(|log| !log.is_empty()) else {
        pen.put("nothing was merged yet", Role::Dim).newline();
        return;
    };
    let sum = log.sum();
    if sum.saved_bytes > 0 {
        let saved = format!(
            "{} if layers shared their rows: both keep them here",
            number::bytes(sum.saved_bytes).trim()
        );
        fact(pen, "would save", &format!("{saved} (modelled)"));
    }
    pen.put("layer   merged  not    share d  drift of K, of V", Role::Dim).newline();
    let rows = usize::from(pen.lines()).min(log.layers.len());
    let first = scene.layer().saturating_sub(rows / 2).min(log.layers.len() - rows);
    for (i, layer) in log.layers.iter().enumerate().skip(first).take(rows) {
        pen.put(&format!("{i:>5}  "), if i == scene.layer() { Role::Accent } else { Role::Dim });
        pen.put(&format!("{:>7}", layer.merged), Role::Merged)
            .put(&format!("  {:>5}  ", layer.apart), Role::Bad);
        share(pen, layer.share(), Provenance::Derived);
        drift(pen, &layer.k);
        drift(pen, &layer.v);
        pen.newline();
    }
}

fn share(pen: &mut Pen<'_, '_>, share: Option<f64>, provenance: Provenance) {
    let symbols = pen.styles().symbols();
    match share {
        Some(share) => pen.figure(&number::percent(share, symbols), provenance),
        None => pen.put(&number::missing(number::PERCENT_WIDTH, symbols), Role::Dim).skip(2),
    };
    pen.skip(2);
}

fn drift(pen: &mut Pen<'_, '_>, drift: &Drift) {
    share(pen, drift.relative(), Provenance::Measured);
}
