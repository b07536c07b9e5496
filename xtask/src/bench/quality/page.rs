//! `quality.md`: the tables.

use anyhow::Result;

use super::super::markdown::{bold_smallest, bytes, seconds, table};
use super::chart::best;
use super::record::{Answer, Measured, Point, Protocol, Record};

/// The whole page.
///
/// # Errors
/// When the record lacks what a table needs.
pub fn page(record: &Record) -> Result<String> {
    let Protocol { calibration, calibration_windows, calibration_length, windows, length, .. } =
        &record.protocol;
    let texts: Vec<String> = record.protocol.texts.iter().map(|text| format!("`{text}`")).collect();
    let mut page = format!(
        "# Perplexity against cache bytes\n\n\
         Made by `cargo xtask bench quality`; the raw numbers are in [quality.json](quality.json). A cell is the \
         perplexity over the donor's on the same text, so 1 is the donor; the best of a column is bold.\n\n\
         - Calibrated on {calibration_windows} windows of {calibration_length} tokens ({} tokens), spread evenly over \
         `{calibration}`: Jane Austen's novels and State of the Union addresses to 1994.\n\
         - Measured on the first {windows} windows of {length} tokens ({} tokens) of {}: State of the Union addresses \
         from 1995 on, and Moby-Dick. The first is new text of a kind calibrated on, the second of another kind.\n\
         - A ratio is the donor's cache over the converted model's, so the methods of a column have the same cache \
         bytes.\n\
         - Methods and metrics are explained in [methods.md](../methods.md) and [metrics.md](../metrics.md). `decoupled_rope` keeps 16 dimensions, `cascade w7` reads 7 earlier layers, \
         `xkv` shares among 4.\n\n\
         ![Perplexity against cache bytes](quality.svg)\n\n\
         In the chart a line is one method in its best configuration: the one with the smallest geometric mean over all \
         columns of the table. It was chosen on the texts it is shown on, as the best of a table is.\n",
        calibration_windows * calibration_length,
        windows * length,
        texts.join(" and "),
    );
    for model in &record.models {
        page += &section(model, &record.protocol)?;
    }
    Ok(page)
}

fn section(model: &Measured, protocol: &Protocol) -> Result<String> {
    let points = model.points(protocol)?;
    let donor = model.donor()?;
    let donors: Vec<String> = protocol
        .texts
        .iter()
        .zip(&donor)
        .map(|(text, perplexity)| format!("{perplexity:.3} on `{text}`"))
        .collect();
    let shown: Vec<String> = best(&points).iter().map(|points| configuration(points[0])).collect();
    Ok(format!(
        "\n## {name}\n\n{about}\n\n\
         The donor's perplexity is {donors}, its cache {cache} a token at 16 bit. In the chart: {shown}.\n\n\
         {table}\n\
         Measured by:\n\n{commands}\n",
        name = model.name,
        about = model.about,
        donors = donors.join(" and "),
        cache = bytes(model.donor_cache_bytes()?),
        shown = shown.join(", "),
        table = relative_table(&points, protocol),
        commands = model.answers.iter().map(command).collect::<Vec<_>>().join("\n"),
    ))
}

fn command(answer: &Answer) -> String {
    let Answer { command, setting, elapsed_s, .. } = answer;
    format!("```text\n# {}, {} s\n{command}\n```\n", setting.line(), seconds(*elapsed_s))
}

/// Rows are configurations, columns ratios of each text.
fn relative_table(points: &[Point], protocol: &Protocol) -> String {
    let mut configurations: Vec<&Point> = Vec::new();
    for point in points {
        if !configurations.iter().any(|known| same(known, point)) {
            configurations.push(point);
        }
    }
    let mut titles = ["method", "metric", "ranks"].map(str::to_owned).to_vec();
    let mut columns = Vec::new();
    for (at, text) in protocol.texts.iter().enumerate() {
        for &ratio in &protocol.ratios {
            titles.push(format!("{} {ratio}x", text.trim_end_matches(".txt")));
            let value = |configuration: &&Point| {
                let point = points.iter().find(|point| same(point, configuration) && point.ratio == ratio);
                point.and_then(|point| point.relative.get(at).copied())
            };
            let column: Vec<Option<f64>> = configurations.iter().map(value).collect();
            columns.push(bold_smallest(&column, |relative| format!("{relative:.3}")));
        }
    }
    let row = |(at, point): (usize, &&Point)| {
        let words = [&point.label, &point.objective, &point.ranks];
        words.into_iter().cloned().chain(columns.iter().map(|column| column[at].clone())).collect()
    };
    let rows: Vec<Vec<String>> = configurations.iter().enumerate().map(row).collect();
    table(&titles, 3, &rows)
}

/// Whether two points differ in nothing but the ratio.
pub fn same(a: &Point, b: &Point) -> bool {
    (&a.label, &a.objective, &a.ranks) == (&b.label, &b.objective, &b.ranks)
}

fn configuration(point: &Point) -> String {
    format!("{} {} {}", point.label, point.objective, point.ranks)
}

#[cfg(test)]
mod tests {
    use super::super::record::sample;
    use super::*;

    fn measured() -> Record {
        let model = sample(
            "llama",
            &[
                ("separate mse uniform", 2.0, [11.0, 20.2]),
                ("joint fisher global", 2.0, [10.5, 20.4]),
                ("separate mse uniform", 4.0, [20.0, 60.0]),
            ],
        );
        Record { protocol: Protocol::full(), models: vec![model] }
    }

    #[test]
    fn a_row_is_a_configuration_and_the_best_of_each_column_is_bold() {
        let page = page(&measured()).expect("complete");
        for line in [
            "| method | metric | ranks | heldout 2x | heldout 4x | heldout 8x | mobydick 2x | mobydick 4x | mobydick 8x |",
            "| separate | mse | uniform | 1.100 | **2.000** | – | **1.010** | **3.000** | – |",
            "| joint | fisher | global | **1.050** | – | – | 1.020 | – | – |",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn a_page_says_how_it_was_made() {
        let page = page(&measured()).expect("complete");
        for fact in [
            "32 windows of 512 tokens (16384 tokens)",
            "first 10 windows of 512 tokens (5120 tokens) of `heldout.txt` and `mobydick.txt`",
            "10.000 on `heldout.txt` and 20.000 on `mobydick.txt`, its cache 1.50 KiB a token",
            "About llama.",
            "# 2025-01-31, shrink 0.1.0 (abc), 2 × CPU, 90.0 s",
            "shrink compare llama",
            "](quality.svg)",
        ] {
            assert!(page.contains(fact), "{fact} is not in\n{page}");
        }
    }
}
