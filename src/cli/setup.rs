//! From arguments to a run.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::Failure;
use super::args::RunArgs;
use crate::cache::KvDtype;
use crate::device;
use crate::engine::{EngineError, Prompt, backend};
use crate::event::Settings;
use crate::model::hub::{self, Hub};
use crate::model::{self, Model, Precision, Watch};

/// Longest prompt read from a file or standard input.
const MAX_PROMPT_BYTES: u64 = 64 << 20;
/// Policy of the demo: everything is kept, until a person lowers the budget.
pub(crate) const DEMO_POLICY: &str = "h2o:budget=100%";

/// Which model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModelSource {
    Demo,
    /// A folder or a GGUF file.
    Path(PathBuf),
    /// A name on the hub.
    Hub(hub::Name),
}

impl ModelSource {
    /// From the value of `--model`.
    pub(crate) fn of(model: Option<&str>) -> Self {
        match model {
            None | Some("demo") => Self::Demo,
            // What is here goes first; so does what can only be meant to be here.
            Some(text) if Path::new(text).exists() => Self::Path(PathBuf::from(text)),
            Some(text) => hub::Name::parse(text).map_or_else(|| Self::Path(PathBuf::from(text)), Self::Hub),
        }
    }

    /// Fetches the model if it is not here, and reads it; `weights` is the type its projections are put into.
    pub(crate) fn load(
        &self,
        weights: Option<Precision>,
        watch: &mut Watch<'_>,
    ) -> Result<Model, EngineError> {
        Ok(match self {
            Self::Demo => model::demo::load_as(weights)?,
            Self::Path(path) => model::load_as(path, &path.display().to_string(), weights, watch)?,
            Self::Hub(name) => {
                let path = Hub::from_env().fetch(name, watch)?;
                model::load_as(&path, &name.to_string(), weights, watch)?
            }
        })
    }
}

/// What `--weights` names.
pub(super) fn precision(text: &str) -> Result<Precision, Failure> {
    text.parse().map_err(|reason| Failure::Input(format!("--weights {text}: {reason}")))
}

/// Everything a run needs to start.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) model: ModelSource,
    pub(crate) weights: Option<Precision>,
    pub(crate) settings: Settings,
    pub(crate) prompt: Prompt,
    /// Why it runs on the device that it runs on, if nobody named one.
    pub(crate) chosen: Option<String>,
}

/// What `kvista` without a verb runs.
pub(crate) fn demo() -> Result<Setup, Failure> {
    let args = RunArgs { device: "auto".into(), policy: DEMO_POLICY.into(), ..RunArgs::bare() };
    setup(&args)
}

/// Checks what can be checked without the model, and reads the prompt.
pub(crate) fn setup(args: &RunArgs) -> Result<Setup, Failure> {
    let model = ModelSource::of(args.model.as_deref());
    let (device, chosen) = device_of(&args.device)?;
    let prompt = prompt(args, &model)?;
    let read = match (&args.read, &args.kcache) {
        (Some(read), _) => read.clone(),
        (None, Some(numbers)) => format!("kcache:{numbers}"),
        (None, None) => String::new(),
    };
    let usual_span = if prompt.question.is_empty() { "prompt" } else { "context" };
    let threads = threads(args.threads)?;
    if let Some(pace) = args.pace.filter(|p| !(p.is_finite() && *p >= 0.0)) {
        return Err(Failure::Input(format!(
            "--pace {pace}: use steps per second, or 0 for as fast as it goes"
        )));
    }
    let settings = Settings {
        device,
        policy: args.policy.clone(),
        read,
        merge: args.merge.clone().unwrap_or_default(),
        kv_dtype: args.kv_dtype.clone(),
        block_size: args.block_size.unwrap_or_else(|| usual_block_size(&args.kv_dtype)),
        blocks: args.blocks.unwrap_or(0),
        blocks_given: args.blocks.is_some(),
        compress: args.compress.clone().unwrap_or_else(|| usual_span.into()),
        chunk: args.chunk,
        link_gbps: args.link,
        pull: args.pull.clone(),
        keep_pulled: args.keep_pulled,
        scores: args.scores,
        seed: args.seed,
        temperature: args.temperature,
        top_p: args.top_p,
        max_tokens: args.max_tokens,
        ignore_eos: args.ignore_eos,
        threads,
        batch: args.batch,
        compact: args.compact,
        chat: args.chat,
        shadow: args.shadow.unwrap_or(0),
    };
    let weights = args.weights.as_deref().map(precision).transpose()?;
    Ok(Setup { model, weights, settings, prompt, chosen })
}

/// What a name of a device comes to, and why, where nobody named one.
pub(super) fn device_of(name: &str) -> Result<(String, Option<String>), Failure> {
    if name == "auto" {
        let (device, why) = backend::choose();
        return Ok((device, Some(why)));
    }
    Ok((backend::named(name).map_err(|error| failure(&error))?, None))
}

/// What goes with a page type; one that is wrong is refused later, with the model at hand.
pub(super) fn usual_block_size(kv_dtype: &str) -> u32 {
    kv_dtype.parse().unwrap_or(KvDtype::F32).usual_block_size()
}

/// The number of compute threads, put in force for the whole process.
pub(super) fn threads(asked: Option<u32>) -> Result<u32, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let threads = match asked {
        Some(0) => return Err(Failure::Input("--threads 0: use at least 1".into())),
        Some(n) if n > 4 * cores.max(16) => {
            return Err(Failure::Input(format!("--threads {n}: this machine has {cores} cores")));
        }
        Some(n) => n,
        None => cores.saturating_sub(1).max(1),
    };
    device::compute_on(threads as usize);
    Ok(threads)
}

fn prompt(args: &RunArgs, model: &ModelSource) -> Result<Prompt, Failure> {
    let text = match (&args.prompt, &args.prompt_file, &args.stdin) {
        (Some(text), _, _) => Some(text.clone()),
        (_, Some(file), _) => Some(read_prompt(file)?),
        (_, _, Some(_)) => Some(read_all("standard input", std::io::stdin().lock())?),
        _ => None,
    };
    let question = args.question.clone().unwrap_or_default();
    match (text, model) {
        (Some(text), _) => Ok(Prompt { text, question: with_space(question), ..Prompt::default() }),
        // What is said first is typed.
        (None, _) if args.chat => Ok(Prompt::default()),
        (None, ModelSource::Demo) if question.is_empty() => {
            let hidden = model::demo::passkey(args.seed, model::demo::TOKENS, model::demo::DEPTH);
            Ok(Prompt {
                text: hidden.context,
                question: hidden.question,
                expected: Some(hidden.key),
                turns: Vec::new(),
            })
        }
        (None, _) => Err(Failure::Input("no prompt: give --prompt TEXT, --prompt-file FILE or -".into())),
    }
}

/// A question goes on where the prompt ended; most tokenizers want the space between them.
fn with_space(question: String) -> String {
    if question.is_empty() || question.starts_with(char::is_whitespace) {
        question
    } else {
        format!(" {question}")
    }
}

fn read_prompt(file: &Path) -> Result<String, Failure> {
    let shown = file.display().to_string();
    let opened = fs::File::open(file).map_err(|e| Failure::Input(format!("{shown}: cannot be read: {e}")))?;
    read_all(&shown, opened)
}

fn read_all(shown: &str, from: impl Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    from.take(MAX_PROMPT_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Failure::Input(format!("{shown}: cannot be read: {e}")))?;
    if bytes.len() as u64 > MAX_PROMPT_BYTES {
        return Err(Failure::Input(format!("{shown}: a prompt longer than {} MiB", MAX_PROMPT_BYTES >> 20)));
    }
    String::from_utf8(bytes).map_err(|_| Failure::Input(format!("{shown}: not UTF-8 text")))
}

/// An engine's refusal as the program's.
pub(crate) fn failure(error: &EngineError) -> Failure {
    if error.is_input() { Failure::input(error) } else { Failure::fault(error) }
}
