//! Chunks: inflating one, its checksum verified, its messages listed.

use std::ops::Range;

use mcap::records::op;
use mcap::sans_io::{LinearReadEvent, LinearReader, LinearReaderOptions};

use super::layout::{ChannelRecord, FRAME_BYTES, Place};
use super::limits::MAX_CHUNK_BYTES;
use super::source::{ReadError, Source};
use super::wire::{CodecError, Wire};

/// A message of a chunk; its data lies in the chunk.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) channel: u16,
    pub(super) sequence: u32,
    pub(super) log_time: u64,
    data: Range<usize>,
}

/// An inflated chunk.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) messages: Vec<Message>,
    pub(super) channels: Vec<ChannelRecord>,
    data: Vec<u8>,
}

/// What a chunk says about itself.
struct Header {
    uncompressed_bytes: u64,
    compression: String,
    compressed_bytes: u64,
    /// Bytes of the header itself.
    bytes: u64,
}

impl Header {
    const FIXED_BYTES: u64 = 8 + 8 + 8 + 4 + 4 + 8;

    fn read(source: &mut Source, body: u64) -> Result<Self, ReadError> {
        // Room for the name of any compression there is.
        let head = source.read_at(body, source.after(body).min(Self::FIXED_BYTES + 16))?;
        let mut wire = Wire::new(&head);
        wire.take(16)?;
        let uncompressed_bytes = wire.u64_le()?;
        wire.take(4)?;
        let compression = wire.mcap_text()?.to_owned();
        let compressed_bytes = wire.u64_le()?;
        if !["", "zstd"].contains(&compression.as_str()) {
            return Err(ReadError::Damaged(format!("its compression {compression:?} is not known here")));
        }
        let bytes = Self::FIXED_BYTES + compression.len() as u64;
        Ok(Self { uncompressed_bytes, compression, compressed_bytes, bytes })
    }
}

/// Bytes that a chunk inflates to, without inflating it; none where [`Chunk::read`] would refuse it unread.
pub(super) fn inflated_bytes(source: &mut Source, at: Place) -> Result<u64, ReadError> {
    let stated = Header::read(source, at.body)?.uncompressed_bytes;
    Ok(if stated > MAX_CHUNK_BYTES { 0 } else { stated })
}

impl Chunk {
    /// Reads and inflates a whole chunk.
    pub(super) fn read(source: &mut Source, at: Place) -> Result<Self, ReadError> {
        let frame = source.array_at::<9>(at.offset())?;
        if frame[0] != op::CHUNK || frame[1..] != at.bytes.to_le_bytes() {
            return Err(ReadError::Damaged("there is no chunk where the index says".into()));
        }
        let header = Header::read(source, at.body)?;
        if header.compressed_bytes > MAX_CHUNK_BYTES || header.uncompressed_bytes > MAX_CHUNK_BYTES {
            return Err(ReadError::Damaged("it is larger than 64 MiB".into()));
        }
        if header.bytes + header.compressed_bytes != at.bytes {
            return Err(ReadError::Damaged("its length does not fit what it holds".into()));
        }
        let record = source.read_at(at.offset(), FRAME_BYTES + at.bytes)?;
        let mut chunk = Self::default();
        match chunk.inflate(&record) {
            None => Ok(chunk),
            Some(why) => Err(ReadError::Damaged(why)),
        }
    }

    /// Recovers the whole messages of a chunk that the file ends in.
    pub(super) fn read_open(source: &mut Source, offset: u64) -> Result<Self, ReadError> {
        let body = offset + FRAME_BYTES;
        let header = Header::read(source, body)?;
        let compressed = source.after(body + header.bytes).min(MAX_CHUNK_BYTES);
        let data = source.read_at(body + header.bytes, compressed)?;
        // What a chunk says of its size and checksum holds only once it is closed.
        let mut record = vec![op::CHUNK];
        record.extend_from_slice(&(header.bytes + compressed).to_le_bytes());
        record.extend_from_slice(&[0; 16]);
        record.extend_from_slice(&MAX_CHUNK_BYTES.to_le_bytes());
        record.extend_from_slice(&0u32.to_le_bytes());
        record.extend_from_slice(&(header.compression.len() as u32).to_le_bytes());
        record.extend_from_slice(header.compression.as_bytes());
        record.extend_from_slice(&compressed.to_le_bytes());
        record.extend_from_slice(&data);
        let mut chunk = Self::default();
        // It ends in an error, by necessity.
        let _ = chunk.inflate(&record);
        Ok(chunk)
    }

    /// Lists the messages of a chunk record until its end or the first thing wrong with it, which is returned.
    fn inflate(&mut self, mut record: &[u8]) -> Option<String> {
        let options = LinearReaderOptions::default()
            .with_skip_start_magic(true)
            .with_skip_end_magic(true)
            .with_validate_chunk_crcs(true)
            .with_record_length_limit(MAX_CHUNK_BYTES as usize);
        let mut reader = LinearReader::new_with_options(options);
        while let Some(event) = reader.next_event() {
            match event {
                Ok(LinearReadEvent::ReadRequest(wanted)) => {
                    let (head, rest) = record.split_at(wanted.min(record.len()));
                    reader.insert(head.len()).copy_from_slice(head);
                    reader.notify_read(head.len());
                    record = rest;
                }
                Ok(LinearReadEvent::Record { data, opcode }) => {
                    if let Err(error) = self.record(opcode, data) {
                        return Some(error.to_string());
                    }
                }
                Err(error) => return Some(error.to_string()),
            }
        }
        None
    }

    fn record(&mut self, opcode: u8, body: &[u8]) -> Result<(), CodecError> {
        match opcode {
            op::MESSAGE => {
                let mut wire = Wire::new(body);
                let (channel, sequence, log_time) = (wire.u16_le()?, wire.u32_le()?, wire.u64_le()?);
                let _publish_time = wire.u64_le()?;
                let start = self.data.len();
                self.data.extend_from_slice(wire.take(wire.left())?);
                self.messages.push(Message { channel, sequence, log_time, data: start..self.data.len() });
            }
            op::CHANNEL => self.channels.push(ChannelRecord::parse(body)?),
            _ => {}
        }
        Ok(())
    }

    /// A message's data.
    pub(super) fn data(&self, message: &Message) -> &[u8] {
        &self.data[message.data.clone()]
    }
}
