//! A TCP proxy that knows of Kafka's protocol how long a request is and which one: enough to hold one back, to keep a copy of one, or
//! to cut the connection that carries one. Everything else passes as it is.
//!
//! The broker must advertise the proxy's address, else clients go around it.

#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests by their number in Kafka's protocol.
pub const PRODUCE: i16 = 0;
pub const INIT_PRODUCER_ID: i16 = 22;
pub const ADD_PARTITIONS_TO_TXN: i16 = 24;
pub const END_TXN: i16 = 26;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays here, and everything behind it on its connection waits.
    Hold,
    /// It passes, and a copy stays here.
    Copy,
    /// Its connection breaks, and the broker never sees it.
    Cut,
}

/// A proxy in front of one broker.
pub struct Proxy {
    /// `host:port` for clients, and for the broker to advertise.
    pub address: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    upstream: Mutex<String>,
    rules: Mutex<Vec<(i16, Fate, usize)>>,
    caught: Mutex<Vec<Caught>>,
    something_caught: Condvar,
    seen: Mutex<BTreeMap<i16, usize>>,
    clients: Mutex<Vec<TcpStream>>,
    /// What the broker answered on connections whose client is gone.
    late: Mutex<Vec<Vec<u8>>>,
    /// Bytes wait, connections stay open.
    frozen: AtomicBool,
    /// New connections are closed at once.
    closed: AtomicBool,
    ended: AtomicBool,
}

/// A request that the proxy has.
pub struct Caught {
    pub api: i16,
    frame: Vec<u8>,
    /// The broker's side of the connection it came from; it stays open when the client's side is cut.
    server: Option<TcpStream>,
}

impl Proxy {
    /// Listens on a free port; where to forward to is said later, since the broker must know this address before it starts.
    pub fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.ended.load(Ordering::Relaxed) {
                    return;
                }
                if !accepting.closed.load(Ordering::Relaxed) {
                    let shared = Arc::clone(&accepting);
                    thread::spawn(move || serve(&shared, client));
                }
            }
        });
        Self { address, shared }
    }

    /// Where connections go from now on.
    pub fn forward_to(&self, upstream: &str) {
        upstream.clone_into(&mut self.shared.upstream.lock().unwrap());
    }

    /// What happens to the next `count` requests of this kind.
    pub fn next(&self, api: i16, fate: Fate, count: usize) {
        self.shared.rules.lock().unwrap().push((api, fate, count));
    }

    /// Forgets what was to happen.
    pub fn let_pass(&self) {
        self.shared.rules.lock().unwrap().clear();
    }

    /// Waits for a request to be held or copied, and takes it.
    pub fn caught(&self) -> Caught {
        let deadline = Instant::now() + PATIENCE;
        let mut caught = self.shared.caught.lock().unwrap();
        while caught.is_empty() {
            assert!(Instant::now() < deadline, "no such request came by; seen: {:?}", self.shared.seen.lock().unwrap());
            caught = self.shared.something_caught.wait_timeout(caught, Duration::from_millis(100)).unwrap().0;
        }
        caught.remove(0)
    }

    /// How many requests of a kind came by so far.
    pub fn seen(&self, api: i16) -> usize {
        self.shared.seen.lock().unwrap().get(&api).copied().unwrap_or_default()
    }

    /// Breaks every connection on the clients' side.
    pub fn cut(&self) {
        for client in self.shared.clients.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Makes the broker unreachable, or reachable again.
    pub fn close(&self, closed: bool) {
        self.shared.closed.store(closed, Ordering::Relaxed);
        if closed {
            self.cut();
        }
    }

    /// Lets all bytes wait, or go on.
    pub fn freeze(&self, frozen: bool) {
        self.shared.frozen.store(frozen, Ordering::Relaxed);
    }

    /// Delivers a request that was held on the connection it came from, or a copy on one of its own, and waits for the answer: what
    /// follows the correlation id.
    pub fn deliver(&self, caught: Caught) -> Vec<u8> {
        let Some(mut server) = caught.server else {
            let upstream = self.shared.upstream.lock().unwrap().clone();
            let mut server = TcpStream::connect(upstream).expect("the broker listens");
            server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            server.write_all(&caught.frame).expect("the broker takes the request");
            return frame(&mut server).expect("the broker answers")[8..].to_vec();
        };
        let before = self.shared.late.lock().unwrap().len();
        server.write_all(&caught.frame).expect("the broker still takes the request");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.shared.late.lock().unwrap().get(before) {
                return answer[8..].to_vec();
            }
            assert!(Instant::now() < deadline, "the broker does not answer a request that came late");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.cut();
        // Wakes the thread that accepts, so that it ends.
        let _ = TcpStream::connect(&self.address);
    }
}

/// The error code in the answer to `EndTxn`, `AddOffsetsToTxn` and their like: behind the throttle time.
pub fn error_code(answer: &[u8]) -> i16 {
    i16::from_be_bytes([answer[4], answer[5]])
}

fn serve(shared: &Arc<Shared>, mut client: TcpStream) {
    let upstream = shared.upstream.lock().unwrap().clone();
    let Ok(mut server) = TcpStream::connect(upstream) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (Ok(to_client), Ok(kept), Ok(from_server)) = (client.try_clone(), client.try_clone(), server.try_clone()) else { return };
    shared.clients.lock().unwrap().push(kept);
    let answering = Arc::clone(shared);
    thread::spawn(move || answers(&answering, from_server, to_client));
    while let Some(request) = frame(&mut client) {
        wait_while_frozen(shared);
        let api = i16::from_be_bytes([request[4], request[5]]);
        *shared.seen.lock().unwrap().entry(api).or_default() += 1;
        let fate = fate(shared, api);
        if let Some(fate @ (Fate::Hold | Fate::Copy)) = fate {
            let server = (fate == Fate::Hold).then(|| server.try_clone().expect("a handle"));
            shared.caught.lock().unwrap().push(Caught { api, frame: request.clone(), server });
            shared.something_caught.notify_all();
        }
        match fate {
            // The broker's side stays open through the handle that was kept; nothing else of this client is read.
            Some(Fate::Hold) => return,
            Some(Fate::Cut) => {
                let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
                return;
            }
            Some(Fate::Copy) | None => {}
        }
        if server.write_all(&request).is_err() {
            break;
        }
    }
    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
}

fn answers(shared: &Shared, mut server: TcpStream, mut client: TcpStream) {
    while let Some(answer) = frame(&mut server) {
        wait_while_frozen(shared);
        if client.write_all(&answer).is_err() {
            shared.late.lock().unwrap().push(answer);
        }
    }
    let _ = client.shutdown(Shutdown::Both);
}

fn fate(shared: &Shared, api: i16) -> Option<Fate> {
    let mut rules = shared.rules.lock().unwrap();
    let rule = rules.iter_mut().find(|(of, _, left)| *of == api && *left > 0)?;
    rule.2 -= 1;
    Some(rule.1)
}

fn wait_while_frozen(shared: &Shared) {
    while shared.frozen.load(Ordering::Relaxed) && !shared.ended.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(5));
    }
}

/// A request or an answer with its length in front, or none at the end of the connection.
fn frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut frame = length.to_vec();
    frame.resize(4 + u32::from_be_bytes(length) as usize, 0);
    stream.read_exact(&mut frame[4..]).ok()?;
    Some(frame)
}
