//! `kvista.evict.v1`: the decisions of one sequence in one step, and what a full-cache twin tells of its victims.
//!
//! ```text
//! u8 version = 1, or 2 with regrets · varint sequence · varint decisions, each:
//!   varint layer · varint KV head + 1 (0: the whole layer) · u8 reason · u8 form · [f32 cutoff] · varint kept
//!   positions: varint n, then per position its distance from the smallest possible one
//!          or: ranges (number, then distance and length less one)
//!   scores:    none · or f16 bits each · or varint m, then m × (distance between indices, f16 bits)
//! form: bit 0 has a cutoff · bit 1 positions are ranges · bits 2–3 scores: 0 none, 1 all, 2 those that are not NaN
//! version 2 goes on: varint lanes, each:
//!   varint layer · varint KV head · varint n, then n × (distance from the smallest possible position, f32 regret)
//! ```
//!
//! Whichever form of the positions is shorter is written. Scores are kept bit for bit; only the plain NaN, which stands
//! for a score that was left out, is ever elided.

use half::f16;

use super::limits::{Budget, MAX_POSITION};
use super::wire::{CodecError, Wire, put_ranges, put_varint, varint_len};
use crate::event::{Eviction, LaneRegret, Position, Reason, SeqId};

const VERSION: u8 = 1;
/// Of a message with regrets.
const WITH_REGRETS: u8 = 2;
const HAS_CUTOFF: u8 = 1;
const AS_RANGES: u8 = 1 << 1;
const SCORES_ALL: u8 = 1 << 2;
const SCORES_SPARSE: u8 = 2 << 2;
const SCORES: u8 = 3 << 2;
/// Layer, head, reason, form, kept, number of positions.
const SMALLEST_DECISION: usize = 6;
/// Layer, head, number of positions.
const SMALLEST_LANE: usize = 3;

/// What a message holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evicted {
    /// Whose it is.
    pub seq: SeqId,
    /// Decisions.
    pub evictions: Vec<Eviction>,
    /// What is added to the regret of victims.
    pub regrets: Vec<LaneRegret>,
}

/// Encodes the decisions of one sequence.
///
/// # Errors
/// Positions that do not ascend or reach [`MAX_POSITION`](super::limits::MAX_POSITION), a number of scores that is
/// neither 0 nor the number of positions, and more victims than a step may hold.
pub fn encode_evict(
    seq: SeqId,
    evictions: &[Eviction],
    regrets: &[LaneRegret],
) -> Result<Vec<u8>, CodecError> {
    encode_within(seq, evictions, regrets, &mut Budget::of_a_step())
}

/// Decodes [`encode_evict`]; safe on any bytes.
pub fn decode_evict(bytes: &[u8]) -> Result<Evicted, CodecError> {
    decode_within(bytes, &mut Budget::of_a_step())
}

pub(super) fn encode_within(
    seq: SeqId,
    evictions: &[Eviction],
    regrets: &[LaneRegret],
    budget: &mut Budget,
) -> Result<Vec<u8>, CodecError> {
    let mut out = vec![if regrets.is_empty() { VERSION } else { WITH_REGRETS }];
    put_varint(&mut out, u64::from(seq));
    put_varint(&mut out, evictions.len() as u64);
    for eviction in evictions {
        budget.spend(eviction.positions.len())?;
        put_decision(&mut out, eviction)?;
    }
    if !regrets.is_empty() {
        put_varint(&mut out, regrets.len() as u64);
        for lane in regrets {
            budget.spend(lane.told.len())?;
            put_regrets(&mut out, lane)?;
        }
    }
    Ok(out)
}

fn put_regrets(out: &mut Vec<u8>, lane: &LaneRegret) -> Result<(), CodecError> {
    if !lane.is_sound() || lane.told.last().is_some_and(|t| t.0 >= MAX_POSITION) {
        return Err(CodecError::Malformed("regrets are not ascending by position, too far, or no sums"));
    }
    put_varint(out, u64::from(lane.layer));
    put_varint(out, u64::from(lane.head));
    put_varint(out, lane.told.len() as u64);
    let mut smallest = 0;
    for &(position, regret) in &lane.told {
        put_varint(out, u64::from(position - smallest));
        out.extend_from_slice(&regret.to_le_bytes());
        smallest = position + 1;
    }
    Ok(())
}

fn put_decision(out: &mut Vec<u8>, eviction: &Eviction) -> Result<(), CodecError> {
    let Eviction { layer, head, reason, cutoff, kept, positions, scores } = eviction;
    if !scores.is_empty() && scores.len() != positions.len() {
        return Err(CodecError::Malformed("there must be one score per victim, or none"));
    }
    if !positions.is_sorted_by(|a, b| a < b) || positions.last().is_some_and(|&p| p >= MAX_POSITION) {
        return Err(CodecError::Malformed("victims are not ascending, or too far"));
    }
    let as_ranges = ranges_are_shorter(positions);
    let present = scores.iter().filter(|s| !is_left_out(**s)).count();
    let score_form = match scores.len() {
        0 => 0,
        // An index takes at least a byte beside the two of its score.
        n if present * 3 < n * 2 => SCORES_SPARSE,
        _ => SCORES_ALL,
    };
    put_varint(out, u64::from(*layer));
    put_varint(out, head.map_or(0, |head| u64::from(head) + 1));
    out.push(*reason as u8);
    out.push(
        score_form | if cutoff.is_some() { HAS_CUTOFF } else { 0 } | if as_ranges { AS_RANGES } else { 0 },
    );
    if let Some(cutoff) = cutoff {
        out.extend_from_slice(&cutoff.to_le_bytes());
    }
    put_varint(out, u64::from(*kept));
    if as_ranges {
        put_ranges(out, runs(positions).count(), runs(positions))?;
    } else {
        put_varint(out, positions.len() as u64);
        for gap in gaps(positions) {
            put_varint(out, gap);
        }
    }
    put_scores(out, scores, score_form, present);
    Ok(())
}

fn put_scores(out: &mut Vec<u8>, scores: &[f16], form: u8, present: usize) {
    match form {
        SCORES_ALL => out.extend(scores.iter().flat_map(|s| s.to_bits().to_le_bytes())),
        SCORES_SPARSE => {
            put_varint(out, present as u64);
            let mut smallest = 0;
            for (i, score) in scores.iter().enumerate().filter(|(_, s)| !is_left_out(**s)) {
                put_varint(out, (i - smallest) as u64);
                out.extend_from_slice(&score.to_bits().to_le_bytes());
                smallest = i + 1;
            }
        }
        _ => {}
    }
}

fn is_left_out(score: f16) -> bool {
    score.to_bits() == f16::NAN.to_bits()
}

/// Distances from the smallest position that may come next.
fn gaps(positions: &[Position]) -> impl Iterator<Item = u64> + '_ {
    let mut smallest = 0;
    positions.iter().map(move |&p| {
        let gap = u64::from(p - smallest);
        smallest = p + 1;
        gap
    })
}

/// Maximal runs of ascending positions.
fn runs(positions: &[Position]) -> impl Iterator<Item = (Position, Position)> + '_ {
    positions.chunk_by(|a, b| a + 1 == *b).map(|run| (run[0], run[run.len() - 1] + 1))
}

fn ranges_are_shorter(positions: &[Position]) -> bool {
    let listed: usize = gaps(positions).map(varint_len).sum();
    let mut end = 0;
    let ranged: usize = runs(positions)
        .map(|(from, to)| {
            let bytes = varint_len(u64::from(from - end)) + varint_len(u64::from(to - from - 1));
            end = to;
            bytes
        })
        .sum();
    ranged < listed
}

pub(super) fn decode_within(bytes: &[u8], budget: &mut Budget) -> Result<Evicted, CodecError> {
    let mut wire = Wire::new(bytes);
    let version = wire.byte()?;
    if ![VERSION, WITH_REGRETS].contains(&version) {
        return Err(CodecError::Version(version));
    }
    let seq = wire.narrow()?;
    let count = wire.count(SMALLEST_DECISION)?;
    let mut evictions = Vec::with_capacity(count);
    for _ in 0..count {
        evictions.push(decision(&mut wire, budget)?);
    }
    let lanes = if version == WITH_REGRETS { wire.count(SMALLEST_LANE)? } else { 0 };
    let mut regrets = Vec::with_capacity(lanes);
    for _ in 0..lanes {
        regrets.push(regret(&mut wire, budget)?);
    }
    wire.end()?;
    Ok(Evicted { seq, evictions, regrets })
}

fn regret(wire: &mut Wire<'_>, budget: &mut Budget) -> Result<LaneRegret, CodecError> {
    let (layer, head) = (wire.narrow()?, wire.narrow()?);
    let count = wire.count(1 + size_of::<f32>())?;
    budget.spend(count)?;
    let mut told = Vec::with_capacity(count);
    let mut smallest = 0;
    for _ in 0..count {
        let position = wire.position_from(smallest)?;
        told.push((position, wire.f32_le()?));
        smallest = position + 1;
    }
    let lane = LaneRegret { layer, head, told };
    if lane.is_sound() { Ok(lane) } else { Err(CodecError::Malformed("a regret is no sum")) }
}

fn decision(wire: &mut Wire<'_>, budget: &mut Budget) -> Result<Eviction, CodecError> {
    let layer = wire.narrow()?;
    let head = match wire.varint()? {
        0 => None,
        n => Some((n - 1).try_into().map_err(|_| CodecError::Malformed("a number is too large"))?),
    };
    let reason = Reason::from_code(wire.byte()?).ok_or(CodecError::Malformed("a reason is not known"))?;
    let form = wire.byte()?;
    if form & !(HAS_CUTOFF | AS_RANGES | SCORES) != 0 {
        return Err(CodecError::Malformed("a form is not known"));
    }
    let cutoff = if form & HAS_CUTOFF == 0 { None } else { Some(wire.f32_le()?) };
    let kept = wire.narrow()?;
    let positions = if form & AS_RANGES == 0 { listed(wire, budget)? } else { ranged(wire, budget)? };
    let scores = match form & SCORES {
        0 => Vec::new(),
        SCORES_ALL => wire
            .take(positions.len() * 2)?
            .chunks_exact(2)
            .map(|b| f16::from_le_bytes([b[0], b[1]]))
            .collect(),
        SCORES_SPARSE => sparse(wire, positions.len())?,
        _ => return Err(CodecError::Malformed("a form is not known")),
    };
    Ok(Eviction { layer, head, reason, cutoff, kept, positions, scores })
}

fn listed(wire: &mut Wire<'_>, budget: &mut Budget) -> Result<Vec<Position>, CodecError> {
    let count = wire.count(1)?;
    budget.spend(count)?;
    let mut positions = Vec::with_capacity(count);
    let mut smallest = 0;
    for _ in 0..count {
        let position = wire.position_from(smallest)?;
        positions.push(position);
        smallest = position + 1;
    }
    Ok(positions)
}

fn ranged(wire: &mut Wire<'_>, budget: &mut Budget) -> Result<Vec<Position>, CodecError> {
    let ranges = wire.ranges(budget)?;
    let total = ranges.iter().map(|&(from, to)| (to - from) as usize).sum();
    budget.spend(total)?;
    let mut positions = Vec::with_capacity(total);
    positions.extend(ranges.into_iter().flat_map(|(from, to)| from..to));
    Ok(positions)
}

fn sparse(wire: &mut Wire<'_>, victims: usize) -> Result<Vec<f16>, CodecError> {
    let present = wire.count(3)?;
    let mut scores = vec![f16::NAN; victims];
    let mut smallest = 0usize;
    for _ in 0..present {
        let i = smallest.saturating_add(wire.narrow()?);
        let score = f16::from_bits(wire.u16_le()?);
        *scores.get_mut(i).ok_or(CodecError::Malformed("a score belongs to no victim"))? = score;
        smallest = i + 1;
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trace::samples::{bits, evictions, regrets};

    proptest! {
        #[test]
        fn any_decisions_and_regrets_come_back_bit_for_bit(
            seq: u32,
            list in evictions(1024, 1024),
            told in regrets(1024, 1024),
        ) {
            let bytes = encode_evict(seq, &list, &told).unwrap();
            let back = decode_evict(&bytes).unwrap();
            prop_assert_eq!(bytes[0], if told.is_empty() { VERSION } else { WITH_REGRETS });
            prop_assert_eq!((back.seq, back.regrets), (seq, told));
            prop_assert_eq!(
                back.evictions.iter().map(bits).collect::<Vec<_>>(),
                list.iter().map(bits).collect::<Vec<_>>()
            );
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode_evict(&bytes);
            let _ = decode_evict(&[&[VERSION, 0, 2], &bytes[..]].concat());
            let _ = decode_evict(&[&[WITH_REGRETS, 0, 0, 2], &bytes[..]].concat());
        }

        #[test]
        fn a_cut_message_is_refused(list in evictions(4, 4), told in regrets(4, 4), cut in 0.0..1.0f64) {
            let bytes = encode_evict(0, &list, &told).unwrap();
            let cut = (bytes.len() as f64 * cut) as usize;
            prop_assert!(decode_evict(&bytes[..cut]).is_err());
        }
    }

    fn of(positions: Vec<Position>, scores: Vec<f16>) -> Eviction {
        Eviction { layer: 0, head: None, reason: Reason::LowScore, cutoff: None, kept: 0, positions, scores }
    }

    #[test]
    fn a_dense_decision_takes_a_few_bytes() {
        let dense = of((1000..100_000).collect(), Vec::new());
        assert!(encode_evict(0, &[dense], &[]).unwrap().len() < 20);
    }

    #[test]
    fn scores_that_were_left_out_take_no_bytes() {
        let mut thinned =
            of((0..4000).map(|i| i * 2).collect(), (0..4000).map(|i| f16::from_f32(i as f32)).collect());
        let before = encode_evict(0, &[thinned.clone()], &[]).unwrap().len();
        thinned.thin_scores();
        let after = encode_evict(0, &[thinned.clone()], &[]).unwrap();
        assert!(after.len() < before - 7000, "{before} to {}", after.len());
        assert_eq!(bits(&decode_evict(&after).unwrap().evictions[0]), bits(&thinned));
    }

    #[test]
    fn what_no_reader_would_accept_is_not_written() {
        for bad in [
            of(vec![3, 3], Vec::new()),
            of(vec![4, 3], Vec::new()),
            of(vec![MAX_POSITION], Vec::new()),
            of(vec![1, 2], vec![f16::ONE]),
        ] {
            assert!(encode_evict(0, &[bad], &[]).is_err());
        }
        for told in
            [vec![(3, 0.5), (3, 0.5)], vec![(MAX_POSITION, 0.5)], vec![(1, f32::NAN)], vec![(1, -1.0)]]
        {
            assert!(encode_evict(0, &[], &[LaneRegret { layer: 0, head: 0, told }]).is_err());
        }
    }

    #[test]
    fn a_few_bytes_cannot_ask_for_a_lot_of_memory() {
        // Decisions of one range of 2^24 positions each.
        let mut bytes = vec![VERSION, 0];
        put_varint(&mut bytes, 1000);
        for _ in 0..1000 {
            bytes.extend_from_slice(&[0, 0, 0, AS_RANGES, 0, 1, 0]);
            put_varint(&mut bytes, u64::from(MAX_POSITION) - 1);
        }
        assert_eq!(decode_evict(&bytes), Err(CodecError::TooLarge));
    }

    #[test]
    fn another_version_is_named() {
        assert_eq!(decode_evict(&[9, 0, 0]), Err(CodecError::Version(9)));
    }
}
