//! The words that the demo model's texts are made of. Each is one token of the embedded word list, as a test checks; a
//! digit, a letter of a made-up word and a punctuation mark are a byte each.

use rand::Rng;
use rand::seq::{IteratorRandom, SliceRandom};

/// Names of girls, who are "she".
pub(super) const GIRLS: [&str; 19] = [
    "Mia", "Ann", "Zoe", "Eva", "Lily", "Ruby", "Rosa", "Nina", "Clara", "Ivy", "Emma", "Maya", "Alma",
    "Dora", "Greta", "Vera", "Tina", "Hana", "Lena",
];
/// Names of boys, who are "he".
pub(super) const BOYS: [&str; 21] = [
    "Tom", "Ben", "Leo", "Sam", "Max", "Jack", "Noah", "Finn", "Hugo", "Oscar", "Felix", "Otto", "Luca",
    "Theo", "Kurt", "Paul", "Simon", "Milo", "Igor", "Omar", "Ravi",
];
pub(super) const ANIMALS: [&str; 20] = [
    "cat", "dog", "fox", "bird", "horse", "rabbit", "mouse", "bear", "duck", "goat", "frog", "owl", "sheep",
    "pig", "hen", "wolf", "deer", "goose", "turtle", "squirrel",
];
pub(super) const COLOURS: [&str; 12] = [
    "red", "blue", "green", "yellow", "black", "white", "brown", "pink", "grey", "orange", "purple", "golden",
];
pub(super) const THINGS: [&str; 30] = [
    "ball", "book", "hat", "box", "lamp", "cup", "kite", "coat", "boat", "bell", "drum", "chair", "basket",
    "spoon", "clock", "mirror", "pencil", "bottle", "blanket", "ladder", "hammer", "shovel", "ribbon",
    "whistle", "lantern", "marble", "wallet", "scarf", "button", "carpet",
];
/// Where something can be in, and near.
pub(super) const ROOMS: [&str; 18] = [
    "garden", "kitchen", "forest", "school", "market", "barn", "park", "library", "tower", "field", "castle",
    "village", "cave", "shop", "church", "valley", "attic", "cellar",
];
/// Where something can only be near.
pub(super) const SPOTS: [&str; 6] = ["river", "bridge", "beach", "station", "harbor", "island"];
pub(super) const TRAITS: [&str; 20] = [
    "small", "big", "old", "young", "happy", "quiet", "tired", "funny", "brave", "clever", "gentle",
    "lonely", "strong", "hungry", "careful", "silly", "proud", "shy", "tall", "lazy",
];
pub(super) const FOODS: [&str; 16] = [
    "bread", "soup", "cake", "apples", "cheese", "rice", "honey", "berries", "pie", "milk", "eggs", "nuts",
    "plums", "carrots", "beans", "pears",
];
pub(super) const WEATHERS: [&str; 10] =
    ["sunny", "rainy", "windy", "cold", "warm", "foggy", "snowy", "cloudy", "bright", "stormy"];
pub(super) const FEELINGS: [&str; 10] =
    ["happy", "sad", "tired", "afraid", "proud", "calm", "angry", "excited", "surprised", "hungry"];
/// What has a number, beside the pass key.
pub(super) const LABELS: [&str; 10] = [
    "door code",
    "safe code",
    "bus number",
    "room number",
    "gate code",
    "secret number",
    "phone number",
    "train number",
    "house number",
    "box number",
];

/// Every name.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    GIRLS.into_iter().chain(BOYS)
}

/// Whether a name is a girl's; none where it is no name.
pub(super) fn is_girl(name: &str) -> Option<bool> {
    if GIRLS.contains(&name) { Some(true) } else { BOYS.contains(&name).then_some(false) }
}

/// Places of either kind.
pub(super) fn places() -> impl Iterator<Item = &'static str> {
    ROOMS.into_iter().chain(SPOTS)
}

/// What a list or a table may hold.
pub(super) fn things_to_list() -> impl Iterator<Item = &'static str> {
    ANIMALS.into_iter().chain(THINGS).chain(FOODS).chain(COLOURS).chain(places())
}

/// `n` different words in any order: fewer where there are fewer.
pub(super) fn draw(
    rng: &mut impl Rng,
    words: impl Iterator<Item = &'static str>,
    n: usize,
) -> Vec<&'static str> {
    let mut drawn = words.choose_multiple(rng, n);
    // A reservoir keeps most words in the order in which they came.
    drawn.shuffle(rng);
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::demo::encode;

    #[test]
    fn every_word_is_one_token_and_stands_once() {
        let lists: [&[&str]; 10] =
            [&GIRLS, &BOYS, &ANIMALS, &COLOURS, &THINGS, &ROOMS, &SPOTS, &FOODS, &WEATHERS, &FEELINGS];
        let mut all: Vec<&str> = lists.concat();
        all.retain(|word| !TRAITS.contains(word));
        all.extend(TRAITS);
        for word in &all {
            let ids = encode(&format!(" {word}"));
            assert!(ids.len() == 1 && ids[0] > 256, "{word}: {ids:?}");
        }
        for label in LABELS {
            assert_eq!(encode(&format!(" {label}")).len(), 2, "{label}");
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
