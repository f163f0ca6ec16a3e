//! Pages in codes: what they are, and what it cost, by layer and K channel.

use crate::cache::{KvDtype, Nuq};
use crate::event::attention::dequantise;
use crate::event::{CodingError, Provenance};
use crate::state::CodedLayer;
use crate::ui::draw::{Pen, Scene};
use crate::ui::number;
use crate::ui::theme::Role;

use super::fact;

/// Least columns in which channels are drawn.
const MIN_CHANNELS: u16 = 8;

/// The page type where it alters state; nothing for plain pages.
pub(super) fn render(pen: &mut Pen<'_, '_>, scene: &Scene<'_>) {
    let Some(spelled) = scene.run().map(|run| &run.settings.kv_dtype) else { return };
    let Some(dtype) = spelled.parse::<KvDtype>().ok().filter(|dtype| dtype.is_coded()) else { return };
    pen.newline();
    pen.put(&format!("{dtype} pages"), Role::Warn)
        .put("  nothing is lost, values are altered", Role::Dim)
        .newline();
    rule(pen, dtype);
    let Some(state) = scene.state().filter(|s| !s.coding.layers.is_empty()) else {
        pen.put("no row is in codes yet", Role::Dim).newline();
        return;
    };
    pen.put("layer  relative error: keys, values; by K channel", Role::Dim).newline();
    let layers = &state.coding.layers;
    let worst = layers.iter().flat_map(|l| &l.k_channels).copied().max().unwrap_or(0);
    let rows = usize::from(pen.lines()).min(layers.len());
    let first = scene.layer().saturating_sub(rows / 2).min(layers.len() - rows);
    for (i, layer) in layers.iter().enumerate().skip(first).take(rows) {
        pen.put(&format!("{i:>5}  "), if i == scene.layer() { Role::Accent } else { Role::Dim });
        error(pen, &layer.k);
        error(pen, &layer.v);
        channels(pen, layer, dequantise(worst));
        pen.newline();
    }
}

/// How rows go into codes, and where that comes from.
fn rule(pen: &mut Pen<'_, '_>, dtype: KvDtype) {
    match dtype {
        KvDtype::Kivi { bits, residual } => {
            let rule = format!(
                "Keys go into {bits}-bit codes per channel, {residual} tokens at a time; values per token in groups of \
                 32 channels, all but the newest {residual}. A chunk of the prompt reads itself exactly."
            );
            pen.wrapped(&rule, Role::Text, 0);
            fact(pen, "source", "KIVI, arXiv 2402.02750");
            fact(
                pen,
                "differs",
                "scales and zeros are f16, rounded so that no value falls outside its codes",
            );
        }
        KvDtype::Nuq(nuq @ Nuq { bits, first, calibrate, .. }) => {
            let rule = format!(
                "Keys before RoPE per channel, values per token: the nearest of {} points of the layer's codebook. {}% \
                 are outliers, kept as f16; tokens before position {first} stay exact. Thresholds and codebooks are \
                 made of the prompt, at most {calibrate} tokens; until then all rows are exact.",
                1 << bits,
                nuq.outlier_percent(),
            );
            pen.wrapped(&rule, Role::Text, 0);
            fact(pen, "source", "KVQuant, arXiv 2401.18079");
            fact(
                pen,
                "differs",
                "calibrated on this run, without Fisher weights; k-means from quantiles; no Q-Norm, no cap on outliers",
            );
        }
        _ => {
            pen.wrapped("Each row of K and V goes into 8-bit codes with a scale of its own.", Role::Text, 0);
            fact(pen, "source", "own definition");
        }
    }
}

fn error(pen: &mut Pen<'_, '_>, error: &CodingError) {
    let symbols = pen.styles().symbols();
    match error.relative() {
        Some(share) => pen.figure(&number::percent(share, symbols), Provenance::Measured),
        None => pen.put(&number::missing(number::PERCENT_WIDTH, symbols), Role::Dim).skip(2),
    };
    pen.skip(2);
}

/// The channels as bars, the worst of a column's where they are more than columns.
fn channels(pen: &mut Pen<'_, '_>, layer: &CodedLayer, worst: f32) {
    let room = usize::from(pen.room());
    if room < usize::from(MIN_CHANNELS) || layer.k_channels.is_empty() {
        return;
    }
    let bars = pen.styles().symbols().bars();
    let columns: String = layer
        .k_channels
        .chunks(layer.k_channels.len().div_ceil(room))
        .filter_map(|channels| channels.iter().max())
        .map(|&cell| {
            let share = dequantise(cell) / worst.max(f32::MIN_POSITIVE);
            bars[((share * bars.len() as f32) as usize).min(bars.len() - 1)]
        })
        .collect();
    pen.put(&columns, Role::Measured);
}
