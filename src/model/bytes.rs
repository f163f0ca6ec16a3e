//! Bytes of a weights file, where they lie, and elements read out of them in place.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::{AnyBitPattern, try_cast_slice};
use memmap2::Mmap;

/// The bytes of a file that was mapped, or that is part of the program. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Bytes {
    /// A mapped file.
    Mapped(Arc<Mmap>),
    /// Embedded.
    Static(&'static [u8]),
    /// In memory.
    Owned(Arc<[u8]>),
}

impl Bytes {
    /// Maps a file: pages come from it as they are touched, and the system can drop them again.
    ///
    /// # Errors
    /// The system cannot map it.
    #[allow(unsafe_code)]
    pub(super) fn map(file: &File) -> std::io::Result<Self> {
        // SAFETY: the map is read-only and private to this process. The bytes of a weights file are only ever read as
        // plain numbers, for which every bit pattern is valid, so another process that writes to the file can change
        // what is computed but not make it undefined; one that cuts it short ends this process with a signal.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self::Mapped(Arc::new(map)))
    }

    /// All of them.
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Numbers of one type in a row: in memory, or where a file has them.
#[derive(Clone, Debug)]
pub(super) enum Elements<T> {
    /// In memory.
    Owned(Arc<Vec<T>>),
    /// Within a file, little-endian and aligned.
    Within(Bytes, Range<usize>),
}

impl<T: AnyBitPattern> Elements<T> {
    /// The numbers in a range of a file's bytes, in place where they are aligned and the machine is little-endian; else
    /// `read` makes them.
    pub(super) fn within(bytes: &Bytes, range: Range<usize>, read: impl FnOnce(&[u8]) -> Vec<T>) -> Self {
        let slice = &bytes.as_slice()[range.clone()];
        if cfg!(target_endian = "little") && try_cast_slice::<u8, T>(slice).is_ok() {
            Self::Within(bytes.clone(), range)
        } else {
            read(slice).into()
        }
    }

    /// The numbers.
    ///
    /// # Panics
    /// Never: what lies within a file was checked when it was taken.
    pub(super) fn as_slice(&self) -> &[T] {
        match self {
            Self::Owned(elements) => elements,
            Self::Within(bytes, range) => {
                try_cast_slice(&bytes.as_slice()[range.clone()]).expect("alignment and length were checked")
            }
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.as_slice().len()
    }
}

impl<T> From<Vec<T>> for Elements<T> {
    fn from(elements: Vec<T>) -> Self {
        Self::Owned(Arc::new(elements))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    #[test]
    fn aligned_numbers_stay_in_their_file_and_others_are_copied() {
        let mut file = tempfile::tempfile().unwrap();
        let numbers = [1.0f32, -2.5, 3e9];
        file.write_all(&[0; 5]).unwrap();
        file.write_all(&numbers.map(f32::to_le_bytes).concat()).unwrap();
        file.write_all(&[0; 3]).unwrap();
        file.write_all(&numbers.map(f32::to_le_bytes).concat()).unwrap();
        let bytes = Bytes::map(&file).unwrap();
        let askew = Elements::within(&bytes, 5..17, read);
        let aligned = Elements::within(&bytes, 20..32, read);
        assert!(matches!(askew, Elements::Owned(_)) && matches!(aligned, Elements::Within(..)));
        assert_eq!((askew.as_slice(), aligned.as_slice()), (&numbers[..], &numbers[..]));
        assert_eq!(aligned.len(), 3);
    }
}
