//! The rule: what it is, where it comes from, its parameters, its budget against what is resident, its last decisions.

mod crush;
mod merge;
mod pages;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::twin;
use crate::event::Provenance;
use crate::policy::spec::{Part, Spec};
use crate::ui::draw::{Pen, Scene, pane, split_bottom, split_top};
use crate::ui::number;
use crate::ui::theme::Role;

/// Indices of the panes.
const FACTS: usize = 0;
const BUDGET: usize = 1;
const UNITS: usize = 2;
/// Columns of the labels.
const LABEL: u16 = 11;

/// Facts at the left, budget and decisions at the right, between them the units of a rule that has signatures; below
/// each other where the screen is narrow.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let focus = scene.app.pane;
    let units = crush::is_there(scene) || focus == UNITS;
    if scene.app.zoomed || area.height < 8 {
        match focus {
            FACTS => facts_pane(buf, area, scene),
            UNITS => crush::pane_of(buf, area, scene),
            _ => budget_pane(buf, area, scene),
        }
    } else if area.width >= 100 {
        let (left, right) = scene.columns(area, area.width / 2);
        facts_pane(buf, left, scene);
        let (upper, lower) = split_bottom(right, if units { right.height / 3 } else { right.height });
        if units {
            crush::pane_of(buf, upper, scene);
        }
        budget_pane(buf, lower, scene);
    } else if units {
        // The picture has the larger part: it is what no other line tells.
        let (upper, lower) = split_top(area, (area.height * 2 / 3).max(area.height.min(12)));
        crush::pane_of(buf, upper, scene);
        match focus {
            BUDGET => budget_pane(buf, lower, scene),
            _ => facts_pane(buf, lower, scene),
        }
    } else {
        let (upper, lower) = split_top(area, area.height / 2);
        facts_pane(buf, upper, scene);
        budget_pane(buf, lower, scene);
    }
}

fn facts_pane(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let Some(run) = scene.run() else { return };
    let policy = scene.policy();
    let title = policy.as_ref().map_or("policy", |p| p.entry().title);
    let inner = pane(buf, area, scene, title, "what may be lost", Some(FACTS));
    let mut pen = Pen::new(buf, inner, scene.styles);
    if twin::is_there(scene) {
        twin::words(&mut pen, scene);
        pen.newline();
    }
    match &policy {
        Some(policy) => rule(&mut pen, policy.spec()),
        None => {
            pen.foreign(&run.settings.policy, Role::Text)
                .put(" is not known to this build", Role::Warn)
                .newline();
        }
    }
    if let Some(read) = scene.read_set() {
        pen.newline();
        pen.put(read.entry().title, Role::Pulled)
            .put("  nothing is lost, rows are not read", Role::Dim)
            .newline();
        rule(&mut pen, read.spec());
    }
    merge::render(&mut pen, scene);
    pages::render(&mut pen, scene);
}

fn rule(pen: &mut Pen<'_, '_>, spec: &Spec) {
    fact(pen, "spelled", &spec.to_string());
    for (i, part) in spec.parts().iter().enumerate() {
        if i > 0 {
            pen.newline();
            pen.put(part.entry().title, Role::Title).newline();
        }
        rule_part(pen, part);
    }
}

fn rule_part(pen: &mut Pen<'_, '_>, part: &Part) {
    let entry = part.entry();
    pen.wrapped(entry.doc, Role::Text, 0);
    params(pen, part);
    fact(pen, "acts", entry.acts);
    if !entry.is_wrapper() {
        fact(pen, "decides", part.granularity().words());
    }
    let paper = match (entry.source.paper, entry.source.arxiv) {
        ("", _) => "own definition".to_owned(),
        (paper, "") => paper.to_owned(),
        (paper, arxiv) => format!("{paper}, arXiv {arxiv}"),
    };
    fact(pen, "source", &paper);
    if !entry.source.at.is_empty() {
        fact(pen, "rule", &format!("{}: {}", entry.source.evidence.words(), entry.source.at));
    }
    if !entry.source_defaults.is_empty() {
        fact(pen, "its values", entry.source_defaults);
    }
    for deviation in entry.deviations {
        fact(pen, "differs", deviation);
    }
}

fn fact(pen: &mut Pen<'_, '_>, label: &str, words: &str) {
    pen.put(label, Role::Dim).column(LABEL).wrapped(words, Role::Text, LABEL);
}

fn params(pen: &mut Pen<'_, '_>, part: &Part) {
    for (param, value) in part.params() {
        pen.put(param.name, Role::Key).column(LABEL.max(param.name.len() as u16 + 1));
        let role = if value == param.default { Role::Text } else { Role::Accent };
        pen.put(&value.to_string(), role)
            .put(if param.live { "  live  " } else { "  at re-run  " }, Role::Dim);
        pen.wrapped(param.doc, Role::Dim, LABEL);
    }
}

fn budget_pane(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let (Some(run), Some(seq)) = (scene.run(), scene.seq()) else { return };
    let slots = scene.policy().and_then(|p| p.slots(seq.prompt_len(run)));
    let note = match slots {
        Some(slots) => format!("{slots} slots per (layer, head) d"),
        None => "no bound: everything stays".to_owned(),
    };
    let inner = pane(buf, area, scene, "budget and residents m", &note, Some(BUDGET));
    let lanes = seq.resident.len();
    let room = (inner.height * 2 / 3).max(1);
    let (bars, below) = split_top(inner, room.min(lanes.min(1000) as u16 + 1));
    let whole = slots.map_or(seq.tokens.len(), |s| s as usize).max(seq.tokens.len()).max(1);
    let rows = usize::from(bars.height).min(lanes);
    let kv_heads = run.model.kv_heads.max(1) as usize;
    let here = scene.layer() * kv_heads + usize::from(scene.kv_head());
    let first = here.saturating_sub(rows / 2).min(lanes - rows);
    for (i, lane) in (first..first + rows).enumerate() {
        let row = Rect { y: bars.y + i as u16, height: 1, ..bars };
        let name = format!("L{:<2} KV{:<2}", lane / kv_heads, lane % kv_heads);
        bar(buf, row, scene, &name, lane == here, seq.resident[lane] as usize, slots, whole);
    }
    last_decisions(buf, below, scene);
}

/// Residents as a bar with the budget as a tick on it.
#[allow(clippy::too_many_arguments)]
fn bar(
    buf: &mut Buffer,
    row: Rect,
    scene: &Scene<'_>,
    name: &str,
    here: bool,
    resident: usize,
    slots: Option<u32>,
    whole: usize,
) {
    let mut pen = Pen::new(buf, row, scene.styles);
    pen.put(name, if here { Role::Accent } else { Role::Dim }).put(" ", Role::Dim);
    let width = usize::from(pen.room().saturating_sub(14));
    let filled = (resident * width).div_ceil(whole).min(width);
    let full = scene.symbols().full().to_string();
    let (x, _) = pen.at();
    pen.put(&full.repeat(filled), Role::Live);
    pen.put(&scene.symbols().pick("·", ".").repeat(width - filled), Role::Free);
    pen.put(" ", Role::Dim).put(&number::count(resident as u64), Role::Text).put(" of ", Role::Dim);
    pen.put(number::count(slots.map_or(whole as u64, u64::from)).trim(), Role::Dim);
    if let Some(slots) = slots.filter(|_| width > 0) {
        let at = (slots as usize * width / whole).min(width - 1) as u16;
        let tick = Rect { x: x + at, width: 1, ..row };
        let over = resident > slots as usize;
        let role = if over { Role::Bad } else { Role::Title };
        Pen::new(buf, tick, scene.styles).glyph(scene.symbols().pick('┃', '|'), scene.styles[role]);
    }
}

fn last_decisions(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let Some(state) = scene.state() else { return };
    let total = state.evictions.total_decisions();
    let note = format!("{} in all, {} victims m", total, state.evictions.total_victims());
    let inner = pane(buf, area, scene, "last decisions", &note, None);
    let mut pen = Pen::new(buf, inner, scene.styles);
    if total == 0 {
        pen.put("none: nothing was lost", Role::Good);
        return;
    }
    if inner.height >= 3 {
        pen.put("    step  layer  head  victims   kept  cutoff", Role::Dim).newline();
    }
    for decision in state.evictions.iter().rev().take(usize::from(inner.height)) {
        let e = &decision.eviction;
        let head = e.head.map_or_else(|| "all".to_owned(), |h| h.to_string());
        pen.put(&format!("{:>8}  {:>5}  {head:>4}  ", decision.step, e.layer), Role::Text);
        pen.put(&format!("{:>7}", e.positions.len()), Role::Bad)
            .put(&format!("  {:>5}  ", e.kept), Role::Text);
        match e.cutoff {
            Some(cutoff) => {
                pen.figure(&number::decimal(cutoff.into(), scene.symbols()), Provenance::Measured);
            }
            None => {
                pen.put(e.reason.words(), Role::Dim);
            }
        }
        pen.newline();
    }
}
