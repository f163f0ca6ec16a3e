//! Random access to the bytes of a recording, each read checked against the size of the file.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

use super::wire::CodecError;

/// Anything a recording can be read from.
pub(super) trait Bytes: Read + Seek + Send {}
impl<T: Read + Seek + Send> Bytes for T {}

/// Why a part of a file could not be had.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The system could not read it.
    Io(io::Error),
    /// It is not what it should be.
    Damaged(String),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Damaged("the file ends inside it".into())
        } else {
            Self::Io(error)
        }
    }
}

impl From<CodecError> for ReadError {
    fn from(error: CodecError) -> Self {
        Self::Damaged(error.to_string())
    }
}

pub(super) struct Source {
    reader: BufReader<Box<dyn Bytes>>,
    at: u64,
    len: u64,
}

impl Source {
    pub(super) fn new(mut bytes: Box<dyn Bytes>) -> io::Result<Self> {
        let len = bytes.seek(SeekFrom::End(0))?;
        bytes.seek(SeekFrom::Start(0))?;
        Ok(Self { reader: BufReader::with_capacity(64 << 10, bytes), at: 0, len })
    }

    /// Size in bytes when it was opened.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// Bytes from `offset` to the end.
    pub(super) const fn after(&self, offset: u64) -> u64 {
        self.len.saturating_sub(offset)
    }

    /// `n` bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof`, before anything is allocated, if they are not there.
    pub(super) fn read_at(&mut self, offset: u64, n: u64) -> io::Result<Vec<u8>> {
        if n > self.after(offset) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.seek(offset)?;
        let mut bytes = vec![0; usize::try_from(n).map_err(io::Error::other)?];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// The first `N` bytes at `offset`.
    pub(super) fn array_at<const N: usize>(&mut self, offset: u64) -> io::Result<[u8; N]> {
        if N as u64 > self.after(offset) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.seek(offset)?;
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let result = self.reader.read_exact(bytes);
        match result {
            Ok(()) => self.at += bytes.len() as u64,
            // Where a failed read left the file is not specified.
            Err(_) => self.at = self.reader.stream_position()?,
        }
        result
    }

    /// Seeks within the buffer where possible: a scan hops over small records.
    fn seek(&mut self, offset: u64) -> io::Result<()> {
        match i64::try_from(i128::from(offset) - i128::from(self.at)) {
            Ok(distance) => self.reader.seek_relative(distance)?,
            Err(_) => {
                self.reader.seek(SeekFrom::Start(offset))?;
            }
        }
        self.at = offset;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn reads_in_any_order_and_refuses_what_is_not_there() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut source = Source::new(Box::new(Cursor::new(bytes))).unwrap();
        assert_eq!(source.read_at(200, 3).unwrap(), [200, 201, 202]);
        assert_eq!(source.array_at::<2>(1).unwrap(), [1, 2]);
        assert_eq!(source.read_at(0, 256).unwrap().len(), 256);
        assert!(source.read_at(255, 2).is_err());
        assert!(source.read_at(u64::MAX, 2).is_err());
        assert!(source.read_at(0, u64::MAX).is_err());
    }
}
