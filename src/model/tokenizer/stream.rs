//! Text out of tokens as they come: a character whose bytes are spread over several of them appears whole.

/// Bytes at the end that begin a character which more bytes could complete: 0 to 3.
pub fn open_tail(bytes: &[u8]) -> usize {
    bytes.utf8_chunks().last().map_or(0, |chunk| {
        let tail = chunk.invalid();
        // Only a beginning that nothing has spoilt has no length of its own as an error.
        match std::str::from_utf8(tail) {
            Err(error) if error.error_len().is_none() => tail.len(),
            _ => 0,
        }
    })
}

/// Holds back what is not a whole character yet.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    held: Vec<u8>,
}

impl TextStream {
    /// Takes the bytes of the next token; what may be shown now. Bytes that are no part of any character come through
    /// as they are.
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(piece);
        let whole = self.held.len() - open_tail(&self.held);
        let rest = self.held.split_off(whole);
        std::mem::replace(&mut self.held, rest)
    }

    /// What is left at the end: the beginning of a character that never came.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Whether something is held back.
    pub fn is_open(&self) -> bool {
        !self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut stream = TextStream::default();
        let shown: Vec<Vec<u8>> = "🦙é".bytes().map(|byte| stream.push(&[byte])).collect();
        assert_eq!(
            shown,
            [vec![], vec![], vec![], "🦙".as_bytes().to_vec(), vec![], "é".as_bytes().to_vec()]
        );
        assert_eq!(stream.push(b"a\xe2\x98"), b"a");
        assert!(stream.is_open());
        // Another character begins: the one before never will be whole.
        assert_eq!(stream.push(b"b"), b"\xe2\x98b");
        assert_eq!(stream.push(b"\xff\x80"), b"\xff\x80");
        assert_eq!(stream.push(b"\xf0\x9f"), b"");
        assert_eq!(stream.finish(), b"\xf0\x9f");
        assert_eq!(stream.push(b""), b"");
    }

    #[test]
    fn no_character_begins_where_utf_8_has_none() {
        for (bytes, open) in [
            (&b"\xc0"[..], 0),
            (b"\xc2", 1),
            (b"\xe0\x80", 0),
            (b"\xed\xa0", 0),
            (b"\xf4\x90", 0),
            (b"\xf4\x8f", 2),
        ] {
            assert_eq!(open_tail(bytes), open, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_character_is_split(
            text in "\\PC{0,20}",
            noise in prop::collection::vec(any::<u8>(), 0..6),
            cuts in prop::collection::vec(0usize..90, 0..12),
        ) {
            let all = [text.as_bytes(), &noise, text.as_bytes()].concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at % (all.len() + 1)).collect();
            cuts.extend([0, all.len()]);
            cuts.sort_unstable();
            let mut stream = TextStream::default();
            let mut shown: Vec<Vec<u8>> = cuts.windows(2).map(|w| stream.push(&all[w[0]..w[1]])).collect();
            shown.push(stream.finish());
            prop_assert_eq!(shown.concat(), all.clone());
            // Piece by piece or at once, the text is the same.
            let lossy: String = shown.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect();
            prop_assert_eq!(lossy, String::from_utf8_lossy(&all).into_owned());
        }
    }
}
