//! Merges carried out: rows of victims go into rows that stay, and rows of two layers become alike.

use std::sync::Arc;

use super::EngineError;
use super::brought::Residents;
use super::core::Engine;
use crate::attention::PageBounds;
use crate::cache::NewRows;
use crate::event::crush::BitRow;
use crate::event::merge::MAX_STEP_ARCS;
use crate::event::{Drift, Head, Layer, Merge, Position};
use crate::policy::{
    HeadMerge, MergeRule, Merging, MiniCache, Needs, Parting, Verdict, VictimMerge, When, blend,
};

/// Rows of both kinds.
const ROWS: Needs = Needs { keys: true, values: true, ..Needs::NONE };

impl Engine {
    /// Lets the merge rule save what it can of one layer's victims, before they are lost.
    pub(super) fn merge_victims(
        &mut self,
        index: usize,
        layer: Layer,
        when: When,
        verdicts: &[Verdict],
    ) -> Result<Vec<Merge>, EngineError> {
        let Some(MergeRule::Victims(rule)) = self.merge.as_ref().map(Merging::rule) else {
            return Ok(Vec::new());
        };
        let rule = Arc::clone(rule);
        let residents = self.brought(index).residents(layer, rule.needs());
        let lost: Vec<Vec<bool>> =
            (0..).zip(&residents).map(|(head, own)| own.lost(head, verdicts)).collect();
        let moment = self.brought(index).moment(layer, when);
        let mut memory = self.sequences[index].memory[usize::from(layer)];
        let partings: Vec<Parting<'_>> = self
            .brought(index)
            .inputs(layer, &residents)
            .into_iter()
            .zip(&lost)
            .map(|(head, lost)| Parting { head, lost })
            .collect();
        let merges = rule.merge(&moment, &partings, &mut memory);
        drop(partings);
        self.sequences[index].memory[usize::from(layer)] = memory;
        merges
            .into_iter()
            .map(|merge| {
                let head = usize::from(merge.head);
                self.blend_head((index, layer), &*rule, merge, &residents[head], &lost[head])
            })
            .collect()
    }

    /// Alters the rows that a head's merges go into, and tells of it.
    fn blend_head(
        &mut self,
        (index, layer): (usize, Layer),
        rule: &dyn VictimMerge,
        HeadMerge { head, threshold, arcs }: HeadMerge,
        own: &Residents,
        lost: &[bool],
    ) -> Result<Merge, EngineError> {
        let seq = self.sequences[index].id;
        let victims = own.positions.iter().zip(lost).filter_map(|(&p, &lost)| lost.then_some(p));
        let fates: Vec<bool> =
            victims.map(|p| arcs.binary_search_by_key(&p, |arc| arc.from).is_ok()).collect();
        let mut drifts = [Drift::default(); 2];
        let parts: &[(usize, &[f32])] = &[(0, &own.keys), (1, &own.values)];
        for &(part, rows) in &parts[usize::from(!rule.keys())..] {
            for (i, row) in blend(rule.entering(), &arcs, &own.positions, lost, rows) {
                drifts[part].measure(&rows[i * row.len()..][..row.len()], &row);
                let row = Some(&*row);
                let new = if part == 0 { NewRows { k: row, v: None } } else { NewRows { k: None, v: row } };
                self.cache.alter(seq, layer, head, own.positions[i], new)?;
            }
        }
        let [k, v] = drifts;
        if k.rows > 0 {
            self.forget_bounds(index, layer, head);
        }
        Ok(Merge {
            layer,
            head,
            with: None,
            merged: arcs.len() as u32,
            apart: (fates.len() - arcs.len()) as u32,
            fates: BitRow::whole(&fates),
            threshold,
            k,
            v,
            arcs,
            saved_bytes: 0,
        })
    }

    /// Bounds of pages follow keys that come and go; of keys that change where they lie they must be made anew.
    fn forget_bounds(&mut self, index: usize, layer: Layer, head: Head) {
        let lane = self.lane_index(usize::from(layer), usize::from(head));
        self.sequences[index].bounds[lane] = PageBounds::default();
    }

    /// Makes pairs of layers alike, under a rule that does. Layers ascending, heads within them.
    pub(super) fn merge_layers(&mut self, index: usize) -> Result<Vec<Merge>, EngineError> {
        let Some(&MergeRule::Layers(rule)) = self.merge.as_ref().map(Merging::rule) else {
            return Ok(Vec::new());
        };
        let config = self.model.decoder.config();
        let (layers, kv_heads) = (config.layers as Layer, config.kv_heads as Head);
        let mut merges = Vec::new();
        let first = self.sequences[index].merged;
        for pair in rule.pairs(layers) {
            for head in 0..kv_heads {
                merges.extend(self.merge_pair(index, rule, (pair, first), head)?);
            }
        }
        merges.sort_by_key(|merge| (merge.layer, merge.head));
        let s = &mut self.sequences[index];
        s.merged = s.fed.len() as Position;
        Ok(merges)
    }

    /// One KV head of a pair of layers: what both hold from a position on and is like enough gets one direction.
    fn merge_pair(
        &mut self,
        index: usize,
        rule: MiniCache,
        ((lower, upper), first): ((Layer, Layer), Position),
        head: Head,
    ) -> Result<[Merge; 2], EngineError> {
        let seq = self.sequences[index].id;
        let d = self.model.decoder.config().head_dim;
        let row_bytes = self.cache.config().dtype.written_row_bytes(d) as u64;
        let pair = [lower, upper].map(|layer| self.brought(index).lane_residents(layer, head, ROWS));
        let common = common(&pair, first);
        let side = |s: usize, of: fn(&Residents) -> &[f32]| -> Vec<f32> {
            common.iter().flat_map(|both| &of(&pair[s])[both[s] * d..][..d]).copied().collect()
        };
        let keys = [0, 1].map(|s| side(s, |own| &own.keys));
        let values = [0, 1].map(|s| side(s, |own| &own.values));
        let mut told = [(lower, upper), (upper, lower)].map(|(layer, with)| Merge {
            layer,
            head,
            with: Some(with),
            ..Merge::default()
        });
        for (i, alike) in rule.merged(&keys[0], &keys[1], d).into_iter().enumerate() {
            let row = |rows: &'_ [Vec<f32>; 2], s: usize| rows[s][i * d..][..d].to_vec();
            let share = |rows| rule.share(&row(rows, 0), &row(rows, 1));
            let Some((k, v)) = alike.then(|| share(&keys).zip(share(&values))).flatten() else {
                for merge in &mut told {
                    merge.apart += 1;
                }
                continue;
            };
            for (s, merge) in told.iter_mut().enumerate() {
                merge.merged += 1;
                merge.k.measure(&row(&keys, s), &k[s]);
                merge.v.measure(&row(&values, s), &v[s]);
                let new = NewRows { k: Some(&k[s]), v: Some(&v[s]) };
                self.cache.alter(seq, merge.layer, head, pair[s].positions[common[i][s]], new)?;
            }
        }
        for layer in [lower, upper] {
            self.forget_bounds(index, layer, head);
        }
        told[1].saved_bytes = 2 * u64::from(told[1].merged) * MiniCache::saved_bytes(row_bytes);
        Ok(told)
    }
}

/// Indices of the tokens from a position on that both hold.
fn common([a, b]: &[Residents; 2], first: Position) -> Vec<[usize; 2]> {
    let in_b = |p| b.positions.binary_search(p).ok();
    let from = a.positions.partition_point(|&p| p < first);
    let newer = a.positions.iter().enumerate().skip(from);
    newer.filter_map(|(i, p)| in_b(p).map(|j| [i, j])).collect()
}

/// Leaves out arcs of a step that has very many.
pub(super) fn bound_arcs(merges: &mut [Merge]) {
    if merges.iter().map(|merge| merge.arcs.len()).sum::<usize>() > MAX_STEP_ARCS {
        merges.iter_mut().for_each(Merge::thin_arcs);
    }
}

#[cfg(test)]
pub(super) mod tests;
