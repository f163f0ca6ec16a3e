//! Why nobody is listed: what the policy would have to see before it takes anything.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::event::{Provenance, Stage};
use crate::ui::draw::{Pen, Scene};
use crate::ui::number;
use crate::ui::theme::Role;
use crate::ui::views::columns::{bar, key};

/// Columns of the gauge of residents against the budget.
const GAUGE: u16 = 24;

/// The reason in a few lines, the gauge towards the budget among them.
pub(super) fn why(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let mut pen = Pen::new(buf, area, scene.styles);
    pen.put("nothing was lost", Role::Good).newline();
    let Some(run) = scene.run() else { return };
    let prompt_tokens = scene.seq().map_or(run.prompt_tokens, |seq| seq.prompt_len(run));
    match scene.policy() {
        None => {
            pen.put("policy ", Role::Dim).foreign(&run.settings.policy, Role::Text).newline();
        }
        Some(policy) => match policy.slots(prompt_tokens) {
            None => {
                pen.put(&policy.to_string(), Role::Accent);
                pen.put(" keeps everything: no budget is set below the prompt", Role::Text).newline();
            }
            Some(slots) => {
                budget(&mut pen, scene, &policy.to_string(), slots);
                pen.put("it acts ", Role::Dim).wrapped(policy.entry().acts, Role::Dim, 2);
            }
        },
    }
    if scene.read_set().is_some() {
        pen.wrapped("the read set loses nothing: rows that were not read are in Traffic", Role::Pulled, 2);
    }
    let (tune, rerun) = (key(scene, "engine.params"), key(scene, "engine.rerun"));
    if scene.app.is_live() && !tune.is_empty() {
        pen.put(&format!("{tune} sets policy and budget, {rerun} runs the prompt again"), Role::Hint);
    }
}

fn budget(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, policy: &str, slots: u32) {
    let Some(seq) = scene.seq() else { return };
    let kv_heads = scene.run().map_or(1, |run| run.model.kv_heads.max(1) as usize);
    let fullest = seq.resident.iter().enumerate().max_by_key(|&(i, &n)| (n, std::cmp::Reverse(i)));
    let (lane, most) = fullest.map_or((0, 0), |(i, &n)| (i, n));
    pen.put(policy, Role::Accent);
    let words = match most > slots {
        false => " has not reached its budget",
        true if seq.stage == Stage::Prefill => " has not decided yet: the prompt is still being fed",
        true => " has not decided yet",
    };
    pen.put(words, Role::Text).newline();
    let share = f64::from(most) / f64::from(slots.max(1));
    let width = GAUGE.min(pen.room() / 3);
    bar(pen, share, width, scene.styles[Role::Live]);
    pen.skip(1).figure(&most.to_string(), Provenance::Measured);
    pen.put(
        &format!(" of {slots} slots in the fullest, L{} KV head {} ", lane / kv_heads, lane % kv_heads),
        Role::Dim,
    );
    pen.figure(number::percent(share, scene.symbols()).trim(), Provenance::Derived).newline();
}
