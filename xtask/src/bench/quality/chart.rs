//! `quality.svg`: a panel a model, a line a method.

use anyhow::Result;

use super::super::markdown::bytes;
use super::super::svg::{Chart, Line, Panel, Tick};
use super::page::same;
use super::record::{Measured, Point, Protocol, Record};

/// Methods in the order of the legend; the place fixes the colour, whatever was measured.
const METHODS: [&str; 5] = ["separate", "xkv", "joint", "decoupled_rope", "cascade"];

/// The chart of a record.
///
/// # Errors
/// When the record lacks what a line needs.
pub fn chart(record: &Record) -> Result<Chart> {
    let texts: Vec<&str> = record.protocol.texts.iter().map(|text| text.trim_end_matches(".txt")).collect();
    let panels = record.models.iter().map(|model| panel(model, &record.protocol)).collect::<Result<_>>()?;
    Ok(Chart {
        title: "Perplexity against cache bytes".to_owned(),
        x_title: "cache of a token at 16 bit".to_owned(),
        y_title: format!("perplexity / donor's, geometric mean of {}", texts.join(" and ")),
        legend: METHODS.map(str::to_owned).to_vec(),
        panels,
    })
}

fn panel(model: &Measured, protocol: &Protocol) -> Result<Panel> {
    let points = model.points(protocol)?;
    let donor_bytes = model.donor_cache_bytes()?;
    let tick = |ratio: &f64| Tick {
        at: donor_bytes / ratio,
        label: bytes(donor_bytes / ratio),
        note: format!("{ratio}x smaller"),
    };
    let line = |points: Vec<&Point>| Line {
        series: METHODS.iter().position(|method| *method == points[0].method).unwrap_or(METHODS.len()),
        label: format!("{} {} {}", points[0].label, points[0].objective, points[0].ranks),
        points: points.iter().map(|point| (point.cache_bytes_a_token, mean(&point.relative))).collect(),
    };
    Ok(Panel {
        title: model.name.clone(),
        x_ticks: protocol.ratios.iter().map(tick).collect(),
        lines: best(&points).into_iter().map(line).collect(),
    })
}

/// Each method's best configuration, its points from the smallest cache to the largest.
///
/// The best is the one measured at most ratios, and of those the one with the smallest geometric mean.
pub fn best(points: &[Point]) -> Vec<Vec<&Point>> {
    let mut found = Vec::new();
    for method in METHODS {
        let mut configurations: Vec<Vec<&Point>> = Vec::new();
        for point in points.iter().filter(|point| point.method == method) {
            match configurations.iter_mut().find(|known| same(known[0], point)) {
                Some(known) => known.push(point),
                None => configurations.push(vec![point]),
            }
        }
        let all = |known: &[&Point]| {
            mean(&known.iter().flat_map(|point| point.relative.clone()).collect::<Vec<_>>())
        };
        let order = |a: &Vec<&Point>, b: &Vec<&Point>| b.len().cmp(&a.len()).then(all(a).total_cmp(&all(b)));
        if let Some(mut best) = configurations.into_iter().min_by(order) {
            best.sort_by(|a, b| a.cache_bytes_a_token.total_cmp(&b.cache_bytes_a_token));
            found.push(best);
        }
    }
    found
}

/// The geometric mean, as befits quotients.
fn mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::super::record::sample;
    use super::*;

    fn points() -> Vec<Point> {
        let rows = [
            ("cascade w3 fisher global", 2.0, [10.0, 20.0]),
            ("cascade w7 fisher global", 2.0, [10.0, 22.0]),
            ("cascade w7 fisher global", 4.0, [11.0, 23.0]),
            ("separate mse uniform", 2.0, [12.0, 24.0]),
            ("separate fisher uniform", 2.0, [11.0, 26.0]),
        ];
        sample("llama", &rows).points(&Protocol::full()).expect("complete")
    }

    #[test]
    fn a_line_is_one_configuration_the_one_that_reaches_furthest_and_then_the_best() {
        let points = points();
        let lines = best(&points);
        let shown: Vec<_> =
            lines.iter().map(|line| (line[0].label.as_str(), line[0].objective.as_str())).collect();
        assert_eq!(shown, [("separate", "fisher"), ("cascade w7", "fisher")]);
        assert_eq!(lines[1].iter().map(|point| point.ratio).collect::<Vec<_>>(), [4.0, 2.0]);
    }

    #[test]
    fn a_panel_shows_bytes_and_the_geometric_mean_of_the_texts() {
        let model = sample("llama", &[("separate mse uniform", 2.0, [20.0, 160.0])]);
        let chart = chart(&Record { protocol: Protocol::full(), models: vec![model] }).expect("complete");
        let line = &chart.panels[0].lines[0];
        assert_eq!((line.series, line.label.as_str()), (0, "separate mse uniform"));
        assert_eq!(line.points[0].0, 768.0);
        // Twice and eight times the donor's perplexity: four times.
        assert!((line.points[0].1 - 4.0).abs() < 1e-12);
        assert_eq!(chart.panels[0].x_ticks[2].label, "192 B");
        assert_eq!(chart.y_title, "perplexity / donor's, geometric mean of heldout and mobydick");
    }
}
