//! What the embedded log promises, one file per part.

mod compaction;
mod damage;
mod opening;
mod power;
mod reading;
mod writing;

use std::{path::Path, time::Duration};

use headwater_connector::Code;

use super::{EmbeddedLog, Mode, Options, file};
use crate::log::{Cleanup, From as Start, Log, StoredRecord, TopicSpec, Transaction};

const TOPIC: &str = "shop.order";
const CHECKPOINT: &str = "headwater.shop.checkpoint";

fn open(dir: &Path, mode: Mode) -> EmbeddedLog {
    EmbeddedLog::open(Options::new(dir), mode).unwrap()
}

fn code_of<T>(result: headwater_connector::Result<T>) -> &'static str {
    let error = result.err().expect("this must fail");
    assert!(!error.hint_text().is_empty(), "{error}");
    error.code().id
}

fn id(code: &'static Code) -> &'static str {
    code.id
}

fn spec(name: &str, partitions: Option<u32>, cleanup: Cleanup) -> TopicSpec {
    TopicSpec { name: name.to_owned(), partitions, cleanup }
}

async fn create(log: &EmbeddedLog, names: &[&str]) {
    let specs: Vec<_> = names.iter().map(|name| spec(name, None, Cleanup::Compact)).collect();
    log.ensure_topics(&specs).await.unwrap();
}

fn push(transaction: &mut Transaction, topic: &str, partition: u32, key: &[u8], value: Option<&[u8]>) {
    let topic = transaction.topic_index(topic);
    let op = transaction.write(|out| out.push(if value.is_some() { b'c' } else { b'd' }));
    let key = transaction.write(|out| out.extend_from_slice(key));
    let value = value.map(|value| transaction.write(|out| out.extend_from_slice(value)));
    transaction.push_header("hw.op", op);
    transaction.push_record(topic, partition, 1_767_323_045_123, key, value);
}

/// A transaction with one record per value, all with keys of their own.
fn batch(topic: &str, values: &[&str]) -> Transaction {
    let mut transaction = Transaction::default();
    for value in values {
        push(&mut transaction, topic, 0, format!("{{\"id\":\"{value}\"}}").as_bytes(), Some(value.as_bytes()));
    }
    transaction
}

async fn append(log: &EmbeddedLog, connector: &str, transaction: Transaction) {
    log.open_writer(connector).await.unwrap().commit(transaction).await.unwrap();
}

/// Everything in a partition.
async fn all(log: &EmbeddedLog, topic: &str, partition: u32) -> Vec<StoredRecord> {
    let mut reader = log.reader(topic, partition, Start::Earliest).await.unwrap();
    let mut records = Vec::new();
    while !reader.at_end().await.unwrap() {
        records.extend(reader.read(7, Duration::ZERO).await.unwrap());
    }
    records
}

async fn values(log: &EmbeddedLog, topic: &str) -> Vec<String> {
    all(log, topic, 0).await.into_iter().map(|record| String::from_utf8(record.value.unwrap()).unwrap()).collect()
}
