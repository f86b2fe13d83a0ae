//! From the server's SQLSTATE to our kind and code.

use headwater_connector::{Code, Error, codes as shared};

use crate::{codes, wire::Torn};

/// What the server says in an ErrorResponse. Its DETAIL is left out: it can quote rows.
#[derive(Clone, Debug, Default)]
pub struct ServerError {
    /// Five characters, stable across versions and languages.
    pub state: String,
    /// The primary message.
    pub message: String,
    /// The place in the server's code, which is in no language.
    pub routine: String,
}

/// More of a message than this tells nobody anything.
const MAX_TEXT: usize = 1000;

impl ServerError {
    /// Reads the body of an ErrorResponse. Bytes that are not UTF-8 (the server may use another encoding before login) are replaced.
    pub fn parse(body: &[u8]) -> Result<Self, Torn> {
        let mut error = Self::default();
        let mut rest = body;
        while let Some((&field, tail)) = rest.split_first() {
            if field == 0 {
                break;
            }
            let end = memchr::memchr(0, tail).ok_or(Torn)?;
            match field {
                b'C' => error.state = printable(&tail[..end]),
                b'M' => error.message = printable(&tail[..end]),
                b'R' => error.routine = printable(&tail[..end]),
                _ => {}
            }
            rest = &tail[end + 1..];
        }
        Ok(error)
    }

    /// The error as the daemon sees it. Callers with something more precise to say match on `state` first.
    pub fn into_error(self) -> Error {
        if matches!(self.state.as_str(), "22021" | "22P05") {
            // The server's message quotes bytes of the value.
            return Error::new(&shared::BAD_VALUE, "the server holds text that is not in its encoding")
                .hint("Find the row in the server's log, and correct it.");
        }
        let (code, hint) = self.meaning();
        Error::new(code, self.text()).hint(hint)
    }

    /// Message and SQLSTATE, as a fragment.
    pub fn text(&self) -> String {
        format!("the server said \"{}\" ({})", self.message, self.state)
    }

    fn meaning(&self) -> (&'static Code, &'static str) {
        match self.state.as_str() {
            "28P01" | "28000" => (
                &codes::LOGIN_REFUSED,
                "Check user and password, that pg_hba.conf has a line with scram-sha-256 for this user, database and address, \
                 and sslcert if the line asks for a client certificate.",
            ),
            "3D000" => (&codes::DATABASE_MISSING, "Correct the database name at the end of the url."),
            "42501" => (&codes::PRIVILEGE, "Grant the privilege; `headwater check` prints the exact statement."),
            "55006" => (&codes::SLOT_ACTIVE, "Stop the other program that uses this slot; the connector waits until it is free."),
            "53400" => {
                (&codes::CAPACITY, "Drop unused replication slots, or raise max_replication_slots and restart the server.")
            }
            "53300" | "57P01" | "57P02" | "57P03" | "57P05" => (&codes::BUSY, "Wait until the server takes connections again."),
            state if ["08", "53", "58"].iter().any(|class| state.starts_with(class)) => {
                (&shared::CONNECTION_LOST, "Look into the server's log; the connector tries again.")
            }
            // Deadlock, lock timeout, serialization failure, statement timeout: the same statement can pass later.
            "40001" | "40P01" | "55P03" | "57014" => {
                (&shared::CONNECTION_LOST, "Nothing needs to be done; the connector tries again.")
            }
            _ => (&codes::REFUSED, "Look up the SQLSTATE in the server's manual and remove the cause."),
        }
    }
}

/// A server's words go to logs and terminals: no control characters, and an end.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAX_TEXT)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect()
}

/// A message of the server that is not what the protocol prescribes.
pub fn protocol(what: &str) -> Error {
    Error::new(&codes::PROTOCOL, what)
        .hint("Restart the connector; if the error comes back, report it with the server's version.")
}

/// An open connection that ended.
pub fn lost(what: &str) -> Error {
    Error::new(&shared::CONNECTION_LOST, what).hint("Nothing needs to be done; the connector opens again at its checkpoint.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use headwater_connector::Kind;

    #[test]
    fn states_map_to_kinds() {
        let kind = |state: &str| ServerError { state: state.into(), ..ServerError::default() }.into_error().kind();
        assert_eq!(kind("28P01"), Kind::Environment);
        assert_eq!(kind("3D000"), Kind::Config);
        assert_eq!(kind("42501"), Kind::Environment);
        for state in ["53300", "57P01", "57P03", "08006", "55006", "40P01"] {
            assert_eq!(kind(state), Kind::Retry, "{state}");
        }
    }

    #[test]
    fn detail_is_dropped_and_torn_bodies_are_refused() {
        let error = ServerError::parse(b"SERROR\0C23505\0Mduplicate\0DKey (id)=(7)\0\0").unwrap();
        assert_eq!(error.text(), "the server said \"duplicate\" (23505)");
        assert!(ServerError::parse(b"Mno end").is_err());
        assert!(ServerError::parse(b"").is_ok());
    }

    #[test]
    fn a_servers_words_cannot_steer_a_terminal() {
        let mut body = b"C42P01\0Mone\x1b[2Jtwo\nthree".to_vec();
        body.extend_from_slice(&vec![b'x'; 100_000]);
        body.extend_from_slice(b"\0\0");
        let error = ServerError::parse(&body).unwrap();
        assert!(error.message.starts_with("one [2Jtwo three"), "{:.40}", error.message);
        assert!(error.message.len() <= MAX_TEXT);
    }
}
