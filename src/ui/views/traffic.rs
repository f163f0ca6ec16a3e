//! V rows between host and device: what was asked for, what moved, what was there already, what was not read.

mod layers;
mod pages;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::columns::fact;
use super::timeline::{Series, timeline_pane};
use crate::event::{LayerTraffic, Provenance};
use crate::policy::ReadRule;
use crate::ui::draw::{Pen, Scene, pane, split_bottom, split_top};
use crate::ui::layout::Breakpoint;
use crate::ui::number;
use crate::ui::theme::Role;

const SERIES: [Series; 3] = [Series::Pulled, Series::Dropped, Series::Duration];
/// Indices of the panes.
const LAYERS: usize = 0;
const TIMELINE: usize = 1;

/// Layers above, time below.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    if scene.app.zoomed || scene.breakpoint <= Breakpoint::Pane || area.height < 10 {
        match scene.app.pane {
            TIMELINE => timeline_pane(buf, area, scene, TIMELINE, &SERIES),
            _ => layers_pane(buf, area, scene),
        }
        return;
    }
    let (top, bottom) = split_bottom(area, (area.height / 3).clamp(4, 14));
    timeline_pane(buf, bottom, scene, TIMELINE, &SERIES);
    layers_pane(buf, top, scene);
}

fn layers_pane(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let (Some(state), Some(run)) = (scene.state(), scene.run()) else { return };
    if let Some(rule) = scene.read_set().and_then(|read| pages::Rule::of(read.rule())) {
        let title = format!("{} read by layer", rule.units());
        let inner = pane(buf, area, scene, &title, rule.note(), Some(LAYERS));
        let (facts, rest) = split_top(inner, u16::from(inner.height >= 6));
        pages::totals(&mut Pen::new(buf, facts, scene.styles), scene, rule);
        let used = pages::render(buf, rest, scene, rule);
        return not_read_below(buf, rest, used, scene);
    }
    let note = format!("link and stall at --link {} GB/s ~", run.settings.link_gbps);
    let inner = pane(buf, area, scene, "V rows by layer", &note, Some(LAYERS));
    if scene.read_set().is_none() && !state.traffic.any() {
        nothing_moves(&mut Pen::new(buf, inner, scene.styles));
        return;
    }
    let lines = match inner.height {
        0..=5 => 0,
        6..=8 => 1,
        _ => 2,
    };
    let (facts, rest) = split_top(inner, lines);
    let mut pen = Pen::new(buf, facts, scene.styles);
    totals(&mut pen, scene);
    break_even(pen.newline(), scene);
    let used = layers::render(buf, rest, scene);
    not_read_below(buf, rest, used, scene);
}

/// The mass that was not read, where there is room behind the lines that a table took.
fn not_read_below(buf: &mut Buffer, area: Rect, used: u16, scene: &Scene<'_>) {
    let (_, below) = split_top(area, used + 1);
    if below.height >= 4 {
        layers::not_read(buf, below, scene);
    }
}

fn nothing_moves(pen: &mut Pen<'_, '_>) {
    pen.put("nothing moves between tiers", Role::Good)
        .put(": every V row is on the device", Role::Text)
        .newline();
    pen.put("--kcache n=64,l=1 ", Role::Key);
    pen.wrapped(
        "keeps V on the host from layer 1 on; a step then pulls the 64 rows each query head needs",
        Role::Dim,
        2,
    );
}

/// The whole run, and the union factor of the shown step.
fn totals(pen: &mut Pen<'_, '_>, scene: &Scene<'_>) {
    let Some(state) = scene.state() else { return };
    let symbols = scene.symbols();
    let (last, sum) = (state.traffic.last_sum(), state.traffic.sum());
    if let Some(ReadRule::Kcache(kcache)) = scene.read_set().map(|read| read.rule()) {
        pen.put(&format!("N {}", kcache.n), Role::Pulled);
    }
    if let Some(factor) = union_factor(scene, &last) {
        fact(pen, "N'/N", &number::decimal(factor, symbols), Provenance::Derived);
    }
    fact(pen, "to device", &number::bytes(sum.h2d_bytes), Provenance::Measured);
    pen.put(&format!(" in {} steps", state.traffic.pull_steps), Role::Dim);
    fact(pen, "to host", &number::bytes(sum.d2h_bytes), Provenance::Measured);
    if let Some(mass) = state.mass_dropped() {
        fact(pen, "not read", &number::percent(mass.into(), symbols), Provenance::Derived);
    }
    fact(pen, "copies", &number::duration(sum.copy_ns, symbols), state.latency.timing());
    fact(pen, "link", &number::duration(sum.link_ns, symbols), Provenance::Modelled);
}

/// From which context pulling costs less than reading everything, the present context against that, and from what it was
/// computed.
fn break_even(pen: &mut Pen<'_, '_>, scene: &Scene<'_>) {
    let (Some(state), Some(run)) = (scene.state(), scene.run()) else { return };
    let symbols = scene.symbols();
    let rows = |rows: f64| number::count(rows.round() as u64).trim().to_owned();
    let Some(even) = state.row_rates().and_then(|rates| state.break_even(rates, 0..usize::MAX)) else {
        pen.put("break-even context s* not known yet: a decode step that pulls rows tells", Role::Dim);
        return;
    };
    let tokens = format!("{} tokens", rows(even.rows()));
    fact(pen, "break-even s*", &tokens, Provenance::Derived);
    fact(pen, "context", &rows(even.context_rows), Provenance::Derived);
    let reached = format!("{} s*", number::times(even.reached(), symbols).trim());
    pen.put(" = ", Role::Dim).figure(&reached, Provenance::Derived);
    if let Some(overlap) = state.traffic.last_sum().overlap() {
        fact(pen, "overlap", &number::percent(overlap, symbols), Provenance::Modelled);
    }
    fact(pen, "read", &number::speed(even.rates.read_gbps, symbols), Provenance::Derived);
    fact(pen, "pull", &number::speed(even.rates.pull_gbps, symbols), Provenance::Derived);
    fact(pen, "s* at --link", &rows(even.rows_at(run.settings.link_gbps)), Provenance::Modelled);
    pen.dot().put("s* = N' (1 + read/pull), choosing not counted", Role::Dim);
}

/// Rows pulled per KV head over rows asked for per query head: 1 if the heads of a group agree, their number if they
/// share nothing.
fn union_factor(scene: &Scene<'_>, traffic: &LayerTraffic) -> Option<f64> {
    let model = &scene.run()?.model;
    let group = f64::from(model.heads) / f64::from(model.kv_heads.max(1));
    (traffic.asked_rows > 0).then(|| group * traffic.rows as f64 / traffic.asked_rows as f64)
}
