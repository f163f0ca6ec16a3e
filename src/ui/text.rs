//! Token text made safe to print.
//!
//! Tokens come from a model or from a recording, so they may hold anything: escape sequences that would reprogram the
//! terminal, direction overrides that would reorder the screen, bytes that are not UTF-8. Nothing of that reaches the
//! terminal. What cannot be drawn is drawn as a *picture* of itself: `␛`, `⏎`, `⟨U+202E⟩`, `⟨xFF⟩`, in ASCII `^[`, `\n`,
//! `<U+202E>`, `\xFF`.
//!
//! Text is measured in grapheme clusters, the unit ratatui draws in, by the same rule ratatui measures by.

use std::borrow::Cow;

use ratatui::buffer::CellWidth;
use unicode_segmentation::UnicodeSegmentation;

use super::theme::Symbols;
use crate::model::tokenizer::open_tail;

/// Marks drawn on one letter. Stacks of hundreds exist only to smear over the lines above and below.
const MAX_MARKS: usize = 4;

/// One drawable unit of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glyph<'a> {
    /// What to draw: never a control character, never without width.
    pub text: Cow<'a, str>,
    /// Columns it takes.
    pub width: u16,
    /// Whether it is a picture of something else, to be drawn dimmer than text.
    pub is_picture: bool,
    /// Whether it stands for a line feed, after which a flowing text may break.
    pub breaks_line: bool,
}

/// The drawable units of any bytes.
pub fn glyphs(bytes: &[u8], symbols: Symbols) -> impl Iterator<Item = Glyph<'_>> {
    bytes.utf8_chunks().flat_map(move |chunk| {
        let valid = chunk.valid().graphemes(true).flat_map(move |cluster| Units::new(cluster, symbols));
        valid.chain(chunk.invalid().iter().map(move |&byte| byte_picture(byte, symbols)))
    })
}

/// What each token of a text draws, so that no character is split: one whose bytes lie in several tokens is drawn by the
/// token it begins in, and a mark stands for the parts in the others. So it does for the beginning of a character at the
/// end of the text, which the next token may complete.
pub fn whole_characters<'a>(pieces: &[&'a [u8]], symbols: Symbols) -> Vec<Cow<'a, [u8]>> {
    let mark = symbols.pick("·", "_").as_bytes();
    // Leading bytes that belong to a character of an earlier token.
    let mut taken = vec![0; pieces.len()];
    let mut shown = Vec::with_capacity(pieces.len());
    for (i, &piece) in pieces.iter().enumerate() {
        let own = &piece[taken[i]..];
        if own.is_empty() && taken[i] > 0 {
            shown.push(Cow::Borrowed(mark));
            continue;
        }
        let (whole, tail) = own.split_at(own.len() - open_tail(own));
        if tail.is_empty() {
            shown.push(Cow::Borrowed(own));
            continue;
        }
        let mut char = tail.to_vec();
        let mut parts = Vec::new();
        for (j, next) in pieces.iter().enumerate().skip(i + 1) {
            let is_open = |char: &[u8]| open_tail(char) == char.len();
            let bytes = next.iter().take_while(|&&byte| {
                let goes_on = is_open(&char);
                if goes_on {
                    char.push(byte);
                }
                goes_on
            });
            parts.push((j, bytes.count()));
            if !is_open(&char) {
                break;
            }
        }
        let is_char = std::str::from_utf8(&char).is_ok();
        let is_last = open_tail(&char) == char.len();
        if is_char || is_last {
            for &(j, bytes) in &parts {
                taken[j] = bytes;
            }
            shown.push(Cow::Owned([whole, if is_char { &char } else { mark }].concat()));
        } else {
            shown.push(Cow::Borrowed(own));
        }
    }
    shown
}

/// Any bytes as one safe line.
pub fn safe(bytes: &[u8], symbols: Symbols) -> String {
    glyphs(bytes, symbols).map(|glyph| glyph.text).collect()
}

/// Columns a safe text takes.
pub fn width(text: &str) -> usize {
    text.graphemes(true).map(|cluster| usize::from(cluster.cell_width())).sum()
}

/// A safe text cut to `columns`, its last column then saying so.
pub fn fit(text: &str, columns: usize, symbols: Symbols) -> Cow<'_, str> {
    if width(text) <= columns {
        return Cow::Borrowed(text);
    }
    let Some(room) = columns.checked_sub(1) else { return Cow::Borrowed("") };
    let mut used = 0;
    let mut cut: String = text
        .graphemes(true)
        .take_while(|cluster| {
            used += usize::from(cluster.cell_width());
            used <= room
        })
        .collect();
    cut.push(symbols.ellipsis());
    Cow::Owned(cut)
}

/// The drawable units of one grapheme cluster: itself, or its characters one by one where some must not be drawn.
enum Units<'a> {
    Whole(Option<Glyph<'a>>),
    Split { chars: std::str::CharIndices<'a>, cluster: &'a str, marks: usize, symbols: Symbols },
}

impl<'a> Units<'a> {
    fn new(cluster: &'a str, symbols: Symbols) -> Self {
        let text = without_selectors(cluster);
        let width = measured(&text);
        if width > 0 && text.chars().count() <= 1 + MAX_MARKS && !text.chars().any(must_not_be_drawn) {
            return Self::Whole(Some(Glyph { text, width, is_picture: false, breaks_line: false }));
        }
        if cluster == "\r\n" {
            return Self::Whole(Some(Glyph {
                text: symbols.pick("␍⏎", "\\r\\n").into(),
                width: symbols.pick(2, 4),
                is_picture: true,
                breaks_line: true,
            }));
        }
        Self::Split { chars: cluster.char_indices(), cluster, marks: 0, symbols }
    }
}

impl<'a> Iterator for Units<'a> {
    type Item = Glyph<'a>;

    fn next(&mut self) -> Option<Glyph<'a>> {
        match self {
            Self::Whole(glyph) => glyph.take(),
            Self::Split { chars, cluster, marks, symbols } => {
                let (start, char) = chars.next()?;
                let text = &cluster[start..start + char.len_utf8()];
                let width = if must_not_be_drawn(char) { 0 } else { text.cell_width() };
                if width > 0 {
                    return Some(Glyph { text: text.into(), width, is_picture: false, breaks_line: false });
                }
                *marks += 1;
                if *marks > MAX_MARKS && !char.is_control() {
                    // The rest of a stack is told, not drawn one by one.
                    let rest = 1 + chars.by_ref().count();
                    let [open, close] = symbols.pick(['⟨', '⟩'], ['<', '>']);
                    return Some(picture(format!("{open}+{rest}{close}")));
                }
                Some(char_picture(char, *symbols))
            }
        }
    }
}

/// Variation selectors choose between looks of the character before them, which terminals measure differently; without
/// them everybody agrees.
fn without_selectors(cluster: &str) -> Cow<'_, str> {
    let is_selector = |char: char| matches!(char, '\u{FE0E}' | '\u{FE0F}');
    if cluster.chars().skip(1).any(is_selector) && !cluster.starts_with(is_selector) {
        Cow::Owned(cluster.chars().filter(|&char| !is_selector(char)).collect())
    } else {
        Cow::Borrowed(cluster)
    }
}

/// Width of a cluster that may hold control characters, which ratatui's measure must not see alone.
fn measured(text: &str) -> u16 {
    if text.chars().any(char::is_control) { 0 } else { text.cell_width() }
}

/// Characters that would act on the terminal, reorder or hide what is around them, or mean nothing.
fn must_not_be_drawn(char: char) -> bool {
    char.is_control()
        || matches!(char,
            '\u{00AD}' | '\u{034F}' | '\u{061C}' | '\u{115F}'..='\u{1160}' | '\u{17B4}'..='\u{17B5}'
            | '\u{180B}'..='\u{180F}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}' | '\u{3164}' | '\u{E000}'..='\u{F8FF}' | '\u{FDD0}'..='\u{FDEF}'
            | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}' | '\u{FFA0}' | '\u{FFF0}'..='\u{FFFB}'
            | '\u{1BCA0}'..='\u{1BCA3}' | '\u{1D173}'..='\u{1D17A}' | '\u{E0000}'..='\u{10FFFF}')
        || (char as u32 & 0xFFFE) == 0xFFFE
}

fn char_picture(char: char, symbols: Symbols) -> Glyph<'static> {
    let code = char as u32;
    let text = match (char, symbols.is_ascii()) {
        ('\n', false) => "⏎".to_owned(),
        ('\n', true) => "\\n".to_owned(),
        ('\t', true) => "\\t".to_owned(),
        ('\r', true) => "\\r".to_owned(),
        ('\u{0}'..='\u{1F}', false) => char::from_u32(0x2400 + code).map_or_else(String::new, String::from),
        ('\u{7F}', false) => "␡".to_owned(),
        // Caret notation: escape is ^[, delete is ^?.
        ('\u{0}'..='\u{1F}' | '\u{7F}', true) => format!("^{}", char::from((code as u8) ^ 0x40)),
        (_, false) => format!("⟨U+{code:04X}⟩"),
        (_, true) => format!("<U+{code:04X}>"),
    };
    Glyph { breaks_line: char == '\n', ..picture(text) }
}

fn byte_picture(byte: u8, symbols: Symbols) -> Glyph<'static> {
    picture(if symbols.is_ascii() { format!("\\x{byte:02X}") } else { format!("⟨x{byte:02X}⟩") })
}

fn picture(text: String) -> Glyph<'static> {
    // Pictures are made of letters one column wide.
    let width = text.chars().count() as u16;
    Glyph { text: text.into(), width, is_picture: true, breaks_line: false }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: [Symbols; 2] = [Symbols::Block, Symbols::Ascii];

    #[test]
    fn what_acts_on_a_terminal_becomes_a_picture() {
        let cases: [(&[u8], &str, &str); 12] = [
            (b"\x1b[31mred", "␛[31mred", "^[[31mred"),
            (b"a\nb\tc\0", "a⏎b␉c␀", "a\\nb\\tc^@"),
            (b"a\r\nb\r", "a␍⏎b␍", "a\\r\\nb\\r"),
            (b"\x7f", "␡", "^?"),
            ("\u{9b}31m".as_bytes(), "⟨U+009B⟩31m", "<U+009B>31m"),
            ("\u{202e}abc".as_bytes(), "⟨U+202E⟩abc", "<U+202E>abc"),
            ("a\u{200b}b".as_bytes(), "a⟨U+200B⟩b", "a<U+200B>b"),
            ("\u{feff}x".as_bytes(), "⟨U+FEFF⟩x", "<U+FEFF>x"),
            ("\u{e000}".as_bytes(), "⟨U+E000⟩", "<U+E000>"),
            (b"a\xffb", "a⟨xFF⟩b", "a\\xFFb"),
            (b"\xe6\x97", "⟨xE6⟩⟨x97⟩", "\\xE6\\x97"),
            ("\u{2028}".as_bytes(), "⟨U+2028⟩", "<U+2028>"),
        ];
        for (bytes, block, ascii) in cases {
            assert_eq!(safe(bytes, Symbols::Block), block);
            assert_eq!(safe(bytes, Symbols::Ascii), ascii);
        }
    }

    #[test]
    fn ordinary_text_is_left_alone() {
        for text in ["Grüße, Welt", "日本語", "e\u{301}te\u{301}", "مرحبا", "नमस्ते", "👍🏽", "🇫🇮", "a b"]
        {
            assert_eq!(safe(text.as_bytes(), Symbols::Block), text);
        }
    }

    #[test]
    fn wide_text_is_measured() {
        assert_eq!(width("日本"), 4);
        assert_eq!(width("e\u{301}"), 1);
        let widths: Vec<u16> = glyphs("日a".as_bytes(), Symbols::Block).map(|glyph| glyph.width).collect();
        assert_eq!(widths, [2, 1]);
    }

    #[test]
    fn joined_emoji_are_taken_apart_and_say_so() {
        assert_eq!(safe("👩\u{200d}🚀".as_bytes(), Symbols::Block), "👩⟨U+200D⟩🚀");
        assert_eq!(safe("❤\u{fe0f}".as_bytes(), Symbols::Block), "❤");
    }

    #[test]
    fn stacks_of_marks_are_counted_not_drawn() {
        let zalgo = format!("a{}", "\u{301}".repeat(500));
        let drawn = safe(zalgo.as_bytes(), Symbols::Block);
        assert!(drawn.ends_with("⟨+496⟩"), "{drawn}");
    }

    #[test]
    fn line_feeds_may_break_lines() {
        let breaks: Vec<bool> = glyphs(b"a\n\r\nb", Symbols::Block).map(|glyph| glyph.breaks_line).collect();
        assert_eq!(breaks, [false, true, true, false]);
    }

    #[test]
    fn fitting_cuts_between_letters() {
        assert_eq!(fit("abcdef", 6, Symbols::Block), "abcdef");
        assert_eq!(fit("abcdef", 4, Symbols::Block), "abc…");
        assert_eq!(fit("日本語", 4, Symbols::Block), "日…");
        assert_eq!(fit("abc", 1, Symbols::Ascii), "~");
        assert_eq!(fit("abc", 0, Symbols::Block), "");
    }

    proptest! {
        #[test]
        fn any_bytes_become_drawable(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            check(&bytes)?;
        }

        #[test]
        fn any_characters_become_drawable(text in proptest::collection::vec(any::<char>(), 0..32)) {
            check(text.into_iter().collect::<String>().as_bytes())?;
        }

        #[test]
        fn odd_characters_become_drawable(
            text in "[\\x00-\\x1f\\x7f-\\x9f\u{200b}-\u{200f}\u{202a}-\u{202e}\u{300}-\u{304}\u{fe0f}👩日a🇫]{0,24}"
        ) {
            check(text.as_bytes())?;
        }

        #[test]
        fn fitting_never_exceeds(text in "\\PC{0,24}", columns in 0_usize..12) {
            prop_assert!(width(&fit(&text, columns, Symbols::Block)) <= columns);
        }
    }

    fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
        for symbols in BOTH {
            for glyph in glyphs(bytes, symbols) {
                prop_assert!(!glyph.text.chars().any(must_not_be_drawn), "{glyph:?}");
                prop_assert!(glyph.width > 0, "{glyph:?}");
                prop_assert_eq!(width(&glyph.text), usize::from(glyph.width), "{:?}", glyph);
            }
        }
        Ok(())
    }
}
