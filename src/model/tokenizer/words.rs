//! The embedded model's scheme: the longest word that the rest of the text begins with, else one byte. No
//! normalisation, no splitting, no merges.

use std::collections::{HashMap, HashSet};

/// How the list spells the token that begins a sequence.
pub(super) const BOS: &str = "<s>";
/// Its id: right after the bytes.
pub(super) const BOS_ID: u32 = 256;

/// Words by their bytes.
#[derive(Debug)]
pub(super) struct Words {
    ids: HashMap<Vec<u8>, u32>,
    /// Bytes of the longest word.
    longest: usize,
}

impl Words {
    /// From the entries by id, or what is wrong with them.
    pub(super) fn new(entries: &[String]) -> Result<Self, String> {
        for byte in 0..=255u8 {
            match entries.get(usize::from(byte)) {
                Some(entry) if byte_of(entry) == Some(byte) => {}
                _ => {
                    return Err(format!(
                        "entry {byte} is not <0x{byte:02X}>: the first 256 are the bytes in order"
                    ));
                }
            }
        }
        if entries.get(BOS_ID as usize).is_none_or(|entry| entry != BOS) {
            return Err(format!("entry {BOS_ID} is not {BOS}"));
        }
        let words = (0u32..).zip(entries).skip(BOS_ID as usize + 1);
        let ids: HashMap<Vec<u8>, u32> = words
            .filter(|(_, entry)| !entry.is_empty() && !is_unused(entry))
            .map(|(id, entry)| (entry.as_bytes().to_vec(), id))
            .collect();
        let longest = ids.keys().map(Vec::len).max().unwrap_or(0);
        Ok(Self { ids, longest })
    }

    /// The first word of a text that has a letter which no entry but its own bytes stands for. Digits and marks always
    /// are bytes.
    pub(super) fn unknown<'a>(&self, text: &'a str) -> Option<&'a str> {
        if self.ids.is_empty() {
            // Bytes are all that such a list has.
            return None;
        }
        let is_apart = |c: char| c.is_whitespace() || c.is_ascii_punctuation();
        let is_letter = |c: char| !is_apart(c) && !c.is_ascii_digit() && !c.is_control();
        let letters: HashSet<usize> =
            text.char_indices().filter(|&(_, c)| is_letter(c)).map(|(at, _)| at).collect();
        let (at, _) = self.tokens(text).find(|(at, id)| *id < BOS_ID && letters.contains(at))?;
        let start = text
            .char_indices()
            .take_while(|&(i, _)| i <= at)
            .filter(|&(_, c)| is_apart(c))
            .last()
            .map_or(0, |(i, c)| i + c.len_utf8());
        let end = text[start..].find(is_apart).map_or(text.len(), |i| start + i);
        Some(&text[start..end])
    }

    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        self.tokens(text).map(|(_, id)| id).collect()
    }

    /// Where each token of a text begins, and its id.
    fn tokens<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, u32)> + 'a {
        let mut at = 0;
        std::iter::from_fn(move || {
            let rest = &text.as_bytes()[at..];
            let &byte = rest.first()?;
            let longest = self.longest.min(rest.len());
            let word = (1..=longest).rev().find_map(|len| Some((len, *self.ids.get(&rest[..len])?)));
            let (len, id) = word.unwrap_or((1, u32::from(byte)));
            at += len;
            Some((at - len, id))
        })
    }
}

/// The byte that `<0xNN>` stands for.
pub(super) fn byte_of(entry: &str) -> Option<u8> {
    let digits = entry.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Whether an entry is a row that no token has.
pub(super) fn is_unused(entry: &str) -> bool {
    entry.starts_with("<unused")
}

/// The bytes an entry stands for.
pub(super) fn bytes_of(entry: &str) -> Vec<u8> {
    match byte_of(entry) {
        Some(byte) => vec![byte],
        None if is_unused(entry) => Vec::new(),
        None => entry.as_bytes().to_vec(),
    }
}
