//! All commands and their keys, narrowed down by typing.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::{edit, popup};
use crate::app::{Command, Context, Overlay};
use crate::event::Provenance;
use crate::ui::draw::{Pen, Scene, split_bottom, split_top};
use crate::ui::theme::Role;

/// Columns of the keys.
const KEYS: u16 = 22;

/// The list, a line to type into, and what the marks behind figures mean.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, overlay: &Overlay, scroll: usize) {
    let rows = scene.app.help_rows();
    let size = (area.width.saturating_sub(6).min(110), area.height.saturating_sub(4));
    let note = format!("{} commands", rows.len());
    let inner = popup(buf, area, scene, "help", &note, size);
    let (search, rest) = split_top(inner, 1);
    let mut pen = Pen::new(buf, search, scene.styles);
    pen.put("search ", Role::Dim);
    let (x, y) = pen.at();
    if let Some(line) = overlay.line() {
        edit::field(buf, Rect { x, y, width: search.right().saturating_sub(x), height: 1 }, scene, line);
    }
    let (list, marks) = split_bottom(rest, if rest.height >= 8 { 2 } else { 0 });
    commands(&mut Pen::new(buf, list, scene.styles), &rows, scroll.min(rows.len().saturating_sub(1)));
    provenance(&mut Pen::new(buf, marks, scene.styles), scene);
}

fn commands(pen: &mut Pen<'_, '_>, rows: &[(&'static Command, String)], scroll: usize) {
    if rows.is_empty() {
        pen.put("no command is about that", Role::Dim);
    }
    let mut context: Option<Context> = None;
    for (command, keys) in rows.iter().skip(scroll) {
        if pen.is_full() {
            return;
        }
        if context.replace(command.context) != Some(command.context) {
            pen.put(command.context.words(), Role::Title).newline();
        }
        let narrow = pen.room() < 60;
        pen.put(keys, Role::Key).put(" ", Role::Text);
        let (x, y) = pen.at();
        pen.column(if narrow { 12 } else { KEYS });
        // A command with many chords pushes its words to the right, it does not lose them.
        if pen.at() < (x, y) {
            pen.column(x);
        }
        pen.put(if narrow { command.title } else { command.doc }, Role::Text).newline();
    }
}

fn provenance(pen: &mut Pen<'_, '_>, scene: &Scene<'_>) {
    let words = [
        (Provenance::Measured, "clocked or counted in this run"),
        (Provenance::Sampled, "on some steps only"),
        (Provenance::Derived, "computed from measured figures"),
        (Provenance::Modelled, "assumes a link speed or the like"),
    ];
    pen.newline();
    for (provenance, what) in words {
        let mark = scene.styles.mark(provenance);
        pen.styled(&mark.content, mark.style);
        pen.put(&format!(" {}: {what}  ", provenance.word()), Role::Dim);
    }
}
