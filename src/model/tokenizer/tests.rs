use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::model::demo;

fn demo() -> Tokenizer {
    demo::tokenizer()
}

fn data() -> Option<PathBuf> {
    let folder = std::env::var_os("KVISTA_TEST_DATA").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: KVISTA_TEST_DATA is not set");
    }
    folder
}

fn config(vocab: usize) -> Config {
    Config { vocab, bos: None, ..Config::parse("config.json", demo::CONFIG).unwrap() }
}

fn from_file(path: &str, vocab: usize) -> Option<Tokenizer> {
    let json = std::fs::read(data()?.join(path)).unwrap();
    Some(Tokenizer::from_json(path, &json, &config(vocab)).unwrap())
}

fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| tokenizer.piece(*id).0).collect()
}

/// A byte-level tokenizer: `Ġ` is a space, `Ã©` the two bytes of é.
pub(in crate::model) const BYTE_LEVEL: &str = r#"{"version":"1.0","added_tokens":[{"id":6,"content":"<|end|>","special":true,
    "single_word":false,"lstrip":false,"rstrip":false,"normalized":false}],
    "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
    "decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
    "model":{"type":"BPE","vocab":{"a":0,"Ġ":1,"Ã":2,"©":3,"Ã©":4,"Ġa":5},"merges":["Ã ©","Ġ a"]}}"#;

#[test]
fn the_longest_word_wins_and_bytes_fill_the_gaps() {
    let t = demo();
    let spelled = |text: &str| -> Vec<String> {
        t.encode(text).unwrap()[1..].iter().map(|id| t.piece(*id).lossy().into_owned()).collect()
    };
    assert_eq!(spelled(" Mia liked 42 cats."), [" Mia", " liked", " ", "4", "2", " cat", "s", "."]);
    assert_eq!(spelled("Mia"), [" Mia"]);
    assert_eq!(t.encode("").unwrap(), [256]);
    assert_eq!(t.bos(), Some(256));
    assert_eq!(t.unused(), (598..608).collect::<Vec<_>>());
    assert_eq!(t.encode("<s>").unwrap()[1..].iter().filter(|id| **id == 256).count(), 0);
    assert_eq!(
        (t.piece(256).lossy().as_ref(), t.piece(600), t.piece(9999)),
        ("<s>", Piece::default(), Piece::default())
    );
    assert_eq!(t.text(&[256, 72, 600]), "H");
}

#[test]
fn a_bad_word_list_is_refused() {
    let fault = |json: &str| Tokenizer::from_words("v", json.as_bytes(), &config(2)).unwrap_err().to_string();
    assert!(fault("{}").contains("not a list of strings"));
    assert!(fault("[]").contains("0 entries; config.json says vocab_size 2"));
    assert!(fault(r#"["<0x00>","a"]"#).contains("entry 1 is not <0x01>"));
    assert!(Tokenizer::bytes(&config(256)).unwrap_err().to_string().contains("entry 256"));
    assert_eq!(Tokenizer::bytes(&config(258)).unwrap().unused(), [257]);
}

#[test]
fn byte_level_tokens_are_their_bytes() {
    let t = Tokenizer::from_json("t", BYTE_LEVEL.as_bytes(), &config(8)).unwrap();
    let ids = t.encode("aé a<|end|>").unwrap();
    assert_eq!(ids, [0, 4, 5, 6]);
    assert_eq!(pieces(&t, &ids), "aé a<|end|>".as_bytes());
    assert_eq!(t.piece(2).0, [0xc3]);
    assert_eq!(t.text(&ids), "aé a");
    assert_eq!(t.unused(), [7]);
    assert_eq!(t.encode_continuation(" a").unwrap(), [5]);
}

#[test]
fn the_byte_alphabet_is_complete() {
    let printable = (0x21..=0x7eu32).chain(0xa1..=0xac).chain(0xae..=0xff);
    let alphabet: String = printable.chain(0x100..0x144).filter_map(char::from_u32).collect();
    let mut bytes = byte_level(&alphabet);
    bytes.sort_unstable();
    assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
    assert_eq!(byte_level("Ġ"), b" ");
    assert_eq!(byte_level("Ċ"), b"\n");
    assert_eq!(byte_level("▁"), "▁".as_bytes());
}

/// The crate reads such a template and panics when it first applies it.
#[test]
fn a_template_of_unknown_tokens_is_refused() {
    let with = |template: &str| BYTE_LEVEL.replacen("\"decoder\"", &format!("{template},\"decoder\""), 1);
    let template = |known: &str| {
        with(&format!(
            r#""post_processor":{{"type":"TemplateProcessing","single":[{{"SpecialToken":{{"id":"<s>","type_id":0}}}},
            {{"Sequence":{{"id":"A","type_id":0}}}}],"pair":[{{"Sequence":{{"id":"A","type_id":0}}}},
            {{"Sequence":{{"id":"B","type_id":0}}}}],
            "special_tokens":{{"{known}":{{"id":"{known}","ids":[6],"tokens":["<|end|>"]}}}}}}"#
        ))
    };
    let t = Tokenizer::from_json("t", template("<s>").as_bytes(), &config(8)).unwrap();
    assert_eq!(t.encode("a").unwrap(), [6, 0]);
    let error = Tokenizer::from_json("t", template("<t>").as_bytes(), &config(8)).unwrap_err().to_string();
    assert!(error.contains("not a usable tokenizer"), "{error}");
}

#[test]
fn an_id_without_a_row_is_an_error_not_a_crash() {
    let t = Tokenizer::from_json("t", BYTE_LEVEL.as_bytes(), &config(5)).unwrap();
    let text = t.encode("a a").unwrap_err().to_string();
    assert!(text.contains("makes id 5, the model's vocabulary has 5"), "{text}");
}

#[test]
fn garbage_is_refused_in_one_line() {
    for json in ["", "[]", "{}", r#"{"model":{"type":"BPE","vocab":3}}"#, "\u{0}", r#"{"decoder":"\ud800"}"#]
    {
        let text = Tokenizer::from_json("t", json.as_bytes(), &config(8)).unwrap_err().to_string();
        assert!(
            text.starts_with("t: not a usable tokenizer") && !text.contains('\n') && text.len() < 300,
            "{text}"
        );
    }
}

#[test]
fn a_table_that_the_crate_would_trust_blindly_is_refused() {
    let table = r#""normalizer":{"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":"AA"}]},"model""#;
    let json = BYTE_LEVEL.replace("\"model\"", table);
    let text = Tokenizer::from_json("t", json.as_bytes(), &config(8)).unwrap_err().to_string();
    assert!(text.ends_with("normalizer Precompiled is not supported"), "{text}");
}

#[test]
fn sentencepiece_tokens_keep_their_space() {
    let Some(t) = from_file("stories260k/tokenizer.json", 512) else { return };
    let text = "Once upon a time, Zoë saw\n 7 cats.";
    let ids = t.encode(text).unwrap();
    assert_eq!(ids[0], 1);
    assert_eq!(pieces(&t, &ids[1..]), format!(" {text}").as_bytes());
    assert_eq!(t.piece(1), "<s>".into());
    assert_eq!(t.text(&ids), format!(" {text}"));
    let invalid = t.piece(3 + 0xff);
    assert_eq!(invalid.0, [0xff]);
}

#[test]
fn a_context_and_its_question_are_the_whole() {
    let (context, question) = ("It was cold. The key is 1234. Go.", " What is the key? The key is");
    let tokenizers = [
        Some(demo()),
        Some(Tokenizer::bytes(&config(300)).unwrap()),
        from_file("stories260k/tokenizer.json", 512),
        from_file("tokenizers/phi-3-tokenizer.json", 32_064),
    ];
    for t in tokenizers.into_iter().flatten() {
        let whole = t.encode(&format!("{context}{question}")).unwrap();
        let parts = [t.encode(context).unwrap(), t.encode_continuation(question).unwrap()].concat();
        assert_eq!(parts, whole);
        let literal = t.encode_continuation("What").unwrap();
        assert_eq!(pieces(&t, &literal), b"What");
        assert!(t.encode_continuation("").unwrap().is_empty());
    }
}

#[test]
fn every_token_of_real_vocabularies_has_bytes() {
    for (path, vocab) in [("stories260k/tokenizer.json", 512), ("tokenizers/phi-3-tokenizer.json", 32_064)] {
        let Some(t) = from_file(path, vocab) else { return };
        let empty: Vec<u32> = (0..vocab as u32).filter(|id| t.piece(*id).0.is_empty()).collect();
        assert_eq!(empty, t.unused(), "{path}");
        assert!((0..vocab as u32).all(|id| !t.piece(id).lossy().contains('▁')), "{path}");
    }
}

#[test]
fn a_word_list_names_the_word_it_does_not_know() {
    let t = demo();
    for (text, unknown) in [
        (" Finn was a lonely boy. The pass key is 1234!", None),
        (" Finn met a wizard.", Some("met")),
        (" the naïve boy", Some("naïve")),
        ("Finnish", Some("Finnish")),
        (" (xyz)", Some("xyz")),
        (" é", Some("é")),
        ("\u{a0}\n7", None),
        ("", None),
    ] {
        assert_eq!(t.unknown_word(text), unknown, "{text}");
    }
    assert_eq!(Tokenizer::bytes(&config(300)).unwrap().unknown_word("xyz"), None);
    let t = Tokenizer::from_json("t", BYTE_LEVEL.as_bytes(), &config(8)).unwrap();
    assert_eq!(t.unknown_word("xyz"), None);
}

#[test]
fn the_beginning_is_not_doubled() {
    let Some(data) = data() else { return };
    let json = std::fs::read(data.join("stories260k/tokenizer.json")).unwrap();
    let t = Tokenizer::from_json("t", &json, &Config { bos: Some(1), ..config(512) }).unwrap();
    let plain = t.encode("Once").unwrap();
    assert_eq!(plain[0], 1);
    assert_eq!(t.encode("<s>Once").unwrap(), plain);
    assert_eq!(t.encode("<s><s>Once").unwrap()[..2], [1, 1], "whoever writes it twice gets it twice");
    assert_eq!(t.encode_rendered("<s>Once").unwrap(), plain);
    assert!(!t.encode_rendered("Once").unwrap().contains(&1));
}

/// Special tokens of a rendered conversation are tokens of their own, wherever they stand.
#[test]
fn a_rendered_conversation_keeps_its_special_tokens() {
    let Some(t) = from_file("tokenizers/phi-3-tokenizer.json", 32_064) else { return };
    let text = "<|user|>\nHi<|end|>\n<|assistant|>\n";
    let ids = t.encode_rendered(text).unwrap();
    let special: Vec<u32> = ids.iter().copied().filter(|id| *id >= 32_000).collect();
    assert_eq!(special, [32_010, 32_007, 32_001]);
    assert_eq!(ids[0], 32_010);
    // What goes on after an answer is what the whole has there.
    let rest = t.encode_continuation("<|end|>\n<|user|>\nWho?<|end|>\n<|assistant|>\n").unwrap();
    assert_eq!(
        rest.iter().copied().filter(|id| *id >= 32_000).collect::<Vec<_>>(),
        [32_007, 32_010, 32_007, 32_001]
    );
    assert_eq!(rest[0], 32_007);
}

proptest! {
    #[test]
    fn any_text_comes_back(text in ".*") {
        let t = demo();
        let ids = t.encode(&text).unwrap();
        let space = if text.is_empty() || text.starts_with(' ') { "" } else { " " };
        prop_assert_eq!(pieces(&t, &ids[1..]), format!("{space}{text}").into_bytes());
    }

    #[test]
    fn any_split_at_a_space_is_the_whole(words in prop::collection::vec("[A-Za-z0-9.]{1,8}| Mia| the", 1..20), at in 0usize..20) {
        let t = demo();
        let at = at.min(words.len());
        let join = |words: &[String]| words.iter().flat_map(|word| [" ", word.trim()]).collect::<String>();
        let (context, question) = (join(&words[..at]), join(&words[at..]));
        let parts = [t.encode(&context).unwrap(), t.encode_continuation(&question).unwrap()].concat();
        prop_assert_eq!(parts, t.encode(&format!("{context}{question}")).unwrap());
    }

    #[test]
    fn damaged_json_is_refused_or_read(at in 0usize..BYTE_LEVEL.len(), byte in any::<u8>()) {
        let mut json = BYTE_LEVEL.as_bytes().to_vec();
        json[at] = byte;
        if let Ok(t) = Tokenizer::from_json("t", &json, &config(8)) {
            let _ = t.encode("aé a<|end|>");
            let _ = t.encode_continuation(" a");
        }
    }
}
