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

use super::{armt, gradmem};
use crate::baselines::{InContextConfig, RmtConfig, RmtProj};
use crate::error::Error;
use crate::method::{AnyMethod, MethodConfig};
use crate::model::weights::{self, Tensors};
use crate::model::{AnyLm, ModelConfig};
use crate::model::{adapter, pretrained};
use crate::support::fs::read_object;
use crate::tokenizer::Tokenizer;

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
        Some(gradmem::MODEL_TYPE) => {
            let base = config.base()?;
            let read = gradmem::read(&config.json, base.layers());
            let method = read.map_err(|problem| config.problem(problem))?;
            Ok((base, MethodConfig::GradMem(method)))
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
            Ok((model, MethodConfig::InContext(InContextConfig::new())))
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
    if let MethodConfig::InContext(config) = &method {
        let model = pretrained::load_weights(&model, folder, device)?;
        return Ok(AnyMethod::InContext(config.init(model)));
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
    // The reference has control tokens beside a memory of any kind, and reads those of a prefix alone.
    let beside = !names.slots.is_empty();
    let ignored = |name: &str| {
        tied && heads.iter().any(|head| head == name) || beside && CTRL_TOKENS.contains(&name)
    };
    let theirs = |path: &str| match path.strip_prefix("model.") {
        Some(path) => stored(path),
        None => names.theirs(path),
    };
    tensors.fill_as(method.blank(&model, device)?, theirs, ignored)
}

/// The reference's control tokens.
const CTRL_TOKENS: [&str; 4] = ["write_st", "write_end", "read_st", "read_end"];

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
    if let MethodConfig::GradMem(config) = method.config() {
        if let Some(what) = gradmem::cannot_be_exported(&config) {
            return Err(Error::Input(format!("the reference cannot have {what}")));
        }
        for difference in gradmem::exported_differences(&config) {
            log::warn!("{difference}");
        }
    }
    let mut base = method.model().config().to_json();
    special.write(&mut base);
    let mut config = to_json(base, &method.config());
    if let AnyMethod::GradMem(gradmem) = method {
        let write = gradmem.write_lora.as_ref().map(|lora| lora.targets());
        let memory = gradmem.memory.modules();
        let has_memory = |path: &&String| {
            memory
                .iter()
                .any(|module| path.ends_with(&format!(".{module}")))
        };
        let both = write.and_then(|write| write.iter().find(has_memory));
        if let Some(module) = both {
            return Err(Error::Input(format!(
                "the reference cannot have a memory at a module that WRITE's adapters change, `{module}`: give \
                 memory.lora_targets and memory.write_lora_targets that have none in common"
            )));
        }
        // The reference knows the usual modules of some models only.
        for (key, modules) in [
            ("write_lora_target_modules", write.unwrap_or_default()),
            ("lora_mem_target_modules", &memory),
        ] {
            let last = |path: &String| path.rsplit('.').next().unwrap_or_default().to_string();
            let names: BTreeSet<String> = modules.iter().map(last).collect();
            let is_given = config.get(key).is_some_and(|given| !given.is_null());
            if !is_given && !names.is_empty() && matches!(method.model(), AnyLm::Mamba(_)) {
                config.insert(key.into(), names.into_iter().collect::<Vec<_>>().into());
            }
        }
    }
    let name = name(method);
    let tensors = weights::parameters(method)
        .into_iter()
        .map(|(path, data)| (name(&path), data))
        .collect();
    pretrained::write_folder(folder.as_ref(), tensors, config, tokenizer, special)
}

/// The settings as the reference writes them.
fn to_json(base: Map<String, Value>, method: &MethodConfig) -> Map<String, Value> {
    let json = match method {
        MethodConfig::GradMem(config) => gradmem::to_json(base, config),
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
        MethodConfig::InContext(_) => Value::Object(base),
    };
    match json {
        Value::Object(json) => json,
        _ => Map::new(),
    }
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
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Further keys of an `rmt_2segm` configuration that are looked at.
const RMT_OTHERS: [&str; 6] = [
    "base_config",
    "pretrained_model",
    "use_gradient_checkpointing",
    // The mode says it.
    "use_mem_proj",
    "use_reconstruction_loss_all_steps",
    "use_reconstruction_loss_at_first_step",
];

impl Config<'_> {
    /// The language model's settings.
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

    fn rmt(&self) -> Result<RmtConfig, Error> {
        let off = [false.into()];
        self.is_off("use_reconstruction_loss_at_first_step", &off)?;
        self.is_off("use_reconstruction_loss_all_steps", &off)?;
        let read: Rmt2Segm = self.read()?;
        gradmem::warn_of_unknown(&read.rest, &RMT_OTHERS);
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
        gradmem::is_off(&self.json, key, allowed).map_err(|e| self.problem(e))
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
