//! Who was lost, when, why, and by how much.

mod nobody;
mod table;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::columns::{fact, key};
use super::timeline::{Series, timeline_pane};
use super::token;
use super::twin;
use crate::app::VictimRow;
use crate::event::{Provenance, Reason};
use crate::ui::draw::{Pen, Scene, pane, split_bottom, split_top};
use crate::ui::layout::Breakpoint;
use crate::ui::number;
use crate::ui::text;
use crate::ui::theme::Role;

const SERIES: [Series; 2] = [Series::Victims, Series::Resident];
/// Indices of the panes.
const VICTIMS: usize = 0;
const TIMELINE: usize = 1;
const TOKEN: usize = 2;
/// Columns of the token's card beside the list.
const CARD: u16 = 50;

/// Victims, the steps in which they went, and the card of the selected one.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    if scene.app.zoomed || scene.breakpoint <= Breakpoint::Pane || area.height < 9 {
        match scene.app.pane {
            TIMELINE => timeline_pane(buf, area, scene, TIMELINE, &SERIES),
            TOKEN => token::card_pane(buf, area, scene, Some(TOKEN)),
            _ => victims(buf, area, scene, true),
        }
        return;
    }
    let strip = if area.height >= 40 { 9 } else { 4 };
    let (rest, bottom) = split_bottom(area, strip);
    timeline_pane(buf, bottom, scene, TIMELINE, &SERIES);
    if area.width >= 130 {
        let (left, right) = scene.columns(rest, rest.width - CARD);
        token::card_pane(buf, right, scene, Some(TOKEN));
        victims(buf, left, scene, false);
    } else if rest.height >= 24 {
        let (top, card) = split_bottom(rest, 11);
        token::card_pane(buf, card, scene, Some(TOKEN));
        victims(buf, top, scene, false);
    } else if scene.app.pane == TOKEN {
        token::card_pane(buf, rest, scene, Some(TOKEN));
    } else {
        victims(buf, rest, scene, true);
    }
}

/// The list; `explain` the selected victim in a line below where no card does.
fn victims(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, explain: bool) {
    let list = &scene.app.victims.rows;
    let note = super::filter_note(scene, list.len(), list.total(), "victims m");
    let inner = pane(buf, area, scene, "victims", &note, Some(VICTIMS));
    if list.is_empty() {
        if list.total() == 0 {
            nobody::why(buf, inner, scene);
        } else {
            no_match(&mut Pen::new(buf, inner, scene.styles), scene);
        }
        return;
    }
    let (totals_row, rest) = split_top(inner, u16::from(inner.height >= 7));
    totals(&mut Pen::new(buf, totals_row, scene.styles), scene);
    let (twin_row, rest) = split_top(rest, u16::from(inner.height >= 7 && twin::is_there(scene)));
    twin::verdict(&mut Pen::new(buf, twin_row, scene.styles), scene);
    let (rest, why_row) = split_bottom(rest, u16::from(explain && inner.height >= 6));
    table::render(buf, rest, scene);
    if let Some(row) = list.current() {
        explanation(&mut Pen::new(buf, why_row, scene.styles), scene, row);
    }
}

fn no_match(pen: &mut Pen<'_, '_>, scene: &Scene<'_>) {
    let filter = text::safe(scene.app.filter.source().as_bytes(), scene.symbols());
    pen.put("no victim matches ", Role::Text).put(&filter, Role::Accent).newline();
    pen.put(&format!("{} changes the filter", key(scene, "list.filter")), Role::Dim);
}

/// All decisions of the run, also those that the list no longer has.
fn totals(pen: &mut Pen<'_, '_>, scene: &Scene<'_>) {
    let Some(state) = scene.state() else { return };
    let log = &state.evictions;
    // What is missing comes first, so that no narrow screen leaves it out.
    if log.forgotten() > 0 {
        pen.dot().put(&format!("{} older decisions forgotten", log.forgotten()), Role::Warn);
    }
    if scene.app.victims.omitted() > 0 {
        pen.dot().put(&format!("{} older victims not listed", scene.app.victims.omitted()), Role::Warn);
    }
    if state.merging.is_empty() {
        fact(pen, "lost so far", &log.total_victims().to_string(), Provenance::Measured);
    } else {
        let sum = state.merging.sum();
        fact(pen, "victims", &log.total_victims().to_string(), Provenance::Measured);
        pen.dot().put("merged ", Role::Dim);
        pen.put(&sum.merged.to_string(), Role::Merged).figure("", Provenance::Measured);
    }
    fact(pen, "decisions", &log.total_decisions().to_string(), Provenance::Measured);
    if let (Some(first), Some(last)) = (log.iter().next(), log.iter().next_back()) {
        let first = if log.forgotten() > 0 { "before".to_owned() } else { first.step.to_string() };
        pen.dot().put(&format!("steps {first} to {}", last.step), Role::Dim);
    }
}

/// The selected victim in a sentence.
fn explanation(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, row: &VictimRow) {
    let symbols = scene.symbols();
    let figure = |x: f32| number::decimal(x.into(), symbols).trim().to_owned();
    pen.put(&format!("{} ", row.position), Role::Accent);
    let head = row.head.map_or_else(|| "all heads".to_owned(), |h| format!("H{h}"));
    pen.put(&format!("L{} {head}: ", row.layer), Role::Text);
    if let Some(merged) = row.merged {
        pen.put(&merged.to_string(), Role::Merged).put(", ", Role::Dim);
    }
    match (row.reason, row.score, row.cutoff) {
        (Reason::LowScore, Some(score), Some(cutoff)) => {
            pen.put("score ", Role::Dim).figure(&figure(score), Provenance::Measured);
            pen.put(" under the cutoff ", Role::Dim).figure(&figure(cutoff), Provenance::Measured);
        }
        (reason, _, _) => {
            pen.put(reason.words(), Role::Text);
            let window = scene.run().and_then(|run| run.model.window(usize::from(row.layer)));
            if let (Reason::LayerWindow, Some(window)) = (reason, window) {
                pen.put(&format!(" of {window} tokens"), Role::Text);
            }
        }
    }
    if let Some(rank) = row.rank {
        pen.put(", rank ", Role::Dim).figure(&format!("{rank} of {} lost", row.of), Provenance::Derived);
    }
    pen.put(", age ", Role::Dim).figure(&format!("{} tokens", row.age), Provenance::Derived);
    if let Some(regret) = row.regret {
        pen.put(", regret ", Role::Dim).figure(&figure(regret), Provenance::Measured);
    }
}
