//! Something in between: passes bytes on, looks at them, changes them, or goes elsewhere.

#![allow(dead_code)]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Changes the bytes of one direction of one connection.
pub type Filter = Box<dyn FnMut(&[u8]) -> Vec<u8> + Send>;

/// Passes everything on.
pub fn same() -> Filter {
    Box::new(<[u8]>::to_vec)
}

/// A relay on a port of its own, as long as it lives.
pub struct Relay {
    /// Where clients connect.
    pub port: u16,
    targets: Arc<Mutex<Vec<u16>>>,
    connections: Arc<AtomicUsize>,
    cut: watch::Sender<u32>,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    /// To ports on this machine, in turn, as a balancer does.
    pub async fn to(targets: &[u16]) -> Self {
        Self::with(targets, |_| (same(), same())).await
    }

    /// For the n-th connection, `filters` gives what happens to the client's bytes and to the server's.
    pub async fn with(targets: &[u16], filters: impl Fn(usize) -> (Filter, Filter) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let targets = Arc::new(Mutex::new(targets.to_vec()));
        let connections = Arc::new(AtomicUsize::new(0));
        let (cut, watching) = watch::channel(0);
        let (to, count) = (Arc::clone(&targets), Arc::clone(&connections));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = count.fetch_add(1, SeqCst);
                let (up, down) = filters(number);
                let to = {
                    let targets = to.lock().expect("no panic inside");
                    targets[number % targets.len()]
                };
                let mut cut = watching.clone();
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                    tokio::select! {
                        () = join(client, server, up, down) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { port, targets, connections, cut, task }
    }

    /// Cuts all connections; new ones go to another server.
    pub fn flip(&self, target: u16) {
        *self.targets.lock().expect("no panic inside") = vec![target];
        self.cut.send_modify(|times| *times += 1);
    }

    /// So many have connected.
    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes bytes in both directions until one ends.
pub async fn join<C, S>(client: C, server: S, up: Filter, down: Filter)
where
    C: AsyncRead + AsyncWrite,
    S: AsyncRead + AsyncWrite,
{
    let (client_reader, client_writer) = tokio::io::split(client);
    let (server_reader, server_writer) = tokio::io::split(server);
    tokio::select! {
        () = pass(client_reader, server_writer, up) => {}
        () = pass(server_reader, client_writer, down) => {}
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut filter: Filter) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let bytes = filter(&buffer[..read]);
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

/// Cuts a stream of bytes into messages with a tag, and hands each to `change`, which may change it, drop it or add to it.
pub fn messages(mut change: impl FnMut(Vec<u8>) -> Vec<u8> + Send + 'static) -> Filter {
    let mut rest: Vec<u8> = Vec::new();
    Box::new(move |bytes| {
        rest.extend_from_slice(bytes);
        let mut out = Vec::new();
        while let Some(head) = rest.first_chunk::<5>() {
            let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize + 1;
            if rest.len() < len {
                break;
            }
            let tail = rest.split_off(len);
            out.extend(change(std::mem::replace(&mut rest, tail)));
        }
        out
    })
}
