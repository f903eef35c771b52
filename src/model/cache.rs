//! The cache of a model: what it keeps of the tokens it has read, so that later tokens need not read them again, and
//! what a memory puts there: keys and values, adapters of the model's modules, or an associative memory of each layer.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use gradmem_kernels::{Association, LayerBackend, last_rows, product};

use super::CausalLm;
use super::layers::Associative;
use super::paths::is_called;
use super::rows::{indices, repeat, select};

/// What a model keeps of a sequence: attention the keys and values, Mamba the inputs of its convolution and
/// its state. Clones of a cache can be continued independently.
#[derive(Clone, Debug, Default)]
pub struct Cache<B: Backend> {
    len: usize,
    layers: Vec<LayerCache<B>>,
}

/// One layer's part of a [`Cache`].
#[derive(Clone, Debug, Default)]
pub struct LayerCache<B: Backend> {
    /// What the layer keeps of what it has read: two tensors whose first dimension is the batch; `None` before the
    /// first token.
    pub kept: Option<[Tensor<B, 4>; 2]>,
    adapters: Vec<(String, Adapter<B>)>,
    associative: Option<(Associative<B>, Option<Association<B>>)>,
    memory_rows: Option<MemoryRows<B>>,
}

/// A low-rank map that is added to what a module computes, for each sample its own: `x A B`.
#[derive(Clone, Debug)]
pub struct Adapter<B: Backend> {
    /// `[batch, d_input, rank]`
    pub a: Tensor<B, 3>,
    /// `[batch, rank, d_output]`, with its scale
    pub b: Tensor<B, 3>,
}

/// Where memory vectors stand in the sequences of one pass: in each sample as many, in a row, behind all of its tokens.
/// [`forward_layers`] writes what a layer makes of them into the layer's associative memory.
#[derive(Clone, Debug)]
pub struct MemoryRows<B: Backend> {
    count: usize,
    /// Their indices among the rows of all samples: `[batch · count]`
    at: Tensor<B, 1, Int>,
    sight: Option<Sight<B>>,
}

/// What memory vectors look at, where that is not all that stands before them.
#[derive(Clone, Debug)]
pub(crate) struct Sight<B: Backend> {
    /// Added to attention's scores, 0 or about −∞: `[batch, count, seq]`
    hidden: Tensor<B, 3>,
    /// For each row of all samples, its index among these rows with those of the memory vectors behind them:
    /// `[batch · seq]`
    order: Tensor<B, 1, Int>,
}

/// The name of an adapter of a whole layer: from the hidden states behind it to what is added to them.
pub const WHOLE_LAYER: &str = "";

/// Where a memory can be in the layers of a model, beside in front of the tokens. By default nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Slots {
    /// Number of layers, if [`forward_layers`] runs them.
    pub layers: usize,
    /// Heads of keys and values and the width of one head, if attention continues those in a [`Cache`] and
    /// [`MemoryRows`] look at what they say; [`attend`](super::layers::attend) does both.
    pub keys_values: Option<[usize; 2]>,
    /// The modules of each layer that add their [adapters](adapted).
    pub modules: Vec<ModuleSlot>,
    /// Values of each layer's state, if a scan makes one for every token: no place for a memory, but they count in what a step takes.
    pub state: usize,
}

/// Tensors of a state for each token that a scan keeps: decays, inputs and states.
const SCANNED: usize = 3;

/// A linear module of every layer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModuleSlot {
    /// Its path in the layer, such as `self_attn.q_proj`.
    pub name: &'static str,
    /// Width of its input.
    pub d_input: usize,
    /// Width of its output.
    pub d_output: usize,
}

impl Slots {
    /// So many layers, with adapters between them.
    pub fn of_layers(layers: usize) -> Self {
        Self {
            layers,
            ..Self::default()
        }
    }

    /// With keys and values of so many heads of this width.
    pub fn with_keys_values(mut self, heads: usize, head_dim: usize) -> Self {
        self.keys_values = Some([heads, head_dim]);
        self
    }

    /// With adapters of these modules: path in the layer, width of the input and of the output.
    pub fn with_modules(
        mut self,
        modules: impl IntoIterator<Item = (&'static str, usize, usize)>,
    ) -> Self {
        let slot = |(name, d_input, d_output)| ModuleSlot {
            name,
            d_input,
            d_output,
        };
        self.modules = modules.into_iter().map(slot).collect();
        self
    }

    /// With a state of so many values for every token, which a scan makes.
    pub fn with_state(mut self, values: usize) -> Self {
        self.state = values;
        self
    }

    /// Values of the states of all layers that a scan keeps for each token.
    pub(super) fn states(&self) -> f64 {
        (SCANNED * self.layers * self.state) as f64
    }

    /// The weights of the modules of all layers.
    pub(crate) fn weights(&self) -> f64 {
        let modules = self.modules.iter();
        let layer: f64 = modules.map(|m| m.d_input as f64 * m.d_output as f64).sum();
        self.layers as f64 * layer
    }
}

/// Applies `forward` with each layer in turn, with the layer's part of `cache` if there is one. What the layer's
/// associative memory answers is added before, what the layer's own adapter makes of it behind; then the pass's
/// [`MemoryRows`] are written.
///
/// `forward` is told how many of the last rows are read of what it returns: all of them, except in the last layer, which may leave out
/// the others. `rows` is at least 1.
///
/// # Shapes
///
/// - `x`: `[batch, seq, d_model]`
/// - output: the last `rows` of them, or all where these are fewer: `[batch, min(rows, seq), d_model]`
pub fn forward_layers<B: LayerBackend, L>(
    layers: &[L],
    x: Tensor<B, 3>,
    rows: usize,
    mut cache: Option<&mut Cache<B>>,
    forward: impl Fn(&L, Tensor<B, 3>, usize, Option<&mut LayerCache<B>>) -> Tensor<B, 3>,
) -> Tensor<B, 3> {
    let seq = x.dims()[1];
    let x = layers.iter().enumerate().fold(x, |x, (index, layer)| {
        let read = match index + 1 == layers.len() {
            true => rows.min(seq),
            false => seq,
        };
        let Some(past) = cache.as_deref_mut().map(|cache| cache.layer(index)) else {
            return forward(layer, x, read, None);
        };
        // Memory vectors are written from what becomes of them here.
        let read = past.memory_rows().map_or(read, |_| seq);
        let x = past.recalled(x);
        let x = forward(layer, x, read, Some(past));
        let x = adapted(Some(past), WHOLE_LAYER, x, |x| x);
        past.memorize(&x);
        x
    });
    if let Some(cache) = cache {
        cache.advance(seq);
    }
    last_rows(x, rows)
}

/// What a module computes, with what the memory's adapter of it adds, if there is one. `module` is the module's path in
/// the layer or the end of it.
///
/// # Shapes
///
/// - `x`: `[batch, seq, d_input]`
/// - output: `[batch, seq, d_output]`
pub fn adapted<B: LayerBackend>(
    past: Option<&LayerCache<B>>,
    module: &str,
    x: Tensor<B, 3>,
    forward: impl FnOnce(Tensor<B, 3>) -> Tensor<B, 3>,
) -> Tensor<B, 3> {
    match past.and_then(|past| past.adapter(module)) {
        None => forward(x),
        Some(Adapter { a, b }) => {
            let change = product(product(x.clone(), a.clone()), b.clone());
            forward(x) + change
        }
    }
}

/// Whether the memory has an adapter of one of these modules.
pub(crate) fn has_adapters<B: Backend, const N: usize>(
    past: Option<&LayerCache<B>>,
    modules: [&str; N],
) -> bool {
    let has = |module| past.is_some_and(|past| past.adapter(module).is_some());
    modules.into_iter().any(has)
}

impl<B: LayerBackend> LayerCache<B> {
    /// `x` with what the associative memory adds to it, if something is written there.
    fn recalled(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match &self.associative {
            Some((maps, Some(written))) => x.clone() + maps.read(x, written),
            _ => x,
        }
    }

    /// Writes the memory vectors' rows of `x`, if the pass has any.
    fn memorize(&mut self, x: &Tensor<B, 3>) {
        if let (Some((maps, written)), Some(rows)) = (&mut self.associative, &self.memory_rows) {
            *written = Some(maps.write(rows.of(x.clone()), written.take()));
        }
    }
}

impl<B: Backend> LayerCache<B> {
    /// Gives the layer an associative memory, with what is `written` there.
    pub fn associate(&mut self, maps: Associative<B>, written: Option<Association<B>>) {
        self.associative = Some((maps, written));
    }

    /// What is written in the layer's associative memory.
    pub fn association(&self) -> Option<&Association<B>> {
        self.associative.as_ref()?.1.as_ref()
    }

    /// Says where memory vectors stand in the sequences of the next pass, which must be the cache's first.
    pub fn write_from(&mut self, rows: MemoryRows<B>) {
        self.memory_rows = Some(rows);
    }

    pub(crate) fn memory_rows(&self) -> Option<&MemoryRows<B>> {
        self.memory_rows.as_ref()
    }

    /// Adds an adapter of the module of this name, or of the [whole layer](WHOLE_LAYER).
    pub fn adapt(&mut self, module: impl Into<String>, adapter: Adapter<B>) {
        self.adapters.push((module.into(), adapter));
    }

    fn adapter(&self, module: &str) -> Option<&Adapter<B>> {
        let mut adapters = self.adapters.iter();
        adapters
            .find(|(name, _)| is_called(name, module))
            .map(|(_, adapter)| adapter)
    }

    fn map(self, f: &impl Map<B>) -> Self {
        let adapters = self.adapters.into_iter();
        let adapters = adapters.map(|(name, Adapter { a, b })| {
            let [a, b] = [a, b].map(|x| f.map(x));
            (name, Adapter { a, b })
        });
        let associative = self.associative.map(|(maps, written)| {
            let written = written.map(|written| Association {
                matrix: f.map(written.matrix),
                normalizer: written.normalizer.map(|x| f.map(x)),
            });
            (maps, written)
        });
        Self {
            kept: self.kept.map(|pair| pair.map(|x| f.map(x))),
            adapters: adapters.collect(),
            associative,
            // They belong to one pass.
            memory_rows: None,
        }
    }

    fn bytes(&self) -> usize {
        fn of<B: Backend, const D: usize>(x: &Tensor<B, D>) -> usize {
            x.shape().num_elements() * x.dtype().size()
        }
        let kept: usize = self.kept.iter().flatten().map(of).sum();
        let written = self.association().map_or(0, |written| {
            of(&written.matrix) + written.normalizer.as_ref().map_or(0, of)
        });
        kept + written
    }
}

impl<B: Backend> MemoryRows<B> {
    /// `count` vectors in each sample, from row `starts` of it on, in sequences of `seq` rows.
    ///
    /// # Panics
    ///
    /// If rows are beyond the sequences.
    pub fn new(starts: &[usize], count: usize, seq: usize, device: &B::Device) -> Self {
        let fits = starts.iter().all(|start| start + count <= seq);
        assert!(
            fits,
            "{count} memory vectors from {starts:?} on do not fit into {seq} rows"
        );
        let at = starts.iter().enumerate();
        let at = at.flat_map(|(sample, start)| sample * seq + start..sample * seq + start + count);
        Self {
            count,
            at: indices(at, device),
            sight: None,
        }
    }

    /// Lets these vectors look at each sample's first tokens, so many, and at one another, both ways or only back.
    /// Otherwise attention is causal for them as for all.
    ///
    /// # Panics
    ///
    /// If `tokens` are of another number of samples than `starts`, which must be those of [`MemoryRows::new`].
    pub fn looking_at(
        mut self,
        tokens: &[usize],
        both_ways: bool,
        starts: &[usize],
        seq: usize,
    ) -> Self {
        assert_eq!(tokens.len(), starts.len(), "samples of memory vectors");
        let (count, device) = (self.count, self.at.device());
        let samples = || tokens.iter().zip(starts);
        let hidden = samples().flat_map(|(tokens, start)| {
            (0..count).flat_map(move |row| {
                let last = if both_ways { count } else { row + 1 };
                let own = *start..start + last;
                (0..seq).map(move |at| match at < *tokens || own.contains(&at) {
                    true => 0.0,
                    // Finite, because WGSL has no literal for −∞.
                    false => -1e30,
                })
            })
        });
        let hidden = TensorData::new(hidden.collect::<Vec<f64>>(), [starts.len(), count, seq]);
        let mut order: Vec<usize> = (0..starts.len() * seq).collect();
        for (sample, start) in starts.iter().enumerate() {
            for row in 0..count {
                order[sample * seq + start + row] = starts.len() * seq + sample * count + row;
            }
        }
        self.sight = Some(Sight {
            hidden: Tensor::from_data(hidden, &device),
            order: indices(order, &device),
        });
        self
    }

    /// These rows of `x` `[batch, seq, d]`: `[batch, count, d]`.
    pub(crate) fn of(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, seq, d] = x.dims();
        let rows = x.reshape([batch * seq, d]).select(0, self.at.clone());
        rows.reshape([batch, self.count, d])
    }

    pub(crate) fn sight(&self) -> Option<&Sight<B>> {
        self.sight.as_ref()
    }
}

impl<B: Backend> Sight<B> {
    /// What is added to the scores of so many heads, one below the other: `[batch, heads · count, seq]`.
    pub(crate) fn hidden(&self, heads: usize) -> Tensor<B, 3> {
        self.hidden.clone().repeat_dim(1, heads)
    }

    /// `x` `[batch, seq, d]` with the memory vectors' rows replaced by `own` `[batch, count, d]`.
    pub(crate) fn replaced(&self, x: Tensor<B, 3>, own: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, seq, d] = x.dims();
        let count = own.dims()[1];
        let (x, own) = (x.reshape([batch * seq, d]), own.reshape([batch * count, d]));
        let all = Tensor::cat(vec![x, own], 0);
        all.select(0, self.order.clone()).reshape([batch, seq, d])
    }
}

/// Something done to the rows of tensors of any rank.
trait Map<B: Backend> {
    fn map<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D>;
}

struct Select<'a>(&'a [usize]);

impl<B: Backend> Map<B> for Select<'_> {
    fn map<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        select(x, self.0)
    }
}

struct Repeat(usize);

impl<B: Backend> Map<B> for Repeat {
    fn map<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        repeat(x, self.0)
    }
}

impl<B: Backend> Cache<B> {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// A cache of `len` positions: what is read next stands at position `len`. Its layers have what is put into them.
    pub fn of_positions(len: usize) -> Self {
        Self {
            len,
            ..Self::default()
        }
    }

    /// Number of positions read so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been read yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of what it keeps of what was read or written.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::bytes).sum()
    }

    /// The part of layer `index`, for models to read and replace.
    pub fn layer(&mut self, index: usize) -> &mut LayerCache<B> {
        if self.layers.len() <= index {
            self.layers.resize_with(index + 1, LayerCache::default);
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
        self.map(&Select(samples))
    }

    /// Each sample `times` times in a row.
    pub fn repeat(&self, times: usize) -> Self {
        self.map(&Repeat(times))
    }

    fn map(&self, f: &impl Map<B>) -> Self {
        let layers = self.layers.iter().cloned();
        Self {
            len: self.len,
            layers: layers.map(|layer| layer.map(f)).collect(),
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
