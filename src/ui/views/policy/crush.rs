//! What KVCrush saw in the selected layer: what became of each unit, what the score alone would have kept, how far the
//! signatures are from the anchor, and bit by bit why.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::widgets::Widget;

use super::UNITS;
use crate::event::crush::{BitRow, Fate, MAX_BITS};
use crate::event::{Crush, Layer, Position, Provenance, StepId};
use crate::ui::draw::{Pen, Scene, pane, split_bottom, split_top};
use crate::ui::theme::{Role, Symbols};
use crate::ui::views::columns::fact;
use crate::ui::widgets::{Entry, Legend, draw_column};

/// Columns of the histogram's scale and of a row's label in the matrix.
const SCALE: u16 = 6;
const LABEL: u16 = 14;
/// Widest bar of the histogram, with the gap behind it.
const PITCH: usize = 4;
/// Lines of the histogram where the matrix has room too, and least lines of each.
const HISTOGRAM: u16 = 8;
const MIN_HISTOGRAM: u16 = 3;
const MIN_MATRIX: u16 = 5;

/// Whether the sequence under the cursor has anything to draw here.
pub(super) fn is_there(scene: &Scene<'_>) -> bool {
    scene.state().is_some_and(|state| state.crush.has(scene.app.cursor.seq))
}

fn picture<'a>(scene: &Scene<'a>) -> Option<(StepId, &'a Crush)> {
    scene.state()?.crush.get(scene.app.cursor.seq, scene.layer() as Layer)
}

/// The units of the selected layer.
pub(super) fn pane_of(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let Some((step, crush)) = picture(scene) else {
        let inner = pane(buf, area, scene, "units", "", Some(UNITS));
        let words = if is_there(scene) {
            format!("layer {} has not decided yet", scene.layer())
        } else {
            "no decision by signatures yet: KVCrush makes them when something must go".to_owned()
        };
        Pen::new(buf, inner, scene.styles).wrapped(&words, Role::Dim, 0);
        return;
    };
    let whose = crush.head.map_or_else(|| "all KV heads".to_owned(), |head| format!("KV head {head}"));
    let note = format!("layer {} {whose}, decided at step {step} d", crush.layer);
    let inner = pane(buf, area, scene, "units", &note, Some(UNITS));
    let units = Unit::all(crush);
    let (row, rest) = split_top(inner, 1);
    figures(&mut Pen::new(buf, row, scene.styles), crush, &units);
    let (row, rest) = split_top(rest, strip_height(&units, rest));
    strip(buf, row, scene, &units);
    let rest = legend(buf, rest, scene, !crush.by_score.is_empty());
    if rest.height < HISTOGRAM + MIN_MATRIX {
        histogram(buf, rest, scene, &units);
    } else {
        let (upper, lower) = split_top(rest, HISTOGRAM);
        histogram(buf, upper, scene, &units);
        matrix(buf, lower, scene, crush, &units);
    }
}

struct Unit<'a> {
    first: Position,
    fate: Fate,
    /// Empty where it did not compete.
    signature: &'a BitRow,
    distance: u32,
    /// Whether the score alone would have kept it.
    by_score: Option<bool>,
    /// Its place in the record.
    index: usize,
}

impl<'a> Unit<'a> {
    fn all(crush: &'a Crush) -> Vec<Self> {
        let mut by_score = crush.by_score.bits();
        crush
            .fates()
            .zip(&crush.first)
            .zip(&crush.signatures)
            .zip(&crush.distances)
            .enumerate()
            .map(|(index, (((fate, &first), signature), &distance))| Self {
                first,
                fate,
                signature,
                distance,
                by_score: by_score.next(),
                index,
            })
            .collect()
    }

    fn competes(&self) -> bool {
        !self.signature.is_empty()
    }

    /// Kept although its score would not have kept it.
    fn is_gained(&self) -> bool {
        self.fate != Fate::Lost && self.by_score == Some(false)
    }

    /// Lost although its score would have kept it.
    fn is_given_up(&self) -> bool {
        self.fate == Fate::Lost && self.by_score == Some(true)
    }
}

/// How a fate is drawn: the glyph tells it without colour.
const fn looks(fate: Fate, symbols: Symbols) -> (char, Role) {
    match fate {
        Fate::Start => (symbols.pick('▓', 's'), Role::Sink),
        Fate::Recent => (symbols.pick('▒', 'n'), Role::Resident),
        Fate::Important => (symbols.pick('█', '#'), Role::Live),
        Fate::Representative => (symbols.pick('◆', 'R'), Role::Representative),
        Fate::Lost => (symbols.pick('×', 'x'), Role::Evicted),
    }
}

const fn gained(symbols: Symbols) -> (char, Role) {
    (symbols.pick('▲', '+'), Role::Good)
}

const fn given_up(symbols: Symbols) -> (char, Role) {
    (symbols.pick('▽', '-'), Role::Warn)
}

fn figures(pen: &mut Pen<'_, '_>, crush: &Crush, units: &[Unit<'_>]) {
    if units.len() < crush.units as usize {
        pen.put(&format!("only the first {} are recorded", units.len()), Role::Warn);
    }
    fact(pen, "units", &crush.units.to_string(), Provenance::Measured);
    fact(pen, "bits", &crush.bits.to_string(), Provenance::Measured);
    let representatives = units.iter().filter(|unit| unit.fate == Fate::Representative).count();
    fact(pen, "representatives", &representatives.to_string(), Provenance::Measured);
    if !crush.by_score.is_empty() {
        let gained = units.iter().filter(|unit| unit.is_gained()).count();
        let given_up = units.iter().filter(|unit| unit.is_given_up()).count();
        fact(pen, "against score alone", &format!("+{gained} -{given_up}"), Provenance::Derived);
    }
}

/// Lines per row of units: the units, and below them what the score alone would have done otherwise.
fn lines_per_row(units: &[Unit<'_>]) -> u16 {
    if units.iter().any(|unit| unit.by_score.is_some()) { 2 } else { 1 }
}

fn strip_height(units: &[Unit<'_>], room: Rect) -> u16 {
    let rows = units.len().div_ceil(usize::from(room.width).max(1)) as u16;
    let least = MIN_HISTOGRAM + 1;
    (rows * lines_per_row(units)).min(room.height.saturating_sub(least).max(1))
}

/// Every unit in the order of positions.
fn strip(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, units: &[Unit<'_>]) {
    let (symbols, lines) = (scene.symbols(), lines_per_row(units));
    let width = usize::from(area.width).max(1);
    let here = scene.position().and_then(|p| units.partition_point(|u| u.first <= p).checked_sub(1));
    for (i, unit) in units.iter().enumerate() {
        let (x, y) = ((i % width) as u16, (i / width) as u16 * lines);
        if y >= area.height {
            break;
        }
        let cell = Rect { x: area.x + x, y: area.y + y, width: 1, height: 1 };
        let (glyph, role) = looks(unit.fate, symbols);
        Pen::new(buf, cell, scene.styles).glyph(glyph, bare(scene, role));
        if here == Some(i) {
            buf.set_style(cell, scene.styles[Role::Cursor]);
        }
        let changed = match unit {
            unit if unit.is_gained() => gained(symbols),
            unit if unit.is_given_up() => given_up(symbols),
            _ => continue,
        };
        let below = Rect { y: cell.y + 1, ..cell }.intersection(area);
        Pen::new(buf, below, scene.styles).glyph(changed.0, scene.styles[changed.1]);
    }
}

/// A role's colours without what crosses out or underlines: those marks are for words.
fn bare(scene: &Scene<'_>, role: Role) -> Style {
    use ratatui::style::Modifier;
    scene.styles[role].remove_modifier(Modifier::CROSSED_OUT | Modifier::UNDERLINED)
}

/// Draws the legend where the histogram keeps room; returns what is left.
fn legend(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, has_by_score: bool) -> Rect {
    let symbols = scene.symbols();
    let mut entries: Vec<Entry<'_>> = Fate::ALL
        .into_iter()
        .map(|fate| {
            let (glyph, role) = looks(fate, symbols);
            Entry { glyph, style: bare(scene, role), label: fate.words() }
        })
        .collect();
    if has_by_score {
        for ((glyph, role), label) in
            [(gained(symbols), "score alone loses it"), (given_up(symbols), "score alone keeps it")]
        {
            entries.push(Entry { glyph, style: scene.styles[role], label });
        }
    }
    let legend = Legend::new(scene.styles, &entries);
    let (row, rest) =
        split_top(area, legend.height(area.width).min(area.height.saturating_sub(MIN_HISTOGRAM)));
    (&legend).render(row, buf);
    rest
}

/// Distances of the units that competed, with their representatives above.
fn histogram(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, units: &[Unit<'_>]) {
    let distances = || units.iter().filter(|unit| unit.competes()).map(|unit| unit.distance);
    let (Some(least), Some(most)) = (distances().min(), distances().max()) else {
        Pen::new(buf, area, scene.styles).put("no unit competed: all are protected", Role::Dim);
        return;
    };
    if area.height < MIN_HISTOGRAM || area.width <= SCALE {
        return;
    }
    let room = usize::from(area.width - SCALE);
    let span = (most - least) as usize + 1;
    let per_bucket = span.div_ceil(room);
    let buckets = span.div_ceil(per_bucket);
    let pitch = (room / buckets).clamp(1, PITCH) as u16;
    let mut counts = vec![(0_u32, 0_u32); buckets];
    for unit in units.iter().filter(|unit| unit.competes()) {
        let (all, picked) = &mut counts[(unit.distance - least) as usize / per_bucket];
        *all += 1;
        *picked += u32::from(unit.fate == Fate::Representative);
    }
    let highest = counts.iter().map(|count| count.0).max().unwrap_or(0).max(1);
    let (marks, rest) = split_top(area, 1);
    let (bars, axis) = split_bottom(rest, 1);
    Pen::new(buf, bars, scene.styles).put(&format!("{highest:>4} m"), Role::Dim);
    let (glyph, role) = looks(Fate::Representative, scene.symbols());
    for (bucket, &(all, picked)) in counts.iter().enumerate() {
        let x = SCALE + bucket as u16 * pitch;
        let bar = if picked > 0 { role } else { Role::Dim };
        for column in x..x + (pitch - 1).max(1) {
            let share = f64::from(all) / f64::from(highest);
            draw_column(buf, bars, column, share, scene.symbols(), bare(scene, bar));
        }
        if picked > 0 {
            let mut pen = Pen::new(buf, marks, scene.styles);
            pen.skip(x).glyph(glyph, scene.styles[role]);
            if picked > 1 && pitch > 2 {
                pen.put(&number_in(picked, pitch - 2), role);
            }
        }
    }
    let mut pen = Pen::new(buf, axis, scene.styles);
    pen.skip(SCALE).put(&least.to_string(), Role::Dim);
    let used = buckets as u16 * pitch;
    let last = most.to_string();
    pen.column((SCALE + used).saturating_sub(last.len() as u16 + 1).max(SCALE + 2 + last.len() as u16));
    pen.put(&last, Role::Dim).put("  bits away from the anchor ", Role::Dim);
    pen.figure("", Provenance::Derived);
}

/// A number if it has room.
fn number_in(n: u32, columns: u16) -> String {
    let words = n.to_string();
    if words.len() <= usize::from(columns) { words } else { String::new() }
}

/// Signatures under the anchor, nearest first; representatives are never among those left out.
fn matrix(buf: &mut Buffer, area: Rect, scene: &Scene<'_>, crush: &Crush, units: &[Unit<'_>]) {
    let symbols = scene.symbols();
    let mut pen = Pen::new(buf, area, scene.styles);
    let competing = units.iter().filter(|unit| unit.competes()).count();
    let rows = usize::from(area.height.saturating_sub(2));
    let shown = nearest_first(units, rows);
    let bits = (crush.bits as usize).min(MAX_BITS).min(usize::from(area.width.saturating_sub(LABEL)));
    pen.put("   pos    dist", Role::Dim);
    if shown.len() < competing {
        pen.dot().put(&format!("{} of {competing} units", shown.len()), Role::Dim);
    }
    if bits < crush.bits as usize {
        pen.dot().put(&format!("first {bits} of {} bits", crush.bits), Role::Dim);
    }
    for (bit, differs, words) in [
        (true, true, "1"),
        (false, true, "0 unlike the anchor"),
        (true, false, "1"),
        (false, false, "0 like it"),
    ] {
        let (glyph, role) = bit_looks(bit, differs, symbols);
        pen.dot().glyph(glyph, scene.styles[role]).put(" ", Role::Dim).put(words, Role::Dim);
    }
    pen.newline();
    let anchor: Vec<bool> = crush.anchor.bits().collect();
    if crush.anchor_per_unit {
        pen.put("each unit has an anchor bit of its own, at its left", Role::Title).newline();
    } else {
        pen.put("anchor", Role::Title).column(LABEL);
        for &bit in anchor.iter().take(bits) {
            pen.glyph(bit_looks(bit, true, symbols).0, scene.styles[Role::Title]);
        }
        pen.newline();
    }
    for unit in shown {
        let (glyph, role) = looks(unit.fate, symbols);
        pen.put(&format!("{:>6} ", unit.first), Role::Text).glyph(glyph, bare(scene, role));
        pen.put(&format!("{:>5}", unit.distance), Role::Text);
        let own = anchor.get(unit.index).copied().unwrap_or(false);
        if crush.anchor_per_unit {
            pen.glyph(bit_looks(own, true, symbols).0, scene.styles[Role::Title]);
        }
        pen.column(LABEL);
        for (i, bit) in unit.signature.bits().take(bits).enumerate() {
            let of = if crush.anchor_per_unit { own } else { anchor.get(i).copied().unwrap_or(false) };
            let (glyph, role) = bit_looks(bit, bit != of, symbols);
            pen.glyph(glyph, scene.styles[role]);
        }
        pen.newline();
    }
}

/// A bit: heavy where it differs from the anchor, since those are what the distance counts.
const fn bit_looks(bit: bool, differs: bool, symbols: Symbols) -> (char, Role) {
    match (bit, differs) {
        (true, true) => (symbols.pick('█', '#'), Role::Accent),
        (false, true) => (symbols.pick('□', 'o'), Role::Accent),
        (true, false) => (symbols.pick('▒', '+'), Role::Dim),
        (false, false) => (symbols.pick('·', '.'), Role::Dim),
    }
}

/// At most so many competing units by distance; where they are too many, representatives first, then evenly spread ones.
fn nearest_first<'u, 'c>(units: &'u [Unit<'c>], rows: usize) -> Vec<&'u Unit<'c>> {
    let (picked, others): (Vec<_>, Vec<_>) =
        units.iter().filter(|unit| unit.competes()).partition(|unit| unit.fate == Fate::Representative);
    let by_distance = |unit: &&Unit<'_>| (unit.distance, unit.index);
    let mut others = others;
    others.sort_by_key(by_distance);
    let mut shown: Vec<_> = picked.into_iter().take(rows).collect();
    let left = rows - shown.len();
    let n = others.len();
    shown.extend((0..left.min(n)).map(|i| others[i * n / left.min(n)]));
    shown.sort_by_key(by_distance);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(index: usize, fate: Fate, signature: &BitRow, distance: u32) -> Unit<'_> {
        Unit { first: index as u32 * 4, fate, signature, distance, by_score: None, index }
    }

    #[test]
    fn representatives_are_never_left_out_of_the_matrix() {
        let signature = BitRow::new(&[true]);
        let units: Vec<_> = (0..40)
            .map(|i| {
                let fate = if i % 10 == 7 { Fate::Representative } else { Fate::Lost };
                unit(i, fate, &signature, (i * 7 % 40) as u32)
            })
            .collect();
        for rows in 0..50 {
            let shown = nearest_first(&units, rows);
            assert_eq!(shown.len(), rows.min(40));
            assert!(shown.is_sorted_by_key(|unit| unit.distance));
            let picked = shown.iter().filter(|unit| unit.fate == Fate::Representative).count();
            assert_eq!(picked, rows.min(4));
        }
        let none = BitRow::default();
        assert!(nearest_first(&[unit(0, Fate::Start, &none, 0)], 5).is_empty());
    }

    #[test]
    fn fates_and_bits_differ_without_colour() {
        for symbols in [Symbols::Block, Symbols::Ascii] {
            let mut glyphs: Vec<char> = Fate::ALL.map(|fate| looks(fate, symbols).0).to_vec();
            glyphs.extend([gained(symbols).0, given_up(symbols).0]);
            glyphs.sort_unstable();
            glyphs.dedup();
            assert_eq!(glyphs.len(), 7);
            let mut bits: Vec<char> = [(true, true), (true, false), (false, true), (false, false)]
                .map(|(b, d)| bit_looks(b, d, symbols).0)
                .into();
            bits.sort_unstable();
            bits.dedup();
            assert_eq!(bits.len(), 4);
        }
        assert!(Fate::ALL.iter().filter(|&&f| looks(f, Symbols::Block).1 == Role::Evicted).eq([&Fate::Lost]));
    }
}
