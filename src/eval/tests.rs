//! Small tasks on the embedded model, on fixed seeds.

use std::sync::{Arc, LazyLock, Mutex};

use super::*;
use crate::model::demo as language;

static MODEL: LazyLock<Arc<Model>> = LazyLock::new(|| Arc::new(language::load().unwrap()));

fn lab() -> Lab<'static> {
    Lab::new(Arc::clone(&MODEL), 2, 77, &|_, _, _| ()).unwrap()
}

#[test]
fn the_key_is_found_without_its_sentence_never_and_with_it_alone_mostly() {
    let table = controls(&lab(), 512, 0.3, 4).unwrap();
    let exact: Vec<u64> = table.rows.iter().map(|row| row.cells[0].hits.unwrap()).collect();
    assert!(exact[0] >= 3, "{table:?}");
    assert_eq!((exact[1], exact[2]), (0, 0), "{table:?}");
    assert!(exact[3] >= 3, "{table:?}");
}

#[test]
fn a_task_is_the_same_for_any_number_of_threads_and_tells_its_progress() {
    let seen = Mutex::new(Vec::new());
    let watch = |what: &str, done: usize, of: usize| seen.lock().unwrap().push((what.to_owned(), done, of));
    let alone = Lab::new(Arc::clone(&MODEL), 1, 77, &watch).unwrap();
    let table = passkey(&alone, &Regime::full(), &[256], &[0.5, 0.9], 2).unwrap();
    assert_eq!(table, passkey(&lab(), &Regime::full(), &[256], &[0.5, 0.9], 2).unwrap());
    assert_eq!(table.rows[0].cells.len(), 2);
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen[1], ("passkey, 256 tokens, depth 0.5".into(), 2, 2));
    assert_eq!(seen.len(), 4);
}

#[test]
fn what_streaming_forgets_is_not_told() {
    let regimes = [Regime::full(), Regime::policy("streaming:budget=25%")];
    let table = repeated(&lab(), &regimes, 512, (4, 0.4), 3).unwrap();
    assert!(table.rows[0].cells[0].hits.unwrap() >= 2, "{table:?}");
    assert_eq!(table.rows[1].cells[0].hits, Some(0), "{table:?}");
    assert!(table.rows[1].cells[1].value > table.rows[0].cells[1].value);
}

#[test]
fn votes_compare_prompt_by_prompt() {
    let regimes = [Regime::full(), Regime::read("kcache:n=4096,l=0"), Regime::read("kcache:n=1,l=0")];
    let table = votes(&lab(), &regimes, &[15], 3).unwrap();
    // A read set of everything reads everything.
    assert_eq!(table.rows[0].cells[0], table.rows[1].cells[0]);
    assert_eq!(table.rows[1].cells[1].value, 0.0);
}

#[test]
fn recall_and_losses_read_whole_documents() {
    let table = recall(&lab(), 300, 2).unwrap();
    assert!(table.row("lists").unwrap().cells[0].value > 0.8, "{table:?}");
    assert!(table.rows.iter().all(|row| row.cells[0].n > 5 && row.cells[1].value > 0.0), "{table:?}");
    let table = losses(&lab(), 256, 2).unwrap();
    let loss = |row: usize| table.rows[row].cells[0].value;
    assert!((0.1..2.0).contains(&loss(0)) && loss(2) != loss(1), "{table:?}");
    assert_eq!(table.rows[0].cells[1].value, 0.0);
}

#[test]
fn heads_have_their_roles() {
    let table = heads(&lab(), 256, 1).unwrap();
    assert_eq!(table.rows.len(), 32);
    for row in &table.rows {
        let sum: f64 = row.cells[..4].iter().map(|cell| cell.value).sum();
        assert!(row.cells.iter().all(|cell| cell.value >= 0.0) && sum < 1.1, "{row:?}");
        assert!((1.0..257.0).contains(&row.cells[5].value), "{row:?}");
    }
    let roles = super::heads::roles(&table, 8, 4);
    let has = |layer: usize, kv_head: usize, role| roles[layer * 4 + kv_head].2.contains(&role);
    // Built into the model before its training: the previous tokens in the first layer, the key in the second.
    assert!(has(0, 0, super::heads::Role::Recency) && has(1, 0, super::heads::Role::Retrieval), "{roles:?}");
}

#[test]
fn stories_are_read() {
    let table = stories(&lab(), 2).unwrap();
    assert!(table.rows[0].cells[0].n > 10 && table.rows[0].cells[0].value > 0.5, "{table:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let config =
        crate::model::Config::parse("config.json", include_bytes!("../model/demo/config.json")).unwrap();
    let decoder = crate::model::Decoder::random(config.clone(), 1).unwrap();
    let tokenizer = crate::model::Tokenizer::bytes(&config).unwrap();
    let other = Arc::new(Model::new(decoder, tokenizer));
    let refused = Lab::new(other, 1, 0, &|_, _, _| ()).err().unwrap();
    assert!(refused.is_input() && refused.to_string().contains("word list of its own"), "{refused}");
    for tokens in [255, 4097] {
        let refused = recall(&lab(), tokens, 1).unwrap_err();
        assert!(refused.is_input() && refused.to_string().contains("use 256 to 4096"), "{refused}");
    }
    let refused = repeated(&lab(), &[Regime::policy("nothing")], 512, (1, 0.4), 2).unwrap_err();
    assert!(refused.is_input(), "{refused}");
}
