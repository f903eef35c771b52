//! Axes: their range, their ticks, and where a value lies on them.

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};

use super::canvas::width_of;
use super::format::{format_exactly, format_number, with_separators};
use crate::train::metrics::Measure;

/// CSS pixels along the axis of the narrowest panel.
const NARROWEST: f64 = 240.0;

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// The description beside it.
    pub label: String,
    range: (f64, f64),
    ticks: Vec<(f64, String)>,
    logarithmic: bool,
}

impl Axis {
    /// From 0 to a round number not below any value.
    pub fn from_zero(label: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        let highest = values.into_iter().fold(0.0, f64::max);
        // Beyond these limits a step over- or underflows.
        let highest = if highest > 1e-300 {
            highest.min(1e300)
        } else {
            1.0
        };
        let rough = highest / 4.0;
        let magnitude = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .map(|factor| factor * magnitude)
            .into_iter()
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let count = (highest / step - 1e-9).ceil().max(1.0) as usize;
        let text = |value: f64| match value.fract() == 0.0 && value >= 1000.0 {
            true => with_separators(value as usize),
            false => format_number(value),
        };
        let ticks = (0..=count).map(|i| i as f64 * step);
        Self {
            label: label.into(),
            range: (0.0, count as f64 * step),
            ticks: ticks.map(|value| (value, text(value))).collect(),
            logarithmic: false,
        }
    }

    /// From 0 to the highest value, with ticks at whole numbers.
    pub fn whole_numbers(label: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        let highest = values.into_iter().fold(1.0, f64::max).ceil();
        let step = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]
            .into_iter()
            .find(|step| highest / step <= 10.0)
            .unwrap_or((highest / 10.0).ceil());
        let ticks = (0..=(highest / step) as usize).map(|i| i as f64 * step);
        Self {
            label: label.into(),
            range: (-0.02 * highest, 1.03 * highest),
            ticks: ticks.map(|value| (value, format_number(value))).collect(),
            logarithmic: false,
        }
    }

    /// With a tick at each value that has room for one; logarithmic if the largest is at least four times the smallest.
    pub fn at_values(label: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        let (low, high) = match (values.first(), values.last()) {
            (Some(low), Some(high)) => (*low, *high),
            _ => (0.0, 1.0),
        };
        let logarithmic = low > 0.0 && high / low >= 4.0;
        let position = |value: f64| if logarithmic { value.log2() } else { value };
        let margin = ((position(high) - position(low)) * 0.06).max(1e-6);
        let range = (position(low) - margin, position(high) + margin);
        // A value gets a tick if its text has room behind the one before, on the narrowest panel.
        let mut ticks: Vec<(f64, String)> = Vec::new();
        for value in values {
            let (at, text) = (position(value), format_exactly(value));
            let room = |(before, other): &(f64, String)| {
                let apart = NARROWEST * (at - before) / (range.1 - range.0);
                apart > (width_of(other, 11.0) + width_of(&text, 11.0)) / 2.0 + 6.0
            };
            if ticks.last().is_none_or(room) {
                ticks.push((at, text));
            }
        }
        Self {
            label: label.into(),
            range,
            ticks,
            logarithmic,
        }
    }

    /// Of a measure: from 0 to 100 % for a share, from 0 otherwise.
    pub fn of_measure(measure: Measure, values: impl IntoIterator<Item = f64>) -> Self {
        if !measure.is_share() {
            return Self::from_zero(measure.with_unit(), values);
        }
        let ticks = (0..=5).map(|i| (f64::from(i) / 5.0, (20 * i).to_string()));
        Self {
            label: measure.with_unit(),
            range: (0.0, 1.0),
            ticks: ticks.collect(),
            logarithmic: false,
        }
    }

    /// Where a value lies, in the axis's own coordinate.
    pub fn position(&self, value: f64) -> f64 {
        if self.logarithmic {
            value.log2()
        } else {
            value
        }
    }

    /// The text of the tick at a position; empty where there is none.
    pub fn tick_label(&self, at: &f64) -> String {
        let tick = self.ticks.iter().find(|(tick, _)| tick == at);
        tick.map(|(_, text)| text.clone()).unwrap_or_default()
    }

    /// The scale for plotters.
    pub fn scale(&self) -> Scale {
        Scale {
            range: self.range,
            ticks: self.ticks.iter().map(|(tick, _)| *tick).collect(),
        }
    }
}

/// A linear scale with given ticks.
pub struct Scale {
    range: (f64, f64),
    ticks: Vec<f64>,
}

impl Ranged for Scale {
    type ValueType = f64;
    type FormatOption = DefaultFormatting;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let (low, high) = self.range;
        // A point far outside the range is outside the plot all the same.
        let share = ((value - low) / (high - low)).clamp(-10.0, 10.0);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<H: KeyPointHint>(&self, hint: H) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.ticks.clone(),
        }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.0..self.range.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_do_not_cover_each_other() {
        let axis = Axis::at_values("", [3e-4, 3.5e-4, 4e-4, 4.5e-4, 2e-3]);
        let texts: Vec<&str> = axis.ticks.iter().map(|(_, text)| &text[..]).collect();
        assert_eq!(texts, ["0.0003", "0.002"]);
        let axis = Axis::at_values("", [2.0, 4.0, 8.0]);
        assert_eq!(axis.ticks.len(), 3);
    }

    #[test]
    fn extreme_values_have_an_axis() {
        for value in [0.0, 5e-324, 1e-301, 1e-299, 3.0, 1e299, 1.7e308] {
            let axis = Axis::from_zero("", [value]);
            assert!((2..=11).contains(&axis.ticks.len()), "{value}: {axis:?}");
            assert!(axis.range.1.is_finite() && axis.range.1 > 0.0);
            let axis = Axis::whole_numbers("", [value]);
            assert!((2..=11).contains(&axis.ticks.len()), "{value}: {axis:?}");
        }
    }
}
