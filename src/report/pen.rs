//! What pictures are drawn with: plotters' SVG, text, lines and marks.

use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::look::{Look, Mark};
use crate::error::Error;

/// plotters draws at whole pixels; so many of them make one of the figure's.
pub const FINE: i32 = 4;

/// Of text.
pub const INK: RGBColor = RGBColor(34, 34, 34);
/// Of axes.
pub const QUIET: RGBColor = RGBColor(85, 85, 85);
/// Of the lines behind.
pub const GRID: RGBColor = RGBColor(226, 226, 226);

/// Where one draws.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// What drawing can end in.
pub type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// A picture.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Svg {
    /// In CSS pixels.
    pub width: i32,
    /// In CSS pixels.
    pub height: i32,
    /// The elements.
    pub body: String,
}

impl Svg {
    /// Draws a picture of this size.
    pub(super) fn draw(
        width: i32,
        height: i32,
        draw: impl FnOnce(&Area<'_>) -> Drawn,
    ) -> Result<Self, Error> {
        let mut text = String::new();
        let size = [width, height].map(|side| (side * FINE).unsigned_abs());
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

/// Length in the drawing of a length in the figure.
pub fn fine(length: f64) -> i32 {
    (length * f64::from(FINE)).round() as i32
}

/// Text of a size in CSS pixels; plotters writes sizes divided by 1.24.
pub fn font(size: f64, color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size * f64::from(FINE) * 1.24)
        .into_font()
        .color(&color)
}

/// The same, bold.
pub fn bold(size: f64) -> TextStyle<'static> {
    let size = size * f64::from(FINE) * 1.24;
    ("sans-serif", size)
        .into_font()
        .style(FontStyle::Bold)
        .color(&INK)
}

/// Around how long a text is.
pub fn width_of(text: &str, size: f64) -> f64 {
    0.56 * size * text.chars().count() as f64
}

/// A line through points.
pub fn line(area: &Area<'_>, points: Vec<(i32, i32)>, look: Look, width: f64) -> Drawn {
    let style = look.color.stroke_width(fine(width).unsigned_abs());
    match look.dashed {
        true => area.draw(&DashedPathElement::new(points, fine(5.0), fine(4.0), style)),
        false => area.draw(&PathElement::new(points, style)),
    }
}

/// A filled mark with a white rim, so that marks on top of each other can be counted.
pub fn mark(area: &Area<'_>, (x, y): (i32, i32), look: Look, size: f64) -> Drawn {
    let corners = |size: f64| -> Option<Vec<(i32, i32)>> {
        let offsets: &[(f64, f64)] = match look.mark {
            Mark::Circle => return None,
            Mark::Square => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            Mark::Triangle => &[(0.0, -1.2), (1.1, 0.9), (-1.1, 0.9)],
            Mark::Diamond => &[(0.0, -1.3), (1.1, 0.0), (0.0, 1.3), (-1.1, 0.0)],
        };
        let corner = |(dx, dy): &(f64, f64)| (x + fine(dx * size), y + fine(dy * size));
        Some(offsets.iter().map(corner).collect())
    };
    for (size, color) in [(size + 1.0, WHITE), (size, look.color)] {
        match corners(size) {
            Some(corners) => area.draw(&Polygon::new(corners, color.filled()))?,
            None => area.draw(&Circle::new((x, y), fine(size), color.filled()))?,
        }
    }
    Ok(())
}

/// A ring with nothing in it.
pub fn ring(area: &Area<'_>, at: (i32, i32), look: Look) -> Drawn {
    area.draw(&Circle::new(at, fine(4.5), WHITE.filled()))?;
    let style = look.color.stroke_width(fine(1.8).unsigned_abs());
    area.draw(&Circle::new(at, fine(4.5), style))
}

/// A star with a white rim.
pub fn star(area: &Area<'_>, (x, y): (i32, i32), look: Look) -> Drawn {
    let corners = |size: f64| -> Vec<(i32, i32)> {
        let corner = |at: i32| {
            let size = if at % 2 == 0 { size } else { 0.45 * size };
            let (sin, cos) = (std::f64::consts::PI * f64::from(at) / 5.0).sin_cos();
            (x + fine(size * sin), y - fine(size * cos))
        };
        (0..10).map(corner).collect()
    };
    area.draw(&Polygon::new(corners(9.5), WHITE.filled()))?;
    area.draw(&Polygon::new(corners(7.5), look.color.filled()))
}
