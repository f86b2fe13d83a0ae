//! The login: what the server is, TLS, and the proof of the password without giving it away.

use headwater_connector::{Error, Result};
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::{Connection, Flavour, rsa::PublicKey};
use crate::{
    codes,
    error::{ServerError, printable, protocol, torn},
    server::{Server, SslMode},
    wire::{Cursor, Torn, push_number},
};

const LONG_PASSWORD: u32 = 1;
const PROTOCOL_41: u32 = 1 << 9;
const TLS: u32 = 1 << 11;
const TRANSACTIONS: u32 = 1 << 13;
const SECURE_CONNECTION: u32 = 1 << 15;
const PLUGIN_AUTH: u32 = 1 << 19;
const CONNECT_ATTRS: u32 = 1 << 20;
/// utf8mb4_general_ci
const COLLATION: u8 = 45;
/// Largest packet that we say we take.
const MAX_PACKET: u32 = 1 << 30;
/// Rounds of a login; no honest server needs more.
const MAX_ROUNDS: usize = 8;

/// The first words of the server.
struct Greeting {
    version: String,
    capabilities: u32,
    scramble: Vec<u8>,
    plugin: String,
}

impl Greeting {
    fn parse(body: &[u8]) -> Result<Self, Torn> {
        let mut cursor = Cursor::new(body);
        if cursor.u8()? != 10 {
            return Err(Torn);
        }
        let version = printable(cursor.until_zero()?);
        cursor.u32()?;
        let mut scramble = cursor.take(8)?.to_vec();
        cursor.u8()?;
        let low = cursor.u16()?;
        cursor.take(3)?;
        let high = cursor.u16()?;
        let len = usize::from(cursor.u8()?);
        cursor.take(10)?;
        let rest = cursor.take(len.saturating_sub(8).max(13))?;
        scramble.extend_from_slice(rest.strip_suffix(&[0]).unwrap_or(rest));
        let plugin = cursor.until_zero().unwrap_or(cursor.rest());
        let capabilities = u32::from(low) | u32::from(high) << 16;
        Ok(Self { version, capabilities, scramble, plugin: printable(plugin) })
    }
}

/// Connects and logs in.
pub async fn log_in(server: &Server) -> Result<Connection> {
    let mut connection = Connection::connect(server).await?;
    let first = connection.receive().await?;
    if first.first() == Some(&255) {
        return Err(ServerError::parse(&first[1..]).map_err(|_| not_mysql())?.into_error());
    }
    let greeting = Greeting::parse(&first).map_err(|_| not_mysql())?;
    connection.learn(&greeting.version);
    let needed = PROTOCOL_41 | SECURE_CONNECTION | PLUGIN_AUTH;
    if greeting.capabilities & needed != needed {
        return Err(not_mysql());
    }
    let mut capabilities = LONG_PASSWORD | TRANSACTIONS | needed | (greeting.capabilities & CONNECT_ATTRS);
    let wants_tls = match server.ssl_mode {
        SslMode::Disable => false,
        SslMode::Offered => greeting.capabilities & TLS != 0,
        _ => true,
    };
    if wants_tls {
        if greeting.capabilities & TLS == 0 {
            return Err(Error::new(&codes::TLS, "the server offers no TLS")
                .hint("Put a certificate into the server, or set sslmode=disable in the url if the network is trusted."));
        }
        capabilities |= TLS;
        connection.send(&head(capabilities)).await?;
        connection = connection.encrypt(server).await?;
    }
    answer(&mut connection, server, capabilities, greeting).await?;
    Ok(connection)
}

fn head(capabilities: u32) -> Vec<u8> {
    let mut out = capabilities.to_le_bytes().to_vec();
    out.extend_from_slice(&MAX_PACKET.to_le_bytes());
    out.push(COLLATION);
    out.extend_from_slice(&[0; 23]);
    out
}

async fn answer(connection: &mut Connection, server: &Server, capabilities: u32, greeting: Greeting) -> Result<()> {
    let password = match &server.password {
        Some(secret) => secret.reveal()?,
        None => String::new().into(),
    };
    let Greeting { mut plugin, mut scramble, .. } = greeting;
    // The server's default may be one that we refuse; the user's own is asked for in the next round.
    if proof(&plugin, &password, &scramble).is_none() {
        plugin = "mysql_native_password".to_owned();
    }
    let first = proof(&plugin, &password, &scramble).unwrap_or_default();
    let mut out = head(capabilities);
    out.extend_from_slice(server.user.as_bytes());
    out.push(0);
    out.push(first.len() as u8);
    out.extend_from_slice(&first);
    out.extend_from_slice(plugin.as_bytes());
    out.push(0);
    if capabilities & CONNECT_ATTRS != 0 {
        let mut attributes = Vec::new();
        for text in ["program_name", "headwater", "_client_name", "headwater"] {
            push_number(&mut attributes, text.len());
            attributes.extend_from_slice(text.as_bytes());
        }
        push_number(&mut out, attributes.len());
        out.extend_from_slice(&attributes);
    }
    connection.send(&out).await?;
    for _ in 0..MAX_ROUNDS {
        let message = connection.receive().await?;
        let reply = match message.first() {
            Some(0) => return Ok(()),
            Some(255) => {
                let refused = ServerError::parse(&message[1..]).map_err(|_| torn("an error message"))?;
                return Err(refused.into_error());
            }
            Some(254) if message.len() == 1 => {
                return Err(unsafe_login("the server asked for the password by the method before 4.1"));
            }
            Some(254) => {
                let mut cursor = Cursor::new(&message[1..]);
                plugin = printable(cursor.until_zero().map_err(|_| torn("a login message"))?);
                scramble = cursor.rest().strip_suffix(&[0]).unwrap_or(cursor.rest()).to_vec();
                proof(&plugin, &password, &scramble).ok_or_else(|| refused_plugin(&plugin))?
            }
            Some(1) => match (plugin.as_str(), &message[1..]) {
                // The proof was enough; OK follows.
                ("caching_sha2_password", [3]) => continue,
                // The server does not know the password well enough to check the proof.
                ("caching_sha2_password", [4]) if connection.is_encrypted => {
                    let mut clear = password.as_bytes().to_vec();
                    clear.push(0);
                    clear
                }
                ("caching_sha2_password", [4]) => sealed(server, &password, &scramble)?,
                _ => return Err(protocol("an unexpected message came in the login")),
            },
            _ => return Err(protocol("an unexpected message came in the login")),
        };
        connection.send(&reply).await?;
    }
    Err(protocol("the login does not come to an end"))
}

/// The proof of the password by a method that gives nothing away; none for other methods.
fn proof(plugin: &str, password: &str, scramble: &[u8]) -> Option<Vec<u8>> {
    let digest = |algorithm, parts: &[&[u8]]| {
        let mut context = Context::new(algorithm);
        parts.iter().for_each(|part| context.update(part));
        context.finish()
    };
    let mixed = |left: &[u8], right: &[u8]| left.iter().zip(right).map(|(left, right)| left ^ right).collect::<Vec<u8>>();
    match plugin {
        "mysql_native_password" | "caching_sha2_password" if password.is_empty() => Some(Vec::new()),
        "mysql_native_password" => {
            let once = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[password.as_bytes()]);
            let twice = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[once.as_ref()]);
            let salted = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[scramble.get(..20)?, twice.as_ref()]);
            Some(mixed(once.as_ref(), salted.as_ref()))
        }
        "caching_sha2_password" => {
            let once = digest(&SHA256, &[password.as_bytes()]);
            let twice = digest(&SHA256, &[once.as_ref()]);
            let salted = digest(&SHA256, &[twice.as_ref(), scramble.get(..20)?]);
            Some(mixed(once.as_ref(), salted.as_ref()))
        }
        _ => None,
    }
}

/// The password, readable for the owner of the pinned key only.
fn sealed(server: &Server, password: &str, scramble: &[u8]) -> Result<Vec<u8>> {
    let Some(path) = &server.public_key else {
        return Err(unsafe_login("the server wants the password itself, and the connection is not encrypted"));
    };
    let unusable = |what: &str| {
        Error::new(&codes::UNSAFE_LOGIN, what)
            .at("file", path.display())
            .hint("Copy public_key.pem out of the server's data directory, and name the copy: server_public_key in the url.")
    };
    let text = crate::tls::contents(path).map_err(|error| unusable("the server's public key cannot be read").caused_by(error))?;
    let key = std::str::from_utf8(&text).ok().and_then(PublicKey::parse);
    let key = key.ok_or_else(|| unusable("the server's public key is no RSA key of 2048 bits or more"))?;
    key.seal(password, scramble).ok_or_else(|| unusable("the password is too long for the server's public key"))
}

fn refused_plugin(plugin: &str) -> Error {
    let known: String = plugin.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(64).collect();
    unsafe_login(&format!("the server asks for the password by {known}"))
}

/// X1: nothing of this kind is answered.
pub fn unsafe_login(what: &str) -> Error {
    Error::new(&codes::UNSAFE_LOGIN, what).hint(
        "Use TLS (sslmode=verify-full in the url) and a user that is identified with caching_sha2_password or mysql_native_password.",
    )
}

fn not_mysql() -> Error {
    Error::new(&codes::TOO_OLD, "what answers is no MySQL or MariaDB server that is new enough")
        .hint("Check host and port in the url; MySQL 8.0.17 or MariaDB 10.6 are the oldest that will do.")
}

/// Major, minor and patch number of the version's text. MariaDB puts `5.5.5-` in front for old replicas.
fn numbers(text: &str) -> (u32, u32, u32) {
    let plain = if text.contains("MariaDB") { text.strip_prefix("5.5.5-").unwrap_or(text) } else { text };
    let mut parts = plain.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

/// Whether a server lacks what is needed: of MySQL `binlog_row_metadata` (8.0.1), and what reads a FLOAT with all its digits,
/// `CAST(… AS DOUBLE)` (8.0.17).
fn is_too_old(flavour: Flavour, version: &str) -> bool {
    numbers(version) < if flavour == Flavour::Mariadb { (10, 6, 0) } else { (8, 0, 17) }
}

impl Connection {
    /// What the version's text tells.
    fn learn(&mut self, text: &str) {
        self.flavour = if text.contains("MariaDB") { Flavour::Mariadb } else { Flavour::Mysql };
        let (major, minor, _) = numbers(text);
        self.version = (major, minor);
        text.clone_into(&mut self.version_text);
    }

    /// Refuses servers that lack what is needed.
    pub fn require_version(&self) -> Result<()> {
        if !is_too_old(self.flavour, &self.version_text) {
            return Ok(());
        }
        Err(Error::new(&codes::TOO_OLD, format!("the server is {}", self.version_text))
            .hint("Upgrade it: MySQL 8.0.17 or MariaDB 10.6 are the oldest that will do."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_greeting_is_read_or_refused(mut body: Vec<u8>, is_ours: bool) {
            if is_ours && let Some(first) = body.first_mut() {
                *first = 10;
            }
            if let Ok(greeting) = Greeting::parse(&body) {
                prop_assert!(greeting.scramble.len() <= body.len() && greeting.version.len() < 8 * body.len());
                let _ = proof(&greeting.plugin, "secret", &greeting.scramble);
            }
        }
    }

    /// An 8.0.16 was taken, and refused the first chunk of a table with a FLOAT.
    #[test]
    fn a_server_that_lacks_what_is_needed_is_too_old() {
        for (flavour, version, expected) in [
            (Flavour::Mysql, "8.0.16", true),
            (Flavour::Mysql, "8.0.17-log", false),
            (Flavour::Mysql, "5.7.44", true),
            (Flavour::Mysql, "9.0.1", false),
            (Flavour::Mariadb, "5.5.5-10.5.29-MariaDB-log", true),
            (Flavour::Mariadb, "5.5.5-10.6.0-MariaDB", false),
            (Flavour::Mariadb, "11.8.2-MariaDB-ubu2404", false),
        ] {
            assert_eq!(is_too_old(flavour, version), expected, "{version}");
        }
    }

    #[test]
    fn a_proof_is_what_the_server_checks() {
        let scramble: Vec<u8> = (1..=20).collect();
        let found = proof("mysql_native_password", "secret", &scramble).unwrap();
        // The server knows the hash of the hash, and gets the hash out of the proof.
        let sha1 = |parts: &[&[u8]]| ring::digest::digest(&SHA1_FOR_LEGACY_USE_ONLY, &parts.concat()).as_ref().to_vec();
        let (once, twice) = (sha1(&[b"secret"]), sha1(&[&sha1(&[b"secret"])]));
        let unmixed: Vec<u8> = found.iter().zip(sha1(&[&scramble, &twice])).map(|(left, right)| left ^ right).collect();
        assert_eq!(unmixed, once);
        assert_eq!(proof("mysql_native_password", "", &scramble), Some(Vec::new()));
        assert_eq!(proof("mysql_clear_password", "secret", &scramble), None);
        assert_eq!(proof("caching_sha2_password", "secret", &[1; 4]), None);
    }
}
