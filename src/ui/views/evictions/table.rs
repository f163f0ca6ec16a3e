//! The list of victims: columns by what fits, the cursor's token, layer and head marked in every row.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Modifier;

use crate::app::{VictimColumn as Column, VictimRow};
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

/// Columns of a reason in words rather than in a word.
const PHRASE: u16 = 22;

/// Widths by column, in the order of [`Column::ALL`]; 0 is left out.
struct Widths {
    columns: [u16; Column::ALL.len()],
    /// Columns of the bar that shows a score against its cutoff.
    bar: u16,
}

impl Widths {
    /// What fits, the most telling columns staying longest; the token takes what is left.
    fn new(width: u16) -> Self {
        use Column as C;
        let mut columns = Column::ALL.map(|column| match column {
            C::Step | C::Age | C::Reason => 6,
            C::Layer | C::Position => 5,
            C::Head => 4,
            C::Score => 7,
            C::Cutoff | C::Margin | C::Token => 8,
            C::Rank => 9,
        });
        let used = |columns: &[u16]| columns.iter().filter(|&&w| w > 0).map(|w| w + 1).sum::<u16>();
        // The reason is the same for most policies, and the rest follows from score and cutoff.
        for least in [C::Reason, C::Age, C::Rank, C::Margin, C::Cutoff, C::Step, C::Head, C::Layer, C::Score]
        {
            if used(&columns) <= width {
                break;
            }
            columns[least as usize] = 0;
        }
        let mut spare = width.saturating_sub(used(&columns));
        for (column, by) in [(C::Token, 4), (C::Reason, PHRASE - 6), (C::Token, 6)] {
            // The reason takes a phrase or stays a word; the token takes whatever there is.
            let by = if column == C::Token { by.min(spare) } else { by };
            if columns[column as usize] > 0 && spare >= by {
                columns[column as usize] += by;
                spare -= by;
            }
        }
        let bar = if spare >= BAR { BAR - 1 } else { 0 };
        Self { columns, bar }
    }

    fn of(&self) -> impl Iterator<Item = (Column, u16)> + '_ {
        Column::ALL.into_iter().zip(self.columns).filter(|&(_, width)| width > 0)
    }
}

/// Titles and rows, the selected one in sight.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let list = &scene.app.victims;
    let (rows, heading) = list_heading(area);
    scene.note_rows(rows.height);
    // The first column belongs to the sign of the selected row.
    let widths = Widths::new(area.width.saturating_sub(1));
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
    let sorted = Column::ALL[sorted % Column::ALL.len()];
    let arrow = if reverse { scene.symbols().pick('↑', '^') } else { scene.symbols().pick('↓', 'v') };
    pen.skip(1);
    for (column, width) in widths.of() {
        let title = match column {
            Column::Score | Column::Cutoff => marked(column.name(), Provenance::Measured),
            Column::Rank | Column::Margin | Column::Age => marked(column.name(), Provenance::Derived),
            _ => column.name().to_owned(),
        };
        let role = if column == sorted { Role::Title } else { Role::Dim };
        // The arrow takes the place of a blank or of the mark: widths do not change with the order.
        let title = if column == sorted { format!("{}{arrow}", column.name()) } else { title };
        pen.put(&aligned(&title, width, column), role).put(" ", Role::Dim);
    }
    if widths.bar > 0 {
        pen.put(&left("of cutoff d", widths.bar + 1), Role::Dim);
    }
    if pen.room() >= CONTEXT {
        pen.put(" words around it", Role::Dim);
    }
}

fn aligned(words: &str, width: u16, column: Column) -> String {
    if matches!(column, Column::Token | Column::Reason) { left(words, width) } else { right(words, width) }
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
        let shared = same && matches!(column, Column::Step | Column::Layer | Column::Head | Column::Cutoff);
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

fn cell(scene: &Scene<'_>, row: &VictimRow, column: Column, width: u16) -> (String, Role) {
    let symbols = scene.symbols();
    let decimal = |x: Option<f32>| {
        x.map_or_else(|| number::missing(6, symbols), |x| number::decimal(x.into(), symbols))
    };
    let here = |is: bool| if is { Role::Accent } else { Role::Text };
    match column {
        Column::Step => (row.step.to_string(), Role::Text),
        Column::Layer => (row.layer.to_string(), here(usize::from(row.layer) == scene.layer())),
        Column::Head => match row.head {
            Some(head) => (head.to_string(), here(head == scene.kv_head())),
            None => ("all".into(), Role::Text),
        },
        Column::Position => (row.position.to_string(), here(scene.position() == Some(row.position))),
        Column::Token => {
            let safe = text::safe(row.token.as_bytes(), symbols);
            (text::fit(&format!("'{safe}'"), usize::from(width), symbols).into_owned(), Role::Title)
        }
        Column::Reason if width < PHRASE => (short(row.reason).to_owned(), Role::Dim),
        Column::Reason => (row.reason.words().to_owned(), Role::Dim),
        Column::Score => (decimal(row.score), Role::Text),
        Column::Cutoff => (decimal(row.cutoff), Role::Text),
        Column::Rank => {
            let rank =
                row.rank.map_or_else(|| symbols.missing().to_string(), |rank| format!("{rank}/{}", row.of));
            (rank, Role::Text)
        }
        Column::Margin => (decimal(row.margin), Role::Text),
        Column::Age => (row.age.to_string(), Role::Text),
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_every_width_and_the_token_stays() {
        for width in 0..220 {
            let widths = Widths::new(width);
            let used: u16 = widths.of().map(|(_, w)| w + 1).sum();
            assert!(used + widths.bar <= width.max(15), "{used} of {width}");
            assert!(widths.columns[Column::Token as usize] > 0);
            assert!(widths.columns[Column::Position as usize] > 0);
        }
    }

    #[test]
    fn eighty_columns_have_everything_but_the_phrase() {
        let widths = Widths::new(79);
        let shown: Vec<_> = widths.of().map(|(column, _)| column).collect();
        let all: Vec<_> = Column::ALL.into_iter().filter(|&c| c != Column::Reason).collect();
        assert_eq!(shown, all);
        assert_eq!(Widths::new(110).of().count(), Column::ALL.len());
    }
}
