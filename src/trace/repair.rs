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
use crate::event::{Step, StepId};

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
    let mut salvage = Salvage { base_ns: recording.base_ns(), ..Salvage::default() };
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
                Ok(Some(told)) => salvage.keep(told, at_ns, &mut writer, &mut report)?,
                Ok(None) => {}
                Err(why) => {
                    report.problem(why);
                    salvage.lost = true;
                }
            }
        }
    }
    salvage.end(&mut writer, &mut report)?;
    let summary = writer.finish()?;
    report.bytes = summary.bytes;
    Ok(report)
}

#[derive(Default)]
struct Salvage {
    base_ns: u64,
    /// The step after the last that was saved.
    next: StepId,
    /// What follows cannot be folded without a keyframe of the step before it.
    lost: bool,
    /// What was told to go on from after steps that are missing. It is written with the step that follows, for only that
    /// shows that it is true.
    resume: Resume,
}

#[derive(Default)]
struct Resume {
    gap: Option<(u64, Gap)>,
    keyframe: Option<(StepId, u64, Vec<u8>)>,
    latency: Option<(StepId, u64, Vec<u8>)>,
}

impl Salvage {
    fn keep<W: Write + Seek>(
        &mut self,
        told: Told<'_>,
        at_ns: u64,
        writer: &mut Writer<W>,
        report: &mut Report,
    ) -> Result<(), TraceError> {
        let goes_on = !self.lost && self.resume.keyframe.is_none();
        match told {
            Told::Step(step) => return self.keep_step(&step, writer, report),
            Told::Keyframe(step, bytes) if goes_on && step < self.next => {
                let kept = sound(writer.keyframe(step, at_ns, bytes), report)?;
                report.keyframes += usize::from(kept);
            }
            Told::Keyframe(step, bytes) => self.resume.keyframe = Some((step, at_ns, bytes.to_vec())),
            Told::Latency(step, data) => match decode_latency(data) {
                Ok(histograms) if goes_on => {
                    let kept = sound(writer.latency(step, at_ns, &histograms), report)?;
                    report.histograms += usize::from(kept);
                }
                Ok(_) => self.resume.latency = Some((step, at_ns, data.to_vec())),
                Err(error) => report.problem(format!("/latency of step {step}: {error}")),
            },
            Told::Gap(gap) => self.resume.gap = Some((at_ns, gap)),
        }
        Ok(())
    }

    /// A recording may end with steps that are missing.
    fn end<W: Write + Seek>(self, writer: &mut Writer<W>, report: &mut Report) -> Result<(), TraceError> {
        match self.resume.gap {
            Some((at_ns, gap)) if !self.lost && gap.from_step == self.next => {
                if sound(writer.gap(&gap, at_ns), report)? {
                    report.gaps.push(gap);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn keep_step<W: Write + Seek>(
        &mut self,
        step: &Step,
        writer: &mut Writer<W>,
        report: &mut Report,
    ) -> Result<(), TraceError> {
        if step.step < self.next {
            report.problem(format!("step {} was recorded before", step.step));
            return Ok(());
        }
        let resumes = self.resume.keyframe.as_ref().is_some_and(|(keyframe, ..)| keyframe + 1 == step.step);
        if self.lost || step.step > self.next {
            if !self.lost && self.resume.gap.is_none() && (self.next > 0 || !resumes) {
                report.problem(format!("steps {} to {} are missing", self.next, step.step - 1));
            }
            // Nothing is missing before a recording that was started by hand in mid-run.
            self.lost |= self.next > 0 || !resumes;
            if !resumes || !self.go_on(step.step, writer, report)? {
                return Ok(());
            }
        }
        self.resume = Resume::default();
        self.lost = !sound(writer.step(step), report)?;
        if !self.lost {
            report.count_step(step);
            self.next = step.step + 1;
        }
        Ok(())
    }

    /// Writes what stands between the last step that was saved and this one: a gap, as it was told if it was told so, the
    /// keyframe, the histograms. Whether it is sound.
    fn go_on<W: Write + Seek>(
        &mut self,
        to_step: StepId,
        writer: &mut Writer<W>,
        report: &mut Report,
    ) -> Result<bool, TraceError> {
        let Resume { gap, keyframe, latency } = std::mem::take(&mut self.resume);
        let Some((step, at_ns, keyframe)) = keyframe else { return Ok(false) };
        if self.lost && to_step > self.next {
            let told = gap.filter(|(_, gap)| (gap.from_step, gap.to_step) == (self.next, to_step));
            let (at_ns, gap) = told
                .unwrap_or_else(|| (at_ns, Gap { from_step: self.next, to_step, reason: DAMAGED.into() }));
            writer.gap(&gap, at_ns)?;
            report.gaps.push(gap);
        }
        self.next = to_step;
        if !sound(writer.keyframe(step, at_ns, &keyframe), report)? {
            return Ok(false);
        }
        report.keyframes += 1;
        if let Some((_, at_ns, data)) = latency.filter(|(of, ..)| *of == step)
            && let Ok(histograms) = decode_latency(&data)
        {
            report.histograms += usize::from(sound(writer.latency(step, at_ns, &histograms), report)?);
        }
        Ok(true)
    }
}

/// Whether something was written; what cannot be is a problem, unless nothing can.
fn sound(written: Result<(), TraceError>, report: &mut Report) -> Result<bool, TraceError> {
    match written {
        Ok(()) => Ok(true),
        Err(TraceError::Unsound { step, why, .. }) => {
            report.problem(format!("step {step}: {why}"));
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
