//! `kvista.attn.v1`: the attention picture of one sequence in one step.
//!
//! ```text
//! u8 version = 1 · varint sequence · u8 level [varint K] · varint query position · varint groups, each:
//!   varint layer · varint KV head · u8 1 (the ranges of the group before) or 0 then ranges (number, distance, length - 1)
//!   varint rows, each: varint query head · f32 dropped mass · u8 kind, then
//!     0 full:   one byte per position of the ranges
//!     1 top:    varint n, then n × (distance from the smallest possible position, byte)
//!     2 blocks: varint n, n bytes
//! ```
//!
//! Groups ascend by (layer, KV head) and top cells by position, within the ranges; a picture that breaks this is
//! refused on both ways.

use super::limits::{Budget, MAX_POSITION};
use super::wire::{CodecError, Wire, put_bytes, put_ranges, put_varint};
use crate::event::{AttentionGroup, AttentionMap, Cells, HeadRow, Position, ScoreLevel, SeqId};

const VERSION: u8 = 1;
/// Layer, head, ranges flag, number of rows.
const SMALLEST_GROUP: usize = 4;
/// Head, dropped mass, kind.
const SMALLEST_ROW: usize = 6;

const FULL: u8 = 0;
const TOP: u8 = 1;
const BLOCKS: u8 = 2;

/// Encodes the picture of one sequence.
///
/// # Errors
/// Groups or positions that do not ascend, a full row that has not one cell per position, a top cell outside the
/// group's positions, and more than a step may hold.
pub fn encode_attention(seq: SeqId, map: &AttentionMap) -> Result<Vec<u8>, CodecError> {
    encode_within(seq, map, &mut Budget::of_a_step())
}

/// Decodes [`encode_attention`]; safe on any bytes.
pub fn decode_attention(bytes: &[u8]) -> Result<(SeqId, AttentionMap), CodecError> {
    decode_within(bytes, &mut Budget::of_a_step())
}

pub(super) fn encode_within(
    seq: SeqId,
    map: &AttentionMap,
    budget: &mut Budget,
) -> Result<Vec<u8>, CodecError> {
    if map.query >= MAX_POSITION {
        return Err(CodecError::Malformed("a position is too large"));
    }
    let mut out = vec![VERSION];
    put_varint(&mut out, u64::from(seq));
    put_level(&mut out, map.level);
    put_varint(&mut out, u64::from(map.query));
    put_varint(&mut out, map.groups.len() as u64);
    let mut before: Option<&AttentionGroup> = None;
    for group in &map.groups {
        in_order(before, group)?;
        budget.spend(group.positions.len())?;
        put_varint(&mut out, u64::from(group.layer));
        put_varint(&mut out, u64::from(group.kv_head));
        let same = before.is_some_and(|before| before.positions == group.positions);
        out.push(u8::from(same));
        if !same {
            put_ranges(&mut out, group.positions.len(), group.positions.iter().copied())?;
        }
        put_varint(&mut out, group.rows.len() as u64);
        for row in &group.rows {
            put_row(&mut out, row, group, budget)?;
        }
        before = Some(group);
    }
    Ok(out)
}

fn put_level(out: &mut Vec<u8>, level: ScoreLevel) {
    match level {
        ScoreLevel::Off => out.push(0),
        ScoreLevel::Blocks => out.push(1),
        ScoreLevel::Top(k) => {
            out.push(2);
            put_varint(out, u64::from(k));
        }
        ScoreLevel::Full => out.push(3),
    }
}

fn put_row(
    out: &mut Vec<u8>,
    row: &HeadRow,
    group: &AttentionGroup,
    budget: &mut Budget,
) -> Result<(), CodecError> {
    put_varint(out, u64::from(row.head));
    out.extend_from_slice(&row.dropped.to_le_bytes());
    match &row.cells {
        Cells::Full(cells) => {
            if cells.len() != group.len() {
                return Err(CodecError::Malformed("a full row has not one cell per position"));
            }
            out.push(FULL);
            out.extend_from_slice(cells);
        }
        Cells::Top(cells) => {
            budget.spend(cells.len())?;
            inside(cells, &group.positions)?;
            out.push(TOP);
            put_varint(out, cells.len() as u64);
            let mut smallest = 0;
            for &(position, cell) in cells {
                put_varint(out, u64::from(position - smallest));
                out.push(cell);
                smallest = position + 1;
            }
        }
        Cells::Blocks(cells) => {
            out.push(BLOCKS);
            put_bytes(out, cells);
        }
    }
    Ok(())
}

fn in_order(before: Option<&AttentionGroup>, group: &AttentionGroup) -> Result<(), CodecError> {
    match before {
        Some(before) if (before.layer, before.kv_head) >= (group.layer, group.kv_head) => {
            Err(CodecError::Malformed("groups are not ascending"))
        }
        _ => Ok(()),
    }
}

/// Whether the cells ascend and each lies in one of the ascending ranges.
fn inside(cells: &[(Position, u8)], ranges: &[(Position, Position)]) -> Result<(), CodecError> {
    if !cells.is_sorted_by(|a, b| a.0 < b.0) {
        return Err(CodecError::Malformed("top cells are not ascending"));
    }
    let mut ranges = ranges.iter().peekable();
    for &(position, _) in cells {
        while ranges.next_if(|&&(_, to)| to <= position).is_some() {}
        if ranges.peek().is_none_or(|&&(from, _)| position < from) {
            return Err(CodecError::Malformed("a top cell is not among the positions"));
        }
    }
    Ok(())
}

pub(super) fn decode_within(bytes: &[u8], budget: &mut Budget) -> Result<(SeqId, AttentionMap), CodecError> {
    let mut wire = Wire::new(bytes);
    match wire.byte()? {
        VERSION => {}
        other => return Err(CodecError::Version(other)),
    }
    let seq = wire.narrow()?;
    let level = match wire.byte()? {
        0 => ScoreLevel::Off,
        1 => ScoreLevel::Blocks,
        2 => ScoreLevel::Top(wire.narrow()?),
        3 => ScoreLevel::Full,
        _ => return Err(CodecError::Malformed("a level is not known")),
    };
    let query = wire.position_from(0)?;
    let count = wire.count(SMALLEST_GROUP)?;
    let mut groups: Vec<AttentionGroup> = Vec::with_capacity(count);
    for _ in 0..count {
        let group = group(&mut wire, groups.last(), budget)?;
        in_order(groups.last(), &group)?;
        groups.push(group);
    }
    wire.end()?;
    Ok((seq, AttentionMap { level, query, groups }))
}

fn group(
    wire: &mut Wire<'_>,
    before: Option<&AttentionGroup>,
    budget: &mut Budget,
) -> Result<AttentionGroup, CodecError> {
    let layer = wire.narrow()?;
    let kv_head = wire.narrow()?;
    let positions = match (wire.byte()?, before) {
        (0, _) => wire.ranges(budget)?,
        (1, Some(before)) => {
            budget.spend(before.positions.len())?;
            before.positions.clone()
        }
        _ => return Err(CodecError::Malformed("a group has no positions to repeat")),
    };
    let mut group = AttentionGroup { layer, kv_head, positions, rows: Vec::new() };
    let resident = group.len();
    let count = wire.count(SMALLEST_ROW)?;
    group.rows.reserve_exact(count);
    for _ in 0..count {
        let row = row(wire, resident, &group.positions, budget)?;
        group.rows.push(row);
    }
    Ok(group)
}

fn row(
    wire: &mut Wire<'_>,
    resident: usize,
    positions: &[(Position, Position)],
    budget: &mut Budget,
) -> Result<HeadRow, CodecError> {
    let head = wire.narrow()?;
    let dropped = wire.f32_le()?;
    let cells = match wire.byte()? {
        FULL => Cells::Full(wire.take(resident)?.to_vec()),
        TOP => {
            let count = wire.count(2)?;
            budget.spend(count)?;
            let mut cells = Vec::with_capacity(count);
            let mut smallest = 0;
            for _ in 0..count {
                let position = wire.position_from(smallest)?;
                cells.push((position, wire.byte()?));
                smallest = position + 1;
            }
            inside(&cells, positions)?;
            Cells::Top(cells)
        }
        BLOCKS => Cells::Blocks(wire.bytes()?.to_vec()),
        _ => return Err(CodecError::Malformed("a kind of row is not known")),
    };
    Ok(HeadRow { head, dropped, cells })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trace::samples::{attention_map, map_bits};

    proptest! {
        #[test]
        fn any_picture_comes_back_bit_for_bit(seq: u32, map in attention_map(6, 4, 2)) {
            let bytes = encode_attention(seq, &map).unwrap();
            let (seq_back, back) = decode_attention(&bytes).unwrap();
            prop_assert_eq!(seq_back, seq);
            prop_assert_eq!(map_bits(&back), map_bits(&map));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode_attention(&bytes);
            let _ = decode_attention(&[&[VERSION, 0, 3, 9, 2], &bytes[..]].concat());
        }

        #[test]
        fn a_cut_message_is_refused(map in attention_map(2, 2, 2), cut in 0.0..1.0f64) {
            let bytes = encode_attention(0, &map).unwrap();
            let cut = (bytes.len() as f64 * cut) as usize;
            prop_assert!(decode_attention(&bytes[..cut]).is_err());
        }
    }

    fn picture(positions: &[(Position, Position)], cells: &Cells) -> AttentionMap {
        let group = |layer| AttentionGroup {
            layer,
            kv_head: 0,
            positions: positions.to_vec(),
            rows: vec![HeadRow { head: 0, dropped: 0.0, cells: cells.clone() }],
        };
        AttentionMap { level: ScoreLevel::Full, query: 9, groups: vec![group(0), group(1)] }
    }

    #[test]
    fn groups_with_the_same_positions_do_not_repeat_them() {
        let ranges: Vec<_> = (0..100).map(|i| (i * 10, i * 10 + 1)).collect();
        let one = picture(&ranges, &Cells::Top(vec![(10, 3)]));
        let bytes = encode_attention(0, &one).unwrap();
        assert!(bytes.len() < 250, "{}", bytes.len());
        assert_eq!(decode_attention(&bytes).unwrap().1, one);
    }

    #[test]
    fn what_no_reader_would_accept_is_not_written() {
        let mut disordered = picture(&[(0, 2)], &Cells::Blocks(vec![1]));
        disordered.groups.reverse();
        for bad in [
            picture(&[(0, 2)], &Cells::Full(vec![1])),
            picture(&[(2, 1)], &Cells::Blocks(vec![])),
            picture(&[(0, 2)], &Cells::Top(vec![(2, 1)])),
            picture(&[(0, 2)], &Cells::Top(vec![(1, 1), (0, 1)])),
            disordered,
        ] {
            assert!(encode_attention(0, &bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn repeating_the_positions_of_a_group_is_counted() {
        let mut bytes = vec![VERSION, 0, 3, 0];
        put_varint(&mut bytes, 1001);
        bytes.extend_from_slice(&[0, 0, 0]);
        put_ranges(&mut bytes, 100_000, (0..100_000).map(|i| (i * 2, i * 2 + 1))).unwrap();
        bytes.push(0);
        for layer in 1..=1000 {
            put_varint(&mut bytes, layer);
            bytes.extend_from_slice(&[0, 1, 0]);
        }
        assert_eq!(decode_attention(&bytes), Err(CodecError::TooLarge));
    }
}
