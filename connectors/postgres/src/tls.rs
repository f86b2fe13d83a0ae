//! TLS: who must prove what, and the channel binding that ties the login to the certificate.

use std::{path::Path, sync::Arc};

use headwater_connector::{Error, Result};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
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
    config::{Server, SslMode},
};

fn tls_error(what: impl Into<String>) -> Error {
    Error::new(&codes::TLS, what)
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
        Some((cert, key)) => builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(|error| tls_error("the client certificate cannot be used").at("file", cert.display()).caused_by(error))?,
    };
    Ok(Arc::new(config))
}

fn roots(server: &Server) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    let (added, place) = match &server.ssl_root {
        Some(path) => (store.add_parsable_certificates(certificates(path)?).0, path.display().to_string()),
        None => {
            let found = rustls_native_certs::load_native_certs();
            (store.add_parsable_certificates(found.certs).0, "the system's store".to_owned())
        }
    };
    if added == 0 {
        return Err(tls_error("no certificate authority was found")
            .at("file", place)
            .hint("Name a PEM file with the authority that signed the server's certificate: sslrootcert in the url."));
    }
    Ok(store)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| tls_error("a certificate file cannot be read").at("file", path.display()).caused_by(error))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| tls_error("a key file cannot be read").at("file", path.display()).caused_by(error))
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
