//! Plots: panels with axes, lines and points, under one legend.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::Axis;
use super::canvas::{
    AXIS_COLOR, Area, DrawResult, GRID_COLOR, Svg, TEXT_COLOR, UNITS_PER_PIXEL, bold, font, line,
    marker, ring, star, units, width_of,
};
use super::style::{Marker, Style};
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
        let legend = self.legend_rows(f64::from(whole));
        let top = ROW * legend.last().map_or(0, |(row, ..)| row + 1) + 8;
        let rows = self.panels.len().div_ceil(columns) as i32;
        Svg::draw(whole, top + rows * height, |root| {
            for (row, x, entry) in &legend {
                entry.draw(root, *x, f64::from(ROW * row + ROW / 2 + 4))?;
            }
            let (_, below) = root.split_vertically(top * UNITS_PER_PIXEL);
            let areas = below.split_evenly((rows.unsigned_abs() as usize, columns));
            for (panel, area) in self.panels.iter().zip(&areas) {
                panel.draw(area)?;
            }
            Ok(())
        })
    }

    /// Each entry of the legend with its row and its horizontal position.
    fn legend_rows(&self, width: f64) -> Vec<(i32, f64, LegendEntry<'_>)> {
        let series = self
            .legend
            .iter()
            .map(|(name, style)| LegendEntry::Series(name, *style));
        let entries = series.chain(
            self.symbols
                .iter()
                .map(|symbol| LegendEntry::Symbol(*symbol)),
        );
        let (mut row, mut x) = (0, 14.0);
        let mut rows = Vec::new();
        for entry in entries {
            let long = 30.0 + width_of(entry.text(), 12.0) + 18.0;
            if x > 14.0 && x + long > width {
                (row, x) = (row + 1, 14.0);
            }
            rows.push((row, x, entry));
            x += long;
        }
        rows
    }
}

/// An entry of a legend.
enum LegendEntry<'a> {
    Series(&'a str, Style),
    Symbol(Symbol),
}

impl LegendEntry<'_> {
    fn text(&self) -> &str {
        match self {
            Self::Series(name, _) => name,
            Self::Symbol(Symbol::Ring(text) | Symbol::Star(text)) => text,
        }
    }

    fn draw(&self, root: &Area<'_>, x: f64, y: f64) -> DrawResult {
        let middle = (units(x + 12.0), units(y));
        let plain = Style {
            color: AXIS_COLOR,
            marker: Marker::Circle,
            dashed: false,
        };
        match self {
            Self::Series(_, style) => {
                let ends = vec![(units(x), units(y)), (units(x + 24.0), units(y))];
                line(root, ends, *style, 2.0)?;
                marker(root, middle, *style, 4.0)?;
            }
            Self::Symbol(Symbol::Ring(_)) => ring(root, middle, plain)?,
            Self::Symbol(Symbol::Star(_)) => star(root, middle, plain)?,
        }
        let style = font(12.0, TEXT_COLOR).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(
            self.text().to_string(),
            (units(x + 30.0), units(y)),
            style,
        ))
    }
}

/// A title, divided behind its commas so that no line is wider than so many CSS pixels, if one comma's part fits.
fn in_lines(title: &str, width: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in title.split_inclusive(", ") {
        match lines.last_mut() {
            Some(line) if width_of(&format!("{line}{part}"), 13.0) <= width => line.push_str(part),
            _ => lines.push(part.into()),
        }
    }
    lines
}

impl Panel {
    fn draw(&self, area: &Area<'_>) -> DrawResult {
        let (wide, _) = area.dim_in_pixel();
        let pixels = f64::from(wide) / f64::from(UNITS_PER_PIXEL);
        let title = in_lines(&self.title, pixels - 2.0 * 26.0);
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
                        dashed: true,
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
