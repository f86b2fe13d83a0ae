//! Certificate authorities of the tests' own, and what they sign.

#![allow(dead_code)]

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub pem: String,
}

/// A certificate and its key, in PEM.
pub struct Signed {
    pub cert: String,
    pub key: String,
}

/// When a certificate is good.
#[derive(Clone, Copy)]
pub enum When {
    Now,
    Past,
    Future,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        Self::with_key(name, KeyPair::generate().expect("a key"))
    }

    /// One that signs with Ed25519, for which no channel binding is defined.
    pub fn ed25519(name: &str) -> Self {
        Self::with_key(name, KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key"))
    }

    fn with_key(name: &str, key: KeyPair) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for a host name or a user.
    pub fn sign(&self, name: &str, when: When) -> Signed {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        match when {
            When::Now => {}
            When::Past => params.not_after = date_time_ymd(2021, 1, 1),
            When::Future => params.not_before = date_time_ymd(2999, 1, 1),
        }
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Signed { cert, key: key.serialize_pem() }
    }
}

impl Signed {
    /// Writes `NAME.crt` and `NAME.key` for headwater; only the owner may read the key.
    pub fn store(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (cert, key) = (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")));
        std::fs::write(&cert, &self.cert).expect("a certificate file");
        std::fs::write(&key, &self.key).expect("a key file");
        set_mode(&key, 0o600);
        (cert, key)
    }
}

pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("permissions");
}
