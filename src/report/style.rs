//! Colours, markers and dashes of series. A method has the same colour on every page; shades of it, markers
//! and dashes tell the groups of a method apart. The colours are distinguishable with colour blindness, the
//! shades by their lightness.

use plotters::style::RGBColor;

/// The colour of a kind of method, in the order in which methods are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MethodColor {
    /// Blue: GradMem.
    GradMem,
    /// Purple: GradMem without the second-order terms.
    FirstOrder,
    /// Vermilion: RMT.
    Rmt,
    /// Ochre: ARMT.
    Armt,
    /// Grey: the whole context in the prompt.
    InContext,
    /// Green: the whole context in the prompt of a state-space model.
    StateSpace,
}

impl MethodColor {
    /// From light to dark.
    fn shades(self) -> [RGBColor; 3] {
        match self {
            Self::GradMem => [0x56a3dc, 0x1a6bb0, 0x0a2f5c],
            Self::FirstOrder => [0xc977b0, 0x9a3f84, 0x571a49],
            Self::Rmt => [0xee8a4a, 0xd55e00, 0x853a00],
            Self::Armt => [0xd6b24a, 0xa07a00, 0x574200],
            Self::InContext => [0x8c8c8c, 0x595959, 0x1f1f1f],
            Self::StateSpace => [0x35b58f, 0x00875f, 0x004a35],
        }
        .map(rgb)
    }

    /// The marker of a series: six have the same, which differ in their shades and dashes.
    fn marker(self, index: usize) -> Marker {
        let first = match self {
            Self::GradMem => 0,
            Self::Rmt => 1,
            Self::InContext | Self::StateSpace => 2,
            Self::FirstOrder | Self::Armt => 3,
        };
        let all = [
            Marker::Circle,
            Marker::Square,
            Marker::Triangle,
            Marker::Diamond,
        ];
        all[(first + index / 6) % all.len()]
    }
}

/// The shape of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// ●
    Circle,
    /// ■
    Square,
    /// ▲
    Triangle,
    /// ◆
    Diamond,
}

/// See [`Style`].
pub type Dashes = Option<(u8, u8)>;

/// Those of a horizontal line, and of series.
pub const DASHED: Dashes = Some((5, 4));

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Of lines and points.
    pub color: RGBColor,
    /// Of points.
    pub marker: Marker,
    /// Lengths of the dashes of its lines and of the gaps between them, in CSS pixels; none if they are whole.
    pub dashes: Dashes,
}

/// From the first of an ordered series to the last: dark violet, blue, green, light green.
const ORDERED: [u32; 8] = [
    0x440154, 0x472d7b, 0x3b528b, 0x2c728e, 0x21918c, 0x28ae80, 0x5ec962, 0xaddc30,
];

impl Style {
    /// The style of number `at`, from 0, of `count` ordered series that are no methods.
    pub fn ordered(at: usize, count: usize) -> Self {
        let last = ORDERED.len() - 1;
        let place = at * last / count.saturating_sub(1).max(1);
        Self {
            color: rgb(ORDERED[place.min(last)]),
            marker: Marker::Circle,
            dashes: None,
        }
    }
}

fn rgb(hex: u32) -> RGBColor {
    RGBColor((hex >> 16) as u8, (hex >> 8) as u8, hex as u8)
}

/// The styles of series, by their names.
#[derive(Clone, Debug)]
pub struct Palette(Vec<(String, Style)>);

impl Palette {
    /// Gives each name a style in its method's colour; a name may be given more than once. The order is that
    /// of the legend: by colour, then as given.
    pub fn new(series: impl IntoIterator<Item = (MethodColor, String)>) -> Self {
        let mut names: Vec<(MethodColor, String)> = Vec::new();
        for name in series {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.sort_by_key(|(color, _)| *color);
        let styles = names.iter().enumerate().map(|(at, (color, name))| {
            let same = |names: &[(MethodColor, String)]| {
                names.iter().filter(|other| other.0 == *color).count()
            };
            let (index, all) = (same(&names[..at]), same(&names));
            let shade = match all {
                1 => 1,
                2 => 2 * index,
                _ => index % 3,
            };
            let style = Style {
                color: color.shades()[shade],
                marker: color.marker(index),
                dashes: [None, DASHED, Some((2, 3))][index / 3 % 3],
            };
            (name.clone(), style)
        });
        Self(styles.collect())
    }

    /// The style of a series.
    pub fn get(&self, name: &str) -> Option<Style> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, style)| *style)
    }

    /// The legend: the series that are in `drawn`, each with its style.
    pub fn legend(&self, drawn: &[String]) -> Vec<(String, Style)> {
        let entries = self.0.iter().filter(|(name, _)| drawn.contains(name));
        entries.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_dozen_series_of_a_method_have_styles_of_their_own() {
        let names: Vec<_> = (0..24).map(|at| format!("K = {at}")).collect();
        let series = names.iter().map(|name| (MethodColor::Rmt, name.clone()));
        let legend = Palette::new(series).legend(&names);
        for (at, (name, style)) in legend.iter().enumerate() {
            let alike = legend[..at].iter().find(|(_, other)| other == style);
            assert!(alike.is_none(), "{name} and {alike:?}");
        }
        // Where lines have no markers.
        let line = |style: &Style| (style.color, style.dashes);
        for (at, (_, style)) in legend[..9].iter().enumerate() {
            assert!(
                legend[..at]
                    .iter()
                    .all(|(_, other)| line(other) != line(style))
            );
        }
        assert_eq!(legend.len(), 24);
        assert_eq!(legend[0].1.marker, Marker::Square);
    }
}
