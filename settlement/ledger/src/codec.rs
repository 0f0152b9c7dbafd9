//! Bytes of transactions, state values, events and outbox entries: fixed layout, little
//! endian, no padding, one encoding per value.
//!
//! Decoding is total: any bytes give a value or an error, never a panic, and never allocate
//! more than the input is long. What decodes encodes to the same bytes again.

use topnet_account::{Address, Amount, ChannelId, Hash, PublicKey, Signature};

/// Bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The input ends inside a field.
    #[error("the input ends inside `{0}`")]
    Short(&'static str),
    /// The value ends before the input does.
    #[error("{0} bytes follow the end")]
    Trailing(usize),
    /// A tag that stands for nothing.
    #[error("`{what}` is never {tag}")]
    Tag {
        /// Which field.
        what: &'static str,
        /// Its value.
        tag: u8,
    },
    /// A number or a length outside its bounds.
    #[error("`{0}` is out of range")]
    Range(&'static str),
}

/// Takes fields off the front of a byte string.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Reads one whole value; nothing may follow it.
    pub(crate) fn all<T>(
        bytes: &'a [u8],
        read: impl FnOnce(&mut Self) -> Result<T, CodecError>,
    ) -> Result<T, CodecError> {
        let mut reader = Self::new(bytes);
        let value = read(&mut reader)?;
        match reader.rest.len() {
            0 => Ok(value),
            trailing => Err(CodecError::Trailing(trailing)),
        }
    }

    pub(crate) fn slice(
        &mut self,
        length: usize,
        what: &'static str,
    ) -> Result<&'a [u8], CodecError> {
        let Some((taken, rest)) = self.rest.split_at_checked(length) else {
            return Err(CodecError::Short(what));
        };
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], CodecError> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(N, what)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, CodecError> {
        self.array(what).map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, CodecError> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, CodecError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, CodecError> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self, what: &'static str) -> Result<u128, CodecError> {
        self.array(what).map(u128::from_le_bytes)
    }

    pub(crate) fn bool(&mut self, what: &'static str) -> Result<bool, CodecError> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(CodecError::Tag { what, tag }),
        }
    }

    pub(crate) fn amount(&mut self, what: &'static str) -> Result<Amount, CodecError> {
        self.u64(what).map(Amount::from_ntop)
    }

    pub(crate) fn address(&mut self, what: &'static str) -> Result<Address, CodecError> {
        self.array(what).map(Address)
    }

    pub(crate) fn hash(&mut self, what: &'static str) -> Result<Hash, CodecError> {
        self.array(what).map(Hash)
    }

    pub(crate) fn channel(&mut self, what: &'static str) -> Result<ChannelId, CodecError> {
        self.array(what).map(ChannelId)
    }

    pub(crate) fn key(&mut self, what: &'static str) -> Result<PublicKey, CodecError> {
        self.array(what).map(PublicKey)
    }

    pub(crate) fn signature(&mut self, what: &'static str) -> Result<Signature, CodecError> {
        self.array(what).map(Signature)
    }

    /// A byte string of at most `max` bytes behind its length (u32).
    pub(crate) fn bytes(&mut self, max: usize, what: &'static str) -> Result<&'a [u8], CodecError> {
        let length = usize::try_from(self.u32(what)?).map_err(|_| CodecError::Range(what))?;
        if length > max {
            return Err(CodecError::Range(what));
        }
        self.slice(length, what)
    }

    /// A text of at most `max` bytes behind its length (u32).
    pub(crate) fn text(&mut self, max: usize, what: &'static str) -> Result<String, CodecError> {
        let bytes = self.bytes(max, what)?.to_vec();
        String::from_utf8(bytes).map_err(|_| CodecError::Range(what))
    }

    /// At most `max` values behind their number (u16).
    pub(crate) fn list<T>(
        &mut self,
        max: usize,
        what: &'static str,
        mut read: impl FnMut(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Vec<T>, CodecError> {
        let count = usize::from(self.u16(what)?);
        if count > max {
            return Err(CodecError::Range(what));
        }
        // Grown as values are found, so a lying count costs nothing.
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(read(self)?);
        }
        Ok(values)
    }
}

/// Most of what is written is no longer, so it is allocated once.
const USUAL_BYTES: usize = 256;

/// Puts fields behind one another. Methods return the writer, so that a layout reads as a list.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self {
            bytes: Vec::with_capacity(USUAL_BYTES),
        }
    }

    /// Begins what will be signed or hashed: the domain behind its length.
    pub(crate) fn in_domain(domain: &'static [u8]) -> Self {
        debug_assert!(domain.len() < 256);
        let mut writer = Self::new();
        writer.u8(domain.len() as u8).raw(domain);
        writer
    }

    pub(crate) fn raw(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.bytes.extend_from_slice(bytes.as_ref());
        self
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.raw([value])
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(value.to_le_bytes())
    }

    pub(crate) fn u128(&mut self, value: u128) -> &mut Self {
        self.raw(value.to_le_bytes())
    }

    pub(crate) fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(u8::from(value))
    }

    pub(crate) fn amount(&mut self, value: Amount) -> &mut Self {
        self.u64(value.ntop())
    }

    pub(crate) fn address(&mut self, value: &Address) -> &mut Self {
        self.raw(value.as_bytes())
    }

    /// A byte string behind its length (u32). Longer ones than any decoder takes are the
    /// caller's mistake; they are cut, and so never decode.
    pub(crate) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX))
            .raw(value)
    }

    /// Values behind their number (u16); a list that is too long is refused by its decoder.
    pub(crate) fn list<T>(
        &mut self,
        values: &[T],
        mut write: impl FnMut(&mut Self, &T),
    ) -> &mut Self {
        self.u16(u16::try_from(values.len()).unwrap_or(u16::MAX));
        for value in values {
            write(self, value);
        }
        self
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn sha256(&self) -> Hash {
        self.sha256_with(&[])
    }

    /// The hash of what was written and `rest`, which is not copied.
    pub(crate) fn sha256_with(&self, rest: &[u8]) -> Hash {
        use sha2::{Digest, Sha256};
        let digest = Sha256::new().chain_update(&self.bytes).chain_update(rest);
        Hash(digest.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_long_or_out_of_range_is_named() {
        let read = |bytes: &[u8]| {
            Reader::all(bytes, |reader| {
                Ok((reader.bool("flag")?, reader.bytes(2, "text")?.to_vec()))
            })
        };
        assert_eq!(read(&[1, 2, 0, 0, 0, 7, 8]), Ok((true, vec![7, 8])));
        assert_eq!(read(&[]), Err(CodecError::Short("flag")));
        assert_eq!(
            read(&[2, 0, 0, 0, 0]),
            Err(CodecError::Tag {
                what: "flag",
                tag: 2
            })
        );
        assert_eq!(read(&[1, 2, 0, 0, 0, 7]), Err(CodecError::Short("text")));
        assert_eq!(
            read(&[1, 3, 0, 0, 0, 7, 8, 9]),
            Err(CodecError::Range("text"))
        );
        assert_eq!(read(&[1, 0, 0, 0, 0, 7]), Err(CodecError::Trailing(1)));
        let list =
            |bytes: &[u8]| Reader::all(bytes, |reader| reader.list(2, "list", |r| r.u8("item")));
        assert_eq!(list(&[2, 0, 5, 6]), Ok(vec![5, 6]));
        assert_eq!(list(&[3, 0, 5, 6, 7]), Err(CodecError::Range("list")));
        assert_eq!(list(&[2, 0, 5]), Err(CodecError::Short("item")));
    }
}
