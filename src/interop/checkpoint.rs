//! The reference implementation's checkpoints (github.com/yurakuratov/gradmem), read and written:
//! `config.json` with `model_type` `grad_memgpt`, `rmt_2segm` or `armt` and the language model under
//! `base_config`, and `model.safetensors`. A plain language model's folder is read as the in-context
//! baseline.

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::backend::Backend;
use gradmem_kernels::KernelBackend;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::armt;
use crate::baselines::{InContext, RmtConfig, RmtProj};
use crate::error::Error;
use crate::memory::{
    Chunks, GateKind, GradMem, GradMemConfig, GradMode, LoraPlace, MemProj, MemoryKind,
};
use crate::method::{AnyMethod, MethodConfig};
use crate::model::weights::{self, Tensors};
use crate::model::{AnyLm, ModelConfig};
use crate::model::{adapter, pretrained};
use crate::support::fs::read_object;

pub use crate::model::pretrained::SpecialTokens;

/// What a folder's `config.json` describes.
///
/// # Errors
///
/// If a value is missing or of the wrong kind, or asks for something this crate does not have.
pub fn open_config(path: impl AsRef<Path>) -> Result<(ModelConfig, MethodConfig), Error> {
    let path = path.as_ref();
    let config = Config {
        json: read_object(path)?,
        path,
    };
    match config.json.get("model_type").and_then(Value::as_str) {
        Some("grad_memgpt") => {
            let base = config.base()?;
            let method = MethodConfig::GradMem(config.gradmem(base.layers())?);
            Ok((base, method))
        }
        Some("rmt_2segm") => {
            let method = MethodConfig::Rmt(config.rmt()?);
            Ok((config.base()?, method))
        }
        Some(armt::MODEL_TYPE) => {
            let armt = armt::read(&config.json).map_err(|problem| config.problem(problem))?;
            let base = config.base()?;
            armt::check(&base, &armt).map_err(|problem| config.problem(problem))?;
            Ok((base, MethodConfig::Armt(armt)))
        }
        Some(known) if ModelConfig::TYPES.contains(&known) => {
            let model = ModelConfig::from_json(&config.json, path)?;
            Ok((model, MethodConfig::InContext))
        }
        found => Err(config.problem(format!(
            "`model_type` is {}, not one of grad_memgpt, rmt_2segm, armt, {}",
            found.map_or("missing".into(), |found| format!("{found:?}")),
            ModelConfig::TYPES.join(", ")
        ))),
    }
}

/// Loads a checkpoint.
///
/// # Errors
///
/// As [`open_config`] and [`pretrained::load`].
pub fn load<B: KernelBackend>(
    folder: impl AsRef<Path>,
    device: &B::Device,
) -> Result<AnyMethod<B>, Error> {
    let folder = folder.as_ref();
    let (model, method) = open_config(folder.join("config.json"))?;
    if method == MethodConfig::InContext {
        let model = pretrained::load_weights(&model, folder, device)?;
        return Ok(AnyMethod::InContext(InContext::new(model)));
    }
    let adapter = folder.join(adapter::CONFIG);
    if adapter.exists() {
        return Err(Error::file(
            adapter,
            "an adapter beside a checkpoint of the reference is not applied: merge it into the language model or remove it",
        ));
    }
    let tensors = Tensors::open_folder(folder)?;
    tensors.check_layers(model.layers())?;
    let blank = method.blank::<B>(&model, device)?;
    let names = Names::of(&blank).stored_in(&tensors);
    let (model, stored) = pretrained::head(&model, &tensors, |path| names.of_model(path))?;
    let tied = model.tied_head();
    let heads = pretrained::HEADS.map(|head| names.of_model(head));
    let ignored = |name: &str| tied && heads.iter().any(|head| head == name);
    let theirs = |path: &str| match path.strip_prefix("model.") {
        Some(path) => stored(path),
        None => names.theirs(path),
    };
    tensors.fill_as(method.blank(&model, device)?, theirs, ignored)
}

/// Saves a checkpoint that [`load`] and the reference read; for the in-context baseline, the language
/// model alone.
///
/// # Errors
///
/// If a file cannot be written, or the reference would compute another function of these weights.
pub fn save<B: KernelBackend>(
    folder: impl AsRef<Path>,
    method: &AnyMethod<B>,
    tokenizer: Option<&Tokenizer>,
    special: &SpecialTokens,
) -> Result<(), Error> {
    if let MethodConfig::Armt(config) = method.config() {
        armt::check(&method.model().config(), &config).map_err(Error::Input)?;
    }
    if let Some(what) = cannot_be_exported(&method.config()) {
        return Err(Error::Input(format!("the reference cannot have {what}")));
    }
    let mut base = method.model().config().to_json();
    match special.ends.as_slice() {
        [] => {}
        [end] => _ = base.insert("eos_token_id".into(), (*end).into()),
        ends => _ = base.insert("eos_token_id".into(), ends.into()),
    }
    if !matches!(method, AnyMethod::InContext(_)) {
        base.insert("pad_token_id".into(), special.pad.into());
    }
    let mut config = to_json(base, &method.config());
    if let AnyMethod::GradMem(GradMem {
        write_lora: Some(lora),
        ..
    }) = method
    {
        // The reference knows the usual modules of some models only.
        let last = |path: &String| path.rsplit('.').next().unwrap_or_default().to_string();
        let targets: BTreeSet<String> = lora.targets().iter().map(last).collect();
        let targets = targets.into_iter().collect::<Vec<_>>();
        let given = &config["write_lora_target_modules"];
        if given.is_null() && matches!(method.model(), AnyLm::Mamba(_)) {
            config.insert("write_lora_target_modules".into(), targets.into());
        }
    }
    let name = name(method);
    let tensors = weights::parameters(method)
        .into_iter()
        .map(|(path, data)| (name(&path), data))
        .collect();
    pretrained::write_folder(folder.as_ref(), tensors, config, tokenizer)
}

/// The settings as the reference writes them.
fn to_json(base: Map<String, Value>, method: &MethodConfig) -> Map<String, Value> {
    let json = match method {
        MethodConfig::GradMem(config) => {
            let second = match config.grad_mode {
                GradMode::Second => config.second_order_steps.unwrap_or(config.write_steps),
                GradMode::First | GradMode::None => 0,
            };
            let targets = match config.write_lora_targets.as_slice() {
                [] => Value::Null,
                targets => targets.into(),
            };
            let rank = config.write_lora_rank;
            let mut json = json!({
                "model_type": "grad_memgpt",
                "architectures": ["GradMemGPT"],
                "base_config": base,
                "n_mem_tokens": config.memory_tokens,
                "K": config.write_steps,
                "lr": config.write_lr,
                "use_adam": false,
                "grad_mode": config.grad_mode,
                "last_K_second_order": second.min(config.write_steps),
                "n_ctrl_tokens": config.ctrl_tokens,
                "inner_clip_value": config.inner_clip_value,
                "inner_clip_norm": config.inner_clip_norm,
                "use_mem_proj": config.mem_proj != MemProj::None,
                "mem_proj_mode": config.mem_proj,
                "use_write_head": config.write_head,
                "use_write_lora": rank > 0,
                "write_lora_r": if rank > 0 { rank } else { 8 },
                "write_lora_alpha": config.write_lora_alpha,
                "write_lora_dropout": 0.0,
                "write_lora_target_modules": targets,
                "freeze_backbone": config.freeze_backbone,
                "add_inner_loss_to_outer": config.inner_loss_weight > 0.0,
                "inner_loss_weight": config.inner_loss_weight,
            });
            if let Some(json) = json.as_object_mut() {
                json.extend(later_branches(config));
            }
            json
        }
        MethodConfig::Rmt(config) => {
            let reconstructs = config.reconstruction_loss_weight > 0.0;
            json!({
                "model_type": "rmt_2segm",
                "architectures": ["RMT2Segm"],
                "base_config": base,
                "n_mem_tokens": config.memory_tokens,
                "n_ctrl_tokens": config.ctrl_tokens,
                "K": config.write_steps,
                "use_mem_proj": config.mem_proj != RmtProj::None,
                "mem_proj_mode": config.mem_proj,
                "use_mem_residual": config.mem_residual,
                "use_reconstruction_loss": reconstructs,
                "reconstruction_loss_weight": config.reconstruction_loss_weight,
                "use_write_head": config.write_head,
            })
        }
        MethodConfig::Armt(config) => armt::to_json(base, config),
        MethodConfig::InContext => Value::Object(base),
    };
    match json {
        Value::Object(json) => json,
        _ => Map::new(),
    }
}

/// The settings that the reference's later branches added, where they say something.
fn later_branches(config: &GradMemConfig) -> Map<String, Value> {
    let list = |layers: &[usize]| {
        let numbers: Vec<String> = layers.iter().map(usize::to_string).collect();
        match numbers.is_empty() {
            true => "all".into(),
            false => numbers.join(",").into(),
        }
    };
    let mut json = Map::new();
    let mut set = |key: &str, value: Value| json.insert(key.into(), value);
    match config.kind {
        MemoryKind::Lora => {
            set("memory_backend", "lora".into());
            set("lora_mem_r", config.lora_rank.into());
            set("lora_mem_alpha", config.lora_alpha.into());
            let placement = match config.lora_place {
                LoraPlace::Modules => "target_modules",
                LoraPlace::Layers => "between_layers",
            };
            set("lora_mem_placement", placement.into());
            set("lora_mem_layers", list(&config.layers));
            let targets = match config.lora_targets.is_empty() {
                true => Value::Null,
                false => config.lora_targets.join(",").into(),
            };
            set("lora_mem_target_modules", targets);
            set("lora_mem_dropout", 0.0.into());
        }
        MemoryKind::Kv => {
            set("memory_backend", "kv_cache".into());
            set("kv_mem_layers", list(&config.layers));
        }
        MemoryKind::Prefix => {}
    }
    if let Some(size) = config.chunk_size {
        set("chunk_size", size.into());
        set(
            "parallel_chunks",
            (config.chunks == Chunks::Parallel).into(),
        );
        set(
            "concat_chunk_memory",
            (config.chunks == Chunks::Concatenated).into(),
        );
    }
    for (key, weight) in [
        ("step_alignment_weight", config.step_alignment_weight),
        ("intermediate_read_weight", config.intermediate_read_weight),
        ("memory_alignment_weight", config.memory_alignment_weight),
        ("memory_noise_sigma", config.memory_noise),
    ] {
        if weight > 0.0 {
            set(key, weight.into());
        }
    }
    if config.align_last_step {
        set("align_last_step", true.into());
    }
    if config.alignment_norm {
        set("grad_align_norm", "norm".into());
    }
    json
}

/// What the reference would compute otherwise than this crate.
fn cannot_be_exported(method: &MethodConfig) -> Option<String> {
    let MethodConfig::GradMem(config) = method else {
        return None;
    };
    if config.kind == MemoryKind::Kv && !config.layers.is_empty() {
        return Some(
            "a memory of keys and values in some of the layers: the reference puts it into others"
                .into(),
        );
    }
    if config.chunks == Chunks::Parallel && !config.reference_chunks && config.chunk_size.is_some()
    {
        return Some(
            "chunks = \"parallel\" without reference_chunks: the reference divides the mean gradient by the number of \
             chunks once more"
                .into(),
        );
    }
    if config.gate != GateKind::None {
        return Some("a gate: its public code has none".into());
    }
    if config.star_weight > 0.0 {
        return Some("star_weight: the reference's training has it elsewhere".into());
    }
    None
}

/// The reference's names for our parameters. They are the same but where adapters are: those carry the
/// names of the library that makes them (PEFT); and in ARMT.
struct Names {
    /// The adapted modules, in the adapters' order.
    adapted: Vec<String>,
    armt: Option<armt::Names>,
    /// The places of a memory in the layers, in the order of its matrices.
    slots: Vec<String>,
}

/// Lists whose entries are named by a memory's places.
const BY_PLACE: [&str; 6] = [
    "lora_mem_A0",
    "lora_mem_B0",
    "kv_mem_K0",
    "kv_mem_V0",
    "mem_proj_K_l",
    "mem_proj_V_l",
];

/// Where PEFT puts the model it adapts.
const ADAPTED_MODEL: &str = "model.base_model.model.";

impl Names {
    fn of<B: Backend>(method: &AnyMethod<B>) -> Self {
        let lora = match method {
            AnyMethod::GradMem(gradmem) => gradmem.write_lora.as_ref(),
            AnyMethod::Rmt(_) | AnyMethod::Armt(_) | AnyMethod::InContext(_) => None,
        };
        let slots = match method {
            AnyMethod::GradMem(gradmem) => gradmem.memory.slots(),
            AnyMethod::Rmt(_) | AnyMethod::Armt(_) | AnyMethod::InContext(_) => Vec::new(),
        };
        Self {
            adapted: lora.map_or(Vec::new(), |lora| lora.targets().to_vec()),
            armt: match method {
                AnyMethod::Armt(armt) => {
                    Some(armt::Names::new(&armt.model.config(), armt.config()))
                }
                _ => None,
            },
            slots,
        }
    }

    /// As a file has them.
    fn stored_in(mut self, tensors: &Tensors) -> Self {
        self.armt = self.armt.map(|names| names.stored_as(tensors.names()));
        self
    }

    /// Of a parameter of the language model.
    fn of_model(&self, path: &str) -> String {
        if let Some(armt) = &self.armt {
            return armt.of_model(path);
        }
        if self.adapted.is_empty() {
            return format!("model.{path}");
        }
        let (module, field) = path.rsplit_once('.').unwrap_or((path, ""));
        match self.adapted.iter().any(|adapted| adapted == module) {
            true => format!("{ADAPTED_MODEL}{module}.base_layer.{field}"),
            false => format!("{ADAPTED_MODEL}{path}"),
        }
    }

    fn theirs(&self, path: &str) -> String {
        if let Some(path) = path.strip_prefix("model.") {
            return self.of_model(path);
        }
        if let Some(armt) = &self.armt {
            return armt.of_memory(path);
        }
        let adapter = path.strip_prefix("write_lora.adapters.");
        if let Some((index, matrix)) = adapter.and_then(|adapter| adapter.split_once('.'))
            && let Some(module) = index.parse().ok().and_then(|i: usize| self.adapted.get(i))
        {
            return format!("{ADAPTED_MODEL}{module}.{matrix}.default.weight");
        }
        let mut parts = path.splitn(3, '.');
        if let (Some(list), Some(index)) = (parts.next(), parts.next())
            && BY_PLACE.contains(&list)
            && let Some(slot) = index.parse().ok().and_then(|i: usize| self.slots.get(i))
        {
            let field = parts
                .next()
                .map_or(String::new(), |field| format!(".{field}"));
            return format!("{list}.{slot}{field}");
        }
        path.into()
    }
}

/// The reference's name of a parameter of `method`.
pub(crate) fn name<B: Backend>(method: &AnyMethod<B>) -> impl Fn(&str) -> String {
    let names = Names::of(method);
    let plain = matches!(method, AnyMethod::InContext(_));
    move |path| match path.strip_prefix("model.") {
        Some(path) if plain => path.into(),
        _ => names.theirs(path),
    }
}

/// A `config.json`, as read.
struct Config<'a> {
    path: &'a Path,
    json: Map<String, Value>,
}

/// The part of a `grad_memgpt` configuration that has a counterpart here.
#[derive(Deserialize)]
struct GradMemGpt {
    #[serde(default)]
    memory_backend: Option<MemoryKind>,
    n_mem_tokens: Option<usize>,
    #[serde(default = "lora_rank")]
    lora_mem_r: usize,
    #[serde(default = "lora_alpha")]
    lora_mem_alpha: f64,
    #[serde(default)]
    lora_mem_placement: Placement,
    #[serde(default)]
    lora_mem_layers: Value,
    #[serde(default)]
    lora_mem_target_modules: Targets,
    #[serde(default)]
    kv_mem_layers: Value,
    chunk_size: Option<usize>,
    #[serde(default)]
    parallel_chunks: bool,
    #[serde(default)]
    concat_chunk_memory: bool,
    #[serde(default)]
    step_alignment_weight: f64,
    #[serde(default)]
    align_last_step: bool,
    #[serde(default)]
    grad_align_norm: AlignNorm,
    #[serde(default)]
    intermediate_read_weight: f64,
    #[serde(default)]
    memory_alignment_weight: f64,
    #[serde(default)]
    memory_noise_sigma: f64,
    #[serde(rename = "K")]
    steps: usize,
    lr: f64,
    grad_mode: GradMode,
    #[serde(rename = "last_K_second_order")]
    second_order_steps: Option<usize>,
    inner_clip_value: Option<f64>,
    inner_clip_norm: Option<f64>,
    #[serde(default)]
    mem_proj_mode: MemProj,
    #[serde(default)]
    n_ctrl_tokens: usize,
    #[serde(default)]
    use_write_lora: bool,
    #[serde(default = "lora_rank")]
    write_lora_r: usize,
    #[serde(default = "lora_alpha")]
    write_lora_alpha: f64,
    #[serde(default)]
    write_lora_target_modules: Targets,
    #[serde(default)]
    freeze_backbone: bool,
    #[serde(default)]
    use_write_head: bool,
    #[serde(default)]
    add_inner_loss_to_outer: bool,
    inner_loss_weight: Option<f64>,
}

/// Where the reference puts the maps of a LoRA memory.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Placement {
    #[default]
    BetweenLayers,
    TargetModules,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AlignNorm {
    #[default]
    None,
    Norm,
}

fn lora_rank() -> usize {
    8
}

fn lora_alpha() -> f64 {
    16.0
}

/// Module names: a list, or words between commas; nothing or `auto` for the usual ones.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Targets {
    List(Vec<String>),
    Words(String),
    #[default]
    Usual,
}

impl Targets {
    fn names(self) -> Vec<String> {
        let names = match self {
            Self::List(names) => names,
            Self::Words(words) => match words.trim().to_lowercase().as_str() {
                "" | "none" | "auto" => Vec::new(),
                _ => words.split(',').map(String::from).collect(),
            },
            Self::Usual => Vec::new(),
        };
        let names = names.iter().map(|name| name.trim().to_string());
        names.filter(|name| !name.is_empty()).collect()
    }
}

/// The part of an `rmt_2segm` configuration that has a counterpart here.
#[derive(Deserialize)]
struct Rmt2Segm {
    n_mem_tokens: usize,
    #[serde(rename = "K")]
    steps: usize,
    #[serde(default)]
    n_ctrl_tokens: usize,
    #[serde(default)]
    mem_proj_mode: RmtProj,
    #[serde(default)]
    use_mem_residual: bool,
    #[serde(default)]
    use_reconstruction_loss: bool,
    reconstruction_loss_weight: Option<f64>,
    #[serde(default)]
    use_write_head: bool,
}

impl Config<'_> {
    /// The language model's settings and its padding token.
    fn base(&self) -> Result<ModelConfig, Error> {
        let Some(Value::Object(base)) = self.json.get("base_config") else {
            if let Some(Value::String(name)) = self.json.get("pretrained_model") {
                return Err(self.problem(format!(
                    "names the language model {name:?} by `pretrained_model`, but nothing is downloaded: \
                     put the contents of its config.json under `base_config`"
                )));
            }
            let kind = self.json.get("model_type").and_then(Value::as_str);
            return Err(self.problem(format!(
                "`base_config` is not an object: a {} needs its language model's config.json there",
                kind.unwrap_or_default()
            )));
        };
        let model = ModelConfig::from_json(base, self.path)
            .map_err(|e| self.problem(format!("base_config: {}", bare(&e))))?;
        Ok(model)
    }

    fn gradmem(&self, layers: usize) -> Result<GradMemConfig, Error> {
        let zero = [0.into(), 0.0.into()];
        for key in [
            "lora_mem_dropout",
            "write_lora_dropout",
            "lipschitz_weight",
            "mem_noise_std",
            "mem_prior_weight",
        ] {
            self.is_off(key, &zero)?;
        }
        self.is_off("use_adam", &[false.into()])?;
        self.is_off("memory_update", &["gradient".into()])?;
        self.is_off("use_hopfield_memory", &[false.into()])?;
        let read: GradMemGpt = self.read()?;
        // With chunks the reference adds nothing.
        let weight = match (read.add_inner_loss_to_outer, read.chunk_size) {
            (true, None) => read.inner_loss_weight.unwrap_or(1.0),
            _ => 0.0,
        };
        let kind = read.memory_backend.unwrap_or_default();
        let default = GradMemConfig::default();
        let chosen = match kind {
            MemoryKind::Lora => self.layers("lora_mem_layers", &read.lora_mem_layers, layers)?,
            _ => Vec::new(),
        };
        if kind == MemoryKind::Kv
            && !self
                .layers("kv_mem_layers", &read.kv_mem_layers, layers)?
                .is_empty()
        {
            return Err(self.problem(
                "`kv_mem_layers` names some of the layers: the reference puts their memory into other layers and lets tokens \
                 see later ones there, which is not computed here",
            ));
        }
        let modules = read.lora_mem_placement == Placement::TargetModules;
        let is_lora = kind == MemoryKind::Lora;
        let config = GradMemConfig {
            kind,
            memory_tokens: match (kind, read.n_mem_tokens) {
                (_, Some(tokens)) => tokens,
                // LoRA has none; the reference ignores the number.
                (MemoryKind::Lora, None) => default.memory_tokens,
                (_, None) => return Err(self.problem("has no `n_mem_tokens`")),
            },
            lora_rank: read.lora_mem_r,
            lora_alpha: read.lora_mem_alpha,
            lora_place: match is_lora && modules {
                true => LoraPlace::Modules,
                false => LoraPlace::Layers,
            },
            lora_targets: match is_lora && modules {
                true => read.lora_mem_target_modules.names(),
                false => Vec::new(),
            },
            layers: chosen,
            chunk_size: read.chunk_size,
            chunks: match (
                read.chunk_size,
                read.parallel_chunks,
                read.concat_chunk_memory,
            ) {
                (Some(_), true, true) => {
                    return Err(self.problem(
                        "`parallel_chunks` and `concat_chunk_memory` exclude each other",
                    ));
                }
                (Some(_), true, false) => Chunks::Parallel,
                (Some(_), false, true) => Chunks::Concatenated,
                _ => Chunks::Sequential,
            },
            reference_chunks: read.chunk_size.is_some(),
            step_alignment_weight: read.step_alignment_weight,
            align_last_step: read.align_last_step && read.step_alignment_weight > 0.0,
            alignment_norm: read.grad_align_norm == AlignNorm::Norm
                && (read.step_alignment_weight > 0.0 || read.memory_alignment_weight > 0.0),
            intermediate_read_weight: read.intermediate_read_weight,
            memory_alignment_weight: read.memory_alignment_weight,
            memory_noise: read.memory_noise_sigma,
            write_steps: read.steps,
            write_lr: read.lr,
            grad_mode: read.grad_mode,
            second_order_steps: match read.grad_mode {
                GradMode::Second => read.second_order_steps.filter(|j| *j < read.steps),
                GradMode::First | GradMode::None => None,
            },
            inner_clip_value: read.inner_clip_value,
            inner_clip_norm: read.inner_clip_norm,
            mem_proj: read.mem_proj_mode,
            // Other kinds than a prefix ignore them in the reference.
            ctrl_tokens: match kind {
                MemoryKind::Prefix => read.n_ctrl_tokens,
                _ => 0,
            },
            write_lora_rank: if read.use_write_lora {
                read.write_lora_r
            } else {
                0
            },
            write_lora_alpha: read.write_lora_alpha,
            write_lora_targets: read.write_lora_target_modules.names(),
            freeze_backbone: read.freeze_backbone,
            write_head: read.use_write_head,
            inner_loss_weight: weight,
            ..GradMemConfig::default()
        };
        config.validate().map_err(|e| self.problem(e.to_string()))?;
        Ok(config)
    }

    /// Layers: all (nothing, `all`), the last k (`last_k`), or some by their numbers.
    fn layers(&self, key: &str, value: &Value, layers: usize) -> Result<Vec<usize>, Error> {
        let problem = || {
            self.problem(format!(
                "`{key}` is {value}, not \"all\", \"last_k\" or numbers of layers such as \"0,2\""
            ))
        };
        let numbers = match value {
            Value::Null => return Ok(Vec::new()),
            Value::String(text) => match text.trim() {
                "" | "all" | "none" | "auto" => return Ok(Vec::new()),
                text => match text.strip_prefix("last_") {
                    Some(count) => {
                        let count: usize = count.parse().map_err(|_| problem())?;
                        (layers.saturating_sub(count)..layers).collect()
                    }
                    None => text
                        .split(',')
                        .map(|number| number.trim().parse().map_err(|_| problem()))
                        .collect::<Result<Vec<usize>, _>>()?,
                },
            },
            Value::Array(numbers) => numbers
                .iter()
                .map(|number| number.as_u64().map(|n| n as usize).ok_or_else(problem))
                .collect::<Result<Vec<usize>, _>>()?,
            _ => return Err(problem()),
        };
        match numbers.is_empty() {
            true => Err(problem()),
            false if numbers.len() == layers => Ok(Vec::new()),
            false => Ok(numbers),
        }
    }

    fn rmt(&self) -> Result<RmtConfig, Error> {
        let off = [false.into()];
        self.is_off("use_reconstruction_loss_at_first_step", &off)?;
        self.is_off("use_reconstruction_loss_all_steps", &off)?;
        let read: Rmt2Segm = self.read()?;
        let weight = match read.use_reconstruction_loss {
            true => read.reconstruction_loss_weight.unwrap_or(1.0),
            false => 0.0,
        };
        let config = RmtConfig {
            memory_tokens: read.n_mem_tokens,
            write_steps: read.steps,
            mem_proj: read.mem_proj_mode,
            ctrl_tokens: read.n_ctrl_tokens,
            mem_residual: read.use_mem_residual,
            reconstruction_loss_weight: weight,
            write_head: read.use_write_head,
            ..RmtConfig::default()
        };
        config.validate().map_err(|e| self.problem(e.to_string()))?;
        Ok(config)
    }

    /// Fails if `key` asks for something this crate does not have.
    fn is_off(&self, key: &str, allowed: &[Value]) -> Result<(), Error> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if allowed.contains(value) => Ok(()),
            Some(value) => Err(self.problem(format!("`{key}` = {value} is not supported"))),
        }
    }

    fn read<T: for<'de> Deserialize<'de>>(&self) -> Result<T, Error> {
        serde_json::from_value(Value::Object(self.json.clone()))
            .map_err(|e| self.problem(e.to_string()))
    }

    fn problem(&self, problem: impl Into<String>) -> Error {
        Error::file(self.path, problem)
    }
}

/// An error's words without the file they are about.
fn bare(error: &Error) -> String {
    match error {
        Error::File { problem, .. } => problem.clone(),
        other => other.to_string(),
    }
}
