//! Everything at a glance: text, blocks, attention, time.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::timeline::{Series, timeline_pane};
use super::{heads, memory, occupancy, phases, text, token};
use crate::ui::draw::{Scene, pane, split_bottom, split_top};
use crate::ui::layout::Breakpoint;

const SERIES: [Series; 4] = [Series::Duration, Series::Victims, Series::Resident, Series::Pulled];

/// Panes by their index in the view's list: text, blocks, attention, timeline.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    if scene.app.zoomed {
        return one(buf, area, scene, scene.app.pane);
    }
    match scene.breakpoint {
        Breakpoint::Line | Breakpoint::Pane => one(buf, area, scene, scene.app.pane),
        // The lines around the view have taken their part: what is left decides how many panes are worth it.
        Breakpoint::Column if area.height < 11 => one(buf, area, scene, scene.app.pane),
        Breakpoint::Column => one_column(buf, area, scene),
        Breakpoint::TwoColumns if area.height < 8 => one(buf, area, scene, scene.app.pane),
        Breakpoint::TwoColumns => two_columns(buf, area, scene),
        Breakpoint::FourPanes => four(buf, area, scene),
    }
}

fn one(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, index: usize) {
    match index {
        1 => blocks(buf, area, scene),
        2 => attention(buf, area, scene, heads::height(scene, true) < area.height),
        3 => time(buf, area, scene),
        _ => text::text_pane(buf, area, scene, 0),
    }
}

/// Text above attention at the left; blocks, the token and time at the right, each as high as it has something to say.
fn four(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let (left, right) = scene.columns(area, area.width / 2);
    let half = area.height / 2;
    let all_layers = heads::height(scene, true) < half;
    let (left_top, left_bottom) = split_bottom(left, (heads::height(scene, all_layers) + 1).min(half));
    let (right_top, rest) =
        split_top(right, (occupancy::height(scene) + memory::height(scene) + 2).min(half));
    let (middle, right_bottom) = split_bottom(rest, (rest.height * 3 / 5).min(26));
    blocks(buf, right_top, scene);
    token::card_pane(buf, middle, scene, None);
    attention(buf, left_bottom, scene, all_layers);
    time(buf, right_bottom, scene);
    text::text_pane(buf, left_top, scene, 0);
}

fn two_columns(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let (left, right) = scene.columns(area, area.width / 2);
    let wanted = occupancy::height(scene) + memory::height(scene) + 2;
    let (right_top, right_bottom) = split_top(right, wanted.clamp(4, (right.height / 2).max(4)));
    let third = (left.height / 3).max(4);
    let (left_top, left_bottom) = split_bottom(left, (heads::height(scene, false) + 1).clamp(4, third));
    blocks(buf, right_top, scene);
    time(buf, right_bottom, scene);
    attention(buf, left_bottom, scene, false);
    text::text_pane(buf, left_top, scene, 0);
}

fn one_column(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let third = (area.height / 5).max(3);
    let (rest, bottom) = split_bottom(area, third + 1);
    let (rest, middle) = split_bottom(rest, third + 1);
    let (top, upper) = split_bottom(rest, third);
    blocks(buf, upper, scene);
    attention(buf, middle, scene, false);
    time(buf, bottom, scene);
    text::text_pane(buf, top, scene, 0);
}

fn blocks(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let tiers = memory::height(scene);
    let note = occupancy::heads_note(scene, area.height.saturating_sub(1 + tiers));
    let inner = pane(buf, area, scene, "blocks", &note, Some(1));
    let room = if inner.height > tiers + 3 { tiers } else { 0 };
    let (strips, gauges) = split_bottom(inner, room);
    occupancy::layers(buf, strips, scene);
    memory::tiers(buf, gauges, scene);
}

fn attention(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, all_layers: bool) {
    let title =
        if all_layers { "attention".to_owned() } else { format!("attention, layer {}", scene.layer()) };
    let inner = pane(buf, area, scene, &title, &heads::note(scene, area.width), Some(2));
    heads::heads(buf, inner, scene, all_layers);
}

/// Strips of the steps, and what a step spends its time on.
fn time(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let phases_height = match area.height {
        0..7 => 0,
        7..11 => 1,
        _ => 3,
    };
    let (strips, bottom) = split_bottom(area, phases_height);
    timeline_pane(buf, strips, scene, 3, &SERIES);
    phases::breakdown(buf, bottom, scene);
}
