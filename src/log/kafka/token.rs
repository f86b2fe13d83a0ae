//! The bearer token of an OAUTHBEARER login.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use headwater_connector::{Error, Result, Secret};
use zeroize::Zeroizing;

use super::codes;

/// How long a token is used that does not say how long it is valid; then its reference is read again.
const OPAQUE_LIFETIME: Duration = Duration::from_secs(300);

/// A token as the client wants it.
pub(super) struct Token {
    pub(super) value: Zeroizing<String>,
    pub(super) principal: String,
    /// Milliseconds since 1970 UTC; the client asks for the next token some time before.
    pub(super) expires_ms: i64,
}

/// Reads the token from where it is kept, so that one that was renewed there is used without a restart.
pub(super) fn read(secret: &Secret) -> Result<Token> {
    let value = secret.reveal()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let claims = claims(&value);
    let claim = |name: &str| claims.as_ref().and_then(|claims| claims.get(name));
    let expires_ms = match claim("exp").and_then(serde_json::Value::as_f64) {
        Some(seconds) => (seconds * 1000.0) as i64,
        None => (now + OPAQUE_LIFETIME).as_millis() as i64,
    };
    if value.is_empty() || expires_ms <= now.as_millis() as i64 {
        let what = if value.is_empty() { "the token is empty" } else { "the token has expired" };
        return Err(Error::new(&codes::LOGIN_FAILED, what)
            .at("option", "log.security.sasl.token")
            .hint("Renew the token where the option points to, then run `headwater restart CONNECTOR`."));
    }
    let principal = claim("sub").and_then(serde_json::Value::as_str).unwrap_or("headwater").to_owned();
    Ok(Token { value, principal, expires_ms })
}

/// The claims of a JSON web token. Its signature is for the brokers to check; to us it only tells when to read it again.
fn claims(token: &str) -> Option<serde_json::Map<String, serde_json::Value>> {
    let payload = token.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(claims: &str) -> Secret {
        Secret::literal(format!("eyJhbGciOiJub25lIn0.{}.", URL_SAFE_NO_PAD.encode(claims)))
    }

    #[test]
    fn a_token_is_used_until_it_expires() {
        let token = read(&jwt(r#"{"sub":"ada","exp":32503680000}"#)).unwrap();
        assert_eq!((token.principal.as_str(), token.expires_ms), ("ada", 32_503_680_000_000));
        let opaque = read(&Secret::literal("opaque")).unwrap();
        assert_eq!(opaque.principal, "headwater");
        assert!(opaque.expires_ms < 32_503_680_000_000);
    }

    #[test]
    fn an_expired_token_is_refused_without_telling_it() {
        let failed = read(&jwt(r#"{"sub":"ada","exp":1000000000}"#)).map(drop).unwrap_err();
        assert_eq!(failed.code().id, codes::LOGIN_FAILED.id);
        assert!(failed.to_string().contains("log.security.sasl.token") && !failed.to_string().contains("eyJ"), "{failed}");
        read(&Secret::literal("")).map(drop).unwrap_err();
    }
}
