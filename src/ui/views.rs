//! The nine views. Each is drawn from the application's state alone; none touches files, channels or clocks.

mod attention;
mod blocks;
mod columns;
mod evictions;
mod heads;
mod latency;
mod log;
mod memory;
mod occupancy;
mod overview;
mod phases;
mod policy;
mod scale;
#[cfg(test)]
mod tests;
mod text;
mod timeline;
mod token;
mod traffic;
mod twin;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::Widget;

use super::draw::{Pen, Scene, split_top};
use super::number;
use super::theme::Role;
use super::widgets::Gauge;
use crate::app::View;
use crate::engine::Status;

pub(in crate::ui) use token::summary_line as token_line;

/// Widest bar of a model being loaded.
const LOADING_WIDTH: u16 = 72;

/// Draws the present view.
pub(in crate::ui) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    if scene.state().is_none() {
        before_the_run(buf, area, scene);
        return;
    }
    match scene.app.view {
        View::Overview => overview::render(buf, area, scene),
        View::Blocks => blocks::render(buf, area, scene),
        View::Attention => attention::render(buf, area, scene),
        View::Evictions => evictions::render(buf, area, scene),
        View::Traffic => traffic::render(buf, area, scene),
        View::Latency => latency::render(buf, area, scene),
        View::Log => log::render(buf, area, scene),
        View::Text => text::render(buf, area, scene),
        View::Policy => policy::render(buf, area, scene),
    }
}

/// What is there to say before the first step.
fn before_the_run(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let middle = Rect { y: area.y + area.height / 2, height: area.height.div_ceil(2).min(1), ..area };
    let mut pen = Pen::new(buf, middle, scene.styles);
    pen.skip(2);
    match &scene.app.status {
        Status::Loading { what, .. } => pen.put("loading ", Role::Dim).foreign(what, Role::Text),
        Status::Reference => {
            pen.put("computing the full-cache answer that runs are compared with", Role::Text)
        }
        Status::Failed(why) => pen.foreign(why, Role::Bad),
        _ => pen.put("no step yet", Role::Dim),
    };
    if let Status::Loading { done_bytes, total_bytes, .. } = scene.app.status
        && total_bytes > 0
        && middle.y + 1 < area.bottom()
    {
        let below = Rect {
            x: area.x + 2,
            y: middle.y + 1,
            width: area.width.saturating_sub(4).min(LOADING_WIDTH),
            height: 1,
        };
        let figure = format!(
            "{} of {}{}",
            number::bytes(done_bytes),
            number::bytes(total_bytes).trim(),
            number::percent(done_bytes as f64 / total_bytes as f64, scene.symbols())
        );
        (&Gauge::new(scene.styles, done_bytes as f64 / total_bytes as f64).figure(&figure))
            .render(below, buf);
    }
}

/// The row a list starts with, so that the selected one is on the screen with some of its neighbours.
fn first_row(selected: usize, len: usize, height: u16) -> usize {
    let height = usize::from(height);
    selected.saturating_sub(height / 2).min(len.saturating_sub(height))
}

/// Takes a line for column titles where the list is long enough: (list, heading).
fn list_heading(area: Rect) -> (Rect, Rect) {
    let (heading, list) = split_top(area, u16::from(area.height >= 4));
    (list, heading)
}

/// `12 of 340 lines, filter kind=evict`.
fn filter_note(scene: &Scene<'_>, shown: usize, total: usize, what: &str) -> String {
    let filter = scene.app.filter.source();
    if filter.is_empty() {
        format!("{total} {what}")
    } else {
        let filter = super::text::safe(filter.as_bytes(), scene.symbols());
        format!("{shown} of {total} {what}, filter {filter}")
    }
}

/// Points at the selected row, so that it shows without colour.
fn select_mark(buf: &mut Buffer, row: Rect, scene: &Scene<'_>) {
    Pen::new(buf, row, scene.styles).glyph(scene.symbols().pick('▸', '>'), scene.styles[Role::Accent]);
}

/// A mark below a column of a picture, with what stands there.
fn point_at(buf: &mut Buffer, line: Rect, scene: &Scene<'_>, column: u16, words: &str) {
    let mark = scene.symbols().pick("▲", "^");
    let width = super::text::width(words) as u16 + 1;
    // At the right edge the words stand before the mark.
    let before = column + 1 + width > line.width && column >= width;
    let from = line.x + if before { column - width } else { column };
    let taken = (from..=from + width)
        .any(|x| buf.cell((x, line.y)).is_some_and(|cell| cell.symbol().chars().any(char::is_alphanumeric)));
    if taken {
        // The picture's own remark at the right end gives way to what a person points at; the pane's note repeats it.
        let remark =
            Rect { x: line.right().saturating_sub(12).max(line.x), width: line.width.min(12), ..line };
        Pen::new(buf, remark, scene.styles).put("            ", Role::Text);
    }
    let mut pen = Pen::new(buf, line, scene.styles);
    if before {
        pen.skip(column - width).put(words, Role::Dim).put(" ", Role::Dim).put(mark, Role::Title);
    } else {
        pen.skip(column).put(mark, Role::Title).put(" ", Role::Dim).put(words, Role::Dim);
    }
}
