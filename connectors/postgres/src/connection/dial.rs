//! From the url to a session: which host, which address, over what.

use std::{io, net::IpAddr, time::Duration};

use bytes::BytesMut;
use headwater_connector::{Error, Kind, Result, codes as shared};
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{Connection, Purpose, broken, not_postgres};
use crate::{
    codes,
    server::{Address, Host, Server, SslMode, Target},
    tls,
};

/// An idle connection is probed after this time, and given up after three probes (N1: half-open, no FIN).
const KEEPALIVE: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// What we sent must be acknowledged by the other machine within this time.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);
/// A name that stands for more addresses than this is not a database server's.
const MAX_ADDRESSES: usize = 16;

/// Tries the hosts in their order.
pub async fn open(server: &Server, purpose: Purpose) -> Result<Connection> {
    let mut failures = Vec::new();
    let mut second_best = None;
    for address in &server.hosts {
        match host(server, address, purpose).await {
            Ok(connection) if will_do(server.target, connection.facts.standby) => return Ok(connection),
            Ok(connection) if server.target == Target::PreferStandby && second_best.is_none() => second_best = Some(connection),
            Ok(connection) => {
                let role = if connection.facts.standby { "a standby" } else { "a primary" };
                connection.close().await;
                failures.push(unfit(address, format!("{role} answers, and target_session_attrs asks for another")));
            }
            // A refusal is the word of this host only: a standby may not have heard of a role or a database yet.
            Err(error) => failures.push(error),
        }
    }
    match second_best {
        Some(connection) => Ok(connection),
        None => Err(all_failed(failures)),
    }
}

fn will_do(target: Target, standby: bool) -> bool {
    match target {
        Target::Any => true,
        Target::Primary => !standby,
        Target::Standby | Target::PreferStandby => standby,
    }
}

/// Of one host its own error; of several all of them. If one of them may come back, it is worth trying again.
fn all_failed(mut failures: Vec<Error>) -> Error {
    if failures.len() <= 1 || failures.iter().all(|error| error.kind() != Kind::Retry) {
        let none = || Error::new(&codes::BAD_OPTION, "the url names no host").hint("Name the host in the url.");
        return if failures.is_empty() { none() } else { failures.remove(0) };
    }
    let told: Vec<String> = failures
        .iter()
        .map(|error| {
            let place = error.place().iter().find(|(label, _)| *label == "server").map_or("", |(_, value)| value.as_str());
            format!("{place}: {} {}", error.code().id, error.what())
        })
        .collect();
    Error::new(&codes::NO_HOST, format!("none of the hosts can be used: {}", told.join("; ")))
        .hint("Start the server that is wanted, or correct the hosts and target_session_attrs in the url.")
}

fn unfit(address: &Address, what: String) -> Error {
    Error::new(&codes::NO_HOST, what)
        .at("server", address)
        .hint("Correct the hosts or target_session_attrs in the url, or wait until a server takes the role.")
}

/// Tries all that a host's name stands for.
async fn host(server: &Server, address: &Address, purpose: Purpose) -> Result<Connection> {
    let name = match &address.host {
        Host::Unix(_) => return one(server, address.clone(), purpose).await,
        Host::Tcp(name) => name,
    };
    let resolved = match address.resolved {
        Some(ip) => vec![ip],
        None => resolve(server, address, name).await?,
    };
    let mut last = None;
    for ip in resolved {
        match one(server, Address { resolved: Some(ip), ..address.clone() }, purpose).await {
            Ok(connection) => return Ok(connection),
            // What one address refuses, the next would refuse as well: they are one host.
            Err(error) if error.kind() != Kind::Retry => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| unreachable("the host's name stands for no address").at("server", address)))
}

async fn resolve(server: &Server, address: &Address, name: &str) -> Result<Vec<IpAddr>> {
    let found = match timeout(server.connect_timeout, lookup_host((name, address.port))).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(unreachable("the host's name cannot be resolved").caused_by(error).at("server", address)),
        Err(_) => return Err(unreachable("the host's name was not resolved in time").at("server", address)),
    };
    Ok(found.map(|socket| socket.ip()).take(MAX_ADDRESSES).collect())
}

async fn one(server: &Server, address: Address, purpose: Purpose) -> Result<Connection> {
    let shown = format!("{address}/{}", server.database);
    let opening = Box::pin(async {
        let mut connection = connect(server, address).await?;
        connection.log_in(server, purpose).await?;
        connection.verify(purpose).await?;
        connection.require_instance(server)?;
        Ok(connection)
    });
    let result = timeout(server.connect_timeout, opening).await;
    let result = result.unwrap_or_else(|_| Err(unreachable("the server did not answer in time")));
    result.map_err(|error: Error| error.at("server", shown))
}

async fn connect(server: &Server, address: Address) -> Result<Connection> {
    let failed = |error: io::Error| unreachable("cannot connect").caused_by(error);
    match &address.host {
        Host::Unix(path) => {
            let socket = UnixStream::connect(path.join(format!(".s.PGSQL.{}", address.port))).await.map_err(failed)?;
            Ok(Connection::new(Box::new(socket), address))
        }
        Host::Tcp(name) => {
            let stream = match address.resolved {
                Some(ip) => TcpStream::connect((ip, address.port)).await,
                None => TcpStream::connect((name.as_str(), address.port)).await,
            };
            let stream = stream.map_err(failed)?;
            watch(&stream).map_err(failed)?;
            match server.ssl_mode {
                SslMode::Disable => Ok(Connection::new(Box::new(stream), address)),
                _ => encrypt(server, name.clone(), stream, address).await,
            }
        }
    }
}

/// A peer that vanished without a word must be noticed, whether we wait for it or send to it.
fn watch(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(PROBE_EVERY).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}

async fn encrypt(server: &Server, host: String, mut stream: TcpStream, address: Address) -> Result<Connection> {
    // Files are read before anything is sent, at every connection: certificates are renewed while we run (N2).
    let connector = TlsConnector::from(tls::client_config(server)?);
    let name = ServerName::try_from(host).map_err(|_| {
        Error::new(&codes::TLS, "the host name cannot stand in a certificate").hint("Correct the host in the url.")
    })?;
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(broken)?;
    // One byte and no more is read before the handshake, so that nothing sent in the clear can pass for an answer.
    match stream.read_u8().await.map_err(broken)? {
        b'S' => {}
        b'N' => {
            return Err(Error::new(&codes::TLS, "the server offers no TLS")
                .hint("Turn ssl on at the server, or set sslmode=disable in the url if the network is trusted."));
        }
        // An error before TLS is unauthenticated: its words are not shown.
        b'E' => return Err(unreachable("the server answered with an error before TLS began")),
        _ => return Err(not_postgres("the answer to the request for TLS is none")),
    }
    let stream = connector.connect(name, stream).await.map_err(tls::handshake_failed)?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let end_point = certificate.and_then(|certificate| tls::end_point(certificate));
    Ok(Connection { end_point, encrypted: true, ..Connection::new(Box::new(stream), address) })
}

fn unreachable(what: &str) -> Error {
    Error::new(&shared::UNREACHABLE, what).hint("Check host and port in the url, and that the server runs.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_vanishes_is_noticed_by_the_kernel() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        watch(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), PROBE_EVERY);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
    }

    #[test]
    fn what_may_come_back_is_tried_again_and_all_failures_are_told() {
        let down = || unreachable("cannot connect").at("server", "a:1/d");
        let tls = || Error::new(&codes::CERTIFICATE, "it has expired").at("server", "b:2/d");
        assert_eq!(all_failed(vec![tls()]).code().id, codes::CERTIFICATE.id);
        assert_eq!(all_failed(vec![tls(), tls()]).code().id, codes::CERTIFICATE.id);
        let both = all_failed(vec![down(), tls()]);
        assert_eq!(both.kind(), Kind::Retry);
        assert!(both.what().contains("a:1/d: HW0002 cannot connect; b:2/d: HW2048 it has expired"), "{both}");
    }
}
