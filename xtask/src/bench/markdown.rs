//! Tables of the pages, and how numbers stand in them.

/// A table; the first `left` columns are text, the others numbers.
pub fn table(titles: &[String], left: usize, rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule: Vec<String> =
        (0..titles.len()).map(|column| if column < left { "---" } else { "---:" }.to_owned()).collect();
    let body: String = rows.iter().map(|row| line(row)).collect();
    line(titles) + &line(&rule) + &body
}

/// Formats a column of numbers with the smallest in bold; `None` is a dash. Those that read like the smallest are as good.
pub fn bold_smallest(column: &[Option<f64>], format: impl Fn(f64) -> String) -> Vec<String> {
    let smallest = column.iter().flatten().copied().fold(f64::INFINITY, f64::min);
    let best = format(smallest);
    let cell = |value: &Option<f64>| match value.map(&format) {
        None => "–".to_owned(),
        Some(text) if text == best => format!("**{text}**"),
        Some(text) => text,
    };
    column.iter().map(cell).collect()
}

/// Bytes in the unit that reads best.
pub fn bytes(count: f64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut unit = 0;
    let mut value = count;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Seconds to three figures.
pub fn seconds(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_aligned_right_of_text() {
        let owned = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let text = table(&owned(["method", "2x"]), 1, &[owned(["joint", "1.5"])]);
        assert_eq!(text, "| method | 2x |\n| --- | ---: |\n| joint | 1.5 |\n");
    }

    #[test]
    fn the_smallest_of_a_column_is_bold_with_whatever_reads_alike() {
        let cells = bold_smallest(&[Some(1.0004), None, Some(1.2), Some(1.0001)], |x| format!("{x:.3}"));
        assert_eq!(cells, ["**1.000**", "–", "1.200", "**1.000**"]);
        assert_eq!(bold_smallest(&[None], |x| x.to_string()), ["–"]);
    }

    #[test]
    fn sizes_and_times_have_three_figures() {
        assert_eq!([0.0, 1023.0, 11520.0, 1.5e9].map(bytes), ["0 B", "1023 B", "11.2 KiB", "1.40 GiB"]);
        assert_eq!([1.234, 12.34, 123.4].map(seconds), ["1.23", "12.3", "123"]);
    }
}
