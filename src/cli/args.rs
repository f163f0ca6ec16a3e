//! The command line, as typed.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::event::ScoreLevel;
use crate::ui::theme::{ColorChoice, Symbols};

/// See what an LLM's KV cache does: run a real model, watch the cache, record, replay.
///
/// Without a verb: the embedded demo model hides a pass key in its prompt, and the terminal UI opens on it.
#[derive(Debug, Parser)]
#[command(name = "kvista", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) look: Look,
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
}

/// How things look; the same for every verb.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct Look {
    /// When to use colour, or how many colours.
    #[arg(long, global = true, value_enum, value_name = "WHEN", help_heading = "Look")]
    pub(crate) color: Option<ColorChoice>,
    /// Which symbols the terminal's font has.
    #[arg(long, global = true, value_enum, value_name = "SET", help_heading = "Look")]
    pub(crate) symbols: Option<Symbols>,
    /// Theme by name (`kvista themes` lists them) or a .toml file.
    #[arg(long, global = true, value_name = "NAME", help_heading = "Look")]
    pub(crate) theme: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a model on a prompt, in the terminal UI or headless.
    Run(Box<RunArgs>),
    /// Play a recording: in the terminal UI, or one frame of a view as text, SVG or JSON.
    Replay(ReplayArgs),
    /// Facts about a recording or a model.
    Inspect(InspectArgs),
    /// Check a recording: checksums, every message, the state hash.
    Verify(VerifyArgs),
    /// Save every whole step of a damaged recording into a new file.
    Repair(RepairArgs),
    /// Ask a model what it still knows: keys, facts, lists, votes, stories, counted.
    Eval(Box<EvalArgs>),
    /// How fast a model is fed and decoded here, and what watching it costs.
    Bench(BenchArgs),
    /// Every policy and read set: rule, source, parameters.
    Policies(ListArgs),
    /// What this machine has: processor, memory, NVIDIA driver, GPUs and their measured copy speeds, libraries, toolkit.
    Doctor(ListArgs),
    /// Every theme.
    Themes(ListArgs),
    /// Every key.
    Keys(ListArgs),
    /// The configuration file: where it is, what may stand in it, whether it is right.
    Config(ConfigArgs),
    /// Completions for a shell, to standard output.
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// The manual page, to standard output.
    Man,
}

/// `kvista run`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct RunArgs {
    /// Folder with config.json, tokenizer.json and model.safetensors (one or in shards), a GGUF file, or a name on the
    /// Hugging Face hub, fetched into its cache: ORG/NAME, ORG/NAME/FILE.gguf. Default: the embedded demo model.
    #[arg(long, value_name = "DIR|FILE.gguf|ORG/NAME")]
    pub(crate) model: Option<String>,
    /// Put the weights into this type as they are read: f32, f16, bf16, q8_0, q6_k, q5_k, q4_k, q3_k, q2_k, q5_1, q5_0,
    /// q4_1 or q4_0. Default: as the file has them.
    #[arg(long, value_name = "TYPE")]
    pub(crate) weights: Option<String>,
    /// Where to run: auto, cpu, cuda or cuda:N. `auto` is the first GPU where the build and the machine have one, else the
    /// CPU; `--plain` and `kvista doctor` say why.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: String,
    /// The prompt. Default with the demo model: a story that hides a pass key.
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_file")]
    pub(crate) prompt: Option<String>,
    /// The prompt from a file.
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// `-` reads the prompt from standard input.
    #[arg(value_name = "-", value_parser = ["-"], conflicts_with_all = ["prompt", "prompt_file"])]
    pub(crate) stdin: Option<String>,
    /// Fed after the prompt, once the policy has compressed it (see --compress).
    #[arg(long, value_name = "TEXT")]
    pub(crate) question: Option<String>,
    /// Hold a conversation in the model's own form, its chat template: the prompt is the first turn. In the UI every turn
    /// is typed (I); headless each line of standard input is one, or --prompt the only one.
    #[arg(long, conflicts_with = "question")]
    pub(crate) chat: bool,
    /// Sequences run side by side on the same prompt, seeds counting up.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) batch: u32,
    /// Most tokens to generate.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) max_tokens: u32,
    /// Keep going past the model's end tokens.
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Sampling temperature; 0 is greedy.
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub(crate) temperature: f64,
    /// Nucleus sampling; 1 is off.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub(crate) top_p: f64,
    /// Seed of the sampler and of the demo prompt.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Compute threads. Default: all cores but one.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<u32>,
    /// Eviction policy, e.g. h2o:budget=25%,recent=0.5 (`kvista policies` lists them).
    #[arg(long, value_name = "SPEC", default_value = "full")]
    pub(crate) policy: String,
    /// Read set, e.g. kcache:n=64,l=1 or quest:budget=1024,page=16.
    #[arg(long, value_name = "SPEC", conflicts_with = "kcache")]
    pub(crate) read: Option<String>,
    /// Short for --read kcache:…
    #[arg(long, value_name = "n=N,l=L")]
    pub(crate) kcache: Option<String>,
    /// What becomes of evicted tokens, or of adjacent layers: cam:m=32, d2o (both behind a --policy that evicts),
    /// minicache.
    #[arg(long, value_name = "SPEC")]
    pub(crate) merge: Option<String>,
    /// Type of the cache's pages: f32, f16, int8 (a scale per row), int4 or int2 (KIVI: keys per channel, values per
    /// token, the newest tokens exact), nuq4, nuq3 or nuq2 (KVQuant: keys per channel before RoPE, non-uniform codebooks,
    /// outliers apart). The exact window of int4 and int2: int4:residual=128; default 32 tokens. A chunk of the prompt
    /// reads itself exactly, earlier chunks as they lie. Parameters of the last three:
    /// nuq4:outliers=0.01,first=1,calibrate=2048, the share kept as f16, the first tokens that stay exact, and the
    /// tokens that thresholds and codebooks are made of (no more than the prompt, at least 32); all rows are exact until
    /// then, and go into codes as they are written from then on. Unlike KVQuant's: calibrated on the run itself, without
    /// Fisher weights, k-means from quantiles, no Q-Norm, no cap on a token's outliers.
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    pub(crate) kv_dtype: String,
    /// Slots per block. Default: 16; 32 with int4 and int2, which need it.
    #[arg(long, value_name = "N")]
    pub(crate) block_size: Option<u32>,
    /// Blocks in the pool. Default: enough for the model's context.
    #[arg(long, value_name = "N")]
    pub(crate) blocks: Option<u32>,
    /// Move a layer's survivors together when more than this share of its slots is stranded; 1 is never.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    pub(crate) compact: f64,
    /// What is compressed before the question is seen: `context` (the prompt without the question; default when there
    /// is a question) or `prompt` (everything).
    #[arg(long, value_name = "SPAN")]
    pub(crate) compress: Option<String>,
    /// Most prompt tokens per step.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) chunk: u32,
    /// Speed of the modelled link between host and device, GB/s.
    #[arg(long, value_name = "GB/s", default_value_t = 25.0)]
    pub(crate) link: f64,
    /// On a GPU, how V rows come from the host: gather (a kernel reads them where they lie), copies (one for each row), or
    /// auto: the one that takes less time when both are first tried.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub(crate) pull: String,
    /// On a GPU, keep the V rows that a step pulled for the next one, which then pulls the others alone (an addition of
    /// kvista's to KCache).
    #[arg(long)]
    pub(crate) keep_pulled: bool,
    /// Attention pictures: off, blocks, top:K or full.
    #[arg(long, value_name = "LEVEL", default_value_t = ScoreLevel::Full)]
    pub(crate) scores: ScoreLevel,
    /// Let a twin with the full cache follow the run: divergence, agreement and perplexity of every draw, regret of every
    /// victim. It takes as long as the run again and its memory. `every:K` judges each Kth draw: the twin then takes K
    /// tokens in at once, and what it says of draws is sampled.
    #[arg(long, value_name = "every:K", num_args = 0..=1, require_equals = true, default_missing_value = "every:1",
        value_parser = shadow_every)]
    pub(crate) shadow: Option<u32>,
    /// Steps per second, so that a person can watch. 0 is as fast as it goes, the default headless; in
    /// the UI it is 8.
    #[arg(long, value_name = "TOK/S")]
    pub(crate) pace: Option<f64>,
    /// Record into a file (.mcap).
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    /// No UI: print the text and a summary.
    #[arg(long)]
    pub(crate) headless: bool,
    /// Headless, one JSON object per line: a `step` each, a `summary` last.
    #[arg(long)]
    pub(crate) json: bool,
    /// Headless, plain lines that are only ever appended: for screen readers and logs.
    #[arg(long)]
    pub(crate) plain: bool,
}

/// The K of `every:K`.
fn shadow_every(text: &str) -> Result<u32, String> {
    let every = text.strip_prefix("every:").and_then(|every| every.parse().ok()).filter(|&every| every > 0);
    every.ok_or_else(|| "use --shadow, or --shadow=every:K with K of 1 or more".to_owned())
}

impl RunArgs {
    /// `kvista run` with nothing behind it.
    pub(crate) fn bare() -> Self {
        let Ok(Args { verb: Some(Verb::Run(run)), .. }) = Args::try_parse_from(["kvista", "run"]) else {
            unreachable!("every argument of run has a default");
        };
        *run
    }
}

/// `kvista replay`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct ReplayArgs {
    /// The recording.
    pub(crate) file: PathBuf,
    /// Step to show; counts from the end when negative. Default: the first in the UI, the last headless.
    #[arg(long, value_name = "STEP", allow_hyphen_values = true)]
    pub(crate) at: Option<i64>,
    /// No UI: print one frame, or with --format json the steps and the summary.
    #[arg(long)]
    pub(crate) headless: bool,
    /// Which view to draw.
    #[arg(long, value_name = "NAME", default_value = "overview", value_parser =
        ["overview", "blocks", "attention", "evictions", "traffic", "latency", "log", "text", "policy"])]
    pub(crate) view: String,
    /// Columns and rows of the frame.
    #[arg(long, value_name = "WxH", default_value = "120x40")]
    pub(crate) size: String,
    /// What to print.
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = FrameFormat::Text)]
    pub(crate) format: FrameFormat,
    /// Token to select.
    #[arg(long, value_name = "POSITION")]
    pub(crate) token: Option<u32>,
    /// Layer to select.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) layer: u16,
    /// Query head to select.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) head: u16,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FrameFormat {
    /// Characters only.
    Text,
    /// Characters and colours.
    Ansi,
    /// A picture.
    Svg,
    /// The steps up to --at and the summary, one object per line.
    Json,
}

/// `kvista bench`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct BenchArgs {
    /// As --model of `kvista run`. Default: the embedded demo model.
    #[arg(value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Type of the weights, as `kvista run` takes it.
    #[arg(long, value_name = "TYPE")]
    pub(crate) weights: Option<String>,
    /// Lengths of prompts, tokens. Default: 256,1024,4096, as far as the model's context goes.
    #[arg(long, value_name = "TOKENS,…", value_delimiter = ',')]
    pub(crate) context: Vec<NonZeroU32>,
    /// Decode steps at each level of the probe.
    #[arg(long, value_name = "N", default_value = "24")]
    pub(crate) steps: NonZeroU32,
    /// Most prompt tokens per step.
    #[arg(long, value_name = "N", default_value = "256")]
    pub(crate) chunk: NonZeroU32,
    /// Where to compute, as `kvista run` takes it.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: String,
    /// Sequences at once; tokens per second are of all of them.
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) batch: NonZeroU32,
    /// Make contexts of chance in place of feeding prompts: how long a decode step takes does not depend on what the rows
    /// hold, and a long context is there at once.
    #[arg(long)]
    pub(crate) filled: bool,
    /// Compute threads. Default: all cores but one.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<u32>,
    /// Type of the cache's pages, as `kvista run` takes it.
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    pub(crate) kv_dtype: String,
    /// Read set, e.g. kcache:n=64,l=1.
    #[arg(long, value_name = "SPEC")]
    pub(crate) read: Option<String>,
    /// One JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `kvista inspect`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct InspectArgs {
    /// A recording, a model folder, its config.json, a GGUF file, or `demo`.
    pub(crate) what: String,
    /// Of a model: contexts to count for, in tokens.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',')]
    pub(crate) context: Vec<NonZeroU32>,
    /// Of a model: sequences at once.
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) batch: NonZeroU32,
    /// One JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `kvista verify`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct VerifyArgs {
    /// The recording.
    pub(crate) file: PathBuf,
    /// One JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `kvista repair`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct RepairArgs {
    /// The damaged recording; it is not touched.
    pub(crate) file: PathBuf,
    /// Where the whole steps go.
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// One JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `kvista eval`. The tasks are in the demo model's language; another model must read its word list.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct EvalArgs {
    /// Which task; `demo` is all of them but perplexity, held against what the demo model must do. With --sweep one or
    /// more of passkey, recall and perplexity.
    #[arg(value_enum, value_name = "TASK", required = true, value_delimiter = ',')]
    pub(crate) tasks: Vec<EvalTask>,
    /// Compare many ways to keep the cache on the same prompts. Without --policies, --kv-dtypes, --reads and
    /// --merges: every policy and wrapper at every budget, merges, every page type, and read sets; else every combination of
    /// what they name.
    #[arg(long)]
    pub(crate) sweep: bool,
    /// Of a sweep: eviction policies, separated by blanks: "h2o snapkv:window=16+adakv"; the budgets are put in.
    #[arg(long, value_name = "SPECS", value_delimiter = ' ', requires = "sweep")]
    pub(crate) policies: Vec<String>,
    /// Of a sweep: budgets of the policies that have one.
    #[arg(long, value_name = "SLOTS|P%,…", value_delimiter = ',', requires = "sweep")]
    pub(crate) budgets: Vec<String>,
    /// Of a sweep: types of pages, separated by blanks.
    #[arg(long, value_name = "TYPES", value_delimiter = ' ', requires = "sweep")]
    pub(crate) kv_dtypes: Vec<String>,
    /// Of a sweep: read sets, separated by blanks.
    #[arg(long, value_name = "SPECS", value_delimiter = ' ', requires = "sweep")]
    pub(crate) reads: Vec<String>,
    /// Of a sweep: merge rules, separated by blanks.
    #[arg(long, value_name = "SPECS", value_delimiter = ' ', requires = "sweep")]
    pub(crate) merges: Vec<String>,
    /// Of a sweep: a file of results. What it has is not run again, what is found is added: a sweep that was stopped
    /// goes on.
    #[arg(long, value_name = "FILE", requires = "sweep")]
    pub(crate) results: Option<PathBuf>,
    /// Of a sweep: the heat picture as SVG.
    #[arg(long, value_name = "FILE", requires = "sweep")]
    pub(crate) svg: Option<PathBuf>,
    /// Folder with config.json, model.safetensors and vocab.json. Default: the embedded demo model.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<String>,
    /// Prompts per cell. Default: by task.
    #[arg(long = "n", value_name = "N")]
    pub(crate) prompts: Option<usize>,
    /// Lengths of passkey prompts, tokens. Default: 512,1024,2048,4096; in a sweep 768,1280.
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    pub(crate) lengths: Vec<usize>,
    /// Depths of the key in passkey prompts, shares of the context.
    #[arg(long, value_name = "X,…", value_delimiter = ',', default_value = "0.05,0.25,0.5,0.75,0.95")]
    pub(crate) depths: Vec<f32>,
    /// Length of the other prompts, tokens. Default: by task.
    #[arg(long, value_name = "N")]
    pub(crate) tokens: Option<usize>,
    /// Eviction policy of passkey, e.g. h2o:budget=25%.
    #[arg(long, value_name = "SPEC", default_value = "full")]
    pub(crate) policy: String,
    /// Read set of passkey, e.g. kcache:n=64,l=1.
    #[arg(long, value_name = "SPEC")]
    pub(crate) read: Option<String>,
    /// Merge rule of passkey, e.g. cam:m=32.
    #[arg(long, value_name = "SPEC")]
    pub(crate) merge: Option<String>,
    /// Type of the cache's pages in passkey, as `kvista run` takes it.
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    pub(crate) kv_dtype: String,
    /// What is compressed in passkey: `context` (the question is not seen) or `prompt` (it is).
    #[arg(long, value_name = "SPAN", default_value = "context")]
    pub(crate) compress: String,
    /// Budget of the policies in repeated.
    #[arg(long, value_name = "SLOTS|P%", default_value = "25%")]
    pub(crate) budget: String,
    /// Seed of the first prompt; the others count up.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) seed: u64,
    /// Prompts at a time, each on one thread. Default: all cores but one.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<u32>,
    /// One JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The tasks of `kvista eval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EvalTask {
    /// Keys hidden in stories, by length and depth.
    Passkey,
    /// Keys, facts, lists and tables: answer tokens after the right text.
    Recall,
    /// Stories, of a sweep: every token after the compression counts.
    Perplexity,
    /// Keys told several times early on, under policies that evict.
    Repeated,
    /// Votes that need many rows at once, under KCache with ever fewer.
    Votes,
    /// Stories that the model writes, read by the grammar.
    Stories,
    /// The loss on stories with the full cache and with windows.
    Losses,
    /// What each head looks at.
    Heads,
    /// The key's sentence alone lost, and it alone kept.
    Controls,
    /// Everything above, pass or fail.
    Demo,
}

impl EvalTask {
    /// Prompts per cell.
    pub(crate) const fn usual_prompts(self) -> usize {
        match self {
            Self::Heads => 4,
            Self::Recall | Self::Losses => 24,
            _ => 50,
        }
    }

    /// Tokens of a prompt.
    pub(crate) const fn usual_tokens(self) -> usize {
        match self {
            Self::Recall | Self::Repeated => 2048,
            _ => 1024,
        }
    }
}

/// Verbs that only list.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct ListArgs {
    /// One JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `kvista config`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct ConfigArgs {
    /// `path`: where it is looked for. `default`: a commented file with every key. `check`: read it and say what is
    /// wrong.
    #[arg(value_parser = ["path", "default", "check"], default_value = "path")]
    pub(crate) what: String,
}
