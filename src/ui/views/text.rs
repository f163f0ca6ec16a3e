//! The sequence's own text, each token drawn by what the cache did to it, or by the attention it draws.

use std::ops::Range;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::widgets::Widget;

use super::scale::Scaled;
use super::token;
use crate::app::View;
use crate::event::Origin;
use crate::state::{SeqState, Token};
use crate::ui::draw::{Pen, Scene, pane, split_bottom, split_left};
use crate::ui::text;
use crate::ui::theme::{Depth, Fate, Role, Styles, rgb};
use crate::ui::widgets::{TokenFlow, TokenLayout};

/// Tokens by which the laid out part of a long text moves along; three of them are laid out.
const WINDOW_STEP: usize = 1024;
/// Columns of the position at the start of each line.
const GUTTER: u16 = 7;

/// The view: text with the token's card beside it, or below it where the screen is narrow.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    if scene.app.zoomed {
        return match scene.app.pane {
            0 => text_pane(buf, area, scene, 0),
            _ => {
                token::card_pane(buf, area, scene, Some(1));
            }
        };
    }
    if area.width >= 96 {
        let card = (area.width * 2 / 5).clamp(40, 64);
        let (left, right) = split_left(area, area.width - card - 1);
        token::card_pane(buf, right, scene, Some(1));
        text_pane(buf, left, scene, 0);
    } else if area.height >= 14 {
        let (top, bottom) = split_bottom(area, (area.height / 2).clamp(6, 12));
        token::card_pane(buf, bottom, scene, Some(1));
        text_pane(buf, top, scene, 0);
    } else if area.height >= 5 {
        let (top, bottom) = split_bottom(area, 1);
        token::summary_line(buf, bottom, scene);
        text_pane(buf, top, scene, 0);
    } else {
        text_pane(buf, area, scene, 0);
    }
}

/// What the tokens' looks stand for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Fate,
    Heat,
}

impl Mode {
    /// Layout presets take turns in the Text view; elsewhere text shows fates.
    fn of(scene: &Scene<'_>) -> Self {
        if scene.app.view == View::Text && scene.app.preset % 2 == 1 { Self::Heat } else { Self::Fate }
    }
}

/// The text with its rule and legend, as a pane of any view.
pub(super) fn text_pane(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, index: usize) {
    let mode = Mode::of(scene);
    let note = match mode {
        Mode::Fate => String::new(),
        Mode::Heat => format!("{:?} scale {} ramp", scene.app.scale, scene.styles.ramp_name()).to_lowercase(),
    };
    let title = match mode {
        Mode::Fate => "text: fate",
        Mode::Heat => "text: attention received d",
    };
    let inner = pane(buf, area, scene, title, &note, Some(index));
    let Some(seq) = scene.seq() else {
        Pen::new(buf, inner, scene.styles).put("no token was fed yet", Role::Dim);
        return;
    };
    let (body, bottom) =
        if inner.height >= 5 { split_bottom(inner, 1) } else { (inner, Rect { height: 0, ..inner }) };
    match mode {
        Mode::Fate => fate_legend(buf, bottom, scene, seq),
        Mode::Heat => heat_legend(buf, bottom, scene),
    }
    flow_text(buf, body, scene, seq, mode);
}

/// Draws the lines around the cursor.
fn flow_text(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, seq: &SeqState, mode: Mode) {
    let gutter = if area.width >= 40 { GUTTER } else { 0 };
    let width = area.width - gutter;
    // Without colour a second row says in letters what a look alone would say; plain text has no looks at all.
    let per_line = if scene.styles.depth() == Depth::None && area.height >= 4 { 2 } else { 1 };
    let rows = usize::from(area.height / per_line);
    if width < 2 || rows == 0 || seq.tokens.is_empty() {
        return;
    }
    let at = scene.position().unwrap_or(0) as usize;
    let window = window(at, seq.tokens.len());
    let pending = seq.pending.as_ref().filter(|_| window.end == seq.tokens.len());
    let pieces = seq.tokens[window.clone()].iter().map(|t| &t.piece).chain(pending.map(|p| &p.piece));
    let layout = TokenLayout::new(pieces.map(|piece| piece.0.as_slice()), width, scene.symbols());
    let look = Look::new(scene, seq, mode);
    let style_of = |i: usize| look.of(seq.tokens.get(window.start + i), window.start + i, at);
    // The cursor stays in the middle once there is text on both sides of it; at the live edge it is at the bottom.
    let current = layout.line_of(at - window.start).unwrap_or(0);
    let first = current.saturating_sub(rows / 2).min(layout.lines().saturating_sub(rows));
    let (mut from, mut to, mut lines) = (None, 0, 0);
    for (row, line) in (first..layout.lines().min(first + rows)).enumerate() {
        let y = area.y + row as u16 * per_line;
        let place = Rect { x: area.x + gutter, y, width, height: 1 };
        (&TokenFlow::new(scene.styles, &layout, &style_of).first_line(line)).render(place, buf);
        if per_line == 2 {
            look.letters(
                buf,
                Rect { y: y + 1, ..place },
                &layout,
                line,
                &seq.tokens[window.clone()],
                window.start,
            );
        }
        let Some(token) = layout.token_at(0, line) else { continue };
        let position = window.start + token;
        if gutter > 0 {
            let label = Rect { x: area.x, y, width: gutter, height: 1 };
            Pen::new(buf, label, scene.styles).put(&format!("{position:>5}"), Role::Dim);
        }
        from = from.or(Some(position));
        (to, lines) = (position, lines + 1);
    }
    if let Some(from) = from.filter(|_| lines > 1) {
        scene.note_tokens_per_line(((to - from) / (lines - 1)).max(1) as u16);
    }
}

/// Tokens that are laid out for a cursor at `at`: enough for any screen, however long the sequence is. The window moves
/// in large steps, so that lines stay where they are while the cursor moves.
fn window(at: usize, len: usize) -> Range<usize> {
    let start = (at / WINDOW_STEP).saturating_sub(1) * WINDOW_STEP;
    start..len.min(start + 3 * WINDOW_STEP)
}

/// How a token looks.
struct Look<'a> {
    styles: &'a Styles,
    mode: Mode,
    lanes: u32,
    reads: bool,
    sinks: u32,
    heat: Scaled,
}

impl<'a> Look<'a> {
    fn new(scene: &Scene<'a>, seq: &SeqState, mode: Mode) -> Self {
        let heat = match mode {
            Mode::Heat => Scaled::new(scene.app.scale, seq.tokens.iter().map(|t| t.heat)),
            Mode::Fate => Scaled::new(scene.app.scale, std::iter::empty()),
        };
        Self {
            styles: scene.styles,
            mode,
            lanes: scene.state().map_or(1, |s| s.lanes() as u32),
            reads: scene.run().is_some_and(|run| !run.settings.read.is_empty()),
            sinks: sinks(scene),
            heat,
        }
    }

    fn fate(&self, token: &Token, position: usize) -> Fate {
        if token.lost >= self.lanes {
            Fate::Evicted
        } else if token.lost > 0 {
            Fate::PartlyEvicted
        } else if self.reads && token.readers > 0 {
            Fate::Pulled
        } else if token.origin == Origin::Generated {
            Fate::Generated
        } else if matches!(token.origin, Origin::Question | Origin::Turn) {
            Fate::Question
        } else if (position as u32) < self.sinks {
            Fate::Sink
        } else {
            Fate::Resident
        }
    }

    fn style(&self, token: &Token, position: usize) -> Style {
        match self.mode {
            Mode::Heat => {
                let heat = self.styles.heat(self.heat.at(token.heat));
                if self.styles.depth() == Depth::None {
                    self.styles[Role::Text]
                } else {
                    Style::new().bg(heat.color).fg(contrast(heat.color))
                }
            }
            Mode::Fate => {
                let fate = self.fate(token, position);
                let style = self.styles[fate.role()];
                // Lost in one head stands out from lost in most; without colour only the letters below tell.
                if fate == Fate::PartlyEvicted && token.lost * 2 <= self.lanes && style.fg.is_some() {
                    style.remove_modifier(Modifier::DIM)
                } else {
                    style
                }
            }
        }
    }

    /// The look of a token or, behind the last one, of the token that was drawn but not fed yet.
    fn of(&self, token: Option<&Token>, position: usize, cursor: usize) -> Style {
        let Some(token) = token else {
            return self.styles[Role::Generated].add_modifier(Modifier::ITALIC | Modifier::UNDERLINED);
        };
        let style = self.style(token, position);
        if position == cursor { style.patch(self.styles[Role::Cursor]) } else { style }
    }

    /// A row below a line of text: a letter at the start of each token that is not simply resident, or its shade.
    fn letters(
        &self,
        buf: &mut Buffer,
        area: Rect,
        layout: &TokenLayout,
        line: usize,
        tokens: &[Token],
        first: usize,
    ) {
        let mut before = None;
        for column in 0..area.width {
            let Some(i) = layout.token_at(column, line) else { continue };
            let is_start = before.replace(i) != Some(i);
            let Some(token) = tokens.get(i) else { continue };
            let glyph = match self.mode {
                Mode::Heat => self.styles.symbols().shade(self.heat.at(token.heat)),
                Mode::Fate => match self.fate(token, first + i) {
                    Fate::Resident => continue,
                    fate if is_start => fate.letter(),
                    _ => continue,
                },
            };
            Pen::new(buf, area, self.styles).skip(column).glyph(glyph, self.styles[Role::Dim]);
        }
    }
}

/// Black or white, whichever is read more easily on a colour; the weights are those of perceived brightness.
fn contrast(ground: Color) -> Color {
    match rgb(ground) {
        Some([r, g, b]) if 299 * u32::from(r) + 587 * u32::from(g) + 114 * u32::from(b) > 140_000 => {
            Color::Black
        }
        Some(_) => Color::White,
        None => Color::Reset,
    }
}

/// Sinks the policy protects, by its own parameter.
fn sinks(scene: &Scene<'_>) -> u32 {
    let policy = scene.policy();
    let value = policy.as_ref().and_then(|p| p.spec().get("sinks"));
    value.and_then(|v| v.to_string().parse().ok()).unwrap_or(0)
}

fn fate_legend(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, seq: &SeqState) {
    let lanes = scene.state().map_or(1, |s| s.lanes() as u32);
    let lost = seq.tokens.iter().filter(|t| t.lost >= lanes).count();
    let part = seq.tokens.iter().filter(|t| t.lost > 0 && t.lost < lanes).count();
    let whole = seq.tokens.len() - lost - part;
    let reads = scene.run().is_some_and(|run| !run.settings.read.is_empty());
    let read = seq.tokens.iter().filter(|t| t.readers > 0).count();
    let letters = scene.styles.depth() == Depth::None;
    let mut pen = Pen::new(buf, area, scene.styles);
    let mut item = |fate: Fate, words: &str, count: Option<usize>| {
        let count = count.map_or_else(String::new, |n| format!(" {n}"));
        if usize::from(pen.room()) < text::width(words) + count.len() + 5 {
            return;
        }
        pen.dot();
        if letters && fate != Fate::Resident {
            pen.put(&format!("{}=", fate.letter()), Role::Dim);
        }
        pen.put(words, fate.role()).put(&count, Role::Dim);
    };
    item(Fate::Resident, "resident", Some(whole));
    item(Fate::PartlyEvicted, "lost in some heads", Some(part));
    item(Fate::Evicted, "lost everywhere", Some(lost));
    if reads {
        item(Fate::Pulled, "read this step", Some(read));
    }
    if sinks(scene) > 0 {
        item(Fate::Sink, "sink", None);
    }
    item(Fate::Generated, "generated", None);
    if seq.tokens.iter().any(|t| matches!(t.origin, Origin::Question | Origin::Turn)) {
        item(Fate::Question, "question", None);
    }
}

fn heat_legend(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let mut pen = Pen::new(buf, area, scene.styles);
    pen.put("least ", Role::Dim);
    for i in 0..16 {
        let heat = scene.styles.heat(i as f32 / 15.0);
        let glyph = if scene.styles.heat_in_half_blocks() { scene.symbols().full() } else { heat.glyph };
        pen.glyph(glyph, Style::new().fg(heat.color));
    }
    pen.put(" most attention received, running mean over all query heads", Role::Dim);
}
