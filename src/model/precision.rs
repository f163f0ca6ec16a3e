//! Types that weights can be put into as they are read.

use std::fmt;
use std::str::FromStr;

use candle_core::quantized::GgmlDType;

use super::matrix::Matrix;
use super::{Config, Error, Result, tensors};

/// A type for the projections: `f32`, `f16`, `bf16`, or one of ggml's block types. Norms, biases and an embedding of its
/// own stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision(GgmlDType);

/// Spellings, from the widest down.
const NAMES: [(&str, GgmlDType); 13] = [
    ("f32", GgmlDType::F32),
    ("f16", GgmlDType::F16),
    ("bf16", GgmlDType::BF16),
    ("q8_0", GgmlDType::Q8_0),
    ("q6_k", GgmlDType::Q6K),
    ("q5_k", GgmlDType::Q5K),
    ("q4_k", GgmlDType::Q4K),
    ("q3_k", GgmlDType::Q3K),
    ("q2_k", GgmlDType::Q2K),
    ("q5_1", GgmlDType::Q5_1),
    ("q5_0", GgmlDType::Q5_0),
    ("q4_1", GgmlDType::Q4_1),
    ("q4_0", GgmlDType::Q4_0),
];

impl Precision {
    /// Refuses a model whose rows are no whole blocks, before anything is read; `path` is only named in errors.
    pub(super) fn check(self, path: &str, config: &Config) -> Result<()> {
        let mut misfit = None;
        let mut fits = |dtype: GgmlDType| {
            let mut all = true;
            let visited = tensors::visit(config, |name, shape| {
                if let [_, inputs] = shape
                    && !inputs.is_multiple_of(dtype.block_size())
                {
                    if dtype == self.0 && misfit.is_none() {
                        misfit = Some((name.to_owned(), *inputs));
                    }
                    all = false;
                }
                Ok(())
            });
            visited.map(|()| all)
        };
        if fits(self.0)? {
            return Ok(());
        }
        // Of the types that fit, the ones nearest in size are the ones meant.
        let mut others = Vec::new();
        for (name, dtype) in NAMES {
            if fits(dtype)? {
                others.push(name);
            }
        }
        let (name, inputs) = misfit.unwrap_or_default();
        Err(Error::Weights {
            path: path.into(),
            reason: format!(
                "--weights {self} has blocks of {}, and the rows of {name} have {inputs} elements; types that fit: {}",
                self.0.block_size(),
                others.join(", ")
            ),
        })
    }

    /// Bytes of a model's parameters in this type.
    pub(super) fn bytes(self, config: &Config) -> u64 {
        (config.parameters() / self.0.block_size() as u64).saturating_mul(self.0.type_size() as u64)
    }

    /// Whether it is half precision.
    pub(super) fn is_f16(self) -> bool {
        self.0 == GgmlDType::F16
    }

    /// The same weights in this type.
    pub(super) fn apply(self, matrix: &Matrix) -> Result<Matrix> {
        match self.0 {
            GgmlDType::F32 => matrix.widened(),
            dtype => matrix.quantise(dtype),
        }
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let text = text.to_ascii_lowercase();
        NAMES.iter().find(|(name, _)| *name == text).map(|(_, dtype)| Self(*dtype)).ok_or_else(|| {
            format!("no type of weights; there are {}", NAMES.map(|(name, _)| name).join(", "))
        })
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.iter().find(|(_, dtype)| *dtype == self.0).map_or("", |(name, _)| name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_and_written() {
        for (name, _) in NAMES {
            assert_eq!(name.parse::<Precision>().unwrap().to_string(), name);
            assert_eq!(name.to_uppercase().parse::<Precision>().unwrap().to_string(), name);
        }
        assert!("q9".parse::<Precision>().unwrap_err().contains("there are f32, f16"));
    }

    #[test]
    fn rows_that_are_no_whole_blocks_are_refused_with_what_fits() {
        // Widths of 20, 28 and 18: no block type fits.
        let config = crate::model::decoder::tests::odd_config();
        let q8: Precision = "q8_0".parse().unwrap();
        let text = q8.check("m", &config).unwrap_err().to_string();
        assert!(
            text.contains(
                "--weights q8_0 has blocks of 32, and the rows of model.embed_tokens.weight have 20 elements"
            ) && text.ends_with("types that fit: f32, f16, bf16"),
            "{text}"
        );
        "f16".parse::<Precision>().unwrap().check("m", &config).unwrap();
        let wide = Config { hidden: 64, intermediate: 256, head_dim: 32, heads: 2, ..config };
        q8.check("m", &wide).unwrap();
        let text = "q4_k".parse::<Precision>().unwrap().check("m", &wide).unwrap_err().to_string();
        assert!(text.contains("blocks of 256") && text.contains("q8_0, q5_1"), "{text}");
    }
}
