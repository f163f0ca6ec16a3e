//! Reading a recording: open, seek, iterate.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use mcap::MAGIC;

use super::assemble::{Assembler, Told};
use super::chunk::{Chunk, inflated_bytes};
use super::error::TraceError;
use super::index::{Gap, Index, Mark};
use super::latency::decode_latency;
use super::layout::{self, Ending, Layout, Place, Topics};
use super::limits::Shape;
use super::scan::Scan;
use super::source::{Bytes, ReadError, Source};
use super::{FORMAT, INDEX_ATTACHMENT, RUN_ATTACHMENT, Topic};
use crate::event::{RunInfo, Step, StepId};

/// Inflated chunks that are kept: stepping to and fro, and a keyframe beside the steps that follow it.
const KEPT_CHUNKS: usize = 4;
/// All chunks together may inflate to this, and [`MAX_INFLATION`] times the size of the file more.
const FREE_INFLATION_BYTES: u64 = 256 << 20;
/// Recordings inflate about tenfold; beyond this a file is made to waste time.
const MAX_INFLATION: u64 = 128;

/// Named cumulative histograms (HdrHistogram V2 deflate).
pub type Histograms = Vec<(String, Vec<u8>)>;

/// An open recording. Reading takes `&self`; it can be shared between threads, which then take turns.
pub struct Recording {
    file: String,
    run: RunInfo,
    shape: Shape,
    topics: Topics,
    chunks: Vec<Place>,
    /// What was recovered of the chunk that the file ends in; it counts as the chunk after the last.
    open_chunk: Option<Arc<Chunk>>,
    attachments: Vec<(String, Place)>,
    index: Index,
    ending: Ending,
    bytes: u64,
    reader: Mutex<Reader>,
}

struct Reader {
    source: Source,
    /// Newest last.
    kept: VecDeque<(usize, Arc<Chunk>)>,
}

impl Recording {
    /// Opens a recording: from its index if it was finished, else by scanning what there is of it. A file that was cut
    /// anywhere opens with the steps that are whole; [`Recording::ending`] says how it ends.
    ///
    /// # Errors
    /// [`TraceError::Io`], [`TraceError::Foreign`], [`TraceError::Newer`], and [`TraceError::Damaged`] where the
    /// description of the run itself is damaged.
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        let file = path.display().to_string();
        let io = |doing| {
            let file = file.clone();
            move |source| TraceError::Io { file, doing, source }
        };
        let handle = File::open(path).map_err(io("open"))?;
        if handle.metadata().map_err(io("open"))?.is_dir() {
            return Err(TraceError::Foreign { file, why: "it is a folder".into() });
        }
        Self::from_source(file, Box::new(handle))
    }

    /// Opens a recording that is in memory; `name` stands for the file in messages.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, TraceError> {
        Self::from_source(name.to_owned(), Box::new(Cursor::new(bytes.into())))
    }

    fn from_source(file: String, bytes: Box<dyn Bytes>) -> Result<Self, TraceError> {
        let io = |source| TraceError::Io { file: file.clone(), doing: "read", source };
        let mut source = Source::new(bytes).map_err(io)?;
        let foreign = |why: &str| TraceError::Foreign { file: file.clone(), why: why.into() };
        if source.len() == 0 {
            return Err(foreign("the file is empty"));
        }
        let magic = source.read_at(0, source.len().min(MAGIC.len() as u64)).map_err(io)?;
        if magic != MAGIC {
            let cut = MAGIC.starts_with(&magic);
            return Err(foreign(if cut {
                "it is cut within its first bytes"
            } else {
                "it does not begin as an MCAP file"
            }));
        }
        let layout = Layout::read(&mut source).map_err(io)?;
        let run = describe(&file, &mut source, &layout)?;
        let shape = Shape::of(&run).map_err(|why| TraceError::Damaged { file: file.clone(), why })?;
        let mut recording = Self {
            run,
            shape,
            topics: layout.topics.clone(),
            chunks: layout.chunks.clone(),
            open_chunk: None,
            attachments: layout.attachments.iter().map(|(name, at)| (name.clone(), *at)).collect(),
            index: Index::default(),
            ending: layout.ending.clone(),
            bytes: source.len(),
            reader: Mutex::new(Reader { source, kept: VecDeque::new() }),
            file,
        };
        match recording.attached_index(&layout)? {
            Some(index) => recording.index = index,
            None => recording.rebuild_index(layout.open_chunk)?,
        }
        Ok(recording)
    }

    /// The index that the file carries, if it is one and of this file.
    fn attached_index(&self, layout: &Layout) -> Result<Option<Index>, TraceError> {
        let Some(&at) = layout.attachments.get(INDEX_ATTACHMENT).filter(|_| layout.from_summary) else {
            return Ok(None);
        };
        let bytes = self.with_source(|source| layout::attachment(source, at))?;
        Ok(bytes.ok().and_then(|bytes| Index::decode(&bytes, layout.offsets()).ok()))
    }

    /// Inflates every chunk to find the steps; stops at the first that is damaged.
    fn rebuild_index(&mut self, open_chunk: Option<u64>) -> Result<(), TraceError> {
        let mut scan = Scan::of(&self.run);
        self.check_inflation()?;
        for (i, at) in self.chunks.clone().into_iter().enumerate() {
            match self.load(at)? {
                Ok(chunk) => scan.chunk(i, &chunk, &mut self.topics),
                Err(why) => {
                    self.ending = Ending::Damaged { at: at.offset(), why };
                    self.index = scan.index;
                    return Ok(());
                }
            }
        }
        if let Some(offset) = open_chunk
            && let Ok(chunk) = self.with_source(|source| Chunk::read_open(source, offset))?
        {
            let before = scan.index.steps.len();
            scan.chunk(self.chunks.len(), &chunk, &mut self.topics);
            if scan.index.steps.len() > before {
                self.ending = Ending::OpenChunk { at: offset };
                self.open_chunk = Some(Arc::new(chunk));
            }
        }
        self.index = scan.index;
        Ok(())
    }

    /// Refuses a file that would take far longer to inflate than its size suggests. To be called before reading all of
    /// it; the sizes that chunks state are held to when they are inflated.
    pub(super) fn check_inflation(&self) -> Result<(), TraceError> {
        let mut left = FREE_INFLATION_BYTES.saturating_add(self.bytes.saturating_mul(MAX_INFLATION));
        for &at in &self.chunks {
            let stated = self.with_source(|source| inflated_bytes(source, at))?.unwrap_or(0);
            left = left
                .checked_sub(stated)
                .ok_or_else(|| self.damaged("it inflates to far more than a recording would".into()))?;
        }
        Ok(())
    }

    /// What the run was.
    pub const fn run(&self) -> &RunInfo {
        &self.run
    }

    /// The file, as it was given.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Size of the file.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of steps.
    pub const fn steps(&self) -> usize {
        self.index.steps.len()
    }

    /// Ids of the steps, ascending; consecutive except across gaps.
    pub fn step_ids(&self) -> impl ExactSizeIterator<Item = StepId> + DoubleEndedIterator + '_ {
        self.index.steps.iter().map(|entry| entry.step)
    }

    /// First and last step.
    pub fn bounds(&self) -> Option<(StepId, StepId)> {
        Some((self.index.steps.first()?.step, self.index.steps.last()?.step))
    }

    /// End of a step since the run began, without reading the step.
    pub fn end_ns(&self, step: StepId) -> Option<u64> {
        let i = self.index.steps.binary_search_by_key(&step, |entry| entry.step).ok()?;
        Some(self.index.steps[i].end_ns)
    }

    /// The last step that had ended at `ns` since the run began, by bisection.
    pub fn step_at_ns(&self, ns: u64) -> Option<StepId> {
        let i = self.index.steps.partition_point(|entry| entry.end_ns <= ns);
        Some(self.index.steps[i.checked_sub(1)?].step)
    }

    /// Steps that have a keyframe, ascending.
    pub fn keyframes(&self) -> impl ExactSizeIterator<Item = StepId> + DoubleEndedIterator + '_ {
        self.index.keyframes.iter().map(|mark| mark.step)
    }

    /// Steps that are missing, and why.
    pub fn gaps(&self) -> &[Gap] {
        &self.index.gaps
    }

    /// Whether the file was finished: it has a footer, and, where it had to be scanned, no damage was met.
    pub fn complete(&self) -> bool {
        self.ending == Ending::Footer
    }

    /// How the file ends.
    pub const fn ending(&self) -> &Ending {
        &self.ending
    }

    /// Number of chunks.
    pub const fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The steps from `range.start` up to, not including, `range.end`, with their evictions and attention pictures.
    /// After an error the iterator ends. A gap is not an error: whoever folds the steps looks at [`Recording::gaps`] and
    /// takes the keyframe that stands after it.
    pub fn read(&self, range: Range<StepId>) -> Steps<'_> {
        let next = self.index.lower_bound(range.start);
        let end = self.index.lower_bound(range.end).max(next);
        Steps {
            recording: self,
            next,
            end,
            chunk: self.index.steps.get(next).map_or(0, |entry| entry.chunk as usize),
            loaded: None,
            message: 0,
            assembler: Assembler::starting_at(range.start),
        }
    }

    /// The newest keyframe that holds the state after `step` or an earlier one.
    pub fn keyframe_at_or_before(&self, step: StepId) -> Result<Option<(StepId, Vec<u8>)>, TraceError> {
        self.marked(&self.index.keyframes, Topic::Keyframe, step)
    }

    /// The newest histograms as they were after `step` or an earlier one.
    pub fn latency_at_or_before(&self, step: StepId) -> Result<Option<(StepId, Histograms)>, TraceError> {
        let Some((step, bytes)) = self.marked(&self.index.latency, Topic::Latency, step)? else {
            return Ok(None);
        };
        let histograms = decode_latency(&bytes)
            .map_err(|error| self.damaged(format!("/latency of step {step}: {error}")))?;
        Ok(Some((step, histograms)))
    }

    fn marked(
        &self,
        marks: &[Mark],
        topic: Topic,
        step: StepId,
    ) -> Result<Option<(StepId, Vec<u8>)>, TraceError> {
        let Some(i) = marks.partition_point(|mark| mark.step <= step).checked_sub(1) else {
            return Ok(None);
        };
        let mark = marks[i];
        let chunk = self.chunk(mark.chunk as usize)?;
        let message = chunk.messages.iter().rev().find(|message| {
            StepId::from(message.sequence) == mark.step && self.topics.get(message.channel) == Some(topic)
        });
        match message {
            Some(message) => Ok(Some((mark.step, chunk.data(message).to_vec()))),
            None => Err(self.damaged(format!(
                "{} of step {} is not where the index says",
                topic.name(),
                mark.step
            ))),
        }
    }

    /// A chunk by its number, from the kept ones if it is there.
    pub(super) fn chunk(&self, i: usize) -> Result<Arc<Chunk>, TraceError> {
        if i == self.chunks.len()
            && let Some(open) = &self.open_chunk
        {
            return Ok(Arc::clone(open));
        }
        let Some(&at) = self.chunks.get(i) else {
            return Err(self.damaged("steps are missing that the index names".into()));
        };
        if let Some(kept) = self.reader().kept.iter().find(|(kept, _)| *kept == i) {
            return Ok(Arc::clone(&kept.1));
        }
        let chunk = self
            .load(at)?
            .map(Arc::new)
            .map_err(|why| self.damaged(format!("chunk at byte {}: {why}", at.offset())))?;
        let mut reader = self.reader();
        if reader.kept.len() == KEPT_CHUNKS {
            reader.kept.pop_front();
        }
        reader.kept.push_back((i, Arc::clone(&chunk)));
        Ok(chunk)
    }

    fn load(&self, at: Place) -> Result<Result<Chunk, String>, TraceError> {
        self.with_source(|source| Chunk::read(source, at))
    }

    /// Runs a read; a failing disk is an error of the call, a damaged chunk a result.
    pub(super) fn with_source<T>(
        &self,
        read: impl FnOnce(&mut Source) -> Result<T, ReadError>,
    ) -> Result<Result<T, String>, TraceError> {
        match read(&mut self.reader().source) {
            Ok(value) => Ok(Ok(value)),
            Err(ReadError::Damaged(why)) => Ok(Err(why)),
            Err(ReadError::Io(source)) => {
                Err(TraceError::Io { file: self.file.clone(), doing: "read", source })
            }
        }
    }

    fn reader(&self) -> std::sync::MutexGuard<'_, Reader> {
        // A panic in another thread leaves at worst a kept chunk too few.
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn damaged(&self, why: String) -> TraceError {
        TraceError::Damaged { file: self.file.clone(), why }
    }

    /// Start of the run on the clock of the messages.
    pub(super) const fn base_ns(&self) -> u64 {
        base_ns(&self.run)
    }

    pub(super) const fn topics(&self) -> &Topics {
        &self.topics
    }

    pub(super) const fn shape(&self) -> &Shape {
        &self.shape
    }

    pub(super) const fn index(&self) -> &Index {
        &self.index
    }

    pub(super) fn attachments(&self) -> &[(String, Place)] {
        &self.attachments
    }

    /// Offset of a chunk.
    pub(super) fn chunk_offset(&self, i: usize) -> u64 {
        self.chunks.get(i).map_or(self.bytes, |at| at.offset())
    }

    /// Chunks, counting one that was recovered from the end.
    pub(super) fn readable_chunks(&self) -> usize {
        self.chunks.len() + usize::from(self.open_chunk.is_some())
    }
}

/// Start of a run on the clock of the messages: nanoseconds since 1970.
pub(super) const fn base_ns(run: &RunInfo) -> u64 {
    run.started_unix_ms.saturating_mul(1_000_000)
}

/// The description of the run, if this is a recording of a format that is known.
fn describe(file: &str, source: &mut Source, layout: &Layout) -> Result<RunInfo, TraceError> {
    let foreign = |why: &str| TraceError::Foreign { file: file.to_owned(), why: why.to_owned() };
    let Some(metadata) = &layout.metadata else {
        return Err(foreign(if layout.ending == Ending::Footer || !layout.chunks.is_empty() {
            "an MCAP file, but of another program"
        } else {
            "an MCAP file cut before it says whose it is"
        }));
    };
    match metadata.get("format").and_then(|format| format.parse::<u32>().ok()) {
        Some(found) if found > FORMAT => return Err(TraceError::Newer { file: file.to_owned(), found }),
        Some(1..=FORMAT) => {}
        _ => return Err(foreign("an MCAP file without a format version")),
    }
    let Some(&at) = layout.attachments.get(RUN_ATTACHMENT) else {
        return Err(foreign("it is cut before the description of its run"));
    };
    let damaged = |why: String| TraceError::Damaged {
        file: file.to_owned(),
        why: format!("the description of the run: {why}"),
    };
    let json = layout::attachment(source, at).map_err(|error| match error {
        ReadError::Damaged(why) => damaged(why),
        ReadError::Io(source) => TraceError::Io { file: file.to_owned(), doing: "read", source },
    })?;
    serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))
}

/// Steps of a recording in order, see [`Recording::read`].
pub struct Steps<'a> {
    recording: &'a Recording,
    /// Position in the index of the step to come, and of the one after the last.
    next: usize,
    end: usize,
    chunk: usize,
    loaded: Option<Arc<Chunk>>,
    message: usize,
    assembler: Assembler,
}

impl Steps<'_> {
    /// Reads on to the step that the index has next.
    fn advance(&mut self) -> Result<Step, TraceError> {
        let wanted = self.recording.index.steps[self.next].step;
        loop {
            let chunk = match &self.loaded {
                Some(chunk) => Arc::clone(chunk),
                None => self.recording.chunk(self.chunk)?,
            };
            while let Some(message) = chunk.messages.get(self.message) {
                self.message += 1;
                let told = self
                    .assembler
                    .feed(&chunk, message, &self.recording.topics, &self.recording.shape)
                    .map_err(|why| self.recording.damaged(why))?;
                match told {
                    Some(Told::Step(step)) if step.step == wanted => {
                        self.loaded = Some(chunk);
                        self.next += 1;
                        return Ok(*step);
                    }
                    Some(Told::Step(step)) if step.step > wanted => {
                        return Err(self.recording.damaged(format!(
                            "step {} stands where the index has step {wanted}",
                            step.step
                        )));
                    }
                    _ => {}
                }
            }
            (self.chunk, self.message, self.loaded) = (self.chunk + 1, 0, None);
        }
    }
}

impl Iterator for Steps<'_> {
    type Item = Result<Step, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let result = self.advance();
        if result.is_err() {
            self.end = self.next;
        }
        Some(result)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.end - self.next))
    }
}
