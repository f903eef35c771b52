//! Safetensors files, taken apart and put together wrongly.

use std::path::Path;

use gradmem::Error;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use crate::mutate::{self, once_in, pick};
use crate::read::{Count, Folder, hammer};

/// A tensor of a file.
#[derive(Clone)]
pub struct Part {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

/// A file.
#[derive(Clone)]
pub struct Parts {
    pub metadata: Map<String, Value>,
    pub tensors: Vec<Part>,
}

/// Element types, with those that no weights have, and their bytes.
const DTYPES: [(&str, usize); 14] = [
    ("F64", 8),
    ("F32", 4),
    ("F16", 2),
    ("BF16", 2),
    ("I64", 8),
    ("I32", 4),
    ("I16", 2),
    ("I8", 1),
    ("U8", 1),
    ("U64", 8),
    ("BOOL", 1),
    ("F8_E4M3", 1),
    ("F8_E5M2", 1),
    ("C64", 8),
];

impl Parts {
    pub fn of(file: &[u8]) -> Self {
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let header: Map<String, Value> = serde_json::from_slice(&file[8..8 + length]).unwrap();
        let data = &file[8 + length..];
        let mut parts = Self {
            metadata: Map::new(),
            tensors: Vec::new(),
        };
        for (name, about) in header {
            if name == "__metadata__" {
                parts.metadata = about.as_object().unwrap().clone();
                continue;
            }
            let number = |value: &Value| value.as_u64().unwrap();
            let range = &about["data_offsets"];
            let range = number(&range[0]) as usize..number(&range[1]) as usize;
            let shape = about["shape"].as_array().unwrap();
            parts.tensors.push(Part {
                name,
                dtype: about["dtype"].as_str().unwrap().into(),
                shape: shape.iter().map(number).collect(),
                bytes: data[range].to_vec(),
            });
        }
        parts
    }

    /// Header and data.
    fn split(&self) -> (String, Vec<u8>) {
        let mut header = Map::new();
        if !self.metadata.is_empty() {
            header.insert("__metadata__".into(), self.metadata.clone().into());
        }
        let mut data: Vec<u8> = Vec::new();
        for Part {
            name,
            dtype,
            shape,
            bytes,
        } in &self.tensors
        {
            let start = data.len();
            data.extend(bytes);
            let about =
                json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
            header.insert(name.clone(), about);
        }
        (Value::Object(header).to_string(), data)
    }

    pub fn file(&self) -> Vec<u8> {
        let (header, data) = self.split();
        join(header.len() as u64, &header, &data)
    }
}

fn join(length: u64, header: &str, data: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes(), header.as_bytes(), data].concat()
}

/// Changes a file.
pub fn file(rng: &mut ChaCha8Rng, valid: &[u8]) -> Vec<u8> {
    let mut parts = Parts::of(valid);
    match rng.random_range(0..12) {
        0 => {
            let mut file = valid.to_vec();
            mutate::bytes(rng, &mut file);
            file
        }
        1 => {
            let (header, data) = parts.split();
            let length = header.len() as u64;
            let whole = length + data.len() as u64;
            let length = *pick(
                rng,
                &[
                    0,
                    1,
                    2,
                    length - 1,
                    length + 1,
                    whole,
                    whole + 1,
                    whole + 8,
                    99_999_999,
                    100_000_000,
                    100_000_001,
                    1 << 31,
                    1 << 32,
                    1 << 53,
                    1 << 63,
                    u64::MAX - 7,
                    u64::MAX,
                ],
            );
            join(length, &header, &data)
        }
        2..=5 => {
            let (mut header, data) = parts.split();
            for _ in 0..rng.random_range(1..=2) {
                mutate::json(rng, &mut header);
            }
            join(header.len() as u64, &header, &data)
        }
        6 => {
            let (mut header, mut data) = parts.split();
            header += *pick(rng, &["", " ", "   ", "\0", "{}", "\u{e9}"]);
            mutate::bytes(rng, &mut data);
            join(header.len() as u64, &header, &data)
        }
        _ => {
            for _ in 0..rng.random_range(1..=2) {
                tensors(rng, &mut parts);
            }
            parts.file()
        }
    }
}

/// Changes a tensor and keeps the file whole.
fn tensors(rng: &mut ChaCha8Rng, parts: &mut Parts) {
    if parts.tensors.is_empty() {
        return;
    }
    let count = parts.tensors.len();
    let at = rng.random_range(0..count);
    let other = rng.random_range(0..count);
    match rng.random_range(0..17) {
        0 => {
            parts.tensors.remove(at);
        }
        1 => {
            let mut more = parts.tensors[at].clone();
            more.name += *pick(rng, &[".bias", "2", "\n", "\u{1b}[2J", "/../a", ""]);
            parts.tensors.push(more);
        }
        2 => {
            let name = &mut parts.tensors[at].name;
            let mut bytes = name.clone().into_bytes();
            mutate::bytes(rng, &mut bytes);
            *name = String::from_utf8_lossy(&bytes).into_owned();
        }
        3 => {
            let name = parts.tensors[other].name.clone();
            let name = std::mem::replace(&mut parts.tensors[at].name, name);
            parts.tensors[other].name = name;
        }
        // Another element type of the same shape.
        4 | 5 => {
            let tensor = &mut parts.tensors[at];
            let elements = elements(&tensor.shape) as usize;
            let (dtype, width) = *pick(rng, &DTYPES);
            tensor.dtype = dtype.into();
            tensor.bytes = (0..elements * width).map(|_| rng.random()).collect();
        }
        // Another shape of as many elements.
        6 => {
            let shape = &mut parts.tensors[at].shape;
            match rng.random_range(0..4) {
                0 => shape.reverse(),
                1 => *shape = vec![shape.iter().product()],
                2 => shape.insert(0, 1),
                _ => shape.push(1),
            }
        }
        // More or less of it.
        7 | 8 => {
            let tensor = &mut parts.tensors[at];
            let width = tensor.bytes.len() as u64 / elements(&tensor.shape).max(1);
            if tensor.shape.is_empty() {
                return;
            }
            let dim = rng.random_range(0..tensor.shape.len());
            let size = tensor.shape[dim];
            tensor.shape[dim] = *pick(
                rng,
                &[
                    0,
                    1,
                    size.wrapping_add(1),
                    size.wrapping_mul(2),
                    size.saturating_sub(1),
                ],
            );
            let length = elements(&tensor.shape).wrapping_mul(width) as usize;
            tensor.bytes.resize(length, 0);
        }
        // Nothing, of a huge shape.
        9 => {
            let tensor = &mut parts.tensors[at];
            tensor.bytes.clear();
            let huge = *pick(rng, &[1 << 31, 1 << 53, 1 << 62, 1 << 63, u64::MAX]);
            tensor.shape = match once_in(rng, 2) {
                true => vec![huge, 0],
                false => vec![0, huge, huge],
            };
        }
        10 => {
            let swapped = parts.tensors[other].bytes.clone();
            parts.tensors[at].bytes = swapped;
        }
        11..=14 => {
            for (_, value) in &mut parts.metadata {
                let mut text = value.as_str().unwrap_or_default().to_string();
                match once_in(rng, 3) {
                    true => text = mutate::value(rng),
                    false => mutate::json(rng, &mut text),
                }
                *value = text.into();
            }
        }
        _ => {
            let tensor = &mut parts.tensors[at];
            let odd = *pick(
                rng,
                &[
                    f32::NAN,
                    f32::INFINITY,
                    f32::NEG_INFINITY,
                    f32::MAX,
                    f32::MIN_POSITIVE,
                    -0.0,
                    1e-45,
                ],
            );
            let elements = tensor.bytes.len() / 4;
            if elements > 0 {
                let place = 4 * rng.random_range(0..elements);
                tensor.bytes[place..place + 4].copy_from_slice(&odd.to_le_bytes());
            }
        }
    }
}

/// How many numbers a shape has; of an absurd one, anything.
fn elements(shape: &[u64]) -> u64 {
    shape
        .iter()
        .fold(1, |count, size| count.wrapping_mul(*size))
}

/// Changes a file of a model's folder, JSON or tensors by its name, and opens the folder.
pub fn hammer_models(
    format: &'static str,
    count: Count,
    folder: &Folder,
    open: fn(&Path) -> Result<(), Error>,
) {
    hammer(
        format,
        count,
        folder,
        |rng, name| {
            let valid = &folder.valid[name];
            let changed = match name.ends_with(".json") {
                true => mutate::json_file(rng, valid),
                false => file(rng, valid),
            };
            vec![(name.into(), changed)]
        },
        |path, name| open(path.join(name).parent().unwrap()),
    );
}
