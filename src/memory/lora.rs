//! Low-rank adapters of a model's matrices (LoRA, arXiv 2106.09685), on in WRITE and off in READ.
//!
//! An adapter adds `α/r · B A` to its matrix. WRITE reads many tokens with few matrices, so the sum is
//! taken once and the model runs as it is: any model can be adapted, and none needs to know.

// Fields are named as the checkpoints name their tensors.
#![allow(non_snake_case)]

use std::collections::BTreeSet;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::error::{Error, positive, sizes};
use crate::model::layers::Init;
use crate::model::paths::{ModulePath, follows_path, is_called};

/// Adapters of some of a model's matrices.
#[derive(Module, Debug)]
pub struct Lora<B: Backend> {
    adapters: Vec<Adapter<B>>,
    /// The adapted modules' paths in the model, in the order of the adapters.
    #[module(skip)]
    targets: Vec<String>,
    /// `α / r`
    #[module(skip)]
    scale: f64,
}

#[derive(Module, Debug)]
struct Adapter<B: Backend> {
    /// `[rank, d_input]`
    lora_A: Param<Tensor<B, 2>>,
    /// `[d_output, rank]`
    lora_B: Param<Tensor<B, 2>>,
}

/// A matrix of the model that can be adapted.
struct Matrix {
    /// The module's path, without `.weight`.
    path: String,
    d_output: usize,
    d_input: usize,
    is_embedding: bool,
}

impl Matrix {
    /// Whether it is in one of the model's repeated blocks.
    fn is_in_a_block(&self) -> bool {
        let mut parts = self.path.split('.');
        parts.any(|part| part.parse::<usize>().is_ok())
    }
}

impl<B: Backend> Lora<B> {
    /// Adapters for the matrices of all modules that are called one of `targets`, or, if there are none,
    /// for every matrix in the model's repeated blocks. They change nothing at first: A is drawn from
    /// ± 1/√d_input and B is zero.
    ///
    /// # Errors
    ///
    /// A rank or α that is not positive; a target that the model does not have.
    pub(super) fn new<M: Module<B>>(
        model: &M,
        rank: usize,
        alpha: f64,
        targets: &[String],
        init: &mut Init,
        device: &B::Device,
    ) -> Result<Self, Error> {
        sizes([("write_lora_rank", rank)])?;
        positive([("write_lora_alpha", alpha)])?;
        let (mut adapters, mut paths) = (Vec::new(), Vec::new());
        let matrices = matrices(model);
        let adaptable = |matrix: &&Matrix| !matrix.is_embedding;
        if let Some(unknown) = targets.iter().find(|target| {
            let mut found = matrices.iter().filter(adaptable);
            !found.any(|matrix| is_called(&matrix.path, target))
        }) {
            let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_string();
            let names = matrices.iter().filter(adaptable);
            let names: BTreeSet<_> = names.map(|matrix| last(&matrix.path)).collect();
            let names: Vec<_> = names.into_iter().collect();
            let problem = format!(
                "the model has no matrix of that name: it has {}",
                names.join(", ")
            );
            return Err(Error::config("write_lora_targets", unknown, problem));
        }
        for matrix in matrices.iter().filter(adaptable) {
            let chosen = match targets.is_empty() {
                true => matrix.is_in_a_block(),
                false => targets.iter().any(|target| is_called(&matrix.path, target)),
            };
            if !chosen {
                continue;
            }
            let bound = 1.0 / (matrix.d_input as f64).sqrt();
            adapters.push(Adapter {
                lora_A: init.uniform([rank, matrix.d_input], bound, device),
                lora_B: init.constant([matrix.d_output, rank], 0.0, device),
            });
            paths.push(matrix.path.clone());
        }
        if adapters.is_empty() {
            let problem = "the model has no repeated blocks: name the modules to adapt";
            return Err(Error::config("write_lora_targets", "[]", problem));
        }
        Ok(Self {
            adapters,
            targets: paths,
            scale: alpha / rank as f64,
        })
    }

    /// The adapted modules' paths in the model, in the order of the adapters.
    pub fn targets(&self) -> &[String] {
        &self.targets
    }

    /// The model with every adapter added to its matrix, on whatever tape they are on.
    pub(super) fn adapt<M: Module<B>>(
        &self,
        model: M,
        product: fn(Tensor<B, 2>, Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> M {
        model.map(&mut Adapt {
            lora: self,
            product,
            path: ModulePath::default(),
        })
    }
}

fn matrices<B: Backend, M: Module<B>>(model: &M) -> Vec<Matrix> {
    #[derive(Default)]
    struct Find {
        path: ModulePath,
        found: Vec<Matrix>,
    }
    impl<B: Backend> ModuleVisitor<B> for Find {
        follows_path!();
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let name = self.path.name();
            let shape = param.lazy_shape();
            if let Some(path) = name.strip_suffix(".weight")
                && D == 2
            {
                let (d_output, d_input) = match self.path.is_transposed() {
                    true => (shape[1], shape[0]),
                    false => (shape[0], shape[1]),
                };
                self.found.push(Matrix {
                    path: path.into(),
                    d_output,
                    d_input,
                    is_embedding: self.path.is_embedding(),
                });
            }
        }
    }
    let mut find = Find::default();
    model.visit(&mut find);
    find.found
}

struct Adapt<'a, B: Backend> {
    lora: &'a Lora<B>,
    product: fn(Tensor<B, 2>, Tensor<B, 2>) -> Tensor<B, 2>,
    path: ModulePath,
}

impl<B: Backend> ModuleMapper<B> for Adapt<'_, B> {
    follows_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let name = self.path.name();
        let mut targets = self.lora.targets.iter();
        let at = targets.position(|target| name.strip_suffix(".weight") == Some(target));
        let Some(adapter) = at.map(|at| &self.lora.adapters[at]) else {
            return param;
        };
        let change = (self.product)(adapter.lora_B.val(), adapter.lora_A.val());
        let change = match self.path.is_transposed() {
            true => change.transpose(),
            false => change,
        };
        let (id, weight, mapper) = param.consume();
        let change = change.mul_scalar(self.lora.scale).reshape(weight.shape());
        Param::from_mapped_value(id, weight + change, mapper)
    }
}
