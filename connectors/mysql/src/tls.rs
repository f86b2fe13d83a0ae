//! TLS: who must prove what.

use std::{fs::File, io, io::Read, path::Path, sync::Arc};

use headwater_connector::{Error, Result, codes as shared};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use crate::{
    codes,
    server::{Server, SslMode},
};

/// A certificate and its key are a few kilobytes; a system's store is a few hundred.
const MAX_FILE: u64 = 16 << 20;

fn tls_error(what: impl Into<String>) -> Error {
    Error::new(&codes::TLS, what)
}

/// The client's side of TLS for this server's options; never called with `sslmode=disable`.
pub fn client_config(server: &Server) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let chain = match server.ssl_mode {
        // Naming an authority verifies the chain.
        SslMode::Offered | SslMode::Require | SslMode::Disable if server.ssl_root.is_none() => None,
        _ => {
            let builder = WebPkiServerVerifier::builder_with_provider(roots(server)?.into(), Arc::clone(&provider));
            Some(builder.build().map_err(|error| tls_error("the certificate authorities cannot be used").caused_by(error))?)
        }
    };
    let check_name = server.ssl_mode == SslMode::VerifyFull;
    let verifier = Arc::new(Verifier { chain, check_name, provider: Arc::clone(&provider) });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| tls_error("TLS cannot be set up").caused_by(error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match &server.ssl_client {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let unusable = |error: io::Error| {
                tls_error("the client certificate cannot be used").caused_by(error).hint("Correct sslcert and sslkey in the url.")
            };
            let chain = certificates(cert).map_err(unusable)?;
            let key = contents(key).and_then(|bytes| PrivateKeyDer::from_pem_slice(&bytes).map_err(io::Error::other));
            builder.with_client_auth_cert(chain, key.map_err(unusable)?).map_err(|error| unusable(io::Error::other(error)))?
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

/// A file of a certificate or a key.
pub fn contents(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)? as u64 > MAX_FILE {
        return Err(io::Error::other("the file is too large"));
    }
    Ok(bytes)
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(&contents(path)?).collect::<Result<_, _>>().map_err(io::Error::other)
}

/// What a failed handshake means.
pub fn handshake_failed(error: io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(fault)) => {
            let fault: String = format!("{fault:?}").chars().filter(|c| !c.is_control()).take(200).collect();
            tls_error(format!("the server's certificate is not accepted ({fault})")).hint(
                "Name the authority that signed it with sslrootcert in the url, and use a host name that is in the certificate.",
            )
        }
        Some(_) => tls_error("the TLS handshake failed").caused_by(error).hint("Look into the server's log."),
        // The server went away in the middle: it may come back.
        None => Error::new(&shared::UNREACHABLE, "the connection broke during the TLS handshake")
            .caused_by(error)
            .hint("Check that host and port in the url are those of a MySQL or MariaDB server, and that it runs."),
    }
}

/// Verifies what the mode asks for.
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
