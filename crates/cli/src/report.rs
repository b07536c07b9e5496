//! Bytes, percentages and tables as people read them.

/// Bytes in the largest unit that keeps a digit before the point: `512 B`, `14 MB`, `1.88 GB` (1 MB = 2²⁰ bytes).
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value.fract() == 0.0 && unit < 3 { 0 } else { 2 };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = {
        let first = digits.len() % 3;
        let rest = (first..digits.len()).step_by(3).map(|at| &digits[at..at + 3]);
        std::iter::once(&digits[..first]).filter(|group| !group.is_empty()).chain(rest).collect()
    };
    groups.join(",")
}

/// A table with aligned columns: the first to the left, the others to the right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().enumerate().map(|(i, cell)| match i {
            0 => format!("{cell:<width$}", width = widths[i]),
            _ => format!("{cell:>width$}", width = widths[i]),
        });
        let line = padded.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
    let mut out = line(header.to_vec());
    out += &line(rule.iter().map(String::as_str).collect());
    rows.iter().for_each(|row| out += &line(row.iter().map(String::as_str).collect()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_as_the_published_tables_do() {
        let read =
            [(0, "0 B"), (28 << 20, "28 MB"), (1 << 30, "1.00 GB"), ((4 << 30) - (256 << 20), "3.75 GB")];
        for (n, text) in read {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(bytes(1536), "1.50 KB");
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["bcd".into(), "20".into()]];
        assert_eq!(table(&["x", "n"], &rows), "x     n\n---  --\na     1\nbcd  20\n");
    }
}
