use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use gradmem_kernels::reference::layers::sigma;
use gradmem_kernels::{
    Association, Bindings, Counting, LayerBackend, associative_read, associative_write, dpfp,
};

use super::{Affine, AffineConfig, Init};

/// The maps between a layer's hidden states and an associative memory (ARMT, arXiv 2407.04841).
///
/// Fields carry the reference implementation's names, in lower case.
#[derive(Module, Debug)]
pub struct Associative<B: Backend> {
    /// Queries: `[d_mem, d_model]`
    pub w_mq: Affine<B>,
    /// Keys: `[d_mem, d_model]`
    pub w_mk: Affine<B>,
    /// Values: `[d_model, d_model]`
    pub w_mv: Affine<B>,
    /// How much of a value is written: `[n_heads, d_model]`, or `[d_model, d_model]` with gating
    pub w_mb: Affine<B>,
    #[module(skip)]
    config: AssociativeConfig,
}

/// The sizes of an [`Associative`] and how its memory counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AssociativeConfig {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of queries and keys, all heads together.
    pub d_mem: usize,
    /// Heads; a divisor of `d_model` and `d_mem`.
    pub n_heads: usize,
    /// Order of the features, see [`dpfp`].
    pub order: usize,
    /// Whether each entry of a value has a gate of its own, or a head one for all.
    pub gating: bool,
    /// How the memory counts what is written.
    pub counting: Counting,
}

impl AssociativeConfig {
    /// Maps that write nothing yet: values are zero; the other weights are uniform up to `1 / √d_model`.
    pub fn init<B: Backend>(&self, init: &mut Init, device: &B::Device) -> Associative<B> {
        let d = self.d_model;
        let bound = 1.0 / (d as f64).sqrt();
        let gates = if self.gating { d } else { self.n_heads };
        let mut linear = |d_output| Affine::new(init.uniform([d_output, d], bound, device), None);
        let (w_mq, w_mk, w_mb) = (linear(self.d_mem), linear(self.d_mem), linear(gates));
        let bias = Some(init.uniform([gates], bound, device));
        Associative {
            w_mq,
            w_mk,
            w_mv: AffineConfig::new(d, d)
                .with_bias(false)
                .init(0.0, init, device),
            w_mb: Affine { bias, ..w_mb },
            config: *self,
        }
    }

    /// Rows and columns of one sample's `W`, the heads below one another: `[n_heads · features, d_model / n_heads]`.
    pub fn matrix_shape(&self) -> [usize; 2] {
        let features = 2 * self.d_mem * self.order;
        [features, self.d_model / self.n_heads]
    }
}

impl<B: Backend> Associative<B> {
    /// The sizes it was made with.
    pub fn config(&self) -> &AssociativeConfig {
        &self.config
    }

    /// `[batch, seq, n_heads · width]` → `[batch, n_heads, seq, width]`
    fn heads(&self, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let [batch, seq, width] = x.dims();
        let heads = self.config.n_heads;
        x.reshape([batch, seq, heads, width / heads])
            .swap_dims(1, 2)
    }
}

impl<B: LayerBackend> Associative<B> {
    /// What `memory` adds to hidden states.
    ///
    /// # Shapes
    ///
    /// - `x` and output: `[batch, seq, d_model]`
    pub fn read(&self, x: Tensor<B, 3>, memory: &Association<B>) -> Tensor<B, 3> {
        let queries = dpfp(self.heads(self.w_mq.forward(x)), self.config.order);
        associative_read(memory, queries)
            .swap_dims(1, 2)
            .flatten(2, 3)
    }

    /// `memory`, or an empty one, with these hidden states.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, count, d_model]`
    pub fn write(&self, x: Tensor<B, 3>, memory: Option<Association<B>>) -> Association<B> {
        let bindings = Bindings {
            keys: dpfp(self.heads(self.w_mk.forward(x.clone())), self.config.order),
            values: self.heads(self.w_mv.forward(x.clone())),
            gates: self.heads(sigma(self.w_mb.forward(x))),
        };
        associative_write(memory, bindings, self.config.counting)
    }
}
