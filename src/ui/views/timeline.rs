//! Steps from left to right: how long they took, who was lost, what stayed, what moved.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::Widget;

use crate::event::{Provenance, ScoreLevel, StepId};
use crate::policy::ReadRule;
use crate::state::StepSummary;
use crate::ui::draw::{Pen, Scene, pane};
use crate::ui::number;
use crate::ui::theme::Role;
use crate::ui::widgets::{Bins, TimeStrip};

/// Columns of a strip's name, and of its figure at the cursor.
const LABEL: u16 = 10;
const FIGURE: u16 = 12;

/// One series over the steps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Series {
    Duration,
    Victims,
    Resident,
    Pulled,
    Dropped,
}

impl Series {
    const fn name(self) -> &'static str {
        match self {
            Self::Duration => "step time",
            Self::Victims => "victims",
            Self::Resident => "resident",
            Self::Pulled => "pulled",
            Self::Dropped => "not read",
        }
    }

    const fn role(self) -> Role {
        match self {
            Self::Duration => Role::Accent,
            Self::Victims => Role::Evicted,
            Self::Resident => Role::Live,
            Self::Pulled => Role::Host,
            Self::Dropped => Role::Pulled,
        }
    }

    fn value(self, s: &StepSummary) -> f32 {
        match self {
            Self::Duration => s.wall_ns as f32,
            Self::Victims => s.victims as f32,
            Self::Resident => s.resident as f32,
            Self::Pulled => s.h2d_bytes as f32,
            Self::Dropped => s.dropped,
        }
    }

    fn figure(self, s: &StepSummary, scene: &Scene<'_>) -> (String, Provenance) {
        let symbols = scene.symbols();
        match self {
            Self::Duration => (number::duration(s.wall_ns, symbols), Provenance::Measured),
            Self::Victims => (number::count(s.victims.into()), Provenance::Measured),
            Self::Resident => (number::count(s.resident), Provenance::Measured),
            Self::Pulled => (number::bytes(s.h2d_bytes), Provenance::Measured),
            Self::Dropped => (number::percent(s.dropped.into(), symbols), Provenance::Derived),
        }
    }
}

/// The pane with its rule.
pub(super) fn timeline_pane(
    buf: &mut Buffer,
    area: Rect,
    scene: &Scene<'_>,
    index: usize,
    series: &[Series],
) {
    let note = note(scene, area.width);
    let inner = pane(buf, area, scene, "timeline", &note, Some(index));
    strips(buf, inner, scene, series);
}

/// What the axis covers, in words: numbers must say which range they are of.
fn note(scene: &Scene<'_>, width: u16) -> String {
    let Some((first, last)) = range(scene) else { return String::new() };
    let fit = if scene.app.time.range.is_some() { "" } else { ", all" };
    let forgotten = scene.app.timeline.forgotten();
    let lost = if forgotten > 0 { format!(", {forgotten} older not kept") } else { String::new() };
    let per_column = Bins::new((last - first + 1) as usize, bars_width(width)).per_cell();
    let bins = if per_column > 1 { format!(", largest of {per_column} per column") } else { String::new() };
    format!("steps {first} to {last}{fit}{bins}{lost}")
}

fn range(scene: &Scene<'_>) -> Option<(StepId, StepId)> {
    let first = scene.app.timeline.iter().next()?.step;
    let last = scene.app.timeline.last()?.step;
    let (from, to) = scene.app.time.range.unwrap_or((first, last));
    let from = from.clamp(first, last);
    Some((from, to.clamp(from, last)))
}

/// The strips alone, sharing the height; the lowest carries the marks.
pub(super) fn strips(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, series: &[Series]) {
    let Some((first, last)) = range(scene).filter(|_| !area.is_empty()) else {
        Pen::new(buf, area, scene.styles).put("no step yet", Role::Dim);
        return;
    };
    let series: Vec<Series> = series.iter().copied().filter(|s| worth_drawing(*s, scene)).collect();
    let shown = series.len().min(usize::from(area.height));
    if shown == 0 {
        return;
    }
    let steps: Vec<&StepSummary> = (first..=last).filter_map(|step| scene.app.timeline.get(step)).collect();
    let each = (area.height / shown as u16).min(6);
    let mut y = area.y;
    for (i, &one) in series.iter().take(shown).enumerate() {
        let is_last = i + 1 == shown;
        let spare = area.bottom() - y;
        // A strip of one line has no room for marks; the lowest one gets what is left for them.
        let height = if is_last { spare.min(each.max(2)) } else { each };
        strip(buf, Rect { y, height, ..area }, scene, one, &steps);
        y += height;
    }
}

/// Columns beside the bars, at the left and at the right.
const fn margins(width: u16) -> (u16, u16) {
    (if width >= 40 { LABEL } else { 0 }, if width >= 56 { FIGURE } else { 0 })
}

const fn bars_width(width: u16) -> u16 {
    let (label, figure) = margins(width);
    width - label - figure
}

fn worth_drawing(series: Series, scene: &Scene<'_>) -> bool {
    match series {
        Series::Pulled => scene.state().is_some_and(|s| s.traffic.any()),
        Series::Dropped => scene.read_set().is_some_and(|read| {
            matches!(read.rule(), ReadRule::Kcache(_))
                || scene.run().is_some_and(|run| run.has.rows != ScoreLevel::Off)
        }),
        _ => true,
    }
}

fn strip(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, series: Series, steps: &[&StepSummary]) {
    let (label, figure) = margins(area.width);
    let at = scene.state().and_then(|s| s.step);
    Pen::new(buf, Rect { width: label, ..area }, scene.styles).put(series.name(), Role::Text);
    let bars = Rect { x: area.x + label, width: area.width - label - figure, ..area };
    // A short run is stretched, so that its steps can be told apart.
    let stretch = (usize::from(bars.width) / steps.len().max(1)).clamp(1, 4);
    let values: Vec<Option<f32>> =
        steps.iter().flat_map(|s| std::iter::repeat_n(Some(series.value(s)), stretch)).collect();
    let first = steps.first().map_or(0, |s| s.step);
    let place = |step: StepId| step.saturating_sub(first).saturating_mul(stretch as u64);
    let bookmarks: Vec<u64> =
        scene.app.bookmarks.iter().filter(|&&step| step >= first).map(|&step| place(step)).collect();
    let mut strip = TimeStrip::new(scene.styles, 0, &values).role(series.role()).bookmarks(&bookmarks);
    if let Some((a, b)) = scene.app.time.selection.or(scene.app.time.looped) {
        strip = strip.selection(place(a.min(b))..place(a.max(b).saturating_add(1)));
    }
    (&strip).render(bars, buf);
    if area.height >= 2 {
        // The mark stands below the bar: painted over it, it would hide the value it points at.
        let bins = Bins::new(values.len(), bars.width);
        let cell = at.filter(|&step| step >= first).and_then(|step| bins.cell(place(step) as usize));
        if let Some(cell) = cell {
            let line = Rect { y: area.bottom() - 1, height: 1, ..bars };
            super::point_at(buf, line, scene, cell as u16, &at.unwrap_or(0).to_string());
        }
    }
    if figure > 0 {
        let place = Rect { x: area.right() - figure, width: figure, ..area };
        if let Some(summary) = at.and_then(|step| scene.app.timeline.get(step)) {
            let (words, provenance) = series.figure(summary, scene);
            let right = FIGURE - 2 - words.chars().count() as u16;
            Pen::new(buf, place, scene.styles).skip(right).figure(&words, provenance);
        }
    }
}
