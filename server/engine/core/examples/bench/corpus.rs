//! The pages that are stored.

use std::path::Path;

use crate::Result;

pub const PAGE: usize = 4096;
/// Pages to a batch.
pub const BATCH: usize = 64;

/// Whole batches of pages.
#[derive(Clone)]
pub struct Corpus {
    pub name: String,
    pub path: String,
    bytes: Vec<u8>,
}

impl Corpus {
    pub fn read(path: &str) -> Result<Corpus> {
        let name = Path::new(path)
            .file_stem()
            .map_or("?".into(), |stem| stem.to_string_lossy().into_owned());
        let mut bytes = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
        bytes.truncate(bytes.len() / (BATCH * PAGE) * (BATCH * PAGE));
        if bytes.len() < 4 * BATCH * PAGE {
            return Err(format!("{path}: at least {} bytes are needed", 4 * BATCH * PAGE).into());
        }
        Ok(Corpus {
            name,
            path: path.into(),
            bytes,
        })
    }

    pub fn pages(&self) -> usize {
        self.bytes.len() / PAGE
    }

    pub fn batches(&self) -> usize {
        self.pages() / BATCH
    }

    pub fn page(&self, page: usize) -> &[u8] {
        &self.bytes[page * PAGE..][..PAGE]
    }

    pub fn batch(&self, batch: usize) -> &[u8] {
        &self.bytes[batch * BATCH * PAGE..][..BATCH * PAGE]
    }

    /// Every `of`th batch, from `part` on.
    pub fn part(&self, part: usize, of: usize) -> Corpus {
        let bytes = self
            .bytes
            .chunks(BATCH * PAGE)
            .skip(part)
            .step_by(of)
            .flatten()
            .copied()
            .collect();
        Corpus {
            name: self.name.clone(),
            path: self.path.clone(),
            bytes,
        }
    }
}
