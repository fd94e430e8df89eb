//! The seal key file: one key in each line, the one that seals first.
//!
//! A file that another user could read or change is refused. No message contains a line of the
//! file. Does not know when the file changes.

use crate::failure::{Failure, exit};
use crate::permissions::Trusted;
use crate::text_file;
use crate::trusted_file::{self, TrustedFileError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keypeg_engine::{SEAL_KEY_LEN, SEAL_KEYS_MAX, SealKey, SealKeys};
use std::io::ErrorKind;
use std::path::Path;
use zeroize::{Zeroize as _, Zeroizing};

/// The largest file, in bytes.
const FILE_MAX: u64 = 16 << 10;

/// Reads the keys of a file; `option` names it in messages.
pub(crate) fn read(option: &str, path: &Path) -> Result<SealKeys, Failure> {
    let named = |code, why: &str| {
        Failure::new(code, format!("seal key file {} of {option}: {why}", path.display()))
    };
    let file = trusted_file::read(path, FILE_MAX, Trusted::own()).map_err(|error| match error {
        TrustedFileError::Io(error) => {
            let (code, step) = if error.kind() == ErrorKind::NotFound {
                let step = "create it with \"keypeg seal new\" for a new data directory, or put \
                            the file of an existing one back";
                (exit::NO_INPUT, step)
            } else if error.kind() == ErrorKind::PermissionDenied {
                (exit::PERMISSION, "check its owner and mode")
            } else {
                (exit::IO, "check the path")
            };
            named(code, &format!("{error}: {step}"))
        }
        TrustedFileError::Mode(reason) => named(exit::CONFIG, &reason),
        TrustedFileError::TooLarge(max) => {
            named(exit::CONFIG, &format!("the file is larger than {max} bytes"))
        }
    })?;
    for warning in file.warnings {
        tracing::warn!("seal key file {}: {warning}", path.display());
    }
    let text = text_file::decode(file.bytes);
    let text = Zeroizing::new(text.map_err(|error| named(exit::CONFIG, &error.to_string()))?);
    if file.is_public {
        let why = "every user of this machine can read this key: run chmod 0600 on it, or 0640 \
                   with a group of its own";
        return Err(named(exit::CONFIG, why));
    }
    parse(&text).map_err(|why| named(exit::CONFIG, &why))
}

/// Parses the text of a file: a key in each line; empty lines and those that begin with # are none.
fn parse(text: &str) -> Result<SealKeys, String> {
    let mut keys = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = hex(line).or_else(|| base64(line)).ok_or_else(|| {
            format!(
                "line {number} is not a key: a key is 32 random bytes as 64 hexadecimal digits or \
                 in base64, as \"keypeg seal new\" writes it"
            )
        })?;
        keys.push(key);
    }
    let count = keys.len();
    SealKeys::new(keys).ok_or_else(|| match count {
        0 => "the file contains no key: create one with \"keypeg seal new\"".into(),
        _ => format!("the file contains {count} keys, and may contain {SEAL_KEYS_MAX}"),
    })
}

fn hex(line: &str) -> Option<SealKey> {
    let (pairs, []) = line.as_bytes().as_chunks::<2>() else { return None };
    let mut key = Zeroizing::new([0; SEAL_KEY_LEN]);
    if pairs.len() != key.len() {
        return None;
    }
    for (byte, [high, low]) in key.iter_mut().zip(pairs) {
        let digit = |digit: &u8| char::from(*digit).to_digit(16);
        *byte = u8::try_from(digit(high)? << 4 | digit(low)?).ok()?;
    }
    Some(SealKey::new(*key))
}

fn base64(line: &str) -> Option<SealKey> {
    let mut bytes = STANDARD.decode(line).ok()?;
    let key = bytes.as_slice().try_into().ok().map(SealKey::new);
    bytes.zeroize();
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1F";
    const BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn a_file_has_keys_in_hexadecimal_digits_or_base64_and_comments() {
        let first = SealKey::new(std::array::from_fn(|index| u8::try_from(index).unwrap())).id();
        for text in [
            HEX.to_owned(),
            format!("{HEX}\n"),
            format!("# made today\r\n\r\n  {BASE64}  \r\n"),
            format!("{BASE64}\n# the one before\n{}\n", "ab".repeat(32)),
        ] {
            assert_eq!(parse(&text).expect(&text).first().id(), first, "{text}");
        }
        let two = parse(&format!("{}\n{HEX}", "ab".repeat(32))).unwrap();
        assert!(two.first().id() != first && two.contains(first));
    }

    #[test]
    fn an_invalid_line_is_named_by_its_number_and_not_shown() {
        let many = format!("{HEX}\n").repeat(SEAL_KEYS_MAX + 1);
        for (text, says) in [
            ("", "contains no key"),
            ("# only a comment\n", "contains no key"),
            (&HEX[1..], "line 1 is not a key"),
            (&format!("\n{HEX}0"), "line 2 is not a key"),
            (&format!("{HEX}\n{}", &BASE64[..40]), "line 2 is not a key"),
            (&format!("{}\n", "zz".repeat(32)), "line 1 is not a key"),
            (&many, "contains 9 keys, and may contain 8"),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains(says), "{text:?}: {why}");
            assert!(!why.contains("0102") && !why.contains("zz"), "{why}");
        }
    }
}
