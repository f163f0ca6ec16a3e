//! Saving what is whole of a recording.

use std::io::{Seek, Write};
use std::path::Path;

use super::assemble::{Assembler, Told};
use super::error::TraceError;
use super::index::Gap;
use super::latency::decode_latency;
use super::recording::Recording;
use super::verify::Report;
use super::writer::Writer;
use crate::event::StepId;

/// Why the steps of a damaged part are missing, as the gap says.
const DAMAGED: &str = "damaged part left out by repair";

/// Writes every step of `path` that is whole into a new, complete recording at `out`. Where a part in the middle is
/// damaged, the steps after it are kept from the next keyframe on and the rest is stated as a gap.
///
/// The report is of the steps that were saved; its problems are what could not be.
///
/// # Errors
/// If `path` cannot be opened or is `out` itself, or `out` cannot be written.
pub fn repair(path: &Path, out: &Path) -> Result<Report, TraceError> {
    let recording = Recording::open(path)?;
    if path.canonicalize().ok().is_some_and(|from| out.canonicalize().is_ok_and(|to| from == to)) {
        return Err(TraceError::Io {
            file: out.display().to_string(),
            doing: "create",
            source: std::io::Error::other("it is the recording to repair; name another file"),
        });
    }
    let writer = Writer::create(out, recording.run())?;
    save(&recording, writer)
}

pub(super) fn save<W: Write + Seek>(
    recording: &Recording,
    mut writer: Writer<W>,
) -> Result<Report, TraceError> {
    recording.check_inflation()?;
    let mut report = Report::of(recording);
    let mut topics = recording.topics().clone();
    let mut salvage = Salvage { base_ns: recording.base_ns(), next: 0, lost: false };
    let mut assembler = Assembler::default();
    if !report.complete {
        report.problem(recording.ending().to_string());
    }
    for i in 0..recording.readable_chunks() {
        let chunk = match recording.chunk(i) {
            Ok(chunk) => chunk,
            Err(TraceError::Damaged { why, .. }) => {
                report.problem(why);
                salvage.lost = true;
                continue;
            }
            Err(error) => return Err(error),
        };
        for channel in &chunk.channels {
            topics.learn(channel);
        }
        for message in &chunk.messages {
            let at_ns = message.log_time.saturating_sub(salvage.base_ns);
            match assembler.feed(&chunk, message, &topics, recording.shape()) {
                Ok(Some(told)) => salvage.keep(&told, at_ns, &mut writer, &mut report)?,
                Ok(None) => {}
                Err(why) => {
                    report.problem(why);
                    salvage.lost = true;
                }
            }
        }
    }
    let summary = writer.finish()?;
    report.bytes = summary.bytes;
    Ok(report)
}

struct Salvage {
    base_ns: u64,
    /// The step after the last that was saved.
    next: StepId,
    /// Something was lost, and no keyframe has come since.
    lost: bool,
}

impl Salvage {
    fn keep<W: Write + Seek>(
        &mut self,
        told: &Told<'_>,
        at_ns: u64,
        writer: &mut Writer<W>,
        report: &mut Report,
    ) -> Result<(), TraceError> {
        if self.lost && !self.resumes(told, at_ns, writer, report)? {
            return Ok(());
        }
        let kept = match told {
            Told::Step(step) => writer.step(step),
            Told::Keyframe(step, bytes) => writer.keyframe(*step, at_ns, bytes),
            Told::Latency(step, data) => match decode_latency(data) {
                Ok(histograms) => writer.latency(*step, at_ns, &histograms),
                Err(error) => {
                    report.problem(format!("/latency of step {step}: {error}"));
                    return Ok(());
                }
            },
            Told::Gap(gap) => writer.gap(gap, at_ns),
        };
        match kept {
            Ok(()) => {
                report.count(told);
                if let Told::Step(step) = told {
                    self.next = step.step + 1;
                }
                Ok(())
            }
            Err(TraceError::Unsound { step, why, .. }) => {
                report.problem(format!("step {step}: {why}"));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether saving can go on after a loss: at a keyframe, whose missing predecessors become a gap.
    fn resumes<W: Write + Seek>(
        &mut self,
        told: &Told<'_>,
        at_ns: u64,
        writer: &mut Writer<W>,
        report: &mut Report,
    ) -> Result<bool, TraceError> {
        let Told::Keyframe(step, _) = told else { return Ok(false) };
        if *step + 1 < self.next {
            return Ok(false);
        }
        self.lost = false;
        if *step + 1 > self.next {
            let gap = Gap { from_step: self.next, to_step: *step + 1, reason: DAMAGED.into() };
            writer.gap(&gap, at_ns)?;
            report.gaps.push(gap);
        }
        Ok(true)
    }
}
