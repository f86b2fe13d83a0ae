//! What one log transaction holds: records that point into one byte arena.

use std::{ops::Range, sync::Arc};

/// A piece of the transaction's arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u32,
    len: u32,
}

/// A header; its value may be shared by many records.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// The name, for example `hw.op`.
    pub name: &'static str,
    /// The value.
    pub value: Span,
}

/// One record.
#[derive(Clone, Debug)]
pub struct Record {
    /// Index into [`Transaction::topics`].
    pub topic: u32,
    /// Partition of the topic.
    pub partition: u32,
    /// Milliseconds since 1970 UTC.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Span,
    /// None is a tombstone.
    pub value: Option<Span>,
    headers: Range<u32>,
}

/// The records of one log transaction, in publication order. Used again after its commit.
///
/// Topics are named by index; the list only grows, so an index stays valid over [`clear`](Self::clear) and a log
/// may keep its own handle per index.
#[derive(Debug, Default)]
pub struct Transaction {
    topics: Vec<Arc<str>>,
    bytes: Vec<u8>,
    headers: Vec<Header>,
    records: Vec<Record>,
    open_headers: u32,
}

impl Transaction {
    /// A transaction that can name these topics.
    pub fn new(topics: Vec<Arc<str>>) -> Self {
        Self { topics, ..Self::default() }
    }

    /// Forgets the records, keeps topics and memory; memory above `keep_bytes` is given back.
    pub fn clear(&mut self, keep_bytes: usize) {
        self.bytes.clear();
        self.headers.clear();
        self.records.clear();
        self.open_headers = 0;
        self.bytes.shrink_to(keep_bytes);
    }

    /// The topics by index.
    pub fn topics(&self) -> &[Arc<str>] {
        &self.topics
    }

    /// The index of a topic, added if new.
    pub fn topic_index(&mut self, topic: &str) -> u32 {
        let found = self.topics.iter().position(|known| &**known == topic);
        let index = found.unwrap_or_else(|| {
            self.topics.push(topic.into());
            self.topics.len() - 1
        });
        index as u32
    }

    /// Writes into the arena and returns what was written.
    pub fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Span {
        let start = self.bytes.len();
        write(&mut self.bytes);
        let end = u32::try_from(self.bytes.len()).expect("a log transaction stays below 4 GiB");
        Span { start: start as u32, len: end - start as u32 }
    }

    /// The arena, for writers that fail halfway; pair with [`mark`](Self::mark), [`span_from`](Self::span_from) and [`rewind`](Self::rewind).
    pub fn arena(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The end of the arena.
    pub fn mark(&self) -> usize {
        self.bytes.len()
    }

    /// What was written since `mark`.
    pub fn span_from(&self, mark: usize) -> Span {
        let end = u32::try_from(self.bytes.len()).expect("a log transaction stays below 4 GiB");
        Span { start: mark as u32, len: end - mark as u32 }
    }

    /// Drops what was written since `mark`, and headers that belong to no record yet.
    pub fn rewind(&mut self, mark: usize) {
        self.bytes.truncate(mark);
        self.headers.truncate(self.open_headers as usize);
    }

    /// Adds a header to the record that is pushed next.
    pub fn push_header(&mut self, name: &'static str, value: Span) {
        self.headers.push(Header { name, value });
    }

    /// Appends a record with the headers pushed since the last one.
    pub fn push_record(&mut self, topic: u32, partition: u32, timestamp_ms: i64, key: Span, value: Option<Span>) {
        let headers = self.open_headers..self.headers.len() as u32;
        self.open_headers = headers.end;
        self.records.push(Record { topic, partition, timestamp_ms, key, value, headers });
    }

    /// The records in publication order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Whether a schema is among the records.
    pub fn changes_a_schema(&self) -> bool {
        self.records.iter().any(|record| self.topics[record.topic as usize].ends_with(".schema"))
    }

    /// The headers of a record.
    pub fn headers(&self, record: &Record) -> &[Header] {
        &self.headers[record.headers.start as usize..record.headers.end as usize]
    }

    /// The bytes of a span.
    pub fn bytes(&self, span: Span) -> &[u8] {
        &self.bytes[span.start as usize..(span.start + span.len) as usize]
    }

    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }
}
