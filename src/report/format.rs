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
        false if value.abs() < 1e-3 && value != 0.0 => format!("{value:.1e}"),
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

/// A number with four decimals, or where it is below 0.1 with four digits; without trailing zeros.
pub fn format_number(number: f64) -> String {
    let size = number.abs();
    let rounded = match size >= 0.1 || size == 0.0 {
        true => format!("{number:.4}"),
        false => format!("{number:.3e}"),
    };
    rounded.parse().map_or(rounded, format_exactly)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_tell_apart() {
        for (number, text) in [
            (0.0, "0"),
            (2.5, "2.5"),
            (1234.56789, "1234.5679"),
            (0.12345, "0.1235"),
            (0.00025, "0.00025"),
            (0.000_750_000_1, "0.00075"),
            (3.0 * 1e-5, "3e-5"),
            (-0.02, "-0.02"),
        ] {
            assert_eq!(format_number(number), text);
        }
        let loss = |value| format_measure(Measure::ReadLoss, value);
        assert_eq!(
            [loss(0.0), loss(0.00012), loss(1.5)],
            ["0.000", "1.2e-4", "1.500"]
        );
        assert_eq!(format_measure(Measure::ExactMatch, 0.755), "75.5");
    }
}
