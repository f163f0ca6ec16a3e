//! The lines around the view: header, tabs, answer, hint, command, footer.

mod answer;
mod footer;
mod header;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::draw::Scene;
use crate::app::View;

/// Where everything goes on this screen.
pub(in crate::ui) struct Chrome {
    header: Rect,
    tabs: Rect,
    /// The view.
    pub(in crate::ui) body: Rect,
    answer: Rect,
    note: Rect,
    command: Rect,
    footer: Rect,
}

impl Chrome {
    /// Shares the rows out: the view keeps at least five while the lines around it give way, the least needed first.
    pub(in crate::ui) fn plan(area: Rect, scene: &Scene<'_>) -> Self {
        let overview = scene.app.view == View::Overview;
        let roomy = area.height >= 36;
        // (what it wants, from which height on), in the order in which they are given rows.
        let header = 1 + u16::from(area.height >= 16);
        let tabs = u16::from(area.height >= 12);
        let footer = u16::from(area.height >= 8);
        let answer = match answer::lines(scene) {
            0 => 0,
            n if overview || roomy => n.min(if roomy { 3 } else { 2 }),
            _ => 1,
        };
        let answer = if area.height >= 9 { answer.min(area.height / 6).max(1).min(answer) } else { 0 };
        let note = u16::from(area.height >= 14 && footer::has_note(scene));
        let command = u16::from(area.height >= 20 && footer::has_command(scene));
        let around = header + tabs + footer + answer + note + command;
        let body = area.height - around.min(area.height);
        let mut y = area.y;
        let mut take = |height: u16| {
            let rect = Rect { y, height, ..area };
            y += height;
            rect.intersection(area)
        };
        Self {
            header: take(header),
            tabs: take(tabs),
            body: take(body),
            answer: take(answer),
            note: take(note),
            command: take(command),
            footer: take(footer),
        }
    }

    /// Draws everything but the view.
    pub(in crate::ui) fn render(&self, buf: &mut Buffer, scene: &Scene<'_>) {
        header::render(buf, self.header, scene, self.tabs.is_empty());
        header::tabs(buf, self.tabs, scene);
        answer::render(buf, self.answer, scene);
        footer::note(buf, self.note, scene);
        footer::command(buf, self.command, scene);
        footer::keys(buf, self.footer, scene);
    }
}

/// The screens on which nothing but the state of things has room.
pub(in crate::ui) fn status_only(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    header::status_only(buf, area, scene);
    if area.height >= 2 {
        answer::short(buf, Rect { y: area.y + 1, height: 1, ..area }, scene);
    }
    if area.height >= 3 {
        super::views::token_line(buf, Rect { y: area.y + 2, height: 1, ..area }, scene);
    }
}
