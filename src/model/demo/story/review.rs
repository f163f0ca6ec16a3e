//! Reads a text as stories: which sentences the grammar could have written, and whether each story keeps to its people.

use super::super::words::{is_girl, names};
use super::{GRAMMAR, SLOTS, Slot, THE_END, Way, Word, begins_with_a_vowel};

/// An unfinished story at the end of a text is judged from this many sentences on: before, it has said too little.
const ENOUGH_SENTENCES: usize = 3;

/// What a text holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// Sentences that came to their period.
    pub sentences: usize,
    /// Of those, sentences that the grammar has.
    pub grammatical: usize,
    /// Stories: each to its "The end.", and what follows the last of them, if that is three sentences or more.
    pub stories: usize,
    /// Of those, stories that open by naming a hero, name nobody but the hero and one friend, take neither for the other
    /// within a sentence, and call the hero by the pronouns of the hero's name.
    pub consistent: usize,
}

/// Reads a text that should be stories.
pub fn review(text: &str) -> Review {
    let mut review = Review::default();
    let mut story: Vec<Sentence<'_>> = Vec::new();
    let mut judge = |story: &[Sentence<'_>]| {
        review.stories += 1;
        review.consistent += usize::from(is_consistent(story));
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    for words in words
        .split_inclusive(|word| word.ends_with('.'))
        .filter(|words| words.last().is_some_and(|word| word.ends_with('.')))
    {
        let sentence = Sentence::read(words);
        review.sentences += 1;
        review.grammatical += usize::from(!sentence.readings.is_empty());
        story.push(sentence);
        if words.join(" ") == THE_END {
            judge(&story);
            story.clear();
        }
    }
    if story.len() >= ENOUGH_SENTENCES {
        judge(&story);
    }
    review
}

/// What a way of saying a line takes its slots for.
type Bound<'a> = [Option<&'a str>; SLOTS.len()];

struct Sentence<'a> {
    words: &'a [&'a str],
    /// By every way that fits.
    readings: Vec<Bound<'a>>,
}

impl<'a> Sentence<'a> {
    fn read(words: &'a [&'a str]) -> Self {
        let lines = GRAMMAR.openings.iter().chain(&GRAMMAR.scenes).flatten().chain(&GRAMMAR.ending);
        Self { words, readings: lines.flatten().filter_map(|way| read(way, words)).collect() }
    }

    /// The hero whom this sentence introduces.
    fn hero(&self) -> Option<&'a str> {
        let openings = GRAMMAR.openings.iter().filter_map(|lines| lines.first()).flatten();
        openings.filter_map(|way| read(way, self.words)).find_map(|bound| bound[Slot::Hero as usize])
    }

    /// Whether it can only be read with the hero as the hero's own friend.
    fn takes_one_for_two(&self) -> bool {
        let same = |bound: &Bound<'_>| {
            bound[Slot::Hero as usize].is_some_and(|hero| bound[Slot::Friend as usize] == Some(hero))
        };
        !self.readings.is_empty() && self.readings.iter().all(same)
    }

    /// Its words without punctuation.
    fn bare_words(&self) -> impl Iterator<Item = &'a str> {
        self.words.iter().map(|word| word.trim_matches(|c: char| !c.is_alphabetic()))
    }
}

fn read<'a>(way: &Way, words: &[&'a str]) -> Option<Bound<'a>> {
    let way = way.as_ref().filter(|way| way.len() == words.len())?;
    let mut bound = Bound::default();
    for (i, (expected, word)) in way.iter().zip(words).enumerate() {
        if expected.is_article() {
            let n = words.get(i + 1).is_some_and(|next| begins_with_a_vowel(next));
            (word.strip_prefix(expected.before)? == if n { "n" } else { "" }).then_some(())?;
        } else {
            let filling = filling(expected, word)?;
            if let Some(slot) = expected.slot {
                bound[slot as usize] = Some(filling);
            }
        }
    }
    Some(bound)
}

/// What stands in the place of the slot; none where the word is another.
fn filling<'a>(expected: &Word, word: &'a str) -> Option<&'a str> {
    let filling = word.strip_prefix(expected.before)?.strip_suffix(expected.after)?;
    match expected.slot {
        Some(slot) => slot.words().contains(&filling),
        None => filling.is_empty(),
    }
    .then_some(filling)
}

fn is_consistent(story: &[Sentence<'_>]) -> bool {
    let Some(hero) = story.first().and_then(Sentence::hero) else { return false };
    let mut named: Vec<&str> = story
        .iter()
        .flat_map(Sentence::bare_words)
        .filter(|word| names().any(|name| name == *word))
        .collect();
    named.sort_unstable();
    named.dedup();
    let girl = is_girl(hero);
    let fits = |word: &str| is_of_a_girl(word).is_none_or(|of_a_girl| Some(of_a_girl) == girl);
    named.len() <= 2
        && !story.iter().any(Sentence::takes_one_for_two)
        && story.iter().flat_map(Sentence::bare_words).all(fits)
}

/// Whether a pronoun or noun is said of girls; none where it is said of anyone.
fn is_of_a_girl(word: &str) -> Option<bool> {
    match word {
        "She" | "she" | "her" | "girl" => Some(true),
        "He" | "he" | "him" | "his" | "boy" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = " Once there was a shy girl named Mia. Mia and Tom were good friends. One day she lost the red \
        hat in the park. \"I like your red hat,\" said Tom. It was only an old owl. Tom wanted to help her. The end.";

    #[test]
    fn a_story_of_the_grammar_is_good() {
        assert_eq!(review(GOOD), Review { sentences: 7, grammatical: 7, stories: 1, consistent: 1 });
        let twice =
            format!("{GOOD} This is a story about Leo and Zoe. They laughed all day. It was a good day. Zoe");
        assert_eq!(review(&twice), Review { sentences: 10, grammatical: 10, stories: 2, consistent: 2 });
        assert_eq!(review(""), Review::default());
        assert_eq!(review("Mia"), Review::default());
    }

    #[test]
    fn every_slip_is_seen() {
        // What is written instead of what, how many sentences are then ungrammatical, and whether the story still agrees.
        for (from, to, wrong, consistent) in [
            ("lost the red hat", "lost the hat red", 1, true),
            ("an old owl", "a old owl", 1, true),
            ("a shy girl", "an shy girl", 1, false),
            ("red hat in the park", "park in the red hat", 1, true),
            ("girl named Mia", "boy named Mia", 0, false),
            ("One day she", "One day he", 0, false),
            ("to help her", "to help him", 0, false),
            ("said Tom", "said Ben", 0, false),
            ("said Tom", "said Xavier", 1, true),
            ("Mia and Tom were good friends", "Mia was a good friend of Mia", 0, false),
            ("Once there was a shy girl named Mia.", "It was a good day.", 0, false),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let expected = Review {
                sentences: 7,
                grammatical: 7 - wrong,
                stories: 1,
                consistent: usize::from(consistent),
            };
            assert_eq!(review(&GOOD.replace(from, to)), expected, "{to}");
        }
    }

    #[test]
    fn what_is_no_story_is_not_taken_for_one() {
        let found =
            review(" What is the pass key? The pass key is 12345. The list is cat dog. Table: cat 7, End.");
        assert_eq!(found, Review { sentences: 3, grammatical: 0, stories: 1, consistent: 0 });
    }
}
