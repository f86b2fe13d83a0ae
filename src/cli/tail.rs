//! `headwater tail`.

use std::{path::Path, str::FromStr, time::Duration};

use anstyle::AnsiColor;
use headwater_connector::{Error, json};
use jiff::Timestamp;

use super::{
    Failure, Outcome, block_on, codes, environment, exit,
    output::{Format, Output},
};
use crate::log::{self, From, LogReader, SharedLog, StoredRecord};

/// Records that are asked for at a time.
const CHUNK_RECORDS: usize = 500;

/// Which records.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  headwater tail shop.orders                              What is there, then what comes
  headwater tail shop.orders --from latest                Only what comes
  headwater tail shop.orders --until-end --format json    All that is there, one object per line
  headwater tail shop.orders --partition 2 --from 1000 --limit 10

It works beside a running daemon and without one. Each partition is printed in the order of its offsets; with
--until-end one partition after the other.")]
pub struct Args {
    /// The topic.
    topic: String,
    /// Where to begin: earliest, latest, or an offset.
    #[arg(long, default_value = "earliest", value_name = "WHERE")]
    from: Begin,
    /// Stop at the end as it is now, instead of waiting for more.
    #[arg(long)]
    until_end: bool,
    /// Only this partition; all of them if not given.
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Stop after this many events.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Begin(From);

impl FromStr for Begin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "earliest" => Ok(Self(From::Earliest)),
            "latest" => Ok(Self(From::Latest)),
            offset => offset.parse().map(|offset| Self(From::Offset(offset))).map_err(|_| "use earliest, latest or an offset"),
        }
    }
}

/// Prints until the end, the limit, Ctrl-C, or until nobody reads.
pub fn run(config: &Path, args: &Args, output: &mut Output) -> Outcome {
    let (plan, prefix) = crate::config::load_log(config, environment())?;
    block_on(async {
        let log = log::open(&plan, &prefix, log::Mode::Reader).await?;
        tokio::select! {
            outcome = tail(&log, args, output) => outcome,
            _ = tokio::signal::ctrl_c() => Ok(exit::OK),
        }
    })?
}

async fn tail(log: &SharedLog, args: &Args, output: &mut Output) -> Outcome {
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut readers = Vec::new();
    for partition in partitions(log, args).await? {
        readers.push((partition, log.reader(&args.topic, partition, args.from.0).await?));
    }
    if args.until_end {
        for (partition, reader) in &mut readers {
            until_end(&args.topic, *partition, reader.as_mut(), &mut left, output).await?;
        }
        return Ok(exit::OK);
    }
    follow(&args.topic, readers, left, output).await
}

async fn partitions(log: &SharedLog, args: &Args) -> Result<Vec<u32>, Error> {
    let state = log.topics(std::slice::from_ref(&args.topic)).await?.pop().flatten();
    let Some(state) = state else {
        let error = Error::new(&log::codes::TOPIC_UNKNOWN, "there is no such topic").at("topic", &args.topic);
        return Err(error.hint("Check the spelling; `headwater plan` lists the topics of every connector."));
    };
    match args.partition {
        None => Ok((0..state.partitions).collect()),
        Some(partition) if partition < state.partitions => Ok(vec![partition]),
        Some(partition) => {
            let what = format!("partition {partition} does not exist");
            let error = Error::new(&codes::UNKNOWN_PARTITION, what).at("topic", &args.topic);
            Err(error.hint(format!("Use a partition from 0 to {}.", state.partitions.saturating_sub(1))))
        }
    }
}

async fn until_end(
    topic: &str,
    partition: u32,
    reader: &mut dyn LogReader,
    left: &mut u64,
    output: &mut Output,
) -> Result<(), Failure> {
    while *left > 0 && !reader.at_end().await? {
        let records = reader.read(chunk(*left), Duration::from_millis(200)).await?;
        *left -= records.len() as u64;
        print(topic, partition, &records, output)?;
    }
    Ok(())
}

fn chunk(left: u64) -> usize {
    usize::try_from(left).map_or(CHUNK_RECORDS, |left| left.min(CHUNK_RECORDS))
}

/// One task per partition, because a read waits; the channel holds few chunks, so that a slow terminal slows the readers.
async fn follow(topic: &str, readers: Vec<(u32, Box<dyn LogReader>)>, mut left: u64, output: &mut Output) -> Outcome {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(readers.len().max(1));
    let mut tasks = tokio::task::JoinSet::new();
    for (partition, mut reader) in readers {
        let sender = sender.clone();
        tasks.spawn(async move {
            loop {
                let records = reader.read(CHUNK_RECORDS, Duration::from_millis(500)).await;
                let failed = records.is_err();
                let silent = records.as_ref().is_ok_and(Vec::is_empty);
                if !silent && (sender.send((partition, records)).await.is_err() || failed) {
                    return;
                }
                if silent {
                    // A reader whose wait is short must not spin.
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    drop(sender);
    while left > 0 {
        let Some((partition, records)) = receiver.recv().await else { break };
        let mut records = records?;
        records.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= records.len() as u64;
        print(topic, partition, &records, output)?;
    }
    Ok(exit::OK)
}

fn print(topic: &str, partition: u32, records: &[StoredRecord], output: &mut Output) -> std::io::Result<()> {
    let mut line = Vec::new();
    for record in records {
        line.clear();
        match output.format {
            Format::Json => json_line(topic, partition, record, &mut line),
            Format::Text => line.extend_from_slice(text_line(partition, record, output).as_bytes()),
        }
        line.push(b'\n');
        output.bytes(&line)?;
    }
    // Somebody who watches wants to see events when they come.
    output.flush()
}

/// Written by hand, so that keys and values keep every digit and the order of their columns.
pub(super) fn json_line(topic: &str, partition: u32, record: &StoredRecord, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"topic\":");
    json::push_string(out, topic);
    out.extend_from_slice(format!(",\"partition\":{partition},\"offset\":{},\"timestamp\":", record.offset).as_bytes());
    json::push_string(out, &timestamp(record.timestamp_ms));
    out.extend_from_slice(b",\"key\":");
    push_json_or_string(out, &record.key);
    out.extend_from_slice(b",\"value\":");
    match &record.value {
        Some(value) => push_json_or_string(out, value),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"headers\":{");
    for (index, (name, value)) in record.headers.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        json::push_string(out, name);
        out.push(b':');
        json::push_string(out, &String::from_utf8_lossy(value));
    }
    out.extend_from_slice(b"}}");
}

fn push_json_or_string(out: &mut Vec<u8>, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if !json::push_compact(out, &text) {
        json::push_string(out, &text);
    }
}

fn timestamp(milliseconds: i64) -> String {
    match Timestamp::from_millisecond(milliseconds) {
        Ok(time) => time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        Err(_) => milliseconds.to_string(),
    }
}

pub(super) fn text_line(partition: u32, record: &StoredRecord, output: &Output) -> String {
    let paint = output.paint();
    let header = record.headers.iter().find(|(name, _)| name == "hw.op");
    let op = header.map_or("-".into(), |(_, value)| String::from_utf8_lossy(value));
    let color = match op.as_ref() {
        "c" => AnsiColor::Green,
        "u" => AnsiColor::Yellow,
        "d" | "t" => AnsiColor::Red,
        _ => AnsiColor::Blue,
    };
    let place = format!("{partition}:{:<6}", record.offset);
    let time = timestamp(record.timestamp_ms);
    let key = printable(&record.key);
    let value = record.value.as_deref().map_or_else(|| "(deleted)".to_owned(), printable);
    let used = place.chars().count() + time.chars().count() + op.chars().count() + key.chars().count() + 4;
    let value = match output.width {
        Some(width) => shortened(&value, width.saturating_sub(used).max(10)),
        None => value,
    };
    format!("{} {} {} {} {value}", paint.dim(&place), paint.dim(&time), paint.colored(&op, color), paint.bold(&key))
}

/// Control characters in foreign topics must not reach the terminal.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}
