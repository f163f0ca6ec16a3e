//! Sums of attention that a device keeps, and decisions that are due: what they need comes from there for all layers and
//! sequences at once, and where sums alone decide, who is lost.

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;

use super::EngineError;
use super::core::Engine;
use super::resident::part;
use crate::attention::gpu::{Answer, KeptSums, Part, Question};
use crate::cache::HOLE;
use crate::event::{Head, Layer, Position};
use crate::policy::{Needs, Ranked, SumKind, Verdict, When};

/// What a layer is asked: of which parts, whether they can be decided on there, and what each may draw from.
struct Asked {
    range: Range<usize>,
    ranked: Option<Ranked>,
    seeds: Vec<u64>,
}

/// What a device has decided in a step, by sequence and layer.
pub(super) type Decisions = BTreeMap<(usize, Layer), Vec<Verdict>>;

impl Engine {
    /// What a device keeps of attention: everything that the policy goes by, where rows stay there too and sums hold it.
    pub(super) fn kept_sums(&self) -> Option<KeptSums> {
        if !self.rows_stay() || !self.needs.attention() {
            return None;
        }
        let (end, window) = (self.context_len as Position, self.needs.window);
        Some(KeptSums {
            kinds: self.needs.sums()?,
            window: end.saturating_sub(window)..end,
            sequences: self.sequences.len(),
            reach: self.info.longest() as usize,
        })
    }

    /// What has to be handed out of attention to be kept here.
    pub(super) fn needs_here(&self) -> Needs {
        if self.kept_sums().is_some() { Needs::NONE } else { self.needs }
    }

    /// Brings what the decisions of some sequences go by, or the decisions themselves. `present` are the sequences of the
    /// step, in its order.
    pub(super) fn ask_device(
        &mut self,
        present: impl IntoIterator<Item = usize>,
        deciding: impl IntoIterator<Item = (usize, When)>,
    ) -> Result<(), EngineError> {
        let Some(kept) = self.kept_sums() else { return Ok(()) };
        let present: Vec<usize> = present.into_iter().collect();
        let deciding: Vec<(usize, When)> = deciding.into_iter().collect();
        self.decisions.clear();
        let layers = self.model.decoder.config().layers as Layer;
        let asked: Vec<(Layer, Vec<Asked>)> =
            (0..layers).map(|layer| (layer, self.asked(layer, &present, &deciding))).collect();
        let parts: Vec<(Layer, Vec<Part<'_>>, &[Asked])> = asked
            .iter()
            .filter(|(_, asked)| !asked.is_empty())
            .map(|(layer, asked)| {
                let of = |&index: &usize| part(&self.cache, self.sequences[index].id, *layer, (0, 0));
                (*layer, present.iter().map(of).collect(), &**asked)
            })
            .collect();
        let questions: Vec<Question<'_>> = parts
            .iter()
            .flat_map(|(layer, parts, asked)| {
                asked.iter().map(|asked| Question {
                    layer: *layer,
                    parts,
                    range: asked.range.clone(),
                    ranked: asked.ranked,
                    seeds: asked.seeds.clone(),
                })
            })
            .collect();
        if questions.is_empty() {
            return Ok(());
        }
        let answers = super::resident::device(&mut *self.attention).ask(&questions)?;
        let told: Vec<(Layer, Option<Ranked>, Range<usize>)> =
            questions.iter().map(|q| (q.layer, q.ranked, q.range.clone())).collect();
        drop(questions);
        drop(parts);
        for ((layer, ranked, range), answers) in told.into_iter().zip(answers) {
            for (part, answer) in range.zip(answers) {
                match (answer, ranked) {
                    (Answer::Sums(heads), _) => self.take_sums(present[part], layer, &kept.kinds, &heads),
                    (Answer::Lost(heads, picture), ranked) => {
                        let ranked = ranked.expect("it was asked who is lost");
                        let table = self.cache.table(self.sequences[present[part]].id, layer);
                        let verdicts = heads.into_iter().enumerate().filter_map(|(h, lost)| {
                            let h = h as Head;
                            let (slots, residents) = (table.lane(h).slots, table.live(h) as u32);
                            let victims = lost.slots.iter().map(|&slot| slots[slot as usize]).collect();
                            let head = (!ranked.as_one).then_some(h);
                            ranked.verdict(head, residents, victims, lost.scores, lost.cutoff)
                        });
                        let mut verdicts: Vec<Verdict> = verdicts.collect();
                        // What KVCrush saw is the first head's.
                        if let (Some(first), Some(picture)) = (verdicts.first_mut(), picture) {
                            first.crush = Some(Box::new(picture.recorded(layer, Some(0))));
                        }
                        self.decisions.insert((present[part], layer), verdicts);
                    }
                }
            }
        }
        Ok(())
    }

    /// What a layer has to be asked for the decisions that are due.
    fn asked(&self, layer: Layer, present: &[usize], deciding: &[(usize, When)]) -> Vec<Asked> {
        let mut asked: Vec<Asked> = Vec::new();
        for &(index, when) in deciding.iter().filter(|(_, when)| self.policy.acts(*when)) {
            let Some(part) = present.iter().position(|&of| of == index) else { continue };
            let moment = self.brought(index).moment(layer, when);
            let most = self.brought(index).most_residents(layer);
            let shares = self.policy.shares().is_some() && self.sequences[index].shares.is_empty();
            if most == 0 || !shares && self.policy.rests(&moment, most) {
                continue;
            }
            // What has left a layer's window lies there still and does not compete.
            let ranked = self
                .policy
                .ranked(&moment, most)
                .filter(|_| !shares && self.brought(index).first_seen(layer) == 0);
            match asked.last_mut() {
                Some(last) if last.range.end == part && last.ranked == ranked => {
                    last.range.end += 1;
                    last.seeds.push(moment.seed);
                }
                _ => asked.push(Asked { range: part..part + 1, ranked, seeds: vec![moment.seed] }),
            }
        }
        asked
    }

    /// The device's sums as the host's own.
    fn take_sums(&mut self, index: usize, layer: Layer, kinds: &[SumKind], heads: &[Vec<Vec<f32>>]) {
        let first = self.lane_index(usize::from(layer), 0);
        let s = &mut self.sequences[index];
        let table = self.cache.table(s.id, layer);
        let lanes = s.accumulators[first..][..heads.len()].par_iter_mut().zip(heads).enumerate();
        lanes.for_each(|(h, (accumulators, of_kinds))| {
            let slots = table.lane(h as Head).slots;
            for (&kind, values) in kinds.iter().zip(of_kinds) {
                let live = slots.iter().copied().zip(values.iter().copied()).filter(|&(p, _)| p != HOLE);
                let (positions, values): (Vec<Position>, Vec<f32>) = live.unzip();
                accumulators.set(kind, &positions, &values);
            }
        });
    }
}
