//! Adapters of PEFT beside a model's weights (LoRA, arXiv 2106.09685): `adapter_config.json` and
//! `adapter_model.safetensors`. They are added to the weights when these are loaded, as by
//! `transformers` 5. The sum is computed on the host in f64, so that it is the same on every backend.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use serde::Deserialize;
use serde_json::Value;

use super::paths::{ModulePath, follows_path};
use super::weights::{Matrix, Tensors};
use crate::error::Error;
use crate::support::fs::read_object;

/// The file that makes a folder an adapter's.
pub(crate) const CONFIG: &str = "adapter_config.json";

/// What of `adapter_config.json` determines what an adapter adds.
#[derive(Deserialize)]
struct Settings {
    peft_type: String,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
}

/// Keys that do not change what an adapter adds, or whose effect is in its tensors.
const NEUTRAL: [&str; 25] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// What a key asks for beside a sum of matrices.
enum Asks {
    Nothing,
    /// More, which would be lost.
    More,
    /// Something that is not known here.
    Unknown,
}

/// By the keys that would make more of an adapter, and the values with which they do not.
fn asks(key: &str, value: &Value) -> Asks {
    let nothing = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    let is_off = match key {
        "use_dora"
        | "use_qalora"
        | "lora_bias"
        | "modules_to_save"
        | "alpha_pattern"
        | "layer_replication"
        | "trainable_token_indices"
        | "target_parameters"
        | "alora_invocation_tokens"
        | "arrow_config" => nothing,
        "bias" => nothing || value == "none",
        // The other ways to start change the base's weights too.
        "init_lora_weights" => {
            let kept = ["gaussian", "eva", "orthogonal", "mica"];
            value.is_boolean() || value.is_null() || kept.iter().any(|kept| value == kept)
        }
        _ if nothing || NEUTRAL.contains(&key) => true,
        _ => return Asks::Unknown,
    };
    match is_off {
        true => Asks::Nothing,
        false => Asks::More,
    }
}

/// `model` with the adapter of its folder, if there is one.
///
/// # Errors
///
/// If the adapter is of another kind than LoRA, has options that are not supported, or does not fit the model.
pub(super) fn apply<B: Backend, M: Module<B>>(model: M, folder: &Path) -> Result<M, Error> {
    let path = folder.join(CONFIG);
    if !path.exists() {
        return Ok(model);
    }
    let json = read_object(&path)?;
    for (key, value) in &json {
        match asks(key, value) {
            Asks::Nothing => {}
            Asks::More => {
                let problem = format!(
                    "`{key}` = {value} is not supported: merge the adapter into the weights with PEFT"
                );
                return Err(Error::file(&path, problem));
            }
            Asks::Unknown => log::warn!(
                "{}: `{key}` = {value} is not known, and is ignored",
                path.display()
            ),
        }
    }
    let settings: Settings = serde_json::from_value(Value::Object(json))
        .map_err(|e| Error::file(&path, e.to_string()))?;
    if settings.peft_type != "LORA" {
        let kind = &settings.peft_type;
        return Err(Error::file(
            &path,
            format!("`peft_type` = {kind:?} is not supported: only LORA is"),
        ));
    }
    let file = folder.join("adapter_model.safetensors");
    let tensors = Tensors::open(&file)?;
    let mut adapters: BTreeMap<String, [Option<Matrix>; 2]> = BTreeMap::new();
    for name in tensors.names() {
        let rest = name.strip_prefix("base_model.model.");
        let parts = rest.and_then(|rest| {
            let a = rest.strip_suffix(".lora_A.weight").map(|path| (path, 0));
            a.or(rest.strip_suffix(".lora_B.weight").map(|path| (path, 1)))
        });
        let Some((module, at)) = parts else {
            return Err(Error::file(
                &file,
                format!(
                    "`{name}` is not a matrix of a LoRA adapter (base_model.model.….lora_A.weight or lora_B)"
                ),
            ));
        };
        adapters.entry(module.into()).or_default()[at] = Some(tensors.matrix(name)?);
    }
    let mut add = Add {
        adapters,
        alpha: settings.lora_alpha,
        use_rslora: settings.use_rslora,
        path: ModulePath::default(),
        problem: None,
    };
    let model = model.map(&mut add);
    let unused = add.adapters.into_keys().next();
    let unused = unused.map(|module| format!("the model has no matrix `{module}` to adapt"));
    match add.problem.or(unused) {
        Some(problem) => Err(Error::file(&file, problem)),
        None => {
            log::warn!("{}: the adapter is added to the weights", path.display());
            Ok(model)
        }
    }
}

struct Add {
    /// A and B by the adapted module's path.
    adapters: BTreeMap<String, [Option<Matrix>; 2]>,
    alpha: f64,
    use_rslora: bool,
    path: ModulePath,
    problem: Option<String>,
}

impl Add {
    /// Adds `α / r · B A`, or `α / √r · B A` (rsLoRA), to a module's weight.
    fn add(
        &self,
        module: &str,
        [a, b]: [Option<Matrix>; 2],
        weight: TensorData,
    ) -> Result<TensorData, String> {
        let (Some(a), Some(b)) = (a, b) else {
            return Err(format!("`{module}` has one of lora_A and lora_B only"));
        };
        let (rank, d_input, d_output) = (a.rows, a.columns, b.rows);
        let transposed = self.path.is_transposed();
        let stored = match transposed {
            true => [d_input, d_output],
            false => [d_output, d_input],
        };
        if rank == 0 || rank != b.columns || weight.shape.as_slice() != stored {
            return Err(format!(
                "`{module}`: lora_A {:?} and lora_B {:?} do not fit its weight {:?}",
                [a.rows, a.columns],
                [b.rows, b.columns],
                weight.shape.as_slice()
            ));
        }
        let r = rank as f64;
        let scale = self.alpha / if self.use_rslora { r.sqrt() } else { r };
        let mut sum: Vec<f64> = weight.iter().collect();
        for output in 0..d_output {
            let mut row = vec![0.0; d_input];
            for (b, a) in b.values[output * rank..]
                .iter()
                .zip(a.values.chunks_exact(d_input))
            {
                for (to, a) in row.iter_mut().zip(a) {
                    *to += b * a;
                }
            }
            for (input, added) in row.into_iter().enumerate() {
                let at = match transposed {
                    true => input * d_output + output,
                    false => output * d_input + input,
                };
                sum[at] += scale * added;
            }
        }
        let sum = TensorData::new(sum, stored).convert_dtype(weight.dtype);
        let is_finite = sum.iter::<f64>().all(f64::is_finite);
        match is_finite {
            true => Ok(sum),
            false => Err(format!(
                "`{module}`: the weight with its adapter is not finite"
            )),
        }
    }
}

impl<B: Backend> ModuleMapper<B> for Add {
    follows_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let name = self.path.name();
        let module = name.strip_suffix(".weight").filter(|_| D == 2);
        let Some((module, adapter)) = module.and_then(|module| self.adapters.remove_entry(module))
        else {
            return param;
        };
        let weight = param.val();
        let (device, dtype) = (weight.device(), weight.dtype());
        match self.add(&module, adapter, weight.into_data()) {
            Err(problem) => {
                self.problem.get_or_insert(problem);
                param
            }
            Ok(sum) => {
                let id = param.id;
                param.transform_for_load(Tensor::from_data(sum, (&device, dtype)), id)
            }
        }
    }
}
