//! The payload of a frame: the records of one turn, its clock, and which server has appended it.
//!
//! It knows neither records nor frames.

use keypeg_engine::LogBatch;
use keypeg_log::ServerName;

/// The form of the bytes.
const VERSION: u8 = 1;
/// Version (1), length of the server's name (1), lease time (8).
const HEAD: usize = 10;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Payload<'a> {
    /// The name of the server; empty except in a takeover frame.
    pub(crate) server: &'a str,
    pub(crate) batch: LogBatch<'a>,
}

impl<'a> Payload<'a> {
    /// Encodes a payload into a buffer, whose content it replaces.
    pub(crate) fn write(batch: LogBatch<'_>, server: Option<&ServerName>, out: &mut Vec<u8>) {
        let name = server.map_or("", ServerName::as_str);
        out.clear();
        out.push(VERSION);
        out.push(u8::try_from(name.len()).expect("invariant: a name has at most 64 bytes"));
        out.extend_from_slice(&batch.lease_us.to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(batch.records);
    }

    /// Decodes a payload; `None` if it is not one of this version.
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
        let &[version, name_len, ref lease_us @ ..] = head;
        if version != VERSION {
            return None;
        }
        let (name, records) = rest.split_at_checked(usize::from(name_len))?;
        let lease_us = u64::from_le_bytes(*lease_us);
        let server = std::str::from_utf8(name).ok()?;
        Some(Self { server, batch: LogBatch { lease_us, records } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_reads_back_and_a_cut_head_or_another_version_is_refused() {
        let server = ServerName::new("node-1").expect("a name");
        let batch = LogBatch { lease_us: u64::MAX / 3, records: b"records" };
        for name in [None, Some(&server)] {
            let mut bytes = vec![7; 3];
            Payload::write(batch, name, &mut bytes);
            let read = Payload::read(&bytes).expect("whole");
            assert_eq!((read.batch, read.server), (batch, name.map_or("", |name| name.as_str())));
            let head = HEAD + name.map_or(0, |name| name.as_str().len());
            assert!((0..head).all(|len| Payload::read(&bytes[..len]).is_none()));
            bytes[0] = VERSION + 1;
            assert_eq!(Payload::read(&bytes), None);
        }
    }
}
