//! Character sets by the number of a collation, as TABLE_MAP names them, and their text as UTF-8.

use encoding_rs::{
    BIG5, EUC_JP, EUC_KR, Encoding, GB18030, GBK, IBM866, ISO_8859_2, ISO_8859_7, ISO_8859_8, ISO_8859_13, KOI8_R, KOI8_U,
    MACINTOSH, SHIFT_JIS, WINDOWS_874, WINDOWS_1250, WINDOWS_1251, WINDOWS_1252, WINDOWS_1254, WINDOWS_1256, WINDOWS_1257,
};

use crate::wire::Torn;

/// How the bytes of a text column are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charset {
    /// No text at all
    Binary,
    /// utf8mb4, utf8mb3 and ascii
    Utf8,
    /// utf16 and ucs2
    Utf16,
    /// utf16le
    Utf16Le,
    /// utf32
    Utf32,
    /// One that the Encoding Standard knows too
    Legacy(&'static Encoding),
}

impl Charset {
    /// The character set of a collation; none if it is one that cannot be read here.
    pub fn of(collation: u64) -> Option<Self> {
        Some(match collation {
            63 => Self::Binary,
            11 | 33 | 45 | 46 | 65 | 76 | 83 | 192..=223 | 224..=247 | 255..=323 => Self::Utf8,
            35 | 54 | 55 | 90 | 101..=124 | 128..=151 | 159 => Self::Utf16,
            56 | 62 => Self::Utf16Le,
            60 | 61 | 160..=183 => Self::Utf32,
            // MariaDB's own: Croatian and Myanmar, then those that do not pad, then those of Unicode 14.
            576..=639 => Self::Utf8,
            640..=703 => Self::Utf16,
            736..=767 => Self::Utf32,
            1024..=2047 => return Self::of(collation - 1024),
            2048..=2559 => Self::Utf8,
            2560..=3071 => Self::Utf16,
            3072..=3327 => Self::Utf32,
            other => Self::Legacy(legacy(other)?),
        })
    }

    /// Most bytes of one character, which the length of a column counts.
    pub fn width(self, collation: u64) -> usize {
        match self {
            Self::Binary => 1,
            Self::Utf8 => match collation % 1024 {
                11 | 65 if collation < 2048 => 1,
                33 | 76 | 83 | 192..=223 | 576..=607 if collation < 2048 => 3,
                _ if (2048..2304).contains(&collation) => 3,
                _ => 4,
            },
            Self::Utf16 => match collation {
                35 | 90 | 128..=151 | 159 | 640..=671 | 1059 | 1114 | 2560..=2815 => 2,
                _ => 4,
            },
            Self::Utf16Le | Self::Utf32 => 4,
            Self::Legacy(encoding) => match encoding {
                encoding if encoding == GB18030 => 4,
                encoding if encoding == EUC_JP => 3,
                encoding if encoding.is_single_byte() => 1,
                _ => 2,
            },
        }
    }

    /// Appends the text as UTF-8. After an error what was appended is to be dropped.
    pub fn decode(self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Torn> {
        match self {
            Self::Binary => return Err(Torn),
            Self::Utf8 => out.extend_from_slice(std::str::from_utf8(bytes).map_err(|_| Torn)?.as_bytes()),
            Self::Utf16 => utf16(bytes, u16::from_be_bytes, out)?,
            Self::Utf16Le => utf16(bytes, u16::from_le_bytes, out)?,
            Self::Utf32 => {
                let (units, []) = bytes.as_chunks::<4>() else { return Err(Torn) };
                for unit in units {
                    push(out, char::from_u32(u32::from_be_bytes(*unit)).ok_or(Torn)?);
                }
            }
            Self::Legacy(encoding) => {
                let text = encoding.decode_without_bom_handling_and_without_replacement(bytes).ok_or(Torn)?;
                out.extend_from_slice(text.as_bytes());
            }
        }
        Ok(())
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16, out: &mut Vec<u8>) -> Result<(), Torn> {
    let (units, []) = bytes.as_chunks::<2>() else { return Err(Torn) };
    for char in char::decode_utf16(units.iter().map(|bytes| unit(*bytes))) {
        push(out, char.map_err(|_| Torn)?);
    }
    Ok(())
}

fn push(out: &mut Vec<u8>, char: char) {
    out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
}

/// The servers' latin1 is Windows-1252 with the five free places as control characters, as in the Encoding Standard.
fn legacy(collation: u64) -> Option<&'static Encoding> {
    Some(match collation {
        1 | 84 => BIG5,
        2 | 9 | 21 | 27 | 77 => ISO_8859_2,
        5 | 8 | 15 | 31 | 47 | 48 | 49 | 94 => WINDOWS_1252,
        7 | 74 => KOI8_R,
        12 | 91 | 97 | 98 => EUC_JP,
        13 | 88 | 95 | 96 => SHIFT_JIS,
        14 | 23 | 50 | 51 | 52 => WINDOWS_1251,
        16 | 71 => ISO_8859_8,
        18 | 89 => WINDOWS_874,
        19 | 85 => EUC_KR,
        20 | 41 | 42 | 79 => ISO_8859_13,
        22 | 75 => KOI8_U,
        24 | 28 | 86 | 87 => GBK,
        25 | 70 => ISO_8859_7,
        26 | 34 | 44 | 66 | 99 => WINDOWS_1250,
        29 | 58 | 59 => WINDOWS_1257,
        30 | 78 => WINDOWS_1254,
        36 | 68 => IBM866,
        39 | 53 => MACINTOSH,
        57 | 67 => WINDOWS_1256,
        248..=250 => GB18030,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(collation: u64, bytes: &[u8]) -> Option<String> {
        let mut out = Vec::new();
        Charset::of(collation)?.decode(bytes, &mut out).ok()?;
        Some(String::from_utf8(out).expect("UTF-8"))
    }

    #[test]
    fn text_of_other_character_sets_becomes_utf8() {
        assert_eq!(text(8, b"caf\xe9 \x80").unwrap(), "café €");
        assert_eq!(text(28, b"\xc4\xe3\xba\xc3").unwrap(), "你好");
        assert_eq!(text(54, b"\x20\xac\xd8\x3d\xde\x00").unwrap(), "€😀");
        assert_eq!(text(60, b"\0\x01\xf6\0").unwrap(), "😀");
        assert_eq!(text(45, b"\xff"), None);
        assert_eq!(text(54, b"\x20"), None);
        assert_eq!(text(4, b"x"), None, "cp850 is not among them");
    }

    proptest! {
        #[test]
        fn any_bytes_are_text_or_refused(collation in 0_u64..3500, bytes: Vec<u8>) {
            let _ = text(collation, &bytes);
        }
    }
}
