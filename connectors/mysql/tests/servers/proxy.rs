//! A network between the connector and a server that does what networks do.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// A port that forwards to a server, as the switches say at that moment.
pub struct Proxy {
    pub port: u16,
    switches: Arc<Switches>,
}

/// See the methods of [`Proxy`].
#[derive(Default)]
pub struct Switches {
    upstream: AtomicU16,
    /// Bytes from the server and the ends of connections stay here; nobody is told.
    frozen: AtomicBool,
    /// The server's bytes arrive one by one.
    drips: AtomicBool,
    /// A connection breaks behind so many bytes of the server's; 0 if it does not.
    breaks_behind: AtomicU64,
    clients: Mutex<Vec<TcpStream>>,
    /// By which the server knows our connections.
    ports: Mutex<Vec<u16>>,
    ended: AtomicBool,
}

impl Switches {
    /// Until nothing is frozen any more.
    fn wait(&self) {
        while self.frozen.load(Ordering::SeqCst) && !self.ended.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Proxy {
    pub fn to(port: u16) -> Self {
        Self::with(port, answers)
    }

    /// What the server says goes through `answers`, which ends with the connection.
    pub fn with(port: u16, answers: impl Fn(&Switches, TcpStream, TcpStream) + Copy + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let own = listener.local_addr().expect("an address").port();
        let switches = Arc::new(Switches { upstream: AtomicU16::new(port), ..Switches::default() });
        let accepting = Arc::clone(&switches);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                serve(&accepting, client, answers);
            }
        });
        Self { port: own, switches }
    }

    /// Where new connections go from now on.
    pub fn forward_to(&self, port: u16) {
        self.switches.upstream.store(port, Ordering::SeqCst);
    }

    /// Lets what the server sends wait, and tells neither side that the other one is gone.
    pub fn freeze(&self, frozen: bool) {
        self.switches.frozen.store(frozen, Ordering::SeqCst);
    }

    pub fn drip(&self, drips: bool) {
        self.switches.drips.store(drips, Ordering::SeqCst);
    }

    pub fn break_behind(&self, bytes: u64) {
        self.switches.breaks_behind.store(bytes, Ordering::SeqCst);
    }

    /// What the connections have been so far, as the server sees them.
    pub fn ports(&self) -> Vec<u16> {
        self.switches.ports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Breaks every connection.
    pub fn cut(&self) {
        self.switches.clients.lock().unwrap_or_else(PoisonError::into_inner).drain(..).for_each(|client| reset(&client));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.switches.ended.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the thread that accepts, so that it ends.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// With a reset instead of an orderly end.
fn reset(socket: &TcpStream) {
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
    let _ = socket.shutdown(Shutdown::Both);
}

fn serve(switches: &Arc<Switches>, client: TcpStream, answers: impl Fn(&Switches, TcpStream, TcpStream) + Send + 'static) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", switches.upstream.load(Ordering::SeqCst))) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let clones = (client.try_clone(), client.try_clone(), server.try_clone());
    let (Ok(kept), Ok(mut from_client), Ok(mut to_server)) = clones else { return };
    switches.clients.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
    switches.ports.lock().unwrap_or_else(PoisonError::into_inner).extend(to_server.local_addr().map(|at| at.port()));
    let frozen = Arc::clone(switches);
    thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        frozen.wait();
        let _ = to_server.shutdown(Shutdown::Both);
    });
    let switches = Arc::clone(switches);
    thread::spawn(move || answers(&switches, server, client));
}

fn answers(switches: &Switches, mut server: TcpStream, mut client: TcpStream) {
    let mut left = match switches.breaks_behind.load(Ordering::SeqCst) {
        0 => u64::MAX,
        bytes => bytes,
    };
    let mut buffer = [0; 16 << 10];
    while let Ok(len @ 1..) = server.read(&mut buffer) {
        switches.wait();
        let passed = &buffer[..len.min(usize::try_from(left).unwrap_or(usize::MAX))];
        let step = if switches.drips.load(Ordering::SeqCst) { 1 } else { passed.len().max(1) };
        if passed.chunks(step).any(|part| client.write_all(part).is_err()) {
            break;
        }
        left -= passed.len() as u64;
        if left == 0 {
            reset(&client);
            break;
        }
    }
    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
}
