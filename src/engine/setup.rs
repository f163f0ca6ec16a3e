//! From settings to a run: what is checked before the first token.

use super::backend;
use super::core::Pages;
use super::turns::Talk;
use super::{EngineError, Prompt};
use crate::attention::gpu::Pull;
use crate::cache::{CacheError, KvDtype};
use crate::event::{Has, ModelCard, RunInfo, Settings};
use crate::model::Model;
use crate::policy::{MergeRule, Merging, Policy, ReadSet, Rope, When, parse_merge, parse_policy, parse_read};

/// Largest chunk, batch and block size that make sense; more is a typing mistake.
const MAX_CHUNK: u32 = 65_536;
const MAX_BATCH: u32 = 1_024;

/// Settings, prompt and model brought together.
pub(super) struct Plan {
    pub(super) info: RunInfo,
    pub(super) policy: Policy,
    pub(super) read: Option<ReadSet>,
    pub(super) merge: Option<Merging>,
    pub(super) dtype: KvDtype,
    pub(super) prompt_ids: Vec<u32>,
    /// Leading ids that are compressed before the rest is fed.
    pub(super) context_len: usize,
    /// The conversation, with `--chat`.
    pub(super) talk: Option<Talk>,
}

/// What a run is given to begin with, in tokens.
pub(super) struct Given {
    pub(super) ids: Vec<u32>,
    /// Those of them before the question.
    pub(super) context_len: usize,
    pub(super) talk: Option<Talk>,
}

impl Given {
    fn of(model: &Model, settings: &Settings, prompt: &Prompt) -> Result<Self, EngineError> {
        if settings.chat {
            if !prompt.question.is_empty() {
                return refuse("--chat goes with --prompt alone: say the question in the next turn");
            }
            if settings.batch > 1 {
                return refuse(format!(
                    "--chat with --batch {}: a conversation is one sequence",
                    settings.batch
                ));
            }
            let talk = Talk::begin(model, &prompt.text)?;
            let ids = model.tokenizer.encode_rendered(talk.rendered())?;
            return Ok(Self { context_len: ids.len(), ids, talk: Some(talk) });
        }
        let mut ids = model.tokenizer.encode(&prompt.text)?;
        let context_len = ids.len();
        if !prompt.question.is_empty() {
            ids.extend(model.tokenizer.encode_continuation(&prompt.question)?);
        }
        Ok(Self { ids, context_len, talk: None })
    }
}

/// Whether these settings can run this prompt on this model.
///
/// # Errors
/// One clear line: what is wrong, and what would be right.
pub fn check(model: &Model, settings: &Settings, prompt: &Prompt) -> Result<(), EngineError> {
    Plan::new(model, settings, prompt).map(|_| ())
}

/// Blocks that hold `context` tokens of `batch` sequences in every (layer, KV head).
pub fn pool_blocks(card: &ModelCard, block_size: u32, batch: u32) -> u32 {
    let per_lane = card.context.div_ceil(block_size.max(1));
    per_lane.saturating_mul(card.layers).saturating_mul(card.kv_heads).saturating_mul(batch)
}

fn refuse<T>(why: impl Into<String>) -> Result<T, EngineError> {
    Err(EngineError::Setting(why.into()))
}

impl Plan {
    pub(super) fn new(model: &Model, settings: &Settings, prompt: &Prompt) -> Result<Self, EngineError> {
        Self::with(model, settings, prompt, Given::of(model, settings, prompt)?)
    }

    /// The plan of a run that is given this, whatever text it comes from.
    pub(super) fn with(
        model: &Model,
        settings: &Settings,
        prompt: &Prompt,
        given: Given,
    ) -> Result<Self, EngineError> {
        let card = model.decoder.card();
        check_numbers(settings)?;
        let policy = parse_policy(&settings.policy)?;
        let read = if settings.read.is_empty() { None } else { Some(parse_read(&settings.read)?) };
        let dtype = page_type(settings, card, &policy)?;
        if let Some(read) = &read {
            check_read(read, &policy, dtype, settings.block_size)?;
        }
        let merge = merge_rule(settings, card, &policy, dtype)?;
        backend::check(settings, model.decoder.config(), read.as_ref())?;

        let Given { ids: prompt_ids, context_len: context_end, talk } = given;
        if prompt_ids.is_empty() {
            return refuse("the prompt is empty, and this model has no token to begin with: give --prompt");
        }
        if prompt_ids.len() as u64 > u64::from(card.context) {
            return refuse(format!(
                "the prompt has {} tokens, the context of model '{}' is {}: shorten the prompt",
                prompt_ids.len(),
                card.name,
                card.context
            ));
        }
        policy.check(prompt_ids.len() as u32)?;
        let context_len = match settings.compress.as_str() {
            "prompt" => prompt_ids.len(),
            "context" if prompt.question.is_empty() => {
                return refuse("--compress context needs --question: what is fed after the compression");
            }
            "context" => context_end,
            other => return refuse(format!("--compress {other}: use context or prompt")),
        };

        let mut settings = settings.clone();
        settings.policy = policy.to_string();
        settings.kv_dtype = dtype.to_string();
        settings.read = read.as_ref().map(ToString::to_string).unwrap_or_default();
        settings.merge = merge.as_ref().map(ToString::to_string).unwrap_or_default();
        if !settings.blocks_given {
            settings.blocks = pool_blocks(card, settings.block_size, settings.batch);
        }
        let info = RunInfo {
            tool: concat!("kvista ", env!("CARGO_PKG_VERSION")).into(),
            started_unix_ms: unix_ms(),
            model: card.clone(),
            prompt: prompt.text.clone(),
            question: prompt.question.clone(),
            expected: prompt.expected.clone(),
            prompt_tokens: prompt_ids.len() as u32,
            has: Has {
                decisions: true,
                rows: settings.scores,
                rows_of_full_cache: !evicts(&policy) && merge.is_none(),
            },
            settings,
        };
        Ok(Self { info, policy, read, merge, dtype, prompt_ids, context_len, talk })
    }
}

/// Whether a read set goes with the policy and the pages.
fn check_read(read: &ReadSet, policy: &Policy, dtype: KvDtype, block_size: u32) -> Result<(), EngineError> {
    if let Some(memory) = read.rule().memory() {
        if policy.spec().entry().name != "full" {
            return refuse(format!(
                "--read {read} cuts the context into blocks by position, policy '{policy}' takes positions out: use \
                 --policy full"
            ));
        }
        if !matches!(dtype, KvDtype::F32 | KvDtype::F16) {
            return refuse(format!(
                "--read {read} moves exact rows, not {dtype} pages: use --kv-dtype f32 or f16"
            ));
        }
        let whole = |tokens: u32| tokens.is_multiple_of(block_size);
        if !whole(memory.init) || !whole(memory.block) {
            return refuse(format!(
                "--read {read} moves whole blocks of the cache: use init and block that are multiples of {block_size}, \
                 or another --block-size"
            ));
        }
    }
    if read.rule().needs_rotated_keys() && dtype.keeps_keys_before_rope() {
        return refuse(format!(
            "--read {read} bounds keys after RoPE, {dtype} pages keep them before: use f16, int8 or int4"
        ));
    }
    if read.rule().needs_rotated_keys() && policy.rope() == Rope::Pre {
        return refuse(format!(
            "--read {read} bounds keys after RoPE, policy '{policy}' keeps them before: use a policy that does not \
             rotate anew (streaming:reposition=false)"
        ));
    }
    Ok(())
}

/// The page type asked for, if it goes with blocks, model and policy.
fn page_type(settings: &Settings, card: &ModelCard, policy: &Policy) -> Result<KvDtype, EngineError> {
    let spelled = &settings.kv_dtype;
    let dtype: KvDtype =
        spelled.parse().map_err(|why| EngineError::Setting(format!("--kv-dtype {spelled}: {why}")))?;
    dtype.check(settings.block_size, card.head_dim as usize).map_err(CacheError::from)?;
    if let (KvDtype::Kivi { .. }, Rope::Pre) = (dtype, policy.rope()) {
        return refuse(format!(
            "{dtype} pages group keys after RoPE, policy '{policy}' keeps them before: use int8 or f16, or a policy that \
             does not rotate anew (streaming:reposition=false)"
        ));
    }
    Ok(dtype)
}

/// Whether the policy ever decides.
fn evicts(policy: &Policy) -> bool {
    [When::Chunk, When::EndOfPrompt, When::Token].into_iter().any(|when| policy.acts(when))
}

/// The merge rule asked for, if it goes with policy, pages and model.
fn merge_rule(
    settings: &Settings,
    card: &ModelCard,
    policy: &Policy,
    dtype: KvDtype,
) -> Result<Option<Merging>, EngineError> {
    if settings.merge.is_empty() {
        return Ok(None);
    }
    let merge = parse_merge(&settings.merge)?;
    let name = merge.entry().name;
    if dtype.goes_into_codes_later() {
        return refuse(format!(
            "--merge {name}: rows of {dtype} pages share scales and cannot be altered one by one: use f32, f16 or int8"
        ));
    }
    match merge.rule() {
        MergeRule::Victims(_) if !evicts(policy) => refuse(format!(
            "--merge {name} merges what a policy would lose, and policy '{policy}' keeps everything: name one that \
             evicts, as in --policy h2o:budget=25%"
        )),
        MergeRule::Layers(rule) if rule.pairs(card.layers as u16).next().is_none() => refuse(format!(
            "--merge {merge}: of the {} layers of model '{}' no two lie above that share of the depth: use a lower from=",
            card.layers, card.name
        )),
        _ => Ok(Some(merge)),
    }
}

/// How V rows are to come from the host to a GPU.
pub(super) fn pull(s: &Settings) -> Result<Pull, EngineError> {
    match s.pull.as_str() {
        "gather" => Ok(Pull::Gather),
        "copies" => Ok(Pull::Copies),
        "auto" => Ok(Pull::Fastest),
        other => refuse(format!("--pull {other}: use gather, copies or auto")),
    }
}

/// Whether rows that are pulled can be kept where this run has its pages.
pub(super) fn check_kept(s: &Settings, read: Option<&ReadSet>, pages: Pages) -> Result<(), EngineError> {
    if !s.keep_pulled {
        return Ok(());
    }
    if pages == Pages::OnHost || read.is_none() {
        return refuse(
            "--keep-pulled keeps rows that KCache pulled on a GPU whose pages are there alone: use --device cuda, --read \
             kcache:…, pages of f32, f16 or int8 and a policy that reads no rows, or leave it out",
        );
    }
    if s.pull == "copies" {
        return refuse(
            "--pull copies with --keep-pulled: kept rows are found by the kernel that gathers, use --pull gather",
        );
    }
    Ok(())
}

fn check_numbers(s: &Settings) -> Result<(), EngineError> {
    if s.block_size == 0 || s.block_size > crate::cache::table::MAX_BLOCK_SIZE {
        return refuse(format!(
            "--block-size {}: use 1 to {} slots",
            s.block_size,
            crate::cache::table::MAX_BLOCK_SIZE
        ));
    }
    if s.chunk == 0 || s.chunk > MAX_CHUNK {
        return refuse(format!("--chunk {}: use 1 to {MAX_CHUNK} tokens", s.chunk));
    }
    if s.batch == 0 || s.batch > MAX_BATCH {
        return refuse(format!("--batch {}: use 1 to {MAX_BATCH} sequences", s.batch));
    }
    if s.blocks_given && s.blocks == 0 {
        return refuse(
            "--blocks 0: use at least 1, or leave it out for enough blocks for the model's context",
        );
    }
    if s.shadow > MAX_CHUNK {
        return refuse(format!("--shadow=every:{}: use 1 to {MAX_CHUNK} tokens", s.shadow));
    }
    if s.max_tokens == 0 {
        return refuse("--max-tokens 0: use at least 1");
    }
    if !(s.link_gbps.is_finite() && s.link_gbps > 0.0) {
        return refuse(format!("--link {}: use a speed above 0 GB/s", s.link_gbps));
    }
    pull(s)?;
    if !(s.temperature.is_finite() && s.temperature >= 0.0) {
        return refuse(format!("--temperature {}: use 0 (greedy) or more", s.temperature));
    }
    if !(s.top_p > 0.0 && s.top_p <= 1.0) {
        return refuse(format!("--top-p {}: use more than 0, at most 1", s.top_p));
    }
    if !(s.compact > 0.0 && s.compact <= 1.0) {
        return refuse(format!("--compact {}: use a share above 0, at most 1 (never)", s.compact));
    }
    Ok(())
}

fn unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
