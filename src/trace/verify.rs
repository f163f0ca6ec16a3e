//! Checking a recording from end to end.

use std::path::Path;

use mcap::sans_io::{LinearReadEvent, LinearReader, LinearReaderOptions};
use serde::Serialize;

use super::Topic;
use super::assemble::{Assembler, Told};
use super::error::TraceError;
use super::index::Gap;
use super::latency::decode_latency;
use super::layout::{self, Ending};
use super::limits::MAX_CHUNK_BYTES;
use super::recording::Recording;
use super::scan::Scan;
use super::source::{ReadError, Source};
use crate::event::{Step, StepId};

/// Problems that are listed; a file that is broken throughout need not say so a million times.
const MAX_PROBLEMS: usize = 100;
/// Uncompressed bytes without any keyframe from which that is a problem.
const KEYFRAME_DUE_BYTES: u64 = 4 << 20;

/// What [`verify`] or [`repair`](super::repair) found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The file, as it was given.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// Whole steps.
    pub steps: usize,
    /// The first of them.
    pub first_step: Option<StepId>,
    /// The last of them.
    pub last_step: Option<StepId>,
    /// Attention pictures.
    pub pictures: usize,
    /// Victims of evictions.
    pub victims: usize,
    /// Keyframes.
    pub keyframes: usize,
    /// Messages with histograms.
    pub histograms: usize,
    /// Steps that are missing, and why.
    pub gaps: Vec<Gap>,
    /// Chunks.
    pub chunks: usize,
    /// Whether it was finished.
    pub complete: bool,
    /// How it ends.
    pub ending: Ending,
    /// What is wrong, one line each.
    pub problems: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub const fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    pub(super) fn of(recording: &Recording) -> Self {
        Self {
            file: recording.file().to_owned(),
            bytes: recording.bytes(),
            steps: 0,
            first_step: None,
            last_step: None,
            pictures: 0,
            victims: 0,
            keyframes: 0,
            histograms: 0,
            gaps: Vec::new(),
            chunks: recording.chunks(),
            complete: recording.complete(),
            ending: recording.ending().clone(),
            problems: Vec::new(),
        }
    }

    pub(super) fn problem(&mut self, line: impl Into<String>) {
        match self.problems.len() {
            n if n < MAX_PROBLEMS => self.problems.push(line.into()),
            MAX_PROBLEMS => self.problems.push("and more".into()),
            _ => {}
        }
    }

    fn count(&mut self, told: &Told<'_>) {
        match told {
            Told::Step(step) => self.count_step(step),
            Told::Keyframe(..) => self.keyframes += 1,
            Told::Latency(..) => self.histograms += 1,
            Told::Gap(gap) => self.gaps.push(gap.clone()),
        }
    }

    pub(super) fn count_step(&mut self, step: &Step) {
        self.steps += 1;
        self.first_step.get_or_insert(step.step);
        self.last_step = Some(step.step);
        self.victims += step.victims();
        self.pictures += step.seqs.iter().filter(|seq| seq.attention.is_some()).count();
    }
}

/// Reads everything: checksums of chunks, attachments, data and summary; every message; the order of steps; gaps and
/// the keyframes after them; the index. State hashes are checked by whoever folds the steps.
///
/// # Errors
/// Only if it cannot be opened at all; what is wrong inside is in the report.
pub fn verify(path: &Path) -> Result<Report, TraceError> {
    Recording::open(path).and_then(|recording| inspect(&recording))
}

pub(super) fn inspect(recording: &Recording) -> Result<Report, TraceError> {
    recording.check_inflation()?;
    let mut report = Report::of(recording);
    if !report.complete {
        report.problem(recording.ending().to_string());
    }
    attachments(recording, &mut report)?;
    if report.ending == Ending::Footer
        && let Err(why) = recording.with_source(sections)?
    {
        report.problem(why);
    }
    contents(recording, &mut report)?;
    Ok(report)
}

fn attachments(recording: &Recording, report: &mut Report) -> Result<(), TraceError> {
    for (name, at) in recording.attachments() {
        if let Err(why) = recording.with_source(|source| layout::attachment(source, *at))? {
            report.problem(format!("attachment {name}: {why}"));
        }
    }
    Ok(())
}

/// Checks the data and summary sections against their checksums.
fn sections(source: &mut Source) -> Result<(), ReadError> {
    let options = LinearReaderOptions::default()
        .with_emit_chunks(true)
        .with_check_finishes_after_end_magic(true)
        .with_validate_data_section_crc(true)
        .with_validate_summary_section_crc(true)
        .with_record_length_limit(MAX_CHUNK_BYTES as usize + 4096);
    let mut reader = LinearReader::new_with_options(options);
    let mut at = 0;
    while let Some(event) = reader.next_event() {
        match event {
            Ok(LinearReadEvent::ReadRequest(wanted)) => {
                let bytes = source.read_at(at, source.after(at).min(wanted as u64))?;
                reader.insert(bytes.len()).copy_from_slice(&bytes);
                reader.notify_read(bytes.len());
                at += bytes.len() as u64;
            }
            Ok(LinearReadEvent::Record { .. }) => {}
            Err(error) => return Err(ReadError::Damaged(error.to_string())),
        }
    }
    Ok(())
}

/// Decodes every message of every chunk.
fn contents(recording: &Recording, report: &mut Report) -> Result<(), TraceError> {
    let mut topics = recording.topics().clone();
    let mut scan = Scan::of(recording.run());
    let mut assembler = Assembler::default();
    let mut messages_bytes = 0;
    let mut damaged = false;
    for i in 0..recording.readable_chunks() {
        let chunk = match recording.chunk(i) {
            Ok(chunk) => chunk,
            Err(TraceError::Damaged { why, .. }) => {
                report.problem(why);
                damaged = true;
                continue;
            }
            Err(error) => return Err(error),
        };
        scan.chunk(i, &chunk, &mut topics);
        for message in &chunk.messages {
            messages_bytes += chunk.data(message).len() as u64;
            let unknown = topics.get(message.channel).is_none();
            match assembler.feed(&chunk, message, &topics, recording.shape()) {
                Ok(Some(told)) => {
                    if let Told::Latency(step, data) = told
                        && let Err(error) = decode_latency(data)
                    {
                        report.problem(format!("/latency of step {step}: {error}"));
                    }
                    report.count(&told);
                }
                Ok(None) if unknown => {
                    report.problem(format!("a message of the unknown channel {}", message.channel));
                }
                Ok(None) => {
                    if topics.get(message.channel) == Some(Topic::Params)
                        && serde_json::from_slice::<serde_json::Value>(chunk.data(message)).is_err()
                    {
                        report.problem(format!("/params of step {}: not JSON", message.sequence));
                    }
                }
                Err(why) => report.problem(format!("chunk at byte {}: {why}", recording.chunk_offset(i))),
            }
        }
    }
    for line in &scan.disorder {
        report.problem(line.clone());
    }
    if !damaged && scan.index != *recording.index() {
        report.problem("the index does not match what is in the file");
    }
    gaps(&scan, report);
    if report.keyframes == 0 && messages_bytes > KEYFRAME_DUE_BYTES {
        report.problem("there is no keyframe: every seek folds from the first step");
    }
    Ok(())
}

/// Every missing step must be in a gap that was stated, or in several in a row, and after them a keyframe must stand.
fn gaps(scan: &Scan, report: &mut Report) {
    let mut gaps = scan.index.gaps.iter().peekable();
    let (mut next, mut stated_to) = (0, 0);
    for entry in &scan.index.steps {
        if entry.step > next {
            stated_to = next.max(stated_to);
            while let Some(gap) = gaps.next_if(|gap| gap.from_step <= stated_to) {
                stated_to = stated_to.max(gap.to_step);
            }
            let stated = stated_to >= entry.step;
            let resumes = scan.index.keyframes.binary_search_by_key(&(entry.step - 1), |k| k.step).is_ok();
            // A recording started by hand in mid-run begins with the keyframe of the step before it.
            let begins_here = next == 0 && resumes;
            if !(stated || begins_here) {
                report.problem(format!("steps {next} to {} are missing and no gap says so", entry.step - 1));
            } else if !resumes {
                report.problem(format!("no keyframe after the gap before step {}", entry.step));
            }
        }
        next = entry.step + 1;
    }
}
