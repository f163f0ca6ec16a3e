//! Short stories in the only English the demo model knows: a grammar that writes them, and a reader that says how far a
//! text keeps to it.
//!
//! A story has a hero and one friend. Nobody else is named, and every pronoun is the hero's.

mod review;

use std::ops::RangeInclusive;
use std::sync::LazyLock;

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

pub use self::review::{Review, review};
use super::words::{
    ANIMALS, COLOURS, FEELINGS, FOODS, ROOMS, THINGS, TRAITS, WEATHERS, draw, is_girl, names, places,
};

/// A sentence of a story: the ways to say it, `""` for not at all. Every way ends with a period and has no other.
type Line = &'static [&'static str];

const OPENINGS: [&[Line]; 2] = [
    &[
        &[
            "Once there was a {trait} {child} named {hero}.",
            "There was a {trait} {child} named {hero} who lived near the {spot}.",
            "{hero} was a {trait} {child} who lived near the {spot}.",
        ],
        &[
            "{hero} and {friend} were good friends.",
            "{She} had a friend named {friend}.",
            "{friend} was a good friend of {hero}.",
        ],
    ],
    &[&["This is a story about {hero} and {friend}."]],
];

const SCENES: [&[Line]; 8] = [
    &[
        &["{hero} had a {colour} {thing}.", "{hero} got a {colour} {thing} for {her} birthday."],
        &[
            "One day {she} lost the {colour} {thing} in the {room}.",
            "But one day the {colour} {thing} was gone.",
        ],
        &["{She} was very sad.", "{She} began to cry."],
        &["{hero} asked {friend} to help.", "{friend} wanted to help {whom}."],
        &[
            "",
            "",
            "They looked in the {room} and near the {spot}.",
            "They looked for the {thing} near the {spot}.",
        ],
        &[
            "{friend} found the {colour} {thing} under a tree.",
            "At last {friend} saw the {thing} behind the {room}.",
        ],
        &["{hero} was happy and said thank you.", "Now {hero} was happy again."],
    ],
    &[
        &[
            "There was a {other} {animal} in the {room}.",
            "One day {hero} saw a {other} {animal} near the {spot}.",
        ],
        &["The {animal} wanted to eat {food}.", "The {animal} was very {feeling}."],
        &["{She} gave the {animal} some {food}.", "{friend} had some {food} for the {animal}."],
        &["", "", "Then the {animal} was happy.", "After that the {animal} was not hungry."],
        &["The {animal} followed {whom} to the {spot}.", "The {other} {animal} slept next to {whom}."],
        &["", "", "{hero} and the {animal} became good friends.", "{hero} liked the {animal} very much."],
    ],
    &[
        &["It was a {weather} day.", "The weather was {weather}."],
        &["{hero} and {friend} stayed in the {room}.", "They sat down in the {room}."],
        &[
            "{hero} told {friend} a story about a {other} {animal}.",
            "{friend} told {hero} a story about a {other} {animal}.",
        ],
        &["", "", "The story was very funny.", "The {animal} in the story was very {feeling}."],
        &["They laughed all day.", "They were {mood} when the story was over."],
    ],
    &[
        &[
            "One day {hero} took a {colour} {thing} to the {room}.",
            "{hero} found a {colour} {thing} in the {room}.",
        ],
        &["They played with the {colour} {thing} all day.", "{friend} wanted to play with the {thing}."],
        &[
            "",
            "",
            "\"I like your {colour} {thing},\" said {friend}.",
            "{friend} liked the {thing} very much.",
        ],
        &["So {hero} gave the {colour} {thing} to {friend}.", "\"You can have it,\" said {hero}."],
        &["{friend} said thank you and smiled.", "\"Thank you,\" said {friend}."],
    ],
    &[
        &["At night the {room} was dark and quiet.", "One night there was a noise in the {room}."],
        &["{hero} was afraid.", "{hero} did not want to go in."],
        &["But {friend} was brave and opened the door.", "{friend} took a lamp and opened the door."],
        &["It was only a {other} {animal}.", "There was a {other} {animal} behind the door."],
        &["They laughed and went home together.", "Then they were not afraid."],
    ],
    &[
        &["They walked along the {spot} for a long time.", "{hero} and {friend} walked to the {spot}."],
        &["{hero} was tired and hungry.", "After a long time {she} felt {feeling}."],
        &["{friend} had some {food}.", "{friend} had a {colour} basket with some {food}."],
        &["They sat down near the {spot} and ate the {food}.", "So they ate the {food} under a tree."],
        &["", "", "It was very good.", "{hero} said thank you to {friend}."],
    ],
    &[
        &["\"Let us go to the {room},\" said {hero}.", "\"Do you want to see the {room}?\" said {hero}."],
        &["\"That is a good idea,\" said {friend}.", "\"Yes, let us go,\" said {friend}."],
        &["So they went to the {room} together.", "They took a {colour} {thing} and went to the {room}."],
        &["", "", "There they saw a {other} {animal}.", "The {room} was {weather} and quiet."],
        &["It was a {weather} day and they were {feeling}.", "{hero} was {feeling} and {friend} was {mood}."],
    ],
    &[
        &["In the morning {hero} made some {food}.", "One morning {friend} made some {food} for {hero}."],
        &["{hero} put the {food} in a {colour} box.", "They ate the {food} in the {room}."],
        &[
            "",
            "",
            "Then a {other} {animal} came and looked at the {food}.",
            "The {other} {animal} wanted some {food} too.",
        ],
        &["{hero} gave some {food} to the {animal}.", "\"You can have some,\" said {hero} to the {animal}."],
        &["The {animal} was happy and ran to the {spot}.", "Then the {animal} slept near the {spot}."],
    ],
];

const ENDING: [Line; 3] = [
    &["Then they went home together.", "At night they went home.", "{hero} went home and slept."],
    &["", "", "", "They were tired and happy.", "It was a good day.", "{hero} was happy to have a friend."],
    &[THE_END],
];
/// Ends every story, and nothing else.
const THE_END: &str = "The end.";

/// How many sentences most stories have.
pub const USUAL_LENGTH: RangeInclusive<usize> = 5..=14;
/// Of stories that stand between other things.
pub(super) const SHORT: RangeInclusive<usize> = 3..=6;
/// Most scenes of a story.
const MOST_SCENES: usize = 4;

/// What telling a word right is worth when a model learns the text, relative to any other word: nothing says who the
/// hero is; a friend is not the hero, and one who was called a girl has a girl's name; from then on names and pronouns
/// follow from the text, and a slip there is what a reader notices first.
mod weight {
    pub(super) const STRANGER: f32 = 0.1;
    pub(super) const NEWCOMER: f32 = 0.3;
    pub(super) const PERSON: f32 = 3.0;
    pub(super) const WORD: f32 = 1.0;
}

/// A part of a sentence whose words are worth the same. Begins with a space or a punctuation mark, so that parts set one
/// after the other have the tokens that they have alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// As it stands in the text.
    pub text: String,
    /// What telling it right is worth, where 1 is an ordinary word.
    pub weight: f32,
}

/// A sentence of a story.
pub type Sentence = Vec<Part>;

/// The text of a sentence, which begins with a space.
pub fn text(sentence: &[Part]) -> String {
    sentence.iter().map(|part| part.text.as_str()).collect()
}

/// A story of about as many sentences as the range says, at least four.
pub fn story(rng: &mut ChaCha8Rng, sentences: RangeInclusive<usize>) -> Vec<Sentence> {
    let mut cast = Cast::draw(rng);
    let mut told = Vec::new();
    let wanted = rng.random_range(sentences);
    let opening = &GRAMMAR.openings[usize::from(rng.random_bool(0.25))];
    cast.tell_all(rng, opening, &mut told);
    for scene in GRAMMAR.scenes.choose_multiple(rng, MOST_SCENES) {
        if told.len() >= 3 && told.len() + 2 >= wanted {
            break;
        }
        cast.change_scene(rng);
        cast.tell_all(rng, scene, &mut told);
    }
    cast.tell_all(rng, &GRAMMAR.ending, &mut told);
    told
}

/// What a word of a sentence stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Hero,
    Friend,
    Child,
    SheUpper,
    She,
    Her,
    Whom,
    Trait,
    Other,
    Colour,
    Thing,
    Animal,
    Food,
    Weather,
    Feeling,
    Mood,
    Room,
    Spot,
}

/// Slots in the order of their discriminants, as the lines spell them.
const SLOTS: [(&str, Slot); 18] = [
    ("hero", Slot::Hero),
    ("friend", Slot::Friend),
    ("child", Slot::Child),
    ("She", Slot::SheUpper),
    ("she", Slot::She),
    ("her", Slot::Her),
    ("whom", Slot::Whom),
    ("trait", Slot::Trait),
    ("other", Slot::Other),
    ("colour", Slot::Colour),
    ("thing", Slot::Thing),
    ("animal", Slot::Animal),
    ("food", Slot::Food),
    ("weather", Slot::Weather),
    ("feeling", Slot::Feeling),
    ("mood", Slot::Mood),
    ("room", Slot::Room),
    ("spot", Slot::Spot),
];

impl Slot {
    /// Every word that can stand there.
    fn words(self) -> Vec<&'static str> {
        match self {
            Self::Hero | Self::Friend => names().collect(),
            Self::Child => vec!["girl", "boy"],
            Self::SheUpper => vec!["She", "He"],
            Self::She => vec!["she", "he"],
            Self::Her => vec!["her", "his"],
            Self::Whom => vec!["her", "him"],
            Self::Trait | Self::Other => TRAITS.to_vec(),
            Self::Colour => COLOURS.to_vec(),
            Self::Thing => THINGS.to_vec(),
            Self::Animal => ANIMALS.to_vec(),
            Self::Food => FOODS.to_vec(),
            Self::Weather => WEATHERS.to_vec(),
            Self::Feeling | Self::Mood => FEELINGS.to_vec(),
            Self::Room => ROOMS.to_vec(),
            Self::Spot => places().collect(),
        }
    }

    fn is_of_a_person(self) -> bool {
        matches!(self, Self::Child | Self::SheUpper | Self::She | Self::Her | Self::Whom)
    }
}

/// A word of a line with the punctuation around it; a slot stands for any of its words.
#[derive(Debug)]
struct Word {
    before: &'static str,
    slot: Option<Slot>,
    after: &'static str,
}

impl Word {
    fn parse(word: &'static str) -> Self {
        let Some((before, rest)) = word.split_once('{') else {
            return Self { before: word, slot: None, after: "" };
        };
        let (name, after) = rest.split_once('}').expect("a slot ends with a brace");
        let slot = SLOTS.iter().find(|(spelled, _)| *spelled == name).map(|(_, slot)| *slot);
        Self { before, slot: Some(slot.expect("the lines name known slots")), after }
    }

    fn is_article(&self) -> bool {
        self.slot.is_none() && self.before == "a"
    }
}

/// A way to say a line; none for not at all.
type Way = Option<Vec<Word>>;
type Ways = Vec<Way>;

struct Grammar {
    openings: [Vec<Ways>; 2],
    scenes: Vec<Vec<Ways>>,
    ending: Vec<Ways>,
}

static GRAMMAR: LazyLock<Grammar> = LazyLock::new(|| {
    let way = |way: &&'static str| (!way.is_empty()).then(|| way.split(' ').map(Word::parse).collect());
    let lines =
        |lines: &[Line]| -> Vec<Ways> { lines.iter().map(|ways| ways.iter().map(way).collect()).collect() };
    Grammar {
        openings: OPENINGS.map(lines),
        scenes: SCENES.iter().map(|scene| lines(scene)).collect(),
        ending: lines(&ENDING),
    }
});

/// What the slots stand for: the people for a whole story, the rest for a scene.
struct Cast {
    words: [&'static str; SLOTS.len()],
    /// Whether the hero and the friend were named.
    met: [bool; 2],
    /// Whether the story said what the hero is, a girl or a boy.
    told_what: bool,
}

impl Cast {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let people = draw(rng, names(), 2);
        let (hero, friend) = (people[0], people[1]);
        let girl = is_girl(hero).expect("a hero has a name");
        let gendered = [Slot::Child, Slot::SheUpper, Slot::She, Slot::Her, Slot::Whom];
        let mut cast = Self { words: [""; SLOTS.len()], met: [false; 2], told_what: false };
        cast.words[Slot::Hero as usize] = hero;
        cast.words[Slot::Friend as usize] = friend;
        for slot in gendered {
            cast.words[slot as usize] = slot.words()[usize::from(!girl)];
        }
        cast.words[Slot::Trait as usize] = one(rng, &TRAITS);
        cast.change_scene(rng);
        cast
    }

    fn change_scene(&mut self, rng: &mut ChaCha8Rng) {
        let places: Vec<&str> = places().collect();
        for (slot, words) in [
            (Slot::Other, &TRAITS[..]),
            (Slot::Colour, &COLOURS),
            (Slot::Thing, &THINGS),
            (Slot::Animal, &ANIMALS),
            (Slot::Food, &FOODS),
            (Slot::Weather, &WEATHERS),
            (Slot::Feeling, &FEELINGS),
            (Slot::Mood, &FEELINGS),
            (Slot::Room, &ROOMS),
            (Slot::Spot, &places),
        ] {
            self.words[slot as usize] = one(rng, words);
        }
    }

    fn tell_all(&mut self, rng: &mut ChaCha8Rng, lines: &[Ways], told: &mut Vec<Sentence>) {
        for ways in lines {
            if let Some(way) = ways.choose(rng).expect("every line has ways") {
                told.push(self.tell(way));
            }
        }
    }

    fn tell(&mut self, way: &[Word]) -> Sentence {
        let mut sentence = Sentence::new();
        let mut say = |text: [&str; 2], weight: f32| match sentence.last_mut() {
            Some(part) if part.weight == weight => text.into_iter().for_each(|t| part.text.push_str(t)),
            _ => sentence.push(Part { text: text.concat(), weight }),
        };
        for (i, word) in way.iter().enumerate() {
            let Some(slot) = word.slot else {
                let n = word.is_article() && self.begins_with_a_vowel(way.get(i + 1));
                say([" ", word.before], weight::WORD);
                if n {
                    say(["n", ""], weight::WORD);
                }
                continue;
            };
            say([" ", self.words[slot as usize]], self.weight(slot));
            say([word.after, ""], weight::WORD);
        }
        sentence.retain(|part| !part.text.is_empty());
        sentence
    }

    fn begins_with_a_vowel(&self, word: Option<&Word>) -> bool {
        word.is_some_and(|word| {
            let text = word.slot.map_or(word.before, |slot| self.words[slot as usize]);
            begins_with_a_vowel(text)
        })
    }

    /// What telling the slot's word right is worth at this point of the story.
    fn weight(&mut self, slot: Slot) -> f32 {
        let met = match slot {
            Slot::Hero => std::mem::replace(&mut self.met[0], true),
            Slot::Friend => std::mem::replace(&mut self.met[1], true),
            _ if slot.is_of_a_person() => {
                let known = self.met[0];
                self.told_what = true;
                return if known { weight::PERSON } else { weight::WORD };
            }
            _ => return weight::WORD,
        };
        let other_is_known = self.met == [true; 2] || (slot == Slot::Hero && self.told_what);
        match (met, other_is_known) {
            (true, _) => weight::PERSON,
            (false, true) => weight::NEWCOMER,
            (false, false) => weight::STRANGER,
        }
    }
}

fn begins_with_a_vowel(word: &str) -> bool {
    word.starts_with(['a', 'e', 'i', 'o', 'u'])
}

fn one(rng: &mut ChaCha8Rng, words: &[&'static str]) -> &'static str {
    words.choose(rng).expect("no list here is empty")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;
    use crate::model::demo::encode;

    #[test]
    fn slots_are_in_order() {
        for (i, (_, slot)) in SLOTS.into_iter().enumerate() {
            assert_eq!(slot as usize, i);
        }
    }

    #[test]
    fn sentences_end_with_their_only_period() {
        let lines = OPENINGS.iter().chain(&SCENES).copied().flatten().chain(&ENDING);
        for way in lines.copied().flatten().filter(|way| !way.is_empty()) {
            let ends: Vec<&str> = way.split(' ').filter(|word| word.ends_with('.')).collect();
            assert!(ends.len() == 1 && way.ends_with(ends[0]), "{way}");
        }
    }

    proptest! {
        #[test]
        fn what_the_grammar_writes_the_review_likes(seed in any::<u64>()) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let (mut told, mut sentences) = (String::new(), 0);
            for _ in 0..3 {
                let story = story(&mut rng, USUAL_LENGTH);
                prop_assert!((4..=24).contains(&story.len()), "{}", story.len());
                sentences += story.len();
                told.extend(story.iter().map(|sentence| text(sentence)));
            }
            let expected = Review { sentences, grammatical: sentences, stories: 3, consistent: 3 };
            prop_assert_eq!(review(&told), expected, "{}", told);
        }

        #[test]
        fn a_story_names_two_and_says_what_that_is_worth(seed in any::<u64>()) {
            let story = story(&mut ChaCha8Rng::seed_from_u64(seed), USUAL_LENGTH).concat();
            let mut met: Vec<&str> = Vec::new();
            for part in &story {
                prop_assert!(part.text.starts_with([' ', '.', ',', '?', '"']), "{:?}", part);
                let Some(name) = names().find(|name| part.text == format!(" {name}")) else {
                    let pronoun = ["he", "she", "his", "her", "him", "He", "She"]
                        .iter()
                        .any(|pronoun| part.text.split_whitespace().any(|word| word == *pronoun));
                    prop_assert!(!pronoun || part.weight == weight::PERSON, "{:?}", part);
                    continue;
                };
                if met.contains(&name) {
                    prop_assert_eq!(part.weight, weight::PERSON);
                } else {
                    prop_assert!(part.weight <= weight::NEWCOMER);
                    met.push(name);
                }
            }
            prop_assert_eq!(met.len(), 2);
        }

        #[test]
        fn every_word_is_the_models_and_parts_have_the_tokens_of_the_whole(seed in any::<u64>()) {
            let story = story(&mut ChaCha8Rng::seed_from_u64(seed), USUAL_LENGTH);
            let ids = encode(&story.iter().map(|sentence| text(sentence)).collect::<String>());
            let parts: Vec<u32> = story.concat().iter().flat_map(|part| encode(&part.text)).collect();
            prop_assert_eq!(&ids, &parts);
            // Beyond the words only spaces before a quote, punctuation and "I", which are read as bytes.
            for id in ids {
                prop_assert!(id > 256 || b" .,?\"I".contains(&(id as u8)), "byte {}", id);
            }
        }
    }
}
