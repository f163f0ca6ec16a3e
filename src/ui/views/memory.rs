//! Bytes by tier, and what they are used for.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::Widget;

use crate::event::{Provenance, TierUse};
use crate::ui::draw::{Pen, Scene};
use crate::ui::number;
use crate::ui::theme::{Role, tier_role};
use crate::ui::widgets::{Part, StackedBar};

/// Columns of the tier's name and of its bytes.
const LABEL: u16 = 7;
const FIGURE: u16 = 23;

/// One line per tier: live, stranded, unfilled and copied bytes against the capacity.
pub(super) fn tiers(buf: &mut Buffer, area: Rect, scene: &Scene<'_>) {
    let Some(state) = scene.state() else { return };
    let most = state.tiers.iter().map(|t| t.allocated_bytes().max(t.capacity_bytes)).max().unwrap_or(0);
    for (line, tier) in state.tiers.iter().enumerate().take(usize::from(area.height)) {
        gauge(buf, Rect { y: area.y + line as u16, height: 1, ..area }, scene, tier, most);
    }
}

/// Lines that [`tiers`] fills.
pub(super) fn height(scene: &Scene<'_>) -> u16 {
    scene.state().map_or(0, |s| s.tiers.len() as u16)
}

fn gauge(buf: &mut Buffer, row: Rect, scene: &Scene<'_>, tier: &TierUse, most: u64) {
    let styles = scene.styles;
    Pen::new(buf, row, styles).put(tier.tier.name(), tier_role(tier.tier));
    let figure = if row.width >= 60 { FIGURE } else { 11 };
    let bar =
        Rect { x: row.x + LABEL.min(row.width), width: row.width.saturating_sub(LABEL + figure + 1), ..row };
    let part = |label, bytes: u64, role: Role, letter| Part {
        label,
        value: bytes as f64,
        style: styles[role],
        letter,
    };
    let parts = [
        part("live", tier.live_bytes, Role::Live, 'l'),
        part("stranded", tier.stranded_bytes, Role::Stranded, 's'),
        part("unfilled", tier.unfilled_bytes, Role::Unfilled, 'u'),
        part("copies", tier.copies_bytes, Role::Shared, 'c'),
    ];
    let whole = if tier.capacity_bytes > 0 { tier.capacity_bytes } else { most };
    (&StackedBar::new(styles, &parts).whole(whole as f64)).render(bar, buf);
    let mut pen = Pen::new(buf, row, styles);
    pen.column(row.width.saturating_sub(figure));
    pen.figure(&number::bytes(tier.allocated_bytes()), Provenance::Measured);
    if figure == FIGURE {
        if tier.capacity_bytes > 0 {
            pen.put(" of ", Role::Dim).put(&number::bytes(tier.capacity_bytes), Role::Dim);
        } else {
            pen.put(" no limit", Role::Dim);
        }
    }
}
