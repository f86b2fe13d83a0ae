//! The password for the server's eyes only, over a connection that is not encrypted: caching_sha2_password with a pinned key.
//!
//! A key that the server sends is never used: whoever sits in between would send its own.

use base64::{Engine, engine::general_purpose::STANDARD};
use num_bigint::BigUint;
use ring::{
    digest::{SHA1_FOR_LEGACY_USE_ONLY, digest},
    rand::{SecureRandom, SystemRandom},
};

const SHA1_LEN: usize = 20;
/// The algorithm's name in a key: rsaEncryption, and no parameters.
const RSA: [u8; 15] = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];

/// A public key.
pub struct PublicKey {
    modulus: BigUint,
    exponent: BigUint,
    len: usize,
}

impl PublicKey {
    /// Reads PEM, `BEGIN PUBLIC KEY`. None for anything but an RSA key of 2048 to 8192 bits.
    pub fn parse(pem: &str) -> Option<Self> {
        let (_, rest) = pem.split_once("-----BEGIN PUBLIC KEY-----")?;
        let (text, _) = rest.split_once("-----END PUBLIC KEY-----")?;
        let text: String = text.split_whitespace().collect();
        let der = STANDARD.decode(text).ok()?;
        let (outer, _) = tagged(&der, 0x30)?;
        let (bits, _) = tagged(outer.strip_prefix(&RSA)?, 3)?;
        let (numbers, _) = tagged(bits.strip_prefix(&[0])?, 0x30)?;
        let (modulus, rest) = tagged(numbers, 2)?;
        let (exponent, _) = tagged(rest, 2)?;
        let (modulus, exponent) = (BigUint::from_bytes_be(modulus), BigUint::from_bytes_be(exponent));
        let is_fit = (2048..=8192).contains(&modulus.bits()) && modulus.bit(0) && (2..=64).contains(&exponent.bits());
        let len = modulus.bits().div_ceil(8) as usize;
        is_fit.then_some(Self { modulus, exponent, len })
    }

    /// The password, mixed with the server's scramble, as only the owner of the key can read it. None if it is too long for the key, or
    /// the system gives no random bytes.
    pub fn seal(&self, password: &str, scramble: &[u8]) -> Option<Vec<u8>> {
        let mixed: Vec<u8> = password.bytes().chain([0]).zip(scramble.iter().cycle()).map(|(left, right)| left ^ right).collect();
        let mut seed = [0; SHA1_LEN];
        SystemRandom::new().fill(&mut seed).ok()?;
        let block = pad(&mixed, seed, self.len)?;
        let sealed = BigUint::from_bytes_be(&block).modpow(&self.exponent, &self.modulus).to_bytes_be();
        let mut out = vec![0; self.len.checked_sub(sealed.len())?];
        out.extend_from_slice(&sealed);
        Some(out)
    }
}

/// The contents of a tagged value of DER, and what is behind it.
fn tagged(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = bytes.strip_prefix(&[tag])?.split_first()?;
    let (len, rest) = match first {
        len @ 0..=127 => (usize::from(*len), rest),
        0x81 | 0x82 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 3))?;
            (digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(len)
}

/// OAEP with SHA-1 and no label (RFC 8017, 7.1.1), which is what the server takes off.
fn pad(message: &[u8], seed: [u8; SHA1_LEN], len: usize) -> Option<Vec<u8>> {
    let room = len.checked_sub(2 * SHA1_LEN + 2)?.checked_sub(message.len())?;
    let mut data = digest(&SHA1_FOR_LEGACY_USE_ONLY, b"").as_ref().to_vec();
    data.resize(SHA1_LEN + room, 0);
    data.push(1);
    data.extend_from_slice(message);
    mask(&mut data, &seed);
    let mut masked = seed;
    mask(&mut masked, &data);
    Some([&[0][..], &masked, &data].concat())
}

/// MGF1
fn mask(bytes: &mut [u8], seed: &[u8]) {
    for (counter, part) in (0_u32..).zip(bytes.chunks_mut(SHA1_LEN)) {
        let block = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[seed, &counter.to_be_bytes()].concat());
        part.iter_mut().zip(block.as_ref()).for_each(|(byte, mask)| *byte ^= mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_padded_comes_back() {
        let block = pad(b"secret", [7; SHA1_LEN], 256).expect("it has room");
        assert_eq!((block.len(), block[0]), (256, 0));
        let (mut seed, mut data) = (block[1..=SHA1_LEN].to_vec(), block[SHA1_LEN + 1..].to_vec());
        mask(&mut seed, &data);
        assert_eq!(seed, [7; SHA1_LEN]);
        mask(&mut data, &seed);
        assert!(data.ends_with(b"\0\x01secret"));
        assert!(pad(&[1; 215], [7; SHA1_LEN], 256).is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_a_key_or_refused(text: String, bytes: Vec<u8>) {
            let _ = PublicKey::parse(&text);
            let pem = |bytes: &[u8]| format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----", STANDARD.encode(bytes));
            let _ = (PublicKey::parse(&pem(&bytes)), tagged(&bytes, 0x30));
            let inner = [&RSA[..], &bytes].concat();
            let _ = PublicKey::parse(&pem(&[&[0x30, inner.len().min(127) as u8][..], &inner].concat()));
        }
    }
}
