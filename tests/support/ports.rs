//! Ports for servers that are started, stopped and started again on the same port.
//!
//! A port that the system chooses for a bind is free again until the server binds it, which takes a JVM many seconds on a busy
//! machine, and again between a server's lives: meanwhile the system gives it to anybody who asks for any port. So these are below
//! the range from which the system chooses, and this process holds each, as long as it lives, on a second loopback address, where
//! other test processes look first.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    sync::Mutex,
};

/// Below it are the well-known ports of servers that may run here.
const FIRST: u16 = 15_000;

/// Where a port is held; the servers listen on 127.0.0.1.
const HELD_AT: Ipv4Addr = Ipv4Addr::new(127, 82, 82, 82);

/// A loopback port that nobody listens on, and that no other test takes while this process lives.
pub fn free_port() -> u16 {
    static HELD: Mutex<Vec<TcpListener>> = Mutex::new(Vec::new());
    for _ in 0..1000 {
        let port = fastrand::u16(range());
        let Ok(held) = TcpListener::bind((HELD_AT, port)) else { continue };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            HELD.lock().expect("no panic while held").push(held);
            return port;
        }
    }
    panic!("no free port in {:?}", range());
}

/// The ports that the system does not choose by itself.
fn range() -> Range<u16> {
    let chosen = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let lowest = chosen.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(32_768);
    FIRST..lowest.max(FIRST + 1_000)
}
