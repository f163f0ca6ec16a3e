//! What the demo model is asked: a context, a question, the one right answer. The same arguments give the same task.

use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::document::{Document, DocumentKind, document, votes};
use super::story::{self, USUAL_LENGTH};
use super::{encode, tokens_of};

/// Fewest tokens of a prompt with a pass key.
pub const LEAST_TOKENS: usize = 64;
const QUESTION: &str = " What is the pass key? The pass key is";

/// A prompt with one right answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Stories with what will be asked among their sentences.
    pub context: String,
    /// Fed after the context; the answer continues it.
    pub question: String,
    /// What the generated text must begin with: a space, and a number of five digits or a word.
    pub answer: String,
    /// Where in the context the answer is told, each time: positions of the prompt, where BOS is at 0.
    pub spans: Vec<Range<usize>>,
}

/// A pass key told once in a prompt of about `tokens` tokens (never more, and at most a sentence fewer; at least
/// [`LEAST_TOKENS`]), BOS and question included, at a `depth` between 0 (first sentence) and 1 (last).
pub fn passkey(seed: u64, tokens: usize, depth: f32) -> Task {
    told_at(seed, tokens, |_| vec![if depth.is_nan() { 0.5 } else { depth.clamp(0.0, 1.0) }])
}

/// As [`passkey`], with the key told `times` times, anywhere in the first `within` of the context: an even share of it
/// holds each telling.
pub fn repeated(seed: u64, tokens: usize, times: usize, within: f32) -> Task {
    let share = within.clamp(0.0, 1.0) / times.max(1) as f32;
    told_at(seed, tokens, |rng| (0..times).map(|i| (i as f32 + rng.random::<f32>()) * share).collect())
}

fn told_at(seed: u64, tokens: usize, depths: impl FnOnce(&mut ChaCha8Rng) -> Vec<f32>) -> Task {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let answer = format!(" {:05}", rng.random_range(0..100_000));
    let depths = depths(&mut rng);
    let told = format!(" The pass key is{answer}. Remember it.");
    let cost = tokens_of(&told);
    let around = 1 + tokens_of(QUESTION) + depths.len() * cost;
    let filler = stories(&mut rng, tokens.max(LEAST_TOKENS).saturating_sub(around));
    let used: usize = filler.iter().map(|(_, cost)| cost).sum();

    let mut task = Task { context: String::new(), question: QUESTION.into(), answer, spans: Vec::new() };
    let mut position = 1;
    let mut tell = |task: &mut Task, text: &str, cost: usize, is_the_key: bool| {
        task.context.push_str(text);
        if is_the_key {
            task.spans.push(position..position + cost);
        }
        position += cost;
    };
    let mut waiting = depths.into_iter().peekable();
    let mut at = 0;
    for (sentence, sentence_cost) in filler {
        while waiting.next_if(|depth| at as f32 >= depth * used as f32).is_some() {
            tell(&mut task, &told, cost, true);
        }
        tell(&mut task, &sentence, sentence_cost, false);
        at += sentence_cost;
    }
    for _ in waiting {
        tell(&mut task, &told, cost, true);
    }
    task
}

/// Sentences of stories with their tokens, as many as fit.
fn stories(rng: &mut ChaCha8Rng, room: usize) -> Vec<(String, usize)> {
    let mut sentences = Vec::new();
    let mut used = 0;
    loop {
        for sentence in story::story(rng, USUAL_LENGTH) {
            let text = story::text(&sentence);
            let cost = tokens_of(&text);
            if used + cost > room {
                return sentences;
            }
            used += cost;
            sentences.push((text, cost));
        }
    }
}

/// A vote of `items` votes after stories of at most `tokens_before` tokens; the answer is who won.
pub fn vote(seed: u64, tokens_before: usize, items: usize) -> Task {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let before = stories(&mut rng, tokens_before);
    let (votes, winner) = votes(&mut rng, items);
    let vote = format!(" New vote: {}.", votes.join(" "));
    let from = 1 + before.iter().map(|(_, cost)| cost).sum::<usize>();
    let span = from..from + tokens_of(&vote);
    let context = before.into_iter().map(|(text, _)| text).chain([vote]).collect();
    Task { context, question: " The winner is".into(), answer: format!(" {winner}"), spans: vec![span] }
}

/// A document of a kind whose answers are to be told token by token, given the right text before each.
pub fn recall(seed: u64, kind: DocumentKind, tokens: usize) -> Document {
    document(&mut ChaCha8Rng::seed_from_u64(seed), kind, tokens)
}

impl Task {
    /// Token ids of the context, BOS included, of the question and of the answer.
    pub fn ids(&self) -> [Vec<u32>; 3] {
        [[vec![super::BOS], encode(&self.context)].concat(), encode(&self.question), encode(&self.answer)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::demo::tokenizer;

    #[test]
    fn every_argument_counts() {
        let task = passkey(1, 600, 0.3);
        assert_eq!(task, passkey(1, 600, 0.3));
        for other in [passkey(2, 600, 0.3), passkey(1, 700, 0.3), passkey(1, 600, 0.8)] {
            assert_ne!(task.context, other.context);
        }
        assert_ne!(repeated(1, 600, 6, 0.4).spans, repeated(1, 600, 6, 0.8).spans);
        assert_ne!(vote(1, 100, 15), vote(2, 100, 15));
    }

    #[test]
    fn the_winner_has_most_votes() {
        for seed in 0..50 {
            let task = vote(seed, 256, 15);
            let [context, ..] = task.ids();
            assert!((200..256 + 25).contains(&context.len()), "{}", context.len());
            assert_eq!(task.spans[0].end, context.len());
            let votes = tokenizer().text(&context[task.spans[0].clone()]);
            let votes: Vec<&str> = votes.trim_end_matches('.').split_whitespace().skip(2).collect();
            assert_eq!(votes.len(), 15);
            let count = |of: &str| votes.iter().filter(|vote| **vote == of).count();
            let winner = task.answer.trim();
            assert!(
                votes.iter().all(|vote| *vote == winner || count(vote) + 3 <= count(winner)),
                "{votes:?}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_key_stands_where_the_task_says(
            seed in any::<u64>(), tokens in 200usize..1200, times in 1usize..7, within in 0.0f32..1.0,
        ) {
            let task = repeated(seed, tokens, times, within);
            let [context, question, answer] = task.ids();
            let total = context.len() + question.len();
            prop_assert!(total <= tokens && total + 26 > tokens, "{} of {}", total, tokens);
            prop_assert_eq!(answer.len(), 6);
            prop_assert_eq!(task.spans.len(), times);
            let told = format!(" The pass key is{}. Remember it.", task.answer);
            for span in &task.spans {
                prop_assert_eq!(&tokenizer().text(&context[span.clone()]), &told);
            }
            prop_assert_eq!(task.context.matches("pass key").count(), times);
            let latest = task.spans.iter().map(|span| span.start).max().unwrap();
            let keys = times * task.spans[0].len();
            let end = within * (context.len() - keys) as f32 + keys as f32 + 26.0;
            prop_assert!((latest as f32) < end, "told at {}, wanted before {}", latest, end);
        }
    }
}
