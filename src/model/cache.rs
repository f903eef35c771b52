//! The cache of a model: what it keeps of the tokens it has read, so that later tokens need not read them again.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::CausalLm;
use super::rows::{repeat, select};

/// What a model keeps of a sequence: attention the keys and values, Mamba the inputs of its convolution and
/// its state. Clones of a cache can be continued independently.
#[derive(Clone, Debug)]
pub struct Cache<B: Backend> {
    len: usize,
    layers: Vec<LayerCache<B>>,
}

/// One layer's part: two tensors whose first dimension is the batch; `None` before the first token.
pub type LayerCache<B> = Option<[Tensor<B, 4>; 2]>;

/// Applies `forward` with each layer in turn, with the layer's part of `cache` if there is one.
///
/// # Shapes
///
/// - `x` and output: `[batch, seq, d_model]`
pub fn forward_layers<B: Backend, L>(
    layers: &[L],
    x: Tensor<B, 3>,
    mut cache: Option<&mut Cache<B>>,
    forward: impl Fn(&L, Tensor<B, 3>, Option<&mut LayerCache<B>>) -> Tensor<B, 3>,
) -> Tensor<B, 3> {
    let seq = x.dims()[1];
    let x = layers.iter().enumerate().fold(x, |x, (index, layer)| {
        let part = cache.as_deref_mut().map(|cache| cache.layer(index));
        forward(layer, x, part)
    });
    if let Some(cache) = cache {
        cache.advance(seq);
    }
    x
}

impl<B: Backend> Default for Cache<B> {
    fn default() -> Self {
        Self {
            len: 0,
            layers: Vec::new(),
        }
    }
}

impl<B: Backend> Cache<B> {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of positions read so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been read yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of all its tensors.
    pub fn bytes(&self) -> usize {
        let tensors = self.layers.iter().flatten().flatten();
        tensors
            .map(|x| x.shape().num_elements() * x.dtype().size())
            .sum()
    }

    /// The part of layer `index`, for models to read and replace.
    pub fn layer(&mut self, index: usize) -> &mut LayerCache<B> {
        if self.layers.len() <= index {
            self.layers.resize_with(index + 1, || None);
        }
        &mut self.layers[index]
    }

    /// Counts `seq` more positions. A model calls it once all its layers have read them.
    pub fn advance(&mut self, seq: usize) {
        self.len += seq;
    }

    /// The samples at these indices, in this order; an index may occur several times.
    ///
    /// # Panics
    ///
    /// If an index is not below the batch size.
    pub fn select(&self, samples: &[usize]) -> Self {
        self.map(|x| select(x, samples))
    }

    /// Each sample `times` times in a row.
    pub fn repeat(&self, times: usize) -> Self {
        self.map(|x| repeat(x, times))
    }

    fn map(&self, f: impl Fn(Tensor<B, 4>) -> Tensor<B, 4>) -> Self {
        let layers = self.layers.iter().cloned();
        Self {
            len: self.len,
            layers: layers.map(|layer| layer.map(|pair| pair.map(&f))).collect(),
        }
    }
}

/// The bytes of `model`'s cache as a function of the number of tokens, for comparison with a memory's. They are
/// measured with one token and with two, and extended linearly.
pub fn cache_bytes<B: Backend, M: CausalLm<B>>(model: &M) -> impl Fn(usize) -> usize + use<B, M> {
    let device = model.head().device();
    let [one, two] = [1, 2].map(|seq| {
        let mut cache = Cache::new();
        model.hidden_after(
            Tensor::zeros([1, seq, model.d_model()], &device),
            &mut cache,
        );
        cache.bytes()
    });
    move |tokens| one + two.saturating_sub(one) * tokens.saturating_sub(1)
}
