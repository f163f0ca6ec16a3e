//! Parameters: what a policy lets a person turn, and how the values are written.

use std::fmt;

/// Slots that may stay resident, per (layer, KV head) unless the policy says otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// So many slots, at least 1: `512`.
    Slots(u32),
    /// A share of the prompt, above 0 and up to 100: `25%`. See [`Budget::slots`].
    Percent(f32),
}

impl Budget {
    /// `100%`: nothing is ever lost.
    pub const ALL: Self = Self::Percent(100.0);

    /// The budget in slots for a prompt of `prompt_len` tokens; `None` means no bound.
    ///
    /// A percentage is rounded to the nearest slot (halves up) and is at least 1. `100%` means everything, generated
    /// tokens included: a policy at `100%` equals the full cache, and lowering it is a person's act.
    pub fn slots(self, prompt_len: u32) -> Option<u32> {
        match self {
            Self::Slots(slots) => Some(slots),
            Self::Percent(percent) if percent >= 100.0 => None,
            Self::Percent(percent) => {
                let share = f64::from(percent) / 100.0 * f64::from(prompt_len);
                Some((share.round() as u32).max(1))
            }
        }
    }

    /// The same before rounding.
    pub(super) fn exact(self, prompt_len: u32) -> f64 {
        match self {
            Self::Slots(slots) => f64::from(slots),
            Self::Percent(percent) => f64::from(percent) / 100.0 * f64::from(prompt_len),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix('%') {
            Some(percent) => {
                let percent: f32 = percent.trim_end().parse().ok()?;
                (percent > 0.0 && percent <= 100.0).then_some(Self::Percent(percent))
            }
            None => text.parse().ok().filter(|&slots| slots > 0).map(Self::Slots),
        }
    }

    fn moved(self, by: f64) -> Self {
        match self {
            Self::Slots(slots) => Self::Slots((f64::from(slots) + by).clamp(1.0, f64::from(u32::MAX)) as u32),
            Self::Percent(percent) => {
                let lowest = percent.min(1.0);
                Self::Percent((percent + by as f32).clamp(lowest, 100.0))
            }
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slots(slots) => write!(f, "{slots}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// The value of a parameter. Prints as it is written on the command line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Int(u32),
    /// A finite number.
    Real(f64),
    /// A switch.
    Bool(bool),
    /// A number of slots.
    Budget(Budget),
    /// One of the words of [`ParamKind::Choice`].
    Choice(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(value) => value.fmt(f),
            Self::Real(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::Budget(value) => value.fmt(f),
            Self::Choice(value) => value.fmt(f),
        }
    }
}

/// The type and range of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ParamKind {
    /// A whole number, bounds included.
    Int {
        /// Lowest.
        min: u32,
        /// Highest.
        max: u32,
    },
    /// A number, bounds included.
    Real {
        /// Lowest.
        min: f64,
        /// Highest.
        max: f64,
    },
    /// `true` or `false`.
    Bool,
    /// A [`Budget`].
    Budget,
    /// One of these words.
    Choice(&'static [&'static str]),
}

impl ParamKind {
    /// Reads a value; `None` if it is not one of this kind or out of range. [`ParamKind::range`] says what would be.
    pub fn parse(self, text: &str) -> Option<Value> {
        match self {
            Self::Int { min, max } => {
                text.parse().ok().filter(|value| (min..=max).contains(value)).map(Value::Int)
            }
            Self::Real { min, max } => {
                // Adding 0 turns -0 into 0, so that equal values print alike.
                text.parse()
                    .ok()
                    .filter(|value| (min..=max).contains(value))
                    .map(|v: f64| Value::Real(v + 0.0))
            }
            Self::Bool => text.parse().ok().map(Value::Bool),
            Self::Budget => Budget::parse(text).map(Value::Budget),
            Self::Choice(words) => words.iter().find(|&&word| word == text).map(|&word| Value::Choice(word)),
        }
    }

    /// The values it takes, in words: `a whole number from 1 to 64`.
    pub fn range(self) -> String {
        match self {
            Self::Int { min, max: u32::MAX } => format!("a whole number of at least {min}"),
            Self::Int { min, max } => format!("a whole number from {min} to {max}"),
            Self::Real { min, max } => format!("a number from {min} to {max}"),
            Self::Bool => "true or false".into(),
            Self::Budget => {
                "slots (at least 1) or a share of the prompt (above 0%; 100% keeps everything)".into()
            }
            Self::Choice(words) => words.join(" or "),
        }
    }
}

/// `when=prompt`: the first decision is at the end of the prompt.
pub(super) const PROMPT: &str = "prompt";
/// `when=chunk`: a decision follows each chunk of the prompt too.
pub(super) const CHUNK: &str = "chunk";

/// A parameter as it is declared: drives command line, tuner and help.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Param {
    /// Name on the command line; that of a wrapper's parameter has the wrapper's name before it, `adakv.floor`, which
    /// may be left out behind the wrapper itself.
    pub name: &'static str,
    /// Type and range.
    pub kind: ParamKind,
    /// Value when it is not given.
    pub default: Value,
    /// One line of help.
    pub doc: &'static str,
    /// Small step of the tuner, in the parameter's unit (percentage points or slots for a budget).
    pub fine: f64,
    /// Large step of the tuner.
    pub coarse: f64,
    /// Whether a change takes effect at the next decision; otherwise the prompt must be run again.
    pub live: bool,
    /// Whether it sizes the policy: printed even at its default, and the first that the tuner offers.
    pub headline: bool,
}

impl Param {
    const fn new(name: &'static str, kind: ParamKind, default: Value, doc: &'static str) -> Self {
        Self { name, kind, default, doc, fine: 1.0, coarse: 1.0, live: false, headline: false }
    }

    /// The `budget` every evictor has: live, headline, all of the cache by default.
    pub(super) const fn budget(doc: &'static str) -> Self {
        Self::new("budget", ParamKind::Budget, Value::Budget(Budget::ALL), doc)
            .steps(1.0, 10.0)
            .live()
            .headline()
    }

    /// The `when` of policies that can also act inside the prompt: [`PROMPT`] or [`CHUNK`].
    pub(super) const fn when(default: &'static str) -> Self {
        Self::new(
            "when",
            ParamKind::Choice(&[PROMPT, CHUNK]),
            Value::Choice(default),
            "first decision: at the end of the prompt, or after each chunk of it (which bounds memory)",
        )
    }

    /// The `by` of rules that leave the granularity to the user.
    pub(super) const fn by(default: &'static str) -> Self {
        Self::new(
            "by",
            ParamKind::Choice(&["head", "layer", "page"]),
            Value::Choice(default),
            "who decides: each KV head, the layer for all its heads, or the layer in whole pages",
        )
    }

    /// The `decode` of rules that their sources apply to the prompt alone.
    pub(super) const fn decode(default: bool) -> Self {
        Self::switch(
            "decode",
            default,
            "also decide after every generated token; off lets the cache grow by them",
        )
    }

    /// The `variant` of rules of which several versions are in use.
    pub(super) const fn variant(words: &'static [&'static str], doc: &'static str) -> Self {
        Self::new("variant", ParamKind::Choice(words), Value::Choice(words[0]), doc)
    }

    pub(super) const fn choice(
        name: &'static str,
        words: &'static [&'static str],
        default: &'static str,
        doc: &'static str,
    ) -> Self {
        Self::new(name, ParamKind::Choice(words), Value::Choice(default), doc)
    }

    /// The name within its own rule: that of a wrapper's parameter without the wrapper's.
    pub fn short(&self) -> &'static str {
        self.name.rsplit_once('.').map_or(self.name, |(_, short)| short)
    }

    pub(super) const fn int(
        name: &'static str,
        (min, max): (u32, u32),
        default: u32,
        doc: &'static str,
    ) -> Self {
        Self::new(name, ParamKind::Int { min, max }, Value::Int(default), doc)
    }

    pub(super) const fn real(
        name: &'static str,
        (min, max): (f64, f64),
        default: f64,
        doc: &'static str,
    ) -> Self {
        Self::new(name, ParamKind::Real { min, max }, Value::Real(default), doc)
    }

    pub(super) const fn switch(name: &'static str, default: bool, doc: &'static str) -> Self {
        Self::new(name, ParamKind::Bool, Value::Bool(default), doc)
    }

    pub(super) const fn steps(mut self, fine: f64, coarse: f64) -> Self {
        self.fine = fine;
        self.coarse = coarse;
        self
    }

    pub(super) const fn live(mut self) -> Self {
        self.live = true;
        self
    }

    pub(super) const fn headline(mut self) -> Self {
        self.headline = true;
        self
    }

    /// The value `by` tuner steps away, fine or coarse, inside the range. A switch flips and a choice goes round, once
    /// per step. Percentages stop at 1 (or where they are, if lower).
    pub fn nudge(&self, value: Value, by: i32, coarse: bool) -> Value {
        let delta = f64::from(by) * if coarse { self.coarse } else { self.fine };
        match (self.kind, value) {
            (ParamKind::Int { min, max }, Value::Int(v)) => {
                Value::Int((f64::from(v) + delta).clamp(f64::from(min), f64::from(max)) as u32)
            }
            (ParamKind::Real { min, max }, Value::Real(v)) => {
                // Six decimals: steps such as 0.05 must not leave 0.30000000000000004 behind.
                Value::Real((((v + delta) * 1e6).round() / 1e6).clamp(min, max))
            }
            (ParamKind::Bool, Value::Bool(v)) => Value::Bool(v ^ (by % 2 != 0)),
            (ParamKind::Budget, Value::Budget(v)) => Value::Budget(v.moved(delta)),
            (ParamKind::Choice(words), Value::Choice(v)) => {
                let here = words.iter().position(|&word| word == v).unwrap_or(0) as i64;
                Value::Choice(words[(here + i64::from(by)).rem_euclid(words.len() as i64) as usize])
            }
            _ => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_reads_slots_and_percentages() {
        let budget = |text| ParamKind::Budget.parse(text);
        assert_eq!(budget("512"), Some(Value::Budget(Budget::Slots(512))));
        assert_eq!(budget("12.5%"), Some(Value::Budget(Budget::Percent(12.5))));
        assert_eq!(budget("100%"), Some(Value::Budget(Budget::ALL)));
        for text in ["0", "0%", "-1", "-5%", "101%", "nan%", "inf%", "", "%", "1.5", "4294967296", "ten"] {
            assert_eq!(budget(text), None, "{text}");
        }
    }

    #[test]
    fn percentages_round_to_the_nearest_slot_and_never_to_none() {
        assert_eq!(Budget::Percent(25.0).slots(1000), Some(250));
        assert_eq!(Budget::Percent(33.3).slots(1000), Some(333));
        assert_eq!(Budget::Percent(50.0).slots(5), Some(3));
        assert_eq!(Budget::Percent(0.1).slots(10), Some(1));
        assert_eq!(Budget::Percent(50.0).slots(0), Some(1));
        assert_eq!(Budget::ALL.slots(10), None);
        assert_eq!(Budget::Slots(7).slots(3), Some(7));
    }

    #[test]
    fn nudging_stays_in_range_and_prints_cleanly() {
        let real = Param::real("x", (0.0, 1.0), 0.1, "").steps(0.1, 0.5);
        assert_eq!(real.nudge(Value::Real(0.1), 2, false).to_string(), "0.3");
        assert_eq!(real.nudge(Value::Real(0.9), 1, true), Value::Real(1.0));
        let int = Param::int("n", (1, 8), 4, "").steps(1.0, 4.0);
        assert_eq!(int.nudge(Value::Int(4), -1, true), Value::Int(1));
        let budget = Param::budget("");
        assert_eq!(budget.nudge(Value::Budget(Budget::ALL), -1, true).to_string(), "90%");
        assert_eq!(budget.nudge(Value::Budget(Budget::Percent(0.5)), -1, false).to_string(), "0.5%");
        assert_eq!(budget.nudge(Value::Budget(Budget::Slots(3)), -1, true).to_string(), "1");
        let choice = Param::when("prompt");
        assert_eq!(choice.nudge(Value::Choice("prompt"), -1, false), Value::Choice("chunk"));
        assert_eq!(Param::switch("s", true, "").nudge(Value::Bool(true), 1, false), Value::Bool(false));
    }

    #[test]
    fn minus_zero_is_zero() {
        assert_eq!(
            ParamKind::Real { min: 0.0, max: 1.0 }.parse("-0").map(|v| v.to_string()),
            Some("0".into())
        );
    }
}
