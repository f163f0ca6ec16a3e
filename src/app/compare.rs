//! The newest run against the last one and against the full cache, token by generated token.

use super::{App, Divergence, PastRun};
use crate::event::{Origin, Piece};
use crate::state::SeqState;

/// Most characters of the other run's text shown.
const MAX_THEIRS: usize = 160;

/// Where two runs first differ. A run that has ended is over: what the other says beyond it differs.
fn first_difference(ours: &[u32], ours_ended: bool, theirs: &[u32], theirs_ended: bool) -> Option<usize> {
    let common = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
    let both_go_on = common < ours.len() && common < theirs.len();
    let ours_stopped = ours_ended && common == ours.len() && common < theirs.len();
    let theirs_stopped = theirs_ended && common == theirs.len() && common < ours.len();
    (both_go_on || ours_stopped || theirs_stopped).then_some(common)
}

fn one_line(text: &str) -> String {
    text.chars().take(MAX_THEIRS).collect()
}

impl App {
    /// Compares anew; a run is short enough to be compared whole.
    pub(super) fn compare(&mut self) {
        self.divergences.clear();
        self.right = None;
        let Some((run, state)) = self.run.as_ref().zip(self.newest()) else { return };
        let Some(seq) = state.seqs.first() else { return };
        let right = run.expected.as_deref().and_then(|expected| seq.answer(expected));
        let ids = seq.generated_ids();
        let mut found = Vec::new();
        if let Some(past) = self.past.last().filter(|past| past.prompt == run.prompt) {
            found.push(with_past(&ids, seq, past));
        }
        if let Some(reference) = &self.reference {
            let at = first_difference(&ids, seq.finish.is_some(), &reference.ids, true);
            let compared = ids.len().min(reference.ids.len());
            let theirs = at.map(|at| rest_after(&common_text(seq, at), &reference.text)).unwrap_or_default();
            found.push(Divergence { with: "full cache", at, compared, theirs });
        }
        self.right = right;
        self.divergences = found;
    }
}

fn with_past(ids: &[u32], seq: &SeqState, past: &PastRun) -> Divergence {
    let at = first_difference(ids, seq.finish.is_some(), &past.ids, past.finished);
    let theirs = at.map(|at| one_line(&text_of(&past.pieces[at..]))).unwrap_or_default();
    Divergence { with: "last run", at, compared: ids.len().min(past.ids.len()), theirs }
}

/// Text of the first `count` generated tokens.
fn common_text(seq: &SeqState, count: usize) -> String {
    let fed = seq.tokens.iter().filter(|t| t.origin == Origin::Generated).map(|t| &t.piece);
    text_of(fed.chain(seq.pending.as_ref().map(|p| &p.piece)).take(count))
}

/// The text of pieces, of which one alone may be part of a character.
fn text_of<'a>(pieces: impl IntoIterator<Item = &'a Piece>) -> String {
    let bytes: Vec<u8> = pieces.into_iter().flat_map(|Piece(bytes)| bytes.iter().copied()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The other text from the difference on. Only its whole is known, so the common beginning is cut off it.
fn rest_after(common: &str, theirs: &str) -> String {
    // A character cut in two by the difference is a replacement character on our side only.
    let common = common.trim_end_matches(char::REPLACEMENT_CHARACTER);
    one_line(theirs.strip_prefix(common).unwrap_or(theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_knows_who_has_ended() {
        assert_eq!(first_difference(&[1, 2, 3], false, &[1, 5, 3], true), Some(1));
        assert_eq!(first_difference(&[1, 2], false, &[1, 2, 3], true), None);
        assert_eq!(first_difference(&[1, 2], true, &[1, 2, 3], true), Some(2));
        assert_eq!(first_difference(&[1, 2, 3], false, &[1, 2], true), Some(2));
        assert_eq!(first_difference(&[1, 2, 3], false, &[1, 2], false), None);
        assert_eq!(first_difference(&[], false, &[], true), None);
        assert_eq!(first_difference(&[1, 2], true, &[1, 2], true), None);
    }

    #[test]
    fn the_rest_of_the_reference_follows_the_common_text() {
        assert_eq!(rest_after(" The key", " The key is 4"), " is 4");
        assert_eq!(rest_after("", "all"), "all");
        assert_eq!(rest_after("caf\u{fffd}", "café"), "é");
    }
}
