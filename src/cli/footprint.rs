//! `kvista inspect MODEL`: what the KV cache of a model weighs, counted from its `config.json`.

use std::path::Path;

use serde_json::json;

use super::Failure;
use super::args::InspectArgs;
use super::facts::say;
use super::json::print_facts;
use crate::cache::KvDtype;
use crate::model::{Footprint, Sharing};
use crate::ui::number;

/// Contexts shown where the person names none, as far as the model reaches, and the model's own.
const CONTEXTS: [u64; 4] = [1 << 10, 4 << 10, 32 << 10, 128 << 10];
/// Shares of the tokens that budgets keep.
const BUDGETS: [f64; 4] = [1.0, 0.5, 0.25, 0.125];
const SHARINGS: [Sharing; 4] = [Sharing::Mha, Sharing::Gqa, Sharing::Mqa, Sharing::Mla];

/// Cells of a line's label.
const LABEL: usize = 30;

/// Longest `config.json` read.
const MOST_BYTES: u64 = 16 << 20;

/// Prints the facts of the model whose configuration lies at `file`; `name` is what the person called it.
pub(super) fn print(file: &Path, args: &InspectArgs) -> Result<(), Failure> {
    let path = file.display().to_string();
    let meta = std::fs::metadata(file).map_err(|e| Failure::Input(format!("{path}: cannot be read: {e}")))?;
    if meta.len() > MOST_BYTES {
        return Err(Failure::Input(format!("{path}: longer than 16 MiB, which no config.json should be")));
    }
    let bytes = std::fs::read(file).map_err(|e| Failure::Input(format!("{path}: cannot be read: {e}")))?;
    let footprint = Footprint::parse(&path, &bytes).map_err(Failure::input)?;
    print_footprint(&args.what, &footprint, args)
}

/// Prints what is counted in `footprint`.
pub(super) fn print_footprint(name: &str, footprint: &Footprint, args: &InspectArgs) -> Result<(), Failure> {
    let contexts = contexts(footprint, args);
    let batch = args.batch.get();
    if args.json {
        return print_facts(&facts(name, footprint, &contexts, u64::from(batch)));
    }
    say(&lines(name, footprint, &contexts, u64::from(batch)))
}

fn contexts(footprint: &Footprint, args: &InspectArgs) -> Vec<u64> {
    if !args.context.is_empty() {
        return args.context.iter().map(|c| u64::from(c.get())).collect();
    }
    let most = footprint.context.unwrap_or(u64::MAX);
    let mut contexts: Vec<u64> = CONTEXTS.into_iter().filter(|&c| c < most).collect();
    contexts.extend(footprint.context);
    contexts
}

fn pair(dtype: KvDtype) -> impl Fn(u32, u32) -> u64 + Copy {
    move |key, value| dtype.token_bytes(key as usize, value as usize)
}

fn dtypes() -> impl Iterator<Item = KvDtype> {
    KvDtype::NAMES.into_iter().map(|name| name.parse().expect("its own names are read"))
}

/// Whether this page type can hold the model's rows.
fn fits(dtype: KvDtype, footprint: &Footprint) -> bool {
    let holds = |size: u32| size == 0 || dtype.check(dtype.usual_block_size(), size as usize).is_ok();
    footprint.groups.iter().all(|g| holds(g.key_size) && holds(g.value_size))
}

fn facts(name: &str, f: &Footprint, contexts: &[u64], batch: u64) -> serde_json::Value {
    let at = |f: &Footprint, dtype: KvDtype, share: f64| -> Vec<_> {
        contexts.iter().map(|&c| batch.saturating_mul(f.bytes_at(c, share, pair(dtype)))).collect()
    };
    let sharings = SHARINGS.map(|sharing| {
        let shared = f.shared_as(sharing);
        json!({
            "sharing": sharing.name(), "own": sharing == f.sharing,
            "bytes_per_token": shared.bytes_per_token(pair(KvDtype::F16)), "bytes": at(&shared, KvDtype::F16, 1.0),
        })
    });
    let pages = dtypes().filter(|&d| fits(d, f)).map(|dtype| {
        json!({
            "dtype": dtype.name(), "bytes_per_token": f.bytes_per_token(pair(dtype)), "assumes": assumes(dtype),
            "budgets": BUDGETS.map(|share| json!({ "share": share, "bytes": at(f, dtype, share) })),
        })
    });
    json!({
        "model": name, "footprint": f, "provenance": "derived", "batch": batch, "contexts": contexts,
        "sharings_f16": sharings, "pages": pages.collect::<Vec<_>>(),
        "literature": literature(f),
    })
}

fn lines(name: &str, f: &Footprint, contexts: &[u64], batch: u64) -> Vec<String> {
    let short = |bytes: u64| number::bytes(bytes).trim().to_owned();
    let mut lines = vec![format!(
        "{name}: {}, {} layers, {} query heads of {} numbers, {}{}",
        f.family,
        f.layers,
        f.heads,
        f.head_size,
        own(f),
        f.context.map(|c| format!(", context {c}")).unwrap_or_default()
    )];
    for g in f.groups.iter().filter(|g| f.groups.len() > 1 || g.window.is_some()) {
        let window = g.window.map(|w| format!(", the last {w} tokens only")).unwrap_or_default();
        let which =
            if f.windows.is_empty() { String::new() } else { format!(": {}", layers_of(f, g.window)) };
        lines.push(format!(
            "  {} layers with {} KV heads of {} numbers{window}{which}",
            g.layers, g.kv_heads, g.key_size
        ));
    }
    lines.extend(f.notes.iter().map(|note| format!("  {note}")));
    let times = if batch == 1 { "one sequence".into() } else { format!("{batch} sequences") };
    lines.push(format!(
        "KV cache of {times} (derived: layers x KV heads x (K row + V row), windows respected)"
    ));
    let head = |what: &str| {
        let contexts = contexts.iter().map(|c| format!("at {c}"));
        cells(what, std::iter::once("per token".to_owned()).chain(contexts))
    };
    let line = |what: String, f: &Footprint, dtype: KvDtype, share: f64| {
        let per_token = if share == 1.0 { short(f.bytes_per_token(pair(dtype))) } else { String::new() };
        let at = contexts.iter().map(|&c| short(batch.saturating_mul(f.bytes_at(c, share, pair(dtype)))));
        cells(&what, std::iter::once(per_token).chain(at))
    };
    lines.push(head("sharing, f16 pages"));
    for sharing in SHARINGS {
        let shared = f.shared_as(sharing);
        let what = if sharing == f.sharing {
            format!("{} (its own)", own(f))
        } else {
            format!("as {}", own(&shared))
        };
        lines.push(line(what, &shared, KvDtype::F16, 1.0));
    }
    for dtype in dtypes() {
        if !fits(dtype, f) {
            lines.push(format!("{} pages: rows of this model do not go into its groups", dtype.name()));
            continue;
        }
        lines.push(head(&format!("{} pages, by budget", dtype.name())));
        lines.extend(assumes(dtype).map(|what| format!("  {what}")));
        for share in BUDGETS {
            lines.push(line(format!("{}%", share * 100.0), f, dtype, share));
        }
    }
    lines.extend(literature(f).map(str::to_owned));
    lines
}

/// The layers that look at so many tokens, in runs: `0-4, 6-10`.
fn layers_of(f: &Footprint, window: Option<u64>) -> String {
    let mine = |&w: &u32| Some(u64::from(w)).filter(|&w| w > 0) == window;
    let mut first = 0;
    let runs = f.windows.chunk_by(|a, b| mine(a) == mine(b)).filter_map(|run| {
        let (from, to) = (first, first + run.len() - 1);
        first = to + 1;
        mine(&run[0]).then(|| if from == to { from.to_string() } else { format!("{from}-{to}") })
    });
    runs.collect::<Vec<_>>().join(", ")
}

/// What the bytes of a page type take for granted.
fn assumes(dtype: KvDtype) -> Option<String> {
    let KvDtype::Nuq(nuq) = dtype else { return None };
    Some(format!(
        "{}% of the elements are outliers of 4 bytes (configured: outliers={}); calibrated on the run's own prompt, unlike \
         KVQuant's; not counted: {} exact tokens at the start, thresholds and codebooks once per sequence",
        nuq.outlier_percent(),
        nuq.outliers(),
        nuq.first,
    ))
}

/// A label and cells, each in its column.
fn cells(label: &str, cells: impl Iterator<Item = String>) -> String {
    let mut line = format!("{label:<LABEL$}");
    for cell in cells {
        line.push_str(&" ".repeat(12_usize.saturating_sub(cell.chars().count())));
        line.push_str(&cell);
    }
    line
}

/// How keys and values are shared, with the heads.
fn own(f: &Footprint) -> String {
    let name = f.sharing.name();
    match (f.sharing, f.groups.first()) {
        (Sharing::Gqa, Some(g)) if f.groups.iter().all(|other| other.kv_heads == g.kv_heads) => {
            format!("{name} with {} KV heads", g.kv_heads)
        }
        (Sharing::Mla, Some(g)) => format!("{name} of {} numbers", g.key_size),
        _ => name.into(),
    }
}

/// What is often quoted of this shape and is another's.
fn literature(f: &Footprint) -> Option<&'static str> {
    let kv_heads = f.groups.first().map(|g| g.kv_heads);
    ((f.layers, f.heads, f.head_size, kv_heads) == (80, 64, 128, Some(8))).then_some(
        "The literature's '0.5 to 0.125 MB per token by GQA' for 70B is a shape of 32 layers and 32 heads with 8 KV heads; \
         80 layers and 64 heads have 2.5 MiB as MHA and 320 KiB with 8 KV heads (f16).",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_told_by_layer_and_bound_the_bytes() {
        let json = br#"{"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 1152,
            "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1,
            "sliding_window": 512, "max_position_embeddings": 32768}}"#;
        let footprint = Footprint::parse("config.json", json).unwrap();
        let text = lines("gemma-3-1b", &footprint, &[1 << 15], 1).join("\n");
        for part in [
            "gemma-3-1b: gemma3, 26 layers, 4 query heads of 256 numbers, MQA, context 32768",
            "  4 layers with 1 KV heads of 256 numbers: 5, 11, 17, 23",
            "  22 layers with 1 KV heads of 256 numbers, the last 512 tokens only: 0-4, 6-10, 12-16, 18-22, 24-25",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let row_bytes = 2 * 256 * 2;
        assert_eq!(
            footprint.bytes_at(1 << 15, 1.0, pair(KvDtype::F16)),
            (4 * (1 << 15) + 22 * 512) * row_bytes
        );
    }
}
