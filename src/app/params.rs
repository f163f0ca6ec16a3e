//! The parameter panel: what can be tuned, made from the policies' own parameter tables.
//!
//! No policy is known here by name. Rows are a policy choice and its parameters, the wrappers that the registry has for
//! it with theirs, a read set choice and its parameters, the page type, and the run's own settings, which have tables of
//! the same shape. A change is a new value of [`Tunable`]; undo and
//! redo swap whole values.

use super::line_edit::LineEdit;
use crate::cache::KvDtype;
use crate::event::Settings;
use crate::policy::registry::{Entry, of_kind, wrappers};
use crate::policy::spec::Spec;
use crate::policy::{Kind, Param, ParamKind, Value};

/// Changes that can be undone.
const MAX_UNDO: usize = 256;
/// What the choice of a read set and a pace call "none".
const OFF: &str = "off";
/// A wrapper that is there.
const ON: &str = "on";

/// Everything the panel can change.
#[derive(Clone, Debug, PartialEq)]
pub struct Tunable {
    /// The run's settings.
    pub settings: Settings,
    /// Steps per second; `None` is as fast as it goes.
    pub pace: Option<f64>,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The command line, or the recording's run.
    CommandLine,
    /// Changed here.
    ByHand,
}

impl Origin {
    /// The words shown.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::CommandLine => "command line",
            Self::ByHand => "by hand",
        }
    }
}

/// One thing to turn.
#[derive(Clone, Copy, Debug)]
pub(super) enum Knob {
    /// Which rule of a kind.
    Rule(Kind),
    /// A parameter of the rule.
    RuleParam(Kind, &'static Param),
    /// Whether a wrapper stands behind the rule.
    Wrapper(&'static Entry),
    /// Type of the cache's pages.
    PageType,
    /// A setting of the run.
    Setting(&'static Setting),
}

/// A setting of the run beside the rules.
#[derive(Debug)]
pub(super) struct Setting {
    param: Param,
    get: fn(&Tunable) -> String,
    set: fn(&mut Tunable, Value),
}

const fn setting(
    param: (&'static str, ParamKind, Value, &'static str),
    (fine, coarse): (f64, f64),
    live: bool,
    get: fn(&Tunable) -> String,
    set: fn(&mut Tunable, Value),
) -> Setting {
    let (name, kind, default, doc) = param;
    Setting { param: Param { name, kind, default, doc, fine, coarse, live, headline: false }, get, set }
}

const fn whole(min: u32, max: u32) -> ParamKind {
    ParamKind::Int { min, max }
}

/// Named as on the command line.
static SETTINGS: &[Setting] = &[
    setting(
        ("chunk", whole(1, 1 << 20), Value::Int(64), "most prompt tokens per step"),
        (1.0, 16.0),
        false,
        |t| t.settings.chunk.to_string(),
        |t, v| t.settings.chunk = int(v),
    ),
    setting(
        (
            "compress",
            ParamKind::Choice(&["prompt", "context"]),
            Value::Choice("prompt"),
            "the span compressed before decoding",
        ),
        (1.0, 1.0),
        false,
        |t| t.settings.compress.clone(),
        |t, v| t.settings.compress = v.to_string(),
    ),
    setting(
        ("block-size", whole(1, 1024), Value::Int(16), "slots per block"),
        (1.0, 8.0),
        false,
        |t| t.settings.block_size.to_string(),
        |t, v| t.settings.block_size = int(v),
    ),
    setting(
        (
            "temperature",
            ParamKind::Real { min: 0.0, max: 5.0 },
            Value::Real(0.0),
            "sampling temperature; 0 takes the likeliest token",
        ),
        (0.05, 0.25),
        false,
        |t| t.settings.temperature.to_string(),
        |t, v| t.settings.temperature = real(v),
    ),
    setting(
        ("max-tokens", whole(1, 1 << 24), Value::Int(128), "most tokens to generate"),
        (1.0, 16.0),
        false,
        |t| t.settings.max_tokens.to_string(),
        |t, v| t.settings.max_tokens = int(v),
    ),
    setting(
        (
            "link",
            ParamKind::Real { min: 0.01, max: 10_000.0 },
            Value::Real(25.0),
            "modelled link between host and device, GB/s",
        ),
        (1.0, 10.0),
        false,
        |t| t.settings.link_gbps.to_string(),
        |t, v| t.settings.link_gbps = real(v),
    ),
    setting(
        (
            "pace",
            ParamKind::Real { min: MIN_PACE, max: MAX_PACE },
            Value::Real(DEFAULT_PACE),
            "steps per second that a person can watch; off is as fast as it goes",
        ),
        (1.0, 8.0),
        true,
        |t| t.pace.map_or_else(|| OFF.to_owned(), |p| p.to_string()),
        |t, v| t.pace = Some(real(v)),
    ),
];

/// Slowest pace, steps per second.
pub const MIN_PACE: f64 = 0.125;
/// Fastest pace, steps per second.
pub const MAX_PACE: f64 = 4096.0;
/// Pace of the demo, and of Backspace.
pub const DEFAULT_PACE: f64 = 8.0;

fn page_type(spelled: &str) -> KvDtype {
    spelled.parse().unwrap_or_default()
}

fn int(value: Value) -> u32 {
    if let Value::Int(v) = value { v } else { 0 }
}

fn real(value: Value) -> f64 {
    if let Value::Real(v) = value { v } else { 0.0 }
}

fn spec_text(kind: Kind, settings: &Settings) -> &str {
    match kind {
        Kind::Evict => &settings.policy,
        Kind::Read => &settings.read,
        Kind::Merge => &settings.merge,
    }
}

fn set_spec_text(kind: Kind, settings: &mut Settings, text: String) {
    match kind {
        Kind::Evict => settings.policy = text,
        Kind::Read => settings.read = text,
        Kind::Merge => settings.merge = text,
    }
}

/// The rule in force and its values; `None` where there is none.
fn spec(kind: Kind, settings: &Settings) -> Option<Spec> {
    Spec::parse(kind, spec_text(kind, settings)).ok()
}

impl Knob {
    /// Everything that can be turned with the present rules.
    pub(super) fn all(settings: &Settings) -> Vec<Self> {
        let mut knobs = Vec::new();
        for kind in Kind::ALL {
            knobs.push(Self::Rule(kind));
            let Some(spec) = spec(kind, settings) else { continue };
            let own =
                |entry: &'static Entry| entry.params.iter().map(move |param| Self::RuleParam(kind, param));
            knobs.extend(own(spec.entry()));
            // In the order of the registry, present or not: a row stays where it is while it is turned.
            for entry in wrappers().filter(|entry| entry.kind() == kind) {
                knobs.push(Self::Wrapper(entry));
                if has(&spec, entry) {
                    knobs.extend(own(entry));
                }
            }
        }
        knobs.push(Self::PageType);
        knobs.extend(SETTINGS.iter().map(Self::Setting));
        knobs
    }

    /// Name, as on the command line; of a rule's parameter without the rule.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rule(kind) => kind.flag(),
            Self::RuleParam(_, param) => param.name,
            Self::Wrapper(entry) => entry.name,
            Self::PageType => "kv-dtype",
            Self::Setting(s) => s.param.name,
        }
    }

    /// Whether a change can take effect in a running run.
    pub(super) const fn live(self) -> bool {
        match self {
            Self::Rule(_) | Self::Wrapper(_) | Self::PageType => false,
            Self::RuleParam(_, param) => param.live,
            Self::Setting(s) => s.param.live,
        }
    }

    /// The pace has a command of its own, and is part of no run.
    pub(super) fn is_pace(self) -> bool {
        self.name() == "pace"
    }

    pub(super) fn get(self, t: &Tunable) -> String {
        match self {
            Self::Rule(kind) => spec(kind, &t.settings).map_or_else(|| OFF.to_owned(), |s| s.names()),
            Self::RuleParam(kind, param) => {
                let value = spec(kind, &t.settings).and_then(|s| s.get(param.name));
                value.map_or_else(String::new, |v| v.to_string())
            }
            Self::Wrapper(entry) => {
                let present = spec(entry.kind(), &t.settings).is_some_and(|spec| has(&spec, entry));
                if present { ON } else { OFF }.to_owned()
            }
            Self::PageType => page_type(&t.settings.kv_dtype).to_string(),
            Self::Setting(s) => (s.get)(t),
        }
    }

    /// Sets a value written as on the command line; one clear line when it is refused.
    pub(super) fn set(self, t: &mut Tunable, text: &str) -> Result<(), String> {
        match self {
            Self::Rule(kind) => {
                let chosen = choose(kind, &t.settings, text)?;
                set_spec_text(kind, &mut t.settings, chosen);
            }
            Self::RuleParam(kind, param) => {
                let mut spec = Spec::parse(kind, spec_text(kind, &t.settings)).map_err(|e| e.to_string())?;
                spec.set(param.name, text).map_err(|e| e.to_string())?;
                set_spec_text(kind, &mut t.settings, spec.to_string());
            }
            Self::Wrapper(entry) => {
                let kind = entry.kind();
                let chosen = wrap(kind, &t.settings, entry, text)?;
                set_spec_text(kind, &mut t.settings, chosen);
            }
            Self::PageType => {
                let before = page_type(&t.settings.kv_dtype);
                let chosen: KvDtype = text.parse().map_err(|what| format!("kv-dtype: {what}"))?;
                // A bare name says nothing about the parameters: those there were stay.
                let chosen = if text == chosen.name() { chosen.taking_over(before) } else { chosen };
                // The usual block size goes along, one that was chosen stays.
                if t.settings.block_size == before.usual_block_size() {
                    t.settings.block_size = chosen.usual_block_size();
                }
                t.settings.kv_dtype = chosen.to_string();
            }
            Self::Setting(_) if self.is_pace() && text == OFF => t.pace = None,
            Self::Setting(s) => {
                let Some(value) = s.param.kind.parse(text) else {
                    let (name, range) = (s.param.name, s.param.kind.range());
                    return Err(format!("{name}: '{text}' is out of range: use {range}"));
                };
                (s.set)(t, value);
            }
        }
        Ok(())
    }

    /// The value `by` steps away.
    pub(super) fn nudged(self, t: &Tunable, by: i32, coarse: bool) -> String {
        let now = self.get(t);
        match self {
            Self::Rule(kind) => {
                let base = now.split('+').next().unwrap_or_default();
                neighbour(&choices(kind), base, by).to_owned()
            }
            Self::Wrapper(_) => neighbour(&[OFF, ON], &now, by).to_owned(),
            Self::PageType => {
                neighbour(&KvDtype::NAMES, page_type(&t.settings.kv_dtype).name(), by).to_owned()
            }
            Self::RuleParam(_, param) => nudge(param, &now, by, coarse),
            Self::Setting(s) => nudge(&s.param, &now, by, coarse),
        }
    }

    fn range(self) -> String {
        match self {
            Self::Rule(kind) => choices(kind).join(" or "),
            Self::Wrapper(_) => format!("{OFF} or {ON}"),
            Self::PageType => KvDtype::NAMES.join(" or "),
            Self::RuleParam(_, param) => param.kind.range(),
            Self::Setting(s) => s.param.kind.range(),
        }
    }

    fn doc(self, t: &Tunable) -> &'static str {
        match self {
            Self::Rule(kind) => match (spec(kind, &t.settings), kind) {
                (Some(spec), _) => spec.entry().doc,
                (None, Kind::Evict) => "which rule decides what is lost",
                (None, Kind::Read) => "which rule decides what is read; nothing is lost by it",
                (None, Kind::Merge) => "which rule merges rows; what it merges is altered, not lost",
            },
            Self::Wrapper(entry) => entry.doc,
            Self::PageType => "type of the cache's pages",
            Self::RuleParam(_, param) => param.doc,
            Self::Setting(s) => s.param.doc,
        }
    }

    fn default_value(self) -> String {
        match self {
            Self::Rule(Kind::Evict) => Settings::default().policy,
            Self::Rule(_) | Self::Wrapper(_) => OFF.to_owned(),
            Self::PageType => KvDtype::default().to_string(),
            Self::RuleParam(_, param) => param.default.to_string(),
            Self::Setting(s) => s.param.default.to_string(),
        }
    }
}

/// The choice `by` places away, round and round.
fn neighbour<'n>(names: &[&'n str], now: &str, by: i32) -> &'n str {
    let here = names.iter().position(|name| *name == now).unwrap_or(0) as i64;
    names[(here + i64::from(by)).rem_euclid(names.len() as i64) as usize]
}

fn nudge(param: &Param, now: &str, by: i32, coarse: bool) -> String {
    let value = param.kind.parse(now).unwrap_or(param.default);
    param.nudge(value, by, coarse).to_string()
}

/// Names to choose from.
fn choices(kind: Kind) -> Vec<&'static str> {
    let none = (kind != Kind::Evict).then_some(OFF);
    none.into_iter().chain(of_kind(kind).map(|e| e.name)).collect()
}

/// The spelling of another rule; it takes over the parameters that both rules have, such as the budget, and the
/// wrappers. With `+NAME` it also says which wrappers there are.
fn choose(kind: Kind, settings: &Settings, text: &str) -> Result<String, String> {
    if kind != Kind::Evict && text == OFF {
        return Ok(String::new());
    }
    let mut chosen = Spec::parse(kind, text).map_err(|e| e.to_string())?;
    if text.contains([':', '+']) {
        return Ok(chosen.to_string());
    }
    if let Some(before) = spec(kind, settings) {
        // What nobody changed is left to the new rule's own defaults.
        let changed = before.parts()[0].params().filter(|(param, value)| *value != param.default);
        for (param, value) in changed {
            // A parameter that the new rule lacks, or takes other values for, keeps its default.
            let _ = chosen.set(param.name, &value.to_string());
        }
        for wrapper in &before.parts()[1..] {
            // So does a wrapper that the new rule does not take.
            if let Ok(wrapped) = Spec::parse(kind, &format!("{chosen}+{wrapper}")) {
                chosen = wrapped;
            }
        }
    }
    Ok(chosen.to_string())
}

/// Whether a wrapper stands behind the rule.
fn has(spec: &Spec, wrapper: &Entry) -> bool {
    spec.parts()[1..].iter().any(|part| part.entry().name == wrapper.name)
}

/// The spelling with a wrapper, or without it; the reason where they do not go together.
fn wrap(kind: Kind, settings: &Settings, wrapper: &Entry, text: &str) -> Result<String, String> {
    let now = Spec::parse(kind, spec_text(kind, settings)).map_err(|e| e.to_string())?;
    match (text, has(&now, wrapper)) {
        (ON, false) => Spec::parse(kind, &format!("{now}+{}", wrapper.name))
            .map(|spec| spec.to_string())
            .map_err(|e| e.to_string()),
        (OFF, true) => {
            let others = now.parts().iter().filter(|part| part.entry().name != wrapper.name);
            Ok(others.map(ToString::to_string).collect::<Vec<_>>().join("+"))
        }
        (ON | OFF, _) => Ok(now.to_string()),
        _ => Err(format!("{}: '{text}' is neither {OFF} nor {ON}", wrapper.name)),
    }
}

/// A row of the panel.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamRow {
    /// Parameter, as on the command line.
    pub name: &'static str,
    /// Belongs to the choice above it.
    pub indented: bool,
    /// Puts a wrapper behind the rule.
    pub wraps: bool,
    /// Present value.
    pub value: String,
    /// Value at the start of the program.
    pub baseline: String,
    /// Where the present value comes from.
    pub origin: Origin,
    /// Values it takes, in words.
    pub range: String,
    /// One line about it.
    pub doc: &'static str,
    /// In force at once; otherwise from the next re-run.
    pub live: bool,
    /// Set by hand and not in force before a re-run.
    pub waiting: bool,
}

/// The panel: its rows, the selected one, the value being typed, and what can be undone.
#[derive(Clone, Debug)]
pub struct ParamPanel {
    /// What the program was started with.
    pub(super) baseline: Tunable,
    /// The rows.
    pub rows: Vec<ParamRow>,
    /// Index into `rows`.
    pub selected: usize,
    /// The value being typed.
    pub edit: Option<LineEdit>,
    /// Why the last value was refused; one line.
    pub error: Option<String>,
    undo: Vec<Tunable>,
    redo: Vec<Tunable>,
    /// By-hand values that Space has put aside, by name.
    aside: Vec<(&'static str, String)>,
}

impl ParamPanel {
    pub(super) fn new(baseline: Tunable) -> Self {
        let mut panel = Self {
            rows: Vec::new(),
            selected: 0,
            edit: None,
            error: None,
            undo: Vec::new(),
            redo: Vec::new(),
            aside: Vec::new(),
            baseline,
        };
        let now = panel.baseline.clone();
        panel.refresh(&now, None);
        panel
    }

    /// Rows anew. `in_force` are the engine's own values.
    pub(super) fn refresh(&mut self, now: &Tunable, in_force: Option<&Tunable>) {
        self.rows = Knob::all(&now.settings)
            .into_iter()
            .map(|knob| {
                let value = knob.get(now);
                let baseline = knob.get(&self.baseline);
                let live = knob.live() && in_force.is_none_or(|f| same_rule(knob, f, now));
                let origin = if value != baseline {
                    Origin::ByHand
                } else if value == knob.default_value() {
                    Origin::Default
                } else {
                    Origin::CommandLine
                };
                ParamRow {
                    name: knob.name(),
                    indented: matches!(knob, Knob::RuleParam(..) | Knob::Wrapper(_)),
                    wraps: matches!(knob, Knob::Wrapper(_)),
                    waiting: !knob.is_pace() && in_force.is_some_and(|f| knob.get(f) != value),
                    baseline,
                    origin,
                    range: knob.range(),
                    doc: knob.doc(now),
                    live,
                    value,
                }
            })
            .collect();
        self.selected = self.selected.min(self.rows.len().saturating_sub(1));
    }

    /// The selected knob.
    pub(super) fn knob(&self, now: &Tunable) -> Option<Knob> {
        Knob::all(&now.settings).get(self.selected).copied()
    }

    /// Remembers the value before a change.
    pub(super) fn remember(&mut self, before: Tunable) {
        if self.undo.len() == MAX_UNDO {
            self.undo.remove(0);
        }
        self.undo.push(before);
        self.redo.clear();
    }

    /// The value before the last change, `now` going to the redo side; `None` when there is none.
    pub(super) fn undo(&mut self, now: &Tunable) -> Option<Tunable> {
        let before = self.undo.pop()?;
        self.redo.push(now.clone());
        Some(before)
    }

    /// The value that was undone last.
    pub(super) fn redo(&mut self, now: &Tunable) -> Option<Tunable> {
        let after = self.redo.pop()?;
        self.undo.push(now.clone());
        Some(after)
    }

    /// Space: the baseline's value if the knob has another one, else the one put aside before.
    pub(super) fn other_side(&mut self, knob: Knob, now: &Tunable) -> Option<String> {
        let (value, baseline) = (knob.get(now), knob.get(&self.baseline));
        let aside = self.aside.iter().position(|(name, _)| *name == knob.name());
        if value == baseline {
            return aside.map(|i| self.aside[i].1.clone());
        }
        match aside {
            Some(i) => self.aside[i].1 = value,
            None => self.aside.push((knob.name(), value)),
        }
        Some(baseline)
    }
}

/// A rule's parameter can be tuned live only while the run under way has that rule.
pub(super) fn same_rule(knob: Knob, run: &Tunable, now: &Tunable) -> bool {
    match knob {
        Knob::RuleParam(kind, _) => Knob::Rule(kind).get(run) == Knob::Rule(kind).get(now),
        _ => true,
    }
}

/// The budget in slots, where the policy has one; no bound is the largest number.
pub(super) fn budget_slots(settings: &Settings, prompt_tokens: u32) -> Option<u32> {
    spec(Kind::Evict, settings)?.budget().map(|b| b.slots(prompt_tokens).unwrap_or(u32::MAX))
}
