//! Where the parts of an MCAP file lie, from its summary or, without one, by hopping from record to record.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use mcap::MAGIC;
use mcap::records::op;
use serde::Serialize;

use super::source::{ReadError, Source};
use super::wire::{CodecError, Wire};
use super::{METADATA, Topic};

/// Opcode and length in front of every record.
pub(super) const FRAME_BYTES: u64 = 9;
/// Largest record that is read whole: summary section, attachments.
const MAX_RECORD_BYTES: u64 = 64 << 20;
/// Frame, start of summary, start of summary offsets, checksum.
const FOOTER_BYTES: u64 = FRAME_BYTES + 20;

/// How a recording ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Ending {
    /// With a footer: it was finished.
    Footer,
    /// After its last whole chunk, without a footer: the run was killed or the file cut.
    Cut {
        /// Where the whole part ends.
        at: u64,
    },
    /// Inside a chunk, of which whole messages were recovered; they have no checksum.
    OpenChunk {
        /// Where that chunk begins.
        at: u64,
    },
    /// At a damaged part; what follows was not read.
    Damaged {
        /// Where it begins.
        at: u64,
        /// What is wrong with it.
        why: String,
    },
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Footer => f.write_str("finished"),
            Self::Cut { at } => write!(f, "cut after the last whole chunk, at byte {at}"),
            Self::OpenChunk { at } => {
                write!(f, "cut inside the chunk at byte {at}, its whole messages recovered")
            }
            Self::Damaged { at, why } => write!(f, "damaged at byte {at}: {why}"),
        }
    }
}

/// A record in the file: where its body begins, and how long that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) body: u64,
    pub(super) bytes: u64,
}

impl Place {
    /// Offset of the record's frame.
    pub(super) const fn offset(self) -> u64 {
        self.body - FRAME_BYTES
    }
}

/// The parts of a file that a recording consists of.
#[derive(Debug)]
pub(super) struct Layout {
    /// The metadata record of a recording.
    pub(super) metadata: Option<BTreeMap<String, String>>,
    /// Attachments by name; the first of a name counts.
    pub(super) attachments: BTreeMap<String, Place>,
    /// Channels that are known without opening a chunk.
    pub(super) topics: Topics,
    pub(super) chunks: Vec<Place>,
    /// A chunk that the file ends in.
    pub(super) open_chunk: Option<u64>,
    pub(super) ending: Ending,
    /// Whether this came from the summary.
    pub(super) from_summary: bool,
}

/// Channel ids to topics.
#[derive(Clone, Debug, Default)]
pub(super) struct Topics(BTreeMap<u16, Topic>);

impl Topics {
    /// Learns a channel record; the first definition of an id counts.
    pub(super) fn learn(&mut self, channel: &ChannelRecord) {
        if let Some(topic) = Topic::named(&channel.topic) {
            self.0.entry(channel.id).or_insert(topic);
        }
    }

    pub(super) fn get(&self, channel: u16) -> Option<Topic> {
        self.0.get(&channel).copied()
    }
}

/// The part of a channel record that is needed.
#[derive(Clone, Debug)]
pub(super) struct ChannelRecord {
    id: u16,
    topic: String,
}

impl ChannelRecord {
    pub(super) fn parse(body: &[u8]) -> Result<Self, CodecError> {
        let mut wire = Wire::new(body);
        let id = wire.u16_le()?;
        let _schema = wire.u16_le()?;
        Ok(Self { id, topic: wire.mcap_text()?.to_owned() })
    }
}

impl Layout {
    fn empty(from_summary: bool) -> Self {
        Self {
            metadata: None,
            attachments: BTreeMap::new(),
            topics: Topics::default(),
            chunks: Vec::new(),
            open_chunk: None,
            ending: Ending::Footer,
            from_summary,
        }
    }

    /// Reads the summary if the file has one that makes sense, else hops through the file.
    pub(super) fn read(source: &mut Source) -> io::Result<Self> {
        match Self::from_summary(source) {
            Ok(layout) => Ok(layout),
            Err(ReadError::Damaged(_)) => Self::scan(source),
            Err(ReadError::Io(error)) => Err(error),
        }
    }

    /// The layout that the summary section states.
    fn from_summary(source: &mut Source) -> Result<Self, ReadError> {
        let no_summary = || ReadError::Damaged("there is no summary".into());
        let tail = MAGIC.len() as u64 + FOOTER_BYTES;
        let footer_at = source.len().checked_sub(tail).ok_or_else(no_summary)?;
        if !footer_at_is(source, footer_at)? {
            return Err(no_summary());
        }
        let summary_at = u64::from_le_bytes(source.array_at(footer_at + FRAME_BYTES)?);
        let bytes = footer_at
            .checked_sub(summary_at)
            .filter(|&bytes| summary_at > 0 && bytes <= MAX_RECORD_BYTES)
            .ok_or_else(no_summary)?;
        let section = source.read_at(summary_at, bytes)?;
        let mut layout = Self::empty(true);
        let mut wire = Wire::new(&section);
        while wire.left() > 0 {
            let opcode = wire.byte()?;
            let bytes = usize::try_from(wire.u64_le()?).map_err(|_| CodecError::TooLarge)?;
            layout.summary_record(source, opcode, wire.take(bytes)?)?;
        }
        Ok(layout)
    }

    fn summary_record(&mut self, source: &mut Source, opcode: u8, body: &[u8]) -> Result<(), ReadError> {
        let mut wire = Wire::new(body);
        match opcode {
            op::CHANNEL => self.topics.learn(&ChannelRecord::parse(body)?),
            op::CHUNK_INDEX => {
                let _times = wire.take(16)?;
                let at = place(source, wire.u64_le()?, wire.u64_le()?)?;
                if self.chunks.last().is_some_and(|last| at.offset() < last.body + last.bytes) {
                    return Err(ReadError::Damaged("chunks overlap".into()));
                }
                self.chunks.push(at);
            }
            op::ATTACHMENT_INDEX => {
                let at = place(source, wire.u64_le()?, wire.u64_le()?)?;
                self.data_record(source, op::ATTACHMENT, at)?;
            }
            op::METADATA_INDEX => {
                let at = place(source, wire.u64_le()?, wire.u64_le()?)?;
                if wire.mcap_text()? == METADATA && self.metadata.is_none() {
                    self.data_record(source, op::METADATA, at)?;
                    // Else a summary could have the same record read a million times.
                    if self.metadata.is_none() {
                        return Err(ReadError::Damaged("an index points to another record".into()));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Hops from record to record until the footer, the end or a record that cannot be.
    pub(super) fn scan(source: &mut Source) -> io::Result<Self> {
        let mut layout = Self::empty(false);
        let mut at = MAGIC.len() as u64;
        layout.ending = loop {
            if source.after(at) < FRAME_BYTES {
                break Ending::Cut { at };
            }
            let frame = source.array_at::<9>(at)?;
            let (opcode, bytes) = (frame[0], u64::from_le_bytes(frame[1..].try_into().expect("8 bytes")));
            if opcode == 0 {
                break Ending::Damaged { at, why: "a record of kind 0".into() };
            }
            let body = at + FRAME_BYTES;
            if bytes > source.after(body) {
                layout.open_chunk = (opcode == op::CHUNK).then_some(at);
                break Ending::Cut { at };
            }
            if opcode == op::FOOTER {
                break if footer_at_is(source, at)? { Ending::Footer } else { Ending::Cut { at } };
            }
            layout.data_record(source, opcode, Place { body, bytes })?;
            at = body + bytes;
        };
        Ok(layout)
    }

    fn data_record(&mut self, source: &mut Source, opcode: u8, at: Place) -> io::Result<()> {
        match opcode {
            op::CHUNK => self.chunks.push(at),
            op::CHANNEL | op::METADATA if at.bytes <= MAX_RECORD_BYTES => {
                let body = source.read_at(at.body, at.bytes)?;
                if opcode == op::CHANNEL {
                    if let Ok(channel) = ChannelRecord::parse(&body) {
                        self.topics.learn(&channel);
                    }
                } else if let Ok((METADATA, entries)) = metadata(&body) {
                    self.metadata.get_or_insert(entries);
                }
            }
            op::ATTACHMENT => {
                // Times, then the name; the data stays where it is.
                let head = source.read_at(at.body, at.bytes.min(1024))?;
                let mut wire = Wire::new(&head);
                if wire.take(16).is_ok()
                    && let Ok(name) = wire.mcap_text()
                {
                    self.attachments.entry(name.to_owned()).or_insert(at);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Offsets of the chunks, which an index must match.
    pub(super) fn offsets(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.chunks.iter().map(|chunk| chunk.offset())
    }
}

/// The place of a record that an index names by its offset and its length with the frame.
fn place(source: &Source, offset: u64, length: u64) -> Result<Place, CodecError> {
    let bytes = length.checked_sub(FRAME_BYTES);
    match bytes {
        Some(bytes) if offset >= MAGIC.len() as u64 && length <= source.after(offset) => {
            Ok(Place { body: offset + FRAME_BYTES, bytes })
        }
        _ => Err(CodecError::Malformed("an index points outside the file")),
    }
}

/// Whether a footer and the closing magic, and nothing else, are at `at`.
fn footer_at_is(source: &mut Source, at: u64) -> io::Result<bool> {
    if source.after(at) != FOOTER_BYTES + MAGIC.len() as u64 {
        return Ok(false);
    }
    let frame = source.array_at::<9>(at)?;
    let magic = source.array_at::<8>(at + FOOTER_BYTES)?;
    Ok(frame == [op::FOOTER, 20, 0, 0, 0, 0, 0, 0, 0] && magic == MAGIC)
}

fn metadata(body: &[u8]) -> Result<(&str, BTreeMap<String, String>), CodecError> {
    let mut wire = Wire::new(body);
    let name = wire.mcap_text()?;
    let bytes = wire.u32_le()? as usize;
    let mut wire = Wire::new(wire.take(bytes)?);
    let mut entries = BTreeMap::new();
    while wire.left() > 0 {
        entries.insert(wire.mcap_text()?.to_owned(), wire.mcap_text()?.to_owned());
    }
    Ok((name, entries))
}

/// The data of an attachment, its checksum verified.
pub(super) fn attachment(source: &mut Source, at: Place) -> Result<Vec<u8>, ReadError> {
    if at.bytes > MAX_RECORD_BYTES {
        return Err(ReadError::Damaged("it is larger than 64 MiB".into()));
    }
    let body = source.read_at(at.body, at.bytes)?;
    // The crate's parser slices without asking; this establishes that everything it slices is there.
    let mut wire = Wire::new(&body);
    let _times = wire.take(16)?;
    let _name = wire.mcap_text()?;
    let _media_type = wire.mcap_text()?;
    let bytes = usize::try_from(wire.u64_le()?).map_err(|_| CodecError::TooLarge)?;
    wire.take(bytes)?;
    let _checksum = wire.u32_le()?;
    wire.end()?;
    match mcap::parse_record(op::ATTACHMENT, &body) {
        Ok(mcap::records::Record::Attachment { data, .. }) => Ok(data.into_owned()),
        Ok(_) => Err(ReadError::Damaged("it is no attachment".into())),
        Err(error) => Err(ReadError::Damaged(error.to_string())),
    }
}
