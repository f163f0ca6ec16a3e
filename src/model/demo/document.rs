//! What the demo model learns from: documents of its own small language, with what each token is worth and which are
//! answers that the text before them gives away.

mod draft;
mod facts;

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use self::draft::{Draft, Mark};
use self::facts::{Fact, Kind, Known};
use super::story::{self, SHORT, Sentence, USUAL_LENGTH};
use super::words::{COLOURS, draw, names, things_to_list};

/// What a document is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentKind {
    /// Stories, one after the other.
    Story,
    /// Stories with a pass key and up to four numbered labels among their sentences, asked for later.
    Pass,
    /// Many facts, most of them asked for while others come in.
    Facts,
    /// Lists, each said again once or twice.
    Lists,
    /// Tables, each looked up many times.
    Table,
    /// Stories with a key or two told several times, asked for much later.
    Repeated,
    /// Votes, and who won each.
    Votes,
}

impl DocumentKind {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Story, Self::Pass, Self::Facts, Self::Lists, Self::Table, Self::Repeated, Self::Votes];
}

/// Token ids with what is known about each as the one to tell next.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Token ids; the first is BOS.
    pub ids: Vec<u32>,
    /// What telling `ids[i]` right is worth, where 1 is an ordinary word; 0 for BOS.
    pub weights: Vec<f32>,
    /// Whether `ids[i]` is part of an answer that follows from the text before.
    pub answers: Vec<bool>,
}

/// What words beside a story's own are worth.
mod weight {
    pub(super) const WORD: f32 = 1.0;
    /// A story among other things.
    pub(super) const FILLER: f32 = 0.5;
    /// Words that nothing before them gives away.
    pub(super) const RANDOM: f32 = 0.1;
    pub(super) const QUESTION: f32 = 0.3;
    /// Between a question and its answer.
    pub(super) const PREFIX: f32 = 0.5;
    pub(super) const ANSWER: f32 = 4.0;
    pub(super) const TOLD_AGAIN: f32 = 2.0;
    pub(super) const TABLE_ANSWER: f32 = 2.0;
    pub(super) const LIST_FIRST: f32 = 2.0;
    pub(super) const LIST_REST: f32 = 1.5;
}

/// Documents from this length on have most keys early and several questions at their end: what is to be learned from
/// them is to find a key far back.
const LONG_TOKENS: usize = 1024;
/// About what a question with its answer takes.
const QUESTION_TOKENS: usize = 26;

/// A document of exactly `tokens` ids, BOS included; the end may be cut off anywhere. The generator's state makes it.
pub fn document(rng: &mut ChaCha8Rng, kind: DocumentKind, tokens: usize) -> Document {
    let mut draft = Draft::new(tokens);
    while !draft.is_full() {
        match kind {
            DocumentKind::Story => tell_story(rng, &mut draft, weight::WORD),
            DocumentKind::Pass => pass(rng, &mut draft),
            DocumentKind::Facts => facts(rng, &mut draft),
            DocumentKind::Repeated => repeated(rng, &mut draft),
            DocumentKind::Lists if !rng.random_bool(0.18) => list(rng, &mut draft),
            DocumentKind::Table if !rng.random_bool(0.18) => table(rng, &mut draft),
            DocumentKind::Votes if !rng.random_bool(0.3) => vote(rng, &mut draft),
            DocumentKind::Lists | DocumentKind::Table | DocumentKind::Votes => {
                for sentence in story::story(rng, SHORT) {
                    draft.tell(&sentence, weight::FILLER);
                }
            }
        }
    }
    draft.finish()
}

fn tell_story(rng: &mut ChaCha8Rng, draft: &mut Draft, share: f32) {
    for sentence in story::story(rng, USUAL_LENGTH) {
        draft.tell(&sentence, share);
    }
}

/// Stories told sentence by sentence, with other things between them.
struct Filler {
    /// What is left of the story, last sentence first.
    rest: Vec<Sentence>,
    /// Whether other things come in the middle of a story, else only after its end.
    is_broken: bool,
}

impl Filler {
    fn new(is_broken: bool) -> Self {
        Self { rest: Vec::new(), is_broken }
    }

    fn tell(&mut self, rng: &mut ChaCha8Rng, draft: &mut Draft) {
        if self.rest.is_empty() {
            self.rest = story::story(rng, USUAL_LENGTH);
            self.rest.reverse();
        }
        draft.tell(&self.rest.pop().expect("a story has sentences"), weight::FILLER);
    }

    /// Comes to an end where something else must not stand inside a story.
    fn make_room(&mut self, draft: &mut Draft) {
        if !self.is_broken && !self.rest.is_empty() {
            draft.tell(&self.rest[0], weight::FILLER);
            self.rest.clear();
        }
    }
}

/// Something to be told once so many tokens are written.
struct Event {
    at: f32,
    kind: Kind,
    /// Tellings of the same number are of the same fact; none is told once.
    again: Option<usize>,
}

fn pass(rng: &mut ChaCha8Rng, draft: &mut Draft) {
    let long = draft.room() >= LONG_TOKENS;
    let tokens = draft.room() as f32;
    let most_labels = (draft.room() / 48).min(4);
    let labels = rng.random_range(0..=most_labels);
    let mut events: Vec<Event> = (0..=labels)
        .map(|i| {
            let at = match long {
                true if rng.random_bool(0.65) => rng.random_range(0.0..0.5),
                true => rng.random_range(0.5..0.85),
                false => rng.random::<f32>().powf(1.5) * 0.8,
            };
            Event { at: at * tokens, kind: if i == 0 { Kind::Pass } else { Kind::Label }, again: None }
        })
        .collect();
    // Short documents are to hold the key early enough to ask for it.
    if !long {
        events[0].at *= rng.random::<f32>();
    }
    // Where nothing was asked before, the questions at the end must look all the way back.
    let asked_on_the_way = if rng.random_bool(0.5) { 0.0 } else { *one(rng, &[0.05, 0.1, 0.2]) };
    let asked_last = if long { rng.random_range(3..=8) } else { rng.random_range(1..=2) };
    tell_and_ask(rng, draft, events, asked_on_the_way, asked_last);
}

fn repeated(rng: &mut ChaCha8Rng, draft: &mut Draft) {
    let tokens = draft.room() as f32;
    let long = draft.room() >= LONG_TOKENS;
    let anywhere_early = |rng: &mut ChaCha8Rng| {
        let late = if long { 0.5 } else { 0.6 };
        rng.random_range(0.0..late) * tokens
    };
    let label_or_code = |rng: &mut ChaCha8Rng| *one(rng, &[Kind::Label, Kind::Code]);
    let mut events = Vec::new();
    let often = if draft.room() < 256 { 1 } else { rng.random_range(1..=2) };
    for i in 0..often {
        let kind = if i == 0 && rng.random_bool(0.6) { Kind::Pass } else { label_or_code(rng) };
        for _ in 0..rng.random_range(4..=6) {
            events.push(Event { at: anywhere_early(rng), kind, again: Some(i) });
        }
    }
    for _ in 0..rng.random_range(0..=(draft.room() / 80).min(3)) {
        events.push(Event { at: anywhere_early(rng), kind: label_or_code(rng), again: None });
    }
    let asked_last = if long { rng.random_range(3..=6) } else { rng.random_range(1..=3) };
    tell_and_ask(rng, draft, events, 0.0, asked_last);
}

/// Stories with the events among them, questions on the way with the given probability per sentence, and some at the
/// end: first each fact that was told often or is a pass key, then any.
fn tell_and_ask(
    rng: &mut ChaCha8Rng,
    draft: &mut Draft,
    mut events: Vec<Event>,
    asked_on_the_way: f64,
    asked_last: usize,
) {
    events.sort_by(|a, b| b.at.total_cmp(&a.at));
    let start = draft.len();
    let questions_at = draft.room().saturating_sub(asked_last * QUESTION_TOKENS).max(draft.room() / 2);
    for event in &mut events {
        event.at = event.at.min(questions_at as f32);
    }
    let mut filler = Filler::new(rng.random_bool(0.5));
    let mut known = Known::default();
    let mut told: Vec<Option<usize>> = Vec::new();
    while !draft.is_full() && (draft.len() - start < questions_at || !events.is_empty()) {
        let written = (draft.len() - start) as f32;
        if let Some(event) = events.pop_if(|event| event.at <= written) {
            filler.make_room(draft);
            let earlier = event.again.and_then(|i| told.get(i).copied().flatten());
            let fact = match earlier {
                Some(fact) => {
                    known.facts[fact].tell_again(draft);
                    continue;
                }
                None => known.learn(rng, draft, event.kind),
            };
            if let (Some(i), Some(fact)) = (event.again, fact) {
                told.resize(told.len().max(i + 1), None);
                told[i] = Some(fact);
            }
        } else if !known.facts.is_empty() && rng.random_bool(asked_on_the_way) {
            one(rng, &known.facts).clone().ask(rng, draft);
        } else {
            filler.tell(rng, draft);
        }
    }
    filler.make_room(draft);
    let often: Vec<usize> = told.into_iter().flatten().collect();
    ask_last(rng, draft, &known.facts, &often);
}

/// Questions until the document is full.
fn ask_last(rng: &mut ChaCha8Rng, draft: &mut Draft, facts: &[Fact], often: &[usize]) {
    if facts.is_empty() {
        return;
    }
    let pass = facts.iter().position(|fact| fact.kind == Kind::Pass);
    let favourites = if often.is_empty() { pass.into_iter().collect() } else { often.to_vec() };
    // Each once, in any order: a second answer could be copied from the first.
    let mut first: Vec<usize> = (0..facts.len()).collect();
    first.shuffle(rng);
    first.sort_by_key(|fact| favourites.contains(fact));
    while !draft.is_full() {
        let fact = match first.pop() {
            Some(fact) => fact,
            None if !favourites.is_empty() && rng.random_bool(0.8) => *one(rng, &favourites),
            None => rng.random_range(0..facts.len()),
        };
        facts[fact].clone().ask(rng, draft);
    }
}

fn facts(rng: &mut ChaCha8Rng, draft: &mut Draft) {
    const MOST_ALIVE: usize = 40;
    let only = one(rng, &[Some(Kind::Code), Some(Kind::Like), Some(Kind::Where), Some(Kind::Label), None]);
    let kind = |rng: &mut ChaCha8Rng| {
        only.unwrap_or_else(|| *one(rng, &[Kind::Code, Kind::Like, Kind::Where, Kind::Label]))
    };
    let stories = *one(rng, &[0.0, 0.1, 0.3]);
    let asked = *one(rng, &[0.4, 0.6, 0.75]);
    let mut known = Known::default();
    for _ in 0..rng.random_range(2..=12) {
        let kind = kind(rng);
        known.learn(rng, draft, kind);
    }
    while !draft.is_full() {
        if rng.random_bool(stories) {
            for sentence in story::story(rng, SHORT) {
                draft.tell(&sentence, weight::FILLER);
            }
        } else if rng.random_bool(asked) {
            one(rng, &known.facts).clone().ask(rng, draft);
        } else {
            let kind = kind(rng);
            known.learn(rng, draft, kind);
            if known.facts.len() > MOST_ALIVE {
                known.facts.remove(0);
            }
        }
    }
}

fn list(rng: &mut ChaCha8Rng, draft: &mut Draft) {
    let n = rng.random_range(4..=16);
    let items: Vec<String> = match rng.random::<f32>() {
        x if x < 0.55 => draw(rng, things_to_list(), n).into_iter().map(str::to_owned).collect(),
        x if x < 0.9 => (0..n)
            .map(|_| {
                let digits = rng.random_range(1..=3);
                facts::digits(rng, digits)
            })
            .collect(),
        _ => (0..n)
            .map(|_| (0..rng.random_range(2..=5)).map(|_| rng.random_range(b'a'..=b'z') as char).collect())
            .collect(),
    };
    draft.add(" The list is", weight::WORD, Mark::Plain);
    for item in &items {
        draft.add_word(item, weight::RANDOM, Mark::Random);
    }
    draft.add(".", weight::WORD, Mark::Plain);
    for _ in 0..rng.random_range(1..=2) {
        draft.add(" Again, the list is", weight::WORD, Mark::Plain);
        for (i, item) in items.iter().enumerate() {
            let worth = if i == 0 { weight::LIST_FIRST } else { weight::LIST_REST };
            draft.add_word(item, worth, Mark::Answer);
        }
        draft.add(".", weight::WORD, Mark::Plain);
    }
}

fn table(rng: &mut ChaCha8Rng, draft: &mut Draft) {
    let n = rng.random_range(4..=20);
    let keys = draw(rng, things_to_list(), n);
    let names: Vec<&str> = names().collect();
    let numbers = rng.random_bool(0.5);
    let values: Vec<String> = keys
        .iter()
        .map(|_| if numbers { facts::digits(rng, 1) } else { (*one(rng, &names)).to_owned() })
        .collect();
    draft.add(" Table:", weight::WORD, Mark::Plain);
    for (key, value) in keys.iter().zip(&values) {
        draft.add_word(key, weight::RANDOM, Mark::Random);
        draft.add_word(value, weight::RANDOM, Mark::Random);
        draft.add(",", weight::WORD, Mark::Plain);
    }
    draft.add(" Query:", weight::WORD, Mark::Plain);
    for _ in 0..rng.random_range(n / 2..=2 * n) {
        let i = rng.random_range(0..n);
        draft.add_word(keys[i], weight::RANDOM, Mark::Random);
        draft.add_word(&values[i], weight::TABLE_ANSWER, Mark::Answer);
        draft.add(",", weight::WORD, Mark::Plain);
    }
    draft.add(" End.", weight::WORD, Mark::Plain);
}

fn vote(rng: &mut ChaCha8Rng, draft: &mut Draft) {
    let n = rng.random_range(6..=30);
    let (items, winner) = votes(rng, n);
    draft.add(" New vote:", weight::WORD, Mark::Plain);
    for item in &items {
        draft.add_word(item, weight::RANDOM, Mark::Random);
    }
    draft.add(".", weight::WORD, Mark::Plain);
    draft.add(" The winner is", weight::PREFIX, Mark::Plain);
    draft.add_word(winner, weight::ANSWER, Mark::Answer);
    draft.add(".", weight::WORD, Mark::Plain);
}

/// Votes for two to four candidates, and the one who is ahead: by two at least, and by a fifth of the votes.
pub(super) fn votes(rng: &mut ChaCha8Rng, n: usize) -> (Vec<&'static str>, &'static str) {
    let candidates = rng.random_range(2..=4);
    let candidates = if rng.random_bool(0.5) {
        draw(rng, COLOURS.into_iter(), candidates)
    } else {
        draw(rng, names(), candidates)
    };
    let lead = (n / 5).max(2);
    loop {
        let share = rng.random_range(0.4..0.8);
        let items: Vec<&str> = (0..n)
            .map(|_| if rng.random_bool(share) { candidates[0] } else { *one(rng, &candidates[1..]) })
            .collect();
        let count = |of: &str| items.iter().filter(|item| **item == of).count();
        if candidates[1..].iter().all(|other| count(candidates[0]) >= count(other) + lead) {
            return (items, candidates[0]);
        }
    }
}

fn one<'a, T>(rng: &mut ChaCha8Rng, of: &'a [T]) -> &'a T {
    of.choose(rng).expect("nothing here is empty")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;
    use crate::model::demo::{story::review, tokenizer};

    fn made(seed: u64, kind: DocumentKind, tokens: usize) -> (Document, String) {
        let made = document(&mut ChaCha8Rng::seed_from_u64(seed), kind, tokens);
        let text = tokenizer().text(&made.ids[1..]);
        (made, text)
    }

    /// The texts of the runs of answer tokens, with the text before each.
    fn answers(document: &Document) -> Vec<(String, String)> {
        let tokenizer = tokenizer();
        let (mut at, mut found) = (1, Vec::new());
        while at < document.ids.len() {
            let end = at + document.answers[at..].iter().take_while(|answer| **answer).count();
            if end > at {
                found.push((
                    tokenizer.text(&document.ids[1..at]),
                    tokenizer.text(&document.ids[at..end]).trim().to_owned(),
                ));
            }
            at = end + 1;
        }
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_document_has_its_length_and_its_tokens_their_worth(
            seed in any::<u64>(), kind in prop::sample::select(&DocumentKind::ALL[..]), tokens in 1usize..1500,
        ) {
            let (made, text) = made(seed, kind, tokens);
            prop_assert_eq!(&made, &document(&mut ChaCha8Rng::seed_from_u64(seed), kind, tokens));
            prop_assert_eq!((made.ids.len(), made.weights.len(), made.answers.len()), (tokens, tokens, tokens));
            prop_assert_eq!((made.ids[0], made.weights[0], made.answers[0]), (256, 0.0, false));
            prop_assert!(made.weights[1..].iter().all(|weight| (0.1..=4.0).contains(weight)));
            // Pieces joined are the tokens of the whole, so that what is learned is what a prompt is made of.
            prop_assert_eq!(&crate::model::demo::encode(&text), &made.ids[1..]);
            prop_assert!(tokens < 400 || kind == DocumentKind::Story || made.answers.contains(&true));
        }
    }

    #[test]
    fn answers_follow_from_what_was_told() {
        for seed in 0..40 {
            for kind in [DocumentKind::Pass, DocumentKind::Repeated, DocumentKind::Facts] {
                let (document, _) = made(seed, kind, 1200);
                let mut answers = answers(&document);
                answers.pop(); // May be cut off.
                for (before, answer) in answers {
                    let prefix = &before[before.rfind(['.', '?']).unwrap() + 1..];
                    let told = format!("{prefix}{}{answer}", if prefix.ends_with(' ') { "" } else { " " });
                    assert!(before.contains(&told), "{kind:?} {seed}: {told}");
                }
            }
            for (kind, tokens) in [(DocumentKind::Lists, 300), (DocumentKind::Table, 300)] {
                let (document, _) = made(seed, kind, tokens);
                for (before, answer) in answers(&document) {
                    assert!(before.contains(&answer), "{kind:?} {seed}: {answer}");
                }
            }
        }
    }

    #[test]
    fn who_has_most_votes_wins() {
        for seed in 0..40 {
            let (document, _) = made(seed, DocumentKind::Votes, 600);
            for (before, winner) in answers(&document) {
                let votes =
                    &before[before.rfind("New vote:").unwrap() + 9..before.rfind(". The winner").unwrap()];
                let votes: Vec<&str> = votes.split_whitespace().collect();
                let count = |of: &str| votes.iter().filter(|vote| **vote == of).count();
                assert!((6..=30).contains(&votes.len()), "{votes:?}");
                assert!(
                    votes.iter().all(|vote| *vote == winner || count(vote) + 2 <= count(&winner)),
                    "{votes:?}"
                );
            }
        }
    }

    #[test]
    fn long_documents_hold_their_keys_early_and_ask_late() {
        let (mut early, mut keys, mut late_answers, mut with_labels) = (0, 0, 0, 0);
        for seed in 0..60 {
            let (document, text) = made(seed, DocumentKind::Pass, 1024);
            assert_eq!(text.matches("Remember it. ").count().min(1), 1, "{seed}: {text}");
            let half = tokenizer().text(&document.ids[1..512]).len();
            for at in text.match_indices(" Remember it.").map(|(at, _)| at) {
                keys += 1;
                early += usize::from(at < half);
            }
            late_answers += document.answers[820..].iter().filter(|answer| **answer).count();
            let labels = super::super::words::LABELS.iter().filter(|label| text.contains(**label)).count();
            with_labels += usize::from(labels >= 2);
        }
        assert!(2 * early >= keys, "{early} of {keys}");
        assert!(late_answers >= 60 * 10, "{late_answers}");
        assert!(4 * with_labels >= 60, "{with_labels}");
    }

    #[test]
    fn a_repeated_key_is_told_four_to_six_times() {
        for seed in 0..60 {
            let (_, text) = made(seed, DocumentKind::Repeated, 1024);
            let questions = text.find(" What is").unwrap_or(text.len());
            let told = text[..questions].matches(" The pass key is").count();
            assert!([0, 4, 5, 6].contains(&told), "{seed}: {told} times in {text}");
        }
    }

    #[test]
    fn stories_are_stories_only() {
        let (_, text) = made(1, DocumentKind::Story, 2000);
        let found = review(&text);
        assert_eq!(found.grammatical, found.sentences);
        assert_eq!(found.consistent, found.stories);
        assert!(found.stories > 5, "{found:?}");
    }
}
