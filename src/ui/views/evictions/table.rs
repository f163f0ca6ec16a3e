//! The list of victims: columns by what fits, the cursor's token, layer and head marked in every row.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Modifier;

use crate::app::{Field, VICTIM_COLUMNS, VictimRow};
use crate::event::{Provenance, Reason};
use crate::ui::draw::{Pen, Scene};
use crate::ui::number;
use crate::ui::text;
use crate::ui::theme::Role;
use crate::ui::views::columns::{bar, left, marked, right};
use crate::ui::views::{first_row, list_heading, select_mark};

/// Columns of the bar that shows a score against its cutoff, and least room for the words around a victim.
const BAR: u16 = 14;
const CONTEXT: u16 = 24;

/// Columns of a reason in a word.
const WORD: u16 = 7;

/// The most that a list has to say in each column that has no bound of its own.
#[derive(Default)]
struct Longest {
    step: u64,
    position: u64,
    of: u64,
    age: u64,
    /// Columns of a reason in words rather than in a word.
    phrase: u16,
    /// Whether regret is known of any.
    regret: bool,
}

impl Longest {
    fn of<'a>(rows: impl Iterator<Item = &'a VictimRow>) -> Self {
        rows.fold(Self::default(), |most, row| Self {
            step: most.step.max(row.step),
            position: most.position.max(row.position.into()),
            of: most.of.max(row.of as u64),
            age: most.age.max(row.age.into()),
            phrase: most.phrase.max(text::width(row.reason.words()) as u16),
            regret: most.regret || row.regret.is_some(),
        })
    }
}

/// Columns of a number.
fn digits(number: u64) -> u16 {
    number.checked_ilog10().map_or(1, |log| log as u16 + 1)
}

/// Widths by column, in the order of [`VICTIM_COLUMNS`]; 0 is left out.
struct Widths {
    columns: [(Field, u16); VICTIM_COLUMNS.len()],
    /// Columns of the bar that shows a score against its cutoff.
    bar: u16,
}

impl Widths {
    /// What fits, the most telling columns staying longest; the token takes what is left.
    fn new(width: u16, longest: &Longest) -> Self {
        use Field as F;
        let columns = VICTIM_COLUMNS.map(|column| {
            let least = match column {
                F::Kind | F::Head => 4,
                F::Step => 6.max(digits(longest.step)),
                F::Age => 6.max(digits(longest.age)),
                F::Layer => 5,
                F::Position => 5.max(digits(longest.position)),
                F::Score => 7,
                F::Reason => WORD,
                F::Cutoff | F::Margin | F::Token => 8,
                F::Rank => 9.max(2 * digits(longest.of) + 1),
                F::Regret if longest.regret => 8,
                F::Regret => 0,
            };
            (column, least)
        });
        let mut widths = Self { columns, bar: 0 };
        // The reason is the same for most policies, and the rest follows from score and cutoff.
        for least in [
            F::Reason,
            F::Age,
            F::Rank,
            F::Margin,
            F::Cutoff,
            F::Step,
            F::Head,
            F::Layer,
            F::Score,
            F::Regret,
        ] {
            if widths.used() <= width {
                break;
            }
            *widths.column(least) = 0;
        }
        let spare = |widths: &Self| width.saturating_sub(widths.used());
        *widths.column(F::Token) += 4.min(spare(&widths));
        // The reason takes a phrase or stays a word; the token takes whatever there is.
        let phrase = longest.phrase.saturating_sub(WORD);
        if *widths.column(F::Reason) > 0 && spare(&widths) >= phrase {
            *widths.column(F::Reason) += phrase;
        }
        *widths.column(F::Token) += 6.min(spare(&widths));
        widths.bar = if spare(&widths) >= BAR { BAR - 1 } else { 0 };
        widths
    }

    fn used(&self) -> u16 {
        self.of().map(|(_, width)| width + 1).sum()
    }

    fn column(&mut self, column: Field) -> &mut u16 {
        let at = self.columns.iter().position(|&(c, _)| c == column);
        &mut self.columns[at.expect("a column of the list")].1
    }

    fn of(&self) -> impl Iterator<Item = (Field, u16)> + '_ {
        self.columns.iter().copied().filter(|&(_, width)| width > 0)
    }
}

/// Titles and rows, the selected one in sight.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let list = &scene.app.victims.rows;
    let (rows, heading) = list_heading(area);
    scene.note_rows(rows.height);
    // The first column belongs to the sign of the selected row.
    let widths = Widths::new(area.width.saturating_sub(1), &Longest::of(list.rows_from(0)));
    titles(&mut Pen::new(buf, heading, scene.styles), scene, &widths);
    let first = first_row(list.selected, list.len(), rows.height);
    let mut above: Option<&VictimRow> = None;
    for (i, row) in list.rows_from(first).take(usize::from(rows.height)).enumerate() {
        let place = Rect { y: rows.y + i as u16, height: 1, ..rows };
        line(&mut Pen::new(buf, place, scene.styles), scene, row, above, &widths);
        if first + i == list.selected {
            buf.set_style(place, scene.styles[Role::Selection]);
            select_mark(buf, place, scene);
        }
        above = Some(row);
    }
}

fn titles(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, widths: &Widths) {
    let (sorted, reverse) = scene.app.sort;
    let sorted = VICTIM_COLUMNS[sorted % VICTIM_COLUMNS.len()];
    let arrow = if reverse { scene.symbols().pick('↑', '^') } else { scene.symbols().pick('↓', 'v') };
    pen.skip(1);
    for (column, width) in widths.of() {
        let title = match column {
            Field::Score | Field::Cutoff | Field::Regret => marked(column.name(), Provenance::Measured),
            Field::Rank | Field::Margin | Field::Age => marked(column.name(), Provenance::Derived),
            _ => column.name().to_owned(),
        };
        let role = if column == sorted { Role::Title } else { Role::Dim };
        // The arrow takes the place of a blank, of the mark or of the gap: widths do not change with the order.
        let title = if column == sorted { format!("{}{arrow}", column.name()) } else { title };
        pen.put(&left(&aligned(&title, width, column), width + 1), role);
    }
    if widths.bar > 0 {
        pen.put(&left("of cutoff d", widths.bar + 1), Role::Dim);
    }
    if pen.room() >= CONTEXT {
        pen.put(" words around it", Role::Dim);
    }
}

fn aligned(words: &str, width: u16, column: Field) -> String {
    if matches!(column, Field::Token | Field::Reason) { left(words, width) } else { right(words, width) }
}

fn line(
    pen: &mut Pen<'_, '_>,
    scene: &Scene<'_>,
    row: &VictimRow,
    above: Option<&VictimRow>,
    widths: &Widths,
) {
    pen.skip(1);
    // Rows of one decision: what they share is told once.
    let same = above.is_some_and(|a| (a.step, a.layer, a.head) == (row.step, row.layer, row.head));
    for (column, width) in widths.of() {
        let (words, role) = cell(scene, row, column, width);
        let shared = same && matches!(column, Field::Step | Field::Layer | Field::Head | Field::Cutoff);
        let role = if shared && role == Role::Text { Role::Dim } else { role };
        pen.put(&aligned(&words, width, column), role).put(" ", Role::Text);
    }
    if widths.bar > 0 {
        let share = match (row.score, row.cutoff) {
            (Some(score), Some(cutoff)) if cutoff > 0.0 => f64::from(score / cutoff),
            _ => 0.0,
        };
        bar(pen, share, widths.bar, scene.styles[Role::PartlyEvicted].remove_modifier(Modifier::all()));
        pen.skip(1);
    }
    context(pen, scene, row);
}

/// The words around a victim, where there is room: a figure alone does not tell what was lost.
fn context(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, row: &VictimRow) {
    const BEFORE: usize = 2;
    const TOKENS: usize = 11;
    let Some(seq) = scene.state().and_then(|s| s.seq(row.seq)).filter(|_| pen.room() >= CONTEXT) else {
        return;
    };
    let at = row.position as usize;
    pen.put(" ", Role::Dim);
    for (i, token) in seq.tokens.iter().enumerate().skip(at.saturating_sub(BEFORE)).take(TOKENS) {
        pen.foreign(&token.piece.lossy(), if i == at { Role::Title } else { Role::Dim });
    }
}

fn cell(scene: &Scene<'_>, row: &VictimRow, column: Field, width: u16) -> (String, Role) {
    let symbols = scene.symbols();
    let decimal = |x: Option<f32>| {
        x.map_or_else(|| number::missing(6, symbols), |x| number::decimal(x.into(), symbols))
    };
    let here = |is: bool| if is { Role::Accent } else { Role::Text };
    match column {
        Field::Kind => ("evict".into(), Role::Dim),
        Field::Step => (row.step.to_string(), Role::Text),
        Field::Layer => (row.layer.to_string(), here(usize::from(row.layer) == scene.layer())),
        Field::Head => match row.head {
            Some(head) => (head.to_string(), here(head == scene.kv_head())),
            None => ("all".into(), Role::Text),
        },
        Field::Position => (row.position.to_string(), here(scene.position() == Some(row.position))),
        Field::Token => {
            let safe = text::safe(row.token.as_bytes(), symbols);
            (text::fit(&format!("'{safe}'"), usize::from(width), symbols).into_owned(), Role::Title)
        }
        Field::Reason => {
            let role = if row.merged.is_some() { Role::Merged } else { Role::Dim };
            let words = match row.merged {
                Some(_) if width <= WORD => "merged".into(),
                None if width <= WORD => short(row.reason).into(),
                _ => row.fate(),
            };
            (text::fit(&words, usize::from(width), symbols).into_owned(), role)
        }
        Field::Score => (decimal(row.score), Role::Text),
        Field::Cutoff => (decimal(row.cutoff), Role::Text),
        Field::Rank => {
            let rank =
                row.rank.map_or_else(|| symbols.missing().to_string(), |rank| format!("{rank}/{}", row.of));
            (rank, Role::Text)
        }
        Field::Margin => (decimal(row.margin), Role::Text),
        Field::Age => (row.age.to_string(), Role::Text),
        Field::Regret => (decimal(row.regret), Role::Text),
    }
}

/// The reason in a word, where a phrase has no room.
const fn short(reason: Reason) -> &'static str {
    match reason {
        Reason::LowScore => "score",
        Reason::OutsideWindow => "window",
        Reason::Drawn => "draw",
        Reason::Thinned => "thinned",
        Reason::Unclassed => "class",
        Reason::Represented => "like",
        Reason::LayerWindow => "layer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_every_width_and_the_token_stays() {
        let long = Longest {
            step: 9_999_999,
            position: 131_071,
            of: 16_384,
            age: 131_000,
            phrase: 37,
            regret: true,
        };
        for (width, longest) in (0..220).flat_map(|width| [(width, &long), (width, &LONGEST)]) {
            let mut widths = Widths::new(width, longest);
            assert!(widths.used() + widths.bar <= width.max(16), "{} of {width}", widths.used());
            assert!(*widths.column(Field::Token) > 0 && *widths.column(Field::Position) > 0);
        }
    }

    const LONGEST: Longest = Longest { step: 100, position: 100, of: 10, age: 90, phrase: 22, regret: false };

    #[test]
    fn eighty_columns_have_everything_but_the_phrase() {
        let shown = |longest| Widths::new(79, longest).of().map(|(column, _)| column).collect::<Vec<_>>();
        let all_but = |missing: &[Field]| {
            VICTIM_COLUMNS.into_iter().filter(|column| !missing.contains(column)).collect::<Vec<_>>()
        };
        assert_eq!(shown(&LONGEST), all_but(&[Field::Reason, Field::Regret]));
        assert_eq!(Widths::new(110, &LONGEST).of().count(), VICTIM_COLUMNS.len() - 1);
        let regretted = Longest { regret: true, ..LONGEST };
        assert_eq!(shown(&regretted), all_but(&[Field::Reason, Field::Age]));
        assert_eq!(Widths::new(120, &regretted).of().count(), VICTIM_COLUMNS.len());
    }

    #[test]
    fn a_reason_has_room_for_its_words_or_is_one_word() {
        for phrase in [22, 37] {
            for width in 0..220 {
                let mut widths = Widths::new(width, &Longest { phrase, ..LONGEST });
                assert!([0, WORD, phrase].contains(widths.column(Field::Reason)), "{width}");
            }
            assert_eq!(*Widths::new(200, &Longest { phrase, ..LONGEST }).column(Field::Reason), phrase);
        }
        for reason in (0..u8::MAX).map_while(Reason::from_code) {
            assert!(text::width(short(reason)) <= usize::from(WORD), "{reason:?}");
        }
    }
}
