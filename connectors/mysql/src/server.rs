//! The url: which server, as whom, and what it must prove.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use headwater_connector::{OptionFault, Secret};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::config::fault;

const FORM: &str = "Write it as mysql://USER@HOST:PORT/.";

/// Where and how to connect.
#[derive(Clone, Debug)]
pub struct Server {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User to log in as.
    pub user: String,
    /// Its password.
    pub password: Option<Secret>,
    /// Whether the password stands in the url.
    pub password_in_url: bool,
    /// How far TLS is demanded and verified.
    pub ssl_mode: SslMode,
    /// Certificate authorities in place of the system's.
    pub ssl_root: Option<PathBuf>,
    /// Client certificate and key.
    pub ssl_client: Option<(PathBuf, PathBuf)>,
    /// The server's RSA key, for a password over a connection that is not encrypted.
    pub public_key: Option<PathBuf>,
    /// For connecting and logging in together.
    pub connect_timeout: Duration,
}

/// How far TLS goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS
    Disable,
    /// Without verification if the server has it; for loopback only, where it lets a password pass that needs it
    Offered,
    /// TLS, whoever answers
    Require,
    /// The certificate's chain is verified
    VerifyCa,
    /// The host name too
    VerifyFull,
}

impl Server {
    /// Host and port, without secrets.
    pub fn endpoint(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{host}:{}", self.port)
    }
}

/// Reads the url; faults are appended.
pub fn server(text: &str, password: Option<Secret>, faults: &mut Vec<OptionFault>) -> Option<Server> {
    if !["mysql://", "mariadb://"].iter().any(|scheme| text.starts_with(scheme)) {
        faults.push(fault("url", "the url does not begin with mysql://", FORM));
        return None;
    }
    // The parser's messages never quote the url, which may hold a password.
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => {
            faults.push(fault("url", format!("the url cannot be read: {error}"), FORM));
            return None;
        }
    };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let is_local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let mut server = Server {
        port: url.port().unwrap_or(3306),
        user: decoded(url.username()),
        password_in_url: url.password().is_some(),
        password: password.or_else(|| url.password().map(|text| Secret::literal(decoded(text)))),
        ssl_mode: if is_local { SslMode::Offered } else { SslMode::VerifyFull },
        ssl_root: None,
        ssl_client: None,
        public_key: None,
        connect_timeout: Duration::from_secs(10),
        host,
    };
    parameters(&url, &mut server, faults);
    if server.host.is_empty() {
        faults.push(fault("url", "the url names no host", FORM));
    }
    if server.user.is_empty() {
        faults.push(fault("url", "the url names no user", FORM));
    }
    Some(server)
}

fn parameters(url: &Url, server: &mut Server, faults: &mut Vec<OptionFault>) {
    let (mut cert, mut key) = (None, None);
    for (name, value) in url.query_pairs() {
        match (&*name, &*value) {
            ("sslmode", "disable") => server.ssl_mode = SslMode::Disable,
            ("sslmode", "require") => server.ssl_mode = SslMode::Require,
            ("sslmode", "verify-ca") => server.ssl_mode = SslMode::VerifyCa,
            ("sslmode", "verify-full") => server.ssl_mode = SslMode::VerifyFull,
            ("sslmode", _) => {
                faults.push(fault("url", "unknown sslmode", "Use verify-full, verify-ca, require or disable."));
            }
            ("sslrootcert", path) => server.ssl_root = Some(path.into()),
            ("server_public_key", path) => server.public_key = Some(path.into()),
            ("sslcert", path) => cert = Some(PathBuf::from(path)),
            ("sslkey", path) => key = Some(PathBuf::from(path)),
            ("connect_timeout", seconds) => match seconds.parse() {
                Ok(seconds @ 1..=3600) => server.connect_timeout = Duration::from_secs(seconds),
                _ => faults.push(fault("url", "connect_timeout is not a number of seconds", "Set connect_timeout to 1 to 3600.")),
            },
            (other, _) => faults.push(fault(
                "url",
                format!("unknown url parameter {other:?}"),
                "Use sslmode, sslrootcert, sslcert, sslkey, server_public_key or connect_timeout, or remove it.",
            )),
        }
    }
    match (cert, key) {
        (Some(cert), Some(key)) => server.ssl_client = Some((cert, key)),
        (None, None) => {}
        _ => faults.push(fault("url", "sslcert and sslkey go together", "Name both files, or neither.")),
    }
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}
