//! A module's parameters from a file, under their paths.

use std::collections::BTreeSet;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Element, Tensor, TensorData};
use safetensors::tensor::Dtype;

use super::super::paths::{ModulePath, follows_path};
use super::{Tensors, absent_problem, first_non_finite};
use crate::error::Error;

impl Tensors {
    /// Fills every float parameter of `module` with the tensor of its path.
    ///
    /// # Errors
    ///
    /// Names every parameter without a tensor, tensor without a parameter, tensor of another shape, and
    /// tensor with a non-finite element.
    pub fn fill<B: Backend, M: Module<B>>(&self, module: M) -> Result<M, Error> {
        self.fill_some(module, |_| true)
    }

    /// [`Tensors::fill`] of the parameters that are `wanted`, and no others.
    pub(crate) fn fill_some<B: Backend, M: Module<B>>(
        &self,
        module: M,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<M, Error> {
        let name = |path: &str| wanted(path).then(|| path.to_string());
        self.fill_named(module, &name, &|_| false)
    }

    /// [`Tensors::fill`] of a file with other names: `name` maps a parameter's path to the tensor's name.
    /// Tensors without a parameter are no error if `ignored` returns true.
    ///
    /// # Errors
    ///
    /// As [`Tensors::fill`].
    pub fn fill_as<B: Backend, M: Module<B>>(
        &self,
        module: M,
        name: impl Fn(&str) -> String,
        ignored: impl Fn(&str) -> bool,
    ) -> Result<M, Error> {
        self.fill_named(module, &|path| Some(name(path)), &ignored)
    }

    /// [`Tensors::fill_as`] of the parameters that have a name.
    fn fill_named<B: Backend, M: Module<B>>(
        &self,
        module: M,
        name: &dyn Fn(&str) -> Option<String>,
        ignored: &dyn Fn(&str) -> bool,
    ) -> Result<M, Error> {
        let mut fill = Fill {
            file: self,
            name,
            unexpected: self.names().map(Into::into).collect(),
            path: ModulePath::default(),
            problems: Vec::new(),
        };
        let module = module.map(&mut fill);
        let unexpected = fill.unexpected.iter().filter(|name| !ignored(name));
        let unexpected = unexpected.map(|name| format!("unexpected `{name}`"));
        let absent = self.absent.iter().filter(|(name, _)| !ignored(name));
        let absent = absent.map(|(name, file)| absent_problem(name, file));
        let absent: Vec<_> = absent
            .filter(|problem| !fill.problems.contains(problem))
            .collect();
        let problems = fill.problems.into_iter().chain(unexpected).chain(absent);
        let problems: Vec<String> = problems.collect();
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
    name: &'a dyn Fn(&str) -> Option<String>,
    path: ModulePath,
    unexpected: BTreeSet<String>,
    problems: Vec<String>,
}

impl Fill<'_> {
    /// The tensor of this name, checked and converted to `dtype`.
    fn find(&mut self, name: &str, shape: &[usize], dtype: DType) -> Result<TensorData, String> {
        let entry = self.file.tensors.get(name);
        let entry = entry.ok_or_else(|| match self.file.absent.get(name) {
            Some(file) => absent_problem(name, file),
            None => format!("missing `{name}`"),
        })?;
        self.unexpected.remove(name);
        if entry.shape != shape {
            let found = &entry.shape;
            return Err(format!(
                "`{name}` is {found:?} where the model has {shape:?}"
            ));
        }
        if matches!(entry.dtype, Dtype::I64 | Dtype::I8) {
            let dtype = entry.dtype;
            return Err(format!(
                "`{name}` holds whole numbers ({dtype:?}), not weights"
            ));
        }
        let data = self
            .file
            .read(entry)
            .map_err(|e| format!("`{name}`: {e}"))?
            .convert_dtype(dtype);
        match first_non_finite(&data) {
            None => Ok(data),
            Some((at, value)) => Err(format!("`{name}` holds {value} (element {at})")),
        }
    }
}

impl<B: Backend> ModuleMapper<B> for Fill<'_> {
    follows_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(name) = (self.name)(&self.path.name()) else {
            return param;
        };
        // A parameter whose weights are not loaded yet must not be allocated with zeros first.
        let (shape, device) = (param.lazy_shape(), param.lazy_device());
        let dtype = match param.is_initialized() {
            true => param.val().dtype(),
            false => <B::FloatElem as Element>::dtype(),
        };
        match self.find(&name, &shape.to_vec(), dtype) {
            Err(problem) => {
                self.problems.push(problem);
                param
            }
            Ok(data) => {
                let tensor = Tensor::from_data(data, (&device, dtype));
                let id = param.id;
                param.transform_for_load(tensor, id)
            }
        }
    }
}
