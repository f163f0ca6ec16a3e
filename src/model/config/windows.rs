//! Which layers look at a window, and how far.

use super::MAX_CONTEXT;
use super::family::Family;
use super::fields::{Fields, brief};
use crate::model::Result;

/// Which layers of a model with a window use it, where the configuration does not name each layer's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum Pattern {
    None,
    Every,
    /// From `max_window_layers` on, if `use_sliding_window` says so.
    Upper,
    /// All but every so many-th.
    AllBut(usize),
}

impl Pattern {
    pub(in crate::model) const fn of(family: Family) -> Self {
        match family {
            Family::Llama | Family::Gemma => Self::None,
            Family::Mistral | Family::Phi3 => Self::Every,
            Family::Qwen2 | Family::Qwen3 => Self::Upper,
            Family::Gemma2 => Self::AllBut(2),
            Family::Gemma3 => Self::AllBut(6),
        }
    }

    /// Of a family that is not known: a window is taken at its word.
    pub(in crate::model) fn unknown(fields: &Fields<'_>) -> Self {
        if fields.get("use_sliding_window").is_some() { Self::Upper } else { Self::Every }
    }
}

/// Positions that a query sees, its own included, per layer; 0 where it sees all. Empty where no layer has a window.
///
/// Hugging Face's Mistral would give a file without `sliding_window` one of 4096; files that leave it out belong to models
/// that have none, and are read so.
pub(in crate::model) fn windows(fields: &Fields<'_>, pattern: Pattern, layers: usize) -> Result<Vec<u32>> {
    let usual = if matches!(pattern, Pattern::AllBut(_)) { Some(4096) } else { None };
    let size = fields.optional_size("sliding_window", MAX_CONTEXT)?;
    let is_on = pattern != Pattern::Upper || fields.flag("use_sliding_window", false)?;
    let size = if fields.has("sliding_window") { size } else { usual };
    let (Some(size), true) = (size.filter(|_| pattern != Pattern::None), is_on) else {
        return Ok(Vec::new());
    };
    let kinds = layer_kinds(fields, layers)?;
    let every = match pattern {
        Pattern::AllBut(usual) => match fields.optional_size("sliding_window_pattern", 1 << 12)? {
            Some(every) => every,
            None => fields.optional_size("_sliding_window_pattern", 1 << 12)?.unwrap_or(usual),
        },
        _ => 1,
    };
    let first = match pattern {
        Pattern::Upper => fields.get("max_window_layers").map_or(Ok(28), |value| {
            super::fields::integer(value)
                .map(|first| first as usize)
                .ok_or_else(|| fields.error(format!("max_window_layers {} is not a count", brief(value))))
        })?,
        _ => 0,
    };
    let slides = |layer: usize| match (&kinds, pattern) {
        (Some(kinds), _) => kinds[layer],
        (None, Pattern::AllBut(_)) => !(layer + 1).is_multiple_of(every),
        (None, _) => layer >= first,
    };
    let windows: Vec<u32> = (0..layers).map(|layer| if slides(layer) { size as u32 } else { 0 }).collect();
    Ok(if windows.iter().any(|&window| window > 0) { windows } else { Vec::new() })
}

/// Per layer whether `layer_types` says that it slides.
fn layer_kinds(fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(value) = fields.get("layer_types") else { return Ok(None) };
    let Some(list) = value.as_array().filter(|list| list.len() == layers) else {
        return Err(fields.error(format!("layer_types {} does not name the {layers} layers", brief(value))));
    };
    Ok(Some(list.iter().map(|kind| kind == "sliding_attention").collect()))
}

/// Refuses layers that attend otherwise than to everything or to a window.
pub(super) fn refuse_other_kinds(fields: &Fields<'_>) -> Result<()> {
    let kinds = fields.get("layer_types").and_then(serde_json::Value::as_array);
    match kinds.into_iter().flatten().find(|kind| *kind != "sliding_attention" && *kind != "full_attention") {
        None => Ok(()),
        Some(kind) => {
            Err(fields.unsupported("layer_types", kind, "only \"full_attention\" and \"sliding_attention\""))
        }
    }
}
