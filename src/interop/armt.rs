//! ARMT in the reference's checkpoints: `model_type` `armt`, for both of its implementations.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::baselines::{ArmtConfig, ArmtImplementation};
use crate::model::ModelConfig;
use crate::model::config_json::NEUTRAL;

/// What `model_type` says.
pub const MODEL_TYPE: &str = "armt";

/// Where the reference's full checkpoints of `old` have the memory.
const OUTER: &str = "armt.";

/// Its settings, with the reference's defaults.
#[derive(Deserialize)]
#[serde(default)]
struct Stored {
    armt_impl: ArmtImplementation,
    num_mem_tokens: usize,
    d_mem: usize,
    n_heads: usize,
    segment_size: Option<usize>,
    correction: bool,
    use_denom: bool,
    gating: bool,
    dpfp_nu: usize,
    wrap_pos: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Default for Stored {
    fn default() -> Self {
        Self {
            armt_impl: ArmtImplementation::Thinking,
            num_mem_tokens: 16,
            d_mem: 512,
            n_heads: 1,
            segment_size: Some(512),
            correction: true,
            use_denom: true,
            gating: false,
            dpfp_nu: 3,
            wrap_pos: false,
            rest: Map::new(),
        }
    }
}

/// The settings in a `config.json`. The error is the problem with it.
pub fn read(json: &Map<String, Value>) -> Result<ArmtConfig, String> {
    let stored: Stored =
        serde_json::from_value(Value::Object(json.clone())).map_err(|e| e.to_string())?;
    let known = |key: &str| ["model_type", "base_config"].contains(&key) || NEUTRAL.contains(&key);
    if let Some(key) = stored.rest.keys().find(|key| !known(key)) {
        return Err(format!(
            "`{key}` is no setting of armt that this crate knows"
        ));
    }
    if stored.wrap_pos {
        return Err("`wrap_pos` = true is not supported: memory vectors have no positions of their own here".into());
    }
    let config = ArmtConfig {
        implementation: stored.armt_impl,
        memory_tokens: stored.num_mem_tokens,
        d_mem: stored.d_mem,
        n_heads: stored.n_heads,
        segment_size: stored.segment_size,
        correction: stored.correction,
        use_denom: stored.use_denom,
        gating: stored.gating,
        dpfp_nu: stored.dpfp_nu,
        memory_std: None,
    };
    config.validate().map_err(|e| e.to_string())?;
    Ok(config)
}

/// The settings as a `config.json` has them.
pub fn to_json(base: Map<String, Value>, config: &ArmtConfig) -> Value {
    json!({
        "model_type": MODEL_TYPE,
        "base_config": base,
        "armt_impl": config.implementation,
        "num_mem_tokens": config.memory_tokens,
        "d_mem": config.d_mem,
        "n_heads": config.n_heads,
        "segment_size": config.segment_size,
        "correction": config.correction,
        "use_denom": config.use_denom,
        "gating": config.gating,
        "dpfp_nu": config.dpfp_nu,
        "wrap_pos": false,
    })
}

/// Fails where the reference computes another function of these weights. The error is the reason.
pub fn check(model: &ModelConfig, config: &ArmtConfig) -> Result<(), String> {
    match (model, config.implementation) {
        (ModelConfig::Gpt2(_), ArmtImplementation::Thinking) => Err(
            "armt_impl \"thinking\" on a gpt2 is another function in the reference: its learned positions count on from \
             segment to segment there, and begin at 0 here"
                .into(),
        ),
        _ => Ok(()),
    }
}

/// The reference's names of an ARMT's parameters.
pub struct Names {
    /// Before all of them.
    prefix: String,
    /// The list of the model's layers.
    blocks: &'static str,
}

impl Names {
    /// As the reference's implementation has them.
    pub fn new(model: &ModelConfig, config: &ArmtConfig) -> Self {
        let blocks = match model {
            ModelConfig::Gpt2(_) => "transformer.h.",
            ModelConfig::GptNeoX(_) => "gpt_neox.layers.",
            ModelConfig::Llama(_) => "model.layers.",
            ModelConfig::Mamba(_) => "backbone.layers.",
        };
        let prefix = match config.implementation {
            ArmtImplementation::Thinking => "",
            ArmtImplementation::Old => "memory_cell.",
        };
        Self {
            prefix: prefix.into(),
            blocks,
        }
    }

    /// As a file with tensors of these `names` has them, which may have one name more in front of all.
    pub fn stored_as<'a>(mut self, mut names: impl Iterator<Item = &'a str>) -> Self {
        if names.any(|name| name.starts_with(OUTER)) {
            self.prefix.insert_str(0, OUTER);
        }
        self
    }

    /// Of a parameter of the language model: those of a layer are one level deeper.
    pub fn of_model(&self, path: &str) -> String {
        let Self { prefix, blocks } = self;
        let in_layer = path.strip_prefix(blocks);
        match in_layer.and_then(|path| path.split_once('.')) {
            Some((layer, rest)) => format!("{prefix}model.{blocks}{layer}.layer.{rest}"),
            None => format!("{prefix}model.{path}"),
        }
    }

    /// Of a parameter beside it.
    pub fn of_memory(&self, path: &str) -> String {
        let Self { prefix, blocks } = self;
        let in_layer = path.strip_prefix("layers.");
        match in_layer.and_then(|path| path.split_once(".w_")) {
            Some((layer, rest)) => format!("{prefix}model.{blocks}{layer}.W_{rest}"),
            None => format!("{prefix}{path}"),
        }
    }
}
