//! A source whose every tensor is told of.

use super::matrix::Matrix;
use super::weights::Source;
use super::{Error, Precision, Progress, Result, Watch};

/// Passes tensors on, with their pages read in: what is mapped costs its time here, where it is seen, and not in the
/// first steps.
pub(super) struct Watched<'a, 'b, S> {
    source: S,
    what: &'a str,
    weights: Option<Precision>,
    done_bytes: u64,
    watch: &'a mut Watch<'b>,
}

impl<'a, 'b, S: Source> Watched<'a, 'b, S> {
    pub(super) fn new(
        source: S,
        what: &'a str,
        weights: Option<Precision>,
        watch: &'a mut Watch<'b>,
    ) -> Self {
        Self { source, what, weights, done_bytes: 0, watch }
    }

    fn tell(&mut self, bytes: u64) -> Result<()> {
        self.done_bytes += bytes;
        let total_bytes = self.source.bytes().max(self.done_bytes);
        let progress = Progress { what: self.what, done_bytes: self.done_bytes, total_bytes };
        if (self.watch)(&progress).is_break() { Err(Error::Stopped) } else { Ok(()) }
    }
}

impl<S: Source> Source for Watched<'_, '_, S> {
    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.source.check(name, shape)
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        let matrix = self.source.matrix(name, shape)?;
        matrix.touch();
        self.tell(matrix.bytes())?;
        Ok(matrix)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let vector = self.source.vector(name, len)?;
        self.tell(size_of_val(vector.as_slice()) as u64)?;
        Ok(vector)
    }

    fn dtype(&self) -> String {
        self.weights.map_or_else(|| self.source.dtype(), |weights| weights.to_string())
    }

    fn bytes(&self) -> u64 {
        self.source.bytes()
    }
}
