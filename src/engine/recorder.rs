//! A listener that writes what it hears into a recording, on a thread of its own.
//!
//! It folds the steps too, because a keyframe is a whole state. If it ever falls behind, steps are missing from the
//! file: the gap is written down and a fresh keyframe follows it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::fault::Fault;
use super::link::Item;
use crate::event::RunInfo;
use crate::probe::Receiver;
use crate::state::State;
use crate::trace::{Gap, TraceError, Writer};

/// A killed run loses at most this.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// A keyframe is written when the bytes since the last exceed this, and its own size: a jump reads a keyframe and folds
/// what follows it, and with twice the size it took over 16 ms for keyframes near 1 MiB (`benches/seek.rs`).
const KEYFRAME_MIN_BYTES: u64 = 512 << 10;
const KEYFRAME_FACTOR: u64 = 1;
/// Items between engine and recorder; at a thousand steps a second this is four seconds of a stalled disk.
pub(super) const RING: usize = 4_096;

/// A finished file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Steps in it.
    pub steps: u64,
}

/// A recording under way.
pub struct Recorder {
    thread: JoinHandle<Result<Vec<Recorded>, String>>,
    failure: Arc<Mutex<Option<String>>>,
}

impl Recorder {
    /// Starts the thread. The file is created when the ring's first run begins; a re-run opens a second file beside it
    /// (`name-2.mcap`).
    ///
    /// # Errors
    /// The file cannot be created: found out at once, not when the run is over.
    pub fn start(path: &Path, items: Receiver<Item>) -> Result<Self, String> {
        probe_path(path)?;
        let failure = Arc::new(Mutex::new(None));
        let mut recording = Recording { path: path.to_owned(), open: None, done: Vec::new() };
        let told = Arc::clone(&failure);
        let thread = std::thread::Builder::new()
            .name("recorder".into())
            .spawn(move || {
                let result = recording.write_all(items);
                if let Err(why) = &result {
                    *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.clone());
                }
                result.map(|()| recording.done)
            })
            .map_err(|e| format!("recorder thread: {e}"))?;
        Ok(Self { thread, failure })
    }

    /// Why the recording has stopped, if it has.
    pub fn failure(&self) -> Option<String> {
        let told = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        told.or_else(|| self.thread.is_finished().then(|| "the recorder has stopped".to_owned()))
    }

    /// Waits until everything heard is written; the listener must have been dismissed before.
    ///
    /// # Errors
    /// One line: what could not be written.
    pub fn finish(self) -> Result<Vec<Recorded>, String> {
        self.thread.join().unwrap_or_else(|_| Err("internal fault: the recorder panicked".into()))
    }
}

/// Fails now if the file cannot be written later. An existing recording is replaced only when the run begins.
fn probe_path(path: &Path) -> Result<(), String> {
    let existed = path.exists();
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|e| format!("{}: cannot be written: {e}", path.display()))?;
    if !existed {
        // Nothing was in it; leaving it would look like an empty recording.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

struct Recording {
    path: PathBuf,
    open: Option<Open>,
    done: Vec<Recorded>,
}

struct Open {
    path: PathBuf,
    writer: Writer<std::io::BufWriter<std::fs::File>>,
    state: State,
    steps: u64,
    keyframe_bytes: u64,
}

impl Recording {
    fn write_all(&mut self, mut items: Receiver<Item>) -> Result<(), String> {
        let mut flushed = Instant::now();
        while !items.is_finished() {
            items.wait(FLUSH_EVERY.saturating_sub(flushed.elapsed()));
            for item in items.drain() {
                self.take(item)?;
            }
            if flushed.elapsed() >= FLUSH_EVERY {
                if let Some(open) = &mut self.open {
                    open.writer.flush().map_err(|e| e.to_string())?;
                }
                flushed = Instant::now();
            }
        }
        self.close()
    }

    fn take(&mut self, item: Item) -> Result<(), String> {
        match item {
            Item::Begin(info) => {
                self.close()?;
                let path = self.next_path();
                self.open = Some(Open::create(path, &info)?);
            }
            Item::Step(step) => {
                if let Some(open) = &mut self.open {
                    Fault::Recorder.strike(step.step);
                    open.state.fold(&step).map_err(|e| format!("internal fault: {e}"))?;
                    open.writer.step(&step).map_err(|e| e.to_string())?;
                    open.steps += 1;
                    open.keyframe_if_due().map_err(|e| e.to_string())?;
                }
            }
            Item::Resync(state) => {
                if let Some(open) = &mut self.open {
                    open.resync(*state).map_err(|e| e.to_string())?;
                }
            }
            Item::Status(_) | Item::Reference(_) => {}
        }
        Ok(())
    }

    fn next_path(&self) -> PathBuf {
        match self.done.len() {
            0 => self.path.clone(),
            n => {
                let stem =
                    self.path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
                let extension =
                    self.path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
                self.path.with_file_name(format!("{stem}-{}{extension}", n + 1))
            }
        }
    }

    fn close(&mut self) -> Result<(), String> {
        let Some(open) = self.open.take() else { return Ok(()) };
        self.done.push(open.close().map_err(|e| e.to_string())?);
        Ok(())
    }
}

impl Open {
    fn create(path: PathBuf, info: &Arc<RunInfo>) -> Result<Self, String> {
        let state = State::new(Arc::clone(info)).map_err(|e| e.to_string())?;
        let writer = Writer::create(&path, info).map_err(|e| e.to_string())?;
        Ok(Self { path, writer, state, steps: 0, keyframe_bytes: 0 })
    }

    fn keyframe_if_due(&mut self) -> Result<(), TraceError> {
        let since = self.writer.bytes_since_keyframe();
        if self.steps == 1 || since > KEYFRAME_MIN_BYTES.max(KEYFRAME_FACTOR * self.keyframe_bytes) {
            self.keyframe()?;
        }
        Ok(())
    }

    fn keyframe(&mut self) -> Result<(), TraceError> {
        let Some(step) = self.state.step else { return Ok(()) };
        let bytes = self.state.keyframe();
        self.keyframe_bytes = bytes.len() as u64;
        self.writer.keyframe(step, self.state.at_ns, &bytes)?;
        self.writer.latency(step, self.state.at_ns, &self.state.latency.encoded())
    }

    fn resync(&mut self, state: State) -> Result<(), TraceError> {
        let at_ns = state.at_ns;
        // A recording that begins in mid-run has no gap: nothing of it was there before.
        if let (Some(before), Some(after)) = (self.state.step, state.step) {
            let gap =
                Gap { from_step: before + 1, to_step: after, reason: "the recorder fell behind".into() };
            self.writer.gap(&gap, at_ns)?;
        }
        self.state = state;
        self.keyframe()
    }

    fn close(mut self) -> Result<Recorded, TraceError> {
        if self.state.step.is_some() {
            self.writer.latency(
                self.state.step.unwrap_or(0),
                self.state.at_ns,
                &self.state.latency.encoded(),
            )?;
        }
        let summary = self.writer.finish()?;
        Ok(Recorded { path: self.path, bytes: summary.bytes, steps: self.steps })
    }
}
