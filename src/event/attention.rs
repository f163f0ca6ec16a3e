//! Attention probabilities as they are shown and recorded: one logarithmic byte per cell.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::ids::{Head, Layer, Position};

/// How much of the attention probabilities the engine hands out (design 3.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ScoreLevel {
    /// Nothing.
    Off,
    /// One sum per block of the head's table.
    Blocks,
    /// The `K` largest probabilities per query head.
    Top(u32),
    /// Every probability of the row.
    #[default]
    Full,
}

impl fmt::Display for ScoreLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Blocks => f.write_str("blocks"),
            Self::Top(k) => write!(f, "top:{k}"),
            Self::Full => f.write_str("full"),
        }
    }
}

impl From<ScoreLevel> for String {
    fn from(level: ScoreLevel) -> Self {
        level.to_string()
    }
}

impl TryFrom<String> for ScoreLevel {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for ScoreLevel {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "blocks" => Ok(Self::Blocks),
            "full" => Ok(Self::Full),
            _ => match text.strip_prefix("top:").map(str::parse::<u32>) {
                Some(Ok(k)) if k >= 1 => Ok(Self::Top(k)),
                _ => Err(format!("score level '{text}': use off, blocks, top:K with K at least 1, or full")),
            },
        }
    }
}

/// Steps per halving of a probability: cell `q` stands for `2^-((255 - q) / 16)`.
const STEPS_PER_OCTAVE: f32 = 16.0;

/// Probability to its cell byte. 0 stands for anything under about 1.6e-5 (its mass counts as dropped), 255 for 1.
///
/// The relative error of a non-zero cell is at most 2.2 %.
pub fn quantise(p: f32) -> u8 {
    if p.is_nan() || p <= 0.0 {
        return 0;
    }
    let q = 255.0 + STEPS_PER_OCTAVE * p.log2();
    if q < 0.5 { 0 } else { q.round().min(255.0) as u8 }
}

/// Cell byte to probability; 0 gives exactly 0.
pub fn dequantise(q: u8) -> f32 {
    cell_values()[usize::from(q)]
}

/// What each cell byte stands for, see [`dequantise`]. A picture has a cell per head and token: whoever reads a whole
/// one takes the table once.
pub fn cell_values() -> &'static [f32; 256] {
    static VALUES: LazyLock<[f32; 256]> = LazyLock::new(|| {
        std::array::from_fn(|q| match q {
            0 => 0.0,
            q => ((q as f32 - 255.0) / STEPS_PER_OCTAVE).exp2(),
        })
    });
    &VALUES
}

/// The attention picture of one sequence in one step: the rows of one query position in every layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionMap {
    /// The level at which the rows were taken.
    pub level: ScoreLevel,
    /// Position of the query the rows belong to (the last token fed in the step).
    pub query: Position,
    /// One group per (layer, KV head), layers ascending, heads ascending within a layer.
    pub groups: Vec<AttentionGroup>,
}

/// The rows of all query heads that read one (layer, KV head).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionGroup {
    /// Decoder layer.
    pub layer: Layer,
    /// KV head within the layer.
    pub kv_head: Head,
    /// Positions resident when the row was taken, as ascending half-open ranges.
    pub positions: Vec<(Position, Position)>,
    /// One row per query head of the group.
    pub rows: Vec<HeadRow>,
}

/// One query head's row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadRow {
    /// Query head within the layer.
    pub head: Head,
    /// Probability mass the cells do not carry: outside the top K, below the smallest cell, or not read by the step's
    /// read set.
    pub dropped: f32,
    /// The probabilities, see [`quantise`].
    pub cells: Cells,
}

/// A row's cells, by level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Cells {
    /// One byte per position in the group's ranges, in order.
    Full(Vec<u8>),
    /// (position, byte), ascending positions.
    Top(Vec<(Position, u8)>),
    /// One byte per block of the head's table, in table order.
    Blocks(Vec<u8>),
}

impl AttentionGroup {
    /// Number of resident positions.
    pub fn len(&self) -> usize {
        self.positions.iter().map(|&(a, b)| b.saturating_sub(a) as usize).sum()
    }

    /// Whether nothing was resident.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The resident positions in order.
    pub fn iter_positions(&self) -> impl Iterator<Item = Position> + '_ {
        self.positions.iter().flat_map(|&(a, b)| a..b)
    }
}

impl AttentionMap {
    /// The group of a (layer, KV head), if it was recorded.
    pub fn group(&self, layer: Layer, kv_head: Head) -> Option<&AttentionGroup> {
        self.groups
            .binary_search_by_key(&(layer, kv_head), |g| (g.layer, g.kv_head))
            .ok()
            .map(|i| &self.groups[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_keep_probabilities_within_their_stated_error() {
        let mut p = 1.0f32;
        while p > 2e-5 {
            let back = dequantise(quantise(p));
            assert!((back / p - 1.0).abs() < 0.022, "{p} came back as {back}");
            p *= 0.97;
        }
        assert_eq!(quantise(0.0), 0);
        assert_eq!(quantise(f32::NAN), 0);
        assert_eq!(quantise(1e-6), 0);
        assert_eq!(quantise(1.0), 255);
        assert_eq!(quantise(2.0), 255);
    }

    #[test]
    fn every_cell_byte_is_a_fixed_point() {
        for q in 0..=255 {
            assert_eq!(quantise(dequantise(q)), q);
        }
    }

    #[test]
    fn levels_parse_as_they_print_and_refuse_the_rest() {
        for text in ["off", "blocks", "top:8", "full"] {
            assert_eq!(text.parse::<ScoreLevel>().unwrap().to_string(), text);
        }
        for text in ["", "top:0", "top:", "top:-1", "FULL"] {
            assert!(text.parse::<ScoreLevel>().is_err(), "{text}");
        }
    }
}
