//! TLS: who must prove what, and the channel binding that ties the login to the certificate.

use std::{fs::File, io, io::Read, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use headwater_connector::{Error, Result, codes as shared};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::{Certificate, der::Decode};

use crate::{
    codes,
    server::{Server, SslMode},
};

/// A certificate and its key are a few kilobytes; a system's store is a few hundred.
const MAX_FILE: u64 = 16 << 20;

fn tls_error(what: impl Into<String>) -> Error {
    Error::new(&codes::TLS, what)
}

fn client_error(what: &str, path: &Path) -> Error {
    Error::new(&codes::CLIENT_CERTIFICATE, what).at("file", path.display())
}

/// The client's side of TLS for this server's options; never called with `sslmode=disable`.
pub fn client_config(server: &Server) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    // As in libpq, naming an authority and asking for `require` verifies the chain.
    let mode = match server.ssl_mode {
        SslMode::Require if server.ssl_root.is_some() => SslMode::VerifyCa,
        mode => mode,
    };
    let chain = match mode {
        SslMode::Require | SslMode::Disable => None,
        SslMode::VerifyCa | SslMode::VerifyFull => {
            let builder = WebPkiServerVerifier::builder_with_provider(roots(server)?.into(), Arc::clone(&provider));
            Some(builder.build().map_err(|error| tls_error("the certificate authorities cannot be used").caused_by(error))?)
        }
    };
    let verifier = Arc::new(Verifier { chain, check_name: mode == SslMode::VerifyFull, provider: Arc::clone(&provider) });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| tls_error("TLS cannot be set up").caused_by(error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match &server.ssl_client {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates(cert).map_err(|error| {
                client_error("the client certificate cannot be read", cert).caused_by(error).hint("Correct sslcert in the url.")
            })?;
            builder.with_client_auth_cert(chain, private_key(key)?).map_err(|error| {
                client_error("the client certificate cannot be used", cert)
                    .caused_by(error)
                    .hint("Set sslcert and sslkey in the url to a certificate and the key that belongs to it.")
            })?
        }
    };
    Ok(Arc::new(config))
}

fn roots(server: &Server) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    let hint = "Name a PEM file with the authority that signed the server's certificate: sslrootcert in the url.";
    let (added, place) = match &server.ssl_root {
        Some(path) => {
            let found = certificates(path).map_err(|error| {
                tls_error("the certificate authorities cannot be read").at("file", path.display()).caused_by(error).hint(hint)
            })?;
            (store.add_parsable_certificates(found).0, path.display().to_string())
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            (store.add_parsable_certificates(found.certs).0, "the system's store".to_owned())
        }
    };
    if added == 0 {
        return Err(tls_error("no certificate authority was found").at("file", place).hint(hint));
    }
    Ok(store)
}

fn contents(mut file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if file.by_ref().take(MAX_FILE + 1).read_to_end(&mut bytes)? as u64 > MAX_FILE {
        return Err(io::Error::other("the file is too large"));
    }
    Ok(bytes)
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let bytes = contents(File::open(path)?)?;
    CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(io::Error::other)
}

/// As libpq does, refuses a key that others can read. The file that is looked at is the one that is read.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let unreadable = |error: io::Error| {
        client_error("the client's key cannot be read", path)
            .caused_by(error)
            .hint("Set sslkey in the url to a PEM file with a key without a passphrase, which headwater may read.")
    };
    let file = File::open(path).map_err(unreadable)?;
    let facts = file.metadata().map_err(unreadable)?;
    // A key that root installs may be readable by the group that uses it.
    let forbidden = if facts.uid() == 0 { 0o037 } else { 0o077 };
    if facts.is_file() && facts.mode() & forbidden != 0 {
        return Err(client_error("others may read the client's key", path)
            .hint(format!("Run chmod 0600 {}, and make a new key if somebody may have read this one.", path.display())));
    }
    let mut bytes = contents(file).map_err(unreadable)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| unreadable(io::Error::other("it holds no key in PEM")));
    bytes.fill(0);
    key
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What a failed handshake means.
pub fn handshake_failed(error: io::Error) -> Error {
    if let Some(refused) = refused_by_server(&error) {
        return refused;
    }
    let certificate = |what: String, hint: &str| Error::new(&codes::CERTIFICATE, what).hint(hint);
    match rustls_error(&error) {
        Some(rustls::Error::InvalidCertificate(fault)) => match fault {
            CertificateError::UnknownIssuer => certificate(
                "the server's certificate is signed by no authority that is trusted here".to_owned(),
                "Name the authority that signed the server's certificate with sslrootcert in the url.",
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => certificate(
                "the server's certificate has expired".to_owned(),
                "Put a new certificate into the server's ssl_cert_file and run SELECT pg_reload_conf();",
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => certificate(
                "the server's certificate is not valid yet".to_owned(),
                "Set the clocks of this machine and of the authority right, or put another certificate into the server.",
            ),
            CertificateError::NotValidForName => certificate(
                "the server's certificate is for another host name".to_owned(),
                "Use a host name in the url that is in the certificate, or have it made for this one.",
            ),
            CertificateError::NotValidForNameContext { presented, .. } => certificate(
                format!("the server's certificate is for another host name: {}", shown(&presented.join(", "))),
                "Use a host name in the url that is in the certificate, or have it made for this one.",
            ),
            other => certificate(
                format!("the server's certificate cannot be trusted ({})", shown(&format!("{other:?}"))),
                "Put a certificate for this host into the server that an authority signed.",
            ),
        },
        // The server went away in the middle: it may come back.
        None => Error::new(&shared::UNREACHABLE, "the connection broke during the TLS handshake")
            .caused_by(error)
            .hint("Check that host and port in the url are those of a PostgreSQL server, and that it runs."),
        Some(_) => tls_error("the TLS handshake failed")
            .caused_by(error)
            .hint("Look into the server's log, and set its ssl_min_protocol_version to TLSv1.2 or newer."),
    }
}

/// The server refuses the certificate that we showed, or that we showed none. With TLS 1.3 this is heard only after the handshake.
pub fn refused_by_server(error: &io::Error) -> Option<Error> {
    use AlertDescription as Alert;
    let Some(rustls::Error::AlertReceived(alert)) = rustls_error(error) else { return None };
    let why = match alert {
        Alert::UnknownCA => "it trusts no authority that signed it",
        Alert::CertificateExpired => "it has expired",
        Alert::CertificateRevoked => "it was revoked",
        Alert::CertificateRequired => "none was shown",
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateUnknown
        | Alert::AccessDenied
        | Alert::DecryptError => "it is not acceptable",
        _ => return None,
    };
    Some(
        Error::new(&codes::CLIENT_CERTIFICATE, format!("the server refused the client's certificate: {why}"))
            .hint("Set sslcert and sslkey in the url to a certificate that an authority in the server's ssl_ca_file signed."),
    )
}

/// Words that come from the certificate of somebody unknown.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Verifies what the mode asks for. Even `require` checks that the server holds the key of the certificate it shows,
/// because the channel binding rests on it.
#[derive(Debug)]
struct Verifier {
    chain: Option<Arc<WebPkiServerVerifier>>,
    check_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp, now) {
            // The name is the last thing checked, so everything else held.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.check_name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The `tls-server-end-point` data of RFC 5929: the certificate's hash by the algorithm of its signature, SHA-256 for the old
/// ones. None where the RFC defines no hash (Ed25519, RSA-PSS with parameters).
pub fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    match parsed.signature_algorithm().oid.to_string().as_str() {
        // MD5, SHA-1 and SHA-256 with RSA; SHA-1 and SHA-256 with ECDSA
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => Some(Sha256::digest(certificate).to_vec()),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Sha384::digest(certificate).to_vec()),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}
