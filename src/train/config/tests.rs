use super::*;
use crate::data::Objective;

fn fails(preset: &str, overrides: &[&str]) -> String {
    let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
    let error = RunConfig::resolve(preset, &overrides).unwrap_err();
    assert!(error.is_user_error());
    let text = error.to_string();
    assert!(!text.contains('\n'), "more than one line: {text}");
    text
}

#[test]
fn every_preset_resolves_and_equals_its_toml_read_back() {
    for (name, _) in presets() {
        let config = RunConfig::resolve(name, &[]).unwrap();
        let again = parse(&config.to_toml().unwrap(), name).unwrap();
        let again = RunConfig::from_table(again).unwrap();
        assert_eq!(config, again);
        assert!(config.differences(&again).is_empty());
    }
}

#[test]
fn language_modelling_predicts_what_follows() {
    for name in ["lm", "lm-small"] {
        let DataConfig::Text(text) = RunConfig::resolve(name, &[]).unwrap().data else {
            panic!("{name} is no running text");
        };
        assert_eq!(text.objective, Objective::Continuation);
    }
}

#[test]
fn settings_are_checked_for_the_method_and_model() {
    let resolve = |overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
        RunConfig::resolve("kv-quick", &overrides)
    };
    let rmt = resolve(&["method=rmt", "rmt.write_steps=3"]).unwrap();
    let MethodConfig::Rmt(settings) = rmt.method_config() else {
        panic!("{rmt:?}");
    };
    assert_eq!(settings.write_steps, 3);
    assert!(fails("kv-quick", &["method=rnn"]).contains("in-context"));
    let error = fails(
        "kv-quick",
        &["method=rmt", "train.stop_metric=write_loss_after"],
    );
    assert!(
        error.contains("train.stop_metric") && error.contains("rmt"),
        "{error}"
    );
    // What fits one method may not fit another: 29 tokens, a question of 7, a memory of 8.
    let positions = |n: usize, method: &str| {
        let positions = format!("model.max_position_embeddings={n}");
        resolve(&[&positions, &format!("method={method}")]).is_ok()
    };
    for (method, needed) in [
        ("gradmem", 29),
        ("rmt", 37),
        ("armt", 29),
        ("in-context", 28),
    ] {
        assert!(positions(needed, method), "{method}");
        assert!(!positions(needed - 1, method), "{method}");
    }
    // Four questions in a row: 21 tokens and 4 times 7.
    let joint = |n: usize| {
        let positions = format!("model.max_position_embeddings={n}");
        let keys = ["method=in-context", "in_context.questions=joint"];
        resolve(&[&positions, keys[0], keys[1]])
    };
    assert!(joint(49).is_ok());
    let error = joint(48).unwrap_err().to_string();
    assert!(
        error.contains("needs 49 positions") && error.contains("in_context.questions"),
        "{error}"
    );
    assert!(fails("kv-quick", &["model.model_type=gpt2"]).contains("model.hidden_size"));
    let heads = fails(
        "kv-quick",
        &["method=armt", "armt.d_mem=6", "armt.n_heads=3"],
    );
    assert!(
        heads.contains("armt.n_heads") && heads.contains("width of 64"),
        "{heads}"
    );
}

#[test]
fn overrides_apply_to_every_section() {
    let overrides = [
        "memory.write_steps=5",
        "train.lr = 1e-4",
        "memory.grad_mode=first",
    ];
    let overrides = overrides.map(String::from);
    let config = RunConfig::resolve("kv-quick", &overrides).unwrap();
    assert_eq!(config.memory.write_steps, 5);
    assert_eq!(config.train.lr, 1e-4);
    let base = RunConfig::resolve("kv-quick", &[]).unwrap();
    let keys: Vec<_> = base.differences(&config).into_iter().map(|d| d.0).collect();
    assert_eq!(keys, ["memory.grad_mode", "memory.write_steps", "train.lr"]);
}

#[test]
fn errors_name_the_key_on_one_line() {
    assert!(fails("kv-quik", &[]).contains("unknown preset `kv-quik`"));
    assert!(fails("kv-quick", &["memory.stepz=2"]).contains("unknown key `memory.stepz`: "));
    let words = "unknown key `train.step`, did you mean `steps`?: train has ";
    assert!(fails("kv-quick", &["train.step=2"]).contains(words));
    assert!(fails("kv-quick", &["memory.write_steps"]).contains("not KEY=VALUE"));
    assert!(fails("kv-quick", &["memory.write_steps=many"]).contains("memory.write_steps"));
    assert!(fails("kv-quick", &["memory.write_steps=-1"]).contains("memory.write_steps"));
    assert!(fails("kv-quick", &["data.pairs=nan"]).contains("data.pairs"));
    assert!(fails("kv-quick", &["model.hidden_size=64.0"]).contains("model.hidden_size"));
    assert!(fails("kv-quick", &["memory=3"]).contains("must be a section"));
    for (key, value, word) in [
        ("memory.write_lr", "-0.5", "positive"),
        ("memory.write_lr", "nan", "positive"),
        ("memory.memory_tokens", "0", "at least 1"),
        ("memory.inner_clip_norm", "0", "positive"),
        ("data.pairs", "0", "data.segments"),
        ("data.pairs", "63", "only 62 different keys"),
        ("data.queries_per_context", "5", "at most data.pairs"),
        ("model.hidden_size", "65", "multiple of num_attention_heads"),
        ("model.num_attention_heads", "0", "at least 1"),
        ("model.max_position_embeddings", "28", "needs 29 positions"),
        ("model.vocab_size", "69", "70 tokens"),
        ("model.model_type", "opt", "gpt2, gpt_neox, llama, mamba"),
        ("memory.mem_proj", "sum", "per_sample"),
        ("rmt.write_steps", "0", "at least 1"),
        ("rmt.write_head", "true", "reconstruction_loss_weight"),
        ("armt.n_heads", "0", "at least 1"),
        ("armt.segment_size", "0", "at least 1"),
        ("armt.implementation", "new", "thinking"),
        ("in_context.questions", "apart", "shared"),
        ("train.lr", "nan", "above 0"),
        ("train.batch_size", "0", "at least 1"),
        ("train.stop_value", "-1", "at least 0"),
        ("train.stop_metric", "retold", "write_accuracy"),
        ("train.seed", "1\ntrain.lr=5", "train.seed"),
        ("model.rope_scaling", "{factor=4}", "rope_type"),
    ] {
        let text = fails("kv-quick", &[&format!("{key}={value}")]);
        assert!(text.contains(key) && text.contains(word), "{text}");
    }
}
