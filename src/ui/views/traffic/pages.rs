//! One line per layer of what a read set by pages read: pages, bytes against reading everything, and what it missed.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::layers::{NAME, not_read_by};
use crate::event::{LayerReads, Provenance};
use crate::policy::Quest;
use crate::ui::draw::{Pen, Scene, split_top};
use crate::ui::number;
use crate::ui::theme::{Role, Symbols};
use crate::ui::views::columns::{bar, fact, marked, right};
use crate::ui::views::first_row;

/// A figure of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Pages,
    Asked,
    Read,
    Dense,
    Share,
    Index,
    Unread,
    Recall,
    ReadInAll,
    DenseInAll,
    ShareInAll,
    RecallInAll,
}

use Column as C;

impl Column {
    /// All columns in drawing order, with their widths. The first eight say what the shown step did.
    const ALL: [(Self, u16); 12] = [
        (C::Pages, 12),
        (C::Asked, 8),
        (C::Read, 10),
        (C::Dense, 10),
        (C::Share, 9),
        (C::Index, 10),
        (C::Unread, 9),
        (C::Recall, 8),
        (C::ReadInAll, 10),
        (C::DenseInAll, 10),
        (C::ShareInAll, 9),
        (C::RecallInAll, 8),
    ];

    /// In the order in which they are given up where a screen is narrow.
    const GIVEN_UP: [Self; 11] = [
        C::RecallInAll,
        C::DenseInAll,
        C::Asked,
        C::ReadInAll,
        C::Index,
        C::ShareInAll,
        C::Dense,
        C::Recall,
        C::Unread,
        C::Read,
        C::Share,
    ];

    const fn is_in_all(self) -> bool {
        matches!(self, C::ReadInAll | C::DenseInAll | C::ShareInAll | C::RecallInAll)
    }

    fn title(self) -> String {
        use Provenance::{Derived, Measured, Sampled};
        match self {
            C::Pages => marked("pages", Measured),
            C::Asked => marked("asked", Measured),
            C::Read | C::ReadInAll => marked("read", Measured),
            C::Dense | C::DenseInAll => marked("of all", Measured),
            C::Share | C::ShareInAll => marked("share", Derived),
            C::Index => marked("bounds", Measured),
            C::Unread => marked("unread", Derived),
            C::Recall | C::RecallInAll => marked("top10", Sampled),
        }
    }

    fn figure(self, symbols: Symbols, last: &LayerReads, all: &LayerReads, unread: Option<f32>) -> String {
        let missing = || number::missing(1, symbols);
        let share = |part: u64, whole: u64| {
            if whole == 0 { missing() } else { number::percent(part as f64 / whole as f64, symbols) }
        };
        match self {
            C::Pages => format!("{}/{}", number::count(last.read).trim(), number::count(last.pages).trim()),
            C::Asked => number::count(last.asked),
            C::Read => number::bytes(last.read_bytes),
            C::Dense => number::bytes(last.dense_bytes),
            C::Share => share(last.read_bytes, last.dense_bytes),
            C::Index => number::bytes(last.index_bytes),
            C::Unread => unread.map_or_else(missing, |mass| number::percent(mass.into(), symbols)),
            C::Recall => share(last.top_read, last.top),
            C::ReadInAll => number::bytes(all.read_bytes),
            C::DenseInAll => number::bytes(all.dense_bytes),
            C::ShareInAll => share(all.read_bytes, all.dense_bytes),
            C::RecallInAll => share(all.top_read, all.top),
        }
    }
}

fn columns(width: u16) -> Vec<(Column, u16)> {
    let mut columns = Column::ALL.to_vec();
    for least in Column::GIVEN_UP {
        if columns.iter().map(|&(_, w)| w).sum::<u16>() + NAME <= width {
            break;
        }
        columns.retain(|&(column, _)| column != least);
    }
    columns
}

/// The rule, and the whole run.
pub(super) fn totals(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, quest: Quest) {
    let Some(state) = scene.state() else { return };
    let symbols = scene.symbols();
    let (last, sum) = (state.reads.last_sum(), state.reads.sum());
    pen.put(&format!("{} pages of {} and the newest", quest.pages(), quest.page), Role::Pulled);
    fact(pen, "read", &number::bytes(sum.read_bytes), Provenance::Measured);
    fact(pen, "of", &number::bytes(sum.dense_bytes), Provenance::Measured);
    if last.key_bytes > 0 {
        fact(pen, "bounds", &number::bytes(last.index_bytes), Provenance::Measured);
        let share = last.index_bytes as f64 / last.key_bytes as f64;
        fact(pen, "of K", &number::percent(share, symbols), Provenance::Derived);
    }
    if let Some(mass) = state.mass_dropped() {
        fact(pen, "not read", &number::percent(mass.into(), symbols), Provenance::Derived);
    }
}

/// The table; returns the lines it took.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, quest: Quest) -> u16 {
    let (Some(state), Some(run)) = (scene.state(), scene.run()) else { return 0 };
    let (columns, symbols) = (columns(area.width), scene.symbols());
    let (heading, rows) = split_top(area, if area.height >= 5 { 2 } else { u16::from(area.height >= 3) });
    titles(&mut Pen::new(buf, heading, scene.styles), &columns);
    let layers = run.model.layers as usize;
    let lines = usize::from(rows.height.saturating_sub(1)).min(layers);
    scene.note_rows(lines as u16);
    let first = first_row(scene.layer(), layers, lines as u16);
    let mut pen = Pen::new(buf, rows, scene.styles);
    for layer in first..first + lines {
        let here = layer == scene.layer();
        pen.put(if here { symbols.pick("▸", ">") } else { " " }, Role::Accent);
        pen.put(&format!("L{layer}"), if here { Role::Accent } else { Role::Dim }).column(NAME);
        if quest.is_dense(layer as u16) {
            pen.put("  dense: every page is read", Role::Text).newline();
            continue;
        }
        let Some((last, all)) = state.reads.last.get(layer).zip(state.reads.total.get(layer)) else {
            pen.put("  the prompt reads everything", Role::Dim).newline();
            continue;
        };
        if last.dense_bytes == 0 {
            let blank = columns.iter().filter(|(c, _)| !c.is_in_all()).map(|&(_, w)| w).sum::<u16>();
            pen.put("  the shown step reads everything", Role::Dim).column(NAME + blank);
            let in_all: Vec<_> = columns.iter().copied().filter(|(c, _)| c.is_in_all()).collect();
            figures(&mut pen, symbols, &in_all, (last, all, None));
            pen.newline();
            continue;
        }
        figures(&mut pen, symbols, &columns, (last, all, not_read_by(scene, layer)));
        let room = pen.room().saturating_sub(2);
        if room >= 8 {
            pen.skip(2);
            let share = last.read_bytes as f64 / last.dense_bytes as f64;
            bar(&mut pen, share, room, scene.styles[Role::Pulled]);
        }
        pen.newline();
    }
    pen.skip(1).put("all", Role::Title).column(NAME);
    let sums = (&state.reads.last_sum(), &state.reads.sum(), state.mass_dropped());
    figures(&mut pen, symbols, &columns, sums);
    heading.height + lines as u16 + 1
}

fn titles(pen: &mut Pen<'_, '_>, columns: &[(Column, u16)]) {
    if pen.lines() >= 2 {
        let of_step: u16 = columns.iter().filter(|(c, _)| !c.is_in_all()).map(|&(_, w)| w).sum();
        pen.column(NAME + 2).put("shown step", Role::Dim);
        if columns.iter().any(|(c, _)| c.is_in_all()) {
            pen.column(NAME + of_step + 2).put("whole run", Role::Dim);
        }
        pen.newline();
    }
    pen.put(" layer", Role::Dim).column(NAME);
    for &(column, width) in columns {
        pen.put(&right(&column.title(), width), Role::Dim);
    }
}

fn figures(
    pen: &mut Pen<'_, '_>,
    symbols: Symbols,
    columns: &[(Column, u16)],
    (last, all, unread): (&LayerReads, &LayerReads, Option<f32>),
) {
    for &(column, width) in columns {
        let role = if matches!(column, C::Read | C::Share) { Role::Pulled } else { Role::Text };
        pen.put(&right(&column.figure(symbols, last, all, unread), width), role);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_their_share_stay_as_the_screen_narrows() {
        assert_eq!(columns(200).len(), Column::ALL.len());
        let at_80: Vec<_> = columns(78).into_iter().map(|(column, _)| column).collect();
        for column in [C::Pages, C::Read, C::Dense, C::Share, C::Unread, C::Recall] {
            assert!(at_80.contains(&column), "{column:?} of {at_80:?}");
        }
        assert_eq!(columns(0), [(C::Pages, 12)]);
    }
}
