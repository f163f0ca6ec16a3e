//! Figures of constant width, so that digits stay where they are while values change.
//!
//! Every function returns a string of the same number of columns for every value, padded on the left:
//!
//! | | columns | |
//! |---|---|---|
//! | [`count`] | 5 | `  123` `1.23k` `12.3M` |
//! | [`bytes`] | 8 | `1023   B` `12.3 MiB` |
//! | [`duration`] | 7 | ` 123 ns` `1.23 ms` `12.3 s ` |
//! | [`percent`] | 6 | ` 12.3%` `100.0%` |
//! | [`rate`] | 7 | `1.23k/s` |
//! | [`byte_rate`] | 10 | `12.3 MiB/s` |
//! | [`decimal`] | 6 | ` 0.123` `-1.234` |
//! | [`times`] | 6 | ` 12.3×` |
//! | [`speed`] | 9 | `12.3 GB/s` |

use crate::event::Provenance;

use super::theme::Symbols;

/// Columns of [`count`].
pub const COUNT_WIDTH: usize = 5;
/// Columns of [`bytes`].
pub const BYTES_WIDTH: usize = 8;
/// Columns of [`duration`].
pub const DURATION_WIDTH: usize = 7;
/// Columns of [`percent`].
pub const PERCENT_WIDTH: usize = 6;
/// Columns of [`rate`].
pub const RATE_WIDTH: usize = 7;
/// Columns of [`byte_rate`].
pub const BYTE_RATE_WIDTH: usize = 10;
/// Columns of [`decimal`].
pub const DECIMAL_WIDTH: usize = 6;
/// Columns of [`times`].
pub const TIMES_WIDTH: usize = 6;
/// Columns of [`speed`].
pub const SPEED_WIDTH: usize = 9;

/// A count with an SI suffix, three significant digits from 1000 on.
pub fn count(value: u64) -> String {
    if value < 1000 {
        return format!("{value:>COUNT_WIDTH$}");
    }
    let (digits, suffix) = scaled(value as f64, 1000.0, &['k', 'M', 'G', 'T', 'P', 'E'], 1000.0);
    format!("{digits}{suffix}")
}

/// Bytes with an IEC unit.
pub fn bytes(value: u64) -> String {
    if value < 1024 {
        return format!("{value:>4}   B");
    }
    let (digits, prefix) = scaled(value as f64, 1024.0, &['K', 'M', 'G', 'T', 'P', 'E'], 1024.0);
    format!("{digits} {prefix}iB")
}

/// A duration. Seconds go up to 9999, hours follow.
pub fn duration(ns: u64, symbols: Symbols) -> String {
    const HOUR_NS: f64 = 3.6e12;
    let value = ns as f64;
    let micro = symbols.pick("µs", "us");
    if ns < 1000 {
        format!("{ns:>4} ns")
    } else if rounds_below(value / 1e3, 1000.0) {
        format!("{} {micro}", digits(value / 1e3))
    } else if rounds_below(value / 1e6, 1000.0) {
        format!("{} ms", digits(value / 1e6))
    } else if rounds_below(value / 1e9, 10_000.0) {
        format!("{} s ", digits(value / 1e9))
    } else {
        format!("{} h ", digits((value / HOUR_NS).min(9999.0)))
    }
}

/// A share, from 0 to 1, in percent. What does not fit is shown as its bound: `>999 %`.
pub fn percent(share: f64, symbols: Symbols) -> String {
    let value = share * 100.0;
    if value.is_nan() {
        missing(PERCENT_WIDTH, symbols)
    } else if value > 999.9 {
        " >999%".to_owned()
    } else if value < -99.9 {
        " <-99%".to_owned()
    } else {
        format!("{value:>5.1}%")
    }
}

/// Things per second.
pub fn rate(per_second: f64, symbols: Symbols) -> String {
    if !per_second.is_finite() || per_second < 0.0 {
        return missing(RATE_WIDTH, symbols);
    }
    // Below a hundred a second, the speed people read at, decimals matter.
    if rounds_below(per_second, 100.0) {
        format!("{:>COUNT_WIDTH$}/s", digits(per_second))
    } else {
        format!("{}/s", count(per_second.round() as u64))
    }
}

/// Bytes per second.
pub fn byte_rate(per_second: f64, symbols: Symbols) -> String {
    if !per_second.is_finite() || per_second < 0.0 {
        return missing(BYTE_RATE_WIDTH, symbols);
    }
    format!("{}/s", bytes(per_second.round() as u64))
}

/// A score or the like, with as many decimals as six columns hold; very large and very small ones in powers of ten.
pub fn decimal(value: f64, symbols: Symbols) -> String {
    if !value.is_finite() {
        return match (value.is_nan(), value > 0.0) {
            (true, _) => missing(DECIMAL_WIDTH, symbols),
            (false, true) => symbols.pick("    +∞", "  +inf").to_owned(),
            (false, false) => symbols.pick("    -∞", "  -inf").to_owned(),
        };
    }
    let magnitude = value.abs();
    // Their exponent has no room beside a sign, and nobody reads them.
    let value = if magnitude < 1e-99 { 0.0 } else { value };
    if value != 0.0 && magnitude < 0.000_5 {
        return format!("{value:>6.0e}");
    }
    for decimals in [3, 2, 1, 0] {
        let text = format!("{value:>6.decimals$}");
        if text.len() == DECIMAL_WIDTH {
            return text;
        }
    }
    format!("{value:>6.0e}")
}

/// How many times something else it is.
pub fn times(ratio: f64, symbols: Symbols) -> String {
    if !ratio.is_finite() || ratio < 0.0 {
        return missing(TIMES_WIDTH, symbols);
    }
    let sign = symbols.pick("×", "x");
    // A zero without a sign.
    let ratio = ratio + 0.0;
    if rounds_below(ratio, 10_000.0) { format!(" {}{sign}", digits(ratio)) } else { format!(">9999{sign}") }
}

/// Speed of a link or a memory, in its usual unit: 10^9 bytes per second.
pub fn speed(gbps: f64, symbols: Symbols) -> String {
    if !gbps.is_finite() || gbps < 0.0 {
        return missing(SPEED_WIDTH, symbols);
    }
    let gbps = gbps + 0.0;
    if rounds_below(gbps, 1000.0) {
        format!("{} GB/s", digits(gbps))
    } else {
        format!("{} TB/s", digits((gbps / 1e3).min(9999.0)))
    }
}

/// Stands where a figure is not known.
pub fn missing(width: usize, symbols: Symbols) -> String {
    format!("{:>width$}", symbols.missing())
}

/// A figure with the mark of how it came to be: two columns more.
pub fn marked(figure: &str, provenance: Provenance) -> String {
    format!("{figure} {}", provenance.mark())
}

/// Digits and suffix of a value of at least `base`; `limit` is where the next suffix starts.
fn scaled(mut value: f64, base: f64, suffixes: &[char], limit: f64) -> (String, char) {
    let mut suffix = suffixes[0];
    for &next in suffixes {
        suffix = next;
        value /= base;
        if rounds_below(value, limit) {
            break;
        }
    }
    (digits(value), suffix)
}

/// Whether a value, rounded as [`digits`] rounds it, stays below a limit of at least 100.
fn rounds_below(value: f64, limit: f64) -> bool {
    let rounded = if value < 99.95 { value } else { value.round() };
    rounded < limit
}

/// A value below 10 000 with three significant digits (four from 1000 on), in four columns.
fn digits(value: f64) -> String {
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:>4.decimals$}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use unicode_width::UnicodeWidthStr;

    use super::*;

    const S: Symbols = Symbols::Block;

    #[test]
    fn counts() {
        let cases = [
            (0, "    0"),
            (999, "  999"),
            (1_000, "1.00k"),
            (1_234, "1.23k"),
            (9_994, "9.99k"),
            (9_996, "10.0k"),
            (99_950, " 100k"),
            (999_499, " 999k"),
            (999_500, "1.00M"),
            (12_345_678, "12.3M"),
            (u64::MAX, "18.4E"),
        ];
        for (value, text) in cases {
            assert_eq!(count(value), text);
        }
    }

    #[test]
    fn byte_counts() {
        let cases = [
            (0, "   0   B"),
            (1023, "1023   B"),
            (1024, "1.00 KiB"),
            (1023 * 1024, "1023 KiB"),
            (1024 * 1024 - 1, "1.00 MiB"),
            (12_897_485, "12.3 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (value, text) in cases {
            assert_eq!(bytes(value), text);
        }
    }

    #[test]
    fn durations() {
        let cases = [
            (0, "   0 ns"),
            (999, " 999 ns"),
            (1_000, "1.00 µs"),
            (999_600, "1.00 ms"),
            (1_234_567, "1.23 ms"),
            (12_345_000_000, "12.3 s "),
            (1_000_000_000_000, "1000 s "),
            (36_000_000_000_000, "10.0 h "),
        ];
        for (value, text) in cases {
            assert_eq!(duration(value, S), text);
        }
        assert_eq!(duration(1_500, Symbols::Ascii), "1.50 us");
    }

    #[test]
    fn shares_rates_and_decimals() {
        assert_eq!(percent(0.123, S), " 12.3%");
        assert_eq!(percent(1.0, S), "100.0%");
        assert_eq!(percent(f64::NAN, Symbols::Ascii), "     -");
        assert_eq!(percent(50.0, S), " >999%");
        assert_eq!(rate(8.0, S), " 8.00/s");
        assert_eq!(rate(1234.0, S), "1.23k/s");
        assert_eq!(byte_rate(12_897_485.0, S), "12.3 MiB/s");
        assert_eq!(decimal(0.1234, S), " 0.123");
        assert_eq!(decimal(-1.5, S), "-1.500");
        assert_eq!(decimal(123.456, S), "123.46");
        assert_eq!(decimal(0.000_012, S), "  1e-5");
        assert_eq!(decimal(f64::INFINITY, S), "    +∞");
        assert_eq!(times(11.67, S), " 11.7×");
        assert_eq!(times(0.5, Symbols::Ascii), " 0.50x");
        assert_eq!(times(9_999.9, S), ">9999×");
        assert_eq!(times(-0.0, S), " 0.00×");
        assert_eq!(times(f64::NAN, S), "     –");
        assert_eq!(speed(1.966, S), "1.97 GB/s");
        assert_eq!(speed(4_023.0, S), "4.02 TB/s");
        assert_eq!(marked("1.23 ms", Provenance::Modelled), "1.23 ms ~");
    }

    proptest! {
        #[test]
        fn the_width_never_changes(value: u64, float: f64) {
            prop_assert_eq!(count(value).width(), COUNT_WIDTH);
            prop_assert_eq!(bytes(value).width(), BYTES_WIDTH);
            for symbols in [S, Symbols::Ascii] {
                prop_assert_eq!(duration(value, symbols).width(), DURATION_WIDTH);
                prop_assert_eq!(percent(float, symbols).width(), PERCENT_WIDTH);
                prop_assert_eq!(rate(float, symbols).width(), RATE_WIDTH);
                prop_assert_eq!(byte_rate(float, symbols).width(), BYTE_RATE_WIDTH);
                prop_assert_eq!(decimal(float, symbols).width(), DECIMAL_WIDTH);
                prop_assert_eq!(times(float, symbols).width(), TIMES_WIDTH);
                prop_assert_eq!(speed(float, symbols).width(), SPEED_WIDTH);
            }
        }

        #[test]
        fn a_width_holds_at_every_power_of_ten(exponent in 0_u32..19, less in 0_u64..3) {
            let value = 10_u64.pow(exponent).saturating_sub(less);
            prop_assert_eq!(count(value).len(), COUNT_WIDTH);
            prop_assert_eq!(duration(value, Symbols::Ascii).len(), DURATION_WIDTH);
            prop_assert_eq!(rate(value as f64 / 100.0, S).len(), RATE_WIDTH);
        }
    }
}
