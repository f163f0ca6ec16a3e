//! The phases of a step: percentiles, share, bar.

use hdrhistogram::Histogram;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::Steps;
use crate::event::Phase;
use crate::state::Quote;
use crate::ui::draw::{Pen, Scene};
use crate::ui::number;
use crate::ui::theme::{Depth, Role, phase_letter};
use crate::ui::views::columns::{bar, right};

/// Columns of a phase's name, of a percentile and of a share.
const NAME: u16 = 15;
const TIME: u16 = number::DURATION_WIDTH as u16 + 1;
const SHARE: u16 = number::PERCENT_WIDTH as u16 + 1;
/// Least width with every percentile and some bar.
pub(super) const MIN_WIDTH: u16 = NAME + 4 * TIME + SHARE + 10;

/// Time of all steps in a histogram, to its resolution of 1 %.
pub(super) fn total_ns(h: &Histogram<u64>) -> f64 {
    if h.is_empty() { 0.0 } else { h.mean() * h.len() as f64 }
}

/// One line per phase, the whole step above them, what no phase covers below.
pub(super) fn phases(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, steps: Steps<'_>) {
    let mut pen = Pen::new(buf, area, scene.styles);
    let columns = Columns::new(area.width);
    let title = format!("{} {}", steps.name, steps.set.steps.len());
    pen.put(&title, Role::Title).column(NAME);
    for name in columns.names() {
        pen.put(&right(name, TIME), Role::Dim);
    }
    pen.put(&right("share", SHARE), Role::Dim).newline();
    if steps.set.steps.is_empty() {
        pen.put("no step of this stage yet", Role::Dim);
        return;
    }
    let totals: Vec<f64> = steps.set.phases.iter().map(total_ns).collect();
    // Of the steps that were clocked, as if all were like them; where these are longer than most, they are their phases.
    let clocked = steps.set.clocked() as f64 / steps.set.steps.len() as f64;
    let phases = if clocked < 1.0 { totals.iter().sum() } else { 0.0 };
    let whole = (total_ns(&steps.set.steps) * clocked).max(phases).max(1.0);
    columns.line(
        &mut pen,
        scene,
        "whole step",
        scene.styles[Role::Title],
        &Quote::of(&steps.set.steps),
        None,
    );
    // On a low screen the largest phases come first; else they stand in the order of the step.
    let mut order: Vec<Phase> = Phase::ALL.to_vec();
    if usize::from(pen.lines()) < order.len() {
        order.sort_by(|&a, &b| totals[b as usize].total_cmp(&totals[a as usize]));
    }
    let most = totals.iter().copied().fold(1.0, f64::max);
    for phase in order {
        let total = totals[phase as usize];
        let name = match scene.styles.depth() {
            Depth::None => format!("{} {}", phase_letter(phase), phase.name()),
            _ => phase.name().to_owned(),
        };
        let quote = Quote::of(&steps.set.phases[phase as usize]);
        columns.line(
            &mut pen,
            scene,
            &name,
            scene.styles.phase(phase),
            &quote,
            Some((total / whole, total / most)),
        );
    }
    let rest = (whole - totals.iter().sum::<f64>()).max(0.0);
    pen.put("in no phase", Role::Dim).column(NAME + TIME * columns.times);
    pen.put(&right(&number::percent(rest / whole, scene.symbols()), SHARE), Role::Dim);
}

/// Percentiles that fit: all, or fewer from the left.
struct Columns {
    times: u16,
}

impl Columns {
    fn new(width: u16) -> Self {
        Self { times: (width.saturating_sub(NAME + SHARE + 2) / TIME).clamp(1, 4) }
    }

    /// The median and the largest say more than what lies between.
    fn names(&self) -> impl Iterator<Item = &'static str> {
        let kept: &[&str] = match self.times {
            1 => &["p50"],
            2 => &["p50", "p99"],
            3 => &["p50", "p99", "max"],
            _ => &["p50", "p90", "p99", "max"],
        };
        kept.iter().copied()
    }

    fn line(
        &self,
        pen: &mut Pen<'_, '_>,
        scene: &Scene<'_>,
        name: &str,
        style: Style,
        quote: &Quote,
        shares: Option<(f64, f64)>,
    ) {
        if pen.is_full() {
            return;
        }
        let symbols = scene.symbols();
        pen.styled(name, style).column(NAME);
        for column in self.names() {
            let ns = match column {
                "p50" => quote.p50,
                "p90" => quote.p90,
                "p99" => quote.p99,
                _ => quote.max,
            };
            if quote.count == 0 {
                pen.put(&right(&number::missing(1, symbols), TIME), Role::Dim);
            } else {
                pen.put(&right(&number::duration(ns, symbols), TIME), Role::Text);
            }
        }
        if let Some((of_step, of_most)) = shares.filter(|_| quote.count > 0) {
            pen.put(&right(&number::percent(of_step, symbols), SHARE), Role::Text).skip(1);
            let room = pen.room().saturating_sub(1);
            bar(pen, of_most, room, style);
        }
        pen.newline();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_give_way_from_the_middle() {
        let names = |width| Columns::new(width).names().collect::<Vec<_>>();
        assert_eq!(names(MIN_WIDTH), ["p50", "p90", "p99", "max"]);
        assert_eq!(names(42), ["p50", "p99"]);
        assert_eq!(names(0), ["p50"]);
    }
}
