//! A chart of small panels as SVG: both axes logarithmic, no background, colours that read on white and on black.

use std::fmt::Write;

/// Panels side by side under one legend.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// What it shows, for who cannot see it.
    pub title: String,
    /// What lies along the panels.
    pub x_title: String,
    /// What goes up.
    pub y_title: String,
    /// The series, in the order of their colours.
    pub legend: Vec<String>,
    /// The panels.
    pub panels: Vec<Panel>,
}

/// One pair of axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// Written above.
    pub title: String,
    /// Marks of the x axis, which span it.
    pub x_ticks: Vec<Tick>,
    /// What is drawn.
    pub lines: Vec<Line>,
}

/// A mark of the x axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Where.
    pub at: f64,
    /// The first line under it.
    pub label: String,
    /// The second.
    pub note: String,
}

/// A line through points of positive coordinates.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its place in the legend.
    pub series: usize,
    /// What the pointer shows.
    pub label: String,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

/// Ink of axes and text; as the colours below, it stands out from white and from black.
const INK: &str = "#767676";
/// A colour, a dash pattern and a mark for each series, so that none is told by its colour alone.
const STYLES: [(&str, &str, Mark); 6] = [
    ("#3a7bd5", "none", Mark::Circle),
    ("#b8741a", "2 3", Mark::Square),
    ("#2c8f57", "7 3", Mark::Triangle),
    ("#9a62c9", "1 3 6 3", Mark::Diamond),
    ("#d64550", "none", Mark::Cross),
    (INK, "3 3", Mark::Circle),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mark {
    Circle,
    Square,
    Triangle,
    Diamond,
    Cross,
}

const COLUMNS: usize = 2;
/// A panel's plot, and the room around it for labels.
const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 16.0;
const ABOVE: f64 = 34.0;
const BELOW: f64 = 46.0;
/// Room at the left for the y title.
const Y_TITLE: f64 = 24.0;
/// Room below all panels for the x title and the legend.
const FOOT: f64 = 62.0;
/// From a plot's frame to its outermost points.
const PADDING: f64 = 14.0;
/// Marks of the y axis are at least this far apart.
const LEAST_GAP: f64 = 17.0;

impl Chart {
    /// The file's text.
    pub fn svg(&self) -> String {
        let columns = self.panels.len().clamp(1, COLUMNS);
        let rows = self.panels.len().div_ceil(columns).max(1);
        let cell = (LEFT + WIDTH + RIGHT, ABOVE + HEIGHT + BELOW);
        let (width, plots) = (Y_TITLE + columns as f64 * cell.0, rows as f64 * cell.1);
        let height = plots + FOOT;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\" font-family=\"system-ui, sans-serif\" fill=\"{INK}\">\n\
             <title>{}</title>\n",
            escaped(&self.title)
        );
        for (at, panel) in self.panels.iter().enumerate() {
            let corner =
                (Y_TITLE + LEFT + (at % columns) as f64 * cell.0, ABOVE + (at / columns) as f64 * cell.1);
            out += &panel.svg(corner);
        }
        let middle = Y_TITLE + (width - Y_TITLE) / 2.0;
        out += &text((middle, plots + 8.0), "middle", 12, &self.x_title);
        let _ = writeln!(
            out,
            "<text transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\" font-size=\"12\">{}</text>",
            plots / 2.0,
            escaped(&self.y_title)
        );
        out += &self.legend(middle, plots + 38.0);
        out + "</svg>\n"
    }

    /// The series that some panel draws, in a row around `middle`.
    fn legend(&self, middle: f64, y: f64) -> String {
        // Letters are about 6.5 units wide; a sample of the line takes 40 and a gap 18.
        let room = |label: &String| 58.0 + 6.5 * label.chars().count() as f64;
        let drawn = |series: &usize| {
            self.panels.iter().flat_map(|panel| &panel.lines).any(|line| line.series == *series)
        };
        let shown: Vec<usize> = (0..self.legend.len()).filter(drawn).collect();
        let mut x = middle - shown.iter().map(|&series| room(&self.legend[series])).sum::<f64>() / 2.0;
        let mut out = String::new();
        for series in shown {
            let label = &self.legend[series];
            out += &stroke(series, &[(x, y - 4.0), (x + 34.0, y - 4.0)]);
            out += &mark(series, (x + 17.0, y - 4.0), "");
            out += &text((x + 40.0, y), "start", 12, label);
            x += room(label);
        }
        out
    }
}

impl Panel {
    /// The panel with the upper left corner of its plot at `corner`.
    fn svg(&self, (left, top): (f64, f64)) -> String {
        let xs: Vec<f64> = self.x_ticks.iter().map(|tick| tick.at).collect();
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let x = Axis::over(
            xs.into_iter().chain(all().map(|point| point.0)),
            left + PADDING,
            left + WIDTH - PADDING,
        );
        // 1 is the donor, and always in sight.
        let ys = std::iter::once(1.0).chain(all().map(|point| point.1));
        let y = Axis::over(ys, top + HEIGHT - PADDING, top + PADDING);
        let bottom = top + HEIGHT;
        let mut out = text((left, top - 12.0), "start", 14, &self.title);
        let _ = writeln!(
            out,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"{INK}\" \
             stroke-opacity=\"0.5\"/>"
        );
        for tick in y_ticks(&y) {
            let at = y.place(tick);
            let strength = if tick == 1.0 { "0.8" } else { "0.25" };
            let _ = writeln!(
                out,
                "<path d=\"M{left:.1} {at:.1}h{WIDTH}\" stroke=\"{INK}\" stroke-opacity=\"{strength}\"/>"
            );
            out += &text((left - 6.0, at + 4.0), "end", 12, &tick.to_string());
        }
        for tick in &self.x_ticks {
            let at = x.place(tick.at);
            let _ = writeln!(out, "<path d=\"M{at:.1} {bottom:.1}v5\" stroke=\"{INK}\"/>");
            out += &text((at, bottom + 18.0), "middle", 12, &tick.label);
            out += &text((at, bottom + 32.0), "middle", 10, &tick.note);
        }
        for line in &self.lines {
            let places: Vec<_> = line.points.iter().map(|&(px, py)| (x.place(px), y.place(py))).collect();
            out += &stroke(line.series, &places);
            for (place, point) in places.iter().zip(&line.points) {
                out += &mark(line.series, *place, &format!("{}: {:.3}", line.label, point.1));
            }
        }
        out
    }
}

/// A logarithmic axis: the values `low` and `high` lie at `from` and `to`.
#[derive(Clone, Copy, Debug)]
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let ends = |(low, high): (f64, f64), value: f64| (low.min(value), high.max(value));
        let (low, high) = values.filter(|value| *value > 0.0).fold((f64::INFINITY, 0.0), ends);
        // One value alone has no extent; neither have none.
        let (low, high) = if low < high {
            (low, high)
        } else if low == high {
            (low, 1.01 * low)
        } else {
            (1.0, 2.0)
        };
        Self { low, high, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        self.from + (value / self.low).ln() / (self.high / self.low).ln() * (self.to - self.from)
    }
}

/// Round values of an axis that do not stand in each other's way; 1 comes first.
fn y_ticks(axis: &Axis) -> Vec<f64> {
    // The roundest first: those that come later take only the room that is left.
    let tens = [1.0_f64, 10.0, 100.0, 1000.0, 1e4];
    let rounds = [
        &[1.0][..],
        &[2.0, 5.0],
        &[1.5, 3.0, 7.0],
        &[1.1, 1.2, 1.3, 4.0],
        &[1.05, 1.4, 1.7, 2.5],
        &[1.01, 1.02, 1.03],
    ];
    let mut ticks: Vec<f64> = Vec::new();
    for round in rounds {
        for value in tens.iter().flat_map(|ten| round.iter().map(move |digit| digit * ten)) {
            let value = (100.0 * value).round() / 100.0;
            let within = (axis.low..=axis.high).contains(&value);
            let free = |tick: &f64| (axis.place(*tick) - axis.place(value)).abs() >= LEAST_GAP;
            if within && ticks.iter().all(free) {
                ticks.push(value);
            }
        }
    }
    ticks
}

/// A line of text, `anchor`ed at its start, middle or end.
fn text((x, y): (f64, f64), anchor: &str, size: u32, content: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{}</text>\n",
        escaped(content)
    )
}

fn stroke(series: usize, places: &[(f64, f64)]) -> String {
    let (colour, dash, _) = STYLES[series.min(STYLES.len() - 1)];
    let points: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"/>\n",
        points.join(" ")
    )
}

/// A series' mark; `label` is what the pointer shows.
fn mark(series: usize, (x, y): (f64, f64), label: &str) -> String {
    let (colour, _, mark) = STYLES[series.min(STYLES.len() - 1)];
    let label = if label.is_empty() { String::new() } else { format!("<title>{}</title>", escaped(label)) };
    let path = match mark {
        Mark::Circle => "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
        Mark::Square => "m-3.5-3.5h7v7h-7z",
        Mark::Triangle => "m0-5l4.5 8h-9z",
        Mark::Diamond => "m0-5l5 5-5 5-5-5z",
        Mark::Cross => "m-4-4l8 8m0-8l-8 8",
    };
    format!(
        "<path d=\"M{x:.1} {y:.1}{path}\" fill=\"{colour}\" stroke=\"{colour}\" stroke-width=\"{}\">{label}</path>\n",
        if mark == Mark::Cross { "2.5" } else { "1" },
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart {
        let line = |series, y| Line {
            series,
            label: format!("<{series}>"),
            points: vec![(100.0, y), (400.0, 1.01)],
        };
        let tick = |at: f64| Tick { at, label: format!("{at} B"), note: "note".into() };
        let panel = |title: &str| Panel {
            title: title.into(),
            x_ticks: vec![tick(100.0), tick(400.0)],
            lines: vec![line(0, 4.0), line(2, 1.5)],
        };
        Chart {
            title: "a & b".into(),
            x_title: "x".into(),
            y_title: "y".into(),
            legend: ["one", "two", "three"].map(str::to_owned).to_vec(),
            panels: vec![panel("first"), panel("second"), panel("third")],
        }
    }

    /// Luminance relative to white (WCAG 2, *relative luminance*).
    fn luminance(colour: &str) -> f64 {
        let channel = |at: usize| {
            let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).expect("a colour")) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    #[test]
    fn every_colour_stands_out_from_a_light_and_from_a_dark_page() {
        for (colour, ..) in STYLES {
            for page in ["#ffffff", "#0d1117"] {
                let (a, b) = (luminance(colour) + 0.05, luminance(page) + 0.05);
                // 3 is what WCAG 2 asks of graphics.
                assert!(a.max(b) / a.min(b) >= 3.0, "{colour} on {page}: {}", a.max(b) / a.min(b));
            }
        }
    }

    #[test]
    fn tags_are_closed_and_text_is_escaped() {
        let svg = chart().svg();
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1) {
            let name = tag.split([' ', '>', '/']).find(|name| !name.is_empty()).expect("a name");
            match (tag.starts_with('/'), tag.split('>').next().is_some_and(|tag| tag.ends_with('/'))) {
                (true, _) => assert_eq!(open.pop(), Some(name), "{svg}"),
                (false, true) => {}
                (false, false) => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?}");
        assert!(svg.contains("a &amp; b") && svg.contains("&lt;0&gt;: 4.000") && !svg.contains("<0>"));
    }

    #[test]
    fn a_panel_has_its_title_and_the_legend_only_what_is_drawn() {
        let svg = chart().svg();
        for shown in [">first<", ">second<", ">third<", ">one<", ">three<", ">100 B<"] {
            assert!(svg.contains(shown), "{shown}");
        }
        assert!(!svg.contains(">two<"));
    }

    #[test]
    fn equal_quotients_are_equal_distances() {
        let axis = Axis::over([1.0, 16.0].into_iter(), 100.0, 0.0);
        assert_eq!([1.0, 4.0, 16.0].map(|value| axis.place(value).round()), [100.0, 50.0, 0.0]);
        for values in [vec![], vec![1.0], vec![-1.0, 0.0]] {
            let axis = Axis::over(values.into_iter(), 0.0, 1.0);
            assert!(axis.place(1.0).is_finite(), "{axis:?}");
        }
    }

    #[test]
    fn marks_of_the_y_axis_keep_their_distance_and_have_the_donor_among_them() {
        for high in [1.001, 1.05, 1.4, 3.0, 40.0, 5000.0] {
            let axis = Axis::over([1.0, high].into_iter(), 230.0, 0.0);
            let mut ticks = y_ticks(&axis);
            assert_eq!(ticks[0], 1.0);
            ticks.sort_by(f64::total_cmp);
            assert!(ticks.windows(2).all(|w| axis.place(w[0]) - axis.place(w[1]) >= LEAST_GAP), "{ticks:?}");
            assert!(high < 1.02 || ticks.len() > 1, "{high}: {ticks:?}");
        }
    }

    #[test]
    fn a_chart_of_nothing_is_still_a_picture() {
        let svg = Chart { panels: Vec::new(), ..chart() }.svg();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
