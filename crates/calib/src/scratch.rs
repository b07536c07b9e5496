//! Arrays that stay in memory up to a limit, and lie in a temporary file past it.
//!
//! A conversion's activations and statistics grow with the number of layers; its memory must not. What is put into a
//! [`Scratch`] counts against one limit; past it, arrays go to an unnamed file that vanishes with the process, however
//! that ends.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Error;
use crate::linalg::Mat64;

/// Bytes kept in memory before arrays go to the file.
pub const DEFAULT_MEMORY_BYTES: u64 = 1 << 30;

/// A store of arrays, shared by everything that one conversion keeps.
#[derive(Clone, Debug)]
pub struct Scratch {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    memory_limit: u64,
    memory_used: u64,
    folder: PathBuf,
    file: Option<Arc<File>>,
    end: u64,
    /// Places in the file whose arrays were dropped, by size: arrays come in few sizes, so they are soon taken again.
    free: BTreeMap<u64, Vec<u64>>,
}

/// A number that can be written to a file.
pub trait Number: Copy {
    /// Bytes of one number.
    const BYTES: usize;
    /// Appends the number, little-endian.
    fn write(self, bytes: &mut Vec<u8>);
    /// Reads it back.
    fn read(bytes: &[u8]) -> Self;
}

macro_rules! number {
    ($type:ty) => {
        impl Number for $type {
            const BYTES: usize = size_of::<$type>();

            fn write(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }

            fn read(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$type>()];
                raw.copy_from_slice(bytes);
                <$type>::from_le_bytes(raw)
            }
        }
    };
}
number!(f32);
number!(f64);

/// An array in a [`Scratch`]; dropping it gives its place back.
#[derive(Debug)]
pub struct Stored<T> {
    place: Place<T>,
    bytes: u64,
    state: Arc<Mutex<State>>,
}

/// A matrix in a [`Scratch`].
#[derive(Debug)]
pub struct StoredMatrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) data: Stored<f64>,
}

impl StoredMatrix {
    /// The matrix as it was.
    ///
    /// # Errors
    /// When the temporary file cannot be read.
    pub fn load(&self) -> Result<Mat64, Error> {
        Ok(Mat64 { rows: self.rows, cols: self.cols, data: self.data.read()?.into_owned() })
    }
}

#[derive(Debug)]
enum Place<T> {
    Memory(Vec<T>),
    File { file: Arc<File>, offset: u64, len: usize },
}

impl Scratch {
    /// Keeps up to `memory_limit` bytes in memory and the rest in an unnamed file of `folder`.
    pub fn new(memory_limit: u64, folder: impl Into<PathBuf>) -> Self {
        let state = State {
            memory_limit,
            memory_used: 0,
            folder: folder.into(),
            file: None,
            end: 0,
            free: BTreeMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Keeps an array.
    ///
    /// # Errors
    /// When the temporary file cannot be made or written.
    pub fn keep<T: Number>(&self, data: Vec<T>) -> Result<Stored<T>, Error> {
        let bytes = (data.len() * T::BYTES) as u64;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let place = if state.memory_used + bytes <= state.memory_limit {
            state.memory_used += bytes;
            Place::Memory(data)
        } else {
            let (file, offset) = state.claim(bytes)?;
            let mut raw = Vec::with_capacity(data.len() * T::BYTES);
            data.iter().for_each(|&x| x.write(&mut raw));
            file.write_all_at(&raw, offset).map_err(|source| state.error("write", source))?;
            Place::File { file, offset, len: data.len() }
        };
        Ok(Stored { place, bytes, state: Arc::clone(&self.state) })
    }

    /// Keeps a matrix.
    ///
    /// # Errors
    /// As [`keep`](Self::keep).
    pub fn keep_matrix(&self, matrix: Mat64) -> Result<StoredMatrix, Error> {
        Ok(StoredMatrix { rows: matrix.rows, cols: matrix.cols, data: self.keep(matrix.data)? })
    }

    /// Bytes of the temporary file.
    pub fn file_bytes(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).end
    }
}

impl State {
    fn claim(&mut self, bytes: u64) -> Result<(Arc<File>, u64), Error> {
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => {
                let made =
                    tempfile::tempfile_in(&self.folder).map_err(|source| self.error("make", source))?;
                Arc::clone(self.file.insert(Arc::new(made)))
            }
        };
        if let Some(offset) = self.free.get_mut(&bytes).and_then(Vec::pop) {
            return Ok((file, offset));
        }
        let offset = self.end;
        self.end += bytes;
        Ok((file, offset))
    }

    fn error(&self, action: &'static str, source: std::io::Error) -> Error {
        Error::Scratch { action, folder: self.folder.clone(), source }
    }
}

impl<T: Number> Stored<T> {
    /// How many numbers it has.
    pub(crate) fn len(&self) -> usize {
        self.bytes as usize / T::BYTES
    }

    /// The array.
    ///
    /// # Errors
    /// When the temporary file cannot be read.
    pub fn read(&self) -> Result<Cow<'_, [T]>, Error>
    where
        [T]: ToOwned<Owned = Vec<T>>,
    {
        match &self.place {
            Place::Memory(data) => Ok(Cow::Borrowed(data)),
            Place::File { file, offset, len } => {
                let mut raw = vec![0; len * T::BYTES];
                let read = file.read_exact_at(&mut raw, *offset);
                let state = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
                read.map_err(|source| state().error("read", source))?;
                Ok(Cow::Owned(raw.chunks_exact(T::BYTES).map(T::read).collect()))
            }
        }
    }
}

impl<T> Drop for Stored<T> {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &self.place {
            Place::Memory(_) => state.memory_used -= self.bytes,
            Place::File { offset, .. } => state.free.entry(self.bytes).or_default().push(*offset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_come_back_whether_from_memory_or_the_file() {
        let scratch = Scratch::new(16, std::env::temp_dir());
        let small = scratch.keep(vec![1.5f64, -2.0]).expect("fits the memory");
        assert_eq!(scratch.file_bytes(), 0);
        let large = scratch.keep(vec![0.25f32, 3.0, -7.0]).expect("goes to the file");
        assert_eq!(scratch.file_bytes(), 12);
        assert_eq!(small.read().expect("memory").as_ref(), [1.5, -2.0]);
        assert_eq!(large.read().expect("file").as_ref(), [0.25, 3.0, -7.0]);
    }

    #[test]
    fn what_is_dropped_makes_room_for_the_next() {
        let scratch = Scratch::new(8, std::env::temp_dir());
        drop(scratch.keep(vec![1.0f64]).expect("memory"));
        let first = scratch.keep(vec![2.0f64]).expect("the memory is free again");
        assert_eq!(scratch.file_bytes(), 0);
        drop(scratch.keep(vec![3.0f64]).expect("file"));
        let second = scratch.keep(vec![4.0f64]).expect("file");
        assert_eq!(scratch.file_bytes(), 8, "the same place again");
        assert_eq!((first.read().expect("memory")[0], second.read().expect("file")[0]), (2.0, 4.0));
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let scratch = Scratch::new(0, "/nowhere/at/all");
        let error = scratch.keep(vec![1.0f32]).expect_err("no such folder");
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }
}
