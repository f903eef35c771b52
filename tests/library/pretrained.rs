//! Folders of pretrained models and checkpoints: what is saved comes back, and what cannot be right is
//! named.

use std::collections::HashMap;
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Int, Tensor, TensorData};
use gradmem::baselines::{ArmtConfig, ArmtImplementation, InContext, RmtConfig, RmtProj};
use gradmem::episode::{Episode, Tokens};
use gradmem::interop::checkpoint::{self, SpecialTokens};
use gradmem::memory::{Chunks, GradMemConfig, MemProj, MemoryFile};
use gradmem::method::{AnyMethod, MethodConfig};
use gradmem::model::generate::{GenerateConfig, Reader, continue_prompts};
use gradmem::model::weights::{self, Tensors};
use gradmem::model::{
    CausalLm, Gpt2Config, GptNeoXConfig, LlamaConfig, MambaConfig, ModelConfig, pretrained,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokenizers::AddedToken;

type B = burn_flex::Flex;
/// What a file holds, by name.
pub type Named = Vec<(String, TensorData)>;

fn configs() -> [ModelConfig; 4] {
    [
        ModelConfig::Llama(
            LlamaConfig::new(24, 16, 2, 4)
                .with_kv_heads(2)
                .with_tied_head(false),
        ),
        ModelConfig::Gpt2(Gpt2Config {
            n_positions: 64,
            ..Gpt2Config::new(24, 16, 2, 2)
        }),
        ModelConfig::GptNeoX(GptNeoXConfig::new(24, 16, 2, 2)),
        ModelConfig::Mamba(MambaConfig::new(24, 16, 2)),
    ]
}

fn logits<M: CausalLm<B>>(model: &M) -> Vec<f32> {
    let ids: Tensor<B, 2, Int> =
        Tensor::from_data([[5, 7, 9, 11], [3, 3, 2, 1]], &Default::default());
    let logits = model.logits(model.hidden(model.embed(ids)));
    logits.to_data().iter::<f32>().collect()
}

pub fn saved(config: &ModelConfig) -> TempDir {
    let folder = TempDir::new().unwrap();
    let model = config.init::<B>(1, &Default::default()).unwrap();
    pretrained::save(&folder, &model, None, &SpecialTokens::default()).unwrap();
    folder
}

pub fn load(folder: &Path) -> Result<pretrained::Pretrained<B>, gradmem::Error> {
    pretrained::load::<B>(folder, &Default::default())
}

pub fn load_error(folder: &Path) -> String {
    let error = load(folder).unwrap_err();
    assert!(error.is_user_error(), "{error}");
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

pub fn tensors(folder: &Path) -> Named {
    let file = Tensors::open(folder.join("model.safetensors")).unwrap();
    let get = |name: &str| (name.to_string(), file.get(name).unwrap());
    file.names().map(get).collect()
}

pub fn write_tensors(path: &Path, tensors: &[(String, TensorData)]) {
    let bytes = weights::encode(tensors, HashMap::new()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn edit_config(folder: &Path, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = folder.join("config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(json.as_object_mut().unwrap());
    std::fs::write(&path, json.to_string()).unwrap();
}

#[test]
fn every_model_comes_back_as_it_was_saved() {
    for config in configs() {
        let folder = saved(&config);
        let model = config.init::<B>(1, &Default::default()).unwrap();
        let loaded = load(folder.path()).unwrap();
        assert_eq!(loaded.model.config(), config);
        assert_eq!(
            logits(&loaded.model),
            logits(&model),
            "{}",
            config.model_type()
        );
        assert!(loaded.tokenizer.is_none());
    }
}

#[test]
fn half_precision_files_load() {
    for (dtype, digits) in [(DType::BF16, 8e-3), (DType::F16, 1e-3), (DType::F64, 1e-6)] {
        for config in configs() {
            let folder = saved(&config);
            let exact = load(folder.path()).unwrap();
            let tensors: Vec<_> = tensors(folder.path())
                .into_iter()
                .map(|(name, data)| (name, data.convert_dtype(dtype)))
                .collect();
            write_tensors(&folder.path().join("model.safetensors"), &tensors);
            let loaded = load(folder.path()).unwrap();
            let parameters = weights::parameters(&loaded.model);
            for ((name, a), (_, b)) in parameters.iter().zip(weights::parameters(&exact.model)) {
                assert_eq!(a.dtype, DType::F32);
                for (a, b) in a.iter::<f64>().zip(b.iter::<f64>()) {
                    assert!(
                        (a - b).abs() <= digits * b.abs().max(1e-2),
                        "{name}: {a} {b}"
                    );
                }
            }
        }
    }
}

/// Splits the weights into two files with an index.
fn shard(folder: &Path) {
    let all = tensors(folder);
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let (one, two) = all.split_at(all.len() / 2);
    let mut map = serde_json::Map::new();
    for (tensors, name) in [(one, "one.safetensors"), (two, "two.safetensors")] {
        write_tensors(&folder.join(name), tensors);
        map.extend(
            tensors
                .iter()
                .map(|(tensor, _)| (tensor.clone(), name.into())),
        );
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    std::fs::write(
        folder.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
}

#[test]
fn several_files_load_and_what_is_missing_is_named() {
    let [config, ..] = configs();
    let folder = saved(&config);
    let whole = logits(&load(folder.path()).unwrap().model);
    shard(folder.path());
    assert_eq!(logits(&load(folder.path()).unwrap().model), whole);

    let index = folder.path().join("model.safetensors.index.json");
    let good = std::fs::read_to_string(&index).unwrap();
    let with = |from: &str, to: &str| {
        std::fs::write(&index, good.replace(from, to)).unwrap();
        load_error(folder.path())
    };
    let outside = with("two.safetensors", "../two.safetensors");
    assert!(outside.contains("not a file name"), "{outside}");
    let moved = with("two.safetensors", "one.safetensors");
    assert!(
        moved.contains("is not there") && moved.contains("one.safetensors"),
        "{moved}"
    );
    let empty = with("weight_map", "map");
    assert!(empty.contains("weight_map"), "{empty}");
    std::fs::write(&index, &good).unwrap();
    std::fs::remove_file(folder.path().join("two.safetensors")).unwrap();
    let missing = load_error(folder.path());
    assert!(
        missing.contains("two.safetensors") && missing.contains("missing"),
        "{missing}"
    );
    std::fs::remove_file(&index).unwrap();
    let nothing = load_error(folder.path());
    assert!(nothing.contains("model.safetensors"), "{nothing}");
}

#[test]
fn what_old_checkpoints_have_beside_the_weights_is_let_be() {
    for config in configs() {
        let folder = saved(&config);
        let whole = logits(&load(folder.path()).unwrap().model);
        let trunk = match config.model_type() {
            "gpt2" => "transformer.",
            "gpt_neox" => "gpt_neox.",
            "llama" => "model.",
            _ => "backbone.",
        };
        let mut all = tensors(folder.path());
        if config.tied_head() {
            let (_, embedding) = all
                .iter()
                .find(|(_, data)| data.shape.to_vec() == [24, 16])
                .unwrap();
            all.push(("lm_head.weight".into(), embedding.clone()));
            // The bare trunk, without its name.
            for (name, _) in &mut all {
                *name = name.strip_prefix(trunk).unwrap_or(name).to_string();
            }
        }
        let zeros = TensorData::zeros::<f32, _>([1, 1, 4, 4]);
        for buffer in [
            "h.0.attn.bias",
            "h.0.attn.masked_bias",
            "layers.0.rotary_emb.inv_freq",
        ] {
            all.push((format!("{trunk}{buffer}"), zeros.clone()));
            if config.tied_head() {
                all.last_mut().unwrap().0 = buffer.into();
            }
        }
        write_tensors(&folder.path().join("model.safetensors"), &all);
        let loaded = load(folder.path()).unwrap();
        assert_eq!(logits(&loaded.model), whole, "{}", config.model_type());
    }
}

#[test]
fn wrong_weights_are_named() {
    let [config, ..] = configs();
    let folder = saved(&config);
    let path = folder.path().join("model.safetensors");
    let good = tensors(folder.path());
    let with = |edit: &dyn Fn(&mut Named)| {
        let mut tensors = good.clone();
        edit(&mut tensors);
        write_tensors(&path, &tensors);
        load_error(folder.path())
    };
    let at = |tensors: &[(String, TensorData)], name: &str| {
        tensors.iter().position(|(other, _)| other == name).unwrap()
    };
    let q = "model.layers.1.self_attn.q_proj.weight";
    let error = with(&|tensors| {
        let index = at(tensors, q);
        tensors.remove(index);
        tensors.push((
            "model.layers.9.extra".into(),
            TensorData::zeros::<f32, _>([2]),
        ));
    });
    assert!(error.contains(&format!("missing `{q}`")), "{error}");
    assert!(
        error.contains("unexpected `model.layers.9.extra`"),
        "{error}"
    );
    let error = with(&|tensors| {
        let index = at(tensors, q);
        tensors[index].1 = TensorData::zeros::<f32, _>([16, 8]);
    });
    assert!(
        error.contains(q) && error.contains("[16, 8]") && error.contains("[16, 16]"),
        "{error}"
    );
    for bad in [f32::NAN, f32::INFINITY] {
        let error = with(&|tensors| {
            let index = at(tensors, "model.norm.weight");
            let mut values = vec![1.0f32; 16];
            values[3] = bad;
            tensors[index].1 = TensorData::new(values, [16]);
        });
        assert!(
            error.contains("model.norm.weight") && error.contains("element 3"),
            "{error}"
        );
    }
    let error = with(&|tensors| {
        let index = at(tensors, "model.norm.weight");
        tensors[index].1 = TensorData::new(vec![1i64; 16], [16]).convert_dtype(DType::I64);
    });
    assert!(
        error.contains("model.norm.weight") && error.contains("I64"),
        "{error}"
    );
}

#[test]
fn damaged_files_are_refused_without_believing_them() {
    let [config, ..] = configs();
    let folder = saved(&config);
    let path = folder.path().join("model.safetensors");
    let good = std::fs::read(&path).unwrap();
    let huge = |claim: u64| [&claim.to_le_bytes()[..], &good[8..]].concat();
    // A header that says one tensor has more elements than there are bytes in the world.
    let lie = |shape: &str, end: u64| {
        let header = format!(
            "{{\"model.norm.weight\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[0,{end}]}}}}"
        );
        [
            &(header.len() as u64).to_le_bytes()[..],
            header.as_bytes(),
            &[0; 64],
        ]
        .concat()
    };
    for (what, bytes) in [
        ("cut short", good[..good.len() - 1].to_vec()),
        ("cut in its header", good[..100].to_vec()),
        ("empty", Vec::new()),
        ("seven bytes", good[..7].to_vec()),
        ("a header of everything", huge(u64::MAX)),
        ("a header of 90 MB", huge(90_000_000)),
        ("a tensor of everything", lie("[18446744073709551615]", 64)),
        (
            "a product that overflows",
            lie("[4294967296,4294967296,4]", 64),
        ),
        (
            "an end beyond the file",
            lie("[4611686018427387904]", u64::MAX - 7),
        ),
        (
            "no header",
            b"these are not weights, and never were".to_vec(),
        ),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = load_error(folder.path());
        assert!(
            error.contains("not a whole .safetensors file"),
            "{what}: {error}"
        );
    }
    let gguf = [&b"GGUF"[..], &[3, 0, 0, 0], &[0; 16]].concat();
    std::fs::write(&path, &gguf).unwrap();
    let words = "is a model of llama.cpp (GGUF), which is not read here: get the .safetensors";
    assert!(load_error(folder.path()).contains(words));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(folder.path().join("b.gguf"), &gguf).unwrap();
    std::fs::write(folder.path().join("a.gguf"), &gguf).unwrap();
    assert!(load_error(folder.path()).contains(&format!("a.gguf: {words}")));
    std::fs::create_dir(&path).unwrap();
    assert!(load_error(folder.path()).contains("is not a regular file"));
}

#[test]
fn configurations_that_cannot_be_are_explained() {
    let check = |config: &ModelConfig, edits: &[(&str, Value)], words: &[&str]| {
        let folder = saved(config);
        edit_config(folder.path(), |json| {
            for (key, value) in edits {
                match value {
                    Value::Null => json.remove(*key),
                    value => json.insert(key.to_string(), value.clone()),
                };
            }
        });
        let error = load_error(folder.path());
        for word in words.iter().chain(&["config.json"]) {
            assert!(
                error.contains(word),
                "{edits:?}: `{word}` is not in: {error}"
            );
        }
    };
    let [llama, gpt2, neox, mamba] = configs();
    let known = ["gpt2", "gpt_neox", "llama", "mamba"];
    check(&llama, &[("model_type", json!("opt"))], &known);
    check(&llama, &[("model_type", Value::Null)], &known);
    check(
        &llama,
        &[("hidden_act", json!("xielu"))],
        &["hidden_act", "xielu", "silu"],
    );
    check(
        &gpt2,
        &[("activation_function", json!("quick_gelu"))],
        &["quick_gelu", "gelu_new"],
    );
    let yarn = json!({ "rope_type": "yarn", "factor": 2.0 });
    check(
        &llama,
        &[("rope_scaling", yarn)],
        &["rope_scaling", "yarn", "llama3"],
    );
    let flat = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64 });
    check(
        &llama,
        &[("rope_scaling", flat)],
        &["high_freq_factor", "above"],
    );
    check(
        &llama,
        &[("hidden_size", Value::Null)],
        &["has no `hidden_size`"],
    );
    check(
        &llama,
        &[("hidden_size", json!("wide"))],
        &["hidden_size", "wide"],
    );
    check(
        &llama,
        &[("hidden_size", json!(-16))],
        &["hidden_size", "-16"],
    );
    check(
        &llama,
        &[("num_attention_heads", json!(3))],
        &["hidden_size", "multiple"],
    );
    check(
        &llama,
        &[("num_key_value_heads", json!(3))],
        &["num_key_value_heads", "divide"],
    );
    check(&llama, &[("head_dim", json!(5))], &["head_dim", "even"]);
    check(
        &gpt2,
        &[("hidden_size", json!(32))],
        &["n_embd", "hidden_size", "contradicts"],
    );
    check(&gpt2, &[("n_head", json!(3))], &["n_embd", "multiple"]);
    check(
        &neox,
        &[("rotary_pct", json!(1.5))],
        &["rotary_pct", "between 0 and 1"],
    );
    check(
        &mamba,
        &[("intermediate_size", json!(40))],
        &["intermediate_size", "expand"],
    );
    check(
        &mamba,
        &[("time_step_rank", json!("some"))],
        &["time_step_rank", "auto"],
    );
    check(
        &llama,
        &[("hidden_size", json!(1u64 << 40))],
        &["hidden_size", "at most"],
    );
    check(
        &gpt2,
        &[("n_embd", json!(u64::MAX))],
        &["n_embd", "at most"],
    );
    check(
        &mamba,
        &[("expand", json!(1u64 << 62))],
        &["expand", "at most"],
    );
    // Sizes that hardly anybody could hold are found by the weights' shapes, before anything is allocated.
    let folder = saved(&llama);
    edit_config(folder.path(), |json| {
        json.insert("intermediate_size".into(), json!(1u64 << 24));
    });
    let error = load_error(folder.path());
    assert!(
        error.contains("mlp") && error.contains("16777216"),
        "{error}"
    );
    let folder = saved(&llama);
    edit_config(folder.path(), |json| {
        json.insert("num_hidden_layers".into(), json!(1u64 << 24));
    });
    let error = load_error(folder.path());
    assert!(error.contains("16777216 layers"), "{error}");
    let folder = saved(&llama);
    std::fs::write(folder.path().join("config.json"), "[]").unwrap();
    assert!(load_error(folder.path()).contains("not a JSON object"));
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(load_error(folder.path()).contains("config.json"));
}

#[test]
fn a_configuration_that_is_silent_means_what_transformers_takes_it_to_mean() {
    let folder = TempDir::new().unwrap();
    let open = |json: Value| {
        let path = folder.path().join("config.json");
        std::fs::write(&path, json.to_string()).unwrap();
        ModelConfig::open(path).unwrap()
    };
    let ModelConfig::Llama(llama) = open(json!({
        "model_type": "llama", "vocab_size": 24, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "rope_theta": null,
    })) else {
        panic!("no llama");
    };
    assert_eq!((llama.rope_theta, llama.rms_norm_eps), (1e4, 1e-6));
    assert_eq!(
        (llama.max_position_embeddings, llama.tie_word_embeddings),
        (2048, false)
    );
    // What newer versions keep together.
    let ModelConfig::Llama(llama) = open(json!({
        "model_type": "llama", "vocab_size": 24, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "rope_scaling": null,
        "rope_parameters": { "rope_theta": 5e5, "rope_type": "linear", "factor": 4.0 },
    })) else {
        panic!("no llama");
    };
    assert_eq!(llama.rope_theta, 5e5);
    assert_eq!(llama.rope_scaling.unwrap().factor, 4.0);
}

#[test]
fn armt_is_read_with_the_name_in_front_that_full_checkpoints_have() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/armt_gpt2");
    let folder = TempDir::new().unwrap();
    std::fs::copy(case.join("config.json"), folder.path().join("config.json")).unwrap();
    let named = tensors(&case).into_iter();
    let named: Vec<_> = named
        .map(|(name, data)| (format!("armt.{name}"), data))
        .collect();
    write_tensors(&folder.path().join("model.safetensors"), &named);
    let [plain, full] = [case.as_path(), folder.path()].map(|folder| {
        let method = checkpoint::load::<B>(folder, &Default::default()).unwrap();
        weights::parameters(&method)
    });
    assert_eq!(plain, full);
    // What is not in the file is named as the file's names are.
    write_tensors(&folder.path().join("model.safetensors"), &named[1..]);
    let error = checkpoint::load::<B>(folder.path(), &Default::default()).unwrap_err();
    assert!(error.to_string().contains(&named[0].0), "{error}");
}

#[test]
fn weights_to_be_loaded_take_no_room() {
    struct Check;
    impl ModuleVisitor<B> for Check {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            assert!(!param.is_initialized());
        }
    }
    let gradmem = GradMemConfig::new()
        .with_mem_proj(MemProj::Proj)
        .with_ctrl_tokens(1)
        .with_write_head(true)
        .with_write_lora(2, 4.0)
        .with_freeze_backbone(true);
    for config in configs() {
        for method in [
            MethodConfig::GradMem(gradmem.clone()),
            MethodConfig::Rmt(RmtConfig::default()),
            MethodConfig::Armt(ArmtConfig::new().with_implementation(ArmtImplementation::Old)),
        ] {
            let blank: AnyMethod<B> = method.blank(&config, &Default::default()).unwrap();
            blank.visit(&mut Check);
        }
    }
}

#[test]
fn memories_of_another_kind_are_refused() {
    let device = Default::default();
    let folder = TempDir::new().unwrap();
    let model = || {
        LlamaConfig::new(24, 16, 1, 2)
            .init::<B>(1, &device)
            .unwrap()
    };
    let plain = GradMemConfig::new().with_memory_tokens(2);
    let with = |proj| {
        plain
            .clone()
            .with_mem_proj(proj)
            .init(model(), 2, &device)
            .unwrap()
    };
    let (none, shared, own) = (
        with(MemProj::None),
        with(MemProj::Proj),
        with(MemProj::PerSample),
    );
    let rmt = RmtConfig::new()
        .with_memory_tokens(2)
        .init(model(), 2, &device)
        .unwrap();
    let contexts = Tokens::<B>::new(&[vec![5, 6, 7], vec![8, 9]], &device).unwrap();
    let path = |name: &str| folder.path().join(name);

    let memory = own.write(&contexts).unwrap();
    own.save_memory(&memory, path("own")).unwrap();
    let back = own.load_memory(path("own")).unwrap();
    assert_eq!(back.vectors().to_data(), memory.vectors().to_data());
    let [weight, _] = back.projection().unwrap();
    assert_eq!(weight.dims(), [2, 16, 16]);
    shared
        .save_memory(&shared.write(&contexts).unwrap(), path("shared"))
        .unwrap();
    none.save_memory(&none.write(&contexts).unwrap(), path("none"))
        .unwrap();
    let by_passes = rmt.files().pack(&rmt.write(&contexts).unwrap()).unwrap();
    by_passes.save(path("rmt")).unwrap();
    assert!(rmt.files().unpack(&by_passes).is_ok());

    // Models of the same weights, so that only the kind differs.
    let refused = |result: Result<_, gradmem::Error>, word: &str| {
        let _: gradmem::memory::Memory<B> = match result {
            Ok(memory) => panic!("accepted: {memory:?}"),
            Err(error) => return assert!(error.to_string().contains(word), "{error}"),
        };
    };
    refused(shared.load_memory(path("own")), "projection of its own");
    refused(own.load_memory(path("shared")), "no projection of its own");
    refused(none.load_memory(path("rmt")), "rmt");

    let armt = ArmtConfig::new().with_keys(4, 2);
    let change = armt.clone().with_denom(false);
    let [armt, other] = [armt, change].map(|config| config.init(model(), 2, &device).unwrap());
    let by_layers = armt.write(&contexts).unwrap();
    let file = armt.files().pack(&by_layers).unwrap();
    assert_eq!(
        (file.kind(), file.origin.method.as_str()),
        ("associative", "armt")
    );
    file.save(path("armt")).unwrap();
    let file = MemoryFile::open(path("armt")).unwrap();
    for (a, b) in armt
        .files()
        .unpack(&file)
        .unwrap()
        .fast()
        .iter()
        .zip(by_layers.fast())
    {
        assert_eq!(a.to_data(), b.to_data());
    }
    refused(other.files().unpack(&file), "made of 2 matrices");
    refused(none.load_memory(path("armt")), "armt");
    refused(rmt.files().unpack(&file), "armt");
    refused(armt.files().unpack(&by_passes), "rmt");
    assert!(other.files().pack(&by_layers).is_err());
    assert!(armt.files().pack(&memory).is_err());
    // RMT writes a context as a whole.
    let chunks = plain.clone().with_chunks(2, Chunks::Concatenated);
    let chunks = chunks.init(model(), 2, &device).unwrap();
    let chunks = chunks.write(&contexts).unwrap();
    let packed = rmt.files().pack(&chunks).unwrap_err().to_string();
    assert!(packed.contains("parts of 2 chunks"), "{packed}");
    let by_steps = MemoryFile::open(path("none")).unwrap();
    refused(rmt.files().unpack(&by_steps), "gradmem");
    let queries = Tokens::<B>::new(&[[5], [6]], &device).unwrap();
    assert!(shared.read(&memory, &queries).is_err());
    assert!(rmt.read(&memory, &queries).is_err());
    assert!(
        own.write_loss(&none.write(&contexts).unwrap(), &contexts)
            .is_err()
    );
    let one = Tokens::<B>::new(&[[5, 6, 7]], &device).unwrap();
    let error = none
        .write_loss(&none.write(&one).unwrap(), &contexts)
        .unwrap_err();
    assert!(
        error.to_string().contains("1 memories, but 2 contexts"),
        "{error}"
    );
}

#[test]
fn nothing_is_an_error_not_a_panic() {
    let device = Default::default();
    let none = |shape: [usize; 2]| {
        let ids =
            Tensor::<B, 2, Int>::from_data(TensorData::new(Vec::<i64>::new(), shape), &device);
        Tokens::from_tensor(ids).unwrap()
    };
    let some = Tokens::<B>::new(&[[5, 6, 7]], &device).unwrap();
    for config in configs() {
        let model = || config.init::<B>(1, &device).unwrap();
        let gradmem = GradMemConfig::new()
            .with_ctrl_tokens(1)
            .init(model(), 2, &device)
            .unwrap();
        let rmt = RmtConfig::new().init(model(), 2, &device).unwrap();
        let prompt = InContext::new(model());
        let (written, passed) = (gradmem.write(&some).unwrap(), rmt.write(&some).unwrap());
        for shape in [[0, 3], [1, 0]] {
            assert!(gradmem.write(&none(shape)).is_err());
            assert!(rmt.write(&none(shape)).is_err());
            assert!(prompt.logits(&none(shape), &some).is_err());
            assert!(prompt.reader(&none(shape)).is_err());
        }
        for queries in [none([0, 3]), none([0, 0])] {
            assert!(gradmem.read(&written, &queries).is_err());
            assert!(rmt.read(&passed, &queries).is_err());
            assert!(gradmem.reader(&written).unwrap().logits(&queries).is_err());
            assert!(prompt.logits(&some, &queries).is_err());
        }
        // No tokens after the memory is a question, but nothing to be trained on.
        assert_eq!(
            gradmem.read(&written, &none([1, 0])).unwrap().dims(),
            [1, 1, 24]
        );
        assert_eq!(
            prompt.logits(&some, &none([1, 0])).unwrap().dims(),
            [1, 1, 24]
        );
        let unlabelled = Episode::new(some.clone(), none([1, 0]), &[[0i64; 0]]);
        assert!(unlabelled.is_err());
        let empty = Tensor::<B, 3>::zeros([0, 2, 16], &device);
        assert!(Reader::new(&gradmem.model, empty).is_err());
    }
}

/// Makes every weight not a number.
struct Spoil;

impl ModuleMapper<B> for Spoil {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        param.map(|weight| weight * f32::NAN)
    }
}

#[test]
fn what_is_not_a_number_is_neither_decoded_nor_saved() {
    let device = Default::default();
    let [llama, ..] = configs();
    let spoiled = llama.init::<B>(1, &device).unwrap().map(&mut Spoil);
    let decoded = continue_prompts(&spoiled, &[vec![3]], &GenerateConfig::default());
    assert!(decoded.unwrap_err().to_string().contains("non-finite"));
    let rmt = RmtConfig::new().init(spoiled, 2, &device).unwrap();
    let memory = rmt
        .write(&Tokens::new(&[[5, 6, 7]], &device).unwrap())
        .unwrap();
    let packed = rmt.files().pack(&memory).unwrap_err().to_string();
    assert!(
        packed.contains("memory 0 of 1") && packed.contains("non-finite"),
        "{packed}"
    );
}

#[test]
fn a_tokenizer_must_fit_the_embedding() {
    let tokenizer = gradmem::data::KvConfig::default()
        .tokenizer()
        .unwrap()
        .to_json()
        .unwrap();
    let [llama, ..] = configs();
    let folder = saved(&llama);
    std::fs::write(folder.path().join("tokenizer.json"), &tokenizer).unwrap();
    let error = load_error(folder.path());
    assert!(
        error.contains("token 69") && error.contains("24 rows"),
        "{error}"
    );
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(load_error(folder.path()).contains("not a tokenizer"));

    let wide = ModelConfig::Llama(LlamaConfig::new(70, 16, 1, 2));
    let folder = saved(&wide);
    std::fs::write(folder.path().join("tokenizer.json"), &tokenizer).unwrap();
    let loaded = load(folder.path()).unwrap();
    let tokenizer = loaded.tokenizer.unwrap();
    assert_eq!(tokenizer.encode("aZ", false).unwrap().get_ids(), [4, 55]);
    // A token that was added without a row in the embedding does not keep the others from being read.
    let mut more = tokenizer.clone();
    more.add_special_tokens(&[AddedToken::from("<more>", true)]);
    std::fs::write(
        folder.path().join("tokenizer.json"),
        more.to_string(false).unwrap(),
    )
    .unwrap();
    let more = load(folder.path()).unwrap().tokenizer.unwrap();
    assert_eq!(
        more.encode("aZ<more>", false).unwrap().get_ids(),
        [4, 55, 70]
    );
    // How some training cut its texts is not how ours are.
    let cutting = serde_json::to_value(&tokenizer).unwrap();
    let mut cutting = cutting.as_object().unwrap().clone();
    let truncation = json!({
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0
    });
    cutting.insert("truncation".into(), truncation);
    let file = folder.path().join("tokenizer.json");
    std::fs::write(&file, Value::Object(cutting).to_string()).unwrap();
    let uncut = load(folder.path()).unwrap().tokenizer.unwrap();
    assert_eq!(uncut.encode("abcd", false).unwrap().get_ids().len(), 4);
    // And back to disk.
    let copy = TempDir::new().unwrap();
    let special = SpecialTokens {
        pad: 0,
        ends: vec![2, 69],
        begin: Some(1),
    };
    // What an older model left there ended a text with another token.
    for old in ["generation_config.json", "tokenizer_config.json"] {
        std::fs::write(
            copy.path().join(old),
            r#"{"eos_token_id": 5, "add_bos_token": true}"#,
        )
        .unwrap();
    }
    pretrained::save(&copy, &loaded.model, Some(&tokenizer), &special).unwrap();
    assert_eq!(load(copy.path()).unwrap().special, special);
    let beside = std::fs::read(copy.path().join("tokenizer_config.json")).unwrap();
    let beside: Value = serde_json::from_slice(&beside).unwrap();
    assert_eq!(beside["tokenizer_class"], "PreTrainedTokenizerFast");
    assert_eq!(
        [&beside["bos_token"], &beside["eos_token"]],
        ["[BOS]", "[EOS]"]
    );
    assert!(load(copy.path()).unwrap().tokenizer.is_some());
}

#[test]
fn checkpoints_of_the_reference_are_read_and_written_back() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let all = ["golden", "oracle"].map(|folder| std::fs::read_dir(cases.join(folder)).unwrap());
    for case in all.into_iter().flatten() {
        let case = case.unwrap().path();
        if !case.is_dir() {
            continue;
        }
        let name = case.display();
        let method = checkpoint::load::<B>(&case, &Default::default());
        let method = method.unwrap_or_else(|e| panic!("{e}"));
        let folder = TempDir::new().unwrap();
        checkpoint::save(&folder, &method, None, &SpecialTokens::default()).unwrap();
        // Every tensor under its name, every setting of theirs as it was.
        let (before, after) = (tensors(&case), tensors(folder.path()));
        assert_eq!(before.len(), after.len(), "{name}");
        for ((a, x), (b, y)) in before.iter().zip(&after) {
            assert_eq!((a, x), (b, y), "{name}");
        }
        let json = |folder: &Path| -> Value {
            serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
        };
        let (before, after) = (json(&case), json(folder.path()));
        for (key, value) in after.as_object().unwrap() {
            let same = match before.get(key) {
                None => true,
                // What does nothing without its switch, and what has two spellings.
                Some(_)
                    if [
                        "base_config",
                        "inner_loss_weight",
                        "reconstruction_loss_weight",
                    ]
                    .contains(&key.as_str()) =>
                {
                    true
                }
                Some(_) if ["architectures", "torch_dtype"].contains(&key.as_str()) => true,
                Some(_) if key.starts_with("write_lora") && after["use_write_lora"] == false => {
                    true
                }
                Some(Value::String(words)) if key == "write_lora_target_modules" => {
                    let list: Vec<&str> = words.split(',').map(str::trim).collect();
                    value == &json!(list)
                }
                Some(Value::Number(number)) if value.is_number() => {
                    number.as_f64() == value.as_f64()
                }
                Some(theirs) => rope(theirs) == rope(value),
            };
            assert!(same, "{name}: {key} was {:?}, is {value}", before.get(key));
        }
        // Defaults may be left out. Of a language model alone the keys are those of transformers.
        for (key, value) in before.as_object().unwrap() {
            let defaults = [
                Value::Null,
                json!(false),
                json!("prefix"),
                json!("none"),
                json!(0.0),
            ];
            let kept = after.get(key).is_some() || matches!(method, AnyMethod::InContext(_));
            assert!(
                kept || defaults.contains(value),
                "{name}: {key} = {value} is gone"
            );
        }
        let again = checkpoint::load::<B>(&folder, &Default::default()).unwrap();
        assert_eq!(again.config(), method.config(), "{name}");
        assert_eq!(again.model().config(), method.model().config(), "{name}");
    }
}

/// A rotary scaling without what it does not say and what it says twice.
fn rope(value: &Value) -> Value {
    match value {
        Value::Object(scaling) => {
            let kept = ["rope_type", "factor"].map(|key| (key, scaling.get(key).cloned()));
            json!(HashMap::from(kept))
        }
        other => other.clone(),
    }
}

#[test]
fn the_references_settings_are_checked() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let check = |case: &str, key: &str, value: Value, words: &[&str]| {
        let folder = TempDir::new().unwrap();
        std::fs::copy(
            cases.join(case).join("config.json"),
            folder.path().join("config.json"),
        )
        .unwrap();
        edit_config(folder.path(), |json| {
            json.insert(key.into(), value.clone());
        });
        let error = checkpoint::open_config(folder.path().join("config.json")).unwrap_err();
        assert!(error.is_user_error());
        let error = error.to_string();
        for word in words {
            assert!(
                error.contains(word),
                "{key} = {value}: `{word}` is not in: {error}"
            );
        }
    };
    check(
        "llama_second",
        "use_adam",
        json!(true),
        &["use_adam", "not supported"],
    );
    check(
        "llama_second",
        "memory_update",
        json!("forward"),
        &["memory_update"],
    );
    check(
        "llama_second",
        "use_hopfield_memory",
        json!(true),
        &["use_hopfield_memory"],
    );
    check(
        "llama_second",
        "mem_proj_mode",
        json!("proj_rw"),
        &["proj_rw", "per_sample"],
    );
    check("llama_second", "base_config", Value::Null, &["base_config"]);
    check(
        "llama_second",
        "model_type",
        json!("rnn"),
        &["rnn", "grad_memgpt", "rmt_2segm", "armt", "llama"],
    );
    check(
        "llama_second",
        "model_type",
        json!("armt"),
        &["no setting of armt"],
    );
    for (case, key, value, words) in [
        (
            "armt_llama",
            "wrap_pos",
            json!(true),
            &["wrap_pos", "not supported"][..],
        ),
        ("armt_llama", "K", json!(2), &["`K`", "no setting of armt"]),
        (
            "armt_llama",
            "armt_impl",
            json!("new"),
            &["thinking", "old"],
        ),
        ("armt_llama", "n_heads", json!(3), &["d_mem", "n_heads = 3"]),
        (
            "armt_llama",
            "num_mem_tokens",
            json!(0),
            &["memory_tokens", "at least 1"],
        ),
        (
            "armt_gpt2",
            "armt_impl",
            json!("thinking"),
            &["thinking", "gpt2", "positions"],
        ),
    ] {
        check(case, key, value, words);
    }
    check(
        "llama_second",
        "n_mem_tokens",
        json!(0),
        &["memory_tokens", "at least 1"],
    );
    check("rmt_llama", "K", json!(0), &["write_steps", "at least 1"]);
    check(
        "rmt_llama",
        "use_reconstruction_loss_all_steps",
        json!(true),
        &["not supported"],
    );
    let folder = TempDir::new().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(
            cases.join("llama_write_lora").join(file),
            folder.path().join(file),
        )
        .unwrap();
    }
    edit_config(folder.path(), |json| {
        json.insert(
            "write_lora_target_modules".into(),
            json!(["q_proj", "w_proj"]),
        );
    });
    let error = checkpoint::load::<B>(&folder, &Default::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("w_proj") && error.contains("gate_proj"),
        "{error}"
    );
}

#[test]
fn options_start_where_they_change_nothing() {
    let device = Default::default();
    let model = || {
        LlamaConfig::new(24, 16, 2, 2)
            .init::<B>(1, &device)
            .unwrap()
    };
    let contexts = Tokens::<B>::new(&[vec![5, 6, 7, 8], vec![9, 3]], &device).unwrap();
    let plain = GradMemConfig::new()
        .with_memory_tokens(3)
        .with_write_lr(0.5);
    let write = |config: GradMemConfig| {
        let gradmem = config.init(model(), 2, &device).unwrap();
        gradmem.write(&contexts).unwrap().vectors().to_data()
    };
    let expected = write(plain.clone());
    for config in [
        plain.clone().with_mem_proj(MemProj::Proj),
        plain.clone().with_write_lora(4, 8.0),
        plain
            .clone()
            .with_write_lora(4, 8.0)
            .with_write_lora_targets(["q_proj", "v_proj"]),
        plain.clone().with_write_head(true),
        plain.clone().with_freeze_backbone(true),
    ] {
        let found = write(config.clone());
        for (a, b) in found.iter::<f64>().zip(expected.iter::<f64>()) {
            assert!((a - b).abs() < 1e-6, "{config:?}: {a} {b}");
        }
    }
    let bad = plain
        .with_write_lora(4, 8.0)
        .with_write_lora_targets(["embed_tokens"]);
    let error = bad.init(model(), 2, &device).unwrap_err().to_string();
    assert!(
        error.contains("embed_tokens") && error.contains("q_proj"),
        "{error}"
    );
}

#[test]
fn a_blank_method_is_filled_like_a_made_one() {
    let device = Default::default();
    let gradmem = GradMemConfig::new()
        .with_memory_tokens(2)
        .with_mem_proj(MemProj::PerSample)
        .with_ctrl_tokens(2)
        .with_write_head(true)
        .with_write_lora(2, 4.0);
    let rmt = RmtConfig {
        memory_tokens: 2,
        mem_proj: RmtProj::ProjRw,
        ctrl_tokens: 1,
        mem_residual: true,
        reconstruction_loss_weight: 0.5,
        write_head: true,
        ..RmtConfig::default()
    };
    for config in configs() {
        for method in [
            MethodConfig::GradMem(gradmem.clone()),
            MethodConfig::Rmt(rmt.clone()),
            MethodConfig::Armt(ArmtConfig::new().with_implementation(ArmtImplementation::Old)),
        ] {
            let made = method.init::<B>(&config, 3, &device).unwrap();
            let folder = TempDir::new().unwrap();
            let path = folder.path().join("weights.safetensors");
            write_tensors(&path, &weights::parameters(&made));
            let blank: AnyMethod<B> = method.blank(&config, &device).unwrap();
            let filled = Tensors::open(&path).unwrap().fill(blank).unwrap();
            assert_eq!(weights::parameters(&filled), weights::parameters(&made));
        }
    }
}

/// GPT-2 of 124 million parameters: its folder is read with little more memory than its file has.
#[cfg(target_os = "linux")]
mod memory {
    use std::io::{BufWriter, Write};
    use std::process::Command;
    use std::time::Instant;

    use super::*;

    const FOLDER: &str = "GRADMEM_TEST_FOLDER";

    fn write_folder(folder: &Path) {
        let config = ModelConfig::Gpt2(Gpt2Config::default());
        let json = Value::Object(config.to_json()).to_string();
        std::fs::write(folder.join("config.json"), json).unwrap();
        let (d, mut shapes) = (768usize, Vec::new());
        let mut push = |name: String, shape: &[usize]| shapes.push((name, shape.to_vec()));
        push("transformer.wte.weight".into(), &[50257, d]);
        push("transformer.wpe.weight".into(), &[1024, d]);
        for layer in 0..12 {
            let at = |name: &str| format!("transformer.h.{layer}.{name}");
            for norm in ["ln_1", "ln_2"] {
                push(at(&format!("{norm}.weight")), &[d]);
                push(at(&format!("{norm}.bias")), &[d]);
            }
            for (name, [input, output]) in [
                ("attn.c_attn", [d, 3 * d]),
                ("attn.c_proj", [d, d]),
                ("mlp.c_fc", [d, 4 * d]),
                ("mlp.c_proj", [4 * d, d]),
            ] {
                push(at(&format!("{name}.weight")), &[input, output]);
                push(at(&format!("{name}.bias")), &[output]);
            }
        }
        push("transformer.ln_f.weight".into(), &[d]);
        push("transformer.ln_f.bias".into(), &[d]);
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for (name, shape) in &shapes {
            let start = end;
            end += 4 * shape.iter().product::<usize>();
            let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
            header.insert(name.clone(), entry);
        }
        let header = Value::Object(header).to_string();
        let file = std::fs::File::create(folder.join("model.safetensors")).unwrap();
        let mut file = BufWriter::new(file);
        file.write_all(&(header.len() as u64).to_le_bytes())
            .unwrap();
        file.write_all(header.as_bytes()).unwrap();
        let mut state = 1u64;
        for _ in 0..end / 4 {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let value = (state >> 40) as f32 / (1 << 24) as f32 * 0.04 - 0.02;
            file.write_all(&value.to_le_bytes()).unwrap();
        }
        file.into_inner().unwrap().sync_all().unwrap();
    }

    #[test]
    fn loading_takes_little_more_than_the_weights() {
        let folder = TempDir::new().unwrap();
        write_folder(folder.path());
        // A process of its own, so that nothing else is counted.
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "pretrained::memory::load_and_report",
                "--ignored",
                "--nocapture",
            ])
            .env(FOLDER, folder.path())
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{printed}");
        let number = |key: &str| -> f64 {
            let rest = printed
                .split(key)
                .nth(1)
                .unwrap_or_else(|| panic!("{printed}"));
            rest.split_whitespace().next().unwrap().parse().unwrap()
        };
        let (peak, size) = (number("peak "), number("file "));
        println!(
            "peak {peak} of file {size}: {:.3}; {} s",
            peak / size,
            number("seconds ")
        );
        assert!(peak < 1.3 * size, "{printed}");
    }

    #[test]
    #[ignore = "run by loading_takes_little_more_than_the_weights"]
    fn load_and_report() {
        let Ok(folder) = std::env::var(FOLDER) else {
            return;
        };
        let start = Instant::now();
        let loaded = load(folder.as_ref()).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        let peak: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
        let size = std::fs::metadata(Path::new(&folder).join("model.safetensors"))
            .unwrap()
            .len();
        println!("peak {} file {size} seconds {seconds:.2} ", peak * 1024);
        assert_eq!(loaded.model.vocab_size(), 50257);
    }
}
