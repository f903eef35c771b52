//! Figures as files: SVG, and PNG if the system has fonts.

use std::path::{Path, PathBuf};

use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg::{Options, Tree};

use super::canvas::{Svg, UNITS_PER_PIXEL};
use super::figure::Figure;
use super::format::escape;
use crate::error::Error;
use crate::support::fs::read_if_exists;

/// What an SVG file begins with, by which a later report knows that it is one of reports.
pub const MARK: &str = "<!-- Made by gradmem report. -->\n";

/// Pixels of a PNG per CSS pixel.
const SCALE: f32 = 2.0;

/// Preferred fonts, in this order, so that pictures are alike on most systems.
const FONTS: [&str; 7] = [
    "Helvetica",
    "Arial",
    "Liberation Sans",
    "DejaVu Sans",
    "Noto Sans",
    "Segoe UI",
    "Roboto",
];

impl Svg {
    /// The picture as an element of a page, with `description` for screen readers.
    pub fn element(&self, title: &str, description: &str) -> String {
        let (width, height) = (self.width, self.height);
        let (unit_width, unit_height) = (width * UNITS_PER_PIXEL, height * UNITS_PER_PIXEL);
        let (title, description) = (escape(title), escape(description));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" aria-label=\"{description}\" width=\"{width}\" \
             height=\"{height}\" viewBox=\"0 0 {unit_width} {unit_height}\">\n<title>{title}</title>\n{}\n</svg>",
            self.body
        )
    }
}

/// The files of figures in `folder`, paths and contents: an SVG each, and a PNG each if the system has fonts.
///
/// # Errors
///
/// If a picture cannot be rendered, which is a bug in this crate.
pub fn files(figures: &[Figure], folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
    let options = options();
    let mut files = Vec::new();
    for figure in figures {
        let path = |ending: &str| folder.join(format!("{}.{ending}", figure.name));
        let svg = figure.svg.element(&figure.title, &figure.caption);
        files.push((path("svg"), [MARK, &svg].concat().into_bytes()));
        if let Some(options) = &options {
            files.push((path("png"), png(&svg, &figure.svg, options)?));
        }
    }
    Ok(files)
}

/// Fails if one of these files is there already and was not made by a report. A PNG does not say what made it: it is taken for a
/// report's if the SVG of its name is one.
///
/// # Errors
///
/// Such a file, or one that cannot be read.
pub fn check_ours(files: &[(PathBuf, Vec<u8>)]) -> Result<(), Error> {
    for (path, _) in files {
        let Some(earlier) = read_if_exists(path)?.filter(|bytes| !bytes.is_empty()) else {
            continue;
        };
        let svg = match path.extension().is_some_and(|ending| ending == "png") {
            true => read_if_exists(&path.with_extension("svg"))?,
            false => Some(earlier),
        };
        if !svg.is_some_and(|svg| svg.starts_with(MARK.as_bytes())) {
            let problem =
                "is no figure of a report, and is not replaced: name another folder with --figures";
            return Err(Error::file(path, problem));
        }
    }
    Ok(())
}

/// Rendering options with the system's fonts; none if it has no fonts.
fn options() -> Option<Options<'static>> {
    let mut options = Options::default();
    let fonts = options.fontdb_mut();
    fonts.load_system_fonts();
    let families = |name: &str| {
        let mut faces = fonts.faces();
        faces.any(|face| face.families.iter().any(|(family, _)| family == name))
    };
    let known = FONTS.into_iter().find(|name| families(name));
    let any = fonts.faces().next().and_then(|face| face.families.first());
    let Some(family) = known
        .map(String::from)
        .or(any.map(|(name, _)| name.clone()))
    else {
        log::warn!(
            "no fonts are found on this system: figures are written as SVG only, not as PNG"
        );
        return None;
    };
    fonts.set_sans_serif_family(family);
    Some(options)
}

fn png(text: &str, svg: &Svg, options: &Options<'_>) -> Result<Vec<u8>, Error> {
    let failed = |e: String| Error::Failed(format!("a figure cannot be rendered as PNG: {e}"));
    let tree = Tree::from_str(text, options).map_err(|e| failed(e.to_string()))?;
    let side = |length: i32| (length as f32 * SCALE) as u32;
    let mut pixels = Pixmap::new(side(svg.width), side(svg.height))
        .ok_or_else(|| failed("it has no size".into()))?;
    pixels.fill(Color::WHITE);
    resvg::render(
        &tree,
        Transform::from_scale(SCALE, SCALE),
        &mut pixels.as_mut(),
    );
    pixels.encode_png().map_err(|e| failed(e.to_string()))
}
