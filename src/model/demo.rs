//! The embedded demo model, the small language it was made for, and its first-minute prompt: a pass key told early in a
//! few short stories and asked for at the end. See `demo/README.md` for what the model can and cannot do.
//!
//! [`document()`] writes what the model learns from and [`prompt`] what it is asked, both with the words and the stories
//! of this room, so that neither can drift from the other.

pub mod document;
pub mod prompt;
pub mod story;
mod words;

use std::sync::LazyLock;

pub use self::document::{Document, DocumentKind, document};
use super::bytes::Bytes;
use super::matrix::Matrix;
use super::weights::Safetensors;
use super::{Config, Decoder, Model, Precision, Result, Tokenizer};

/// The embedded `config.json`.
pub const CONFIG: &[u8] = include_bytes!("demo/config.json");
/// The embedded `model.safetensors`.
pub(super) const WEIGHTS: &[u8] = include_bytes!("demo/model.safetensors");
/// The embedded `vocab.json`.
pub const VOCAB: &[u8] = include_bytes!("demo/vocab.json");

/// Name on the model card.
pub const NAME: &str = "demo";
/// Tokens of the demo's prompt, question included.
pub const TOKENS: usize = 600;
/// Where in its prompt the key is told, as a share of the context.
pub const DEPTH: f32 = 0.3;
/// Shortest and longest prompt of [`passkey`], in tokens; the model was made for contexts of 4096.
pub const TOKEN_LIMITS: (usize, usize) = (64, 4000);

/// Loads the embedded model with its weights in another type than f32.
///
/// # Errors
/// Rows that are no whole blocks of it.
pub fn load_as(precision: Option<Precision>) -> Result<Model> {
    let Some(precision) = precision else { return load() };
    let config = config();
    precision.check(NAME, &config)?;
    let weights = Safetensors::open("the embedded model.safetensors".into(), Bytes::Static(WEIGHTS))?;
    let card = (NAME.into(), String::new());
    let mut decoder = Decoder::load(config, weights, card, |matrix| precision.apply(&matrix))?;
    decoder.note_weights(Some(precision));
    Ok(Model::new(decoder, tokenizer()))
}

/// Loads the embedded model.
pub fn load() -> Result<Model> {
    let config = config();
    let weights = Safetensors::open("the embedded model.safetensors".into(), Bytes::Static(WEIGHTS))?;
    // So small a model is bound by arithmetic, not by memory: wide weights need no widening at every chunk.
    let decoder =
        Decoder::load(config, weights, (NAME.into(), String::new()), |matrix| Matrix::widened(&matrix))?;
    Ok(Model::new(decoder, tokenizer()))
}

fn config() -> Config {
    Config::parse("the embedded config.json", CONFIG)
        .expect("the embedded configuration is valid, as a test checks")
}

pub(super) fn tokenizer() -> Tokenizer {
    Tokenizer::from_words("the embedded vocab.json", VOCAB, &config())
        .expect("the embedded word list is valid, as a test checks")
}

/// The id that begins every sequence.
pub const BOS: u32 = 256;
/// Entries of the word list.
pub const VOCAB_SIZE: usize = 608;

/// The ids of a text that goes on where another ended.
fn encode(text: &str) -> Vec<u32> {
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(tokenizer);
    TOKENIZER.encode_continuation(text).expect("the word scheme encodes any text")
}

/// Whether a tokenizer's tokens are those that the texts of this room are made of.
pub fn is_spoken_by(other: &Tokenizer) -> bool {
    let own = tokenizer();
    let same = |id: u32| own.piece(id) == other.piece(id);
    own.vocab_size() == other.vocab_size() && (0..own.vocab_size() as u32).all(same)
}

fn tokens_of(text: &str) -> usize {
    encode(text).len()
}

/// A prompt with one right answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passkey {
    /// Stories, with the key told once among their sentences.
    pub context: String,
    /// Fed after the context; the answer continues it.
    pub question: String,
    /// What the generated text must begin with: a space and five digits.
    pub key: String,
}

/// [`prompt::passkey`] within [`TOKEN_LIMITS`].
pub fn passkey(seed: u64, tokens: usize, depth: f32) -> Passkey {
    let depth = if depth.is_nan() { DEPTH } else { depth };
    let task = prompt::passkey(seed, tokens.clamp(TOKEN_LIMITS.0, TOKEN_LIMITS.1), depth);
    Passkey { context: task.context, question: task.question, key: task.answer }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_embedded_model_loads() {
        let model = load().unwrap();
        let card = model.decoder.card();
        assert_eq!((card.name.as_str(), card.weights.as_str(), card.parameters), ("demo", "f16", 2_910_464));
        assert_eq!(model.tokenizer.vocab_size(), card.vocab as usize);
    }

    #[test]
    fn the_seed_makes_the_prompt() {
        let prompt = passkey(0, TOKENS, DEPTH);
        assert_eq!(prompt, passkey(0, TOKENS, DEPTH));
        assert_ne!(prompt.key, passkey(1, TOKENS, DEPTH).key);
        assert_ne!(prompt.context, passkey(1, TOKENS, DEPTH).context);
        assert_eq!(passkey(0, TOKENS, f32::NAN), prompt);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_prompt_keeps_to_its_length_and_its_depth(
            seed in any::<u64>(), tokens in prop_oneof![0usize..4200, Just(usize::MAX)], depth in -0.5f32..1.5,
        ) {
            let prompt = passkey(seed, tokens, depth);
            let tokenizer = tokenizer();
            let context = tokenizer.encode(&prompt.context).unwrap();
            let question = tokenizer.encode_continuation(&prompt.question).unwrap();
            let asked = tokens.clamp(TOKEN_LIMITS.0, TOKEN_LIMITS.1);
            let total = context.len() + question.len();
            prop_assert!(total <= asked && total + 26 > asked, "{total} of {asked}");

            let told = format!(" The pass key is{}. Remember it.", prompt.key);
            prop_assert_eq!(prompt.context.matches(&told).count(), 1);
            prop_assert_eq!(prompt.context.matches("pass key").count(), 1);
            let before = tokenizer.encode(&prompt.context[..prompt.context.find(&told).unwrap()]).unwrap().len();
            let wanted = depth.clamp(0.0, 1.0) * (context.len() - 20) as f32;
            prop_assert!((before as f32 - wanted).abs() < 30.0, "told at {before}, wanted at {wanted}");
        }
    }
}
