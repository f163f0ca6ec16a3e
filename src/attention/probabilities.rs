//! The probability rows of one query, all heads.

/// Softmax probabilities of one query: per query head one row over the slots of its KV head's lane, 0 at holes.
#[derive(Clone, Debug)]
pub struct Probabilities {
    group: usize,
    lanes: Vec<LaneRows>,
}

/// The rows of one KV head's query heads, `[query head of the group][slot]`.
#[derive(Clone, Debug, Default)]
pub(super) struct LaneRows {
    pub(super) slots: usize,
    pub(super) rows: Vec<f32>,
}

impl Probabilities {
    pub(super) fn new(group: usize, kv_heads: usize) -> Self {
        Self { group, lanes: vec![LaneRows::default(); kv_heads] }
    }

    pub(super) fn lanes_mut(&mut self) -> &mut [LaneRows] {
        &mut self.lanes
    }

    pub(super) fn lane(&self, kv_head: usize) -> &LaneRows {
        &self.lanes[kv_head]
    }

    /// KV heads.
    pub fn kv_heads(&self) -> usize {
        self.lanes.len()
    }

    /// Query heads per KV head.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Slots of a KV head's lane, holes included.
    pub fn slots(&self, kv_head: usize) -> usize {
        self.lanes[kv_head].slots
    }

    /// The row of a query head of the layer.
    pub fn row(&self, head: usize) -> &[f32] {
        let lane = &self.lanes[head / self.group];
        &lane.rows[head % self.group * lane.slots..][..lane.slots]
    }

    /// The rows of a KV head's query heads, in order.
    pub fn rows(&self, kv_head: usize) -> impl Iterator<Item = &[f32]> {
        (0..self.group).map(move |i| self.row(kv_head * self.group + i))
    }

    /// Adds the mean of a KV head's rows to `sums`, one value per slot: a decode step's share of
    /// [`column_sums`](super::Attention::column_sums), with the same rounding.
    pub fn add_group_mean(&self, kv_head: usize, sums: &mut [f32]) {
        let lane = &self.lanes[kv_head];
        add_group_mean(&lane.rows, lane.slots, self.group, &mut sums[..lane.slots]);
    }
}

impl LaneRows {
    /// Makes room for `group` rows of `slots`; what they hold is left unsaid.
    pub(super) fn resize(&mut self, slots: usize, group: usize) {
        self.slots = slots;
        self.rows.resize(slots * group, 0.0);
    }
}

/// Adds the mean of `group` rows, `stride` apart, to `sums`.
pub(super) fn add_group_mean(rows: &[f32], stride: usize, group: usize, sums: &mut [f32]) {
    let weight = 1.0 / group as f32;
    for (slot, sum) in sums.iter_mut().enumerate() {
        let mut total = 0.0;
        for i in 0..group {
            total += rows[i * stride + slot];
        }
        *sum += total * weight;
    }
}
