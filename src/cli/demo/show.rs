//! What a person sees: the shop on one side, events on the other, and what happens to the daemon between them.

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anstyle::{AnsiColor, Style};
use tokio::time::Instant;

use super::{
    Played,
    ledger::{Ledger, TABLES},
};
use crate::log::{
    From, Log, StoredRecord,
    embedded::{EmbeddedLog, Mode, Options},
};

/// Every n-th event is shown; tombstones more often, because they are rare and worth seeing.
const SHOWN: u64 = 17;
const SHOWN_TOMBSTONES: u64 = 5;
/// Rows that were there before are many.
const SHOWN_READS: u64 = 1_000;

/// Width when there is no terminal.
const PLAIN_WIDTH: usize = 160;

/// Prints lines; colours and cuts them on a terminal only.
#[derive(Clone)]
pub struct Show(Arc<Inner>);

struct Inner {
    terminal: bool,
    width: usize,
    began: Instant,
}

impl Show {
    /// On standard output.
    pub fn new() -> Self {
        let terminal = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let width = terminal_size::terminal_size().map_or(PLAIN_WIDTH, |(width, _)| usize::from(width.0));
        Self(Arc::new(Inner { terminal, width, began: Instant::now() }))
    }

    /// The first line.
    pub fn title(&self, server: &str) {
        self.line(
            "demo",
            AnsiColor::Cyan,
            &format!("a shop on {server} becomes topics, and the daemon gets killed {} times", super::KILLS),
        );
    }

    /// Something that takes a moment.
    pub fn step(&self, text: &str) {
        self.line("demo", AnsiColor::Cyan, text);
    }

    /// A change in the monolith.
    pub fn shop(&self, words: &str) {
        self.line("shop", AnsiColor::Blue, words);
    }

    /// The daemon streams.
    pub fn daemon_started(&self, pid: Option<u32>) {
        self.line("start", AnsiColor::Cyan, &format!("headwater streams (pid {})", pid.unwrap_or(0)));
    }

    /// The daemon is dead.
    pub fn killed(&self, pid: Option<u32>, reading: Option<u64>) {
        let when = reading.map_or_else(|| "in mid-flow".to_owned(), |rows| format!("in mid-backfill, after {rows} rows"));
        let text = format!("SIGKILL to headwater (pid {}) {when}; the shop goes on without it", pid.unwrap_or(0));
        self.line("KILL", AnsiColor::Red, &text);
    }

    /// The daemon is back.
    pub fn restarted(&self, pid: Option<u32>, took: Duration) {
        let text = format!("headwater streams again after {:.2} s (pid {})", took.as_secs_f64(), pid.unwrap_or(0));
        self.line("start", AnsiColor::Cyan, &text);
    }

    /// Somebody stopped the demo; everything is gone already. False, because nothing was counted.
    pub fn interrupted(&self) -> bool {
        println!("interrupted; what the demo started is stopped and removed");
        false
    }

    /// Prints events as they are committed, until dropped.
    pub async fn follow(self, log: PathBuf, connector: String) {
        let topics: Vec<String> = TABLES.iter().map(|table| format!("{connector}.{table}")).collect();
        // The show goes on without the events if the log cannot be read; the count would say so.
        if let Err(error) = self.follow_topics(log, &topics).await {
            self.line("demo", AnsiColor::Red, &error.to_string());
        }
    }

    async fn follow_topics(&self, log: PathBuf, topics: &[String]) -> headwater_connector::Result<()> {
        let log = EmbeddedLog::open(Options::new(log), Mode::Reader)?;
        let mut readers = Vec::new();
        for topic in topics {
            readers.push((topic, log.reader(topic, 0, From::Earliest).await?));
        }
        let (mut events, mut tombstones, mut reads) = (0, 0, 0);
        loop {
            for (topic, reader) in &mut readers {
                for record in reader.read(1_000, Duration::from_millis(20)).await? {
                    let is_read = record.headers.iter().any(|(name, value)| name == "hw.op" && value == b"r");
                    let (count, shown) = match record.value {
                        None => (&mut tombstones, SHOWN_TOMBSTONES),
                        Some(_) if is_read => (&mut reads, SHOWN_READS),
                        Some(_) => (&mut events, SHOWN),
                    };
                    *count += 1;
                    if *count % shown == 0 {
                        self.event(topic, &record);
                    }
                }
            }
        }
    }

    fn event(&self, topic: &str, record: &StoredRecord) {
        let entity = topic.rsplit('.').next().unwrap_or(topic);
        let key = String::from_utf8_lossy(&record.key);
        match &record.value {
            Some(value) => {
                self.line("event", AnsiColor::Green, &format!("shop.{entity} {key} {}", String::from_utf8_lossy(value)))
            }
            None => self.line("event", AnsiColor::Yellow, &format!("shop.{entity} {key} tombstone")),
        }
    }

    /// The count, and last the line that it was all for.
    pub fn result(&self, played: &Played, ledger: &Ledger) {
        let Played { transactions, kills, reading } = played;
        let Ledger { rows, committed, arrived, reads, tombstones, overtaken, repeated, missing, twice } = ledger;
        let out = |text: &str| println!("{text}");
        out("");
        out(&format!(
            "  counted by the database itself:    {rows} rows that were there, {} row changes in {transactions} transactions",
            committed - rows
        ));
        out(&format!("  counted in the topics by a reader: {arrived} events: {reads} rows read, {tombstones} tombstones"));
        out(&format!("  {kills} kills, {reading} of them while rows were being read"));
        let due = committed + repeated - overtaken;
        out(&format!(
            "  {overtaken} rows changed before they were read and come as that change only; {repeated} were read after a change as well"
        ));
        out(&format!("  so {due} events are due: {committed} - {overtaken} + {repeated}"));
        out("");
        let colour = if ledger.is_exact() { AnsiColor::Green } else { AnsiColor::Red };
        let line = format!("committed {committed}, due as {due} events, arrived {arrived}: {missing} missing, {twice} twice");
        out(&self.paint(&line, Style::new().bold().fg_color(Some(colour.into()))));
    }

    fn line(&self, label: &str, colour: AnsiColor, text: &str) {
        let clock = self.0.began.elapsed().as_secs_f64();
        let label = self.paint(&format!("{label:<5}"), Style::new().bold().fg_color(Some(colour.into())));
        let room = self.0.width.saturating_sub(16);
        let text = if text.chars().count() > room && self.0.terminal {
            format!("{}…", text.chars().take(room.saturating_sub(1)).collect::<String>())
        } else {
            text.to_owned()
        };
        let mut out = std::io::stdout().lock();
        // A closed pipe ends the show, not the clean-up.
        drop(writeln!(out, "{clock:>6.2}  {label}  {text}"));
    }

    fn paint(&self, text: &str, style: Style) -> String {
        if self.0.terminal { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}
