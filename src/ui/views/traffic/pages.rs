//! One line per layer of what a read set by pages or blocks read: how many, bytes against reading everything, what
//! moved for it, and what it missed.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::layers::{NAME, not_read_by};
use crate::event::{LayerReads, LayerTraffic, Provenance, Tier};
use crate::policy::{Infllm, Quest, ReadRule};
use crate::state::State;
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
    Loaded,
    Reload,
    ToDevice,
    ToHost,
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
    ReloadInAll,
    ToDeviceInAll,
    ToHostInAll,
}

/// Columns with their widths.
type Columns = &'static [(Column, u16)];

use Column as C;

impl Column {
    /// All columns of Quest in drawing order. The first eight say what the shown step did.
    const OF_QUEST: Columns = &[
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

    /// The same of InfLLM.
    const OF_INFLLM: Columns = &[
        (C::Pages, 12),
        (C::Loaded, 9),
        (C::Reload, 9),
        (C::ToDevice, 10),
        (C::ToHost, 10),
        (C::Read, 10),
        (C::Share, 9),
        (C::Index, 10),
        (C::Unread, 9),
        (C::ReloadInAll, 9),
        (C::ToDeviceInAll, 10),
        (C::ToHostInAll, 10),
        (C::ReadInAll, 10),
        (C::ShareInAll, 9),
    ];

    /// In the order in which they are given up where a screen is narrow.
    const GIVEN_UP: [Self; 18] = [
        C::ReloadInAll,
        C::ToHostInAll,
        C::Loaded,
        C::RecallInAll,
        C::DenseInAll,
        C::Asked,
        C::ReadInAll,
        C::Index,
        C::ToDeviceInAll,
        C::ShareInAll,
        C::ToHost,
        C::Dense,
        C::Recall,
        C::Unread,
        C::Read,
        C::ToDevice,
        C::Reload,
        C::Share,
    ];

    const fn is_in_all(self) -> bool {
        matches!(
            self,
            C::ReadInAll
                | C::DenseInAll
                | C::ShareInAll
                | C::RecallInAll
                | C::ReloadInAll
                | C::ToDeviceInAll
                | C::ToHostInAll
        )
    }

    fn title(self, rule: Rule) -> String {
        use Provenance::{Derived, Measured, Sampled};
        match self {
            C::Pages => marked(rule.units(), Measured),
            C::Asked => marked("asked", Measured),
            C::Loaded => marked("loaded", Measured),
            C::Reload | C::ReloadInAll => marked("reload", Derived),
            C::ToDevice | C::ToDeviceInAll => marked("to dev", Measured),
            C::ToHost | C::ToHostInAll => marked("to host", Measured),
            C::Read | C::ReadInAll => marked("read", Measured),
            C::Dense | C::DenseInAll => marked("of all", Measured),
            C::Share | C::ShareInAll => marked("share", Derived),
            C::Index => marked(rule.index(), Measured),
            C::Unread => marked("unread", Derived),
            C::Recall | C::RecallInAll => marked("top10", Sampled),
        }
    }

    fn figure(self, symbols: Symbols, row: &Row) -> String {
        let Row { last, all, moved, moved_in_all, unread } = row;
        let missing = || number::missing(1, symbols);
        let share = |part: u64, whole: u64| {
            if whole == 0 { missing() } else { number::percent(part as f64 / whole as f64, symbols) }
        };
        match self {
            C::Pages => format!("{}/{}", number::count(last.read).trim(), number::count(last.pages).trim()),
            C::Asked => number::count(last.asked),
            C::Loaded => number::count(last.loaded),
            C::Reload => share(last.loaded, last.read),
            C::ReloadInAll => share(all.loaded, all.read),
            C::ToDevice => number::bytes(moved.h2d_bytes),
            C::ToHost => number::bytes(moved.d2h_bytes),
            C::ToDeviceInAll => number::bytes(moved_in_all.h2d_bytes),
            C::ToHostInAll => number::bytes(moved_in_all.d2h_bytes),
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

/// A read set by pages, or by blocks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule {
    Quest(Quest),
    Infllm(Infllm),
}

impl Rule {
    pub(super) const fn of(rule: ReadRule) -> Option<Self> {
        match rule {
            ReadRule::Quest(quest) => Some(Self::Quest(quest)),
            ReadRule::Infllm(infllm) => Some(Self::Infllm(infllm)),
            ReadRule::Kcache(_) => None,
        }
    }

    pub(super) const fn units(self) -> &'static str {
        match self {
            Self::Quest(_) => "pages",
            Self::Infllm(_) => "blocks",
        }
    }

    /// The pane's note.
    pub(super) const fn note(self) -> &'static str {
        match self {
            Self::Quest(_) => "nothing moves between tiers",
            Self::Infllm(_) => "blocks live on the host",
        }
    }

    /// What is kept to choose by.
    const fn index(self) -> &'static str {
        match self {
            Self::Quest(_) => "bounds",
            Self::Infllm(_) => "repr",
        }
    }

    const fn columns(self) -> Columns {
        match self {
            Self::Quest(_) => Column::OF_QUEST,
            Self::Infllm(_) => Column::OF_INFLLM,
        }
    }

    /// The rule in words.
    fn words(self) -> String {
        match self {
            Self::Quest(quest) => format!("{} pages of {} and the newest", quest.pages(), quest.page),
            Self::Infllm(i) => {
                format!("{} first, {} blocks of {}, window {}", i.init, i.retrieved(), i.block, i.local)
            }
        }
    }

    const fn is_dense(self, layer: u16) -> bool {
        match self {
            Self::Quest(quest) => quest.is_dense(layer),
            Self::Infllm(_) => false,
        }
    }
}

/// What the figures of a line are of.
#[derive(Clone, Copy)]
struct Row {
    last: LayerReads,
    all: LayerReads,
    moved: LayerTraffic,
    moved_in_all: LayerTraffic,
    unread: Option<f32>,
}

fn columns(rule: Rule, width: u16) -> Vec<(Column, u16)> {
    let mut columns = rule.columns().to_vec();
    for least in Column::GIVEN_UP {
        if columns.iter().map(|&(_, w)| w).sum::<u16>() + NAME <= width {
            break;
        }
        columns.retain(|&(column, _)| column != least);
    }
    columns
}

/// The rule, and the whole run.
pub(super) fn totals(pen: &mut Pen<'_, '_>, scene: &Scene<'_>, rule: Rule) {
    let Some(state) = scene.state() else { return };
    let symbols = scene.symbols();
    let (last, sum) = (state.reads.last_sum(), state.reads.sum());
    pen.put(&rule.words(), Role::Pulled);
    if let Rule::Infllm(_) = rule {
        let (moved, copies) = (state.traffic.sum(), copies_bytes(state));
        fact(pen, "to device", &number::bytes(moved.h2d_bytes), Provenance::Measured);
        fact(pen, "to host", &number::bytes(moved.d2h_bytes), Provenance::Measured);
        fact(pen, "copies", &number::bytes(copies), Provenance::Measured);
    }
    fact(pen, "read", &number::bytes(sum.read_bytes), Provenance::Measured);
    fact(pen, "of", &number::bytes(sum.dense_bytes), Provenance::Measured);
    if last.key_bytes > 0 {
        fact(pen, rule.index(), &number::bytes(last.index_bytes), Provenance::Measured);
        let share = last.index_bytes as f64 / last.key_bytes as f64;
        fact(pen, "of K", &number::percent(share, symbols), Provenance::Derived);
    }
    if let Some(mass) = state.mass_dropped() {
        fact(pen, "not read", &number::percent(mass.into(), symbols), Provenance::Derived);
    }
}

/// Bytes of the blocks that lie on the device as copies.
fn copies_bytes(state: &State) -> u64 {
    state.tiers.iter().filter(|t| t.tier == Tier::Device).map(|t| t.copies_bytes).sum()
}

/// The table; returns the lines it took.
pub(super) fn render(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, rule: Rule) -> u16 {
    let (Some(state), Some(run)) = (scene.state(), scene.run()) else { return 0 };
    let (columns, symbols) = (columns(rule, area.width), scene.symbols());
    let (heading, rows) = split_top(area, if area.height >= 5 { 2 } else { u16::from(area.height >= 3) });
    titles(&mut Pen::new(buf, heading, scene.styles), rule, &columns);
    let layers = run.model.layers as usize;
    let lines = usize::from(rows.height.saturating_sub(1)).min(layers);
    scene.note_rows(lines as u16);
    let first = first_row(scene.layer(), layers, lines as u16);
    let mut pen = Pen::new(buf, rows, scene.styles);
    for layer in first..first + lines {
        let here = layer == scene.layer();
        pen.put(if here { symbols.pick("▸", ">") } else { " " }, Role::Accent);
        pen.put(&format!("L{layer}"), if here { Role::Accent } else { Role::Dim }).column(NAME);
        if rule.is_dense(layer as u16) {
            pen.put("  dense: every page is read", Role::Text).newline();
            continue;
        }
        let Some((&last, &all)) = state.reads.last.get(layer).zip(state.reads.total.get(layer)) else {
            pen.put("  the prompt reads everything", Role::Dim).newline();
            continue;
        };
        let (moved, moved_in_all) = (state.traffic.last[layer], state.traffic.total[layer]);
        let row = Row { last, all, moved, moved_in_all, unread: not_read_by(scene, layer) };
        if last.dense_bytes == 0 {
            let blank = columns.iter().filter(|(c, _)| !c.is_in_all()).map(|&(_, w)| w).sum::<u16>();
            pen.put("  the shown step reads everything", Role::Dim).column(NAME + blank);
            let in_all: Vec<_> = columns.iter().copied().filter(|(c, _)| c.is_in_all()).collect();
            figures(&mut pen, symbols, &in_all, &row);
            pen.newline();
            continue;
        }
        figures(&mut pen, symbols, &columns, &row);
        let room = pen.room().saturating_sub(2);
        if room >= 8 {
            pen.skip(2);
            let share = last.read_bytes as f64 / last.dense_bytes as f64;
            bar(&mut pen, share, room, scene.styles[Role::Pulled]);
        }
        pen.newline();
    }
    pen.skip(1).put("all", Role::Title).column(NAME);
    let sums = Row {
        last: state.reads.last_sum(),
        all: state.reads.sum(),
        moved: state.traffic.last_sum(),
        moved_in_all: state.traffic.sum(),
        unread: state.mass_dropped(),
    };
    figures(&mut pen, symbols, &columns, &sums);
    heading.height + lines as u16 + 1
}

fn titles(pen: &mut Pen<'_, '_>, rule: Rule, columns: &[(Column, u16)]) {
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
        pen.put(&right(&column.title(rule), width), Role::Dim);
    }
}

fn figures(pen: &mut Pen<'_, '_>, symbols: Symbols, columns: &[(Column, u16)], row: &Row) {
    for &(column, width) in columns {
        let role = if matches!(column, C::Read | C::Share) { Role::Pulled } else { Role::Text };
        pen.put(&right(&column.figure(symbols, row), width), role);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse_read;

    #[test]
    fn pages_and_their_share_stay_as_the_screen_narrows() {
        let parsed = |text: &str| Rule::of(parse_read(text).unwrap().rule()).unwrap();
        let (quest, infllm) = (parsed("quest"), parsed("infllm"));
        assert_eq!(columns(quest, 200).len(), Column::OF_QUEST.len());
        assert_eq!(columns(infllm, 200).len(), Column::OF_INFLLM.len());
        let at_80: Vec<_> = columns(quest, 78).into_iter().map(|(column, _)| column).collect();
        for column in [C::Pages, C::Read, C::Dense, C::Share, C::Unread, C::Recall] {
            assert!(at_80.contains(&column), "{column:?} of {at_80:?}");
        }
        let at_80: Vec<_> = columns(infllm, 78).into_iter().map(|(column, _)| column).collect();
        for column in [C::Pages, C::Reload, C::ToDevice, C::ToHost, C::Share, C::Unread] {
            assert!(at_80.contains(&column), "{column:?} of {at_80:?}");
        }
        assert_eq!(columns(quest, 0), [(C::Pages, 12)]);
    }
}
