//! Writing a recording.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mcap::records::{MessageHeader, Metadata};
use mcap::{Attachment, Compression, McapError, WriteOptions};
use serde::Serialize;
use serde_json::json;

use super::error::TraceError;
use super::index::{Gap, Index, Mark, StepEntry};
use super::latency::encode_latency;
use super::limits::{Budget, MAX_STEP, MAX_STEP_BYTES, Shape};
use super::recording::base_ns;
use super::{FORMAT, INDEX_ATTACHMENT, METADATA, PROMPT_ATTACHMENT, RUN_ATTACHMENT, Topic, attention, evict};
use crate::event::{RunInfo, Step, StepId};

/// Uncompressed bytes after which a chunk is closed, at the next step.
const CHUNK_BYTES: usize = 256 << 10;
/// What MCAP puts in front of a message's data.
const MESSAGE_HEADER_BYTES: usize = 31;
/// JSON schema of `/step`.
pub(super) const STEP_SCHEMA: &str = include_str!("step.schema.json");

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Size of the file.
    pub bytes: u64,
    /// Steps.
    pub steps: u64,
    /// Keyframes.
    pub keyframes: usize,
    /// Gaps.
    pub gaps: usize,
    /// Attention pictures left out because they were too large.
    pub dropped_pictures: u64,
}

/// Writes a recording. After the first write error every call is refused, and the file ends at its last whole chunk.
/// [`Writer::finish`] makes it complete; a writer that is merely dropped leaves a readable file without footer.
pub struct Writer<W: Write + Seek> {
    file: String,
    base_ns: u64,
    shape: Shape,
    /// `None` after a write error.
    mcap: Option<mcap::Writer<Counted<W>>>,
    stopped: String,
    written: Arc<AtomicU64>,
    index: Index,
    /// Offsets of the chunks that are closed.
    chunks: Vec<u64>,
    /// Uncompressed bytes in the open chunk.
    chunk_bytes: usize,
    since_keyframe_bytes: u64,
    dropped_pictures: u64,
}

impl Writer<BufWriter<File>> {
    /// Creates or replaces a file and writes the description of the run.
    pub fn create(path: &Path, run: &RunInfo) -> Result<Self, TraceError> {
        let file = path.display().to_string();
        let handle = File::create(path).map_err(|source| TraceError::Io {
            file: file.clone(),
            doing: "create",
            source,
        })?;
        Self::new(&file, BufWriter::with_capacity(CHUNK_BYTES, handle), run)
    }
}

impl<W: Write + Seek> Writer<W> {
    /// Writes the description of the run to `out`; `file` stands for it in messages.
    pub fn new(file: &str, out: W, run: &RunInfo) -> Result<Self, TraceError> {
        let written = Arc::new(AtomicU64::new(0));
        let shape = Shape::of(run).map_err(|why| TraceError::Unsound { file: file.into(), step: 0, why })?;
        let counted = Counted { inner: out, written: Arc::clone(&written), broken: false };
        let mcap = begin(counted, run)
            .map_err(|error| TraceError::Write { file: file.into(), cause: cause(error) })?;
        let mut writer = Self {
            file: file.to_owned(),
            base_ns: base_ns(run),
            shape,
            mcap: Some(mcap),
            stopped: String::new(),
            written,
            index: Index::default(),
            chunks: Vec::new(),
            chunk_bytes: 0,
            since_keyframe_bytes: 0,
            dropped_pictures: 0,
        };
        // The channels get a chunk of their own: what follows can be damaged without losing the meaning of the rest.
        let offset = writer.bytes_written();
        writer.on_disk(|mcap| {
            channels(mcap)?;
            mcap.flush()
        })?;
        writer.chunks.push(offset);
        Ok(writer)
    }

    /// Writes a step: its decisions, pictures and tuning, then itself.
    ///
    /// # Errors
    /// [`TraceError::Unsound`] if it does not follow the steps before or does not fit the run's model; nothing is
    /// written then. [`TraceError::Write`], and [`TraceError::Stopped`] ever after.
    pub fn step(&mut self, step: &Step) -> Result<(), TraceError> {
        self.check_open()?;
        let messages = self.messages(step).map_err(|why| self.unsound(step.step, why))?;
        self.close_full_chunk()?;
        let end_ns = step.end_ns();
        let chunk = self.chunks.len() as u32;
        for (topic, data) in messages {
            self.message(topic, step.step, end_ns, &data)?;
        }
        self.index.steps.push(StepEntry { step: step.step, end_ns, chunk });
        Ok(())
    }

    /// The messages of a step in their order.
    fn messages(&mut self, step: &Step) -> Result<Vec<(Topic, Vec<u8>)>, String> {
        if let Some(last) = self.index.steps.last().filter(|last| last.step >= step.step) {
            return Err(format!("step {} was recorded before", last.step));
        }
        self.shape.check(step)?;
        let json = serde_json::to_vec(step).map_err(|error| error.to_string())?;
        let mut bytes = json.len();
        let mut budget = Budget::of_a_step();
        let mut messages = Vec::new();
        for seq in &step.seqs {
            let regrets = seq.shadow.as_ref().map(|shadow| shadow.victims.as_slice()).unwrap_or_default();
            if seq.evictions.is_empty() && regrets.is_empty() {
                continue;
            }
            let data = evict::encode_within(seq.seq, &seq.evictions, regrets, &mut budget)
                .map_err(|error| format!("evictions of sequence {}: {error}", seq.seq))?;
            bytes += data.len();
            messages.push((Topic::Evict, data));
        }
        if bytes > MAX_STEP_BYTES {
            return Err(format!("it takes {bytes} bytes, at most {MAX_STEP_BYTES} can be"));
        }
        for (seq, map) in step.seqs.iter().filter_map(|seq| Some((seq.seq, seq.attention.as_ref()?))) {
            match attention::encode_within(seq, map, &mut budget) {
                Ok(data) if bytes + data.len() <= MAX_STEP_BYTES => {
                    bytes += data.len();
                    messages.push((Topic::Attention, data));
                }
                Ok(_) | Err(super::CodecError::TooLarge) => self.dropped_pictures += 1,
                Err(error) => return Err(format!("attention of sequence {seq}: {error}")),
            }
        }
        if !step.tuning.is_empty() {
            let params = json!({ "step": step.step, "tuning": step.tuning });
            messages.push((Topic::Params, params.to_string().into_bytes()));
        }
        messages.push((Topic::Step, json));
        Ok(messages)
    }

    /// Writes a keyframe: the state after `step`, opaque here. It may come at any time after that step.
    pub fn keyframe(&mut self, step: StepId, at_ns: u64, bytes: &[u8]) -> Result<(), TraceError> {
        self.check_open()?;
        self.check_mark(step, bytes.len(), self.index.keyframes.last())?;
        self.close_full_chunk()?;
        self.index.keyframes.push(Mark { step, chunk: self.chunks.len() as u32 });
        self.message(Topic::Keyframe, step, at_ns, bytes)?;
        self.since_keyframe_bytes = 0;
        Ok(())
    }

    /// Writes named cumulative histograms as they are after `step`.
    pub fn latency(
        &mut self,
        step: StepId,
        at_ns: u64,
        histograms: &[(String, Vec<u8>)],
    ) -> Result<(), TraceError> {
        self.check_open()?;
        let data = encode_latency(histograms);
        self.check_mark(step, data.len(), self.index.latency.last())?;
        self.close_full_chunk()?;
        self.index.latency.push(Mark { step, chunk: self.chunks.len() as u32 });
        self.message(Topic::Latency, step, at_ns, &data)
    }

    /// States that steps are missing. The recorder says so when it resumes, before the keyframe stamped
    /// `gap.to_step - 1` and the step `gap.to_step`.
    pub fn gap(&mut self, gap: &Gap, at_ns: u64) -> Result<(), TraceError> {
        self.check_open()?;
        if !gap.is_sound() || self.index.gaps.last().is_some_and(|last| last.to_step > gap.from_step) {
            return Err(self.unsound(gap.from_step, format!("a gap from here to step {}", gap.to_step)));
        }
        let json = serde_json::to_vec(gap).map_err(|e| self.unsound(gap.from_step, e.to_string()))?;
        self.close_full_chunk()?;
        self.index.gaps.push(gap.clone());
        self.message(Topic::Gap, gap.from_step, at_ns, &json)
    }

    /// Closes the chunk and hands everything to the system: what was written before is safe from the death of this
    /// process.
    pub fn flush(&mut self) -> Result<(), TraceError> {
        self.check_open()?;
        if self.chunk_bytes == 0 {
            return Ok(());
        }
        // In the buffered mode of the crate a chunk is written as a whole when it is closed: it begins here.
        let offset = self.bytes_written();
        self.on_disk(mcap::Writer::flush)?;
        self.chunks.push(offset);
        self.chunk_bytes = 0;
        Ok(())
    }

    /// Writes index, summary and footer.
    pub fn finish(mut self) -> Result<Summary, TraceError> {
        self.flush()?;
        let index = Attachment {
            log_time: self.base_ns,
            create_time: self.base_ns,
            name: INDEX_ATTACHMENT.into(),
            media_type: "application/x-kvista-index".into(),
            data: self.index.encode(self.chunks.iter().copied()).into(),
        };
        self.on_disk(|mcap| {
            mcap.attach(&index)?;
            mcap.finish().map(drop)
        })?;
        Ok(Summary {
            bytes: self.bytes_written(),
            steps: self.steps(),
            keyframes: self.index.keyframes.len(),
            gaps: self.index.gaps.len(),
            dropped_pictures: self.dropped_pictures,
        })
    }

    /// Bytes of the file so far; the open chunk is not among them.
    pub fn bytes_written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Steps written so far.
    pub const fn steps(&self) -> u64 {
        self.index.steps.len() as u64
    }

    /// Uncompressed bytes of messages since the last keyframe.
    pub const fn bytes_since_keyframe(&self) -> u64 {
        self.since_keyframe_bytes
    }

    /// Attention pictures that were left out because they were too large.
    pub const fn dropped_pictures(&self) -> u64 {
        self.dropped_pictures
    }

    fn close_full_chunk(&mut self) -> Result<(), TraceError> {
        if self.chunk_bytes >= CHUNK_BYTES { self.flush() } else { Ok(()) }
    }

    fn message(&mut self, topic: Topic, step: StepId, at_ns: u64, data: &[u8]) -> Result<(), TraceError> {
        let time = self.base_ns.saturating_add(at_ns);
        let header = MessageHeader {
            channel_id: channel_id(topic),
            sequence: step as u32,
            log_time: time,
            publish_time: time,
        };
        self.on_disk(|mcap| mcap.write_to_known_channel(&header, data))?;
        self.chunk_bytes += MESSAGE_HEADER_BYTES + data.len();
        self.since_keyframe_bytes += data.len() as u64;
        Ok(())
    }

    /// Runs a write; the first that fails ends the recording.
    fn on_disk(
        &mut self,
        write: impl FnOnce(&mut mcap::Writer<Counted<W>>) -> Result<(), McapError>,
    ) -> Result<(), TraceError> {
        let Some(mcap) = &mut self.mcap else {
            return Err(self.refusal());
        };
        let Err(error) = write(mcap) else { return Ok(()) };
        self.stopped = cause(error);
        self.mcap = None;
        Err(TraceError::Write { file: self.file.clone(), cause: self.stopped.clone() })
    }

    fn check_open(&self) -> Result<(), TraceError> {
        if self.mcap.is_some() { Ok(()) } else { Err(self.refusal()) }
    }

    fn refusal(&self) -> TraceError {
        TraceError::Stopped { file: self.file.clone(), cause: self.stopped.clone() }
    }

    fn check_mark(&self, step: StepId, bytes: usize, last: Option<&Mark>) -> Result<(), TraceError> {
        if step >= MAX_STEP || last.is_some_and(|last| last.step > step) {
            return Err(self.unsound(step, "keyframes and histograms come in the order of steps".into()));
        }
        if bytes > MAX_STEP_BYTES {
            return Err(self.unsound(step, format!("{bytes} bytes, at most {MAX_STEP_BYTES} can be")));
        }
        Ok(())
    }

    fn unsound(&self, step: StepId, why: String) -> TraceError {
        TraceError::Unsound { file: self.file.clone(), step, why }
    }
}

impl<W: Write + Seek> Drop for Writer<W> {
    /// Keeps what was recorded, but makes no footer: only [`Writer::finish`] may say that a recording is complete.
    fn drop(&mut self) {
        if self.chunk_bytes > 0 {
            // There is nobody left to tell.
            let _ = self.flush();
        }
        if let Some(mcap) = self.mcap.take() {
            drop(mcap.into_inner());
        }
    }
}

fn begin<W: Write + Seek>(out: Counted<W>, run: &RunInfo) -> Result<mcap::Writer<Counted<W>>, McapError> {
    let mut mcap = WriteOptions::new()
        .compression(Some(Compression::Zstd))
        .compression_level(1)
        .compression_threads(0)
        // Chunks are closed here, between steps; and written whole, never patched.
        .chunk_size(None)
        .disable_seeking(true)
        .profile("kvista")
        .library(concat!("kvista ", env!("CARGO_PKG_VERSION")))
        .create(out)?;
    let entries =
        [("format", FORMAT.to_string()), ("tool", run.tool.clone()), ("model", run.model.name.clone())];
    mcap.write_metadata(&Metadata {
        name: METADATA.into(),
        metadata: entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    })?;
    let mut attach = |name: &str, media_type: &str, data: &[u8]| {
        mcap.attach(&Attachment {
            log_time: base_ns(run),
            create_time: base_ns(run),
            name: name.into(),
            media_type: media_type.into(),
            data: data.into(),
        })
    };
    let json = serde_json::to_vec_pretty(run).map_err(io::Error::other)?;
    attach(RUN_ATTACHMENT, "application/json", &json)?;
    attach(PROMPT_ATTACHMENT, "text/plain", run.prompt.as_bytes())?;
    Ok(mcap)
}

fn channels<W: Write + Seek>(mcap: &mut mcap::Writer<Counted<W>>) -> Result<(), McapError> {
    let schema = mcap.add_schema("kvista.Step", "jsonschema", STEP_SCHEMA.as_bytes())?;
    for topic in Topic::ALL {
        let schema = if topic == Topic::Step { schema } else { 0 };
        mcap.add_channel_with_id(
            channel_id(topic),
            schema,
            topic.name(),
            topic.encoding(),
            &BTreeMap::new(),
        )?;
    }
    Ok(())
}

const fn channel_id(topic: Topic) -> u16 {
    topic as u16 + 1
}

/// The system's word on an error, without the crate's own around it.
fn cause(error: McapError) -> String {
    match error {
        McapError::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// Counts what was written, and stays broken after the first error: bytes after a hole would make a file that lies.
struct Counted<W> {
    inner: W,
    written: Arc<AtomicU64>,
    broken: bool,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.broken {
            return Err(io::Error::other("an earlier write failed"));
        }
        match self.inner.write(bytes) {
            Ok(n) => {
                self.written.fetch_add(n as u64, Ordering::Relaxed);
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                self.broken = true;
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("an earlier write failed"));
        }
        self.inner.flush().inspect_err(|_| self.broken = true)
    }
}

impl<W: Seek> Seek for Counted<W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        // The crate asks where it is and never goes anywhere else in the mode used here; a buffered file would be
        // flushed by the question.
        match to {
            SeekFrom::Current(0) => Ok(self.written.load(Ordering::Relaxed)),
            _ => self.inner.seek(to),
        }
    }
}
