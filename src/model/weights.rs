//! A module's parameters as `.safetensors` files, each under its path in the module.
//!
//! Files are mapped into memory and read tensor by tensor, so that loading does not hold the weights
//! twice; a file must not be changed while it is read. Tensors are converted to the element type of the
//! parameter they fill, so that a bf16 file loads into an f32 model. Errors name every tensor that is
//! missing, unexpected or of another shape.

mod fill;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
#[cfg(feature = "train")]
use sha2::{Digest, Sha256};

use super::paths::{ModulePath, follows_path};
use crate::error::Error;
#[cfg(feature = "train")]
use crate::support::fs::hex;
use crate::support::fs::{GGUF, check_regular, other_format, read_object};

/// Every float parameter of a module with its path, in a fixed order.
pub fn parameters<B: Backend, M: Module<B>>(module: &M) -> Vec<(String, TensorData)> {
    parameters_of(module, |_| true)
}

/// The [`parameters`] whose paths are `wanted`.
pub(crate) fn parameters_of<B: Backend, M: Module<B>>(
    module: &M,
    wanted: impl Fn(&str) -> bool,
) -> Vec<(String, TensorData)> {
    struct Collect<W> {
        path: ModulePath,
        wanted: W,
        found: Vec<(String, TensorData)>,
    }
    impl<B: Backend, W: Fn(&str) -> bool> ModuleVisitor<B> for Collect<W> {
        follows_path!();
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let name = self.path.name();
            if (self.wanted)(&name) {
                self.found.push((name, param.val().to_data()));
            }
        }
    }
    let mut collect = Collect {
        path: ModulePath::default(),
        wanted,
        found: Vec::new(),
    };
    module.visit(&mut collect);
    collect.found
}

/// How many numbers a module's float parameters have, also where they are not allocated yet.
pub(crate) fn count<B: Backend, M: Module<B>>(module: &M) -> usize {
    struct Count(usize);
    impl<B: Backend> ModuleVisitor<B> for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0 = self.0.saturating_add(param.lazy_shape().num_elements());
        }
    }
    let mut count = Count(0);
    module.visit(&mut count);
    count.0
}

/// A `.safetensors` file's bytes: `tensors` and free-form `metadata`.
///
/// # Errors
///
/// A tensor of an element type that the format does not have.
pub fn encode(
    tensors: &[(String, TensorData)],
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>, Error> {
    let views: Result<Vec<_>, Error> = tensors
        .iter()
        .map(|(name, data)| {
            let view = to_safetensors(data.dtype).and_then(|dtype| {
                let view = TensorView::new(dtype, data.shape.to_vec(), &data.bytes);
                view.map_err(|e| e.to_string())
            });
            view.map(|view| (name.as_str(), view))
                .map_err(|e| Error::Input(format!("tensor `{name}` cannot be saved: {e}")))
        })
        .collect();
    let metadata = (!metadata.is_empty()).then_some(metadata);
    safetensors::serialize(views?, metadata)
        .map_err(|e| Error::Input(format!("tensors cannot be saved: {e}")))
}

/// `to` with the parameters of `from`, which must have the same names and shapes.
///
/// # Errors
///
/// Names a parameter that only one of them has, or that has another shape.
pub fn transfer<B: Backend, M: Module<B>, N: Module<B>>(from: &M, to: N) -> Result<N, Error> {
    struct Transfer {
        path: ModulePath,
        from: BTreeMap<String, TensorData>,
        problem: Option<String>,
    }
    impl<B: Backend> ModuleMapper<B> for Transfer {
        follows_path!();
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let (name, shape) = (self.path.name(), param.lazy_shape());
            match self.from.remove(&name) {
                Some(data) if data.shape == shape => {
                    let dtype = data.dtype;
                    let tensor = Tensor::from_data(data, (&param.lazy_device(), dtype));
                    let id = param.id;
                    param.transform_for_load(tensor, id)
                }
                other => {
                    let found = other.map_or("missing".into(), |data| {
                        format!("{:?}", data.shape.as_slice())
                    });
                    let problem = format!("`{name}` is {found}, not {:?}", shape.as_slice());
                    self.problem.get_or_insert(problem);
                    param
                }
            }
        }
    }
    let mut transfer = Transfer {
        path: ModulePath::default(),
        from: parameters(from).into_iter().collect(),
        problem: None,
    };
    let to = to.map(&mut transfer);
    let left = transfer.from.into_keys().next();
    let left = left.map(|name| format!("`{name}` is unexpected"));
    match transfer.problem.or(left) {
        None => Ok(to),
        Some(problem) => Err(Error::Input(problem)),
    }
}

/// The tensors of a `.safetensors` file, or of several that share one index, mapped and checked.
#[derive(Debug)]
pub struct Tensors {
    /// The file they were read from, for messages.
    path: PathBuf,
    files: Vec<Contents>,
    /// What the files contain and where.
    tensors: BTreeMap<String, Entry>,
    /// What the index lists and no file contains, with the file that should.
    absent: BTreeMap<String, Value>,
    metadata: HashMap<String, String>,
}

/// The bytes of a file.
#[derive(Debug)]
enum Contents {
    Mapped(Mmap),
    Held(Vec<u8>),
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Held(bytes) => bytes,
        }
    }
}

/// A matrix on the host, row by row.
pub(crate) struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub values: Vec<f64>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    len: usize,
}

impl Tensors {
    /// Maps and checks a file.
    ///
    /// # Errors
    ///
    /// If it cannot be read, is truncated or is not a `.safetensors` file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let mut tensors = Self::none(path);
        tensors.add(path)?;
        Ok(tensors)
    }

    /// Checks the bytes of such a file. Messages call it `name`.
    ///
    /// # Errors
    ///
    /// If they are truncated or not those of a `.safetensors` file.
    pub fn from_bytes(bytes: Vec<u8>, name: impl AsRef<Path>) -> Result<Self, Error> {
        let name = name.as_ref();
        let mut tensors = Self::none(name);
        tensors.add_contents(name, Contents::Held(bytes))?;
        Ok(tensors)
    }

    /// Maps and checks the weights of a folder: `model.safetensors`, or the files that
    /// `model.safetensors.index.json` names.
    ///
    /// # Errors
    ///
    /// If a file is missing or truncated, or its tensors are not those that the index lists.
    pub fn open_folder(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let folder = folder.as_ref();
        let whole = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if !whole.exists() && !index.exists() {
            return Err(no_weights(folder, whole));
        }
        if whole.exists() {
            return Self::open(whole);
        }
        let json = read_object(&index)?;
        let Some(Value::Object(map)) = json.get("weight_map") else {
            return Err(Error::file(&index, "has no `weight_map`"));
        };
        let mut shards = BTreeSet::new();
        for (tensor, shard) in map {
            // A path is refused, so that nothing outside the folder is read.
            let name = shard.as_str().filter(|name| {
                Path::new(name)
                    .file_name()
                    .is_some_and(|file| file == *name)
            });
            let Some(name) = name else {
                let problem = format!("lists `{tensor}` in {shard}, which is not a file name");
                return Err(Error::file(&index, problem));
            };
            shards.insert(name);
        }
        let mut tensors = Self::none(&index);
        for shard in &shards {
            let path = folder.join(shard);
            if !path.exists() {
                return Err(Error::file(
                    &index,
                    format!("names `{shard}`, which is missing"),
                ));
            }
            tensors.add(&path)?;
        }
        let shards: Vec<_> = shards.into_iter().collect();
        for (name, shard) in map {
            match tensors.tensors.get(name) {
                None => {
                    tensors.absent.insert(name.clone(), shard.clone());
                }
                Some(entry) if shard.as_str() == Some(shards[entry.file]) => {}
                Some(_) => {
                    let problem = format!("lists `{name}` in {shard}, but it is not there");
                    return Err(Error::file(&index, problem));
                }
            }
        }
        Ok(tensors)
    }

    fn none(path: &Path) -> Self {
        Self {
            path: path.into(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            absent: BTreeMap::new(),
            metadata: HashMap::new(),
        }
    }

    #[allow(unsafe_code)]
    fn add(&mut self, path: &Path) -> Result<(), Error> {
        check_regular(path)?;
        let file = File::open(path).map_err(Error::io(path, "cannot read"))?;
        let about = file.metadata().map_err(Error::io(path, "cannot read"))?;
        if about.len() == 0 {
            return self.add_contents(path, Contents::Held(Vec::new()));
        }
        // SAFETY: nothing writes to the mapping through this process. Another process that changes or
        // truncates the file while it is mapped breaks what Rust assumes of it, as with every mapped file; this
        // module's docs forbid it.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "cannot map"))?;
        self.add_contents(path, Contents::Mapped(map))
    }

    fn add_contents(&mut self, path: &Path, contents: Contents) -> Result<(), Error> {
        if contents.len() < 8 {
            let problem = "is not a whole .safetensors file (it is shorter than a header)";
            return Err(Error::file(path, problem));
        }
        let damaged = |e: &dyn std::fmt::Display| {
            let problem = match other_format(&contents) {
                Some(what) => format!("is {what}"),
                None => format!("is not a whole .safetensors file ({e})"),
            };
            Error::file(path, problem)
        };
        let (_, header) = SafeTensors::read_metadata(&contents).map_err(|e| damaged(&e))?;
        self.metadata
            .extend(header.metadata().clone().unwrap_or_default());
        let parsed = SafeTensors::deserialize(&contents).map_err(|e| damaged(&e))?;
        for (name, view) in parsed.tensors() {
            let entry = Entry {
                file: self.files.len(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                start: view.data().as_ptr() as usize - contents.as_ptr() as usize,
                len: view.data().len(),
            };
            if self.tensors.insert(name.clone(), entry).is_some() {
                let problem = format!("holds `{name}`, and so does another file of its index");
                return Err(Error::file(path, problem));
            }
        }
        self.files.push(contents);
        Ok(())
    }

    /// The file, or the index of several, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The free-form metadata of the file or files.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// SHA-256 of the files' bytes, as hexadecimal digits.
    #[cfg(feature = "train")]
    pub(crate) fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for file in &self.files {
            hash.update(&**file);
        }
        hex(&hash.finalize())
    }

    /// Fails on a configuration of more layers than there are tensors, before the layers are made.
    pub(crate) fn check_layers(&self, layers: usize) -> Result<(), Error> {
        let tensors = self.tensors.len();
        match layers <= tensors {
            true => Ok(()),
            false => Err(Error::file(
                &self.path,
                format!("holds {tensors} tensors, too few for the configuration's {layers} layers"),
            )),
        }
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// One tensor.
    ///
    /// # Errors
    ///
    /// If there is none of this name, or its element type is not supported.
    pub fn get(&self, name: &str) -> Result<TensorData, Error> {
        let entry = self.tensors.get(name);
        let entry =
            entry.ok_or_else(|| Error::file(&self.path, format!("has no tensor `{name}`")))?;
        self.read(entry)
            .map_err(|e| Error::file(&self.path, format!("tensor `{name}`: {e}")))
    }

    /// A matrix of weights.
    ///
    /// # Errors
    ///
    /// If there is none of this name, it is not of two dimensions, or an element is non-finite.
    pub(crate) fn matrix(&self, name: &str) -> Result<Matrix, Error> {
        let problem = |problem: String| Error::file(&self.path, problem);
        let data = self.get(name)?;
        let (&[rows, columns], true) = (data.shape.as_slice(), data.dtype.is_float()) else {
            let (dtype, shape) = (data.dtype, data.shape.as_slice());
            return Err(problem(format!(
                "`{name}` is {dtype:?} {shape:?}, not a matrix of weights"
            )));
        };
        let data = data.convert_dtype(DType::F64);
        if let Some((at, value)) = first_non_finite(&data) {
            return Err(problem(format!("`{name}` holds {value} (element {at})")));
        }
        Ok(Matrix {
            rows,
            columns,
            values: data.iter().collect(),
        })
    }

    /// Whether two tensors have the same shape and values.
    ///
    /// # Errors
    ///
    /// If one of them cannot be read.
    pub(crate) fn equal(&self, one: &str, other: &str) -> Result<bool, Error> {
        let (one, other) = (self.get(one)?, self.get(other)?);
        let wide = |data: TensorData| data.convert_dtype(DType::F64);
        Ok(one.shape == other.shape
            && match one.dtype == other.dtype {
                true => one.bytes == other.bytes,
                false => wide(one).bytes == wide(other).bytes,
            })
    }

    fn read(&self, entry: &Entry) -> Result<TensorData, String> {
        /// The most bytes of the file that are in memory beside the weights.
        const CHUNK: usize = 8 << 20;
        let dtype = from_safetensors(entry.dtype)?;
        let contents = &self.files[entry.file];
        let mut bytes = Vec::with_capacity(entry.len);
        for start in (entry.start..entry.start + entry.len).step_by(CHUNK) {
            let len = CHUNK.min(entry.start + entry.len - start);
            bytes.extend_from_slice(&contents[start..start + len]);
            if let Contents::Mapped(map) = contents {
                drop_pages(map, start, len);
            }
        }
        let shape = entry.shape.clone();
        Ok(TensorData::from_bytes_vec(bytes, shape, dtype))
    }
}

fn absent_problem(name: &str, file: &Value) -> String {
    format!("`{name}` is listed in {file} and is not there")
}

/// What to say of a folder without weights in a format that is read here.
fn no_weights(folder: &Path, whole: PathBuf) -> Error {
    let has = |name: &str| folder.join(name).exists();
    let old = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    if let Some(old) = old.into_iter().find(|name| has(name)) {
        return Error::file(
            folder.join(old),
            "is in PyTorch's own format, which can run programs and is not read here. Convert it in Python: \
             `m = transformers.AutoModelForCausalLM.from_pretrained(folder); m.save_pretrained(folder, \
             safe_serialization=True)`",
        );
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let is_gguf = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "gguf");
    if let Some(gguf) = paths.filter(is_gguf).min() {
        return Error::file(gguf, format!("is {GGUF}"));
    }
    let problem = match has("adapter_model.safetensors") {
        true => {
            "does not exist: the folder has an adapter, and needs the weights of its base model too"
        }
        false => "does not exist",
    };
    Error::file(whole, problem)
}

/// Lets the system reclaim the memory that holds this part of a file.
#[allow(unsafe_code)]
fn drop_pages(map: &Mmap, start: usize, len: usize) {
    // SAFETY: a page of a read-only mapping of a file can be dropped; the next access reads it from the file
    // again. This is advice: the system may ignore it.
    #[cfg(unix)]
    unsafe {
        let _ = map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len);
    }
    #[cfg(not(unix))]
    let _ = (map, start, len);
}

/// The first non-finite element: its index and value.
fn first_non_finite(data: &TensorData) -> Option<(usize, f64)> {
    if let Ok(values) = data.as_slice::<f32>() {
        let at = values.iter().position(|value| !value.is_finite())?;
        return Some((at, values[at].into()));
    }
    data.iter::<f64>()
        .enumerate()
        .find(|(_, value)| !value.is_finite())
}

fn to_safetensors(dtype: DType) -> Result<Dtype, String> {
    Ok(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I8 => Dtype::I8,
        other => return Err(format!("element type {other:?}")),
    })
}

fn from_safetensors(dtype: Dtype) -> Result<DType, String> {
    Ok(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I8 => DType::I8,
        other => {
            return Err(format!(
                "element type {other:?} is not one of F64, F32, F16, BF16, I64, I8"
            ));
        }
    })
}
