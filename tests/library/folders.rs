//! Model folders as they are in the world: heads, adapters, indices, special tokens, and files that are not what their
//! name says.

use std::path::Path;

use burn::tensor::{Int, Tensor, TensorData};
use gradmem::interop::checkpoint::{self, SpecialTokens};
use gradmem::memory::GradMemConfig;
use gradmem::method::{AnyMethod, MethodConfig};
use gradmem::model::weights::{self, Tensors};
use gradmem::model::{
    AnyLm, CausalLm, Gpt2Config, GptNeoXConfig, LlamaConfig, MambaConfig, ModelConfig,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::pretrained::{load, load_error, saved, tensors, write_tensors};

type B = burn_flex::Flex;

/// A model of each type whose head is tied to its embedding, and the names of both.
fn tied() -> [(ModelConfig, &'static str, &'static str); 4] {
    [
        (
            ModelConfig::Llama(LlamaConfig::new(24, 16, 2, 2)),
            "model.embed_tokens.weight",
            "lm_head.weight",
        ),
        (
            ModelConfig::Gpt2(Gpt2Config::new(24, 16, 2, 2)),
            "transformer.wte.weight",
            "lm_head.weight",
        ),
        (
            ModelConfig::GptNeoX(GptNeoXConfig::new(24, 16, 2, 2).with_tied_head(true)),
            "gpt_neox.embed_in.weight",
            "embed_out.weight",
        ),
        (
            ModelConfig::Mamba(MambaConfig::new(24, 16, 2)),
            "backbone.embeddings.weight",
            "lm_head.weight",
        ),
    ]
}

/// A matrix `[rows, columns]` of numbers that are not alike.
fn matrix([rows, columns]: [usize; 2]) -> TensorData {
    let numbers = (0..rows * columns).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0);
    TensorData::new(numbers.collect::<Vec<_>>(), [rows, columns])
}

fn hidden<M: CausalLm<B>>(model: &M) -> Tensor<B, 3> {
    let ids: Tensor<B, 2, Int> = Tensor::from_data([[5, 7, 9, 11]], &Default::default());
    model.hidden(model.embed(ids))
}

fn numbers<const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

fn close(found: &[f32], expected: &[f32]) -> bool {
    let pairs = found.iter().zip(expected);
    found.len() == expected.len() && pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5)
}

#[test]
fn a_head_that_was_trained_apart_is_kept() {
    for (config, embedding, head) in tied() {
        let folder = saved(&config);
        let file = folder.path().join("model.safetensors");
        let plain = load(folder.path()).unwrap().model;
        let mut all = tensors(folder.path());
        let own = matrix([24, 16]);
        all.push((head.into(), own.clone()));
        write_tensors(&file, &all);
        let kept = load(folder.path()).unwrap().model;
        assert!(!kept.config().tied_head(), "{embedding}");
        let weight: Tensor<B, 2> = Tensor::from_data(own, &Default::default());
        let expected = hidden(&plain)
            .squeeze_dim::<2>(0)
            .matmul(weight.transpose());
        let found = numbers(kept.logits(hidden(&kept)));
        assert!(close(&found, &numbers(expected)), "{embedding}");

        // An equal copy is the same model, and so is a head that is stored in the embedding's place.
        let plain_logits = numbers(plain.logits(hidden(&plain)));
        let at = all.iter().position(|(name, _)| name == embedding).unwrap();
        all.last_mut().unwrap().1 = all[at].1.clone();
        write_tensors(&file, &all);
        let same = load(folder.path()).unwrap().model;
        assert_eq!(same.config(), config);
        assert_eq!(numbers(same.logits(hidden(&same))), plain_logits);
        all.remove(at);
        write_tensors(&file, &all);
        let alone = load(folder.path()).unwrap().model;
        assert_eq!(numbers(alone.logits(hidden(&alone))), plain_logits);
    }
}

/// Newer versions of transformers call it as other models do.
#[test]
fn the_head_of_gpt_neox_has_two_names() {
    let config = ModelConfig::GptNeoX(GptNeoXConfig::new(24, 16, 2, 2));
    let device = Default::default();
    let method: AnyMethod<B> = MethodConfig::GradMem(GradMemConfig::new())
        .init(&config, 3, &device)
        .unwrap();
    let checkpoint_folder = TempDir::new().unwrap();
    let path = checkpoint_folder.path();
    checkpoint::save(path, &method, None, &SpecialTokens::default()).unwrap();
    let folder = saved(&config);
    let renamed = |folder: &Path| {
        let mut all = tensors(folder);
        let head = all
            .iter_mut()
            .find(|(name, _)| name.ends_with("embed_out.weight"));
        let (name, _) = head.unwrap();
        *name = name.replace("embed_out", "lm_head");
        write_tensors(&folder.join("model.safetensors"), &all);
    };
    let before = load(folder.path()).unwrap().model;
    renamed(folder.path());
    let after = load(folder.path()).unwrap().model;
    assert!(!after.config().tied_head());
    let logits = |model: &AnyLm<B>| numbers(model.logits(hidden(model)));
    assert_eq!(logits(&before), logits(&after));
    renamed(path);
    let again = checkpoint::load::<B>(path, &device).unwrap();
    assert_eq!(logits(again.model()), logits(method.model()));
}

#[test]
fn keys_of_other_kinds_of_attention_are_refused_unless_they_change_nothing() {
    let folder = saved(&tied()[0].0);
    let path = folder.path().join("config.json");
    let plain: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value, is_fine) in [
        ("is_causal", json!(true), true),
        ("is_causal", json!(false), false),
        ("sliding_window", Value::Null, true),
        ("sliding_window", json!(1 << 20), true),
        ("sliding_window", json!(16), false),
        ("attention_chunk_size", json!(16), false),
    ] {
        let mut config = plain.clone();
        config[key] = value.clone();
        std::fs::write(&path, config.to_string()).unwrap();
        let found = ModelConfig::open(&path);
        match found {
            Ok(_) => assert!(is_fine, "{key} = {value}"),
            Err(error) => assert!(!is_fine && error.to_string().contains(key), "{error}"),
        }
    }
}

#[cfg(unix)]
#[test]
fn a_configuration_without_an_end_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("config.json");
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    let error = ModelConfig::open(&path).unwrap_err().to_string();
    assert!(
        error.contains("config.json: is not a regular file"),
        "{error}"
    );
}

#[test]
fn a_checkpoint_of_the_reference_keeps_its_head_too() {
    let (config, ..) = tied()[0].clone();
    let device = Default::default();
    let method: AnyMethod<B> = MethodConfig::GradMem(GradMemConfig::new())
        .init(&config, 3, &device)
        .unwrap();
    let folder = TempDir::new().unwrap();
    checkpoint::save(&folder, &method, None, &SpecialTokens::default()).unwrap();
    let mut all = tensors(folder.path());
    all.push(("model.lm_head.weight".into(), matrix([24, 16])));
    write_tensors(&folder.path().join("model.safetensors"), &all);
    let loaded: AnyMethod<B> = checkpoint::load(folder.path(), &device).unwrap();
    let head = numbers(loaded.model().head());
    assert_eq!(head, matrix([24, 16]).iter::<f32>().collect::<Vec<_>>());
    std::fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
    let error = checkpoint::load::<B>(folder.path(), &device).unwrap_err();
    assert!(error.to_string().contains("adapter_config.json"), "{error}");
}

/// Writes an adapter of rank 2 for one module, whose weight is stored as `[rows, columns]`.
fn adapt(folder: &Path, module: &str, [d_output, d_input]: [usize; 2], more: Value) {
    let mut config = json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["any"],
        "base_model_name_or_path": "someone/base", "task_type": "CAUSAL_LM", "inference_mode": true,
        "use_dora": false, "modules_to_save": null, "alpha_pattern": {}, "init_lora_weights": true,
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let name = |part: &str| format!("base_model.model.{module}.{part}.weight");
    write_tensors(
        &folder.join("adapter_model.safetensors"),
        &[
            (name("lora_A"), matrix([2, d_input])),
            (name("lora_B"), matrix([d_output, 2])),
        ],
    );
}

#[test]
fn an_adapter_beside_the_weights_is_added_to_them() {
    let llama = ("model.layers.1.self_attn.q_proj", [16, 16], false);
    let gpt2 = ("transformer.h.1.mlp.c_fc", [64, 16], true);
    let [(a, ..), (b, ..), ..] = tied();
    for (config, (module, shape, transposed)) in [(a, llama), (b, gpt2)] {
        for (more, scale) in [
            (json!({}), 2.0),
            (json!({ "use_rslora": true }), 4.0 / 2f64.sqrt()),
        ] {
            let folder = saved(&config);
            let weight = format!("{module}.weight");
            let plain = Tensors::open(folder.path().join("model.safetensors")).unwrap();
            let device = Default::default();
            let plain: Tensor<B, 2> = Tensor::from_data(plain.get(&weight).unwrap(), &device);
            let up: Tensor<B, 2> = Tensor::from_data(matrix([shape[0], 2]), &device);
            let down: Tensor<B, 2> = Tensor::from_data(matrix([2, shape[1]]), &device);
            let change = up.matmul(down).mul_scalar(scale);
            let change = if transposed {
                change.transpose()
            } else {
                change
            };
            adapt(folder.path(), module, shape, more);
            let adapted = load(folder.path()).unwrap().model;
            let all = weights::parameters(&adapted);
            let (_, found) = all.into_iter().find(|(name, _)| *name == weight).unwrap();
            let found: Vec<f32> = found.iter().collect();
            assert!(close(&found, &numbers(plain + change)), "{module}");
        }
    }
}

#[test]
fn adapters_that_are_more_than_a_sum_are_refused() {
    let (config, ..) = tied()[0].clone();
    let folder = saved(&config);
    let q = "model.layers.0.self_attn.q_proj";
    for (more, words) in [
        (json!({ "peft_type": "IA3" }), "IA3"),
        (json!({ "use_dora": true }), "use_dora"),
        (json!({ "bias": "all" }), "bias"),
        (json!({ "modules_to_save": ["lm_head"] }), "modules_to_save"),
        (json!({ "alpha_pattern": { "q_proj": 8 } }), "alpha_pattern"),
        (json!({ "init_lora_weights": "pissa" }), "init_lora_weights"),
    ] {
        adapt(folder.path(), q, [16, 16], more);
        let error = load_error(folder.path());
        assert!(
            error.contains(words) && error.contains("adapter_config.json"),
            "{error}"
        );
    }
    for (module, shape, words) in [
        ("model.layers.7.self_attn.q_proj", [16, 16], "has no matrix"),
        (q, [24, 16], "do not fit"),
    ] {
        adapt(folder.path(), module, shape, json!({}));
        let error = load_error(folder.path());
        assert!(error.contains(words) && error.contains(module), "{error}");
    }
    adapt(folder.path(), q, [16, 16], json!({}));
    let stray = (
        "base_model.model.lora_embedding_A".to_string(),
        matrix([2, 24]),
    );
    write_tensors(&folder.path().join("adapter_model.safetensors"), &[stray]);
    assert!(load_error(folder.path()).contains("lora_embedding_A"));
}

#[test]
fn an_index_may_list_what_is_not_stored_and_not_needed() {
    let (config, ..) = tied()[0].clone();
    let folder = saved(&config);
    let all = tensors(folder.path());
    let from = folder.path().join("model.safetensors");
    std::fs::rename(from, folder.path().join("model-00001.safetensors")).unwrap();
    let with = |more: &str| {
        let mut map: serde_json::Map<String, Value> = all
            .iter()
            .map(|(name, _)| (name.clone(), "model-00001.safetensors".into()))
            .collect();
        map.insert(more.into(), "model-00001.safetensors".into());
        let index = json!({ "weight_map": map }).to_string();
        let path = folder.path().join("model.safetensors.index.json");
        std::fs::write(path, index).unwrap();
    };
    for more in [
        "lm_head.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    ] {
        with(more);
        load(folder.path()).unwrap();
    }
    with("model.layers.0.self_attn.q_norm.weight");
    assert!(load_error(folder.path()).contains("q_norm"));
}

#[test]
fn files_of_another_kind_are_named() {
    let (config, ..) = tied()[0].clone();
    let folder = saved(&config);
    let path = |name: &str| folder.path().join(name);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n";
    std::fs::write(path("model.safetensors"), pointer).unwrap();
    let error = load_error(folder.path());
    assert!(
        error.contains("Git LFS") && error.contains("git lfs pull"),
        "{error}"
    );
    std::fs::remove_file(path("model.safetensors")).unwrap();
    std::fs::write(path("pytorch_model.bin"), b"PK\x03\x04").unwrap();
    let error = load_error(folder.path());
    assert!(error.contains("save_pretrained"), "{error}");
    for (bytes, words) in [
        (&b"\xff\xfe{\0}\0"[..], "UTF-16"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (pointer.as_bytes(), "Git LFS"),
    ] {
        std::fs::write(path("config.json"), bytes).unwrap();
        let error = load_error(folder.path());
        assert!(
            error.contains(words) && error.contains("config.json"),
            "{error}"
        );
    }
}

#[test]
fn special_tokens_are_those_of_the_model_or_an_error() {
    let (config, ..) = tied()[0].clone();
    let folder = saved(&config);
    let path = |name: &str| folder.path().join(name);
    let text = std::fs::read_to_string(path("config.json")).unwrap();
    let good: Value = serde_json::from_str(&text).unwrap();
    let with = |more: Value| {
        let mut json = good.clone();
        for (key, value) in more.as_object().unwrap() {
            json[key] = value.clone();
        }
        std::fs::write(path("config.json"), json.to_string()).unwrap();
        load(folder.path()).map(|loaded| loaded.special)
    };
    let special = |pad, ends: &[u32]| SpecialTokens {
        pad,
        ends: ends.to_vec(),
        begin: None,
    };
    assert_eq!(with(json!({})).unwrap(), special(0, &[]));
    let several = with(json!({ "eos_token_id": [5, 7] })).unwrap();
    assert_eq!(several, special(5, &[5, 7]));
    let none = with(json!({ "pad_token_id": -1, "eos_token_id": 3 })).unwrap();
    assert_eq!(none, special(3, &[3]));
    assert_eq!(
        with(json!({ "eos_token_id": null })).unwrap(),
        special(0, &[])
    );
    let beyond = with(json!({ "pad_token_id": 24, "eos_token_id": 3 })).unwrap();
    assert_eq!(beyond, special(3, &[3]));
    for (key, value) in [
        ("pad_token_id", json!("<pad>")),
        ("eos_token_id", json!("</s>")),
    ] {
        let error = with(json!({ key: value })).unwrap_err().to_string();
        assert!(
            error.contains(key) && error.contains("config.json"),
            "{error}"
        );
    }
    let generation = path("generation_config.json");
    std::fs::write(&generation, r#"{"eos_token_id": [8, 9]}"#).unwrap();
    assert_eq!(
        with(json!({ "eos_token_id": 2 })).unwrap(),
        special(2, &[8, 9])
    );
    // One that the model does not have ends no text: then the other file's counts.
    std::fs::write(&generation, r#"{"eos_token_id": 24}"#).unwrap();
    assert_eq!(
        with(json!({ "eos_token_id": [24, 4] })).unwrap(),
        special(4, &[4])
    );
    std::fs::write(&generation, r#"{"eos_token_id": "end"}"#).unwrap();
    let error = with(json!({})).unwrap_err().to_string();
    assert!(error.contains("generation_config.json"), "{error}");
}
