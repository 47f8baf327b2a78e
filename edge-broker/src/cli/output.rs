//! What a command prints: lines and tables on standard output, errors on standard error.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use super::{CliError, args::Output};

/// Writes bytes to standard output.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| CliError::write(&e))
}

/// Writes a line to standard output.
pub(crate) fn line(text: &str) -> Result<(), CliError> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes a value as JSON, indented, to standard output.
pub(crate) fn json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CliError::failed(e.to_string()))?;
    line(&text)
}

/// Writes what a command did: as JSON, or in a sentence.
pub(crate) fn told(how: Output, value: &impl Serialize, text: &str) -> Result<(), CliError> {
    match how {
        Output::Json => json(value),
        Output::Table => line(text),
    }
}

/// Writes an error to standard error.
pub(crate) fn error(text: &str) {
    note(&format!("seaway: {text}"));
}

/// Writes a note to standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Whether somebody looks at standard error.
pub(crate) fn watched() -> bool {
    std::io::stderr().is_terminal()
}

/// Longest name in a table, in characters.
const NAME_SHOWN_MAX: usize = 48;

/// Rows under headings, in columns.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings; a heading that begins with `>` aligns its column to the right.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(ToString::to_string).collect()] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Whether there are no rows under the headings.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }

    /// The table as text, each line ended.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        let (mut widths, mut right) = (Vec::new(), Vec::new());
        for (index, row) in self.rows.iter().enumerate() {
            for (column, cell) in row.iter().enumerate() {
                let shown = cell.trim_start_matches('>').chars().count();
                match widths.get_mut(column) {
                    Some(width) => *width = shown.max(*width),
                    None => widths.push(shown),
                }
                if index == 0 {
                    right.push(cell.starts_with('>'));
                }
            }
        }
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&right) {
                let cell = if index == 0 { cell.trim_start_matches('>') } else { cell };
                line.push_str(&if *right { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") });
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A name for a column: long ones are cut, since they would push all else off the screen. JSON has them whole.
pub(crate) fn short(name: &str) -> String {
    if name.chars().count() <= NAME_SHOWN_MAX {
        return name.to_string();
    }
    let begin: String = name.chars().take(NAME_SHOWN_MAX - 1).collect();
    format!("{begin}…")
}

/// A number of bytes for people.
pub(crate) fn size(bytes: f64) -> String {
    let mut left = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if left < 1024.0 {
            return if unit == "B" { format!("{left:.0} B") } else { format!("{left:.1} {unit}") };
        }
        left /= 1024.0;
    }
    format!("{left:.1} TiB")
}

/// `1 message`, `2 messages`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", ">SIZE"]);
        assert!(table.is_empty());
        table.row(["a".to_string(), "10".to_string()]);
        table.row(["longer".to_string(), "2".to_string()]);
        assert_eq!(table.render(), "NAME    SIZE\na         10\nlonger     2\n");
    }

    #[test]
    fn long_names_are_cut_and_say_so() {
        assert_eq!(short("orders"), "orders");
        assert_eq!(short(&"ä".repeat(48)), "ä".repeat(48));
        assert_eq!(short(&"ä".repeat(49)), format!("{}…", "ä".repeat(47)));
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(size(0.0), "0 B");
        assert_eq!(size(1536.0), "1.5 KiB");
        assert_eq!(size(1e15), "909.5 TiB");
    }
}
