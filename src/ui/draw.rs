//! One frame: everything on the screen from the application's state and nothing else.
//!
//! [`draw`] fills a terminal's frame, [`render`] any buffer, so that headless pictures are the same pictures. The order
//! is fixed: header, tabs, view, answer, hint, footer, then the overlay on top. On a small screen the lines around the
//! view give way one by one, the view itself never does; see `Chrome::plan`.

mod pane;
mod pen;
mod scene;

#[cfg(test)]
pub(in crate::ui) mod samples;
#[cfg(test)]
mod tests;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

pub(in crate::ui) use pane::{pane, split_bottom, split_left, split_top};
pub(in crate::ui) use pen::Pen;
pub(in crate::ui) use scene::Scene;

use super::chrome::Chrome;
use super::layout::Breakpoint;
use super::theme::{Role, Styles};
use super::{chrome, overlays, views};
pub use crate::app::Viewport as Drawn;

use crate::app::App;

/// Draws one frame and says how it turned out, for [`App::viewport`].
pub fn draw(frame: &mut Frame<'_>, app: &App, styles: &Styles) -> Drawn {
    let area = frame.area();
    render(frame.buffer_mut(), area, app, styles)
}

/// Draws one frame into a buffer.
pub fn render(buf: &mut Buffer, area: Rect, app: &App, styles: &Styles) -> Drawn {
    let area = area.intersection(buf.area);
    if area.is_empty() {
        return Drawn::default();
    }
    buf.set_style(area, styles[Role::Screen]);
    let scene = Scene::new(app, styles, area);
    if scene.breakpoint == Breakpoint::Line {
        chrome::status_only(buf, area, &scene);
        return scene.into_viewport();
    }
    let plan = Chrome::plan(area, &scene);
    plan.render(buf, &scene);
    scene.note_rows(plan.body.height.saturating_sub(1));
    views::render(buf, plan.body, &scene);
    overlays::render(buf, area, &scene);
    scene.into_viewport()
}
