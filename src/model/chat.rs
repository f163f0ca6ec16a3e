//! Chat templates: what a conversation looks like to a model that was trained on one.
//!
//! A template is a Jinja program out of a file that comes from anywhere. It is rendered as Hugging Face does it
//! (`trim_blocks`, `lstrip_blocks`, loop controls, Python's string methods, `tojson`, `raise_exception`,
//! `strftime_now`, no autoescape, no file or network), on a budget that bounds its time and its memory alike. It sees
//! nothing but the messages, the special tokens and the date.

mod python;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{AutoEscape, Environment, ErrorKind, State, context};
use serde::Deserialize;
use serde_json::Value as Json;

use super::error::{MOST_REASON_CHARS, quoted};
use super::tokenizer::unwinding;
use super::{Error, Result, Tokenizer};

/// Longest template; real ones stay under 32 KiB.
const MAX_TEMPLATE_BYTES: usize = 256 << 10;
/// Longest `tokenizer_config.json` read: some list every added token.
const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// What a rendering may cost before its messages count. One unit is an instruction or 64 bytes of data, so this is a
/// fraction of a second and 32 MiB.
const BASE_FUEL: u64 = 500_000;
/// Bytes of the messages that pay for another unit: a template goes over each message a few times.
const BYTES_PER_FUEL: usize = 4;
/// Longest that a rendering may take; real ones take milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Stack of the thread that renders.
const STACK_BYTES: usize = 16 << 20;
/// Deepest nesting of macros and loops.
const MAX_DEPTH: usize = 64;

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Whoever sets the scene.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name templates know it by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// A model's chat template, not yet looked into: one that is broken harms nobody who does not chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    /// Where it was found; only named in errors.
    found_in: String,
    source: String,
    /// Spellings of the special tokens, by the name templates know them by.
    special: Vec<(&'static str, String)>,
}

/// The parts of a `tokenizer_config.json` that are read, or of a `chat_template.json`.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    chat_template: Json,
    #[serde(default)]
    bos_token: Json,
    #[serde(default)]
    eos_token: Json,
    #[serde(default)]
    unk_token: Json,
    #[serde(default)]
    pad_token: Json,
}

impl ChatTemplate {
    /// The template of a model folder: `chat_template.jinja`, else `chat_template.json`, else the one in
    /// `tokenizer_config.json`. Special tokens are spelled as that file has them, else as the tokenizer does.
    ///
    /// # Errors
    /// [`Error::Chat`]: there is none, or what there is cannot be read.
    pub fn of_folder(folder: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let read = |name: &str, limit_bytes: u64| -> Result<Option<(String, Vec<u8>)>> {
            let path = folder.join(name);
            let shown = path.display().to_string();
            if path.exists() { Ok(Some((shown, super::read(&path, limit_bytes)?))) } else { Ok(None) }
        };
        let parse = |file: Option<(String, Vec<u8>)>| -> Result<Option<(String, TokenizerConfig)>> {
            let Some((shown, bytes)) = file else { return Ok(None) };
            match serde_json::from_slice(&bytes) {
                Ok(config) => Ok(Some((shown, config))),
                Err(error) => Err(unusable(&shown, &error.to_string())),
            }
        };
        let config = parse(read("tokenizer_config.json", MAX_CONFIG_BYTES)?)?;
        let special = special(config.as_ref().map(|(_, config)| config), tokenizer);
        let (found_in, source) = if let Some((shown, bytes)) =
            read("chat_template.jinja", MAX_TEMPLATE_BYTES as u64)?
        {
            let source = String::from_utf8(bytes).map_err(|_| unusable(&shown, "not UTF-8 text"))?;
            (shown, source)
        } else {
            let own_file = parse(read("chat_template.json", MAX_CONFIG_BYTES)?)?;
            let found = [own_file, config]
                .into_iter()
                .flatten()
                .find_map(|(shown, config)| default_of(&config.chat_template).map(|source| (shown, source)));
            found.ok_or_else(|| {
                Error::Chat(format!(
                    "{}: no chat template, neither chat_template.jinja nor one in tokenizer_config.json: leave --chat out",
                    folder.display()
                ))
            })?
        };
        Self::new(found_in, &source, special)
    }

    /// A template out of a GGUF file's metadata (`tokenizer.chat_template`).
    ///
    /// # Errors
    /// [`Error::Chat`]: it is longer than any real one.
    pub fn of_metadata(path: &str, source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        Self::new(format!("{path}, tokenizer.chat_template"), source, special(None, tokenizer))
    }

    fn new(found_in: String, source: &str, special: Vec<(&'static str, String)>) -> Result<Self> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let why = format!("a template of {} bytes, the limit is {MAX_TEMPLATE_BYTES}", source.len());
            return Err(unusable(&found_in, &why));
        }
        Ok(Self { found_in, source: without_generation_blocks(source), special })
    }

    /// The conversation as the model is to read it, at the end the words that begin its answer.
    ///
    /// # Errors
    /// [`Error::Chat`], one line: the template is malformed, refuses the conversation, or costs more than it may.
    pub fn render(&self, messages: &[Message], at: Date) -> Result<String> {
        // The engine's budget does not know of everything: a list added to itself again and again costs nothing there and
        // is counted through exponentially often. Where the time is over, the thread is left to itself.
        let (sender, rendered) = mpsc::sync_channel(1);
        let (template, messages) = (self.clone(), messages.to_vec());
        let work = move || {
            let text = unwinding(|| template.render_here(&messages, at));
            let malformed = || Err(unusable(&template.found_in, "malformed"));
            // Nobody waits any more where the time was over.
            let _ = sender.send(text.unwrap_or_else(|_| malformed()));
        };
        std::thread::Builder::new()
            .name("chat template".into())
            .stack_size(STACK_BYTES)
            .spawn(work)
            .map_err(|why| unusable(&self.found_in, &why.to_string()))?;
        rendered.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            Err(unusable(&self.found_in, "rendering it takes longer than any real template"))
        })
    }

    fn render_here(&self, messages: &[Message], at: Date) -> Result<String> {
        let fault = |error: &minijinja::Error| match error.kind() {
            ErrorKind::OutOfFuel => {
                unusable(&self.found_in, "rendering it costs more than any real template")
            }
            _ => unusable(&self.found_in, &reason(error)),
        };
        let environment = environment(messages, at);
        let template =
            environment.template_from_named_str("template", &self.source).map_err(|e| fault(&e))?;
        let said: Value = messages
            .iter()
            .map(|message| context! { role => message.role.name(), content => message.content.as_str() })
            .collect();
        let special =
            Value::from_pairs(self.special.iter().map(|(name, text)| (*name, Value::from(text.as_str()))));
        let context = context! {
            messages => said,
            add_generation_prompt => true,
            tools => (),
            documents => (),
            ..special
        };
        template.render(context).map_err(|e| fault(&e))
    }
}

/// When a conversation began, for templates that tell the date: seconds since 1970, read as UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date(pub u64);

impl Date {
    /// The present second. A conversation keeps the one it began in, or its beginning would change at midnight.
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }
}

/// Everything that a template may use.
fn environment(messages: &[Message], at: Date) -> Environment<'static> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    // The delimiters are the usual ones, which is all that could be wrong.
    environment.set_syntax(syntax.build().unwrap_or_default());
    environment.set_debug(false);
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
    environment.set_fuel(Some(BASE_FUEL + (bytes / BYTES_PER_FUEL) as u64));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", |state: &State, value: &Value, options: Kwargs| {
        python::tojson(state, value, &options)
    });
    environment.add_function("raise_exception", |said: Rest<String>| -> std::result::Result<(), _> {
        Err(minijinja::Error::new(
            ErrorKind::InvalidOperation,
            format!("the template says: {}", said.join(" ")),
        ))
    });
    environment.add_function("strftime_now", move |format: &str| python::strftime(format, at.0));
    environment
}

/// The template's own words, without the kind of the error where it refuses by itself.
fn reason(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) if detail.starts_with("the template says") => detail.to_owned(),
        _ => error.to_string(),
    }
}

fn unusable(found_in: &str, why: &str) -> Error {
    Error::Chat(format!("{found_in}: chat template: {}", quoted(why, MOST_REASON_CHARS)))
}

/// A template alone, or the one named `default` of several.
fn default_of(field: &Json) -> Option<String> {
    match field {
        Json::String(source) => Some(source.clone()),
        Json::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        }
        Json::Object(named) => named.get("default")?.as_str().map(str::to_owned),
        _ => None,
    }
}

/// Spellings of the special tokens, where they are known.
fn special(config: Option<&TokenizerConfig>, tokenizer: &Tokenizer) -> Vec<(&'static str, String)> {
    /// A token is spelled alone, or in an object with what else is known of it.
    fn spelled(token: &Json) -> Option<String> {
        token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
    }
    let own = |id: Option<u32>| id.map(|id| tokenizer.piece(id).lossy().into_owned());
    let tokens = [
        ("bos_token", config.map(|c| &c.bos_token), own(tokenizer.bos())),
        ("eos_token", config.map(|c| &c.eos_token), own(tokenizer.eos().first().copied())),
        ("unk_token", config.map(|c| &c.unk_token), None),
        ("pad_token", config.map(|c| &c.pad_token), None),
    ];
    tokens
        .into_iter()
        .filter_map(|(name, token, own)| Some((name, token.and_then(spelled).or(own)?)))
        .collect()
}

/// Hugging Face marks what the model says for training, `{% generation %}…{% endgeneration %}`; rendered, the marks are
/// nothing.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inner = &tag[..end];
        let word = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let plain = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        match plain {
            Some(plain) => out.push_str(&inner.replace(word, plain)),
            None => out.push_str(inner),
        }
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}
