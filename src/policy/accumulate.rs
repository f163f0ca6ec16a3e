//! Accumulators: what attention leaves behind for the rules. This scalar version is the reference.

mod marks;
mod queries;

use crate::event::{Head, Layer, Position};

use self::marks::Marks;
use super::noise::{self, Use};

pub use queries::QueryMoments;

/// What a rule reads; the rest is not kept. A window or a history has its length here, 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Needs {
    /// Attention each token has received, summed over all queries so far.
    pub sum: bool,
    /// The squares of that attention, summed alike.
    pub squares: bool,
    /// Attention each token received from the newest query.
    pub last_row: bool,
    /// Queries that could see each token.
    pub count: bool,
    /// Attention received from the last so many queries of the compressed span.
    pub window: u32,
    /// How often, among the last so many queries, a token drew less than the uniform share.
    pub marks: u32,
    /// A cumulative score with noise.
    pub noisy: Option<Noise>,
    /// What the queries of the compressed span paid in all, and what those paid that came within this share of the span
    /// after the token.
    pub near: Option<f64>,
    /// The key vectors, at decision time.
    pub keys: bool,
    /// The value vectors, at decision time.
    pub values: bool,
    /// Mean and covariance of the span's queries before RoPE, leaving out the first so many.
    pub queries: Option<u32>,
    /// Token classes.
    pub classes: bool,
}

/// A number per position that attention adds to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SumKind {
    /// [`Needs::sum`].
    Sum,
    /// [`Needs::squares`].
    Squares,
    /// [`Needs::count`].
    Count,
    /// [`Needs::last_row`].
    LastRow,
    /// [`Needs::window`].
    Window,
}

/// The temperature of the noisy score: `start + growth` per generated token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// Temperature in the prompt.
    pub start: f64,
    /// What each generated token adds.
    pub growth: f64,
}

impl Needs {
    /// Nothing: attention may run without handing out probabilities.
    pub const NONE: Self = Self {
        sum: false,
        squares: false,
        last_row: false,
        count: false,
        window: 0,
        marks: 0,
        noisy: None,
        near: None,
        keys: false,
        values: false,
        queries: None,
        classes: false,
    };

    /// The sums that hold all of attention that is needed, in order; `None` where no sum of a fixed number of values holds
    /// it: histories, noise, sums over a range that differs from token to token.
    pub fn sums(self) -> Option<Vec<SumKind>> {
        if self.marks > 0 || self.noisy.is_some() || self.near.is_some() {
            return None;
        }
        let kinds = [
            (self.sum, SumKind::Sum),
            (self.squares, SumKind::Squares),
            (self.count, SumKind::Count),
            (self.last_row, SumKind::LastRow),
            (self.window > 0, SumKind::Window),
        ];
        Some(kinds.into_iter().filter_map(|(needed, kind)| needed.then_some(kind)).collect())
    }

    /// Whether attention must hand out probabilities.
    pub const fn attention(self) -> bool {
        self.sum || self.last_row || self.rows()
    }

    /// Whether it must hand out the row of every query, not sums alone.
    pub const fn rows(self) -> bool {
        self.squares || self.window > 0 || self.marks > 0 || self.noisy.is_some() || self.near.is_some()
    }

    /// The kinds kept, in words; none for a rule that needs positions alone.
    pub fn names(self) -> Vec<&'static str> {
        [
            (self.sum, "sum"),
            (self.squares, "sum of squares"),
            (self.last_row, "last row"),
            (self.count, "count"),
            (self.window > 0, "window sums"),
            (self.marks > 0, "below-uniform marks"),
            (self.noisy.is_some(), "noisy score"),
            (self.near.is_some(), "near sums"),
            (self.keys, "keys"),
            (self.values, "values"),
            (self.queries.is_some(), "query mean and covariance"),
            (self.classes, "token classes"),
        ]
        .into_iter()
        .filter_map(|(needed, name)| needed.then_some(name))
        .collect()
    }

    /// Everything either side needs; where both name a length or a shape, the longer one and the first.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            sum: self.sum || other.sum,
            squares: self.squares || other.squares,
            last_row: self.last_row || other.last_row,
            count: self.count || other.count,
            window: self.window.max(other.window),
            marks: self.marks.max(other.marks),
            noisy: self.noisy.or(other.noisy),
            near: self.near.or(other.near),
            keys: self.keys || other.keys,
            values: self.values || other.values,
            queries: self.queries.or(other.queries),
            classes: self.classes || other.classes,
        }
    }

    /// Everything either side needs, where one set of accumulators holds it for both; `None` where they name different
    /// lengths or shapes.
    pub fn shared(self, other: Self) -> Option<Self> {
        let both = self.or(other);
        (both.holds(self) && both.holds(other)).then_some(both)
    }

    /// Whether accumulators of these kinds give what `other` reads.
    fn holds(self, other: Self) -> bool {
        self.or(other) == self
            && (other.window == 0 || other.window == self.window)
            && (other.marks == 0 || other.marks == self.marks)
            && (other.noisy.is_none() || other.noisy == self.noisy)
            && (other.near.is_none() || other.near == self.near)
            && (other.queries.is_none() || other.queries == self.queries)
    }
}

/// Where accumulators stand: what windows end at, and what noise is drawn for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Seed of the sequence.
    pub seed: u64,
    /// Decoder layer.
    pub layer: Layer,
    /// KV head.
    pub head: Head,
    /// Tokens of the compressed span: the prompt, or its context part.
    pub span_len: u32,
    /// Tokens of the whole prompt.
    pub prompt_len: u32,
}

/// The accumulators of one (layer, KV head) of one sequence.
///
/// Rows come per slot and are kept per *position*, so evicting and compacting move nothing here; what was kept for an
/// evicted position is never read again. Four bytes per kind and position of the sequence, and a bit per query of a
/// history.
///
/// Under grouped-query attention a row is the mean over the query heads that share the KV head. Sources that sum over
/// heads rank alike: the group size is one constant factor.
#[derive(Clone, Debug, Default)]
pub struct Accumulators {
    needs: Needs,
    site: Site,
    sum: Vec<f32>,
    squares: Vec<f32>,
    last_row: Vec<f32>,
    count: Vec<u32>,
    window: Vec<f32>,
    marks: Marks,
    noisy: Vec<f32>,
    span: Vec<f32>,
    near: Vec<f32>,
    scratch: Vec<f64>,
}

impl Accumulators {
    /// Empty ones of the kinds in `needs`, for rules without windows or noise.
    pub fn new(needs: Needs) -> Self {
        Self::at(needs, Site::default())
    }

    /// Empty ones of the kinds in `needs`.
    pub fn at(needs: Needs, site: Site) -> Self {
        Self { needs, site, marks: Marks::new(needs.marks), ..Self::default() }
    }

    /// These, going on with fewer kinds: those that `needs` names. What they hold of the others is not read again.
    #[must_use]
    pub fn narrowed(&self, needs: Needs) -> Self {
        Self { needs, ..self.clone() }
    }

    /// A span that ends later begins: a turn of a conversation. Windows hold its last queries, not those of the one
    /// before; sums go on.
    pub fn begin_span(&mut self, span_len: u32, prompt_len: u32) {
        if span_len != self.site.span_len {
            self.window.fill(0.0);
        }
        (self.site.span_len, self.site.prompt_len) = (span_len, prompt_len);
    }

    /// The kinds kept.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// Takes in a prefill chunk: `col_sums[i]` is the attention that slot `i` received from the chunk's `queries`
    /// queries together, `last_row[i]` that of its last query alone. `positions[i]` is the position in slot `i`, in any
    /// order; the chunk's own tokens are among them and are the `queries` newest in a row. What needs every row comes
    /// by [`observe_row`](Self::observe_row).
    ///
    /// A slice of a kind that is not needed may be empty.
    pub fn observe_prefill(
        &mut self,
        positions: &[Position],
        queries: u32,
        col_sums: &[f32],
        last_row: &[f32],
    ) {
        let Some(&newest) = positions.iter().max() else { return };
        let len = newest as usize + 1;
        if self.needs.sum {
            add(&mut self.sum, len, positions, col_sums);
        }
        if self.needs.last_row {
            debug_assert_eq!(positions.len(), last_row.len(), "one value per slot");
            grow(&mut self.last_row, len);
            for (&position, &value) in positions.iter().zip(last_row) {
                self.last_row[position as usize] = value;
            }
        }
        if self.needs.count {
            grow(&mut self.count, len);
            for &position in positions {
                // Causal: a token inside the chunk is seen by itself and the queries after it.
                self.count[position as usize] += queries.min(newest - position + 1);
            }
        }
    }

    /// Takes in the row of the query at one position of a prefill chunk, for what needs every row ([`Needs::rows`]).
    /// `row[i]` is the attention on the token at `positions[i]`; all of them are at most `query`. Queries come in order.
    pub fn observe_row(&mut self, query: Position, positions: &[Position], row: &[f32]) {
        let len = query as usize + 1;
        let in_span = query < self.site.span_len;
        if self.needs.squares {
            grow(&mut self.squares, len);
            for (&position, &p) in positions.iter().zip(row) {
                self.squares[position as usize] += p * p;
            }
        }
        if in_span && self.site.span_len - query <= self.needs.window {
            add(&mut self.window, len, positions, row);
        }
        if self.needs.marks > 0 {
            let uniform = 1.0 / positions.len() as f32;
            self.marks.push(len, positions.iter().zip(row).filter(|&(_, &p)| p < uniform).map(|(&at, _)| at));
        }
        if let Some(share) = self.needs.near.filter(|_| in_span) {
            let reach = near_queries(share, self.site.span_len);
            add(&mut self.span, len, positions, row);
            let first = positions.partition_point(|&p| query - p >= reach);
            add(&mut self.near, len, &positions[first..], &row[first..]);
        }
        if let Some(noise) = self.needs.noisy {
            self.add_noisy(noise, query, positions, row);
        }
    }

    /// `softmax((x + z) / tau)` with x the scores and z Gumbel noise. The logarithm of a probability is its score less
    /// a constant of the row, which the softmax takes out again.
    fn add_noisy(&mut self, noise: Noise, query: Position, positions: &[Position], row: &[f32]) {
        let Site { seed, layer, head, prompt_len, .. } = self.site;
        let step = (query + 1).saturating_sub(prompt_len);
        let tau = noise.start + noise.growth * f64::from(step);
        let draw = |token: Position| {
            let place = [Use::KeyformerNoise as u64, layer.into(), head.into(), query.into(), token.into()];
            noise::gumbel(seed, place)
        };
        self.scratch.clear();
        self.scratch.extend(positions.iter().zip(row).map(|(&position, &p)| {
            if p > 0.0 { (f64::from(p).ln() + draw(position)) / tau } else { f64::NEG_INFINITY }
        }));
        let top = self.scratch.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if top == f64::NEG_INFINITY {
            return;
        }
        self.scratch.iter_mut().for_each(|y| *y = (*y - top).exp());
        let total: f64 = self.scratch.iter().sum();
        grow(&mut self.noisy, query as usize + 1);
        for (&position, &y) in positions.iter().zip(&self.scratch) {
            self.noisy[position as usize] += (y / total) as f32;
        }
    }

    /// Takes over what was kept elsewhere: `values[i]` is the kind's for `positions[i]`, a [count](SumKind::Count) as its
    /// bits. What it does not name stays.
    pub fn set(&mut self, kind: SumKind, positions: &[Position], values: &[f32]) {
        let len = positions.iter().max().map_or(0, |&last| last as usize + 1);
        let kept = match kind {
            SumKind::Count => {
                grow(&mut self.count, len);
                for (&position, value) in positions.iter().zip(values) {
                    self.count[position as usize] = value.to_bits();
                }
                return;
            }
            SumKind::Sum => &mut self.sum,
            SumKind::Squares => &mut self.squares,
            SumKind::LastRow => &mut self.last_row,
            SumKind::Window => &mut self.window,
        };
        grow(kept, len);
        for (&position, &value) in positions.iter().zip(values) {
            kept[position as usize] = value;
        }
    }

    /// Takes in the row of one query: `row[i]` is the attention on slot `i`, whose position is `positions[i]`.
    pub fn observe_decode(&mut self, positions: &[Position], row: &[f32]) {
        self.observe_prefill(positions, 1, row, row);
        if self.needs.rows()
            && let Some(&query) = positions.iter().max()
        {
            self.observe_row(query, positions, row);
        }
    }

    /// Attention received so far; 0 for a position never seen.
    pub fn sum(&self, position: Position) -> f32 {
        at(&self.sum, position)
    }

    /// Squares of the attention received so far, summed.
    pub fn squares(&self, position: Position) -> f32 {
        at(&self.squares, position)
    }

    /// Attention received from the newest query; 0 for a position never seen.
    pub fn last_row(&self, position: Position) -> f32 {
        at(&self.last_row, position)
    }

    /// Queries that could see the position.
    pub fn count(&self, position: Position) -> u32 {
        at(&self.count, position)
    }

    /// Attention received so far per query that could see the position.
    pub fn mean(&self, position: Position) -> f32 {
        self.sum(position) / self.count(position).max(1) as f32
    }

    /// Attention received from the last [`Needs::window`] queries of the compressed span.
    pub fn window(&self, position: Position) -> f32 {
        at(&self.window, position)
    }

    /// How many of the last [`Needs::marks`] queries paid the position less than the uniform share.
    pub fn marks(&self, position: Position) -> u32 {
        self.marks.count(position)
    }

    /// The noisy score so far.
    pub fn noisy(&self, position: Position) -> f32 {
        at(&self.noisy, position)
    }

    /// Attention received from all queries of the compressed span.
    pub fn span(&self, position: Position) -> f32 {
        at(&self.span, position)
    }

    /// Attention received from the span's queries that came soon after the position, see [`Needs::near`].
    pub fn near(&self, position: Position) -> f32 {
        at(&self.near, position)
    }
}

/// How many queries after a token count as near: its own and those behind it.
pub(super) fn near_queries(share: f64, span_len: u32) -> u32 {
    (share * f64::from(span_len)).round() as u32
}

fn at<T: Copy + Default>(kept: &[T], position: Position) -> T {
    kept.get(position as usize).copied().unwrap_or_default()
}

fn grow<T: Copy + Default>(kept: &mut Vec<T>, len: usize) {
    if kept.len() < len {
        kept.resize(len, T::default());
    }
}

fn add(kept: &mut Vec<f32>, len: usize, positions: &[Position], row: &[f32]) {
    debug_assert_eq!(positions.len(), row.len(), "one value per slot");
    grow(kept, len);
    for (&position, &value) in positions.iter().zip(row) {
        kept[position as usize] += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Needs = Needs { sum: true, last_row: true, count: true, ..Needs::NONE };

    #[test]
    fn rows_land_on_positions_whatever_the_slot_order() {
        let mut acc = Accumulators::new(ALL);
        acc.observe_prefill(&[0, 1, 2], 3, &[2.0, 0.75, 0.25], &[0.5, 0.25, 0.25]);
        // Position 1 is evicted and its slot taken by position 3.
        acc.observe_decode(&[0, 3, 2], &[0.5, 0.125, 0.375]);
        assert_eq!([0, 1, 2, 3].map(|p| acc.sum(p)), [2.5, 0.75, 0.625, 0.125]);
        assert_eq!([0, 2, 3].map(|p| acc.last_row(p)), [0.5, 0.375, 0.125]);
        assert_eq!([0, 2, 3, 9].map(|p| acc.count(p)), [4, 2, 1, 0]);
        assert_eq!(acc.mean(2), 0.3125);
    }

    #[test]
    fn counts_are_causal_in_every_chunk() {
        let mut acc = Accumulators::new(Needs { count: true, ..Needs::NONE });
        acc.observe_prefill(&[0, 1], 2, &[], &[]);
        acc.observe_prefill(&[0, 1, 2, 3, 4], 3, &[], &[]);
        assert_eq!([0, 1, 2, 3, 4].map(|p| acc.count(p)), [5, 4, 3, 2, 1]);
    }

    #[test]
    fn only_what_is_needed_is_kept() {
        let mut acc = Accumulators::new(Needs { sum: true, ..Needs::NONE });
        acc.observe_decode(&[0, 1], &[0.5, 0.5]);
        assert_eq!((acc.sum(1), acc.last_row(1), acc.count(1)), (0.5, 0.0, 0));
        assert_eq!((acc.squares(1), acc.window(1), acc.marks(1), acc.noisy(1)), (0.0, 0.0, 0, 0.0));
    }

    /// Three queries over three tokens, then one more that is not in the span.
    const ROWS: [&[f32]; 4] = [&[1.0], &[0.75, 0.25], &[0.5, 0.125, 0.375], &[0.25, 0.25, 0.25, 0.25]];

    fn observed(needs: Needs) -> Accumulators {
        let mut acc = Accumulators::at(needs, Site { span_len: 3, prompt_len: 3, ..Site::default() });
        for (query, row) in ROWS.iter().enumerate() {
            let positions: Vec<Position> = (0..=query as Position).collect();
            acc.observe_row(query as Position, &positions, row);
        }
        acc
    }

    #[test]
    fn a_window_is_the_last_queries_of_the_span() {
        let acc = observed(Needs { window: 2, ..Needs::NONE });
        assert_eq!([0, 1, 2, 3].map(|p| acc.window(p)), [1.25, 0.375, 0.375, 0.0]);
    }

    #[test]
    fn squares_add_up() {
        let acc = observed(Needs { squares: true, ..Needs::NONE });
        assert_eq!(acc.squares(1), 0.0625 + 0.015_625 + 0.0625);
    }

    #[test]
    fn near_sums_stop_after_their_reach() {
        // Two thirds of three queries: a token's own and the one behind it.
        let acc = observed(Needs { near: Some(2.0 / 3.0), ..Needs::NONE });
        assert_eq!([0, 1, 2, 3].map(|p| acc.near(p)), [1.75, 0.375, 0.375, 0.0]);
        assert_eq!([0, 1, 2, 3].map(|p| acc.span(p)), [2.25, 0.375, 0.375, 0.0]);
    }

    #[test]
    fn marks_count_what_is_below_uniform_in_the_history() {
        let all = observed(Needs { marks: 9, ..Needs::NONE });
        // Below 1/2: token 1; below 1/3: token 1; a quarter is not below a quarter.
        assert_eq!([0, 1, 2, 3].map(|p| all.marks(p)), [0, 2, 0, 0]);
        let last = observed(Needs { marks: 2, ..Needs::NONE });
        assert_eq!([0, 1, 2, 3].map(|p| last.marks(p)), [0, 1, 0, 0]);
    }

    #[test]
    fn a_noisy_row_sums_to_one_and_skips_what_has_no_probability() {
        let noisy = Needs { noisy: Some(Noise { start: 1.0, growth: 0.5 }), ..Needs::NONE };
        let acc = observed(noisy);
        let total: f32 = (0..4).map(|p| acc.noisy(p)).sum();
        assert!((total - 4.0).abs() < 1e-5, "{total}");
        let mut acc = Accumulators::new(noisy);
        acc.observe_row(1, &[0, 1], &[0.0, 1.0]);
        acc.observe_row(1, &[0, 1], &[f32::NAN, 0.0]);
        assert_eq!([acc.noisy(0), acc.noisy(1)], [0.0, 1.0]);
    }

    #[test]
    fn the_noisy_score_by_hand() {
        let site = Site { seed: 5, layer: 2, head: 1, span_len: 2, prompt_len: 2 };
        let mut acc =
            Accumulators::at(Needs { noisy: Some(Noise { start: 4.0, growth: 0.0 }), ..Needs::NONE }, site);
        acc.observe_row(1, &[0, 1], &[0.25, 0.75]);
        let z = |token| noise::gumbel(5, [Use::KeyformerNoise as u64, 2, 1, 1, token]);
        let y = [(0.25f64.ln() + z(0)) / 4.0, (0.75f64.ln() + z(1)) / 4.0].map(f64::exp);
        assert!((f64::from(acc.noisy(0)) - y[0] / (y[0] + y[1])).abs() < 1e-6);
    }
}
