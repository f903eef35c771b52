//! The reference's GradMem, `model_type` `grad_memgpt`: its settings read and written, those of its later branches
//! included.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::memory::{Chunks, GateKind, GradMemConfig, GradMode, LoraPlace, MemProj, MemoryKind};
use crate::model::config_json::NEUTRAL;

/// What `model_type` says.
pub(super) const MODEL_TYPE: &str = "grad_memgpt";

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
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Further keys that are looked at.
const OTHERS: [&str; 15] = [
    "base_config",
    "early_stop_acc",
    "early_stop_check_every",
    "lipschitz_weight",
    "lora_mem_dropout",
    "mem_noise_std",
    "mem_prior_weight",
    "memory_update",
    "pretrained_model",
    "use_adam",
    "use_context_lm_loss",
    "use_gradient_checkpointing",
    "use_hopfield_memory",
    // The mode says it.
    "use_mem_proj",
    "write_lora_dropout",
];

/// Names the keys, of those that are no settings, that are neither known nor without effect: what they ask for is not done.
pub(super) fn warn_of_unknown(rest: &Map<String, Value>, known: &[&str]) {
    let unknown =
        |key: &&String| !known.contains(&key.as_str()) && !NEUTRAL.contains(&key.as_str());
    for key in rest.keys().filter(unknown) {
        log::warn!("config.json: `{key}` is not known here and is ignored");
    }
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

/// The settings of a `grad_memgpt` on a language model of so many layers; or what is wrong with them.
pub(super) fn read(json: &Map<String, Value>, layers: usize) -> Result<GradMemConfig, String> {
    let zero = [0.into(), 0.0.into()];
    for key in ["lipschitz_weight", "mem_noise_std", "mem_prior_weight"] {
        is_off(json, key, &zero)?;
    }
    for key in ["lora_mem_dropout", "write_lora_dropout"] {
        if let Err(problem) = is_off(json, key, &zero) {
            log::warn!("{problem}: there is no dropout here, so training goes on without it");
        }
    }
    is_off(json, "early_stop_acc", &[])?;
    is_off(json, "use_context_lm_loss", &[false.into()])?;
    is_off(json, "use_adam", &[false.into()])?;
    is_off(json, "memory_update", &["gradient".into()])?;
    is_off(json, "use_hopfield_memory", &[false.into()])?;
    let read: GradMemGpt =
        serde_json::from_value(Value::Object(json.clone())).map_err(|e| e.to_string())?;
    warn_of_unknown(&read.rest, &OTHERS);
    // With chunks the reference adds nothing.
    let weight = match (read.add_inner_loss_to_outer, read.chunk_size) {
        (true, None) => read.inner_loss_weight.unwrap_or(1.0),
        _ => 0.0,
    };
    let kind = read.memory_backend.unwrap_or_default();
    let default = GradMemConfig::default();
    let chosen = match kind {
        MemoryKind::Lora => chosen_layers("lora_mem_layers", &read.lora_mem_layers, layers)?,
        _ => Vec::new(),
    };
    if kind == MemoryKind::Kv
        && !chosen_layers("kv_mem_layers", &read.kv_mem_layers, layers)?.is_empty()
    {
        return Err(String::from(
            "`kv_mem_layers` names some of the layers: the reference puts their memory into other layers and lets tokens \
             see later ones there, which is not computed here",
        ));
    }
    let modules = read.lora_mem_placement == Placement::TargetModules;
    let is_lora = kind == MemoryKind::Lora;
    let config = GradMemConfig {
        kind,
        memory_tokens: match (kind, read.n_mem_tokens) {
            // LoRA has none; the reference ignores the number.
            (MemoryKind::Lora, None | Some(0)) => default.memory_tokens,
            (_, Some(tokens)) => tokens,
            (_, None) => return Err(String::from("has no `n_mem_tokens`")),
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
                return Err(String::from(
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
        // Of one step there is no memory between.
        intermediate_read_weight: match read.steps {
            0 | 1 => 0.0,
            _ => read.intermediate_read_weight,
        },
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
        write_lora_targets: match read.use_write_lora {
            true => read.write_lora_target_modules.names(),
            false => Vec::new(),
        },
        freeze_backbone: read.freeze_backbone,
        write_head: read.use_write_head,
        inner_loss_weight: weight,
        ..GradMemConfig::default()
    };
    config.validate().map_err(|e| e.to_string())?;
    Ok(config)
}

/// Layers: all (nothing, `all`), the last k (`last_k`), or some by their numbers.
fn chosen_layers(key: &str, value: &Value, layers: usize) -> Result<Vec<usize>, String> {
    let problem = || {
        format!("`{key}` is {value}, not \"all\", \"last_k\" or numbers of layers such as \"0,2\"")
    };
    let mut numbers = match value {
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
    numbers.sort_unstable();
    numbers.dedup();
    match numbers.last() {
        None => Err(problem()),
        Some(last) if *last >= layers => Err(format!(
            "`{key}` is {value}, but the model's layers are 0 … {}",
            layers.saturating_sub(1)
        )),
        Some(_) if numbers.len() == layers => Ok(Vec::new()),
        Some(_) => Ok(numbers),
    }
}

/// Fails if `key` asks for something this crate does not have.
pub(super) fn is_off(
    json: &Map<String, Value>,
    key: &str,
    allowed: &[Value],
) -> Result<(), String> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(()),
        Some(value) if allowed.contains(value) => Ok(()),
        Some(value) => Err(format!("`{key}` = {value} is not supported")),
    }
}

/// The settings as the reference writes them.
pub(super) fn to_json(base: Map<String, Value>, config: &GradMemConfig) -> Value {
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

/// What the reference computes otherwise in some batches, or does not do.
pub(super) fn exported_differences(config: &GradMemConfig) -> Vec<&'static str> {
    let in_chunks = config.chunk_size.is_some();
    let all = [
        (
            config.inner_loss_steps.is_some(),
            "the weight of the WRITE loss stays what it is at the first step",
        ),
        (
            config.random_write_steps.is_some(),
            "the number of WRITE steps is the same in training as in evaluation",
        ),
        (
            in_chunks && config.inner_loss_weight > 0.0,
            "the reference does not add the WRITE loss to the outer loss where contexts are in chunks",
        ),
        (
            in_chunks && !config.reference_chunks,
            "the reference counts the chunks of the longest context of a batch for all its contexts",
        ),
    ];
    let those = all.into_iter().filter(|(is_there, _)| *is_there);
    those.map(|(_, difference)| difference).collect()
}

/// What the reference would compute otherwise than this crate.
pub(super) fn cannot_be_exported(config: &GradMemConfig) -> Option<String> {
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
    if !config.learned_lr.is_empty() {
        return Some("learned_lr: the reference has one step size for all".into());
    }
    if config.momentum.is_some() {
        return Some("momentum: the reference's steps have none".into());
    }
    if config.star_weight > 0.0 {
        return Some("star_weight: the reference's training has it elsewhere".into());
    }
    None
}
