//! Runs prompts through the engine, some at a time.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use super::{EvalError, Measure, Result, check_language};
use crate::cache::KvDtype;
use crate::engine::{Engine, EngineError, Observe, Prompt, Told};
use crate::event::{ScoreLevel, Settings};
use crate::model::Model;
use crate::model::demo::prompt::Task;

/// Prompt tokens per step where nothing depends on it: long chunks cost less.
pub(super) const LONG_CHUNK: u32 = 512;

/// What the policy compresses before the answer is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Span {
    /// The context alone: the question is not known yet.
    #[default]
    Context,
    /// Context and question.
    Prompt,
}

/// How the cache is kept during a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Regime {
    /// What tables call it.
    pub name: String,
    /// Eviction policy, as on the command line.
    pub policy: String,
    /// Read set, as on the command line; empty for none.
    pub read: String,
    /// Merge rule, as on the command line; empty for none.
    pub merge: String,
    /// Type of the cache's pages.
    pub kv_dtype: String,
    /// What is compressed.
    pub span: Span,
    /// Most prompt tokens per step.
    pub chunk: u32,
}

impl Regime {
    /// Everything is kept and read.
    pub fn full() -> Self {
        Self {
            name: "full".into(),
            policy: "full".into(),
            read: String::new(),
            merge: String::new(),
            kv_dtype: "f32".into(),
            span: Span::Context,
            chunk: LONG_CHUNK,
        }
    }

    /// Under an eviction policy. A chunk of the prompt is as long as `kvista run` makes it: it may matter here.
    pub fn policy(spec: &str) -> Self {
        Self { name: spec.into(), policy: spec.into(), chunk: Settings::default().chunk, ..Self::full() }
    }

    /// Under a read set.
    pub fn read(spec: &str) -> Self {
        Self { name: spec.into(), read: spec.into(), ..Self::full() }
    }

    pub(super) fn settings(&self, max_tokens: usize) -> Settings {
        let dtype = self.kv_dtype.parse::<KvDtype>();
        Settings {
            block_size: dtype.map_or(Settings::default().block_size, KvDtype::usual_block_size),
            policy: self.policy.clone(),
            read: self.read.clone(),
            merge: self.merge.clone(),
            kv_dtype: self.kv_dtype.clone(),
            chunk: self.chunk,
            scores: ScoreLevel::Off,
            max_tokens: max_tokens.max(1) as u32,
            ignore_eos: true,
            ..Settings::default()
        }
    }
}

/// A prompt cut where the policy acts, and what follows there.
#[derive(Clone, Debug)]
pub(super) struct Exam {
    pub(super) context: String,
    /// Question and answer, fed token by token.
    pub(super) rest: Vec<u32>,
    /// Which of these are answers.
    pub(super) answers: Vec<bool>,
}

impl Exam {
    /// A task; its whole answer counts, the space before a number included.
    pub(super) fn of(task: &Task, span: Span) -> Self {
        let [_, question, answer] = task.ids();
        let right = vec![true; answer.len()];
        match span {
            Span::Context => Self {
                context: task.context.clone(),
                answers: [vec![false; question.len()], right].concat(),
                rest: [question, answer].concat(),
            },
            Span::Prompt => {
                Self { context: format!("{}{}", task.context, task.question), rest: answer, answers: right }
            }
        }
    }
}

/// How the answers of an exam came out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Marks {
    /// Answer tokens.
    pub(super) tokens: u64,
    /// Those the model would have said itself.
    pub(super) right: u64,
    /// Mean negative log-likelihood of an answer token, nats.
    pub(super) loss: f64,
}

impl Marks {
    pub(super) fn of<'a>(told: impl IntoIterator<Item = &'a Told>) -> Self {
        let mut marks = Self::default();
        for told in told {
            marks.tokens += 1;
            marks.right += u64::from(told.is_right());
            marks.loss -= f64::from(told.logprob);
        }
        marks.loss /= marks.tokens.max(1) as f64;
        marks
    }

    pub(super) const fn is_exact(&self) -> bool {
        self.right == self.tokens
    }
}

/// Hears how far a task is: (what, done, of how many).
pub type Progress<'a> = &'a (dyn Fn(&str, usize, usize) + Sync);

/// A model under examination.
pub struct Lab<'a> {
    pub(super) model: Arc<Model>,
    threads: usize,
    progress: Progress<'a>,
    /// The first seed of every task.
    pub(super) seed: u64,
}

impl<'a> Lab<'a> {
    /// # Errors
    /// [`EvalError::OtherLanguage`] where the model does not read the tasks' words.
    pub fn new(model: Arc<Model>, threads: usize, seed: u64, progress: Progress<'a>) -> Result<Self> {
        check_language(&model)?;
        Ok(Self { model, threads: threads.max(1), progress, seed })
    }

    /// Refuses prompts that the model or the tasks cannot have.
    pub(super) fn check_length(&self, tokens: usize) -> Result<()> {
        let (least, most) = (256, self.model.decoder.card().context as usize);
        if (least..=most).contains(&tokens) { Ok(()) } else { Err(EvalError::Length { tokens, least, most }) }
    }

    /// Runs `n` jobs, as many at a time as there are threads, each on one thread: prompts are many, and a thread of its
    /// own serves each better than a share in all. The results are in order, whatever finished first.
    pub(super) fn each<T: Send>(
        &self,
        what: &str,
        n: usize,
        job: impl Fn(usize) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let (next, done, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        let results: Mutex<Vec<Option<Result<T>>>> = Mutex::new((0..n).map(|_| None).collect());
        let work = || {
            while !failed.load(Ordering::Relaxed) {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n {
                    break;
                }
                let result = job(i);
                if result.is_ok() {
                    (self.progress)(what, done.fetch_add(1, Ordering::Relaxed) + 1, n);
                }
                failed.fetch_or(result.is_err(), Ordering::Relaxed);
                results.lock().expect("no job panics while it holds the lock")[i] = Some(result);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.threads.min(n) {
                scope.spawn(|| match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
                    Ok(alone) => alone.install(work),
                    // A machine out of threads computes in the pool that is there.
                    Err(_) => work(),
                });
            }
        });
        let results = results.into_inner().expect("no job panics while it holds the lock");
        // A job that was never begun stands behind the one that failed.
        let mut failure = None;
        let mut found = Vec::with_capacity(n);
        for result in results.into_iter().flatten() {
            match result {
                Ok(result) => found.push(result),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(found), Err)
    }

    /// An engine on a text that will say `more` tokens.
    pub(super) fn engine(&self, regime: &Regime, text: &str, more: usize) -> Result<Engine> {
        self.engine_with(&regime.settings(more), text)
    }

    pub(super) fn engine_with(&self, settings: &Settings, text: &str) -> Result<Engine> {
        let prompt = Prompt { text: text.into(), ..Prompt::default() };
        let mut engine = Engine::new(Arc::clone(&self.model), settings, &prompt)?;
        engine.set_observe(Observe::Off);
        Ok(engine)
    }

    /// The marks of an exam. `at_end_of_context` may do something to the cache once the policy has acted there.
    pub(super) fn examine(
        &self,
        regime: &Regime,
        exam: &Exam,
        at_end_of_context: impl FnOnce(&mut Engine) -> std::result::Result<(), EngineError>,
    ) -> Result<Marks> {
        let mut engine = self.engine(regime, &exam.context, exam.rest.len())?;
        engine.teach(&exam.rest);
        while !engine.is_decoding() {
            engine.step()?;
        }
        at_end_of_context(&mut engine)?;
        while engine.step()?.is_some() {}
        let told = engine.take_told();
        Ok(Marks::of(told.iter().zip(&exam.answers).filter(|(_, answer)| **answer).map(|(told, _)| told)))
    }

    /// How the model took each token of a text after its first, under a regime.
    pub(super) fn judge(&self, regime: &Regime, text: &str) -> Result<Vec<Told>> {
        let mut engine = self.engine(regime, text, 1)?;
        engine.judge_prompt(true);
        while !engine.is_decoding() {
            engine.step()?;
        }
        Ok(engine.take_told())
    }

    /// The shares of exact answers of `n` exams.
    pub(super) fn exact(
        &self,
        what: &str,
        regime: &Regime,
        n: usize,
        task: impl Fn(u64) -> Task + Sync,
    ) -> Result<Vec<Marks>> {
        self.each(what, n, |i| {
            let task = task(self.seed + i as u64);
            self.examine(regime, &Exam::of(&task, regime.span), |_| Ok(()))
        })
    }
}

/// The share of exams answered exactly.
pub(super) fn exact_share(marks: &[Marks]) -> Measure {
    Measure::share_of(marks.iter().map(Marks::is_exact))
}
