//! What lies on top of the view: help, parameters, editors, lists, questions.

mod edit;
mod help;
mod keys;
mod list;
mod message;
mod params;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::Widget;

use super::draw::Scene;
use super::widgets::Popup;
use crate::app::Overlay;

/// Draws the stack from the bottom up, then the keys that go on from a chord begun.
pub(in crate::ui) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    for overlay in &scene.app.overlays {
        match overlay {
            Overlay::Help { scroll, .. } => help::render(buf, area, scene, overlay, *scroll),
            Overlay::Params => params::render(buf, area, scene),
            Overlay::Filter { line, .. } => edit::filter(buf, area, scene, line),
            Overlay::Prompt { line } => edit::prompt(buf, area, scene, line),
            Overlay::Turn { line, error, sent } => {
                edit::turn(buf, area, scene, line, error.as_deref(), *sent);
            }
            Overlay::Themes { selected, .. } => list::themes(buf, area, scene, *selected),
            Overlay::Export { selected } => list::exports(buf, area, scene, *selected),
            Overlay::Bookmarks { selected } => list::bookmarks(buf, area, scene, *selected),
            Overlay::ConfirmQuit => message::confirm_quit(buf, area, scene),
            Overlay::Fault { message } => message::fault(buf, area, scene, message),
        }
    }
    keys::render(buf, area, scene);
}

/// Draws an empty pop-up and returns the room in it.
fn popup(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, title: &str, note: &str, size: (u16, u16)) -> Rect {
    let popup = Popup::new(scene.styles, title, size.0, size.1).note(note);
    (&popup).render(area, buf);
    popup.inner(area)
}
