//! Columns of a keyframe that take far more memory than bytes: they are bounded while they are read.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use super::{MAX_SLOTS, SeqState};
use crate::cache::LayerTable;

/// The block tables of one sequence.
pub(super) fn tables<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<LayerTable>, D::Error> {
    within(d, slots)
}

/// All sequences.
pub(super) fn sequences<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<SeqState>, D::Error> {
    within(d, SeqState::slots)
}

/// Slots in the lanes of one table.
pub(super) fn slots(table: &LayerTable) -> u64 {
    let lanes = if table.is_split() { table.heads() } else { 1 };
    (0..lanes).map(|h| table.lane(h).slots.len() as u64).sum()
}

/// Reads items until their slots together are more than a state may hold.
fn within<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    d: D,
    slots: fn(&T) -> u64,
) -> Result<Vec<T>, D::Error> {
    struct Bounded<T> {
        slots: fn(&T) -> u64,
        item: PhantomData<T>,
    }

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Bounded<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "items of at most {MAX_SLOTS} slots together")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let (mut out, mut held) = (Vec::new(), 0u64);
            while let Some(item) = items.next_element()? {
                held = held.saturating_add((self.slots)(&item));
                if held > MAX_SLOTS {
                    return Err(A::Error::custom("more slots than kvista will hold in memory"));
                }
                out.push(item);
            }
            Ok(out)
        }
    }

    d.deserialize_seq(Bounded { slots, item: PhantomData })
}
