use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use gradmem_kernels::{KernelBackend, causal_attention, last_rows, product, split_heads};

use super::joined::Joined;
use super::{Affine, AffineConfig, Init, Rotary};
use crate::model::cache::{LayerCache, MemoryRows, Sight, adapted, has_adapters};

/// Causal self-attention with rotary positions and grouped-query heads.
#[derive(Module, Debug)]
pub struct SelfAttention<B: Backend> {
    /// `[n_heads · head_dim, d_model]`
    pub q_proj: Affine<B>,
    /// `[n_kv_heads · head_dim, d_model]`
    pub k_proj: Affine<B>,
    /// `[n_kv_heads · head_dim, d_model]`
    pub v_proj: Affine<B>,
    /// `[d_model, n_heads · head_dim]`
    pub o_proj: Affine<B>,
    /// The first three as one; see [`SelfAttention::joined`].
    qkv: Option<Joined<B>>,
    #[module(skip)]
    head_dim: usize,
}

/// The sizes of a [`SelfAttention`].
#[derive(Clone, Copy, Debug)]
pub struct SelfAttentionConfig {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; a divisor of `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Whether the projections have biases.
    pub bias: bool,
}

impl SelfAttentionConfig {
    /// Weights from N(0, `std`²).
    pub fn init<B: Backend>(
        &self,
        std: f64,
        init: &mut Init,
        device: &B::Device,
    ) -> SelfAttention<B> {
        let mut linear = |d_input, d_output| {
            let config = AffineConfig::new(d_input, d_output).with_bias(self.bias);
            config.init(std, init, device)
        };
        let (d_q, d_kv) = (
            self.n_heads * self.head_dim,
            self.n_kv_heads * self.head_dim,
        );
        SelfAttention {
            q_proj: linear(self.d_model, d_q),
            k_proj: linear(self.d_model, d_kv),
            v_proj: linear(self.d_model, d_kv),
            o_proj: linear(d_q, self.d_model),
            qkv: None,
            head_dim: self.head_dim,
        }
    }
}

impl<B: KernelBackend> SelfAttention<B> {
    /// The same with q, k and v as one product, of the weights as they are now, unless these are large.
    pub fn joined(mut self) -> Self {
        if self.qkv.is_none() {
            self.qkv = Joined::of(&[&self.q_proj, &self.k_proj, &self.v_proj]);
        }
        self
    }

    /// What it computes of `x`, added to `residual`: for the last rows alone, as many as the residual has.
    ///
    /// # Shapes
    ///
    /// - `residual` and output: `[batch, rows, d_model]`, where `rows` is at most `seq`
    /// - `x`: `[batch, seq, d_model]`
    /// - `rotary`: for the positions of these `seq` tokens
    /// - `cache`: keys and values of the tokens before these, if they are kept, and adapters of the projections
    pub fn add_to(
        &self,
        residual: Tensor<B, 3>,
        x: Tensor<B, 3>,
        rotary: &Rotary<B>,
        mut cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let past = cache.as_deref();
        let [batch, seq, _] = x.dims();
        let apart = |x: Tensor<B, 3>| {
            let project = |name, map: &Affine<B>| {
                let y = adapted(past, name, x.clone(), |x| map.forward(x));
                let n_heads = y.dims()[2] / self.head_dim;
                y.reshape([batch, seq, n_heads, self.head_dim])
            };
            let q = rotary.apply(project("q_proj", &self.q_proj));
            let k = rotary.apply(project("k_proj", &self.k_proj));
            [q, k, project("v_proj", &self.v_proj)]
        };
        let [q, k, v] = match &self.qkv {
            Some(qkv) if !has_adapters(past, ["q_proj", "k_proj", "v_proj"]) => {
                let heads = [&self.q_proj, &self.k_proj];
                let heads = heads.map(|map| map.weight.lazy_shape()[0] / self.head_dim);
                split_heads(qkv.forward(x), Some(rotary.tables()), heads)
            }
            _ => apart(x),
        };
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let q = last_rows(q, residual.dims()[1]);
        let y = attend(q, k, v, scale, cache.as_deref_mut());
        adapted(cache.as_deref(), "o_proj", y, |y| {
            self.o_proj.add_to(residual, y)
        })
    }
}

/// Causal attention of tokens to each other and to those in the cache; memory vectors look at what the cache says.
///
/// # Shapes
///
/// - `q`: `[batch, rows, n_heads, head_dim]`, of the last `rows` tokens; of all where the cache has memory vectors' rows
/// - `k`, `v`: `[batch, seq, n_kv_heads, head_dim]`; they are added to the cache, if there is one
/// - output: `[batch, rows, n_heads · head_dim]`
pub fn attend<B: KernelBackend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    scale: f64,
    cache: Option<&mut LayerCache<B>>,
) -> Tensor<B, 3> {
    let (mut k, mut v) = (k, v);
    let mut rows = None;
    if let Some(cache) = cache {
        rows = cache.memory_rows().cloned();
        if let Some([old_k, old_v]) = cache.kept.take() {
            k = Tensor::cat(vec![old_k, k], 1);
            v = Tensor::cat(vec![old_v, v], 1);
        }
        cache.kept = Some([k.clone(), v.clone()]);
    }
    let own = rows.as_ref().and_then(|rows| {
        let sight = rows.sight()?;
        let own = attend_in_sight(q.clone(), k.clone(), v.clone(), scale, rows, sight);
        Some((sight, own))
    });
    let [q, k, v] = [q, k, v].map(|x| x.swap_dims(1, 2));
    let out = causal_attention(q, k, v, scale);
    let out = out.swap_dims(1, 2).flatten(2, 3);
    match own {
        None => out,
        Some((sight, own)) => sight.replaced(out, own),
    }
}

/// Attention of the memory vectors to what they look at. They are few, so their scores are kept.
///
/// # Shapes
///
/// - `q`: `[batch, seq, n_heads, head_dim]`
/// - `k`, `v`: `[batch, seq, n_kv_heads, head_dim]`
/// - output: `[batch, count, n_heads · head_dim]`
fn attend_in_sight<B: KernelBackend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    scale: f64,
    rows: &MemoryRows<B>,
    sight: &Sight<B>,
) -> Tensor<B, 3> {
    let ([batch, _, n_heads, head_dim], [_, seq, n_kv_heads, _]) = (q.dims(), k.dims());
    let q = rows.of(q.flatten(2, 3));
    let count = q.dims()[1];
    let q = q.reshape([batch, count, n_heads, head_dim]).swap_dims(1, 2);
    // The query heads that share a key/value head are rows of one matrix.
    let stacked = n_heads / n_kv_heads * count;
    let q = q.reshape([batch * n_kv_heads, stacked, head_dim]);
    let [k, v] = [k, v].map(|x| {
        let x = x.swap_dims(1, 2);
        x.reshape([batch * n_kv_heads, seq, head_dim])
    });
    let scores = product(q, k.swap_dims(1, 2)).mul_scalar(scale);
    let scores = scores.reshape([batch, n_heads * count, seq]) + sight.hidden(n_heads);
    let weights = softmax(scores, 2).reshape([batch * n_kv_heads, stacked, seq]);
    let out = product(weights, v).reshape([batch, n_heads, count, head_dim]);
    out.swap_dims(1, 2).flatten(2, 3)
}
