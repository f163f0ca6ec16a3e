//! The tokenizer that a GGUF file carries: its vocabulary put into the form of a `tokenizer.json`, so that one path
//! encodes and spells for both.
//!
//! Sources: llama.cpp's `llama-vocab.cpp` for the names of the pre-tokenizers, their expressions and what goes with them;
//! the order of SentencePiece's merges follows transformers' conversion of such vocabularies (`SpmConverter`).

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::model::error::quoted;
use crate::model::gguf::Header;
use crate::model::{Config, Error, Result};

use super::Tokenizer;

/// Most tokens.
const MAX_TOKENS: usize = 1 << 22;
/// Most merges; the largest vocabularies known have 600,000.
const MAX_MERGES: usize = 1 << 21;
/// Most bytes of all merges together.
const MAX_MERGE_BYTES: usize = 64 << 20;
/// Most bytes hashed to find the merges of a vocabulary with scores; the largest known needs a hundredth.
const MAX_MERGE_WORK: usize = 1 << 32;
/// What stands for a space in SentencePiece's vocabularies.
const SPACE: char = '\u{2581}';

/// Contractions, letters, digits and the rest, with a space before them: GPT-2's split.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
/// Llama 3's: digits by threes.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's: each digit by itself.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken: words part where the case changes.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-4o's: as Tekken's, contractions stay with their word, digits by threes.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Han, Kana and Hangul, as DeepSeek's vocabularies take them apart.
const EAST_ASIAN: &str = r"[\x{4e00}-\x{9fa5}\x{0800}-\x{4e00}\x{ac00}-\x{d7ff}]+";

/// What a token is, by ggml's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Part of a text, made by merges.
    Normal,
    /// Stands for what has no token.
    Unknown,
    /// Steers the model; no part of a text.
    Control,
    /// Matched as a whole before any merge.
    UserDefined,
    /// A row without a use.
    Unused,
    /// One byte.
    Byte,
}

/// A vocabulary as a GGUF file holds it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vocabulary {
    /// `tokenizer.ggml.model`: `llama` is SentencePiece's BPE by scores, `gpt2` is BPE of bytes by merges.
    pub model: String,
    /// `tokenizer.ggml.pre`: how a text is split before the merges of `gpt2`; empty where the file says nothing.
    pub pre: String,
    /// Spelling by id.
    pub tokens: Vec<String>,
    /// Score by id, of `llama`: the pair whose token has the highest is merged first.
    pub scores: Vec<f32>,
    /// Kind by id; empty where every token is normal.
    pub kinds: Vec<TokenKind>,
    /// `left right`, best first, of `gpt2`.
    pub merges: Vec<String>,
    /// The token put before a text.
    pub bos: Option<u32>,
    /// The token that stands for what has none.
    pub unknown: Option<u32>,
    /// Whether BOS is put before a text, where the file says.
    pub add_bos: Option<bool>,
    /// Whether a text of `llama` gets a space before it, where the file says.
    pub add_space_prefix: Option<bool>,
    /// Whether control tokens take the blanks behind them: Phi-3's do, which no file says but by the model's name.
    pub strips_right: bool,
}

impl Vocabulary {
    /// Reads the vocabulary from a file's metadata.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where there is none, [`Error::Config`] for an entry of the wrong type.
    pub(in crate::model) fn read(header: &Header, file: &[u8]) -> Result<Self> {
        let text = |key| Ok::<_, Error>(header.text(key)?.unwrap_or_default().to_owned());
        let id = |key| Ok::<_, Error>(header.size(key)?.and_then(|id| u32::try_from(id).ok()));
        let model = text("tokenizer.ggml.model")?;
        let missing = |what: &str| Error::Tokenizer {
            path: header.path().into(),
            reason: format!("{what} is missing; convert the model again with its tokenizer"),
        };
        if model.is_empty() {
            return Err(missing("tokenizer.ggml.model"));
        }
        let tokens = header.texts(file, "tokenizer.ggml.tokens", MAX_TOKENS)?;
        let kinds = header.whole_numbers(file, "tokenizer.ggml.token_type", MAX_TOKENS)?.unwrap_or_default();
        let name = text("general.name")?.to_lowercase();
        Ok(Self {
            pre: text("tokenizer.ggml.pre")?,
            tokens: tokens.ok_or_else(|| missing("tokenizer.ggml.tokens"))?,
            scores: header.floats(file, "tokenizer.ggml.scores", MAX_TOKENS)?.unwrap_or_default(),
            kinds: kinds.into_iter().map(TokenKind::of).collect(),
            merges: header.texts(file, "tokenizer.ggml.merges", MAX_MERGES)?.unwrap_or_default(),
            bos: id("tokenizer.ggml.bos_token_id")?,
            unknown: id("tokenizer.ggml.unknown_token_id")?,
            add_bos: header.flag("tokenizer.ggml.add_bos_token")?,
            add_space_prefix: header.flag("tokenizer.ggml.add_space_prefix")?,
            strips_right: name.contains("phi-3") || name.contains("phi3"),
            model,
        })
    }

    fn kind(&self, id: usize) -> TokenKind {
        self.kinds.get(id).copied().unwrap_or(TokenKind::Normal)
    }

    fn token(&self, id: Option<u32>) -> Option<(u32, &str)> {
        let id = id?;
        self.tokens.get(id as usize).map(|token| (id, token.as_str()))
    }

    /// The same in the form of a `tokenizer.json`.
    fn document(&self) -> std::result::Result<Value, String> {
        let mut document = match self.model.as_str() {
            "llama" => self.sentence_piece()?,
            "gpt2" => self.byte_level()?,
            other => {
                return Err(format!(
                    "tokenizer.ggml.model \"{}\" is not supported; supported: llama, gpt2",
                    quoted(other, 40)
                ));
            }
        };
        document["version"] = "1.0".into();
        document["added_tokens"] = self.added_tokens();
        let by_default = self.model == "llama" || split_of(&self.pre).is_some_and(|split| split.add_bos);
        if let Some((id, bos)) = self.token(self.bos).filter(|_| self.add_bos.unwrap_or(by_default)) {
            document["post_processor"] = json!({
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
            });
        }
        Ok(document)
    }

    /// What is matched as a whole, before the text between is split.
    fn added_tokens(&self) -> Value {
        let added = self.tokens.iter().enumerate().filter_map(|(id, token)| {
            let special = match self.kind(id) {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                _ => return None,
            };
            let keeps_blanks = matches!(token.as_str(), "<unk>" | "<s>" | "<|endoftext|>");
            (!token.is_empty()).then(|| {
                json!({
                    "id": id, "content": token, "special": special, "normalized": false, "single_word": false,
                    "lstrip": false, "rstrip": self.strips_right && !keeps_blanks,
                })
            })
        });
        added.collect()
    }

    fn vocab(&self) -> Value {
        let mut vocab = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            // Of two tokens of one spelling the first is the one that texts get.
            vocab.entry(token.as_str()).or_insert_with(|| id.into());
        }
        vocab.into()
    }

    fn sentence_piece(&self) -> std::result::Result<Value, String> {
        let mut normalizers = vec![json!({
            "type": "Replace", "pattern": {"String": " "}, "content": SPACE,
        })];
        if self.add_space_prefix.unwrap_or(true) {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        }
        let unknown = self.token(self.unknown).map(|(_, token)| token);
        Ok(json!({
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ]},
            "model": {
                "type": "BPE", "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
                "vocab": self.vocab(), "merges": self.merges_by_score()?,
            },
        }))
    }

    /// Every way to put a token together from two others, the highest score first. One score's ways go by the ids of
    /// their parts.
    fn merges_by_score(&self) -> std::result::Result<Value, String> {
        if self.scores.len() != self.tokens.len() {
            return Err(format!(
                "tokenizer.ggml.scores has {} elements for {} tokens; convert the model again",
                self.scores.len(),
                self.tokens.len()
            ));
        }
        let normal = |id: usize| matches!(self.kind(id), TokenKind::Normal | TokenKind::UserDefined);
        let ids: HashMap<&str, usize> = self
            .tokens
            .iter()
            .enumerate()
            .rev()
            .filter(|(id, _)| normal(*id))
            .map(|(id, token)| (token.as_str(), id))
            .collect();
        let (mut merges, mut bytes, mut work) = (Vec::new(), 0, 0);
        for (&token, &id) in &ids {
            work += token.len() * token.len();
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                    merges.push((self.scores[id], id, left, right));
                    bytes += token.len();
                }
            }
            if work > MAX_MERGE_WORK || merges.len() > MAX_MERGES || bytes > MAX_MERGE_BYTES {
                return Err(format!(
                    "damaged: the {} tokens have more merges than any vocabulary",
                    ids.len()
                ));
            }
        }
        merges
            .sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.2, a.3, a.1).cmp(&(b.2, b.3, b.1))));
        let token = |id: usize| self.tokens[id].as_str();
        Ok(merges.into_iter().map(|(_, _, left, right)| json!([token(left), token(right)])).collect())
    }

    fn byte_level(&self) -> std::result::Result<Value, String> {
        let split = split_of(&self.pre).ok_or_else(|| {
            format!(
                "tokenizer.ggml.pre \"{}\" is not supported; supported: {}",
                quoted(&self.pre, 40),
                SPLITS.iter().flat_map(|split| split.names).copied().collect::<Vec<_>>().join(", ")
            )
        })?;
        let mut merges = Vec::with_capacity(self.merges.len());
        let mut bytes = 0;
        for merge in &self.merges {
            // A part may begin with a space only where a file is no byte-level vocabulary.
            let Some((left, right)) = merge.split_once(' ') else {
                return Err(format!("damaged: the merge \"{}\" has no two parts", quoted(merge, 40)));
            };
            bytes += merge.len();
            merges.push(json!([left, right]));
        }
        if bytes > MAX_MERGE_BYTES {
            return Err(format!("damaged: {bytes} bytes of merges, which no vocabulary has"));
        }
        let mut parts: Vec<Value> = split
            .expressions
            .iter()
            .map(|expression| {
                json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false})
            })
            .collect();
        let bytes = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
        });
        parts.push(bytes.clone());
        let normalizer = split.composes.then(|| json!({"type": "NFC"}));
        Ok(json!({
            "normalizer": normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
            "decoder": bytes,
            "model": {
                "type": "BPE", "fuse_unk": false, "byte_fallback": false, "ignore_merges": split.ignore_merges,
                "vocab": self.vocab(), "merges": merges,
            },
        }))
    }
}

impl TokenKind {
    pub(super) fn of(number: i32) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// How a text is taken apart before the merges.
struct Split {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Each takes apart what the ones before it left together.
    expressions: &'static [&'static str],
    /// Whether a piece that is a token needs no merges to become it.
    ignore_merges: bool,
    /// Whether BOS is put before a text where the file does not say.
    add_bos: bool,
    /// Whether texts are put into Unicode's composed form first.
    composes: bool,
}

impl Split {
    const fn plain(names: &'static [&'static str], expressions: &'static [&'static str]) -> Self {
        Self { names, expressions, ignore_merges: false, add_bos: false, composes: false }
    }
}

const SPLITS: [Split; 11] = [
    Split::plain(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    Split {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"],
        expressions: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        composes: false,
    },
    Split::plain(&["smaug-bpe", "dbrx", "chatglm-bpe", "glm4"], &[LLAMA3]),
    Split {
        composes: true,
        ..Split::plain(&["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan"], &[QWEN2])
    },
    Split { names: &["tekken"], expressions: &[TEKKEN], ignore_merges: true, add_bos: true, composes: false },
    Split::plain(&["gpt-4o", "llama4"], &[GPT4O]),
    Split::plain(&["gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais"], &[GPT2]),
    Split::plain(
        &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"],
        &[r"\p{N}", GPT2],
    ),
    Split::plain(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    Split::plain(
        &["deepseek-llm"],
        &[
            r"[\r\n]",
            r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            EAST_ASIAN,
            r"\p{N}+",
        ],
    ),
    Split::plain(&["deepseek-coder"], &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, r"\p{N}"]),
];

/// The split of a name; the default where there is none, as the files from before the name have it.
fn split_of(pre: &str) -> Option<&'static Split> {
    let pre = if pre.is_empty() { "default" } else { pre };
    SPLITS.iter().find(|split| split.names.contains(&pre))
}

impl Tokenizer {
    /// The tokenizer of a GGUF file; `path` is only named in errors. BOS and end tokens are the configuration's, as for a
    /// `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]: a model or a split this build does not know, or a damaged vocabulary.
    pub fn from_gguf(path: &str, vocabulary: &Vocabulary, config: &Config) -> Result<Self> {
        let fault = |reason| Error::Tokenizer { path: path.into(), reason };
        let document = vocabulary.document().map_err(fault)?;
        let json = serde_json::to_vec(&document).map_err(|error| fault(error.to_string()))?;
        drop(document);
        Self::from_json(path, &json, config)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn config(vocab: usize) -> Config {
        Config { vocab, eos: vec![], bos: None, ..crate::model::decoder::tests::odd_config() }
    }

    fn bytes(extra: &[(&str, TokenKind)], merges: &[&str]) -> Vocabulary {
        let alphabet = (0x21..=0x7e).chain([0x120, 0x10a]).filter_map(char::from_u32);
        let mut tokens: Vec<String> = alphabet.map(String::from).collect();
        let mut kinds = vec![TokenKind::Normal; tokens.len()];
        tokens.extend(extra.iter().map(|(token, _)| (*token).to_owned()));
        kinds.extend(extra.iter().map(|(_, kind)| *kind));
        let merges = merges.iter().map(|merge| (*merge).to_owned()).collect();
        Vocabulary { model: "gpt2".into(), tokens, kinds, merges, ..Vocabulary::default() }
    }

    fn pieces(vocabulary: &Vocabulary, text: &str) -> Vec<String> {
        let tokenizer = Tokenizer::from_gguf("f", vocabulary, &config(vocabulary.tokens.len())).unwrap();
        let ids = tokenizer.encode(text).unwrap();
        ids.into_iter().map(|id| String::from_utf8_lossy(&tokenizer.piece(id).0).into_owned()).collect()
    }

    #[test]
    fn merges_and_splits_make_the_pieces() {
        let normal = |token| (token, TokenKind::Normal);
        let extra = [normal("12"), normal("123"), normal("Ġa"), ("<|x|>", TokenKind::Control)];
        let mut vocabulary = bytes(&extra, &["1 2", "12 3", "Ġ a"]);
        for (pre, expected) in [
            ("llama-bpe", vec!["b", " a", " ", "123", "12", "<|x|>"]),
            ("qwen2", vec!["b", " a", " ", "1", "2", "3", "1", "2", "<|x|>"]),
            ("gpt-2", vec!["b", " a", " ", "123", "12", "<|x|>"]),
        ] {
            vocabulary.pre = pre.into();
            assert_eq!(pieces(&vocabulary, "b a 12312<|x|>"), expected, "{pre}");
        }
    }

    #[test]
    fn bos_goes_by_the_file_then_by_the_split() {
        let mut vocabulary = bytes(&[("<s>", TokenKind::Control)], &[]);
        vocabulary.bos = Some(vocabulary.tokens.len() as u32 - 1);
        for (pre, add_bos, has_bos) in [
            ("llama-bpe", None, true),
            ("llama-bpe", Some(false), false),
            ("gpt-2", None, false),
            ("gpt-2", Some(true), true),
        ] {
            (vocabulary.pre, vocabulary.add_bos) = (pre.into(), add_bos);
            assert_eq!(pieces(&vocabulary, "a"), if has_bos { vec!["<s>", "a"] } else { vec!["a"] });
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        let refusal = |vocabulary: &Vocabulary| {
            Tokenizer::from_gguf("f", vocabulary, &config(300)).unwrap_err().to_string()
        };
        let good = bytes(&[], &[]);
        for (vocabulary, expected) in [
            (
                Vocabulary { model: "t5\u{1b}".into(), ..good.clone() },
                "tokenizer.ggml.model \"t5 \" is not supported",
            ),
            (
                Vocabulary { pre: "new".into(), ..good.clone() },
                "tokenizer.ggml.pre \"new\" is not supported; supported: default,",
            ),
            (Vocabulary { merges: vec!["ab".into()], ..good.clone() }, "the merge \"ab\" has no two parts"),
            (Vocabulary { merges: vec!["a b".into()], ..good.clone() }, "out of vocabulary"),
            (Vocabulary { model: "llama".into(), ..good.clone() }, "scores has 0 elements for 96 tokens"),
        ] {
            let refusal = refusal(&vocabulary);
            assert!(refusal.contains(expected) && !refusal.contains(char::is_control), "{refusal}");
        }
        let tokens: Vec<String> = (1..4000).map(|n| "a".repeat(n)).collect();
        let many = Vocabulary {
            model: "llama".into(),
            scores: vec![0.0; tokens.len()],
            tokens,
            ..Vocabulary::default()
        };
        assert!(refusal(&many).contains("more merges than any vocabulary"), "{}", refusal(&many));
    }

    /// The vocabulary of stories260k in both its forms: the same ids for the same texts.
    #[test]
    fn stories260k_reads_as_its_tokenizer_json_does() {
        let Some(data) = std::env::var_os("KVISTA_TEST_DATA").map(PathBuf::from) else {
            eprintln!("skipped: KVISTA_TEST_DATA is not set");
            return;
        };
        let folder = data.join("stories260k");
        let file = std::fs::read(folder.join("stories260K-f32.gguf")).unwrap();
        let vocabulary = Vocabulary::read(&Header::parse("f", &file).unwrap(), &file).unwrap();
        let ours = Tokenizer::from_gguf("f", &vocabulary, &config(512)).unwrap();
        let json = std::fs::read(folder.join("tokenizer.json")).unwrap();
        let theirs = Tokenizer::from_json("t", &json, &config(512)).unwrap();
        let stories: Vec<String> =
            serde_json::from_slice(&std::fs::read(data.join("text/tinystories_1000.json")).unwrap()).unwrap();
        for text in stories.iter().take(100).map(String::as_str).chain(["", " ", "  a", "é\n日本<unk></s>x"])
        {
            assert_eq!(ours.encode(text).unwrap(), theirs.encode(text).unwrap(), "{text}");
            assert_eq!(ours.encode_continuation(text).unwrap(), theirs.encode_continuation(text).unwrap());
        }
        assert!((0..512).all(|id| ours.piece(id) == theirs.piece(id)));
        assert!((0..512).all(|id| ours.is_special(id) == theirs.is_special(id)));
    }
}
