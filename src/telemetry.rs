//! Logs: text on a terminal, JSON otherwise, always on stderr, never a row value. On a terminal some lines may stay below them.

use std::{
    io::{self, IsTerminal, Stderr, Write},
    sync::{Arc, Mutex},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Starts logging. `RUST_LOG` chooses what is shown; the default is `info`. On a terminal that can draw it returns the place below the log.
pub fn init() -> Option<Footer> {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("info,{}", crate::log::kafka::QUIET)));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    if !io::stderr().is_terminal() {
        // A second call, in tests, changes nothing.
        let _ = builder.json().flatten_event(true).with_ansi(false).try_init();
        return None;
    }
    if std::env::var_os("TERM").is_none_or(|term| term == "dumb") {
        let _ = builder.compact().try_init();
        return None;
    }
    let footer = Footer(Arc::new(Mutex::new(Below { out: io::stderr(), lines: Vec::new() })));
    let _ = builder.with_writer(footer.clone()).compact().try_init();
    Some(footer)
}

/// Lines that stay below the log on a terminal.
pub struct Footer<W = Stderr>(Arc<Mutex<Below<W>>>);

/// Another hand on the same place.
impl<W> Clone for Footer<W> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Below<W> {
    out: W,
    lines: Vec<String>,
}

impl Footer {
    /// Draws these lines, cut to the terminal, in the place of those that are there.
    pub fn show(&self, lines: &[String]) {
        let width = terminal_size::terminal_size_of(io::stderr()).map_or(80, |(width, _)| usize::from(width.0));
        let cut = |line: &String| line.chars().take(width.saturating_sub(1)).collect();
        self.put(&[], Some(lines.iter().map(cut).collect()));
    }
}

impl<W: Write> Footer<W> {
    /// Writes log lines above the footer, and a new footer if there is one.
    fn put(&self, log: &[u8], lines: Option<Vec<String>>) {
        let mut below = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if lines.as_ref() == Some(&below.lines) && log.is_empty() {
            return;
        }
        let mut bytes = Vec::new();
        if !below.lines.is_empty() {
            // Up to the first of them, and clear from there.
            bytes.extend_from_slice(format!("\x1b[{}F\x1b[J", below.lines.len()).as_bytes());
        }
        below.lines = lines.unwrap_or_else(|| std::mem::take(&mut below.lines));
        bytes.extend_from_slice(log);
        for line in &below.lines {
            bytes.extend_from_slice(line.as_bytes());
            bytes.push(b'\n');
        }
        // If nobody can read stderr there is nobody to tell.
        drop(below.out.write_all(&bytes));
        drop(below.out.flush());
    }
}

impl<'a> MakeWriter<'a> for Footer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// One call is one whole line of the log.
impl<W: Write> Write for Footer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes, None);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_stand_above_the_footer() {
        let mut footer = Footer(Arc::new(Mutex::new(Below { out: Vec::new(), lines: Vec::new() })));
        let lines = |lines: &[&str]| Some(lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>());
        footer.put(&[], lines(&["one", "two"]));
        footer.write_all(b"log\n").unwrap();
        // What is there already is not drawn again.
        footer.put(&[], lines(&["one", "two"]));
        footer.put(&[], lines(&[]));
        footer.write_all(b"last\n").unwrap();
        let written = String::from_utf8(footer.0.lock().unwrap().out.clone()).unwrap();
        assert_eq!(written, "one\ntwo\n\x1b[2F\x1b[Jlog\none\ntwo\n\x1b[2F\x1b[Jlast\n");
    }
}
