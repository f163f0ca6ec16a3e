//! `kvista.latency.v1`: named cumulative histograms, opaque to this room.
//!
//! ```text
//! u8 version = 1 · varint n, each: varint length, name in UTF-8 · varint length, histogram (HdrHistogram V2 deflate)
//! ```

use super::wire::{CodecError, Wire, put_bytes, put_varint};

const VERSION: u8 = 1;

/// Encodes named histograms.
pub fn encode_latency(histograms: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![VERSION];
    put_varint(&mut out, histograms.len() as u64);
    for (name, blob) in histograms {
        put_bytes(&mut out, name.as_bytes());
        put_bytes(&mut out, blob);
    }
    out
}

/// Decodes [`encode_latency`]; safe on any bytes.
pub fn decode_latency(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, CodecError> {
    let mut wire = Wire::new(bytes);
    match wire.byte()? {
        VERSION => {}
        other => return Err(CodecError::Version(other)),
    }
    let count = wire.count(2)?;
    let mut histograms = Vec::with_capacity(count);
    for _ in 0..count {
        histograms.push((wire.text()?.to_owned(), wire.bytes()?.to_vec()));
    }
    wire.end()?;
    Ok(histograms)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn histograms_come_back(list in prop::collection::vec((".{0,12}", prop::collection::vec(any::<u8>(), 0..40)), 0..6)) {
            let bytes = encode_latency(&list);
            prop_assert_eq!(decode_latency(&bytes), Ok(list));
            prop_assert!(decode_latency(&bytes[..bytes.len() - 1]).is_err());
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_latency(&bytes);
            let _ = decode_latency(&[&[VERSION], &bytes[..]].concat());
        }
    }
}
