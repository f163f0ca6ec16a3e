//! The rotation of a configuration: bases, how many elements turn, how the frequencies are bent.

use super::family::Family;
use super::fields::{Fields, brief};
use super::{Config, MAX_CONTEXT};
use crate::attention::{Rope, Ropes, Scaling};
use crate::model::Result;

/// What a configuration says of its rotation.
pub(super) struct Rotation {
    pub(super) theta: f64,
    /// Of layers with a window, where they have their own.
    pub(super) local_theta: Option<f64>,
    /// Elements of a head that turn.
    pub(super) width: usize,
    pub(super) scaling: Scaling,
}

impl Rotation {
    pub(super) fn parse(
        fields: &Fields<'_>,
        family: Family,
        head_dim: usize,
        context: usize,
    ) -> Result<Self> {
        // Newer writers put everything into one object, and where layers differ, into one per kind of layer.
        let parameters = fields.object("rope_parameters")?;
        let by_kind = |kind: &str| parameters.as_ref().map_or(Ok(None), |all| all.object(kind));
        let (full, sliding) = (by_kind("full_attention")?, by_kind("sliding_attention")?);
        let full = full.or(parameters);
        let theta_in = |object: &Option<Fields<'_>>| {
            object.as_ref().map_or(Ok(None), |object| object.optional_number("rope_theta"))
        };
        let theta = match theta_in(&full)? {
            Some(theta) => theta,
            None => fields.number("rope_theta", family.usual().theta)?,
        };
        let local_theta = match (family, theta_in(&sliding)?) {
            (Family::Gemma3, Some(theta)) => Some(theta),
            (Family::Gemma3, None) => Some(fields.number("rope_local_base_freq", 1e4)?),
            _ => None,
        };
        let factor = match full.as_ref().map_or(Ok(None), |o| o.factor("partial_rotary_factor"))? {
            Some(factor) => factor,
            None => fields.factor("partial_rotary_factor")?.unwrap_or(1.0),
        };
        let width = (head_dim as f64 * factor) as usize;
        if factor > 1.0 || width == 0 || !width.is_multiple_of(2) {
            return Err(fields.error(format!(
                "partial_rotary_factor {factor} of head_dim {head_dim} would turn {width} elements; rotary positions need \
                 pairs, at most the whole head"
            )));
        }
        let scaling = match (full, fields.object("rope_scaling")?) {
            (Some(object), None) if object.has("rope_type") => scaling(&object, fields, width, context)?,
            (_, Some(object)) => scaling(&object, fields, width, context)?,
            _ => Scaling::None,
        };
        Ok(Self { theta, local_theta, width, scaling })
    }
}

fn scaling(object: &Fields<'_>, fields: &Fields<'_>, width: usize, context: usize) -> Result<Scaling> {
    const SUPPORTED: &str = "only \"default\", \"linear\", \"llama3\", \"yarn\" and \"longrope\"";
    let kind = object.get("rope_type").or_else(|| object.get("type"));
    let named = kind.and_then(serde_json::Value::as_str);
    let factor = || object.factor("factor")?.ok_or_else(|| object.error("factor is missing"));
    let original = || -> Result<Option<f64>> {
        const FIELD: &str = "original_max_position_embeddings";
        let own = object.optional_size(FIELD, MAX_CONTEXT)?;
        Ok(own
            .map_or_else(|| fields.optional_size(FIELD, MAX_CONTEXT), |own| Ok(Some(own)))?
            .map(|n| n as f64))
    };
    let need_original =
        || original()?.ok_or_else(|| object.error("original_max_position_embeddings is missing"));
    match named {
        Some("default") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear { factor: factor()? }),
        Some("llama3") => {
            let need = |field| object.factor(field)?.ok_or_else(|| object.error(format!("{field} is missing")));
            let (low, high) = (need("low_freq_factor")?, need("high_freq_factor")?);
            if low >= high {
                return Err(object.error(format!("low_freq_factor {low} is not below high_freq_factor {high}")));
            }
            Ok(Scaling::Llama3 { factor: factor()?, low, high, original: need_original()? })
        }
        Some("yarn") => {
            let factor = factor()?;
            let heat = |by: f64| if factor > 1.0 { 0.1 * by * factor.ln() + 1.0 } else { 1.0 };
            let amplitude = match object.factor("attention_factor")? {
                Some(amplitude) => amplitude,
                None => match (object.factor("mscale")?, object.factor("mscale_all_dim")?) {
                    (Some(one), Some(all)) => heat(one) / heat(all),
                    _ => heat(1.0),
                },
            };
            Ok(Scaling::Yarn {
                factor,
                fast: object.factor("beta_fast")?.unwrap_or(32.0),
                slow: object.factor("beta_slow")?.unwrap_or(1.0),
                original: original()?.unwrap_or(context as f64),
                amplitude,
                truncates: object.flag("truncate", true)?,
            })
        }
        // Phi-3's first files call it by the surname of the author.
        Some("longrope" | "su") => {
            let original = need_original()?;
            let grown = context as f64 / original;
            let usual = if grown > 1.0 { (1.0 + grown.ln() / original.ln()).sqrt() } else { 1.0 };
            Ok(Scaling::LongRope {
                short: object.factors("short_factor", width / 2)?,
                long: object.factors("long_factor", width / 2)?,
                original,
                amplitude: object.factor("attention_factor")?.unwrap_or(usual),
            })
        }
        Some("dynamic") => Err(object.error(format!(
            "rope_type \"dynamic\" is not supported; its frequencies change as a sequence grows, and keys in the cache do \
             not; {SUPPORTED}"
        ))),
        _ => {
            let kind = kind.map_or_else(|| "unnamed".into(), brief);
            Err(object.error(format!("rope_type {kind} is not supported; {SUPPORTED}")))
        }
    }
}

impl Config {
    /// The rotations of all layers, for sequences of at most `longest` positions.
    pub fn ropes(&self, longest: usize) -> Ropes {
        let Self { head_dim, rope_theta, layers, context, ref arch, .. } = *self;
        let width = arch.rotary_dim.unwrap_or(head_dim);
        let scaled = arch.rope_scaling.frequencies(width, rope_theta, longest);
        let full = Rope::with_frequencies(scaled, context).amplified(arch.rope_scaling.amplitude());
        match arch.local_rope_theta {
            None => Ropes::new(vec![full], vec![0; layers]),
            Some(theta) => {
                let local = Rope::with_frequencies(Scaling::None.frequencies(width, theta, longest), context);
                let kind = |layer| usize::from(self.window(layer).is_some());
                Ropes::new(vec![full, local], (0..layers).map(kind).collect())
            }
        }
    }
}
