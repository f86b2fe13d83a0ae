//! Text for people and JSON for programs. Colour only on a terminal and without `NO_COLOR`.

use std::{
    fmt::Write as _,
    io::{self, BufWriter, IsTerminal, Write},
};

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use headwater_connector::{Error, Level};
use serde_json::{Value as Json, json};

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned text.
    #[default]
    Text,
    /// One JSON document, or one object per line for streams.
    Json,
}

/// Where a command prints.
pub struct Output {
    /// What was asked for.
    pub format: Format,
    /// Columns of the terminal; none if the output is not one.
    pub width: Option<usize>,
    paint: Paint,
    paint_errors: Paint,
    out: Box<dyn Write>,
}

/// Puts colour around text, or leaves it alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// With colour only if the stream is a terminal that wants it.
    fn of(stream: &impl IsTerminal) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { on: stream.is_terminal() && !no_color && !dumb }
    }

    /// The text in a style.
    pub fn styled(self, text: &str, style: Style) -> String {
        if self.on && !text.is_empty() { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// The text in a colour.
    pub fn colored(self, text: &str, color: AnsiColor) -> String {
        self.styled(text, color.on_default())
    }

    /// The text in bold.
    pub fn bold(self, text: &str) -> String {
        self.styled(text, Style::new().bold())
    }

    /// The text in grey.
    pub fn dim(self, text: &str) -> String {
        self.styled(text, Style::new().dimmed())
    }
}

impl Output {
    /// Standard output.
    pub fn standard(format: Format) -> Self {
        let stdout = io::stdout();
        let width = stdout.is_terminal().then(terminal_size::terminal_size).flatten();
        Self {
            format,
            width: width.map(|(width, _)| usize::from(width.0)),
            paint: Paint::of(&stdout),
            paint_errors: Paint::of(&io::stderr()),
            out: Box::new(BufWriter::new(stdout)),
        }
    }

    /// Into any writer, without colour, for tests.
    pub fn to_writer(format: Format, out: Box<dyn Write>) -> Self {
        Self { format, width: None, paint: Paint::default(), paint_errors: Paint::default(), out }
    }

    /// The colours of standard output.
    pub fn paint(&self) -> Paint {
        self.paint
    }

    /// Prints a line.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        self.bytes(text.as_bytes())?;
        self.bytes(b"\n")
    }

    /// Prints bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Prints one JSON document.
    pub fn document(&mut self, document: &Json) -> io::Result<()> {
        let text = serde_json::to_string_pretty(document).map_err(io::Error::other)?;
        self.line(&text)
    }

    /// Hands over what is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Prints errors to stderr: code and what, where, hint, on lines of their own.
    pub fn errors(&mut self, errors: &[Error]) {
        self.diagnostics(errors, "error", AnsiColor::Red);
    }

    /// Prints warnings to stderr in the same form.
    pub fn warnings(&mut self, warnings: &[Error]) {
        self.diagnostics(warnings, "warning", AnsiColor::Yellow);
    }

    fn diagnostics(&self, errors: &[Error], word: &str, color: AnsiColor) {
        let mut text = String::new();
        for error in errors {
            let head = self.paint_errors.colored(word, color);
            let _ = writeln!(text, "{head}: {}: {}", self.paint_errors.bold(error.code().id), error.what());
            push_details(&mut text, error, "  ", self.paint_errors);
        }
        // If nobody can read stderr there is nobody to tell.
        drop(io::stderr().lock().write_all(text.as_bytes()));
    }
}

/// The lines below an error's first: where, and what to do.
pub fn push_details(text: &mut String, error: &Error, indent: &str, paint: Paint) {
    if !error.place().is_empty() {
        let places: Vec<String> = error.place().iter().map(|(label, value)| format!("{label} {value}")).collect();
        let _ = writeln!(text, "{indent}{} {}", paint.dim("at:"), places.join(", "));
    }
    if !error.hint_text().is_empty() {
        // A statement of several lines stays a block.
        let hint = error.hint_text().replace('\n', &format!("\n{indent}      "));
        let _ = writeln!(text, "{indent}{} {hint}", paint.colored("hint:", AnsiColor::Cyan));
    }
}

/// An error as JSON.
pub fn error_json(error: &Error) -> Json {
    let place: serde_json::Map<String, Json> =
        error.place().iter().map(|(label, value)| ((*label).to_owned(), value.as_str().into())).collect();
    json!({
        "code": error.code().id,
        "kind": error.kind().name(),
        "message": error.what(),
        "place": place,
        "hint": error.hint_text(),
    })
}

/// The mark of a finding.
pub fn mark(level: Level, paint: Paint) -> String {
    match level {
        Level::Ok => paint.colored("✓", AnsiColor::Green),
        Level::Warning => paint.colored("!", AnsiColor::Yellow),
        Level::Error => paint.colored("✗", AnsiColor::Red),
    }
}

/// One cell of a table: the text decides the width, the colour does not.
pub struct Cell {
    text: String,
    color: Option<AnsiColor>,
}

impl Cell {
    /// In the terminal's own colour.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), color: None }
    }

    /// In a colour.
    pub fn colored(text: impl Into<String>, color: AnsiColor) -> Self {
        Self { text: text.into(), color: Some(color) }
    }
}

/// Lines of a table with aligned columns; the last column is not padded.
pub fn table(header: &[&str], rows: &[Vec<Cell>], paint: Paint) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let pad = |text: &str, painted: String, column: usize| {
        let missing = if column + 1 == header.len() { 0 } else { widths[column] - text.chars().count() };
        painted + &" ".repeat(missing)
    };
    let head = header.iter().enumerate().map(|(column, text)| pad(text, paint.bold(text), column));
    let mut lines = vec![head.collect::<Vec<_>>().join("  ")];
    for row in rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let painted = cell.color.map_or_else(|| cell.text.clone(), |color| paint.colored(&cell.text, color));
            pad(&cell.text, painted, column)
        });
        lines.push(cells.collect::<Vec<_>>().join("  ").trim_end().to_owned());
    }
    lines
}
