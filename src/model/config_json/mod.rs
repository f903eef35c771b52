//! Hugging Face's `config.json`, as the versions 4.57 and 5 of `transformers` read it.
//!
//! Every key of a configuration is used, or cannot change what a model computes, or is refused. A key that no version
//! has is ignored, as by `transformers`, and a warning names it.

mod rope;

use std::path::Path;

use serde_json::{Map, Value};

use super::any::ModelConfig;
use crate::error::Error;
use crate::support::fs::read_object;

type Object = Map<String, Value>;

/// Keys of all models that do not change logits: names and versions, number formats, outputs, labels, ids of
/// special tokens, and settings of generation and training.
pub(crate) const NEUTRAL: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "attn_implementation",
    "architectures",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "use_bfloat16",
    "use_cache",
];

/// Keys of one model that do not change logits: dropout, initial weights, the order of additions, the classification
/// head, and sizes that other keys determine.
fn neutral_of(model_type: &str) -> &'static [&'static str] {
    match model_type {
        "gpt2" => &[
            "attn_pdrop",
            "embd_pdrop",
            "n_ctx",
            "reorder_and_upcast_attn",
            "resid_pdrop",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        ],
        "gpt_neox" => &["attention_dropout", "classifier_dropout", "hidden_dropout"],
        "llama" => &["attention_dropout", "pretraining_tp"],
        "mamba" => &[
            "d_inner",
            "d_model",
            "fused_add_norm",
            "n_layer",
            "pad_vocab_size_multiple",
            "rescale_prenorm_residual",
            "residual_in_fp32",
            "rms_norm",
            "ssm_cfg",
            "time_step_floor",
            "time_step_init_scheme",
            "time_step_scale",
            "use_associative_scan",
            "use_mambapy",
        ],
        _ => &[],
    }
}

/// Keys that would change the model, which this crate does not have: only this value is accepted.
fn off(key: &str) -> Option<Value> {
    Some(match key {
        "add_cross_attention" | "is_encoder_decoder" | "rope_interleaved" => false.into(),
        // Newer versions of transformers look ahead without it.
        "is_causal" => true.into(),
        "cross_attention_hidden_size" | "quantization_config" | "compression_config" => Value::Null,
        "pruned_heads" => Value::Object(Map::new()),
        window if WINDOWS.contains(&window) => Value::Null,
        _ => return None,
    })
}

/// Keys of windows that attention is limited to: only ones that hold all positions are accepted.
const WINDOWS: [&str; 2] = ["sliding_window", "attention_chunk_size"];

/// The names that `transformers` accepts for GPT-2's own.
const GPT2_ALIASES: &[(&str, &str)] = &[
    ("hidden_size", "n_embd"),
    ("max_position_embeddings", "n_positions"),
    ("num_attention_heads", "n_head"),
    ("num_hidden_layers", "n_layer"),
];

impl ModelConfig {
    /// Reads a `config.json` of Hugging Face's `transformers`, of version 4 or 5. A warning names keys that have no
    /// meaning, and values of which one takes precedence over the other.
    ///
    /// # Errors
    ///
    /// An unknown `model_type`, a missing size, a value of the wrong type, sizes that are inconsistent, or a setting
    /// that would change the model and that this crate does not have.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        Self::from_json(&read_object(path)?, path)
    }

    /// [`ModelConfig::open`] of an object that was read from `path`.
    pub(crate) fn from_json(json: &Map<String, Value>, path: &Path) -> Result<Self, Error> {
        parse(json, path)
    }
}

fn parse(json: &Object, path: &Path) -> Result<ModelConfig, Error> {
    let problem = |problem: String| Error::file(path, problem);
    let found = json.get("model_type");
    let model_type = found.and_then(Value::as_str).unwrap_or_default();
    let Some(defaults) = ModelConfig::of_type(model_type) else {
        let found = found.map_or("missing".into(), Value::to_string);
        let known = ModelConfig::TYPES.join(", ");
        return Err(problem(format!(
            "`model_type` is {found}, not one of {known}"
        )));
    };
    let mut json = json.clone();
    json.retain(|_, value| !value.is_null());
    if model_type == "gpt2" {
        for (alias, key) in GPT2_ALIASES {
            if let Some(value) = json.remove(*alias)
                && let Some(other) = json.insert((*key).into(), value.clone())
                && other != value
            {
                return Err(problem(format!(
                    "`{key}` = {other} contradicts `{alias}` = {value}"
                )));
            }
        }
    }
    let sizes: &[&str] = match model_type {
        "gpt2" => &["vocab_size", "n_embd", "n_layer", "n_head"],
        "mamba" => &["vocab_size", "hidden_size", "num_hidden_layers"],
        _ => &[
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        ],
    };
    if let Some(size) = sizes.iter().find(|size| !json.contains_key(**size)) {
        return Err(problem(format!("has no `{size}`")));
    }
    let said = |warning: String| log::warn!("{}: {warning}", path.display());
    match model_type {
        "llama" => {
            rope::unify(&mut json, rope::LLAMA, said).map_err(problem)?;
            // The defaults of `transformers`; those of `LlamaConfig` are for small models.
            for (key, value) in [
                ("rope_theta", Value::from(10_000.0)),
                ("rms_norm_eps", 1e-6.into()),
                ("max_position_embeddings", 2048.into()),
                ("tie_word_embeddings", false.into()),
            ] {
                json.entry(key).or_insert(value);
            }
        }
        "gpt_neox" => rope::unify(&mut json, rope::GPT_NEOX, said).map_err(problem)?,
        _ => {}
    }
    let used = match serde_json::to_value(&defaults) {
        Ok(Value::Object(used)) => used,
        _ => Map::new(),
    };
    let positions = ["max_position_embeddings", "n_positions"].map(|key| json.get(key)?.as_u64());
    let positions = positions.into_iter().flatten().next().or(Some(u64::MAX));
    for (key, value) in &json {
        let neutral = [NEUTRAL, neutral_of(model_type)];
        let is_neutral = neutral.iter().any(|keys| keys.contains(&key.as_str()));
        if used.contains_key(key) || is_neutral {
            continue;
        }
        match off(key) {
            Some(only) if *value == only => {}
            // Windows of attention, which transformers applies in generation whatever the model.
            _ if WINDOWS.contains(&key.as_str()) && value.as_u64() >= positions => {}
            Some(_) => {
                return Err(problem(format!(
                    "`{key}` = {value} is not supported: this crate's {model_type} does not have it"
                )));
            }
            None => log::warn!(
                "{}: `{key}` is no setting of a {model_type}: it is ignored",
                path.display()
            ),
        }
    }
    json.retain(|key, _| used.contains_key(key));
    json.insert("model_type".into(), model_type.into());
    let config: ModelConfig = serde_json::from_value(Value::Object(json.clone())).map_err(|e| {
        problem(unsupported_key(&json, model_type).unwrap_or_else(|| e.to_string()))
    })?;
    config.validate().map_err(|e| problem(e.to_string()))?;
    Ok(config)
}

/// The key whose value cannot be read, found by reading each one alone.
fn unsupported_key(json: &Object, model_type: &str) -> Option<String> {
    json.iter().find_map(|(key, value)| {
        let alone = serde_json::json!({ "model_type": model_type, key: value });
        let error = serde_json::from_value::<ModelConfig>(alone).err()?;
        Some(format!("`{key}` = {value} is not supported: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::layers::RopeType;

    fn parsed(kind: &str, more: Value) -> Result<ModelConfig, String> {
        let mut json = match kind {
            "gpt2" => json!({ "vocab_size": 8, "n_embd": 8, "n_layer": 1, "n_head": 2 }),
            "mamba" => json!({ "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1 }),
            _ => json!({
                "vocab_size": 8, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 2,
            }),
        };
        json["model_type"] = kind.into();
        let Value::Object(json) = &mut json else {
            unreachable!("an object, as written above");
        };
        let Value::Object(more) = more else {
            unreachable!("the tests give objects");
        };
        json.extend(more);
        parse(json, Path::new("config.json")).map_err(|e| e.to_string())
    }

    /// θ, the scaling rule and its factor.
    fn llama(more: Value) -> (f64, Option<(RopeType, f64)>) {
        match parsed("llama", more).unwrap() {
            ModelConfig::Llama(c) => {
                let rule = c.rope_scaling;
                (c.rope_theta, rule.map(|rule| (rule.rope_type, rule.factor)))
            }
            other => panic!("{other:?}"),
        }
    }

    /// θ and the share that is rotated.
    fn neox(more: Value) -> (f64, f64) {
        match parsed("gpt_neox", more).unwrap() {
            ModelConfig::GptNeoX(c) => (c.rotary_emb_base, c.rotary_pct),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_setting_with_two_homes_is_read_as_transformers_5_reads_it() {
        let linear = Some((RopeType::Linear, 4.0));
        for (more, found) in [
            (json!({}), (1e4, None)),
            (json!({ "rope_theta": 5e5 }), (5e5, None)),
            (
                json!({ "rope_theta": 1e4, "rope_parameters": { "rope_theta": 5e5, "rope_type": "default" } }),
                (5e5, None),
            ),
            (
                json!({ "rope_scaling": { "rope_theta": 5e5, "rope_type": "default" } }),
                (5e5, None),
            ),
            (
                json!({ "rope_theta": 2e4, "rope_scaling": { "type": "linear", "factor": 4.0 } }),
                (2e4, linear),
            ),
            (
                json!({ "rope_theta": 2e4, "rope_scaling": null, "rope_parameters": { "rope_type": "linear", "factor": 4.0 } }),
                (2e4, linear),
            ),
            (
                json!({
                    "rope_scaling": { "rope_theta": 5e5, "rope_type": "linear", "factor": 4.0 },
                    "rope_parameters": { "rope_theta": 2e4, "rope_type": "default" },
                }),
                (5e5, linear),
            ),
            (
                json!({ "rope_scaling": {}, "rope_parameters": { "rope_theta": 2e4, "rope_type": "default" } }),
                (2e4, None),
            ),
        ] {
            assert_eq!(llama(more.clone()), found, "{more}");
        }
        for (more, found) in [
            (json!({}), (1e4, 0.25)),
            (
                json!({ "rotary_pct": 0.5, "rotary_emb_base": 2e4 }),
                (2e4, 0.5),
            ),
            (
                json!({
                    "rotary_pct": 0.25, "rotary_emb_base": 1e4,
                    "rope_parameters": { "partial_rotary_factor": 0.5, "rope_theta": 2e4, "rope_type": "default" },
                }),
                (2e4, 0.5),
            ),
            // No version reads these for GPT-NeoX.
            (
                json!({ "rope_theta": 2e4, "partial_rotary_factor": 0.5 }),
                (1e4, 0.25),
            ),
        ] {
            assert_eq!(neox(more.clone()), found, "{more}");
        }
    }

    #[test]
    fn dynamic_scaling_is_none_up_to_the_longest_sequence() {
        let dynamic = json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } });
        assert_eq!(llama(dynamic).1, None);
        let shorter =
            json!({ "rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 8 });
        let error = parsed("llama", json!({ "rope_scaling": shorter })).unwrap_err();
        assert!(error.contains("dynamic"), "{error}");
    }

    #[test]
    fn a_scaling_rule_is_saved_with_its_own_values() {
        let linear = json!({ "rope_scaling": { "rope_type": "linear", "factor": 4.0 } });
        let saved = parsed("llama", linear.clone()).unwrap().to_json();
        assert_eq!(saved["rope_scaling"], linear["rope_scaling"]);
    }

    #[test]
    fn settings_that_would_be_guessed_or_lost_are_refused() {
        let llama3 = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        });
        parsed("llama", json!({ "rope_scaling": llama3 })).unwrap();
        for key in [
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ] {
            let mut less = llama3.clone();
            if let Value::Object(less) = &mut less {
                less.remove(key);
            }
            let error = parsed("llama", json!({ "rope_scaling": less })).unwrap_err();
            assert!(error.contains(&format!("needs `{key}`")), "{error}");
        }
        let with = |key: &str| {
            let mut more = llama3.clone();
            more[key] = 2.0.into();
            json!({ "rope_scaling": more })
        };
        for (kind, more, words) in [
            ("llama", with("factr"), "factr"),
            ("llama", with("beta_fast"), "beta_fast"),
            (
                "llama",
                json!({ "rope_scaling": { "type": "linear" } }),
                "needs `factor`",
            ),
            (
                "llama",
                json!({ "rope_scaling": { "rope_type": "yarn", "factor": 2.0 } }),
                "yarn",
            ),
            (
                "llama",
                json!({ "rope_scaling": { "factor": 2.0 } }),
                "no meaning",
            ),
            (
                "llama",
                json!({ "rope_scaling": { "type": "default", "rope_type": "linear", "factor": 2.0 } }),
                "contradicts",
            ),
            (
                "llama",
                json!({ "rope_scaling": "linear" }),
                "not an object",
            ),
            (
                "llama",
                json!({ "partial_rotary_factor": 0.5 }),
                "partial_rotary_factor",
            ),
            (
                "llama",
                json!({ "rope_parameters": { "partial_rotary_factor": 0.5 } }),
                "partial_rotary_factor",
            ),
            (
                "llama",
                json!({ "rope_scaling": llama3, "original_max_position_embeddings": 128 }),
                "contradicts",
            ),
            (
                "llama",
                json!({ "quantization_config": { "bits": 4 } }),
                "quantization_config",
            ),
            (
                "gpt2",
                json!({ "add_cross_attention": true }),
                "add_cross_attention",
            ),
            ("gpt2", json!({ "hidden_size": 16 }), "contradicts"),
            (
                "mamba",
                json!({ "is_encoder_decoder": true }),
                "is_encoder_decoder",
            ),
            ("mamba", json!({ "hidden_act": "gelu" }), "transformers 5"),
        ] {
            let error = parsed(kind, more.clone()).unwrap_err();
            assert!(error.contains(words), "{more}: {error}");
        }
    }

    #[test]
    fn keys_without_influence_are_accepted() {
        for (kind, more) in [
            (
                "llama",
                json!({ "dtype": "bfloat16", "pretraining_tp": 2, "mystery": 1, "head_dim": null }),
            ),
            (
                "gpt2",
                json!({ "n_ctx": 1024, "summary_type": "cls_index", "add_cross_attention": false }),
            ),
            (
                "gpt2",
                json!({ "hidden_size": 8, "num_attention_heads": 2 }),
            ),
            (
                "gpt_neox",
                json!({ "hidden_dropout": 0.1, "pruned_heads": {} }),
            ),
            (
                "mamba",
                json!({ "ssm_cfg": {}, "use_mambapy": true, "d_model": 8 }),
            ),
        ] {
            parsed(kind, more).unwrap();
        }
    }
}
