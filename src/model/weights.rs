//! A module's parameters as a `.safetensors` file, each under its path in the module.
//!
//! Tensors are converted to the element type of the parameter they fill, so that an f32 file loads
//! into an f64 model; every missing, unexpected or misshapen tensor is named.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::error::Error;

/// Every float parameter of a module with its path, in a fixed order.
pub fn parameters<B: Backend, M: Module<B>>(module: &M) -> Vec<(String, TensorData)> {
    struct Collect {
        path: Vec<String>,
        found: Vec<(String, TensorData)>,
    }
    impl<B: Backend> ModuleVisitor<B> for Collect {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.found
                .push((self.path.join("."), param.val().to_data()));
        }
    }
    let mut collect = Collect {
        path: Vec::new(),
        found: Vec::new(),
    };
    module.visit(&mut collect);
    collect.found
}

/// A `.safetensors` file's bytes: `tensors` and free-form `metadata`.
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

/// A `.safetensors` file in memory, checked.
pub struct Tensors {
    bytes: Vec<u8>,
    /// Where the bytes came from, for messages.
    path: std::path::PathBuf,
}

impl Tensors {
    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// If it cannot be read, is cut short or is no `.safetensors` file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path, "cannot read"))?;
        let tensors = Self {
            bytes,
            path: path.into(),
        };
        tensors.parse()?;
        Ok(tensors)
    }

    fn parse(&self) -> Result<SafeTensors<'_>, Error> {
        SafeTensors::deserialize(&self.bytes).map_err(|e| {
            Error::file(
                &self.path,
                format!("is not a whole .safetensors file ({e})"),
            )
        })
    }

    /// The file's free-form metadata.
    pub fn metadata(&self) -> Result<HashMap<String, String>, Error> {
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes)
            .map_err(|e| Error::file(&self.path, format!("has no readable header ({e})")))?;
        Ok(metadata.metadata().clone().unwrap_or_default())
    }

    /// The names of its tensors, sorted.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        let mut names: Vec<String> = self.parse()?.names().into_iter().map(Into::into).collect();
        names.sort();
        Ok(names)
    }

    /// One tensor.
    pub fn get(&self, name: &str) -> Result<TensorData, Error> {
        let tensors = self.parse()?;
        let view = tensors
            .tensor(name)
            .map_err(|_| Error::file(&self.path, format!("has no tensor `{name}`")))?;
        self.data(name, &view)
    }

    fn data(&self, name: &str, view: &TensorView<'_>) -> Result<TensorData, Error> {
        let dtype = from_safetensors(view.dtype())
            .map_err(|e| Error::file(&self.path, format!("tensor `{name}`: {e}")))?;
        Ok(TensorData::from_bytes_vec(
            view.data().to_vec(),
            view.shape().to_vec(),
            dtype,
        ))
    }

    /// Fills every float parameter of `module` with the tensor of its path.
    ///
    /// # Errors
    ///
    /// Names every parameter without a tensor, tensor without a parameter, and tensor of another shape.
    pub fn fill<B: Backend, M: Module<B>>(&self, module: M) -> Result<M, Error> {
        let tensors = self.parse()?;
        let mut fill = Fill {
            file: self,
            unexpected: tensors.names().into_iter().map(Into::into).collect(),
            tensors,
            path: Vec::new(),
            problems: Vec::new(),
        };
        let module = module.map(&mut fill);
        let unexpected = fill.unexpected.iter().map(|n| format!("unexpected `{n}`"));
        let problems: Vec<String> = fill.problems.into_iter().chain(unexpected).collect();
        if problems.is_empty() {
            return Ok(module);
        }
        let shown = 8;
        let more = match problems.len() {
            n if n > shown => format!("; and {} more", n - shown),
            _ => String::new(),
        };
        let list = problems[..problems.len().min(shown)].join("; ");
        Err(Error::file(
            &self.path,
            format!("does not fit the model: {list}{more}"),
        ))
    }
}

struct Fill<'a> {
    file: &'a Tensors,
    tensors: SafeTensors<'a>,
    path: Vec<String>,
    unexpected: BTreeSet<String>,
    problems: Vec<String>,
}

impl Fill<'_> {
    fn find(&mut self, name: &str, shape: &[usize]) -> Option<TensorData> {
        let Ok(view) = self.tensors.tensor(name) else {
            self.problems.push(format!("missing `{name}`"));
            return None;
        };
        self.unexpected.remove(name);
        if view.shape() != shape {
            let found = view.shape();
            self.problems.push(format!(
                "`{name}` is {found:?} where the model has {shape:?}"
            ));
            return None;
        }
        self.file
            .data(name, &view)
            .map_err(|e| self.problems.push(e.to_string()))
            .ok()
    }
}

impl<B: Backend> ModuleMapper<B> for Fill<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let current = param.val();
        let name = self.path.join(".");
        match self.find(&name, &current.dims()) {
            None => param,
            Some(data) => {
                let dtype = current.dtype();
                let data = data.convert_dtype(dtype);
                let tensor = Tensor::from_data(data, (&current.device(), dtype));
                let id = param.id;
                param.transform_for_load(tensor, id)
            }
        }
    }
}

fn to_safetensors(dtype: DType) -> Result<Dtype, String> {
    Ok(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
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
        other => {
            return Err(format!(
                "element type {other:?} is not one of F64, F32, F16, BF16, I64"
            ));
        }
    })
}
