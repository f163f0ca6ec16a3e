//! Short stories in the only English the demo model knows. Every word is in its word list; a test checks that.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

const GIRLS: [&str; 12] =
    ["Mia", "Zoe", "Lily", "Ruby", "Rosa", "Nina", "Clara", "Emma", "Maya", "Dora", "Vera", "Hana"];
const BOYS: [&str; 12] =
    ["Tom", "Ben", "Leo", "Jack", "Noah", "Finn", "Hugo", "Felix", "Theo", "Paul", "Milo", "Omar"];
// No adjective or colour begins with a vowel, so that every article is "a".
const TRAITS: [&str; 14] = [
    "small", "big", "young", "quiet", "tired", "funny", "brave", "clever", "gentle", "lonely", "strong",
    "careful", "silly", "proud",
];
const COLOURS: [&str; 10] =
    ["red", "blue", "green", "yellow", "black", "white", "brown", "pink", "grey", "golden"];
const THINGS: [&str; 16] = [
    "ball", "book", "hat", "box", "lamp", "cup", "kite", "coat", "bell", "drum", "spoon", "clock", "ribbon",
    "whistle", "lantern", "marble",
];
const ANIMALS: [&str; 14] = [
    "cat", "dog", "fox", "bird", "horse", "rabbit", "mouse", "bear", "duck", "goat", "frog", "sheep", "wolf",
    "turtle",
];
const FOODS: [&str; 12] = [
    "bread", "soup", "cake", "apples", "cheese", "honey", "berries", "milk", "nuts", "plums", "carrots",
    "pears",
];
const WEATHERS: [&str; 6] = ["sunny", "rainy", "cold", "warm", "foggy", "windy"];
const FEELINGS: [&str; 6] = ["happy", "proud", "calm", "excited", "surprised", "hungry"];
/// Where something can be in.
const ROOMS: [&str; 12] = [
    "garden", "kitchen", "forest", "school", "market", "barn", "park", "library", "field", "castle",
    "village", "cave",
];
/// Where something can be near.
const SPOTS: [&str; 8] = ["river", "bridge", "beach", "station", "harbor", "tower", "church", "island"];

/// A sentence of a story: one of several ways to say it. `{…}` is filled by [`Cast::tell`].
type Sentence = &'static [&'static str];

const OPENING: [Sentence; 2] = [
    &[
        "Once there was a {trait} {child} named {hero}.",
        "There was a {trait} {child} named {hero} who lived near the {spot}.",
        "{hero} was a {trait} {child} who lived near the {spot}.",
    ],
    &["{hero} and {friend} were good friends.", "{She} had a friend named {friend}."],
];

const SCENES: [&[Sentence]; 6] = [
    &[
        &["{hero} had a {colour} {thing}.", "{hero} got a {colour} {thing} for {her} birthday."],
        &[
            "One day {she} lost the {colour} {thing} in the {room}.",
            "But one day the {colour} {thing} was gone.",
        ],
        &["{She} was very sad.", "{She} began to cry."],
        &["{hero} asked {friend} to help.", "{friend} wanted to help {whom}."],
        &["They looked in the {room} and near the {spot}.", "They looked for the {thing} near the {spot}."],
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
        &["The {animal} followed {whom} to the {spot}.", "The {other} {animal} slept next to {whom}."],
        &["{hero} and the {animal} became good friends.", "{hero} liked the {animal} very much."],
    ],
    &[
        &["It was a {weather} day.", "The weather was {weather}."],
        &["{hero} and {friend} stayed in the {room}.", "They sat down in the {room}."],
        &[
            "{hero} told {friend} a story about a {other} {animal}.",
            "{friend} told {hero} a story about a {other} {animal}.",
        ],
        &["The story was very funny.", "The {animal} in the story was very {feeling}."],
        &["They laughed all day.", "They were {feeling} when the story was over."],
    ],
    &[
        &[
            "One day {hero} took a {colour} {thing} to the {room}.",
            "{hero} found a {colour} {thing} in the {room}.",
        ],
        &["They played with the {colour} {thing} all day.", "{friend} wanted to play with the {thing}."],
        &["\"I like your {colour} {thing},\" said {friend}.", "{friend} liked the {thing} very much."],
        &["So {hero} gave the {colour} {thing} to {friend}.", "\"You can have it,\" said {hero}."],
        &["{friend} said thank you and smiled.", "\"Thank you,\" said {friend}."],
    ],
    &[
        &["They walked along the {spot} for a long time.", "{hero} and {friend} walked to the {spot}."],
        &["{hero} was tired and hungry.", "After a long time {she} felt {feeling}."],
        &["{friend} had some {food}.", "{friend} had a {colour} basket with some {food}."],
        &["They sat down near the {spot} and ate the {food}.", "So they ate the {food} under a tree."],
        &["It was very good.", "{hero} said thank you to {friend}."],
    ],
    &[
        &["\"Let us go to the {room},\" said {hero}.", "\"Do you want to see the {room}?\" said {hero}."],
        &["\"That is a good idea,\" said {friend}.", "\"Yes, let us go,\" said {friend}."],
        &["So they went to the {room} together.", "They took a {colour} {thing} and went to the {room}."],
        &["There they saw a {other} {animal}.", "The {room} was {weather} and quiet."],
        &["It was a {weather} day and they were {feeling}.", "{hero} was {feeling} and {friend} was happy."],
    ],
];

const ENDING: [Sentence; 3] = [
    &["Then they went home together.", "At night they went home.", "{hero} went home and slept."],
    &["They were tired and happy.", "It was a good day.", "{hero} was happy to have a friend."],
    &["The end."],
];

/// One story, a list of sentences that each begin with a space.
pub(super) fn story(rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut cast = Cast::draw(rng);
    let mut told = Vec::new();
    let tell = |rng: &mut ChaCha8Rng, cast: &Cast, told: &mut Vec<String>, sentences: &[Sentence]| {
        for ways in sentences {
            told.push(cast.tell(one(rng, ways)));
        }
    };
    tell(rng, &cast, &mut told, &OPENING);
    for scene in SCENES.choose_multiple(rng, 2) {
        cast.change_scene(rng);
        tell(rng, &cast, &mut told, scene);
    }
    tell(rng, &cast, &mut told, &ENDING);
    told
}

/// What the slots of a sentence stand for: the people for a whole story, the rest for a scene.
struct Cast {
    people: [(&'static str, &'static str); 7],
    props: [(&'static str, &'static str); 10],
}

impl Cast {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let girl = rng.random_bool(0.5);
        let (hero, child, [she_upper, she, her, whom]) = if girl {
            (one(rng, &GIRLS), "girl", ["She", "she", "her", "her"])
        } else {
            (one(rng, &BOYS), "boy", ["He", "he", "his", "him"])
        };
        // Of the other list, so that the two never share a name.
        let friend = if girl { one(rng, &BOYS) } else { one(rng, &GIRLS) };
        let people = [
            ("{hero}", hero),
            ("{friend}", friend),
            ("{child}", child),
            ("{She}", she_upper),
            ("{she}", she),
            ("{her}", her),
            ("{whom}", whom),
        ];
        let mut cast = Self { people, props: [("", ""); 10] };
        cast.change_scene(rng);
        cast
    }

    fn change_scene(&mut self, rng: &mut ChaCha8Rng) {
        self.props = [
            ("{trait}", one(rng, &TRAITS)),
            ("{other}", one(rng, &TRAITS)),
            ("{colour}", one(rng, &COLOURS)),
            ("{thing}", one(rng, &THINGS)),
            ("{animal}", one(rng, &ANIMALS)),
            ("{food}", one(rng, &FOODS)),
            ("{weather}", one(rng, &WEATHERS)),
            ("{feeling}", one(rng, &FEELINGS)),
            ("{room}", one(rng, &ROOMS)),
            ("{spot}", one(rng, &SPOTS)),
        ];
    }

    fn tell(&self, sentence: &str) -> String {
        let slots = self.people.iter().chain(&self.props);
        slots.fold(format!(" {sentence}"), |text, (slot, word)| text.replace(slot, word))
    }
}

fn one(rng: &mut ChaCha8Rng, words: &[&'static str]) -> &'static str {
    words.choose(rng).expect("no list here is empty")
}
