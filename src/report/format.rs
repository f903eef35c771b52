//! Formatting of numbers and text.

use crate::train::metrics::Measure;

/// Text escaped for HTML: between tags or in an attribute.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() && c != '\n' && c != '\t' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A measure's value; a share in percent.
pub fn format_measure(measure: Measure, value: f64) -> String {
    match measure.is_share() {
        true => format!("{:.1}", 100.0 * value),
        false => format!("{value:.3}"),
    }
}

/// A whole number with thousands separators: 12,288.
pub fn with_separators(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number with at most four decimals, without trailing zeros.
pub fn format_number(number: f64) -> String {
    let rounded = format!("{number:.4}");
    match number.abs() >= 1e-4 || number == 0.0 {
        true => rounded.trim_end_matches('0').trim_end_matches('.').into(),
        false => format!("{number:e}"),
    }
}

/// A number with all its digits: numbers that differ are written differently.
pub fn format_exactly(number: f64) -> String {
    match number.abs() >= 1e-4 || number == 0.0 {
        true => number.to_string(),
        false => format!("{number:e}"),
    }
}

/// The mean; none of no values.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}
