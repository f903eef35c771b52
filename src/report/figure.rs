//! A figure, and what several figures share: names of series, their styles, and names of panels.

use super::Report;
use super::canvas::Svg;
use super::group::{Group, is_data};
use super::style::Palette;

/// A picture with its title and caption.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Figure {
    /// The name of its file, without an extension.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// The picture.
    pub svg: Svg,
}

/// The name of a group's series in figures whose panels are named after the data.
pub fn series_name(group: &Group) -> String {
    group.label_without(is_data)
}

/// A style for each series. Figures that name their series alike get the same styles.
pub fn palette(report: &Report, name: impl Fn(&Group) -> String) -> Palette {
    let groups = report.groups.iter();
    Palette::new(groups.map(|group| (group.color, name(group))))
}

/// The names of the panels, each once, in the order of the groups.
pub fn panel_names(report: &Report, name: impl Fn(&Group) -> String) -> Vec<String> {
    let mut names = Vec::new();
    for group in &report.groups {
        let name = name(group);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
