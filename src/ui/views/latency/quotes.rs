//! The figures users quote: first token, per token, end to end, speed, bytes, and what observing costs.

use hdrhistogram::Histogram as Hdr;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::Widget;

use super::QUOTES;
use crate::cache::KvDtype;
use crate::event::{Provenance, TierUse};
use crate::state::{Quote, State};
use crate::ui::draw::{Pen, Scene, pane, split_top};
use crate::ui::number;
use crate::ui::theme::Role;
use crate::ui::widgets::{Histogram, Mark};

/// Buckets per factor of two in the histogram of token times.
const BUCKETS_PER_OCTAVE: f64 = 8.0;
/// Columns of the names.
const NAME: u16 = 13;
/// Most lines of the histogram: a taller one says no more.
const HISTOGRAM: u16 = 16;
/// Lines of figures.
const LINES: u16 = 6;

pub(super) fn pane_of(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let Some(state) = scene.state() else { return };
    let inner = pane(buf, area, scene, "quotes", "engine time: pauses and pace left out", Some(QUOTES));
    let twin = state.twin.sum().is_some();
    let (figures, rest) = split_top(inner, LINES + u16::from(twin));
    let mut pen = Pen::new(buf, figures, scene.styles);
    let latency = &state.latency;
    line(&mut pen, scene, "first token", &latency.first_token, "sequences");
    line(&mut pen, scene, "per token", &latency.per_token, "tokens");
    line(&mut pen, scene, "end to end", &latency.end_to_end, "sequences");
    rates(&mut pen, scene, state);
    if twin {
        pen.put("twin", Role::Dim).column(NAME);
        crate::ui::views::twin::cost(&mut pen, scene);
    }
    if rest.height >= 5 {
        let rest = Rect { height: rest.height.min(HISTOGRAM), ..rest };
        let inner = pane(buf, rest, scene, "time per token m", "logarithmic axis", None);
        token_times(buf, inner, scene, &latency.per_token);
    }
}

/// Percentiles, or the one value there is.
fn line(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, name: &str, h: &Hdr<u64>, what: &str) {
    let quote = Quote::of(h);
    let time = |ns: u64| number::duration(ns, scene.symbols());
    pen.put(name, Role::Dim).column(NAME);
    match quote.count {
        0 => pen.put("not yet", Role::Dim),
        1 => pen.figure(&time(quote.max), Provenance::Measured),
        n => {
            let columns =
                [("p50 ", quote.p50), ("  p90 ", quote.p90), ("  p99 ", quote.p99), ("  max ", quote.max)];
            // The middle ones give way first.
            let kept = if pen.room() >= 70 { &[0, 1, 2, 3][..] } else { &[0, 2, 3][..] };
            for &i in kept {
                let (label, ns) = columns[i];
                pen.put(label, Role::Dim).put(&time(ns), Role::Text);
            }
            pen.put(" ", Role::Text)
                .figure("", Provenance::Measured)
                .put(&format!(" of {n} {what}"), Role::Dim)
        }
    };
    pen.newline();
}

fn rates(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, state: &State) {
    let symbols = scene.symbols();
    pen.put("speed", Role::Dim).column(NAME);
    match state.latency.tokens_per_s() {
        Some(speed) => {
            let figure = number::rate(speed, symbols);
            pen.figure(&format!("{} tokens/s", figure.trim().trim_end_matches("/s")), Provenance::Derived);
            pen.put(" in decode steps", Role::Dim)
        }
        None => pen.put("not yet", Role::Dim),
    };
    pen.newline().put("KV bytes", Role::Dim).column(NAME);
    let fed: usize = state.seqs.iter().map(|s| s.tokens.len()).sum();
    let allocated: u64 = state.tiers.iter().map(TierUse::allocated_bytes).sum();
    if fed > 0 {
        let per_token = allocated / fed as u64;
        pen.figure(&format!("{} per token fed", number::bytes(per_token).trim()), Provenance::Derived);
        let full = full_cache_bytes(state);
        pen.dot().put("all rows of one ", Role::Dim).figure(number::bytes(full).trim(), Provenance::Derived);
        let share = number::percent(per_token as f64 / full.max(1) as f64, symbols);
        pen.dot().figure(share.trim(), Provenance::Derived).put(" of it", Role::Dim);
    } else {
        pen.put("not yet", Role::Dim);
    }
    pen.newline().put("observing", Role::Dim).column(NAME);
    pen.figure(number::percent(state.latency.probe_overhead(), symbols).trim(), Provenance::Derived);
    pen.put(" of all steps, ", Role::Dim);
    pen.figure(number::duration(state.latency.probe_ns, symbols).trim(), Provenance::Measured);
    pen.put(" of ", Role::Dim);
    pen.figure(number::duration(state.latency.wall_ns, symbols).trim(), Provenance::Measured).newline();
}

/// K and V rows of one token over all layers and KV heads, as the pages hold them.
fn full_cache_bytes(state: &State) -> u64 {
    let model = &state.run.model;
    let dtype: KvDtype = state.run.settings.kv_dtype.parse().unwrap_or_default();
    let bytes = dtype.token_bytes(model.head_dim as usize, model.head_dim as usize);
    u64::from(model.layers) * u64::from(model.kv_heads) * bytes
}

/// How often a token took how long.
fn token_times(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, times: &Hdr<u64>) {
    if times.is_empty() {
        Pen::new(buf, area, scene.styles).put("no second token yet", Role::Dim);
        return;
    }
    let bucket = |ns: u64| ((ns.max(1) as f64).log2() * BUCKETS_PER_OCTAVE) as usize;
    let (first, last) = (bucket(times.min()), bucket(times.max()));
    let mut counts = vec![0_u64; last.saturating_sub(first) + 1];
    for value in times.iter_recorded() {
        let i = bucket(value.value_iterated_to()).clamp(first, last) - first;
        counts[i] = counts[i].saturating_add(value.count_at_value());
    }
    let at = |quantile| bucket(times.value_at_quantile(quantile)).clamp(first, last) - first;
    let marks = [
        Mark { label: "p50", bucket: at(0.5) },
        Mark { label: "p99", bucket: at(0.99) },
        Mark { label: "p90", bucket: at(0.9) },
    ];
    let symbols = scene.symbols();
    let label = |i: usize| {
        let ns = ((first + i) as f64 / BUCKETS_PER_OCTAVE).exp2() as u64;
        number::duration(ns, symbols).trim().to_owned()
    };
    (&Histogram::new(scene.styles, &counts).marks(&marks).bucket_label(&label)).render(area, buf);
}
