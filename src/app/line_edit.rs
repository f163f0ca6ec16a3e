//! One editable line, used wherever something is typed: filter, prompt, parameter values, search in the help.

use unicode_segmentation::UnicodeSegmentation;

/// Most bytes a line takes; what is typed or pasted beyond it is dropped.
const MAX_BYTES: usize = 1 << 20;

/// Text with a caret. The caret is a byte offset on a grapheme boundary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineEdit {
    text: String,
    caret: usize,
}

impl LineEdit {
    /// An editor holding `text`, caret at its end.
    pub fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { caret: text.len(), text }
    }

    /// What was typed. May hold line breaks and whatever was pasted: sanitise before drawing.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Byte offset of the caret.
    pub const fn caret(&self) -> usize {
        self.caret
    }

    /// Inserts at the caret. Carriage returns become line breaks, so that pasted Windows text is plain text.
    pub fn insert(&mut self, text: &str) {
        let clean = text.replace("\r\n", "\n").replace('\r', "\n");
        let room = MAX_BYTES.saturating_sub(self.text.len());
        let end = clean
            .char_indices()
            .map(|(i, c)| i + c.len_utf8())
            .take_while(|&end| end <= room)
            .last()
            .unwrap_or(0);
        self.text.insert_str(self.caret, &clean[..end]);
        self.caret += end;
    }

    /// Removes the grapheme before the caret; false when there is none.
    pub fn backspace(&mut self) -> bool {
        let end = self.caret;
        self.left();
        self.text.replace_range(self.caret..end, "");
        self.caret < end
    }

    /// Removes the grapheme after the caret.
    pub fn delete(&mut self) {
        let end = self.next_boundary();
        self.text.replace_range(self.caret..end, "");
    }

    /// Removes the word before the caret.
    pub fn delete_word(&mut self) {
        let head = &self.text[..self.caret];
        let words = head.trim_end().char_indices();
        let start = words.rev().find(|(_, c)| c.is_whitespace()).map_or(0, |(i, c)| i + c.len_utf8());
        self.text.replace_range(start..self.caret, "");
        self.caret = start;
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        self.text.clear();
        self.caret = 0;
    }

    /// One grapheme to the left.
    pub fn left(&mut self) {
        self.caret = self.text[..self.caret].grapheme_indices(true).next_back().map_or(0, |(i, _)| i);
    }

    /// One grapheme to the right.
    pub fn right(&mut self) {
        self.caret = self.next_boundary();
    }

    /// To the start.
    pub fn home(&mut self) {
        self.caret = 0;
    }

    /// To the end.
    pub fn end(&mut self) {
        self.caret = self.text.len();
    }

    fn next_boundary(&self) -> usize {
        self.caret + self.text[self.caret..].graphemes(true).next().map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn editing_moves_by_grapheme() {
        let mut line = LineEdit::new("ae\u{301}b");
        line.left();
        assert!(line.backspace());
        assert_eq!((line.text(), line.caret()), ("ab", 1));
        line.insert("x\r\ny");
        assert_eq!(line.text(), "ax\nyb");
        line.end();
        line.delete_word();
        assert_eq!(line.text(), "ax\n");
        line.clear();
        assert!(!line.backspace());
    }

    proptest! {
        #[test]
        fn the_caret_stays_on_a_boundary(text in "\\PC{0,12}", ops in prop::collection::vec(0u8..8, 0..40)) {
            let mut line = LineEdit::new(text);
            for op in ops {
                match op {
                    0 => line.left(),
                    1 => line.right(),
                    2 => { line.backspace(); }
                    3 => line.delete(),
                    4 => line.delete_word(),
                    5 => line.insert("é ñ"),
                    6 => line.home(),
                    _ => line.end(),
                }
                prop_assert!(line.text().is_char_boundary(line.caret()));
            }
        }
    }
}
