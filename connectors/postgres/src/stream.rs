//! The socket task: frames bytes, answers keepalives, and nothing else.
//!
//! It owns the socket of a running copy. Whole CopyData frames go in large chunks through a channel with a byte budget; when the
//! decoder does not keep up, the task stops reading, and the server waits. Whatever happens, the server hears from us in time,
//! and the only position it is told to forget is the one that was acked (invariant I1).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use headwater_connector::{Error, Result};
use postgres_protocol::message::frontend;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    codes,
    connection::Socket,
    error::{ServerError, lost, protocol},
    pgoutput::EPOCH_2000_US,
    position::Lsn,
    wire::Cursor,
};

/// Bytes on their way to the decoder. One frame that is larger passes alone.
const BUDGET: usize = 16 << 20;
/// Free space before each read: large reads cost the server less than many small ones.
const READ_SIZE: usize = 256 << 10;
/// Shortest time between two reads over TCP (the timer rounds it up to a millisecond). The server writes row by row, and a reader
/// that is faster than it would wake for each of them; what gathers meanwhile is far less than the socket's buffer.
/// A unix socket holds too little for that, so it is read without a pause.
pub const PACE: Duration = Duration::from_micros(500);
/// A field has at most 1 GiB and a row as much; what claims more is not a frame.
const MAX_FRAME: usize = (1 << 30) + (1 << 24);
/// An error or a notice is shorter.
const MAX_OTHER: usize = 1 << 20;
/// How long the server may be silent, although it is asked to answer, before the connection counts as dead.
const SILENCE: Duration = Duration::from_secs(60);

/// Many whole CopyData frames.
pub struct Chunk {
    bytes: Bytes,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Chunk {
    /// The payload of the next frame.
    pub fn next_frame(&mut self) -> Option<Bytes> {
        // The task checked tag and length.
        let len = Cursor::new(self.bytes.get(1..5)?).u32().ok()? as usize;
        let mut frame = self.bytes.split_to(len + 1);
        frame.advance(5);
        Some(frame)
    }
}

/// What the task and the rest of the source tell each other.
pub struct Shared {
    /// Up to here the topics hold everything.
    acked: AtomicU64,
    /// The monitor wants to know how far the server has read its log.
    ask: AtomicBool,
    stop: AtomicBool,
    wake: Notify,
}

impl Shared {
    /// Everything before `base` is in the topics.
    pub fn new(base: Lsn) -> Self {
        Self { acked: AtomicU64::new(base.0), ask: AtomicBool::new(false), stop: AtomicBool::new(false), wake: Notify::new() }
    }

    /// Confirms a position. An older one than before changes nothing.
    pub fn ack(&self, base: Lsn) {
        self.acked.fetch_max(base.0, SeqCst);
        self.wake.notify_one();
    }

    /// Asks the server for a keepalive.
    pub fn ask(&self) {
        self.ask.store(true, SeqCst);
        self.wake.notify_one();
    }
}

/// The decoder's end.
pub struct Stream {
    chunks: mpsc::Receiver<Result<Chunk>>,
    /// See [`Shared`].
    pub shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Stream {
    /// Takes over a socket whose copy has started. `silence` is the server's `wal_sender_timeout`, `pace` is [`PACE`] over TCP.
    pub fn start(socket: Box<dyn Socket>, input: BytesMut, base: Lsn, silence: Duration, pace: Duration) -> Self {
        let (reader, writer) = tokio::io::split(socket);
        let (sender, chunks) = mpsc::channel(1024);
        let shared = Arc::new(Shared::new(base));
        let every = Duration::from_secs(10).min(silence / 3).max(Duration::from_millis(100));
        let task = Task {
            writer,
            output: BytesMut::new(),
            input: Input { bytes: input, scanned: 0, received: base.0, reply: false },
            shared: Arc::clone(&shared),
            sender,
            budget: Arc::new(Semaphore::new(BUDGET)),
            every,
            status_due: Instant::now(),
            heard: Instant::now(),
            read_at: Instant::now(),
            pace,
        };
        Self { chunks, shared, task: tokio::spawn(task.run(reader)) }
    }

    /// The next chunk, waiting for it.
    pub async fn next(&mut self) -> Result<Chunk> {
        self.chunks.recv().await.unwrap_or_else(|| Err(lost("the stream ended")))
    }

    /// The next chunk if it is there.
    pub fn try_next(&mut self) -> Option<Result<Chunk>> {
        self.chunks.try_recv().ok()
    }

    /// Ends the copy politely, so that the slot is free when this returns, within a second.
    pub async fn close(mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.wake.notify_one();
        self.chunks.close();
        while self.chunks.try_recv().is_ok() {}
        let _ = timeout(Duration::from_secs(1), &mut self.task).await;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Closes the socket; the server frees the slot as soon as it notices.
        self.task.abort();
    }
}

/// Bytes that were read, and what a look at the frame heads told.
struct Input {
    bytes: BytesMut,
    /// Whole CopyData frames at the front.
    scanned: usize,
    /// The furthest place in the log that the server spoke of.
    received: u64,
    /// The server wants an answer now.
    reply: bool,
}

/// What stopped a scan.
enum Scan {
    /// More bytes are needed: so many are missing from a frame that has begun.
    More(usize),
    /// Another message than CopyData comes behind the whole frames.
    Other(u8),
}

impl Input {
    fn scan(&mut self) -> Result<Scan> {
        loop {
            let rest = &self.bytes[self.scanned..];
            let Some(head) = rest.first_chunk::<5>() else { return Ok(Scan::More(0)) };
            let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let most = if head[0] == b'd' { MAX_FRAME } else { MAX_OTHER };
            if !(4..=most).contains(&len) {
                return Err(protocol("a frame has an impossible length"));
            }
            let Some(frame) = rest.get(..=len) else { return Ok(Scan::More(len + 1 - rest.len())) };
            if head[0] != b'd' {
                return Ok(Scan::Other(head[0]));
            }
            let (place, reply) = heed(&frame[5..])?;
            self.received = self.received.max(place);
            self.reply |= reply;
            self.scanned += len + 1;
        }
    }
}

/// The place that a replication message speaks of, and whether the server wants an answer now.
fn heed(payload: &[u8]) -> Result<(u64, bool)> {
    let torn = |_| protocol("a replication message is torn");
    let mut cursor = Cursor::new(payload);
    let tag = cursor.u8().map_err(torn)?;
    let place = cursor.u64().map_err(torn)?;
    match tag {
        b'w' => Ok((place, false)),
        b'k' => {
            cursor.u64().map_err(torn)?;
            Ok((place, cursor.u8().map_err(torn)? == 1))
        }
        _ => Err(protocol("an unknown replication message came")),
    }
}

struct Task {
    writer: WriteHalf<Box<dyn Socket>>,
    output: BytesMut,
    input: Input,
    shared: Arc<Shared>,
    sender: mpsc::Sender<Result<Chunk>>,
    budget: Arc<Semaphore>,
    every: Duration,
    status_due: Instant,
    heard: Instant,
    /// Before this the socket is not read again.
    read_at: Instant,
    pace: Duration,
}

impl Task {
    async fn run(mut self, mut reader: ReadHalf<Box<dyn Socket>>) {
        let end = self.serve(&mut reader).await;
        if self.shared.stop.load(SeqCst) {
            // The decoder has gone; what is left to do is to leave in order.
            let _ = self.leave(&mut reader).await;
        } else if let Err(error) = end {
            let _ = self.sender.send(Err(error)).await;
        }
    }

    async fn serve(&mut self, reader: &mut ReadHalf<Box<dyn Socket>>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut waiting: Option<Bytes> = None;
        loop {
            self.hand_over(&mut waiting)?;
            self.write_status();
            if shared.stop.load(SeqCst) {
                return Ok(());
            }
            let blocked = waiting.is_some();
            let permits = waiting.as_ref().map_or(1, |chunk| chunk.len().min(BUDGET)) as u32;
            let budget = Arc::clone(&self.budget);
            tokio::select! {
                // Reserving the place first and the bytes second: the place is kept only with the bytes.
                ready = reserve(&self.sender, budget, permits), if blocked => {
                    let (place, permit) = ready?;
                    if let Some(bytes) = waiting.take() {
                        place.send(Ok(Chunk { bytes, _permit: Some(permit) }));
                    }
                }
                read = paced(reader, &mut self.input.bytes, self.read_at), if !blocked => {
                    self.read_at = Instant::now() + self.pace;
                    if read.map_err(broken)? == 0 {
                        return Err(lost("the server closed the connection"));
                    }
                    self.heard = Instant::now();
                }
                wrote = self.writer.write_buf(&mut self.output), if self.output.has_remaining() => {
                    wrote.map_err(broken)?;
                    if !self.output.has_remaining() {
                        self.writer.flush().await.map_err(broken)?;
                    }
                }
                () = shared.wake.notified() => self.status_due = Instant::now(),
                () = sleep_until(self.status_due), if !self.output.has_remaining() => {}
            }
            // Silence counts only while we listen.
            if blocked {
                self.heard = Instant::now();
            } else if self.heard.elapsed() > SILENCE.max(self.every * 6) {
                return Err(lost("the server is silent"));
            }
        }
    }

    /// Splits whole frames off and offers them to the decoder.
    fn hand_over(&mut self, waiting: &mut Option<Bytes>) -> Result<()> {
        if waiting.is_some() {
            return Ok(());
        }
        let scan = self.input.scan()?;
        if self.input.scanned > 0 {
            *waiting = Some(self.input.bytes.split_to(self.input.scanned).freeze());
            self.input.scanned = 0;
            return Ok(());
        }
        match scan {
            Scan::More(missing) => {
                // A length that the server claims is believed only as far as bytes arrive.
                let room = self.input.bytes.capacity() - self.input.bytes.len();
                if room < READ_SIZE / 4 {
                    self.input.bytes.reserve(missing.clamp(READ_SIZE, BUDGET));
                }
                Ok(())
            }
            Scan::Other(tag) => self.other(tag),
        }
    }

    /// A message that is no data: the server ends the stream, or reports something.
    fn other(&mut self, tag: u8) -> Result<()> {
        let len = Cursor::new(&self.input.bytes[1..]).u32().unwrap_or_default() as usize;
        let message = self.input.bytes.split_to(len + 1);
        match tag {
            b'E' => {
                let error = ServerError::parse(&message[5..]).map_err(|_| protocol("an error message is torn"))?;
                Err(match error.state.as_str() {
                    // P20: decoding looks the publication up as it was when a change was written.
                    "42704" => Error::new(&codes::PUBLICATION_MISSING, "the publication did not exist when a change was written")
                        .hint("Restore the database with its publication, or begin anew with `headwater reset`."),
                    _ => error.into_error(),
                })
            }
            b'N' | b'S' => Ok(()),
            b'c' | b'C' | b'Z' => Err(lost("the server ended the stream")),
            _ => Err(protocol("an unexpected message came in the stream")),
        }
    }

    /// Appends a status if one is due. Never more than one waits to be written, so a server that does not read costs nothing.
    fn write_status(&mut self) {
        let now = Instant::now();
        if self.output.has_remaining() || (now < self.status_due && !self.input.reply) {
            return;
        }
        self.input.reply = false;
        let ask = self.shared.ask.swap(false, SeqCst) || self.heard.elapsed() > SILENCE / 2;
        status(&mut self.output, self.input.received, self.shared.acked.load(SeqCst), ask);
        self.status_due = now + self.every;
    }

    async fn leave(&mut self, reader: &mut ReadHalf<Box<dyn Socket>>) -> std::io::Result<()> {
        // An ack that came in just before the stop still goes out (C12 is harmless, but needless).
        status(&mut self.output, self.input.received, self.shared.acked.load(SeqCst), false);
        frontend::copy_done(&mut self.output);
        frontend::terminate(&mut self.output);
        let mut sink = vec![0; READ_SIZE];
        loop {
            tokio::select! {
                wrote = self.writer.write_buf(&mut self.output), if self.output.has_remaining() => {
                    wrote?;
                    self.writer.flush().await?;
                }
                read = reader.read(&mut sink) => if read? == 0 { return Ok(()) },
            }
        }
    }
}

/// Waits until it is time, then reads.
async fn paced(reader: &mut ReadHalf<Box<dyn Socket>>, bytes: &mut BytesMut, at: Instant) -> std::io::Result<usize> {
    if Instant::now() < at {
        sleep_until(at).await;
    }
    reader.read_buf(bytes).await
}

async fn reserve(
    sender: &mpsc::Sender<Result<Chunk>>,
    budget: Arc<Semaphore>,
    permits: u32,
) -> Result<(mpsc::Permit<'_, Result<Chunk>>, OwnedSemaphorePermit)> {
    let permit = budget.acquire_many_owned(permits).await.map_err(|_| gone())?;
    let place = sender.reserve().await.map_err(|_| gone())?;
    Ok((place, permit))
}

fn gone() -> Error {
    lost("the decoder has gone")
}

fn broken(error: std::io::Error) -> Error {
    lost("the stream broke").caused_by(error)
}

/// A standby status update: written is what arrived, flushed and applied is what was acked.
fn status(out: &mut BytesMut, received: u64, acked: u64, ask: bool) {
    out.put_u8(b'd');
    out.put_u32(4 + 34);
    out.put_u8(b'r');
    out.put_u64(received.max(acked));
    out.put_u64(acked);
    out.put_u64(acked);
    // Our clock: the server only shows it, as pg_stat_replication.reply_time.
    out.put_i64(server_time(SystemTime::now()));
    out.put_u8(u8::from(ask));
}

/// Microseconds since 2000, where the server's clock begins.
fn server_time(now: SystemTime) -> i64 {
    let since_1970 = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    i64::try_from(since_1970).unwrap_or(i64::MAX).saturating_sub(EPOCH_2000_US)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![b'd'];
        bytes.extend_from_slice(&(payload.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    fn keepalive(end: u64, reply: u8) -> Vec<u8> {
        let mut payload = vec![b'k'];
        payload.extend_from_slice(&end.to_be_bytes());
        payload.extend_from_slice(&[0; 8]);
        payload.push(reply);
        frame(&payload)
    }

    async fn read_status(socket: &mut tokio::io::DuplexStream) -> (u64, u64, u64) {
        let mut bytes = [0; 39];
        socket.read_exact(&mut bytes).await.unwrap();
        let mut cursor = Cursor::new(&bytes[6..]);
        (cursor.u64().unwrap(), cursor.u64().unwrap(), cursor.u64().unwrap())
    }

    fn start(budget: usize) -> (tokio::io::DuplexStream, Stream) {
        let (server, client) = tokio::io::duplex(budget);
        (server, Stream::start(Box::new(client), BytesMut::new(), Lsn(5), Duration::from_secs(60), PACE))
    }

    #[tokio::test]
    async fn a_keepalive_is_answered_with_the_old_position() {
        let (mut server, mut stream) = start(1 << 20);
        assert_eq!(read_status(&mut server).await, (5, 5, 5));
        server.write_all(&keepalive(900, 1)).await.unwrap();
        assert_eq!(read_status(&mut server).await, (900, 5, 5));
        assert_eq!(stream.next().await.unwrap().next_frame().unwrap()[0], b'k');
        stream.shared.ack(Lsn(700));
        assert_eq!(read_status(&mut server).await, (900, 700, 700));
    }

    #[tokio::test]
    async fn a_stalled_decoder_does_not_silence_the_status() {
        let (server, client) = tokio::io::duplex(1 << 20);
        let stream = Stream::start(Box::new(client), BytesMut::new(), Lsn(5), Duration::from_millis(300), PACE);
        let mut payload = vec![b'w'];
        payload.resize(9 << 20, 0);
        let (mut reader, mut writer) = tokio::io::split(server);
        let feeding = tokio::spawn(async move { while writer.write_all(&frame(&payload)).await.is_ok() {} });
        for _ in 0..10 {
            let mut bytes = [0; 39];
            timeout(Duration::from_secs(5), reader.read_exact(&mut bytes)).await.unwrap().unwrap();
        }
        feeding.abort();
        drop(stream);
    }

    #[tokio::test]
    async fn a_frame_larger_than_the_budget_passes() {
        let (mut server, mut stream) = start(1 << 20);
        let mut payload = vec![b'w'];
        payload.resize(BUDGET + 77, 1);
        let bytes = frame(&payload);
        let feeding = tokio::spawn(async move { server.write_all(&bytes).await.map(|()| server) });
        assert_eq!(stream.next().await.unwrap().next_frame().unwrap().len(), payload.len());
        feeding.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_impossible_length_ends_the_stream() {
        for head in [[b'd', 0x7f, 0xff, 0xff, 0xff], [b'd', 0xff, 0xff, 0xff, 0xff], [b'd', 0, 0, 0, 3], [b'E', 0, 0x20, 0, 0]] {
            let (mut server, mut stream) = start(1 << 20);
            server.write_all(&head).await.unwrap();
            assert!(stream.next().await.is_err_and(|error| error.code().id == "HW2026"), "{head:?}");
        }
    }

    #[tokio::test]
    async fn a_gigabyte_that_is_only_claimed_takes_no_memory() {
        let (server, client) = tokio::io::duplex(64);
        let (_reader, writer) = tokio::io::split(Box::new(client) as Box<dyn Socket>);
        let mut bytes = BytesMut::from(&[b'd', 0x40, 0, 0, 0, b'w'][..]);
        bytes.extend_from_slice(&[0; 100]);
        let mut task = Task {
            writer,
            output: BytesMut::new(),
            input: Input { bytes, scanned: 0, received: 0, reply: false },
            shared: Arc::new(Shared {
                acked: AtomicU64::new(0),
                ask: AtomicBool::new(false),
                stop: AtomicBool::new(false),
                wake: Notify::new(),
            }),
            sender: mpsc::channel(1).0,
            budget: Arc::new(Semaphore::new(BUDGET)),
            every: Duration::from_secs(1),
            status_due: Instant::now(),
            heard: Instant::now(),
            read_at: Instant::now(),
            pace: PACE,
        };
        task.hand_over(&mut None).unwrap();
        assert!(task.input.bytes.capacity() <= BUDGET + READ_SIZE, "{}", task.input.bytes.capacity());
        drop(server);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_vanished_without_a_word_is_given_up() {
        // Half-open: what we write is taken, and nothing comes back (N1).
        let (server, client) = tokio::io::duplex(1 << 20);
        let mut stream = Stream::start(Box::new(client), BytesMut::new(), Lsn(5), Duration::from_secs(10), PACE);
        let began = Instant::now();
        let error = stream.next().await.err().expect("an end");
        assert_eq!((error.code().id, error.what().as_str()), ("HW0003", "the server is silent"));
        assert!((SILENCE..SILENCE * 2).contains(&began.elapsed()), "the paused clock says {:?}", began.elapsed());
        drop(server);
    }

    #[tokio::test]
    async fn single_bytes_make_whole_frames() {
        let (mut server, mut stream) = start(1);
        let bytes = [keepalive(900, 0), keepalive(901, 0)].concat();
        let (mut reader, mut writer) = tokio::io::split(&mut server);
        let drain = async {
            let mut sink = [0; 64];
            while reader.read(&mut sink).await.is_ok_and(|read| read > 0) {}
        };
        let feed = async {
            for byte in bytes {
                writer.write_all(&[byte]).await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let take = async {
            let mut seen = Vec::new();
            while seen.len() < 2 {
                let mut chunk = stream.next().await.unwrap();
                while let Some(frame) = chunk.next_frame() {
                    seen.push(frame);
                }
            }
            seen
        };
        let seen = tokio::select! { seen = take => seen, () = drain => panic!("closed"), () = feed => panic!("over") };
        assert!(seen.iter().all(|frame| frame.len() == 18), "{seen:?}");
    }

    proptest! {
        #[test]
        fn arbitrary_frames_neither_panic_nor_take_memory(
            pieces in prop::collection::vec((prop::sample::select(b"ddddEcNZ\x00\xff".to_vec()), any::<u32>(), any::<Vec<u8>>()), 0..6),
            honest: bool,
        ) {
            let mut bytes = BytesMut::new();
            for (tag, len, body) in pieces {
                bytes.put_u8(tag);
                bytes.put_u32(if honest { body.len() as u32 + 4 } else { len >> (len % 32) });
                bytes.put_slice(&body);
            }
            let whole = bytes.len();
            let mut input = Input { bytes, scanned: 0, received: 0, reply: false };
            // The scan never looks or points behind what is there.
            let _ = input.scan();
            prop_assert!(input.scanned <= whole && input.bytes.len() == whole);
        }
    }
}
