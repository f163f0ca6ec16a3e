//! Facts of one sentence, and the question for each.

use rand::Rng;
use rand::seq::IteratorRandom;
use rand_chacha::ChaCha8Rng;

use super::draft::{Draft, Mark};
use super::{one, weight};
use crate::model::demo::words::{COLOURS, FOODS, LABELS, THINGS, names, places};

/// Digits of a pass key.
pub(in crate::model::demo) const KEY_DIGITS: usize = 5;

/// What a fact tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The pass key's number; a document has one, further ones become labels.
    Pass,
    /// The number of something else.
    Label,
    /// The short number of a person.
    Code,
    /// What a person likes.
    Like,
    /// Where a thing is.
    Where,
}

/// A fact that was told.
#[derive(Clone, Debug)]
pub(super) struct Fact {
    pub(super) kind: Kind,
    /// What it is about; a document has one fact about each subject and kind.
    subject: String,
    value: String,
    /// After the value.
    end: &'static str,
}

impl Fact {
    fn draw(rng: &mut ChaCha8Rng, kind: Kind) -> Self {
        let name = |rng: &mut ChaCha8Rng| names().choose(rng).expect("there are names").to_owned();
        let (subject, value) = match kind {
            Kind::Pass => ("pass key".into(), digits(rng, KEY_DIGITS)),
            Kind::Label => {
                let n = rng.random_range(3..=5);
                ((*one(rng, &LABELS)).to_owned(), digits(rng, n))
            }
            Kind::Code => {
                let n = rng.random_range(1..=3);
                (name(rng), digits(rng, n))
            }
            Kind::Like => (name(rng), (*one(rng, &FOODS)).to_owned()),
            Kind::Where => {
                let place = places().choose(rng).expect("there are places").to_owned();
                (format!("{} {}", one(rng, &COLOURS), one(rng, &THINGS)), place)
            }
        };
        let remembered = kind == Kind::Pass || (kind == Kind::Label && rng.random_bool(0.3));
        Self { kind, subject, value, end: if remembered { ". Remember it." } else { "." } }
    }

    /// The parts of what is said before the value: before, the subject, after.
    fn parts(&self) -> [&str; 3] {
        match self.kind {
            Kind::Pass | Kind::Label => [" The", &self.subject, " is"],
            Kind::Code => [" The code of", &self.subject, " is"],
            Kind::Like => ["", &self.subject, " likes"],
            Kind::Where => [" The", &self.subject, " is in the"],
        }
    }

    fn prefix(&self) -> String {
        let [before, subject, after] = self.parts();
        format!("{before} {subject}{after}")
    }

    fn question(&self) -> String {
        let subject = &self.subject;
        match self.kind {
            Kind::Pass | Kind::Label => format!(" What is the {subject}?"),
            Kind::Code => format!(" What is the code of {subject}?"),
            Kind::Like => format!(" What does {subject} like?"),
            Kind::Where => format!(" Where is the {subject}?"),
        }
    }

    fn tell(&self, draft: &mut Draft) {
        if matches!(self.kind, Kind::Pass | Kind::Label) {
            draft.add(&self.prefix(), weight::WORD, Mark::Plain);
        } else {
            let [before, subject, after] = self.parts();
            draft.add(before, weight::WORD, Mark::Plain);
            draft.add_word(subject, weight::RANDOM, Mark::Random);
            draft.add(after, weight::WORD, Mark::Plain);
        }
        draft.add_word(&self.value, weight::RANDOM, Mark::Random);
        draft.add(self.end, weight::WORD, Mark::Plain);
    }

    /// In the words of the first time.
    pub(super) fn tell_again(&self, draft: &mut Draft) {
        draft.add(&self.prefix(), weight::PREFIX, Mark::Plain);
        draft.add_word(&self.value, weight::TOLD_AGAIN, Mark::Answer);
        draft.add(self.end, weight::WORD, Mark::Plain);
    }

    pub(super) fn ask(&self, rng: &mut ChaCha8Rng, draft: &mut Draft) {
        if self.kind == Kind::Pass || rng.random_bool(0.8) {
            draft.add(&self.question(), weight::QUESTION, Mark::Plain);
        }
        draft.add(&self.prefix(), weight::PREFIX, Mark::Plain);
        draft.add_word(&self.value, weight::ANSWER, Mark::Answer);
        draft.add(".", weight::WORD, Mark::Plain);
    }
}

/// What a document has told.
#[derive(Default)]
pub(super) struct Known {
    pub(super) facts: Vec<Fact>,
}

impl Known {
    /// Tells a new fact and gives its place; nothing where the one drawn is about a subject already known.
    pub(super) fn learn(&mut self, rng: &mut ChaCha8Rng, draft: &mut Draft, kind: Kind) -> Option<usize> {
        let fact = Fact::draw(rng, kind);
        if self.facts.iter().any(|known| known.kind == kind && known.subject == fact.subject) {
            return None;
        }
        fact.tell(draft);
        self.facts.push(fact);
        Some(self.facts.len() - 1)
    }
}

/// A number of `n` digits. Three in ten are made to hold one digit twice or more: after such a digit a copy may go on
/// at the wrong place, which is what a model must learn not to do.
pub(super) fn digits(rng: &mut ChaCha8Rng, n: usize) -> String {
    let mut digits: Vec<u8> = (0..n).map(|_| rng.random_range(b'0'..=b'9')).collect();
    if n > 1 && rng.random_bool(0.3) {
        let times = rng.random_range(2..=n.min(3));
        let places = (0..n).choose_multiple(rng, times);
        let digit = digits[places[0]];
        for place in places {
            digits[place] = digit;
        }
    }
    digits.into_iter().map(char::from).collect()
}
