//! Drawing into SVG with plotters: text, lines and markers.

use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::style::{Marker, Style};
use crate::error::Error;

/// plotters' units per CSS pixel: plotters rounds to whole units.
pub const UNITS_PER_PIXEL: i32 = 4;

/// Colour of text.
pub const TEXT_COLOR: RGBColor = RGBColor(34, 34, 34);
/// Colour of axes.
pub const AXIS_COLOR: RGBColor = RGBColor(85, 85, 85);
/// Colour of grid lines.
pub const GRID_COLOR: RGBColor = RGBColor(226, 226, 226);

/// A part of the picture to draw on.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// The result of drawing.
pub type DrawResult = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// A picture.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Svg {
    /// In CSS pixels.
    pub width: i32,
    /// In CSS pixels.
    pub height: i32,
    /// The SVG elements, without the `<svg>` around them.
    pub body: String,
}

impl Svg {
    /// Draws a picture of this size.
    pub(super) fn draw(
        width: i32,
        height: i32,
        draw: impl FnOnce(&Area<'_>) -> DrawResult,
    ) -> Result<Self, Error> {
        let mut text = String::new();
        let size = [width, height].map(|side| (side * UNITS_PER_PIXEL).unsigned_abs());
        {
            let root = SVGBackend::with_string(&mut text, size.into()).into_drawing_area();
            draw(&root)
                .and_then(|()| root.present())
                .map_err(|e| Error::Failed(format!("a figure cannot be drawn: {e}")))?;
        }
        let body = text.split_once("<svg").and_then(|(_, rest)| {
            let (_, body) = rest.split_once('>')?;
            Some(body.rsplit_once("</svg>")?.0.trim().to_string())
        });
        Ok(Self {
            width,
            height,
            body: body.unwrap_or_default(),
        })
    }
}

/// A length in CSS pixels, in plotters' units.
pub fn units(length: f64) -> i32 {
    (length * f64::from(UNITS_PER_PIXEL)).round() as i32
}

/// Text of a size in CSS pixels; plotters writes sizes divided by 1.24.
pub fn font(size: f64, color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size * f64::from(UNITS_PER_PIXEL) * 1.24)
        .into_font()
        .color(&color)
}

/// The same, bold.
pub fn bold(size: f64) -> TextStyle<'static> {
    let size = size * f64::from(UNITS_PER_PIXEL) * 1.24;
    ("sans-serif", size)
        .into_font()
        .style(FontStyle::Bold)
        .color(&TEXT_COLOR)
}

/// Approximate width of a text, in CSS pixels.
pub fn width_of(text: &str, size: f64) -> f64 {
    0.56 * size * text.chars().count() as f64
}

/// A line through points.
pub fn line(area: &Area<'_>, points: Vec<(i32, i32)>, style: Style, width: f64) -> DrawResult {
    let stroke = style.color.stroke_width(units(width).unsigned_abs());
    match style.dashes {
        Some((dash, gap)) => area.draw(&DashedPathElement::new(
            points,
            units(dash.into()),
            units(gap.into()),
            stroke,
        )),
        None => area.draw(&PathElement::new(points, stroke)),
    }
}

/// A filled marker with a white border, so that markers on top of each other can be counted.
pub fn marker(area: &Area<'_>, (x, y): (i32, i32), style: Style, size: f64) -> DrawResult {
    let corners = |size: f64| -> Option<Vec<(i32, i32)>> {
        let offsets: &[(f64, f64)] = match style.marker {
            Marker::Circle => return None,
            Marker::Square => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            Marker::Triangle => &[(0.0, -1.2), (1.1, 0.9), (-1.1, 0.9)],
            Marker::Diamond => &[(0.0, -1.3), (1.1, 0.0), (0.0, 1.3), (-1.1, 0.0)],
        };
        let corner = |(dx, dy): &(f64, f64)| (x + units(dx * size), y + units(dy * size));
        Some(offsets.iter().map(corner).collect())
    };
    for (size, color) in [(size + 1.0, WHITE), (size, style.color)] {
        match corners(size) {
            Some(corners) => area.draw(&Polygon::new(corners, color.filled()))?,
            None => area.draw(&Circle::new((x, y), units(size), color.filled()))?,
        }
    }
    Ok(())
}

/// An empty ring.
pub fn ring(area: &Area<'_>, at: (i32, i32), style: Style) -> DrawResult {
    area.draw(&Circle::new(at, units(4.5), WHITE.filled()))?;
    let stroke = style.color.stroke_width(units(1.8).unsigned_abs());
    area.draw(&Circle::new(at, units(4.5), stroke))
}

/// A star with a white border.
pub fn star(area: &Area<'_>, (x, y): (i32, i32), style: Style) -> DrawResult {
    let corners = |size: f64| -> Vec<(i32, i32)> {
        let corner = |at: i32| {
            let size = if at % 2 == 0 { size } else { 0.45 * size };
            let (sin, cos) = (std::f64::consts::PI * f64::from(at) / 5.0).sin_cos();
            (x + units(size * sin), y - units(size * cos))
        };
        (0..10).map(corner).collect()
    };
    area.draw(&Polygon::new(corners(9.5), WHITE.filled()))?;
    area.draw(&Polygon::new(corners(7.5), style.color.filled()))
}
