//! Another implementation's numbers, compared with ours: a folder holds a model, a batch and the expected
//! results, gradients included.
//!
//! | file | holds |
//! |---|---|
//! | `config.json` | `model_type` `grad_memgpt`, `rmt_2segm` or `armt` with the language model under `base_config`, or a plain language model's |
//! | `model.safetensors` | the parameters |
//! | `batch.safetensors` | `context_input_ids`, `query_input_ids`, `labels`; of a plain model `input_ids`, `labels` |
//! | `expected.safetensors` | `loss`, `logits`, `memory` or `memory.…`, `stats.…`, and `grad.…` for each parameter that has one |

mod cases;

use std::path::Path;

use burn::backend::Autodiff;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Tensor, TensorData};
use gradmem_kernels::KernelBackend;

use crate::error::Error;
use crate::interop::checkpoint;
use crate::memory::MetaGradient;
use crate::method::AnyMethod;
use crate::model::paths::{ModulePath, follows_path};
use crate::model::weights::Tensors;
use cases::{Batch, Computed, UNCOMPARED, armt_case, gradmem_case, plain_case, rmt_case};

/// One compared tensor.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Row {
    /// Its name in `expected.safetensors`.
    pub tensor: String,
    /// `max |a − b| / max(10⁻³, max |b|)`; infinite where they have not as many elements, a number is non-finite
    /// or there is no such tensor here.
    pub error: f64,
}

/// What [`compare`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// A row for each expected tensor, and for each gradient that was not expected.
    pub rows: Vec<Row>,
    /// The numbers that were compared, as [`compute`] gives them.
    pub computed: Vec<(String, TensorData)>,
}

impl Report {
    /// The largest error of all.
    pub fn worst(&self) -> f64 {
        self.rows.iter().map(|row| row.error).fold(0.0, f64::max)
    }
}

/// Computes the case in `folder` on backend `B` and compares every expected tensor.
///
/// # Errors
///
/// If a file is missing, is not what it should be, or asks for something this crate does not have.
pub fn compare<B: KernelBackend>(
    folder: impl AsRef<Path>,
    strategy: MetaGradient,
    device: &B::Device,
) -> Result<Report, Error> {
    let folder = folder.as_ref();
    let expected = Tensors::open(folder.join("expected.safetensors"))?;
    report(&expected, compute::<B>(folder, strategy, device)?)
}

/// The numbers of the case in `folder` on backend `B`, each with its name in the table above; what is
/// expected need not be there.
///
/// # Errors
///
/// As [`compare`].
pub fn compute<B: KernelBackend>(
    folder: impl AsRef<Path>,
    strategy: MetaGradient,
    device: &B::Device,
) -> Result<Vec<(String, TensorData)>, Error> {
    let folder = folder.as_ref();
    let batch = Batch::<Autodiff<B>>::open(folder, device)?;
    let method = checkpoint::load::<Autodiff<B>>(folder, device)?;
    let (mut computed, gradients) = match &method {
        AnyMethod::GradMem(gradmem) => gradmem_case(gradmem, strategy, &batch)?,
        AnyMethod::Rmt(rmt) => rmt_case(rmt, &batch)?,
        AnyMethod::Armt(armt) => armt_case(armt, &batch)?,
        AnyMethod::InContext(plain) => plain_case(&plain.model, &batch)?,
    };
    collect_gradients(&method, &gradients, &mut computed);
    Ok(computed)
}

/// Adds the gradient of every parameter that has one, under the reference's name.
fn collect_gradients<B: KernelBackend + AutodiffBackend>(
    method: &AnyMethod<B>,
    gradients: &GradientsParams,
    computed: &mut Computed,
) where
    B::InnerBackend: KernelBackend,
{
    struct Collect<'a> {
        gradients: &'a GradientsParams,
        name: &'a dyn Fn(&str) -> String,
        path: ModulePath,
        computed: &'a mut Computed,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Collect<'_> {
        follows_path!();
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if let Some(gradient) = self.gradients.get::<B::InnerBackend, D>(param.id) {
                let name = format!("grad.{}", (self.name)(&self.path.name()));
                self.computed.push((name, gradient.to_data()));
            }
        }
    }
    method.visit(&mut Collect {
        gradients,
        name: &checkpoint::name(method),
        path: ModulePath::default(),
        computed,
    });
}

fn report(expected: &Tensors, computed: Computed) -> Result<Report, Error> {
    let names: Vec<String> = expected.names().map(String::from).collect();
    let mut rows = Vec::new();
    for name in &names {
        let found = computed.iter().find(|(found, _)| found == name);
        let error = match found {
            Some((_, found)) => relative_error(found, &expected.get(name)?),
            None => f64::INFINITY,
        };
        rows.push(Row {
            tensor: name.clone(),
            error,
        });
    }
    // A gradient that should not be there is as wrong as one that is missing, unless it is zero.
    for (name, data) in &computed {
        if name.starts_with("grad.") && !names.contains(name) {
            let is_zero = data.iter::<f64>().all(|x| x == 0.0);
            rows.push(Row {
                tensor: format!("{name} (not expected)"),
                error: if is_zero { 0.0 } else { f64::INFINITY },
            });
        }
    }
    Ok(Report { rows, computed })
}

fn relative_error(found: &TensorData, expected: &TensorData) -> f64 {
    if found.shape.num_elements() != expected.shape.num_elements() {
        return f64::INFINITY;
    }
    let mut largest = 1e-3;
    let mut difference = 0f64;
    for (a, b) in found.iter::<f64>().zip(expected.iter::<f64>()) {
        if a == UNCOMPARED {
            continue;
        }
        if !a.is_finite() || !b.is_finite() {
            return f64::INFINITY;
        }
        difference = difference.max((a - b).abs());
        largest = f64::max(largest, b.abs());
    }
    difference / largest
}
