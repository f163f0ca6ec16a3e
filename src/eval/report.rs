//! What a task found, as a table.

use serde::Serialize;

use super::Measure;

/// Rows of measures under the same columns.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Table {
    /// The task.
    pub task: String,
    /// What the numbers are, in one line: how they were obtained and of what.
    pub what: String,
    /// Heads of the columns, without that of the row names.
    pub columns: Vec<String>,
    /// Names what the rows are.
    pub of: String,
    /// The rows.
    pub rows: Vec<Row>,
}

/// A row of a [`Table`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What it is about.
    pub name: String,
    /// One per column.
    pub cells: Vec<Measure>,
}

impl Table {
    /// The row of that name.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// The lines of the table, columns aligned: each measure with its interval, and a share with its counts.
    pub fn lines(&self) -> Vec<String> {
        let mut grid =
            vec![std::iter::once(self.of.clone()).chain(self.columns.iter().cloned()).collect::<Vec<_>>()];
        grid.extend(self.rows.iter().map(|row| {
            std::iter::once(row.name.clone()).chain(row.cells.iter().map(ToString::to_string)).collect()
        }));
        let widths: Vec<usize> = (0..=self.columns.len())
            .map(|c| {
                grid.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let mut lines = vec![format!("{}: {}", self.task, self.what)];
        lines.extend(grid.iter().map(|row| {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(
                    |(c, (cell, &width))| {
                        if c == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                    },
                )
                .collect();
            format!("  {}", cells.join("  ")).trim_end().to_owned()
        }));
        lines
    }
}

impl std::fmt::Display for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.hits {
            Some(hits) => {
                write!(f, "{:.3} [{:.2}, {:.2}] {hits}/{}", self.value, self.low, self.high, self.n)
            }
            None if self.n == 0 => write!(f, "-"),
            None if self.n == 1 => write!(f, "{:.3}", self.value),
            None => write!(f, "{:.3} [{:.3}, {:.3}]", self.value, self.low, self.high),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row = |name: &str, cells| Row { name: name.into(), cells };
        let table = Table {
            task: "t".into(),
            what: "w".into(),
            columns: vec!["a".into(), "b".into()],
            of: "tokens".into(),
            rows: vec![
                row("512", vec![Measure::share(1, 2), Measure::mean(&[2.0])]),
                row("4096", vec![Measure::share(10, 20), Measure::mean(&[])]),
            ],
        };
        assert_eq!(
            table.lines(),
            [
                "t: w",
                "  tokens                         a      b",
                "  512       0.500 [0.09, 0.91] 1/2  2.000",
                "  4096    0.500 [0.30, 0.70] 10/20      -",
            ]
        );
        assert!(table.row("4096").is_some() && table.row("1").is_none());
    }
}
