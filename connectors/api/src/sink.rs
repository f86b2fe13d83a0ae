//! A running sink.

use async_trait::async_trait;

use crate::Result;

/// One record of a topic on its way to a sink.
#[derive(Clone, Copy, Debug)]
pub struct SinkRecord<'a> {
    /// Name of the topic.
    pub topic: &'a str,
    /// Partition of the topic.
    pub partition: i32,
    /// Offset in the partition.
    pub offset: i64,
    /// Milliseconds since 1970 UTC.
    pub timestamp_ms: i64,
    /// Compact JSON of the key.
    pub key: &'a [u8],
    /// None is a tombstone.
    pub value: Option<&'a [u8]>,
}

/// A target that records are written to.
///
/// The offsets live in the target and move in the same transaction as the rows, so that exactly-once needs nothing from the log.
#[async_trait]
pub trait Sink: Send {
    /// Takes over the partitions and returns for each the offset to read next, as the target knows it.
    /// An older owner of a partition is fenced by this.
    async fn open(&mut self, partitions: &[(String, i32)]) -> Result<Vec<i64>>;

    /// Writes records in order. `Ok` means durable, together with their offsets; nothing else does.
    async fn write(&mut self, records: &[SinkRecord<'_>]) -> Result<()>;

    /// Leaves the target in order.
    async fn close(self: Box<Self>) -> Result<()>;
}
