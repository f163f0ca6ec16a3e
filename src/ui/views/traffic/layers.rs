//! One line per layer: where its V lives, what moved in the shown step and since the run began.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::union_factor;
use crate::event::{LayerTraffic, Provenance, Stage, Tier};
use crate::state::BreakEven;
use crate::ui::draw::{Pen, Scene, pane, split_top};
use crate::ui::number;
use crate::ui::theme::{Role, tier_role};
use crate::ui::views::columns::{bar, marked, right};
use crate::ui::views::first_row;

/// Columns of a layer's name and of the home of its V.
pub(super) const NAME: u16 = 7;
const HOME: u16 = 9;

/// A figure of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Pulled,
    Asked,
    Rows,
    Union,
    Reuse,
    NotRead,
    Link,
    Stall,
    Overlap,
    Copy,
    Pushed,
    Even,
    Reached,
    PulledInAll,
    PushedInAll,
    StallInAll,
}

use Column as C;

impl Column {
    /// All columns in drawing order, with their widths. Those of the whole run come last.
    const ALL: [(Self, u16); 16] = [
        (C::Pulled, 10),
        (C::Asked, 8),
        (C::Rows, 9),
        (C::Union, 7),
        (C::Reuse, 8),
        (C::NotRead, 9),
        (C::Link, 9),
        (C::Stall, 9),
        (C::Overlap, 10),
        (C::Copy, 9),
        (C::Pushed, 10),
        (C::Even, 7),
        (C::Reached, 9),
        (C::PulledInAll, 10),
        (C::PushedInAll, 10),
        (C::StallInAll, 9),
    ];

    /// In the order in which they are given up where a screen is narrow.
    const GIVEN_UP: [Self; 15] = [
        C::PushedInAll,
        C::Pushed,
        C::StallInAll,
        C::Copy,
        C::Link,
        C::Asked,
        C::Overlap,
        C::Even,
        C::PulledInAll,
        C::Union,
        C::Stall,
        C::Rows,
        C::Reached,
        C::Reuse,
        C::NotRead,
    ];

    const fn is_in_all(self) -> bool {
        matches!(self, C::PulledInAll | C::PushedInAll | C::StallInAll)
    }

    /// Copies are clocked in all steps or in some, as `timing` says.
    fn title(self, timing: Provenance) -> String {
        use Provenance::{Derived, Measured, Modelled};
        match self {
            C::Pulled | C::PulledInAll => marked("to dev", Measured),
            C::Pushed | C::PushedInAll => marked("to host", Measured),
            C::Asked => marked("asked", Measured),
            C::Rows => marked("pulled", Measured),
            C::Union => marked("N'/N", Derived),
            C::Reuse => marked("reuse", Derived),
            C::NotRead => marked("unread", Derived),
            C::Link => marked("link", Modelled),
            C::Stall | C::StallInAll => marked("stall", Modelled),
            C::Overlap => marked("overlap", Modelled),
            C::Copy => marked("copy", timing),
            C::Even => marked("s*", Derived),
            C::Reached => marked("ctx/s*", Derived),
        }
    }

    fn figure(self, scene: &Scene<'_>, line: &Line<'_>) -> String {
        let symbols = scene.symbols();
        let Line { last, all, not_read, even } = *line;
        let known = |figure: Option<String>| figure.unwrap_or_else(|| number::missing(1, symbols));
        match self {
            C::Pulled => number::bytes(last.h2d_bytes),
            C::Pushed => number::bytes(last.d2h_bytes),
            C::PulledInAll => number::bytes(all.h2d_bytes),
            C::PushedInAll => number::bytes(all.d2h_bytes),
            C::Asked => number::count(last.asked_rows),
            C::Rows => number::count(last.rows),
            C::Union => known(union_factor(scene, last).map(|f| format!("{f:.2}"))),
            C::Reuse if last.rows == 0 => number::missing(1, symbols),
            C::Reuse => number::percent(last.reused_rows as f64 / last.rows as f64, symbols),
            C::NotRead => known(not_read.map(|mass| number::percent(mass.into(), symbols))),
            C::Link => number::duration(last.link_ns, symbols),
            C::Stall => number::duration(last.stall_ns, symbols),
            C::Overlap => known(last.overlap().map(|share| number::percent(share, symbols))),
            C::Copy if last.copy_ns == 0 && last.h2d_bytes > 0 => number::missing(1, symbols),
            C::Copy => number::duration(last.copy_ns, symbols),
            C::Even => known(even.map(|even| number::count(even.rows().round() as u64))),
            C::Reached => known(even.map(|even| number::times(even.reached(), symbols))),
            C::StallInAll => number::duration(all.stall_ns, symbols),
        }
    }

    fn role(self, line: &Line<'_>) -> Role {
        match self {
            C::Pulled | C::PulledInAll => Role::Host,
            C::Reached if line.even.is_some_and(|even| even.reached() < 1.0) => Role::Warn,
            _ => Role::Text,
        }
    }
}

/// What a line is about: a layer, or all of them.
struct Line<'a> {
    last: &'a LayerTraffic,
    all: &'a LayerTraffic,
    not_read: Option<f32>,
    even: Option<BreakEven>,
}

/// The columns that fit. `overlaps` says whether anything was ever hidden behind compute: else that column is all zero.
fn columns(width: u16, overlaps: bool) -> Vec<(Column, u16)> {
    let mut columns = Column::ALL.to_vec();
    columns.retain(|&(column, _)| overlaps || column != C::Overlap);
    for least in Column::GIVEN_UP {
        if columns.iter().map(|&(_, w)| w).sum::<u16>() + NAME + HOME <= width {
            break;
        }
        columns.retain(|&(column, _)| column != least);
    }
    columns
}

/// The table; returns the lines it took.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) -> u16 {
    let Some(state) = scene.state() else { return 0 };
    let overlaps = state.traffic.total.iter().any(|t| t.stall_ns < t.link_ns);
    let columns = columns(area.width, overlaps);
    let rates = state.row_rates();
    let even = |layers| rates.and_then(|rates| state.break_even(rates, layers));
    let (heading, rows) = split_top(area, if area.height >= 5 { 2 } else { u16::from(area.height >= 3) });
    titles(&mut Pen::new(buf, heading, scene.styles), &columns, state.latency.timing());
    let (last, all) = (&state.traffic.last, &state.traffic.total);
    let lines = usize::from(rows.height.saturating_sub(1)).min(last.len());
    scene.note_rows(lines as u16);
    let first = first_row(scene.layer(), last.len(), lines as u16);
    let most = last.iter().map(|t| t.h2d_bytes).max().unwrap_or(0).max(1);
    let mut pen = Pen::new(buf, rows, scene.styles);
    for layer in first..first + lines {
        let here = layer == scene.layer();
        pen.put(if here { scene.symbols().pick("▸", ">") } else { " " }, Role::Accent);
        pen.put(&format!("L{layer}"), if here { Role::Accent } else { Role::Dim }).column(NAME);
        let exempt = state.host_v_from_layer().is_none_or(|from| layer < from);
        if exempt {
            pen.put("exempt: V stays on the device, all of it is read", tier_role(Tier::Device)).newline();
            continue;
        }
        pen.put(Tier::Host.name(), tier_role(Tier::Host)).column(NAME + HOME);
        let line = Line {
            last: &last[layer],
            all: &all[layer],
            not_read: not_read_by(scene, layer),
            even: even(layer..layer + 1),
        };
        figures(&mut pen, scene, &columns, &line);
        let room = pen.room().saturating_sub(2);
        if room >= 8 {
            pen.skip(2);
            bar(&mut pen, last[layer].h2d_bytes as f64 / most as f64, room, scene.styles[Role::Host]);
        }
        pen.newline();
    }
    pen.skip(1).put("all", Role::Title).column(NAME + HOME);
    let line = Line {
        last: &state.traffic.last_sum(),
        all: &state.traffic.sum(),
        not_read: state.mass_dropped(),
        even: even(0..last.len()),
    };
    figures(&mut pen, scene, &columns, &line);
    heading.height + lines as u16 + 1
}

fn titles(pen: &mut Pen<'_, '_>, columns: &[(Column, u16)], timing: Provenance) {
    if pen.lines() >= 2 {
        let of_step: u16 = columns.iter().filter(|(c, _)| !c.is_in_all()).map(|&(_, w)| w).sum();
        pen.column(NAME + HOME + 2).put("shown step", Role::Dim);
        if columns.iter().any(|(c, _)| c.is_in_all()) {
            pen.column(NAME + HOME + of_step + 1).put("whole run", Role::Dim);
        }
        pen.newline();
    }
    pen.put(" layer", Role::Dim).column(NAME).put("V home", Role::Dim).column(NAME + HOME);
    for &(column, width) in columns {
        pen.put(&right(&column.title(timing), width), Role::Dim);
    }
}

fn figures(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, columns: &[(Column, u16)], line: &Line<'_>) {
    for &(column, width) in columns {
        pen.put(&right(&column.figure(scene, line), width), column.role(line));
    }
}

/// Attention mass of a layer that the shown step did not read, mean over its KV heads.
pub(super) fn not_read_by(scene: &Scene<'_>, layer: usize) -> Option<f32> {
    let masses = masses(scene, layer)?;
    Some(masses.iter().sum::<f32>() / masses.len() as f32)
}

fn masses<'a>(scene: &Scene<'a>, layer: usize) -> Option<&'a [f32]> {
    let kv_heads = scene.run()?.model.kv_heads as usize;
    scene.seq()?.dropped.get(layer * kv_heads..(layer + 1) * kv_heads).filter(|masses| !masses.is_empty())
}

/// The mass that was not read, KV head by KV head.
pub(super) fn not_read(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let Some(layers) = scene.state().map(|s| s.traffic.last.len()) else { return };
    let note = "one bar per KV head, the full width is all of it";
    let inner = pane(buf, area, scene, "attention mass not read d", note, None);
    let rows: Vec<(usize, usize, f32)> = (0..layers)
        .flat_map(|layer| {
            masses(scene, layer).into_iter().flatten().enumerate().map(move |(h, &m)| (layer, h, m))
        })
        .collect();
    if rows.is_empty() {
        Pen::new(buf, inner, scene.styles).put(nobody_knows(scene), Role::Dim);
        return;
    }
    let is_cursor = |&(layer, head, _): &(usize, usize, f32)| {
        layer == scene.layer() && head == usize::from(scene.kv_head())
    };
    let first = first_row(rows.iter().position(is_cursor).unwrap_or(0), rows.len(), inner.height);
    let mut pen = Pen::new(buf, inner, scene.styles);
    for row in rows.iter().skip(first).take(usize::from(inner.height)) {
        let &(layer, head, mass) = row;
        let role = if is_cursor(row) { Role::Accent } else { Role::Dim };
        pen.put(&format!(" L{layer} KV{head}"), role).column(NAME + HOME);
        pen.put(&number::percent(mass.into(), scene.symbols()), Role::Text).skip(2);
        let room = pen.room().saturating_sub(1).min(60);
        bar(&mut pen, mass.into(), room, scene.styles[Role::Accent]);
        pen.newline();
    }
}

/// Why there is no mass to show.
fn nobody_knows(scene: &Scene<'_>) -> &'static str {
    let decodes = scene.seq().is_some_and(|seq| seq.stage == Stage::Decode);
    let remembers = scene.read_set().is_some_and(|read| read.rule().memory().is_some());
    match (decodes, remembers) {
        (true, _) => "only a step with a picture scores what was not read: use --scores",
        (false, true) => "what a chunk of the prompt did not read is not scored",
        (false, false) => "the shown step read everything: the prompt always does",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_stays_as_the_screen_narrows() {
        assert_eq!(columns(200, true).len(), Column::ALL.len());
        let at = |width, overlaps| columns(width, overlaps).into_iter().map(|(c, _)| c).collect::<Vec<_>>();
        for overlaps in [false, true] {
            let at_80 = at(80, overlaps);
            for column in [C::Pulled, C::Rows, C::Union, C::Reuse, C::NotRead, C::Stall, C::Reached] {
                assert!(at_80.contains(&column), "{column:?} of {at_80:?}");
            }
        }
        assert!(at(120, false).contains(&C::Even) && !at(200, false).contains(&C::Overlap));
        assert_eq!(at(0, true), [C::Pulled]);
    }
}
