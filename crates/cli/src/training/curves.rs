//! The curves of a run as SVG, from its log.

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use serde_json::Value;

/// Ink of axes and text; as the colours below, it stands out from a white and from a black page.
const INK: RGBColor = RGBColor(0x76, 0x76, 0x76);
const COLOURS: [RGBColor; 4] = [
    RGBColor(0x3a, 0x7b, 0xd5),
    RGBColor(0xb8, 0x74, 0x1a),
    RGBColor(0x2c, 0x8f, 0x57),
    RGBColor(0x9a, 0x62, 0xc9),
];
const WIDTH: u32 = 720;
/// Of one panel.
const HEIGHT: u32 = 230;
/// A panel and the fields of the log that it draws.
const PANELS: [(&str, &[&str]); 4] = [
    ("loss", &["loss", "lm", "kl", "reconstruction"]),
    ("validation perplexity", &["validation_perplexity"]),
    ("norm of the gradient", &["grad_norm"]),
    ("learning rates", &["euclidean_lr", "riemannian_lr"]),
];

/// A field of the log, by step.
struct Series {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

/// The curves of a log; a panel without a line is left out.
pub fn curves(log: &[Value]) -> String {
    let series = |&name: &&'static str| {
        let point = |line: &Value| Some((line["step"].as_f64()?, line[name].as_f64()?));
        Series { name, points: log.iter().filter_map(point).collect() }
    };
    let panels: Vec<(&str, Vec<Series>)> = PANELS
        .iter()
        .map(|(title, names)| (*title, names.iter().map(series).filter(|s| !s.points.is_empty()).collect()))
        .filter(|(_, series): &(_, Vec<Series>)| !series.is_empty())
        .collect();
    let mut svg = String::new();
    {
        let size = (WIDTH, HEIGHT * panels.len().max(1) as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        for (at, (title, series)) in area.split_evenly((panels.len().max(1), 1)).iter().zip(&panels) {
            panel(at, title, series).expect("a string has room");
        }
        area.present().expect("a string has room");
    }
    svg
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Failed = DrawingAreaErrorKind<std::io::Error>;

fn panel(area: &Area<'_>, title: &str, series: &[Series]) -> Result<(), Failed> {
    let [steps, values] = [|point: &(f64, f64)| point.0, |point: &(f64, f64)| point.1].map(|of| {
        let ends = |(low, high): (f64, f64), x: f64| (low.min(x), high.max(x));
        let all = series.iter().flat_map(|series| &series.points).map(of);
        all.fold((f64::INFINITY, f64::NEG_INFINITY), ends)
    });
    // One value alone has no extent.
    let room = (values.1 - values.0).max(1e-3 * values.1.abs()).max(f64::MIN_POSITIVE);
    let x = 0.0..steps.1.max(1.0);
    let y = values.0 - 0.05 * room..values.1 + 0.05 * room;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15, &INK))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(70)
        .build_cartesian_2d(x, y)?;
    mesh(&mut chart)?;
    for (series, colour) in series.iter().zip(COLOURS) {
        let line = LineSeries::new(series.points.iter().copied(), colour.stroke_width(2));
        chart
            .draw_series(line)?
            .label(series.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    if series.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .label_font(("sans-serif", 12, &INK))
            .draw()?;
    }
    Ok(())
}

fn mesh<X, Y>(chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<X, Y>>) -> Result<(), Failed>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64> + AsRangedCoord,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64> + AsRangedCoord,
{
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(8)
        .y_labels(6)
        .y_label_formatter(&|value| label(*value))
        .x_label_formatter(&|step| format!("{step:.0}"))
        .label_style(("sans-serif", 11, &INK))
        .axis_style(INK)
        .bold_line_style(INK.mix(0.3))
        .light_line_style(TRANSPARENT)
        .draw()
}

/// `0.000025` as `2.5e-5`.
fn label(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if !(1e-2..1e5).contains(&size) => format!("{value:.1e}"),
        _ => format!("{:.4}", value).trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_log_has_is_drawn_and_nothing_else() {
        let step = |step: usize| json!({ "step": step, "loss": 3.0 / step as f64, "kl": 0.5, "lm": null });
        let log = [json!({ "step": 0, "validation_perplexity": 31.5 }), step(1), step(2), step(3)];
        let svg = curves(&log);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for shown in ["validation perplexity", "kl"] {
            assert!(svg.contains(shown), "{shown}");
        }
        for hidden in ["learning rates", "reconstruction", "NaN", "inf"] {
            assert!(!svg.contains(hidden), "{hidden}");
        }
        let is_drawn = |colour: &str| svg.to_lowercase().contains(colour);
        assert!(is_drawn("#3a7bd5") && is_drawn("#b8741a") && !is_drawn("#2c8f57"), "loss and kl: {svg}");
    }

    #[test]
    fn a_log_of_nothing_is_still_a_picture() {
        assert!(curves(&[]).starts_with("<svg"));
    }

    #[test]
    fn labels_are_short() {
        assert_eq!([0.0, 2.5e-5, 0.25, 42.0, 1e6].map(label), ["0", "2.5e-5", "0.25", "42", "1.0e6"]);
    }
}
