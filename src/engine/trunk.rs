//! A prompt fed once, for runs that differ only in what they make of its cache.

use std::sync::Arc;

use super::backend::Backend;
use super::core::{Pages, host_v_from_layer, kept, rope_mode};
use super::setup::Plan;
use super::{Engine, EngineError, Observe, Prompt};
use crate::cache::RopeMode;
use crate::event::{Layer, Settings};
use crate::model::Model;
use crate::policy::{Needs, When, parse_merge, parse_policy, parse_read};
use crate::probe::Clock;

/// What runs must have in common to go on from one prompt.
#[derive(Clone, Debug, PartialEq)]
struct Stem {
    /// The settings without policy, read set and merge rule.
    settings: Settings,
    rope: RopeMode,
    host_v_from_layer: Option<Layer>,
    /// A read set that acts in the prompt.
    read_in_prompt: Option<String>,
}

/// A prompt fed with everything kept, where every run that [branches](Self::branch) off makes its first decision.
///
/// A branch equals a run of its own that takes the whole prompt as one chunk: until the prompt's end an evictor has not
/// decided, and a read set reads everything.
pub struct Trunk {
    engine: Engine,
    stem: Stem,
}

/// One set of settings: what it shares, and what its policy needs.
struct Branch {
    stem: Stem,
    needs: Needs,
}

impl Branch {
    fn of(model: &Model, settings: &Settings) -> Result<Self, EngineError> {
        let policy = parse_policy(&settings.policy)?;
        let read = if settings.read.is_empty() { None } else { Some(parse_read(&settings.read)?) };
        let merge = if settings.merge.is_empty() { None } else { Some(parse_merge(&settings.merge)?) };
        let dtype = &settings.kv_dtype;
        let dtype =
            dtype.parse().map_err(|why| EngineError::Setting(format!("--kv-dtype {dtype}: {why}")))?;
        let layers = model.decoder.config().layers;
        Ok(Self {
            stem: Stem {
                rope: rope_mode(&policy, read.as_ref(), dtype),
                read_in_prompt: read
                    .as_ref()
                    .filter(|read| read.rule().memory().is_some())
                    .map(ToString::to_string),
                host_v_from_layer: host_v_from_layer(read.as_ref(), layers),
                settings: Settings {
                    policy: String::new(),
                    read: String::new(),
                    merge: String::new(),
                    ..settings.clone()
                },
            },
            needs: kept(&policy, merge.as_ref()),
        })
    }
}

impl Trunk {
    /// Sorts settings into groups that can share a trunk, in the order of their first members.
    ///
    /// # Errors
    /// A policy or read set that is wrong.
    pub fn groups(model: &Model, settings: &[Settings]) -> Result<Vec<Vec<usize>>, EngineError> {
        let mut groups: Vec<(Branch, Vec<usize>)> = Vec::new();
        for (i, settings) in settings.iter().enumerate() {
            let branch = Branch::of(model, settings)?;
            let place = groups.iter_mut().find_map(|(first, members)| {
                let needs = first.needs.shared(branch.needs).filter(|_| first.stem == branch.stem)?;
                first.needs = needs;
                Some(members)
            });
            match place {
                Some(members) => members.push(i),
                None => groups.push((branch, vec![i])),
            }
        }
        Ok(groups.into_iter().map(|(_, members)| members).collect())
    }

    /// Feeds a prompt for these settings, which are one of the [groups](Self::groups). The first sequence goes on with
    /// `lesson` afterwards, see [`Engine::teach`].
    ///
    /// # Errors
    /// As [`Engine::new`] and [`Engine::step`]; settings that cannot share a trunk.
    pub fn new(
        model: Arc<Model>,
        settings: &[&Settings],
        prompt: &Prompt,
        lesson: &[u32],
    ) -> Result<Self, EngineError> {
        let mut needs = Needs::NONE;
        let mut stem = None;
        for settings in settings {
            let branch = Branch::of(&model, settings)?;
            let shared = needs.shared(branch.needs);
            let same = stem.as_ref().is_none_or(|stem| *stem == branch.stem);
            let Some(shared) = shared.filter(|_| same) else { return Err(unlike(settings)) };
            needs = shared;
            stem = Some(branch.stem);
        }
        let (Some(first), Some(stem)) = (settings.first(), stem) else {
            return Err(EngineError::Setting("no settings to feed a prompt for".into()));
        };
        let whole = Settings { policy: "full".into(), read: first.read.clone(), ..stem.settings.clone() };
        let plan = Plan::new(&model, &whole, prompt)?;
        let backend = Backend::of(&whole)?;
        let mut engine = Engine::keeping(backend, model, plan, needs, (stem.rope, Pages::OnHost))?;
        engine.set_observe(Observe::Off);
        engine.teach(lesson);
        while !engine.is_decoding() {
            engine.step()?;
        }
        Ok(Self { engine, stem })
    }

    /// A run of its own that has just decided at the end of the prompt, and how long deciding took, in nanoseconds
    /// (measured).
    ///
    /// # Errors
    /// Settings that the trunk was not made for, or that do not fit the prompt.
    pub fn branch(&self, settings: &Settings) -> Result<(Engine, u64), EngineError> {
        let trunk = &self.engine;
        let plan = Plan::new(&trunk.model, settings, &self.prompt())?;
        let branch = Branch::of(&trunk.model, settings)?;
        let needs = branch.needs;
        if branch.stem != self.stem || trunk.needs.shared(needs) != Some(trunk.needs) {
            return Err(unlike(settings));
        }
        let (backend, model) = (trunk.backend.clone(), Arc::clone(&trunk.model));
        let mut engine = Engine::keeping(backend, model, plan, needs, (self.stem.rope, Pages::OnHost))?;
        engine.set_observe(Observe::Off);
        engine.cache = trunk.cache.clone();
        if engine.attention.copies().is_some() {
            // The branch's device has none of the trunk's pages.
            engine.cache.follow();
        }
        engine.step = trunk.step;
        engine.teacher = trunk.teacher.clone();
        for (own, grown) in engine.sequences.iter_mut().zip(&trunk.sequences) {
            own.go_on_from(grown, needs);
        }
        let clock = Clock::new();
        for index in 0..engine.sequences.len() {
            engine.decide(index, When::EndOfPrompt)?;
            engine.merge_layers(index)?;
            let id = engine.sequences[index].id;
            engine.cache.take_ops(id);
        }
        Ok((engine, clock.now_ns()))
    }

    fn prompt(&self) -> Prompt {
        let info = &self.engine.info;
        Prompt {
            text: info.prompt.clone(),
            question: info.question.clone(),
            expected: info.expected.clone(),
            ..Prompt::default()
        }
    }
}

fn unlike(settings: &Settings) -> EngineError {
    EngineError::Setting(format!(
        "policy '{}' with read set '{}' and {} pages cannot go on from a prompt that was fed for others",
        settings.policy, settings.read, settings.kv_dtype
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Step;
    use crate::model::demo;
    use crate::policy::{Kind, registry};

    const TEXT: &str = " Once there was a brave boy named Leo. He had a friend named Mia. They went to the old \
                        mill. The pass key is 40713. Remember it. Leo saw a red bird there.";

    fn settings(policy: &str, read: &str, kv_dtype: &str) -> Settings {
        Settings {
            policy: policy.into(),
            read: read.into(),
            kv_dtype: kv_dtype.into(),
            block_size: if kv_dtype.starts_with("int4") { 32 } else { 16 },
            chunk: 4096,
            max_tokens: 6,
            ignore_eos: true,
            ..Settings::default()
        }
    }

    fn prompt() -> Prompt {
        Prompt { text: TEXT.into(), ..Prompt::default() }
    }

    /// What the model made of the lesson, who is resident then, and what the last step cost in bytes.
    fn ending(mut engine: Engine) -> (Vec<super::super::Told>, Vec<u32>, Vec<crate::event::TierUse>) {
        engine.set_observe(Observe::Off);
        let mut last: Option<Step> = None;
        while let Some(step) = engine.step().unwrap() {
            last = Some(step);
        }
        let last = last.expect("there is something to decode");
        (engine.take_told(), last.seqs[0].resident.clone(), last.tiers)
    }

    #[test]
    fn a_branch_equals_a_run_of_its_own() {
        let model = Arc::new(demo::load().unwrap());
        let mut all: Vec<Settings> = registry::of_kind(Kind::Evict)
            .map(|entry| match entry.name {
                "full" => "full".into(),
                "snapkv" | "pyramidkv" => format!("{}:budget=24,window=8", entry.name),
                "nacl" => "nacl:budget=24,window=8".into(),
                name => format!("{name}:budget=24"),
            })
            .chain(["h2o:budget=24+adakv".into()])
            .map(|policy: String| settings(&policy, "", "f32"))
            .collect();
        all.push(settings("full", "kcache:n=4,l=1", "f32"));
        all.push(settings("h2o:budget=24", "kcache:n=4,l=1", "f32"));
        all.push(settings("h2o:budget=24", "quest:budget=16,page=4", "f32"));
        all.push(settings("full", "infllm:local=16,init=0,block=16,topk=1,cache=2", "f32"));
        all.push(settings("h2o:budget=24", "", "int8"));
        all.push(settings("full", "", "int4"));
        all.push(settings("h2o:budget=24", "", "nuq4"));
        for merge in ["cam:m=4", "d2o"] {
            all.push(Settings { merge: merge.into(), ..settings("h2o:budget=24", "", "f32") });
        }
        all.push(Settings { merge: "minicache".into(), ..settings("full", "", "f32") });
        let lesson = model.tokenizer.encode_continuation(" What is the pass").unwrap();
        let groups = Trunk::groups(&model, &all).unwrap();
        assert!(groups.len() < all.len() / 2, "{groups:?}");
        assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), all.len());
        for group in groups {
            let members: Vec<&Settings> = group.iter().map(|&i| &all[i]).collect();
            let trunk = Trunk::new(Arc::clone(&model), &members, &prompt(), &lesson).unwrap();
            for settings in members {
                let mut alone = Engine::new(Arc::clone(&model), settings, &prompt()).unwrap();
                alone.teach(&lesson);
                let forked = ending(trunk.branch(settings).unwrap().0);
                assert_eq!(
                    forked,
                    ending(alone),
                    "{} {} {}",
                    settings.policy,
                    settings.read,
                    settings.kv_dtype
                );
            }
        }
    }

    #[test]
    fn what_a_trunk_was_not_made_for_is_refused() {
        let model = Arc::new(demo::load().unwrap());
        let full = settings("full", "", "f32");
        let trunk = Trunk::new(Arc::clone(&model), &[&full], &prompt(), &[]).unwrap();
        for other in [settings("h2o:budget=24", "", "f32"), settings("full", "", "f16")] {
            let refused = trunk.branch(&other).err().expect("it needs what was not kept");
            assert!(refused.is_input(), "{refused}");
            assert!(
                Trunk::new(Arc::clone(&model), &[&full, &other], &prompt(), &[]).is_ok()
                    == (other.kv_dtype == "f32")
            );
        }
        let too_small = settings("streaming:budget=2,reposition=false", "", "f32");
        assert!(matches!(trunk.branch(&too_small), Err(EngineError::Spec(_))));
        let windows = [
            settings("snapkv:budget=24,window=8", "", "f32"),
            settings("snapkv:budget=24,window=4", "", "f32"),
        ];
        assert_eq!(Trunk::groups(&model, &windows).unwrap().len(), 2);
    }
}
