//! Where the time goes, and the figures users quote. All of it is engine time: pauses and the pace are left out.

mod quotes;
mod table;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::columns::{bar, key, marked, right};
use crate::event::{Provenance, Stage};
use crate::state::{PhaseHistograms, Quote};
use crate::ui::draw::{Pen, Scene, pane, split_bottom, split_left, split_top};
use crate::ui::layout::Breakpoint;
use crate::ui::number;
use crate::ui::theme::Role;
use crate::ui::views::first_row;

/// Indices of the panes.
const PHASES: usize = 0;
const LAYERS: usize = 1;
const QUOTES: usize = 2;
/// Lines of a table of phases: titles, the whole step, every phase, what no phase covers.
const TABLE: u16 = 15;

/// Phases first; layers and quotes beside or below them.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    if scene.app.zoomed || scene.breakpoint <= Breakpoint::Pane || area.height < 12 {
        one(buf, area, scene, scene.app.pane);
    } else if area.width >= 160 {
        let (top, bottom) = split_top(area, (TABLE + 2).min(area.height / 2));
        let (left, right) = scene.columns(bottom, area.width / 2);
        phases_pane(buf, top, scene);
        layers_pane(buf, left, scene);
        quotes::pane_of(buf, right, scene);
    } else if area.width >= 120 {
        let (left, right) = scene.columns(area, 70);
        let (top, bottom) = split_bottom(right, (right.height / 2).max(9));
        phases_pane(buf, left, scene);
        layers_pane(buf, top, scene);
        quotes::pane_of(buf, bottom, scene);
    } else {
        let (top, bottom) = split_bottom(area, (area.height / 3).clamp(6, 14));
        phases_pane(buf, top, scene);
        // The lower half belongs to the pane a person looks at.
        one(buf, bottom, scene, if scene.app.pane == LAYERS { LAYERS } else { QUOTES });
    }
}

fn one(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, index: usize) {
    match index {
        LAYERS => layers_pane(buf, area, scene),
        QUOTES => quotes::pane_of(buf, area, scene),
        _ => phases_pane(buf, area, scene),
    }
}

/// The steps of one stage.
#[derive(Clone, Copy)]
struct Steps<'a> {
    name: &'static str,
    set: &'a PhaseHistograms,
}

impl<'a> Steps<'a> {
    /// Prefill and decode.
    fn both(scene: &Scene<'a>) -> Option<[Self; 2]> {
        let latency = &scene.state()?.latency;
        Some([Self { name: "prefill", set: &latency.prefill }, Self { name: "decode", set: &latency.decode }])
    }

    /// The present stage, or the other one where the order of lists is reversed.
    fn shown(scene: &Scene<'a>) -> Option<Self> {
        let [prefill, decode] = Self::both(scene)?;
        let decoding = scene.seq().is_some_and(|s| s.stage == Stage::Decode) && !decode.set.steps.is_empty();
        let (_, other_one) = scene.app.sort;
        Some(if decoding ^ other_one { decode } else { prefill })
    }
}

/// Both stages beside or below each other where there is room, else the one that is looked at.
fn phases_pane(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let (Some(both), Some(shown)) = (Steps::both(scene), Steps::shown(scene)) else { return };
    let side_by_side = area.width >= 2 * table::MIN_WIDTH + 2;
    let stacked = area.height >= 2 * TABLE + 2;
    let note = if side_by_side || stacked {
        let both = scene.state().map_or(Provenance::Measured, |state| state.latency.timing());
        format!("times {}, shares d", both.mark())
    } else {
        let (name, times) = (shown.name, shown.set.timing().mark());
        format!("{name}; {} the other stage; times {times}, shares d", key(scene, "list.reverse"))
    };
    let inner = pane(buf, area, scene, "phases", &note, Some(PHASES));
    if side_by_side {
        let (left, right) = split_left(inner, inner.width / 2);
        table::phases(buf, left, scene, both[0]);
        table::phases(buf, right, scene, both[1]);
    } else if stacked {
        let (top, bottom) = split_top(inner, TABLE + 1);
        table::phases(buf, top, scene, both[0]);
        table::phases(buf, bottom, scene, both[1]);
    } else {
        table::phases(buf, inner, scene, shown);
    }
}

/// Median and 99th percentile of every layer, on one scale.
fn layers_pane(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let Some(shown) = Steps::shown(scene) else { return };
    let note = format!("{} of {}", shown.set.steps.len(), shown.name);
    let inner = pane(buf, area, scene, "layers", &note, Some(LAYERS));
    let (list, heading) = super::list_heading(inner);
    let mut pen = Pen::new(buf, heading, scene.styles);
    pen.put("layer", Role::Dim);
    for title in ["p50", "p99"] {
        pen.put(&right(&marked(title, shown.set.timing()), 10), Role::Dim);
    }
    pen.put(&right(&marked("share", Provenance::Derived), 9), Role::Dim).skip(2);
    pen.put("thick p50, thin p99", Role::Dim);
    scene.note_rows(list.height);
    let quotes: Vec<Quote> = shown.set.layers.iter().map(Quote::of).collect();
    let totals: Vec<f64> = shown.set.layers.iter().map(table::total_ns).collect();
    let sum: f64 = totals.iter().sum();
    let slowest = quotes.iter().map(|q| q.p99).max().unwrap_or(0).max(1) as f64;
    let first = first_row(scene.layer(), quotes.len(), list.height);
    let mut pen = Pen::new(buf, list, scene.styles);
    for (layer, quote) in quotes.iter().enumerate().skip(first).take(usize::from(list.height)) {
        let here = layer == scene.layer();
        pen.put(if here { scene.symbols().pick("▸", ">") } else { " " }, Role::Accent);
        pen.put(&format!("L{layer:<3}"), if here { Role::Accent } else { Role::Dim });
        for ns in [quote.p50, quote.p99] {
            let words = if quote.count == 0 {
                number::missing(number::DURATION_WIDTH, scene.symbols())
            } else {
                number::duration(ns, scene.symbols())
            };
            pen.put(&right(&words, 10), Role::Text);
        }
        let share = if sum > 0.0 { totals[layer] / sum } else { f64::NAN };
        pen.put(&right(&number::percent(share, scene.symbols()), 9), Role::Text).skip(2);
        let (from, room) = (pen.at().0 - list.x, pen.room());
        bar(&mut pen, quote.p99 as f64 / slowest, room, scene.styles[Role::Dim]);
        pen.column(from);
        let median = (quote.p50 as f64 / slowest * f64::from(room)).round() as u16;
        let full = scene.symbols().pick("■", "#").repeat(usize::from(median));
        pen.put(&full, if here { Role::Accent } else { Role::Text }).newline();
    }
}
