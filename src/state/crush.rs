//! What KVCrush saw when it last decided, by sequence and layer.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::FoldError;
use crate::event::{Crush, Layer, SeqId, SeqStep, StepId};

/// Most pictures held: the ones decided longest ago are forgotten. Each takes at most some 30 KiB.
const MAX_PICTURES: usize = 1_024;

/// A picture with the sequence and the step it belongs to, as a keyframe has it.
pub(super) type Picture = (SeqId, StepId, Arc<Crush>);

/// The newest picture of each layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CrushPictures(BTreeMap<(SeqId, Layer), (StepId, Arc<Crush>)>);

impl CrushPictures {
    /// What was seen in a layer, and at which step.
    pub fn get(&self, seq: SeqId, layer: Layer) -> Option<(StepId, &Crush)> {
        self.0.get(&(seq, layer)).map(|(step, crush)| (*step, &**crush))
    }

    /// Whether a sequence has any.
    pub fn has(&self, seq: SeqId) -> bool {
        self.0.range((seq, 0)..=(seq, Layer::MAX)).next().is_some()
    }

    pub(super) fn fold(&mut self, step: StepId, part: &SeqStep, layers: u32) -> Result<(), FoldError> {
        for crush in &part.crush {
            if !crush.is_sound() || u32::from(crush.layer) >= layers {
                return Err(FoldError::Contradiction {
                    step,
                    what: format!("signatures of layer {} break their own rules", crush.layer),
                });
            }
            self.0.insert((part.seq, crush.layer), (step, Arc::new(crush.clone())));
        }
        while self.0.len() > MAX_PICTURES {
            let oldest = self.0.iter().min_by_key(|(_, (step, _))| *step).map(|(&key, _)| key);
            self.0.remove(&oldest.expect("there are more than a few"));
        }
        Ok(())
    }

    pub(super) fn to_wire(&self) -> Vec<Picture> {
        self.0.iter().map(|(&(seq, _), (step, crush))| (seq, *step, Arc::clone(crush))).collect()
    }

    /// Whether a keyframe's pictures are what folding so many sequences leaves behind.
    pub(super) fn is_sound(&self, newest: Option<StepId>, seqs: usize, layers: usize) -> bool {
        self.0.len() <= MAX_PICTURES
            && self.0.iter().all(|(&(seq, layer), (step, crush))| {
                (seq as usize) < seqs
                    && usize::from(layer) < layers
                    && newest.is_some_and(|newest| *step <= newest)
                    && crush.is_sound()
            })
    }
}

impl FromIterator<Picture> for CrushPictures {
    fn from_iter<I: IntoIterator<Item = Picture>>(pictures: I) -> Self {
        Self(pictures.into_iter().map(|(seq, step, crush)| ((seq, crush.layer), (step, crush))).collect())
    }
}
