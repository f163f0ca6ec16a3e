//! The run beside its full-cache twin: how far off its words are, what its victims would have been worth.

use crate::event::Provenance;
use crate::state::SeqTwin;
use crate::ui::draw::{Pen, Scene};
use crate::ui::number;
use crate::ui::theme::Role;

use super::columns::fact;

/// Whether a twin follows the sequence looked at.
pub(super) fn is_there(scene: &Scene<'_>) -> bool {
    told(scene).is_some()
}

fn told<'a>(scene: &Scene<'a>) -> Option<&'a SeqTwin> {
    scene.state()?.twin.of(scene.seq()?.seq)
}

/// Divergence now and so far, and agreement so far, of the sequence looked at. Ends on the line.
pub(super) fn words(pen: &mut Pen<'_, '_>, scene: &Scene<'_>) {
    let (Some(state), Some(twin)) = (scene.state(), told(scene)) else { return };
    let (symbols, kind) = (scene.symbols(), state.twin_provenance());
    let decimal = |x: f64| number::decimal(x, symbols).trim().to_owned();
    pen.put("full cache", Role::Title);
    match (&twin.last, twin.tally.mean_kl(), twin.tally.agreement()) {
        (Some(last), Some(kl), Some(share)) => {
            fact(pen, "KL", &decimal(last.kl.into()), kind);
            pen.put(" mean ", Role::Dim).figure(&decimal(kl), kind);
            fact(pen, "agrees", &number::percent(share, symbols), kind);
        }
        _ => {
            pen.dot().put("no draw judged yet", Role::Dim);
        }
    }
}

/// The same, then both perplexities and the regret of all victims.
pub(super) fn verdict(pen: &mut Pen<'_, '_>, scene: &Scene<'_>) {
    let (Some(state), Some(twin)) = (scene.state(), told(scene)) else { return };
    let (symbols, kind) = (scene.symbols(), state.twin_provenance());
    let decimal = |x: f64| number::decimal(x, symbols).trim().to_owned();
    words(pen, scene);
    if let (Some(own), Some(twins)) = (twin.tally.perplexity(), twin.tally.twin_perplexity()) {
        fact(pen, "perplexity", &decimal(own), kind);
        pen.put(", twin ", Role::Dim).figure(&decimal(twins), kind);
    }
    fact(pen, "regret", &decimal(twin.tally.regret), Provenance::Measured);
}

/// What the twins of all sequences take, in none of the run's own figures.
pub(super) fn cost(pen: &mut Pen<'_, '_>, scene: &Scene<'_>) {
    let Some((state, tally)) = scene.state().and_then(|s| Some((s, s.twin.sum()?))) else { return };
    pen.figure(number::duration(tally.ns, scene.symbols()).trim(), Provenance::Measured);
    pen.put(" beside all steps", Role::Dim).dot();
    pen.figure(number::bytes(state.twin.bytes()).trim(), Provenance::Measured);
}
