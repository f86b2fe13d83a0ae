//! The socket task: puts events together from packets, and nothing else.
//!
//! Whole packets go in large chunks through a channel with a byte budget; when the decoder does not keep up, the task stops reading, and
//! the server waits: it is told at the start to be patient. The protocol knows no acknowledgement.

use std::{sync::Arc, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use headwater_connector::{Error, Result};
use tokio::{
    io::AsyncReadExt,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    connection::Socket,
    error::{ServerError, lost, protocol, torn},
    stops,
};

/// Bytes on their way to the decoder. One event that is larger passes alone.
const BUDGET: usize = 16 << 20;
/// Free space before each read: large reads cost the server less than many small ones.
const READ_SIZE: usize = 256 << 10;
/// A packet of this size is followed by another of the same message.
const FULL: usize = 0xff_ffff;

/// Many whole packets, or one event that was put together from several.
pub struct Chunk {
    bytes: Bytes,
    /// The bytes are one event, without a packet around it.
    is_event: bool,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Chunk {
    /// The next event, or what the server says instead.
    pub fn next_event(&mut self) -> Option<Result<Bytes>> {
        if self.bytes.is_empty() {
            return None;
        }
        let message = if self.is_event {
            std::mem::take(&mut self.bytes)
        } else {
            // The task checked the lengths.
            let [a, b, c, _] = *self.bytes.first_chunk::<4>()?;
            let len = u32::from_le_bytes([a, b, c, 0]) as usize;
            self.bytes.advance(4);
            self.bytes.split_to(len)
        };
        Some(event(message))
    }
}

fn event(mut message: Bytes) -> Result<Bytes> {
    match message.first() {
        Some(0) => {
            message.advance(1);
            Ok(message)
        }
        Some(255) => Err(ServerError::parse(&message[1..]).map_err(|_| torn("an error message"))?.into_error()),
        Some(254) if message.len() < 9 => Err(lost("the server ended the stream")),
        _ => Err(protocol("an unexpected message came in the stream")),
    }
}

/// The decoder's end.
pub struct Stream {
    chunks: mpsc::Receiver<Result<Chunk>>,
    task: JoinHandle<()>,
}

impl Stream {
    /// Takes over a socket that was told to send its binlog. `silence` is how long a living server is silent at most.
    pub fn start(socket: Box<dyn Socket>, input: BytesMut, silence: Duration, max_event: usize) -> Self {
        let (sender, chunks) = mpsc::channel(1024);
        let task = Task { socket, input, sender, budget: Arc::new(Semaphore::new(BUDGET)), silence, max_event, parts: None };
        Self { chunks, task: tokio::spawn(task.run()) }
    }

    /// The next chunk, waiting for it.
    pub async fn next(&mut self) -> Result<Chunk> {
        self.chunks.recv().await.unwrap_or_else(|| Err(lost("the stream ended")))
    }

    /// The next chunk if it is there.
    pub fn try_next(&mut self) -> Option<Result<Chunk>> {
        self.chunks.try_recv().ok()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Closes the socket; the server ends its side at the next event or heartbeat.
        self.task.abort();
    }
}

struct Task {
    socket: Box<dyn Socket>,
    input: BytesMut,
    sender: mpsc::Sender<Result<Chunk>>,
    budget: Arc<Semaphore>,
    silence: Duration,
    max_event: usize,
    /// An event of which not all packets have come.
    parts: Option<Vec<u8>>,
}

impl Task {
    async fn run(mut self) {
        if let Err(error) = self.serve().await {
            let _ = self.sender.send(Err(error)).await;
        }
    }

    async fn serve(&mut self) -> Result<()> {
        loop {
            self.hand_over().await?;
            let missing = self.missing();
            if self.input.capacity() - self.input.len() < READ_SIZE / 4 {
                // A length that the server claims is believed only as far as bytes arrive.
                self.input.reserve(missing.clamp(READ_SIZE, BUDGET));
            }
            let read = timeout(self.silence, self.socket.read_buf(&mut self.input)).await;
            let read = read.map_err(|_| lost("the server is silent"))?;
            if read.map_err(|error| lost("the stream broke").caused_by(error))? == 0 {
                return Err(lost("the server closed the connection"));
            }
        }
    }

    fn head(&self, at: usize) -> Option<usize> {
        let head = self.input.get(at..at + 4)?;
        Some(u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize)
    }

    fn missing(&self) -> usize {
        self.head(0).map_or(0, |len| (len + 4).saturating_sub(self.input.len()))
    }

    /// Offers everything that is whole to the decoder.
    async fn hand_over(&mut self) -> Result<()> {
        loop {
            let mut whole = 0;
            if self.parts.is_none() {
                while let Some(len) = self.head(whole)
                    && len < FULL
                    && self.input.len() >= whole + 4 + len
                {
                    if len > self.max_event {
                        return Err(stops::too_large(self.max_event));
                    }
                    if len == 0 {
                        return Err(protocol("an empty message came in the stream"));
                    }
                    whole += 4 + len;
                }
            }
            if whole > 0 {
                let bytes = self.input.split_to(whole).freeze();
                self.send(bytes, false).await?;
            } else if !self.gather().await? {
                return Ok(());
            }
        }
    }

    /// Takes one packet of an event that has several; false if there is none yet.
    async fn gather(&mut self) -> Result<bool> {
        let Some(len) = self.head(0).filter(|len| (*len == FULL || self.parts.is_some()) && self.input.len() >= 4 + len) else {
            return Ok(false);
        };
        let parts = self.parts.get_or_insert_default();
        if parts.len() + len > self.max_event {
            return Err(stops::too_large(self.max_event));
        }
        self.input.advance(4);
        parts.extend_from_slice(&self.input.split_to(len));
        if len < FULL
            && let Some(event) = self.parts.take()
        {
            self.send(event.into(), true).await?;
        }
        Ok(true)
    }

    async fn send(&mut self, bytes: Bytes, is_event: bool) -> Result<()> {
        let gone = || -> Error { lost("the decoder has gone") };
        let permits = bytes.len().min(BUDGET) as u32;
        let permit = Arc::clone(&self.budget).acquire_many_owned(permits).await.map_err(|_| gone())?;
        let chunk = Chunk { bytes, is_event, _permit: Some(permit) };
        self.sender.send(Ok(chunk)).await.map_err(|_| gone())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use tokio::io::AsyncWriteExt;

    use super::*;

    const MAX_EVENT: usize = 1000;

    /// Everything that comes out of a stream of these bytes, which arrive in pieces of a size.
    async fn events(said: Vec<u8>, piece: usize) -> Vec<Bytes> {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let writer = tokio::spawn(async move {
            for part in said.chunks(piece) {
                if theirs.write_all(part).await.is_err() {
                    return;
                }
            }
        });
        let mut stream = Stream::start(Box::new(ours), BytesMut::new(), Duration::from_secs(30), MAX_EVENT);
        let mut found = Vec::new();
        'all: while let Ok(mut chunk) = stream.next().await {
            while let Some(event) = chunk.next_event() {
                match event {
                    Ok(event) => found.push(event),
                    Err(_) => break 'all,
                }
            }
        }
        drop(stream);
        let _ = writer.await;
        found
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(work)
    }

    proptest! {
        #[test]
        fn any_bytes_are_events_or_refused(said in vec(any::<u8>(), 0..300), piece in 1..40_usize) {
            let found = run(events(said.clone(), piece));
            prop_assert!(found.iter().map(Bytes::len).sum::<usize>() <= said.len());
        }

        #[test]
        fn events_come_whole_however_they_arrive(bodies in vec(vec(any::<u8>(), 0..80), 1..10), piece in 1..200_usize) {
            let packet = |body: &Vec<u8>| [&(body.len() as u32 + 1).to_le_bytes()[..3], &[0, 0], body].concat();
            let found = run(events(bodies.iter().flat_map(packet).collect(), piece));
            prop_assert_eq!(found, bodies);
        }

        #[test]
        fn no_event_above_the_limit_comes(len in MAX_EVENT - 3..MAX_EVENT + 3) {
            let body = vec![7; len - 1];
            let found = run(events([&(len as u32).to_le_bytes()[..3], &[0, 0], &body].concat(), 64));
            prop_assert_eq!(found.len(), usize::from(len <= MAX_EVENT));
        }
    }
}
