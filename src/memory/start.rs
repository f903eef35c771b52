//! Where WRITE starts, for each kind of memory, and what maps it to the model: what the outer loop trains beside the model.

// Fields are named as the checkpoints name their tensors.
#![allow(non_snake_case)]

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::kinds::{
    Adapters, Attach, KeysValues, Layout, Place, Prefix, check_room, control_tokens,
};
use super::places::{chosen_layers, keys_values, lora_places};
use super::{GradMemConfig, MemProj, MemoryKind, MemoryStart};
use crate::error::Error;
use crate::model::layers::{Affine, Init};
use crate::model::{CausalLm, Slots};

/// The learned start of a kind of memory.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // A GradMem has one.
#[non_exhaustive]
pub enum Start<B: Backend> {
    /// Of vectors in front of the tokens.
    Prefix(PrefixStart<B>),
    /// Of low-rank maps.
    Lora(LoraStart<B>),
    /// Of keys and values.
    Kv(KvStart<B>),
}

/// M0 of a prefix.
#[derive(Module, Debug)]
pub struct PrefixStart<B: Backend> {
    /// M0: `[memory_tokens, d_model]`
    pub mem: Param<Tensor<B, 2>>,
    /// The map between memory and model, or where every sample's own starts.
    pub mem_proj: Option<Affine<B>>,
    /// Before the memory in WRITE: `[ctrl_tokens, d_model]`.
    pub write_st: Option<Param<Tensor<B, 2>>>,
    /// Behind the memory in WRITE.
    pub write_end: Option<Param<Tensor<B, 2>>>,
    /// Before the memory in READ.
    pub read_st: Option<Param<Tensor<B, 2>>>,
    /// Behind the memory in READ.
    pub read_end: Option<Param<Tensor<B, 2>>>,
    /// Whether every sample has its own map.
    #[module(skip)]
    own_projection: bool,
}

/// The maps that every sample's own start as.
#[derive(Module, Debug)]
pub struct LoraStart<B: Backend> {
    /// `[d_input, rank]` at each place.
    pub lora_mem_A0: Vec<Param<Tensor<B, 2>>>,
    /// `[rank, d_output]` at each place.
    pub lora_mem_B0: Vec<Param<Tensor<B, 2>>>,
    #[module(skip)]
    places: Vec<Place>,
    #[module(skip)]
    scale: f64,
}

/// The keys and values that every sample's own start as.
#[derive(Module, Debug)]
pub struct KvStart<B: Backend> {
    /// `[heads, memory_tokens, head_dim]` for each layer.
    pub kv_mem_K0: Vec<Param<Tensor<B, 3>>>,
    /// The same of the values.
    pub kv_mem_V0: Vec<Param<Tensor<B, 3>>>,
    /// Maps from the keys of each layer to the model, the same for all heads; none without a projection.
    pub mem_proj_K_l: Vec<Affine<B>>,
    /// The same of the values.
    pub mem_proj_V_l: Vec<Affine<B>>,
    #[module(skip)]
    layers: Vec<usize>,
}

impl<B: Backend> Start<B> {
    pub(super) fn new<M: CausalLm<B>>(
        config: &GradMemConfig,
        model: &M,
        init: &mut Init,
        device: &B::Device,
    ) -> Result<Self, Error> {
        check_room(model, "memory_tokens", config.prefix_len())?;
        Ok(match config.kind {
            MemoryKind::Prefix => Self::Prefix(PrefixStart::new(config, model, init, device)),
            MemoryKind::Lora => Self::Lora(LoraStart::new(config, model, init, device)?),
            MemoryKind::Kv => Self::Kv(KvStart::new(config, &model.slots(), init, device)?),
        })
    }

    /// The memory as WRITE attaches it.
    pub(super) fn in_write<M: CausalLm<B>>(&self) -> Box<dyn Attach<B, M> + '_> {
        match self {
            Self::Prefix(start) => Box::new(start.prefix(&start.write_st, &start.write_end)),
            _ => self.in_read(),
        }
    }

    /// The memory as READ attaches it.
    pub(super) fn in_read<M: CausalLm<B>>(&self) -> Box<dyn Attach<B, M> + '_> {
        match self {
            Self::Prefix(start) => Box::new(start.prefix(&start.read_st, &start.read_end)),
            Self::Lora(start) => Box::new(Adapters {
                places: &start.places,
                scale: start.scale,
            }),
            Self::Kv(start) => Box::new(start.keys_values()),
        }
    }

    /// M_0, one matrix for each that WRITE changes.
    fn matrices(&self) -> Vec<Tensor<B, 2>> {
        match self {
            Self::Prefix(start) => {
                let own = start.mem_proj.as_ref().filter(|_| start.own_projection);
                let own = own.map(|map| {
                    let bias = map.bias.as_ref().map(|bias| bias.val().unsqueeze());
                    [Some(map.weight.val()), bias]
                });
                let own = own.into_iter().flatten().flatten();
                std::iter::once(start.mem.val()).chain(own).collect()
            }
            Self::Lora(start) => pairs(&start.lora_mem_A0, &start.lora_mem_B0)
                .map(|matrix| matrix.val())
                .collect(),
            Self::Kv(start) => pairs(&start.kv_mem_K0, &start.kv_mem_V0)
                .map(|matrix| {
                    let [heads, m, head_dim] = matrix.dims();
                    let matrix = matrix.val().swap_dims(0, 1);
                    matrix.reshape([m, heads * head_dim])
                })
                .collect(),
        }
    }

    /// M_0 of each of `batch` samples, one tensor `[batch, rows, columns]` for each matrix.
    pub(super) fn of_batch(&self, batch: usize) -> Vec<Tensor<B, 3>> {
        let each = self.matrices().into_iter().map(|x| {
            let [rows, columns] = x.dims();
            x.unsqueeze::<3>().expand([batch, rows, columns])
        });
        each.collect()
    }

    /// What one sample's memory is made of.
    pub(super) fn layout(&self) -> Layout {
        let (kind, shapes): (_, Vec<_>) = match self {
            Self::Prefix(start) => {
                let shape = start.mem.lazy_shape();
                return Layout::prefix([shape[0], shape[1]], start.own_projection);
            }
            Self::Lora(start) => {
                let shapes = pairs(&start.lora_mem_A0, &start.lora_mem_B0);
                let shapes = shapes.map(|matrix| matrix.lazy_shape());
                let shapes = shapes.map(|shape| [shape[0], shape[1]]);
                (MemoryKind::Lora, shapes.collect())
            }
            Self::Kv(start) => {
                let shapes = pairs(&start.kv_mem_K0, &start.kv_mem_V0);
                let shapes = shapes.map(|matrix| matrix.lazy_shape());
                let shapes = shapes.map(|shape| [shape[1], shape[0] * shape[2]]);
                (MemoryKind::Kv, shapes.collect())
            }
        };
        Layout::new(kind.as_str(), self.names().into_iter().zip(shapes))
    }

    /// The reference's names of the places in the layers that have a memory.
    pub(crate) fn slots(&self) -> Vec<String> {
        match self {
            Self::Prefix(_) => Vec::new(),
            Self::Lora(start) => start.places.iter().map(slot_name).collect(),
            Self::Kv(start) => start.layers.iter().map(usize::to_string).collect(),
        }
    }

    /// The modules that have a memory, by their layers and their paths there: `0.self_attn.q_proj`.
    pub(crate) fn modules(&self) -> Vec<String> {
        match self {
            Self::Prefix(_) | Self::Kv(_) => Vec::new(),
            Self::Lora(start) => {
                let path = |place: &Place| Some(format!("{}.{}", place.layer, place.module?));
                start.places.iter().filter_map(path).collect()
            }
        }
    }

    /// The names of the matrices of a memory in the layers.
    fn names(&self) -> Vec<String> {
        let kinds = match self {
            Self::Prefix(_) => return Vec::new(),
            Self::Lora(_) => ["lora_mem_A", "lora_mem_B"],
            Self::Kv(_) => ["kv_mem_K", "kv_mem_V"],
        };
        let slots = self.slots();
        let names = slots
            .iter()
            .flat_map(|slot| kinds.map(|kind| format!("{kind}.{slot}")));
        names.collect()
    }

    /// The start of a prefix, if that is the kind.
    pub fn prefix(&self) -> Option<&PrefixStart<B>> {
        match self {
            Self::Prefix(start) => Some(start),
            _ => None,
        }
    }

    /// With the first `tokens` of its vectors, or keys and values, alone.
    #[cfg(feature = "train")]
    pub(super) fn first_tokens(mut self, tokens: usize) -> Self {
        match &mut self {
            Self::Prefix(start) => start.mem = narrowed(start.mem.clone(), 0, tokens),
            Self::Kv(start) => {
                for list in [&mut start.kv_mem_K0, &mut start.kv_mem_V0] {
                    let whole = std::mem::take(list).into_iter();
                    *list = whole.map(|param| narrowed(param, 1, tokens)).collect();
                }
            }
            Self::Lora(_) => {}
        }
        self
    }

    /// Where its parameters are.
    pub(super) fn device(&self) -> B::Device {
        match self {
            Self::Prefix(start) => start.mem.lazy_device(),
            Self::Lora(start) => start.lora_mem_A0[0].lazy_device(),
            Self::Kv(start) => start.kv_mem_K0[0].lazy_device(),
        }
    }
}

/// The first `tokens` along a dimension alone.
#[cfg(feature = "train")]
fn narrowed<B: Backend, const D: usize>(
    param: Param<Tensor<B, D>>,
    dim: usize,
    tokens: usize,
) -> Param<Tensor<B, D>> {
    param.map(|tensor| {
        let kept = tensor.clone().narrow(dim, 0, tokens).detach();
        kept.set_require_grad(tensor.is_require_grad())
    })
}

/// The reference's name of a place: `layer0`, or `layer0_mlp_gate_proj`.
fn slot_name(place: &Place) -> String {
    let layer = place.layer;
    match place.module {
        None => format!("layer{layer}"),
        Some(module) => format!("layer{layer}_{}", module.replace('.', "_")),
    }
}

/// The first of both, the second of both, …
fn pairs<'a, T>(a: &'a [T], b: &'a [T]) -> impl Iterator<Item = &'a T> {
    a.iter().zip(b).flat_map(|(a, b)| [a, b])
}

impl<B: Backend> PrefixStart<B> {
    fn new<M: CausalLm<B>>(
        config: &GradMemConfig,
        model: &M,
        init: &mut Init,
        device: &B::Device,
    ) -> Self {
        let d = model.d_model();
        let std = config.memory_std;
        let mem = init.normal([config.memory_tokens, d], std, device);
        let mem = match config.memory_start {
            MemoryStart::Noise => mem,
            _ if init.is_blank() => mem,
            start => {
                let around = embeddings(start, config.memory_tokens, model, init, device);
                Param::from_tensor((mem.val() + around).detach())
            }
        };
        let projects = config.mem_proj != MemProj::None;
        let mem_proj = projects.then(|| Affine::identity(d, init, device));
        let [write_st, write_end, read_st, read_end] =
            control_tokens([config.ctrl_tokens, d], std, init, device);
        Self {
            mem,
            mem_proj,
            write_st,
            write_end,
            read_st,
            read_end,
            own_projection: config.mem_proj == MemProj::PerSample,
        }
    }

    fn prefix<'a>(
        &'a self,
        start: &'a Option<Param<Tensor<B, 2>>>,
        end: &'a Option<Param<Tensor<B, 2>>>,
    ) -> Prefix<'a, B> {
        Prefix {
            start: start.as_ref(),
            memory_tokens: self.mem.lazy_shape()[0],
            projection: self.mem_proj.as_ref(),
            end: end.as_ref(),
        }
    }
}

/// Embeddings of tokens to begin with: `[count, d_model]`, or `[1, d_model]` for all vectors alike.
fn embeddings<B: Backend, M: CausalLm<B>>(
    start: MemoryStart,
    count: usize,
    model: &M,
    init: &mut Init,
    device: &B::Device,
) -> Tensor<B, 2> {
    let vocab = model.vocab_size();
    let ids = match start {
        MemoryStart::Tokens => init.indices(count, vocab),
        _ => (0..vocab as i64).collect(),
    };
    let shape = [1, ids.len()];
    let ids = Tensor::from_data(TensorData::new(ids, shape), device);
    let rows = model.embed(ids).detach().squeeze_dim::<2>(0);
    match start {
        MemoryStart::Tokens => rows,
        _ => rows.mean_dim(0),
    }
}

impl<B: Backend> LoraStart<B> {
    fn new<M: CausalLm<B>>(
        config: &GradMemConfig,
        model: &M,
        init: &mut Init,
        device: &B::Device,
    ) -> Result<Self, Error> {
        let rank = config.lora_rank;
        // `A` is drawn as PyTorch's initialisation does it for a matrix that is stored transposed: by its rank.
        let bound = 1.0 / (rank as f64).sqrt();
        let (mut places, mut a, mut b) = (Vec::new(), Vec::new(), Vec::new());
        for (place, d_input, d_output) in lora_places(config, &model.slots(), model.d_model())? {
            places.push(place);
            a.push(init.uniform([d_input, rank], bound, device));
            b.push(init.constant([rank, d_output], 0.0, device));
        }
        Ok(Self {
            lora_mem_A0: a,
            lora_mem_B0: b,
            places,
            scale: config.lora_alpha / rank as f64,
        })
    }
}

impl<B: Backend> KvStart<B> {
    fn new(
        config: &GradMemConfig,
        slots: &Slots,
        init: &mut Init,
        device: &B::Device,
    ) -> Result<Self, Error> {
        let layers = chosen_layers(config, slots.layers)?;
        let [heads, head_dim] = keys_values(config, slots)?;
        let shape = [heads, config.memory_tokens, head_dim];
        let mut draw = || {
            let each = layers.iter();
            each.map(|_| init.normal(shape, config.memory_std, device))
                .collect()
        };
        let (keys, values) = (draw(), draw());
        let map = |_: &usize| Affine::identity(head_dim, init, device);
        let projected = match config.mem_proj {
            MemProj::None => &[][..],
            MemProj::Proj | MemProj::PerSample => &layers,
        };
        Ok(Self {
            kv_mem_K0: keys,
            kv_mem_V0: values,
            mem_proj_K_l: projected.iter().map(map).collect(),
            mem_proj_V_l: projected.iter().map(map).collect(),
            layers,
        })
    }

    /// Heads and the width of one.
    pub(super) fn heads(&self) -> [usize; 2] {
        let shape = self.kv_mem_K0[0].lazy_shape();
        [shape[0], shape[2]]
    }

    fn keys_values(&self) -> KeysValues<'_, B> {
        let shape = self.kv_mem_K0[0].lazy_shape();
        let maps = [&self.mem_proj_K_l[..], &self.mem_proj_V_l[..]];
        KeysValues {
            layers: &self.layers,
            memory_tokens: shape[1],
            heads: self.heads(),
            projections: (!maps[0].is_empty()).then_some(maps),
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::model::LlamaConfig;

    type B = burn_flex::Flex;

    #[test]
    fn vectors_begin_as_embeddings() {
        let device = Default::default();
        let model = LlamaConfig::new(5, 4, 1, 1).init::<B>(3, &device).unwrap();
        let start = |start, std| {
            let config = GradMemConfig::new()
                .with_memory_tokens(3)
                .with_memory_start(start)
                .with_memory_std(std);
            let gradmem = config.init(model.clone(), 4, &device).unwrap();
            let mem = gradmem.start(1)[0].clone().into_data();
            mem.to_vec::<f32>().unwrap()
        };
        let ids = Tensor::<B, 1, burn::tensor::Int>::arange(0..5, &device);
        let rows = model.embed(ids.unsqueeze()).squeeze_dim::<2>(0);
        let mean = rows.clone().mean_dim(0).into_data();
        let (mean, rows) = (mean.to_vec::<f32>().unwrap(), rows.into_data());
        let rows = rows.to_vec::<f32>().unwrap();
        for vector in start(MemoryStart::Tokens, 0.0).chunks(4) {
            assert!(rows.chunks(4).any(|row| row == vector), "{vector:?}");
        }
        for vector in start(MemoryStart::Mean, 0.0).chunks(4) {
            assert_eq!(vector, mean);
        }
        // Where it is trained, too.
        type A = burn::backend::Autodiff<B>;
        let model = LlamaConfig::new(5, 4, 1, 1).init::<A>(3, &device).unwrap();
        let config = GradMemConfig::new().with_memory_start(MemoryStart::Tokens);
        let gradmem = config.init(model, 4, &device).unwrap();
        assert!(gradmem.memory.matrices()[0].is_require_grad());
        let noise = start(MemoryStart::Noise, 0.1);
        let around = start(MemoryStart::Mean, 0.1);
        for (at, (x, noise)) in around.iter().zip(noise).enumerate() {
            assert!((x - noise - mean[at % 4]).abs() < 1e-6);
        }
        let in_layers = GradMemConfig::new()
            .with_kind(crate::memory::MemoryKind::Kv)
            .with_memory_start(MemoryStart::Mean);
        let error = in_layers.validate().unwrap_err().to_string();
        assert!(
            error.contains("memory_start") && error.contains("prefix"),
            "{error}"
        );
    }

    #[cfg(feature = "train")]
    #[test]
    fn a_start_is_cut_to_its_first_vectors() {
        type AD = burn::backend::Autodiff<B>;
        let device = Default::default();
        let model = LlamaConfig::new(5, 4, 2, 2).init::<AD>(3, &device).unwrap();
        for kind in [MemoryKind::Prefix, MemoryKind::Kv] {
            let config = GradMemConfig::new().with_kind(kind).with_memory_tokens(5);
            let whole = config.init(model.clone(), 4, &device).unwrap();
            for (trains, whole) in [(true, whole.clone()), (false, whole.no_grad())] {
                let cut = whole.clone().with_first_tokens(3);
                assert_eq!(cut.config().memory_tokens, 3);
                for (cut, whole) in cut.memory.matrices().iter().zip(whole.memory.matrices()) {
                    let first = whole.narrow(0, 0, 3).into_data();
                    assert_eq!(cut.clone().into_data(), first, "{kind:?}");
                    let is_trained = cut.is_require_grad();
                    assert!(kind == MemoryKind::Kv || is_trained == trains, "{kind:?}");
                }
            }
        }
    }
}
