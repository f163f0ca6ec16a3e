//! What happened, line by line.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::app::{LogKind, LogLine};
use crate::ui::draw::{Pen, Scene, pane};
use crate::ui::number;
use crate::ui::theme::Role;

/// One line per happening: step, time since the run began, kind, words.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let log = &scene.app.log.lines;
    let inner =
        pane(buf, area, scene, "log", &super::filter_note(scene, log.len(), log.total(), "lines"), Some(0));
    let (inner, heading) = super::list_heading(inner);
    if !heading.is_empty() {
        let mut pen = Pen::new(buf, heading, scene.styles);
        pen.put("    step      time m  kind     what happened", Role::Dim);
    }
    if log.is_empty() {
        let why = if log.total() == 0 { "nothing has happened yet" } else { "no line matches the filter" };
        Pen::new(buf, inner, scene.styles).put(why, Role::Dim);
    }
    scene.note_rows(inner.height);
    let first = super::first_row(log.selected, log.len(), inner.height);
    for (i, line) in log.rows_from(first).take(usize::from(inner.height)).enumerate() {
        let row = Rect { y: inner.y + i as u16, height: 1, ..inner };
        draw_line(buf, row, scene, line);
        if first + i == log.selected {
            buf.set_style(row, scene.styles[Role::Selection]);
            super::select_mark(buf, row, scene);
        }
    }
}

fn draw_line(buf: &mut Buffer, row: Rect, scene: &Scene<'_>, line: &LogLine) {
    let role = match line.kind {
        LogKind::Run | LogKind::Finish => Role::Title,
        LogKind::Prefill => Role::Dim,
        LogKind::Token => Role::Generated,
        LogKind::Evict => Role::PartlyEvicted,
        LogKind::Tune => Role::Accent,
        LogKind::Gap => Role::Warn,
    };
    let words = match line.kind {
        LogKind::Gap => Role::Warn,
        LogKind::Run | LogKind::Finish => Role::Title,
        _ => Role::Text,
    };
    let mut pen = Pen::new(buf, row, scene.styles);
    if row.width >= 50 {
        pen.put(&format!("{:>8}", line.step), Role::Text);
        pen.put(&format!("  {}", number::duration(line.at_ns, scene.symbols())), Role::Dim).skip(2);
    } else {
        pen.put(&format!("{:>6} ", line.step), Role::Text);
    }
    pen.put(&format!("{:<8} ", line.kind.name()), role).foreign(&line.text, words);
}
