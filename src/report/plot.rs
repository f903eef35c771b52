//! Plots: panels with axes, lines and points, under one legend.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::Axis;
use super::canvas::{
    AXIS_COLOR, Area, DrawResult, GRID_COLOR, Svg, TEXT_COLOR, UNITS_PER_PIXEL, bold, font, line,
    marker, ring, star, units, width_of,
};
use super::style::{DASHED, Marker, Style};
use crate::error::Error;

/// Something drawn in a panel; positions are values of the axes.
#[derive(Clone, Debug)]
pub enum Item {
    /// A line through points, and its width in CSS pixels.
    Line(Vec<(f64, f64)>, Style, f64),
    /// Points, and their size in CSS pixels.
    Points(Vec<(f64, f64)>, Style, f64),
    /// A ring around a point.
    Ring((f64, f64), Style),
    /// A star with a white border.
    Star((f64, f64), Style),
    /// A dashed line across the panel at this height.
    Horizontal(f64, Style),
}

/// A part of a plot, with its own axes.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What it shows; empty if there is only one panel.
    pub title: String,
    /// Along the bottom.
    pub x: Axis,
    /// Along the left.
    pub y: Axis,
    /// From back to front.
    pub items: Vec<Item>,
}

/// Panels side by side under one legend.
#[derive(Clone, Debug)]
pub struct Plot {
    /// In rows, from the top left.
    pub panels: Vec<Panel>,
    /// The series and their styles.
    pub legend: Vec<(String, Style)>,
    /// Further symbols of the legend.
    pub symbols: Vec<Symbol>,
}

/// A symbol in the legend that does not belong to a series, with its explanation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symbol {
    /// ○
    Ring(&'static str),
    /// ★
    Star(&'static str),
}

/// Width of a figure with several columns, in CSS pixels.
const WIDTH: i32 = 960;
/// Height of a row of the legend, in CSS pixels.
const ROW: i32 = 22;
/// Height of each further line in it.
const LINE: i32 = 16;

impl Plot {
    /// The picture.
    ///
    /// # Errors
    ///
    /// If it cannot be drawn, which is a bug in this crate.
    pub fn draw(&self) -> Result<Svg, Error> {
        let columns = match self.panels.len() {
            4 => 2,
            count => count.clamp(1, 3),
        };
        let (width, height) = match columns {
            1 => (720, 380),
            2 => (WIDTH / 2, 320),
            _ => (WIDTH / 3, 300),
        };
        let whole = width * columns as i32;
        let (legend, high) = self.legend_rows(f64::from(whole));
        let top = high + 8;
        let rows = self.panels.len().div_ceil(columns) as i32;
        Svg::draw(whole, top + rows * height, |root| {
            for Placed { entry, lines, x, y } in &legend {
                entry.draw(root, *x, f64::from(y + ROW / 2 + 4))?;
                for (at, line) in lines.iter().enumerate() {
                    let y = f64::from(y + ROW / 2 + 4 + LINE * at as i32);
                    let style = font(12.0, TEXT_COLOR).pos(Pos::new(HPos::Left, VPos::Center));
                    let place = (units(x + 30.0), units(y));
                    root.draw(&Text::new(line.clone(), place, style))?;
                }
            }
            let (_, below) = root.split_vertically(top * UNITS_PER_PIXEL);
            let areas = below.split_evenly((rows.unsigned_abs() as usize, columns));
            for (panel, area) in self.panels.iter().zip(&areas) {
                panel.draw(area)?;
            }
            Ok(())
        })
    }

    /// The entries of the legend, and the height of all in CSS pixels.
    fn legend_rows(&self, width: f64) -> (Vec<Placed<'_>>, i32) {
        let series = self
            .legend
            .iter()
            .map(|(name, style)| LegendEntry::Series(name, *style));
        let entries = series.chain(
            self.symbols
                .iter()
                .map(|symbol| LegendEntry::Symbol(*symbol)),
        );
        // A row begins at `y` and is `high`.
        let (mut x, mut y, mut high) = (14.0, 0, 0);
        let mut rows = Vec::new();
        for entry in entries {
            // Fonts differ in their width.
            let lines = in_lines(entry.text(), 12.0, 0.9 * (width - 14.0 - 30.0));
            let widest = lines.iter().map(|line| width_of(line, 12.0));
            let long = 30.0 + widest.fold(0.0, f64::max) + 18.0;
            if x > 14.0 && x + long > width {
                (x, y, high) = (14.0, y + high, 0);
            }
            high = high.max(ROW + LINE * (lines.len() as i32 - 1).max(0));
            rows.push(Placed { entry, lines, x, y });
            x += long;
        }
        (rows, y + high)
    }
}

/// An entry of a legend.
enum LegendEntry<'a> {
    Series(&'a str, Style),
    Symbol(Symbol),
}

/// An entry with the lines of its text, and where it begins, in CSS pixels.
struct Placed<'a> {
    entry: LegendEntry<'a>,
    lines: Vec<String>,
    x: f64,
    y: i32,
}

impl LegendEntry<'_> {
    fn text(&self) -> &str {
        match self {
            Self::Series(name, _) => name,
            Self::Symbol(Symbol::Ring(text) | Symbol::Star(text)) => text,
        }
    }

    /// Draws what stands in front of its text.
    fn draw(&self, root: &Area<'_>, x: f64, y: f64) -> DrawResult {
        let middle = (units(x + 12.0), units(y));
        let plain = Style {
            color: AXIS_COLOR,
            marker: Marker::Circle,
            dashes: None,
        };
        match self {
            Self::Series(_, style) => {
                let ends = vec![(units(x), units(y)), (units(x + 24.0), units(y))];
                line(root, ends, *style, 2.0)?;
                marker(root, middle, *style, 4.0)
            }
            Self::Symbol(Symbol::Ring(_)) => ring(root, middle, plain),
            Self::Symbol(Symbol::Star(_)) => star(root, middle, plain),
        }
    }
}

/// A text in lines that are no wider than so many CSS pixels: divided behind its commas, and anywhere in a part that is wider than a
/// line.
fn in_lines(text: &str, size: f64, width: f64) -> Vec<String> {
    let most = (width / width_of("x", size)).max(1.0) as usize;
    let mut lines: Vec<String> = Vec::new();
    for part in text.split_inclusive(", ").map(str::trim_end) {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + part.chars().count() <= most => {
                line.push(' ');
                line.push_str(part);
            }
            _ => {
                let letters: Vec<char> = part.chars().collect();
                lines.extend(letters.chunks(most).map(String::from_iter));
            }
        }
    }
    lines
}

impl Panel {
    fn draw(&self, area: &Area<'_>) -> DrawResult {
        let (wide, _) = area.dim_in_pixel();
        let pixels = f64::from(wide) / f64::from(UNITS_PER_PIXEL);
        let title = in_lines(&self.title, 13.0, pixels - 2.0 * 26.0);
        for (at, line) in title.iter().enumerate() {
            let style = bold(13.0).pos(Pos::new(HPos::Center, VPos::Center));
            let height = units(14.0 + 16.0 * at as f64);
            area.draw(&Text::new(
                line.clone(),
                (wide as i32 / 2 + units(26.0), height),
                style,
            ))?;
        }
        let mut chart = ChartBuilder::on(area)
            .margin_top(units(match title.len() {
                0 => 10.0,
                lines => 12.0 + 16.0 * lines as f64,
            }))
            .margin_right(units(16.0))
            .margin_bottom(units(4.0))
            .margin_left(units(4.0))
            .x_label_area_size(units(44.0))
            .y_label_area_size(units(54.0))
            .build_cartesian_2d(self.x.scale(), self.y.scale())?;
        let (x, y) = (
            |v: &f64| self.x.tick_label(v),
            |v: &f64| self.y.tick_label(v),
        );
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID_COLOR.stroke_width(UNITS_PER_PIXEL as u32))
            .light_line_style(TRANSPARENT)
            .axis_style(AXIS_COLOR.stroke_width(UNITS_PER_PIXEL as u32))
            .set_all_tick_mark_size(units(4.0))
            .label_style(font(11.0, TEXT_COLOR))
            .axis_desc_style(font(12.0, TEXT_COLOR))
            .x_label_formatter(&x)
            .y_label_formatter(&y)
            .x_desc(self.x.label.clone())
            .y_desc(self.y.label.clone())
            .draw()?;
        let plane = chart.plotting_area();
        // Markers may extend beyond the axes: they are drawn on the whole panel.
        let (left, top) = area.get_base_pixel();
        let at = |(x, y): (f64, f64)| {
            let (x, y) = plane.map_coordinate(&(self.x.position(x), self.y.position(y)));
            (x - left, y - top)
        };
        let across = plane.get_x_axis_pixel_range();
        for item in &self.items {
            match item {
                Item::Line(points, style, width) => {
                    let points = points.iter().map(|point| at(*point)).collect();
                    line(area, points, *style, *width)?;
                }
                Item::Points(points, style, size) => {
                    for point in points {
                        marker(area, at(*point), *style, *size)?;
                    }
                }
                Item::Ring(point, style) => ring(area, at(*point), *style)?,
                Item::Star(point, style) => star(area, at(*point), *style)?,
                Item::Horizontal(height, style) => {
                    let (_, y) = at((0.0, *height));
                    let dashed = Style {
                        dashes: DASHED,
                        ..*style
                    };
                    let ends = vec![(across.start - left, y), (across.end - left, y)];
                    line(area, ends, dashed, 1.5)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_divided_into_lines_that_fit() {
        let width = 10.0 * width_of("x", 12.0);
        for (text, lines) in [
            ("", &[][..]),
            ("K = 2", &["K = 2"]),
            ("K = 2, m = 8, d = 4", &["K = 2,", "m = 8,", "d = 4"]),
            ("a, b, c, d = 4", &["a, b, c,", "d = 4"]),
            ("a, bcdefghijklmn, o", &["a,", "bcdefghijk", "lmn, o"]),
        ] {
            assert_eq!(in_lines(text, 12.0, width), lines);
        }
    }

    #[test]
    fn a_legend_has_room_for_long_names() {
        let style = Style::ordered(0, 1);
        let name = |at| format!("GradMem, {}K = {at}", "setting = value, ".repeat(20));
        let plot = Plot {
            panels: Vec::new(),
            legend: (0..3).map(|at| (name(at), style)).collect(),
            symbols: vec![Symbol::Ring("K in training")],
        };
        let (rows, high) = plot.legend_rows(720.0);
        let mut below = 0;
        for (at, Placed { entry, lines, x, y }) in rows.iter().enumerate() {
            assert!(
                lines
                    .iter()
                    .all(|line| x + 30.0 + width_of(line, 12.0) < 720.0)
            );
            assert_eq!(lines.join(" "), entry.text());
            assert_eq!(lines.len() > 1, at < 3);
            assert!(*y >= below, "{y} {below}");
            below = y + LINE * lines.len() as i32;
        }
        assert!(below <= high);
    }
}
