//! A memory file is read, checked, and written.

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::DType;
use serde::{Deserialize, Serialize};

use super::super::value::PREFIX;
use super::matrix::Matrix;
use super::{MemoryFile, Origin, Written};
use crate::error::Error;
use crate::model::weights::{self, Tensors};
use crate::support::fs::write_atomically;

/// The tensors of a prefix: the vectors, and each sample's own projection if it has one.
const TENSORS: [&str; 3] = ["memory", "projection.weight", "projection.bias"];
/// The metadata's entry. One, because the order of several would change from one writing to the next.
const ENTRY: &str = "gradmem_memory";
/// The version of the format that prefixes are written in, and the newest.
const FIRST: u64 = 1;
const VERSION: u64 = 2;
/// Behind the name of a tensor of bytes: its rows' scales.
const SCALE: &str = ".scale";

/// The metadata's entry.
#[derive(Serialize, Deserialize)]
struct Header {
    version: u64,
    #[serde(flatten)]
    origin: Origin,
    samples: Vec<Written>,
    #[serde(default = "prefix", skip_serializing_if = "is_prefix")]
    kind: String,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    chunks: usize,
}

fn prefix() -> String {
    PREFIX.into()
}

fn is_prefix(kind: &str) -> bool {
    kind == PREFIX
}

fn one() -> usize {
    1
}

fn is_one(chunks: &usize) -> bool {
    *chunks == 1
}

impl MemoryFile {
    /// Opens a memory file.
    ///
    /// # Errors
    ///
    /// If it cannot be read, is no memory file or a damaged one, is of a newer format version, its tensors
    /// are inconsistent with each other or its metadata, or it holds non-finite numbers.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::read(&Tensors::open(path)?)
    }

    /// The memories of a file's [bytes](Self::to_bytes), which messages call `name`: for memories that are kept in a database, or sent.
    ///
    /// # Errors
    ///
    /// As those of [`MemoryFile::open`].
    pub fn from_bytes(bytes: Vec<u8>, name: impl AsRef<Path>) -> Result<Self, Error> {
        Self::read(&Tensors::from_bytes(bytes, name)?)
    }

    fn read(file: &Tensors) -> Result<Self, Error> {
        let path = file.path();
        let problem = |problem: String| Error::file(path, problem);
        let entry = file.metadata().get(ENTRY);
        let entry = entry.ok_or_else(|| problem("is not a memory file".into()))?;
        let damaged = |e| problem(format!("says in its metadata what cannot be read: {e}"));
        let entry: serde_json::Value = serde_json::from_str(entry).map_err(damaged)?;
        match entry.get("version").and_then(serde_json::Value::as_u64) {
            Some(FIRST..=VERSION) => {}
            Some(version) => {
                return Err(problem(format!(
                    "is a memory file of format version {version}, but versions up to {VERSION} are what this \
                     program understands"
                )));
            }
            None => return Err(problem("is a memory file without a format version".into())),
        }
        let header: Header = serde_json::from_value(entry).map_err(damaged)?;
        let found = Self {
            origin: header.origin,
            samples: header.samples,
            kind: header.kind,
            chunks: header.chunks,
            matrices: Vec::new(),
            path: path.into(),
        };
        found.with_tensors(file).map_err(problem)
    }

    /// With the tensors of a file, checked against each other and the metadata.
    fn with_tensors(mut self, file: &Tensors) -> Result<Self, String> {
        let is_scale = |name: &str| name.ends_with(SCALE);
        let names: Vec<&str> = match self.kind.as_str() {
            PREFIX => {
                let known =
                    |name: &str| TENSORS.contains(&name.strip_suffix(SCALE).unwrap_or(name));
                if let Some(name) = file.names().find(|name| !known(name)) {
                    return Err(format!("holds `{name}`, which is no part of a memory"));
                }
                let count = file.names().filter(|name| !is_scale(name)).count().max(1);
                if count == 2 {
                    return Err(
                        "holds half of a projection: a weight and a bias belong together".into(),
                    );
                }
                TENSORS[..count].to_vec()
            }
            _ => file.names().filter(|name| !is_scale(name)).collect(),
        };
        if names.is_empty() {
            return Err("holds no tensor".into());
        }
        let get = |name: &str| {
            file.get(name).map_err(|e| match e {
                Error::File { problem, .. } => problem,
                other => other.to_string(),
            })
        };
        let n = self.samples.len();
        for name in names {
            let data = get(name)?;
            let shape = data.shape.to_vec();
            let parts = self.chunks;
            let [count, rows, columns] = shape[..] else {
                return Err(format!("`{name}` is {shape:?}, not [{n}, rows, columns]"));
            };
            if count != n || n == 0 || rows == 0 || columns == 0 {
                return Err(format!(
                    "`{name}` is {shape:?}, not [{n}, {}] for the {n} contexts of its metadata",
                    if name == TENSORS[0] {
                        "memory_tokens, d_model"
                    } else {
                        "rows, columns"
                    }
                ));
            }
            if parts == 0 || rows % parts != 0 {
                return Err(format!(
                    "`{name}` has {rows} rows, which {parts} chunks do not share evenly"
                ));
            }
            let scale = format!("{name}{SCALE}");
            if data.dtype == DType::I8 {
                let scales = get(&scale)?;
                if scales.shape.to_vec() != [n, rows, 1] || scales.dtype != DType::F32 {
                    return Err(format!(
                        "`{scale}` is {:?} of {:?}, not {:?} of F32",
                        scales.shape.to_vec(),
                        scales.dtype,
                        [n, rows, 1]
                    ));
                }
                self.matrices.push(Matrix {
                    name: name.into(),
                    numbers: data,
                    scales: Some(scales),
                });
                continue;
            }
            if !data.dtype.is_float() {
                return Err(format!("`{name}` holds {:?}, not floats", data.dtype));
            }
            if file.names().any(|other| other == scale) {
                return Err(format!("has a scale of `{name}`, which is not of bytes"));
            }
            self.matrices.push(Matrix::of_floats(name, data));
        }
        if self.kind == PREFIX {
            let [_, m, d] = self.shape();
            let expected = [[n, m, d], [n, self.chunks * d, d], [n, self.chunks, d]];
            for (matrix, expected) in self.matrices.iter().zip(expected) {
                let (name, found) = (&matrix.name, matrix.shape());
                if found != expected {
                    return Err(format!("`{name}` is {found:?}, not {expected:?}"));
                }
            }
        }
        // As they are read: bytes by their scales, f64 in 32 bits.
        let finite = |matrix: &Matrix| matrix.in_f32().numbers.iter::<f32>().all(f32::is_finite);
        if !self.matrices.iter().all(finite) {
            return Err("holds non-finite numbers".into());
        }
        self.check_chunks()?;
        Ok(self)
    }

    pub(super) fn check_chunks(&self) -> Result<(), String> {
        let all = self.chunks;
        let wrong = self.samples.iter().position(|sample| {
            let chunks = sample.chunks.unwrap_or(all);
            chunks == 0 || chunks > all
        });
        match wrong {
            None => Ok(()),
            Some(at) => Err(format!(
                "says that memory {at} is of {} chunks, but there is room for 1 to {all}",
                self.samples[at].chunks.unwrap_or(0)
            )),
        }
    }

    /// Writes a memory file. The same memories make the same bytes.
    ///
    /// # Errors
    ///
    /// If `samples` are not as many as the memories, or it cannot be written; what was there before then
    /// stays.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        write_atomically(path, &self.to_bytes()?)
    }

    /// What [`MemoryFile::save`] writes.
    ///
    /// # Errors
    ///
    /// If `samples` are not as many as the memories.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        self.check()?;
        let plain = self.kind == PREFIX && self.chunks == 1 && self.dtype() != DType::I8;
        let header = Header {
            version: if plain { FIRST } else { VERSION },
            origin: self.origin.clone(),
            samples: self.samples.clone(),
            kind: self.kind.clone(),
            chunks: self.chunks,
        };
        let header = serde_json::to_string(&header)
            .map_err(|e| Error::Failed(format!("a memory's metadata cannot be saved: {e}")))?;
        let metadata = HashMap::from([(ENTRY.to_string(), header)]);
        let tensors = self.matrices.iter().flat_map(|matrix| {
            let scales = matrix.scales.clone();
            let scales = scales.map(|scales| (format!("{}{SCALE}", matrix.name), scales));
            std::iter::once((matrix.name.clone(), matrix.numbers.clone())).chain(scales)
        });
        let tensors: Vec<_> = tensors.collect();
        weights::encode(&tensors, metadata)
    }
}
