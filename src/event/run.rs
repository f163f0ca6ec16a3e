//! What a run is: model card, settings, prompt. Written once, before the first step.

use serde::{Deserialize, Serialize};

use super::attention::ScoreLevel;
use super::ids::Position;

/// The facts about a model that pictures and byte counts need.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// Name shown: folder name, or `demo`.
    pub name: String,
    /// What `--model` was given; empty for the embedded demo.
    pub source: String,
    /// What `--weights` was given; empty where the weights stay as their file has them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub weights_asked: String,
    /// `model_type` of its configuration.
    pub family: String,
    /// Decoder layers.
    pub layers: u32,
    /// Query heads per layer.
    pub heads: u32,
    /// KV heads per layer; divides `heads`.
    pub kv_heads: u32,
    /// Elements per head.
    pub head_dim: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Vocabulary size.
    pub vocab: u32,
    /// Longest sequence the model was made for.
    pub context: u32,
    /// Per layer the positions that a query sees, its own included, where the layer looks at a window; 0 where it sees
    /// all. Empty where no layer has a window.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<u32>,
    /// Number of parameters.
    pub parameters: u64,
    /// Type of the weights in their file.
    pub weights: String,
}

impl ModelCard {
    /// Positions that a query of a layer sees, its own included; `None` where it sees all.
    pub fn window(&self, layer: usize) -> Option<u32> {
        self.windows.get(layer).copied().filter(|&window| window > 0)
    }
}

/// How the run was set up, as on the command line. Strings are in the command line's own syntax, so that any run can
/// be repeated by typing them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Where it ran: `cpu`.
    pub device: String,
    /// Eviction policy, canonical: `h2o:budget=25%,recent=0.5`.
    pub policy: String,
    /// Read set, canonical; empty for none.
    pub read: String,
    /// Merge rule, canonical: `cam:m=32`; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub merge: String,
    /// Page type: `f32`, `f16`, `int8`, `int4:residual=64`, `nuq3:outliers=0.005`.
    pub kv_dtype: String,
    /// Slots per block.
    pub block_size: u32,
    /// Blocks in the pool (asked for, or derived from the model's context).
    pub blocks: u32,
    /// Whether `blocks` was asked for.
    pub blocks_given: bool,
    /// `context` or `prompt`: the span compressed before the question is seen.
    pub compress: String,
    /// Most prompt tokens per step.
    pub chunk: u32,
    /// Modelled link between host and device, GB/s.
    pub link_gbps: f64,
    /// How V rows come from the host to a GPU: `gather`, `copies`, or `auto` for the faster of the two.
    #[serde(default = "auto", skip_serializing_if = "is_auto")]
    pub pull: String,
    /// Rows that a GPU pulled stay there for the next step.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_pulled: bool,
    /// Level of the attention pictures.
    pub scores: ScoreLevel,
    /// Seed of the sampler and of random policies.
    pub seed: u64,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f64,
    /// Nucleus; 1 is off.
    pub top_p: f64,
    /// Most tokens to generate.
    pub max_tokens: u32,
    /// Keep going past end tokens.
    pub ignore_eos: bool,
    /// Compute threads.
    pub threads: u32,
    /// Sequences in the batch.
    pub batch: u32,
    /// A layer's survivors are moved together when more than this share of its slots is stranded; 1 is never.
    pub compact: f64,
    /// The prompt and every turn after it go through the model's chat template.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chat: bool,
    /// A full-cache twin follows the run and judges every so many draws (1: each of them); 0 is none.
    #[serde(default)]
    pub shadow: u32,
}

fn auto() -> String {
    "auto".into()
}

fn is_auto(pull: &str) -> bool {
    pull == "auto"
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            device: "cpu".into(),
            policy: "full".into(),
            read: String::new(),
            merge: String::new(),
            kv_dtype: "f32".into(),
            block_size: 16,
            blocks: 0,
            blocks_given: false,
            compress: "prompt".into(),
            chunk: 64,
            link_gbps: 25.0,
            pull: auto(),
            keep_pulled: false,
            scores: ScoreLevel::Full,
            seed: 0,
            temperature: 0.0,
            top_p: 1.0,
            max_tokens: 64,
            ignore_eos: false,
            threads: 1,
            batch: 1,
            compact: 1.0,
            chat: false,
            shadow: 0,
        }
    }
}

/// What a recording holds beyond the steps themselves; what-if offers only what can be decided from it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Has {
    /// Decisions with scores.
    pub decisions: bool,
    /// Level of the decode rows.
    pub rows: ScoreLevel,
    /// Whether those rows are of a full cache (no eviction was in force).
    pub rows_of_full_cache: bool,
}

/// Everything known before the first step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// `kvista 0.1.0`.
    pub tool: String,
    /// Wall clock at the start, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// The model.
    pub model: ModelCard,
    /// The settings.
    pub settings: Settings,
    /// The prompt: its context part if there is a question.
    pub prompt: String,
    /// Text fed after the context was compressed; empty for none.
    pub question: String,
    /// The right answer, where it is known (the demo's passkey): the generated text must begin with it.
    pub expected: Option<String>,
    /// Tokens of prompt and question.
    pub prompt_tokens: u32,
    /// What the recording has.
    pub has: Has,
}

impl RunInfo {
    /// Tokens that rotations are made for: turns of a conversation may fill the context.
    pub fn reach(&self) -> Position {
        if self.settings.chat { self.model.context } else { self.longest() }
    }

    /// Tokens that a sequence of the run can get to at most, without further turns.
    pub fn longest(&self) -> Position {
        self.prompt_tokens.saturating_add(self.settings.max_tokens).min(self.model.context)
    }

    /// The `kvista run …` line that repeats this run. Settings at their default are left out.
    pub fn command(&self) -> String {
        let mut line = String::from("kvista run");
        let s = &self.settings;
        let d = Settings::default();
        let mut arg = |name: &str, value: &str| {
            line.push_str(" --");
            line.push_str(name);
            if !value.is_empty() {
                line.push(' ');
                line.push_str(&quoted(value));
            }
        };
        if !self.model.source.is_empty() {
            arg("model", &self.model.source);
        }
        if !self.model.weights_asked.is_empty() {
            arg("weights", &self.model.weights_asked);
        }
        if s.device != d.device {
            arg("device", &s.device);
        }
        if s.chat {
            arg("chat", "");
        }
        if !self.prompt.is_empty() && self.expected.is_none() {
            arg("prompt", &self.prompt);
        }
        if !self.question.is_empty() && self.expected.is_none() {
            arg("question", &self.question);
        }
        if s.policy != d.policy {
            arg("policy", &s.policy);
        }
        if !s.read.is_empty() {
            arg("read", &s.read);
        }
        if !s.merge.is_empty() {
            arg("merge", &s.merge);
        }
        if s.kv_dtype != d.kv_dtype {
            arg("kv-dtype", &s.kv_dtype);
        }
        if s.block_size != d.block_size {
            arg("block-size", &s.block_size.to_string());
        }
        if s.blocks_given {
            arg("blocks", &s.blocks.to_string());
        }
        let usual_compress = if self.question.is_empty() { "prompt" } else { "context" };
        if s.compress != usual_compress {
            arg("compress", &s.compress);
        }
        if s.chunk != d.chunk {
            arg("chunk", &s.chunk.to_string());
        }
        if s.link_gbps != d.link_gbps {
            arg("link", &s.link_gbps.to_string());
        }
        if s.pull != d.pull {
            arg("pull", &s.pull);
        }
        if s.keep_pulled {
            arg("keep-pulled", "");
        }
        if s.scores != d.scores {
            arg("scores", &s.scores.to_string());
        }
        if s.temperature != d.temperature {
            arg("temperature", &s.temperature.to_string());
        }
        // Policies draw from it too, whatever the temperature.
        if s.seed != d.seed || s.temperature != d.temperature {
            arg("seed", &s.seed.to_string());
        }
        if s.top_p != d.top_p {
            arg("top-p", &s.top_p.to_string());
        }
        if s.max_tokens != d.max_tokens {
            arg("max-tokens", &s.max_tokens.to_string());
        }
        if s.ignore_eos {
            arg("ignore-eos", "");
        }
        if s.batch != d.batch {
            arg("batch", &s.batch.to_string());
        }
        if s.compact != d.compact {
            arg("compact", &s.compact.to_string());
        }
        match s.shadow {
            0 => {}
            1 => arg("shadow", ""),
            // One word: what stands behind a blank would be the prompt.
            every => arg(&format!("shadow=every:{every}"), ""),
        }
        line
    }
}

/// A word for a POSIX shell: quoted only where it has to be, control characters spelled in `$'…'`.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+%@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else if word.chars().any(is_unseen) {
        let mut out = String::from("$'");
        for c in word.chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\'' => out.push_str("\\'"),
                '\\' => out.push_str("\\\\"),
                c if is_unseen(c) => out.extend(format!("\\u{:04x}", c as u32).chars()),
                c => out.push(c),
            }
        }
        out.push('\'');
        out
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// What a terminal obeys or does not show: in a line to be copied from one it must be spelled.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_run_is_just_the_verb() {
        assert_eq!(RunInfo::default().command(), "kvista run");
    }

    #[test]
    fn the_twin_is_in_the_line() {
        let mut info = RunInfo::default();
        info.settings.shadow = 1;
        assert_eq!(info.command(), "kvista run --shadow");
        info.settings.shadow = 8;
        assert_eq!(info.command(), "kvista run --shadow=every:8");
    }

    #[test]
    fn the_line_quotes_what_a_shell_would_eat() {
        let mut info = RunInfo { prompt: "it's\x1b[2J".into(), ..RunInfo::default() };
        info.settings.policy = "h2o:budget=25%".into();
        assert_eq!(info.command(), "kvista run --prompt $'it\\'s\\u001b[2J' --policy h2o:budget=25%");
        info.prompt = "it's".into();
        assert_eq!(info.command(), "kvista run --prompt 'it'\\''s' --policy h2o:budget=25%");
    }
}
