//! Everything about one token: what the linked panes show when it is selected.

use crate::event::{BlockId, Head, Layer, Position, Reason, SeqId, StepId, Tier, attention};

use super::{MergedVictim, State};

/// What one (layer, KV head) did with a token.
#[derive(Clone, Debug, PartialEq)]
pub enum HeadFate {
    /// Its rows are resident.
    Resident {
        /// Block that holds them.
        block: BlockId,
        /// Slot within the block.
        slot: u32,
        /// Where its V row lives; K is on the device.
        v_tier: Tier,
    },
    /// Evicted, and the decision is still in the log.
    Evicted {
        /// When.
        step: StepId,
        /// Why.
        reason: Reason,
        /// Its score, if the policy has scores.
        score: Option<f32>,
        /// Lowest kept score.
        cutoff: Option<f32>,
        /// 1 = nearest to staying.
        rank: Option<usize>,
        /// Victims of the decision.
        of: usize,
        /// Distance to the cutoff.
        margin: Option<f32>,
        /// Age in tokens when lost.
        age: u32,
        /// Where its rows went, if they were merged.
        merged: Option<MergedVictim>,
    },
    /// Evicted by a decision the bounded log has forgotten.
    Forgotten,
}

/// A query head that read a token in the newest attention picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reader {
    /// Decoder layer.
    pub layer: Layer,
    /// Query head.
    pub head: Head,
    /// Probability it gave the token, to 2.2 %.
    pub p: f32,
}

/// All there is to know about a token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenCard {
    /// Which sequence.
    pub seq: SeqId,
    /// Which token.
    pub position: Position,
    /// Per (layer, KV head), layer-major.
    pub fates: Vec<HeadFate>,
    /// Who reads it, strongest first.
    pub readers: Vec<Reader>,
}

impl TokenCard {
    /// (layer, KV head) pairs that still hold the token.
    pub fn held(&self) -> usize {
        self.fates.iter().filter(|f| matches!(f, HeadFate::Resident { .. })).count()
    }
}

impl State {
    /// The card of one token, or `None` if it does not exist yet.
    pub fn token_card(&self, seq: SeqId, position: Position) -> Option<TokenCard> {
        let s = self.seq(seq)?;
        s.tokens.get(position as usize)?;
        let kv_heads = self.run.model.kv_heads as usize;
        let host_from = self.host_v_from_layer();
        let memory = self.read_rule().and_then(crate::policy::ReadRule::memory);
        let is_far = memory.is_some_and(|memory| memory.on_host(position, s.tokens.len() as u32));
        let mut fates = vec![HeadFate::Forgotten; self.lanes()];
        for (decision, i) in self.evictions.of(seq, position) {
            let e = &decision.eviction;
            let fate = |merged| HeadFate::Evicted {
                step: decision.step,
                reason: e.reason,
                score: e.scores.get(i).filter(|x| !x.is_nan()).map(|x| x.to_f32()),
                cutoff: e.cutoff,
                rank: e.rank(i),
                of: e.positions.len(),
                margin: e.margin(i),
                age: decision.age(i).unwrap_or(0),
                merged,
            };
            let heads = e.head.map_or(0..kv_heads, |h| h as usize..h as usize + 1);
            for h in heads {
                if let Some(slot) = fates.get_mut(e.layer as usize * kv_heads + h) {
                    let at = (decision.step, decision.seq);
                    *slot = fate(self.merging.victim_of(at, e, i, h as Head));
                }
            }
        }
        for (l, table) in s.layers.iter().enumerate() {
            let on_host = is_far || host_from.is_some_and(|from| l >= from);
            let v_tier = if on_host { Tier::Host } else { Tier::Device };
            for h in 0..kv_heads {
                if let Some(slot) = table.slot_of(h as Head, position) {
                    let bs = table.block_size() as usize;
                    fates[l * kv_heads + h] = HeadFate::Resident {
                        block: table.lane(h as Head).block(slot / bs),
                        slot: (slot % bs) as u32,
                        v_tier,
                    };
                }
            }
        }
        Some(TokenCard { seq, position, fates, readers: self.readers(seq, position) })
    }

    /// First layer whose V rows live on the host tier, from the read set's declaration.
    pub fn host_v_from_layer(&self) -> Option<usize> {
        self.read_rule()?.host_v_from_layer().map(|layer| layer as usize)
    }

    /// The read set as the run began with it.
    pub(super) fn read_rule(&self) -> Option<crate::policy::ReadRule> {
        Some(crate::policy::parse_read(&self.run.settings.read).ok()?.rule())
    }

    fn readers(&self, seq: SeqId, position: Position) -> Vec<Reader> {
        let Some((_, map)) = self.seq(seq).and_then(|s| s.attention.as_ref()) else { return Vec::new() };
        let mut readers = Vec::new();
        for group in &map.groups {
            let column = group.iter_positions().position(|p| p == position);
            for row in &group.rows {
                let cell = match &row.cells {
                    attention::Cells::Full(cells) => column.and_then(|c| cells.get(c)).copied(),
                    attention::Cells::Top(picks) => {
                        picks.binary_search_by_key(&position, |&(p, _)| p).ok().map(|i| picks[i].1)
                    }
                    attention::Cells::Blocks(_) => None,
                };
                if let Some(q) = cell.filter(|&q| q > 0) {
                    readers.push(Reader { layer: group.layer, head: row.head, p: attention::dequantise(q) });
                }
            }
        }
        readers.sort_by(|a, b| b.p.total_cmp(&a.p).then((a.layer, a.head).cmp(&(b.layer, b.head))));
        readers
    }
}
