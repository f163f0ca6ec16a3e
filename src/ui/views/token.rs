//! Everything about the token under the cursor: the pane that the linked views share.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::event::{Origin, Position, Provenance, Tier};
use crate::state::{HeadFate, SeqState, Token, TokenCard};
use crate::ui::draw::{Pen, Scene, pane};
use crate::ui::number;
use crate::ui::text;
use crate::ui::theme::Role;

/// Columns of the labels on the left.
const LABEL: u16 = 9;

/// The pane; `index` is its place among the view's panes.
pub(super) fn card_pane(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, index: Option<usize>) {
    let Some((seq, position, card)) = selected(scene) else {
        let inner = pane(buf, area, scene, "token", "", index);
        Pen::new(buf, inner, scene.styles).put("no token yet", Role::Dim);
        return;
    };
    let title = format!("token {position}");
    let note = format!("of {} fed", seq.tokens.len());
    let inner = pane(buf, area, scene, &title, &note, index);
    let mut pen = Pen::new(buf, inner, scene.styles);
    identity(&mut pen, &seq.tokens[position as usize]);
    holders(&mut pen, scene, &card);
    fate_here(&mut pen, scene, &card);
    grid(&mut pen, scene, &card);
    readers(&mut pen, scene, &card);
}

/// The same in one line, for screens without room for a pane.
pub(in crate::ui) fn summary_line(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let Some((seq, position, card)) = selected(scene) else { return };
    let token = &seq.tokens[position as usize];
    let mut pen = Pen::new(buf, area, scene.styles);
    pen.put(&format!("{position} "), Role::Accent);
    pen.put("'", Role::Dim).foreign(&token.piece.lossy(), Role::Text).put("'", Role::Dim);
    pen.put(&format!(" held by {} of {} heads", card.held(), card.fates.len()), Role::Text);
    match fate_of_cursor(scene, &card) {
        Some(HeadFate::Evicted { step, merged: Some(merged), .. }) => {
            pen.dot().put(&format!("{merged} in step {step}"), Role::Merged);
        }
        Some(HeadFate::Evicted { step, reason, .. }) => {
            pen.dot().put(&format!("lost in step {step}: {}", reason.words()), Role::Bad);
        }
        _ => {}
    }
}

fn selected<'a>(scene: &Scene<'a>) -> Option<(&'a SeqState, Position, TokenCard)> {
    let (seq, position) = (scene.seq()?, scene.position()?);
    Some((seq, position, scene.state()?.token_card(seq.seq, position)?))
}

/// What the cursor's (layer, KV head) did with the token.
fn fate_of_cursor<'c>(scene: &Scene<'_>, card: &'c TokenCard) -> Option<&'c HeadFate> {
    let kv_heads = scene.run()?.model.kv_heads as usize;
    card.fates.get(scene.layer() * kv_heads + usize::from(scene.kv_head()))
}

fn label<'p, 'b, 's>(pen: &'p mut Pen<'b, 's>, words: &str) -> &'p mut Pen<'b, 's> {
    pen.put(words, Role::Dim).column(LABEL)
}

fn identity(pen: &mut Pen<'_, '_>, token: &Token) {
    let symbols = pen.styles().symbols();
    let origin = match token.origin {
        Origin::Prompt => ("prompt", Role::Text),
        Origin::Question => ("question", Role::Question),
        Origin::Turn => ("turn", Role::Question),
        Origin::Generated => ("generated", Role::Generated),
    };
    let words = text::safe(&token.piece.0, symbols);
    label(pen, "text").put("'", Role::Dim).put(&words, Role::Title).put("'", Role::Dim);
    pen.dot().put(&format!("id {}", token.id), Role::Text).newline();
    label(pen, "origin").put(origin.0, origin.1).put(&format!(", step {}", token.step), Role::Text);
    if let Some(logprob) = token.logprob {
        pen.dot().put("ln p ", Role::Dim);
        pen.figure(number::decimal(logprob.into(), symbols).trim(), Provenance::Measured);
    }
    pen.newline();
    label(pen, "drew").figure(number::percent(token.mass.into(), symbols).trim(), Provenance::Derived);
    pen.put(" of attention, mean ", Role::Dim);
    pen.figure(number::percent(token.heat.into(), symbols).trim(), Provenance::Derived);
    pen.newline();
}

fn holders(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, card: &TokenCard) {
    let (held, all) = (card.held(), card.fates.len());
    let role = match held {
        0 => Role::Bad,
        n if n < all => Role::Warn,
        _ => Role::Good,
    };
    label(pen, "held by").put(&format!("{held} of {all}"), role).put(" (layer, KV head)", Role::Dim);
    let hosts = |fate: &&HeadFate| matches!(fate, HeadFate::Resident { v_tier: Tier::Host, .. });
    let on_host = card.fates.iter().filter(hosts).count();
    if on_host > 0 {
        pen.dot().put(&format!("V of {on_host} on host"), Role::Host);
    } else if held > 0 && scene.run().is_some_and(|run| !run.settings.read.is_empty()) {
        pen.dot().put("all V on device", Role::Device);
    }
    pen.newline();
}

/// The cursor's own (layer, head): where the token is, or when and why it went.
fn fate_here(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, card: &TokenCard) {
    let Some(fate) = fate_of_cursor(scene, card) else { return };
    let symbols = scene.symbols();
    label(pen, &format!("L{} H{}", scene.layer(), scene.head()));
    match *fate {
        HeadFate::Resident { block, slot, v_tier } => {
            pen.put("resident", Role::Good).put(&format!(", block {block} slot {slot}"), Role::Text);
            pen.dot().put("V ", Role::Dim).put(v_tier.name(), crate::ui::theme::tier_role(v_tier)).newline();
        }
        HeadFate::Forgotten => {
            pen.put("lost", Role::Bad).put(", by a decision the log has forgotten", Role::Dim).newline();
        }
        HeadFate::Evicted { step, reason, score, cutoff, rank, of, margin, age, merged } => {
            match merged {
                Some(merged) => pen.put(&format!("{merged}, step {step}"), Role::Merged),
                None => pen.put(&format!("lost in step {step}"), Role::Bad),
            };
            pen.put(", ", Role::Dim);
            pen.figure(&format!("{age} tokens old"), Provenance::Derived).newline();
            let show = |x: f32| number::decimal(x.into(), symbols).trim().to_owned();
            label(pen, "");
            match (score, cutoff) {
                (Some(score), Some(cutoff)) => {
                    pen.put("score ", Role::Dim).figure(&show(score), Provenance::Measured);
                    pen.put(" below cutoff ", Role::Dim)
                        .figure(&show(cutoff), Provenance::Measured)
                        .newline();
                }
                _ => {
                    pen.put(reason.words(), Role::Text).newline();
                }
            }
            if let (Some(rank), Some(margin)) = (rank, margin) {
                label(pen, "margin").figure(&show(margin), Provenance::Derived);
                pen.put(", rank ", Role::Dim)
                    .figure(&format!("{rank} of {of}"), Provenance::Derived)
                    .newline();
            }
        }
    }
}

/// Fates of all (layer, KV head) pairs: one column per layer, one row per KV head.
fn grid(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, card: &TokenCard) {
    let Some(model) = scene.run().map(|run| &run.model) else { return };
    let (layers, kv_heads) = (model.layers as usize, model.kv_heads as usize);
    let rows = usize::from(pen.lines().saturating_sub(2)).min(kv_heads);
    if rows == 0 || layers == 0 {
        return;
    }
    let symbols = scene.symbols();
    let (here, lost, host, forgotten) = symbols.pick(('■', '×', '□', '?'), ('#', 'x', 'o', '?'));
    let merged = symbols.pick('»', '>');
    label(pen, "KV head").put("one column per layer: ", Role::Dim);
    pen.glyph(here, scene.styles[Role::Live]).put(" held ", Role::Dim);
    if scene.run().is_some_and(|run| !run.settings.read.is_empty()) {
        pen.glyph(host, scene.styles[Role::Host]).put(" V on host ", Role::Dim);
    }
    pen.glyph(lost, scene.styles[Role::Bad]).put(" lost", Role::Dim);
    if scene.run().is_some_and(|run| !run.settings.merge.is_empty()) {
        pen.put(" ", Role::Dim).glyph(merged, scene.styles[Role::Merged]).put(" merged", Role::Dim);
    }
    pen.newline();
    let first = usize::from(scene.kv_head()).saturating_sub(rows - 1);
    for head in first..first + rows {
        label(pen, &format!("{head:>6}"));
        for layer in 0..layers {
            let (glyph, role) = match card.fates.get(layer * kv_heads + head) {
                Some(HeadFate::Resident { v_tier: Tier::Host, .. }) => (host, Role::Host),
                Some(HeadFate::Resident { .. }) => (here, Role::Live),
                Some(HeadFate::Evicted { merged: Some(_), .. }) => (merged, Role::Merged),
                Some(HeadFate::Evicted { .. }) => (lost, Role::Bad),
                _ => (forgotten, Role::Dim),
            };
            let mut style = scene.styles[role];
            if layer == scene.layer() && head == usize::from(scene.kv_head()) {
                style = style.patch(scene.styles[Role::Cursor]);
            }
            pen.glyph(glyph, style);
            if layers <= 16 {
                pen.skip(1);
            }
        }
        if kv_heads > rows && head == first + rows - 1 {
            pen.put(&format!(" {rows} of {kv_heads} shown"), Role::Dim);
        }
        pen.newline();
    }
}

fn readers(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, card: &TokenCard) {
    if pen.lines() == 0 {
        return;
    }
    label(pen, "read by");
    if card.readers.is_empty() {
        let why = match scene.seq().and_then(|s| s.attention.as_ref()) {
            None => "no attention picture at this step",
            Some(_) => "no head in this step",
        };
        pen.put(why, Role::Dim);
        return;
    }
    pen.put(&format!("{} query heads, probability m", card.readers.len()), Role::Dim).newline().column(LABEL);
    for reader in &card.readers {
        let words = format!(
            "L{} H{} {}",
            reader.layer,
            reader.head,
            number::decimal(reader.p.into(), scene.symbols()).trim()
        );
        if usize::from(pen.room()) < words.len() {
            pen.newline().column(LABEL);
        }
        if pen.is_full() {
            return;
        }
        pen.put(&words, Role::Text).skip(14_u16.saturating_sub(words.len() as u16));
    }
}
