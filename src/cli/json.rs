//! JSON lines on standard output.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;

use super::{Failure, output};
use crate::event::Step;
use crate::state::Summary;

/// Prints `{"step":…}`: the step as recorded, its decisions put back in; attention pictures are in recordings only.
pub(super) fn print_step(out: &mut impl Write, step: &Step) -> Result<(), Failure> {
    let mut value = serde_json::to_value(step).map_err(Failure::fault)?;
    if let Some(parts) = value.get_mut("seqs").and_then(Value::as_array_mut) {
        for (part, seq) in parts.iter_mut().zip(&step.seqs) {
            if let Value::Object(fields) = part
                && !seq.evictions.is_empty()
            {
                let evictions = serde_json::to_value(&seq.evictions).map_err(Failure::fault)?;
                fields.insert("evictions".into(), evictions);
            }
            if let (Some(Value::Object(shadow)), Some(told)) = (part.get_mut("shadow"), &seq.shadow)
                && !told.victims.is_empty()
            {
                let victims = serde_json::to_value(&told.victims).map_err(Failure::fault)?;
                shadow.insert("victims".into(), victims);
            }
        }
    }
    print(out, &serde_json::json!({ "step": value }))
}

/// Prints `{"summary":…}`.
pub(super) fn print_summary(out: &mut impl Write, summary: &Summary) -> Result<(), Failure> {
    print(out, &serde_json::json!({ "summary": summary }))
}

/// Prints one object on one line. Characters that a terminal may obey are escaped, also those JSON would let through.
pub(super) fn print(out: &mut impl Write, value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(Failure::fault)?;
    writeln!(out, "{}", harmless(&text)).map_err(|e| output(&e))
}

/// The same for a list of facts, to standard output.
pub(super) fn print_facts(value: &impl Serialize) -> Result<(), Failure> {
    print(&mut io::stdout().lock(), value)
}

/// Outside of strings JSON has only ASCII, so what is escaped here is always inside of one.
fn harmless(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        let hidden = matches!(c, '\u{7f}'..='\u{9f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        if hidden {
            out.extend(format!("\\u{:04x}", c as u32).chars());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_a_terminal_obeys_is_escaped_and_comes_back() {
        let text = "a\u{9b}31m\u{202e}b\x1b[2J";
        let json = super::harmless(&serde_json::to_string(text).unwrap());
        assert!(json.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
