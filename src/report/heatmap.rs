//! Heatmaps: a number for each pair of settings.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::canvas::{Area, DrawResult, Svg, TEXT_COLOR, bold, font, units};
use crate::error::Error;

/// Colours of 0, 50 and 100 %.
const COLORS: [[f64; 3]; 3] = [
    [240.0, 246.0, 252.0],
    [122.0, 178.0, 222.0],
    [10.0, 60.0, 115.0],
];
const EMPTY: RGBColor = RGBColor(243, 243, 243);
const BORDER: RGBColor = RGBColor(213, 94, 0);

/// Shares by two whole numbers. A cell whose numbers are equal has a rim.
#[derive(Clone, Debug)]
pub struct Heatmap {
    /// What it shows.
    pub title: String,
    /// What the rows and the columns are.
    pub axes: [&'static str; 2],
    /// The numbers of the rows, and what else distinguishes each of them.
    pub rows: Vec<(usize, String)>,
    /// The numbers of the columns.
    pub columns: Vec<usize>,
    /// Shares between 0 and 1, row by row.
    pub cells: Vec<Vec<Option<f64>>>,
}

/// Least width of the labels on the left, in CSS pixels, as the sizes below.
const LEFT: f64 = 58.0;
/// About the width of their letters.
const LETTER: f64 = 6.8;
const TOP: f64 = 34.0;
/// About the width of a title's letter.
const TITLE: f64 = 8.2;
const CELL: (f64, f64) = (36.0, 30.0);
const BOTTOM: f64 = 56.0;

impl Heatmap {
    /// The labels of the rows.
    fn labels(&self) -> impl Iterator<Item = String> {
        self.rows.iter().map(|(number, what)| match what.as_str() {
            "" => number.to_string(),
            what => format!("{number}, {what}"),
        })
    }

    /// Width of all that is left of the cells.
    fn left(&self) -> f64 {
        let longest = self.labels().map(|label| label.chars().count()).max();
        LEFT.max(44.0 + LETTER * longest.unwrap_or(0) as f64)
    }

    fn size(&self) -> (f64, f64) {
        let title = TITLE * self.title.chars().count() as f64;
        let cells = self.left() + CELL.0 * self.columns.len() as f64;
        (
            cells.max(title) + 16.0,
            TOP + CELL.1 * self.rows.len() as f64 + BOTTOM,
        )
    }

    fn draw(&self, root: &Area<'_>, (left, top): (f64, f64)) -> DrawResult {
        let before = self.left();
        let place = |x: f64, y: f64| (units(left + x), units(top + y));
        let write = |text: String, x: f64, y: f64, style: TextStyle<'static>| {
            let style = style.pos(Pos::new(HPos::Center, VPos::Center));
            root.draw(&Text::new(text, place(x, y), style))
        };
        let wide = CELL.0 * self.columns.len() as f64;
        let high = CELL.1 * self.rows.len() as f64;
        // In the middle of the cells, or of the whole where it is wider than they.
        let title = TITLE * self.title.chars().count() as f64;
        let middle = (before + wide / 2.0).max(title / 2.0 + 8.0);
        write(self.title.clone(), middle, 16.0, bold(13.0))?;
        let rows = self.rows.iter().zip(self.labels()).zip(&self.cells);
        for (r, (((trained, _), label), cells)) in rows.enumerate() {
            let y = TOP + CELL.1 * r as f64;
            let style = font(11.0, TEXT_COLOR).pos(Pos::new(HPos::Right, VPos::Center));
            root.draw(&Text::new(
                label,
                place(before - 10.0, y + CELL.1 / 2.0),
                style,
            ))?;
            for (c, (evaluated, cell)) in self.columns.iter().zip(cells).enumerate() {
                let x = before + CELL.0 * c as f64;
                let corners = |inset: f64| {
                    let (right, bottom) = (x + CELL.0 - inset, y + CELL.1 - inset);
                    [place(x + inset, y + inset), place(right, bottom)]
                };
                let (color, ink) = colors(*cell);
                root.draw(&Rectangle::new(corners(1.0), color.filled()))?;
                if trained == evaluated {
                    let [(left, top), (right, bottom)] = corners(2.0);
                    let border = [(left, top), (right, top), (right, bottom), (left, bottom)];
                    // One edge beyond the first corner, so that the path is closed.
                    let border = border.into_iter().chain([(left, top), (right, top)]);
                    let style = BORDER.stroke_width(units(2.0).unsigned_abs());
                    root.draw(&PathElement::new(border.collect::<Vec<_>>(), style))?;
                }
                let text = cell.map_or("–".into(), percent);
                write(text, x + CELL.0 / 2.0, y + CELL.1 / 2.0, font(11.0, ink))?;
            }
        }
        for (c, evaluated) in self.columns.iter().enumerate() {
            let x = before + CELL.0 * (c as f64 + 0.5);
            write(
                evaluated.to_string(),
                x,
                TOP + high + 13.0,
                font(11.0, TEXT_COLOR),
            )?;
        }
        let middle = before + wide / 2.0;
        let below = TOP + high + 34.0;
        write(self.axes[1].into(), middle, below, font(12.0, TEXT_COLOR))?;
        let style = font(12.0, TEXT_COLOR).transform(FontTransform::Rotate270);
        let style = style.pos(Pos::new(HPos::Center, VPos::Center));
        let words = self.axes[0].to_string();
        root.draw(&Text::new(words, place(22.0, TOP + high / 2.0), style))
    }
}

/// Draws heatmaps side by side, in as many rows as they need.
///
/// # Errors
///
/// If it cannot be drawn, which is a bug in this crate.
pub fn draw(maps: &[Heatmap]) -> Result<Svg, Error> {
    let (mut x, mut y, mut row, mut wide) = (0.0, 0.0, 0.0f64, 0.0f64);
    let mut places = Vec::new();
    for map in maps {
        let (width, height) = map.size();
        if x > 0.0 && x + width > 960.0 {
            (x, y, row) = (0.0, y + row, 0.0);
        }
        places.push((x, y));
        x += width;
        row = row.max(height);
        wide = wide.max(x);
    }
    Svg::draw(wide.ceil() as i32, (y + row).ceil() as i32, |root| {
        let pairs = maps.iter().zip(places);
        pairs
            .into_iter()
            .try_for_each(|(map, at)| map.draw(root, at))
    })
}

/// The colours of a cell and of its text.
fn colors(share: Option<f64>) -> (RGBColor, RGBColor) {
    let Some(share) = share else {
        return (EMPTY, TEXT_COLOR);
    };
    let share = share.clamp(0.0, 1.0);
    let (from, to, part) = match share < 0.5 {
        true => (COLORS[0], COLORS[1], 2.0 * share),
        false => (COLORS[1], COLORS[2], 2.0 * share - 1.0),
    };
    let mix = |at: usize| (from[at] + part * (to[at] - from[at])).round() as u8;
    let ink = if share > 0.65 { WHITE } else { TEXT_COLOR };
    (RGBColor(mix(0), mix(1), mix(2)), ink)
}
/// A share in whole percent, with a decimal where those would say all.
fn percent(share: f64) -> String {
    match (0.995..1.0).contains(&share) {
        true => format!("{:.1}", (1000.0 * share).floor() / 10.0),
        false => format!("{:.0}", 100.0 * share),
    }
}
