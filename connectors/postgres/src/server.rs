//! The url: which servers, as whom, and what they must prove.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use headwater_connector::{OptionFault, Secret, SourceContext};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::config::fault;

const FORM: &str = "Write it as postgres://USER@HOST:PORT/DATABASE.";
/// More hosts than anybody has, so that a list cannot be the work of a slipped key.
const MAX_HOSTS: usize = 64;

/// Where and how to connect.
#[derive(Clone, Debug)]
pub struct Server {
    /// At least one; tried in this order.
    pub hosts: Vec<Address>,
    /// Which of them will do.
    pub target: Target,
    /// Role to log in as.
    pub user: String,
    /// Its password.
    pub password: Option<Secret>,
    /// Whether the password stands in the url.
    pub password_in_url: bool,
    /// Name of the database.
    pub database: String,
    /// How far TLS is demanded and verified.
    pub ssl_mode: SslMode,
    /// Certificate authorities in place of the system's.
    pub ssl_root: Option<PathBuf>,
    /// Client certificate and key.
    pub ssl_client: Option<(PathBuf, PathBuf)>,
    /// Whether the login must be bound to the TLS channel.
    pub binding: Binding,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
    /// For connecting to one host and logging in there together.
    pub connect_timeout: Duration,
    /// Only the server with this start time will do: the one that another session is on.
    pub instance: Option<String>,
}

/// One place where a server may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// TCP or unix socket.
    pub host: Host,
    /// TCP port, also part of a unix socket's name.
    pub port: u16,
    /// What the name stood for when another session connected.
    pub resolved: Option<IpAddr>,
}

/// The two kinds of address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// Name or address
    Tcp(String),
    /// Directory of the socket
    Unix(PathBuf),
}

/// The modes of libpq that make sense: `allow` and `prefer` protect against nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS
    Disable,
    /// TLS, whoever answers
    Require,
    /// The certificate's chain is verified
    VerifyCa,
    /// The host name too
    VerifyFull,
}

/// libpq's `channel_binding`. Without TLS there is nothing to bind to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// With TLS and a password, the login is SCRAM-SHA-256-PLUS or none
    Require,
    /// If the server offers it
    Prefer,
    /// Never
    Disable,
}

/// libpq's `target_session_attrs`. Our sessions set `default_transaction_read_only` off, so what may write is what is not in
/// recovery: `read-write` is `primary`, and `read-only` is `standby`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The first that answers
    Any,
    /// Not in recovery
    Primary,
    /// In recovery
    Standby,
    /// In recovery, else the first that answers
    PreferStandby,
}

impl Server {
    /// Hosts and database, without secrets.
    pub fn endpoint(&self) -> String {
        format!("{}/{}", self.addresses(), self.database)
    }

    /// Hosts with their ports, separated by commas.
    pub fn addresses(&self) -> String {
        let hosts: Vec<String> = self.hosts.iter().map(Address::to_string).collect();
        hosts.join(",")
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Host::Tcp(host) if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            Host::Tcp(host) => write!(f, "{host}:{}", self.port),
            Host::Unix(path) => write!(f, "{}/.s.PGSQL.{}", path.display(), self.port),
        }
    }
}

/// Reads the url; faults are appended.
pub fn server(context: &SourceContext, text: &str, password: Option<Secret>, faults: &mut Vec<OptionFault>) -> Option<Server> {
    let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| ["postgres", "postgresql"].contains(scheme)) else {
        faults.push(fault("url", "the url does not begin with postgres://", FORM));
        return None;
    };
    // The general form knows one host, so the list is taken out before the rest is parsed.
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    // The parser's messages never quote the url, which may hold a password.
    let url = match Url::parse(&format!("{scheme}://{user}@none{tail}")) {
        Ok(url) => url,
        Err(error) => {
            faults.push(fault("url", format!("the url cannot be read: {error}"), FORM));
            return None;
        }
    };
    let parameters = Parameters::read(&url, faults);
    let hosts = addresses(hosts, &parameters, faults);
    let local = hosts.iter().all(|address| is_local(&address.host));
    let server = Server {
        target: parameters.target.unwrap_or(if hosts.len() > 1 { Target::Primary } else { Target::Any }),
        user: decoded(url.username()),
        password_in_url: url.password().is_some(),
        password: password.or_else(|| url.password().map(|text| Secret::literal(decoded(text)))),
        database: decoded(url.path().trim_start_matches('/')),
        ssl_mode: parameters.mode.unwrap_or(if local { SslMode::Disable } else { SslMode::VerifyFull }),
        ssl_root: parameters.root.clone(),
        ssl_client: parameters.client(faults),
        binding: parameters.binding.unwrap_or(Binding::Require),
        application_name: parameters.application_name.unwrap_or_else(|| format!("headwater/{}", context.connector)),
        connect_timeout: parameters.timeout.unwrap_or(Duration::from_secs(10)),
        instance: None,
        hosts,
    };
    complete(server, parameters.binding, faults)
}

/// What one parameter alone cannot tell.
fn complete(mut server: Server, binding: Option<Binding>, faults: &mut Vec<OptionFault>) -> Option<Server> {
    if server.user.is_empty() {
        faults.push(fault("url", "the url names no user", FORM));
    }
    let open = |address: &Address| matches!(address.host, Host::Unix(_)) || server.ssl_mode == SslMode::Disable;
    if binding == Some(Binding::Require) && server.hosts.iter().any(open) {
        let hint = "Set sslmode=verify-full in the url and use a TCP host, or take channel_binding out.";
        faults.push(fault("url", "channel_binding=require needs TLS", hint));
    }
    if server.database.is_empty() {
        server.database.clone_from(&server.user);
    }
    Some(server)
}

#[derive(Default)]
struct Parameters {
    hosts: Option<String>,
    ports: Option<String>,
    mode: Option<SslMode>,
    root: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    binding: Option<Binding>,
    target: Option<Target>,
    application_name: Option<String>,
    timeout: Option<Duration>,
}

const PARAMETERS: [&str; 10] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "channel_binding",
    "target_session_attrs",
    "host",
    "port",
    "application_name",
    "connect_timeout",
];

const MODES: [(&str, SslMode); 4] = [
    ("disable", SslMode::Disable),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];
const BINDINGS: [(&str, Binding); 3] =
    [("require", Binding::Require), ("prefer", Binding::Prefer), ("disable", Binding::Disable)];
const TARGETS: [(&str, Target); 6] = [
    ("any", Target::Any),
    ("read-write", Target::Primary),
    ("primary", Target::Primary),
    ("standby", Target::Standby),
    ("read-only", Target::Standby),
    ("prefer-standby", Target::PreferStandby),
];

impl Parameters {
    fn read(url: &Url, faults: &mut Vec<OptionFault>) -> Self {
        let mut found = Self::default();
        for (name, value) in url.query_pairs() {
            match &*name {
                "sslmode" if ["allow", "prefer"].contains(&&*value) => {
                    let what = format!("sslmode={value} protects against nothing");
                    faults.push(fault("url", what, "Use sslmode=verify-full, or sslmode=disable if the network is trusted."));
                }
                "sslmode" => found.mode = word(&name, &value, &MODES, faults),
                "channel_binding" => found.binding = word(&name, &value, &BINDINGS, faults),
                "target_session_attrs" => found.target = word(&name, &value, &TARGETS, faults),
                "sslrootcert" => found.root = Some(PathBuf::from(&*value)),
                "sslcert" => found.cert = Some(PathBuf::from(&*value)),
                "sslkey" => found.key = Some(PathBuf::from(&*value)),
                "host" => found.hosts = Some(value.into_owned()),
                "port" => found.ports = Some(value.into_owned()),
                "application_name" => found.application_name = Some(value.into_owned()),
                "connect_timeout" => match value.parse() {
                    Ok(seconds @ 1..=3600) => found.timeout = Some(Duration::from_secs(seconds)),
                    _ => {
                        let hint = "Set connect_timeout to 1 to 3600.";
                        faults.push(fault("url", "connect_timeout is not a number of seconds", hint));
                    }
                },
                "options" => faults.push(fault(
                    "url",
                    "the url parameter options is not supported",
                    "Remove it; headwater sets what its sessions need, and ALTER ROLE ... SET sets the rest.",
                )),
                other => {
                    let hint = format!("Did you mean {}? Remove or rename it.", closest(other, &PARAMETERS));
                    faults.push(fault("url", format!("unknown url parameter {other:?}"), hint));
                }
            }
        }
        found
    }

    fn client(&self, faults: &mut Vec<OptionFault>) -> Option<(PathBuf, PathBuf)> {
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => return Some((cert.clone(), key.clone())),
            (None, None) => {}
            _ => faults.push(fault("url", "sslcert and sslkey go together", "Name both files, or neither.")),
        }
        None
    }
}

fn word<T: Copy>(name: &str, value: &str, known: &[(&'static str, T)], faults: &mut Vec<OptionFault>) -> Option<T> {
    let found = known.iter().find(|(word, _)| *word == value);
    if found.is_none() {
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        faults.push(fault("url", format!("unknown {name}"), format!("Did you mean {}?", closest(value, &words))));
    }
    found.map(|(_, meaning)| *meaning)
}

/// The hosts of the authority, or of the parameter `host` that stands over it; the ports likewise. One port goes for all hosts.
fn addresses(authority: &str, parameters: &Parameters, faults: &mut Vec<OptionFault>) -> Vec<Address> {
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for entry in authority.split(',') {
        // `[::1]:5432`, `name:5432`, `%2Frun%2Fpostgresql:5432`, or nothing.
        let (name, port) = match entry.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, port),
            _ => (entry, ""),
        };
        names.push(decoded(name).trim_start_matches('[').trim_end_matches(']').to_owned());
        ports.push(port.to_owned());
    }
    if let Some(hosts) = &parameters.hosts {
        names = hosts.split(',').map(str::to_owned).collect();
    }
    if let Some(given) = &parameters.ports {
        ports = given.split(',').map(str::to_owned).collect();
    }
    if ports.len() == 1 {
        ports.resize(names.len(), ports[0].clone());
    }
    if ports.len() != names.len() || names.len() > MAX_HOSTS {
        let what = format!("the url names {} hosts and {} ports", names.len(), ports.len());
        faults.push(fault("url", what, "Name one port for each host, or one for all."));
        return Vec::new();
    }
    names.into_iter().zip(ports).filter_map(|(name, port)| address(name, &port, faults)).collect()
}

fn address(name: String, port: &str, faults: &mut Vec<OptionFault>) -> Option<Address> {
    let port = match port.parse::<u16>() {
        _ if port.is_empty() => 5432,
        Ok(port) if port > 0 => port,
        _ => {
            faults.push(fault("url", "the url cannot be read: invalid port number", FORM));
            return None;
        }
    };
    if name.is_empty() {
        let hint = "Name the host, or the directory of a unix socket as ?host=/run/postgresql.";
        faults.push(fault("url", "the url names no host", hint));
        return None;
    }
    if name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        faults.push(fault("url", "a host name holds a blank", FORM));
        return None;
    }
    let host = if name.starts_with('/') { Host::Unix(name.into()) } else { Host::Tcp(name) };
    Some(Address { host, port, resolved: None })
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
    }
}

/// The known word with the fewest edits. The lists are short, so the plain algorithm does.
pub fn closest<'a>(word: &str, known: &[&'a str]) -> &'a str {
    let distance = |other: &str| {
        let mut row: Vec<usize> = (0..=other.len()).collect();
        for (i, a) in word.bytes().take(64).enumerate() {
            let mut left = i + 1;
            for (j, b) in other.bytes().enumerate() {
                let cost = (row[j] + usize::from(a != b)).min(left + 1).min(row[j + 1] + 1);
                row[j] = left;
                left = cost;
            }
            row[other.len()] = left;
        }
        row[other.len()]
    };
    known.iter().min_by_key(|other| distance(other)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Server, String> {
        let context = SourceContext { connector: "shop".into(), prefix: "headwater".into(), keys: Vec::new() };
        let mut faults = Vec::new();
        let server = server(&context, url, None, &mut faults);
        let said: String = faults.iter().map(|fault| fault.error.to_string()).collect();
        server.filter(|_| faults.is_empty()).ok_or(said)
    }

    #[test]
    fn several_hosts_keep_their_order_and_ports() {
        let server = read("postgres://hw@a:5432,[::1]:7,c/shop").unwrap();
        assert_eq!(server.endpoint(), "a:5432,[::1]:7,c:5432/shop");
        assert_eq!((server.target, server.ssl_mode), (Target::Primary, SslMode::VerifyFull));
        let server = read("postgres://hw@/shop?host=a,/run/pg&port=1,2&target_session_attrs=prefer-standby").unwrap();
        assert_eq!(server.endpoint(), "a:1,/run/pg/.s.PGSQL.2/shop");
        assert_eq!(server.target, Target::PreferStandby);
        let server = read("postgres://hw@%2Frun%2Fpg:77/shop").unwrap();
        assert_eq!((server.endpoint().as_str(), server.target), ("/run/pg/.s.PGSQL.77/shop", Target::Any));
        assert_eq!(read("postgres://hw@a,b/shop?port=9").unwrap().endpoint(), "a:9,b:9/shop");
    }

    #[test]
    fn one_host_that_is_not_local_turns_tls_on_for_all() {
        assert_eq!(read("postgres://hw@127.0.0.1,localhost/d").unwrap().ssl_mode, SslMode::Disable);
        assert_eq!(read("postgres://hw@127.0.0.1,db.internal/d").unwrap().ssl_mode, SslMode::VerifyFull);
    }

    #[test]
    fn what_does_not_fit_together_is_said() {
        for (url, said) in [
            ("postgres://hw@a,b/d?port=1,2,3", "2 hosts and 3 ports"),
            ("postgres://hw@a:0/d", "port number"),
            ("postgres://hw@a:99999/d", "port number"),
            ("postgres://hw@a,/d", "no host"),
            ("postgres://hw@/d", "no host"),
            ("postgres://a/d", "no user"),
            ("postgres://hw@a b/d", "blank"),
            ("postgres://hw@a/d?target_session_attrs=primry", "Did you mean primary?"),
            ("postgres://hw@a/d?channel_binding=requir", "Did you mean require?"),
            ("postgres://hw@127.0.0.1/d?channel_binding=require", "needs TLS"),
            ("postgres://hw@a/d?channel_binding=require&sslmode=disable", "needs TLS"),
            ("postgres://hw@a/d?sslcert=/x", "go together"),
        ] {
            let faults = read(url).unwrap_err();
            assert!(faults.contains(said), "{url}: {faults}");
        }
    }
}
