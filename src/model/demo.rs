//! The embedded demo model and its first-minute prompt: a pass key told early in a few short stories and asked for at
//! the end. See `demo/README.md` for what the model can and cannot do.

mod story;

use std::io::Cursor;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::weights::Weights;
use super::{Config, Decoder, Model, Result, Tokenizer};
use story::story;

/// The embedded `config.json`.
pub(super) const CONFIG: &[u8] = include_bytes!("demo/config.json");
/// The embedded `model.safetensors`.
pub(super) const WEIGHTS: &[u8] = include_bytes!("demo/model.safetensors");
/// The embedded `vocab.json`.
const VOCAB: &[u8] = include_bytes!("demo/vocab.json");

/// Name on the model card.
pub const NAME: &str = "demo";
/// Tokens of the demo's prompt, question included.
pub const TOKENS: usize = 600;
/// Where in its prompt the key is told, as a share of the context.
pub const DEPTH: f32 = 0.3;
/// Shortest and longest prompt of [`passkey`], in tokens; the model was made for contexts of 4096.
pub const TOKEN_LIMITS: (usize, usize) = (64, 4000);

/// Loads the embedded model.
pub fn load() -> Result<Model> {
    let config = config();
    let weights = Weights::open("the embedded model.safetensors".into(), Cursor::new(WEIGHTS))?;
    let decoder = Decoder::load(config, weights, NAME.into(), String::new())?;
    Ok(Model { decoder, tokenizer: tokenizer() })
}

fn config() -> Config {
    Config::parse("the embedded config.json", CONFIG)
        .expect("the embedded configuration is valid, as a test checks")
}

pub(super) fn tokenizer() -> Tokenizer {
    Tokenizer::from_words("the embedded vocab.json", VOCAB, &config())
        .expect("the embedded word list is valid, as a test checks")
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

/// A passkey prompt of about `tokens` tokens (never more, and at most a sentence fewer), BOS and question included,
/// with the key told at a `depth` between 0 (first sentence) and 1 (last). The same arguments give the same prompt.
pub fn passkey(seed: u64, tokens: usize, depth: f32) -> Passkey {
    let tokenizer = tokenizer();
    let length =
        |text: &str| tokenizer.encode_continuation(text).expect("the word scheme encodes any text").len();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let key = format!(" {:05}", rng.random_range(0..100_000));
    let told = format!(" The pass key is{key}. Remember it.");
    let question = " What is the pass key? The pass key is";

    let bos = 1;
    let room = tokens.clamp(TOKEN_LIMITS.0, TOKEN_LIMITS.1) - bos - length(&told) - length(question);
    let mut sentences: Vec<(String, usize)> = Vec::new();
    let mut used = 0;
    'stories: loop {
        for sentence in story(&mut rng) {
            let cost = length(&sentence);
            if used + cost > room {
                break 'stories;
            }
            used += cost;
            sentences.push((sentence, cost));
        }
    }

    let depth = if depth.is_nan() { DEPTH } else { depth.clamp(0.0, 1.0) };
    let before = depth * used as f32;
    let mut context = String::new();
    let mut at = 0;
    let mut told = Some(told);
    for (sentence, cost) in sentences {
        if at as f32 >= before {
            context.extend(told.take());
        }
        context.push_str(&sentence);
        at += cost;
    }
    context.extend(told);
    Passkey { context, question: question.into(), key }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_embedded_model_loads() {
        let model = load().unwrap();
        let card = model.decoder.card();
        assert_eq!((card.name.as_str(), card.weights.as_str(), card.parameters), ("demo", "f16", 2_779_392));
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
        fn a_prompt_keeps_to_its_length_its_depth_and_the_models_words(
            seed in any::<u64>(), tokens in prop_oneof![0usize..4200, Just(usize::MAX)], depth in -0.5f32..1.5,
        ) {
            let prompt = passkey(seed, tokens, depth);
            let tokenizer = tokenizer();
            let context = tokenizer.encode(&prompt.context).unwrap();
            let question = tokenizer.encode_continuation(&prompt.question).unwrap();
            let asked = tokens.clamp(TOKEN_LIMITS.0, TOKEN_LIMITS.1);
            let total = context.len() + question.len();
            prop_assert!(total <= asked && total + 24 > asked, "{total} of {asked}");

            let told = format!(" The pass key is{}. Remember it.", prompt.key);
            prop_assert_eq!(prompt.context.matches(&told).count(), 1);
            prop_assert_eq!(prompt.context.matches("pass key").count(), 1);
            let before = tokenizer.encode(&prompt.context[..prompt.context.find(&told).unwrap()]).unwrap().len();
            let wanted = depth.clamp(0.0, 1.0) * (context.len() - 20) as f32;
            prop_assert!((before as f32 - wanted).abs() < 30.0, "told at {before}, wanted at {wanted}");

            // Beyond the words only spaces, punctuation and "I", which the model was trained to read as bytes.
            let rest = prompt.context.replace(&told, "");
            for id in tokenizer.encode(&rest).unwrap() {
                prop_assert!(id >= 256 || b".,?\"I".contains(&(id as u8)) || id == 32, "byte {id} in {rest}");
            }
        }
    }
}
