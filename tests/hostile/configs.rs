//! `config.json` of pretrained models and of the reference implementation's checkpoints.

use std::path::Path;

use gradmem::Error;
use gradmem::baselines::{ArmtConfig, RmtConfig};
use gradmem::episode::{Episode, Tokens};
use gradmem::interop::checkpoint::{self, SpecialTokens};
use gradmem::memory::{GradMemConfig, MemProj};
use gradmem::method::{AnyMethod, Method, MethodConfig};
use gradmem::model::pretrained;
use gradmem::train;

use crate::read::{Count, Folder};
use crate::{B, tensors, weights};

/// Folders with a model of each type, plain and under each method.
pub fn folder() -> Folder {
    let device = Default::default();
    let mut folder = Folder::new(&["config.json"]);
    for (name, config) in weights::models() {
        let model = config.init::<B>(3, &device).unwrap();
        pretrained::save(folder.path().join(name), &model, None, &Default::default()).unwrap();
    }
    let [_, _, (_, llama), (_, mamba)] = weights::models();
    let gradmem = GradMemConfig::new()
        .with_memory_tokens(2)
        .with_ctrl_tokens(1)
        .with_mem_proj(MemProj::PerSample)
        .with_write_lora(2, 4.0)
        .with_write_head(true);
    let rmt = RmtConfig {
        memory_tokens: 2,
        ..RmtConfig::default()
    };
    let armt = ArmtConfig::new().with_memory_tokens(2).with_keys(4, 2);
    for (name, method, model) in [
        (
            "grad_memgpt",
            MethodConfig::GradMem(gradmem.clone()),
            &llama,
        ),
        ("grad_memgpt-mamba", MethodConfig::GradMem(gradmem), &mamba),
        ("rmt_2segm", MethodConfig::Rmt(rmt), &llama),
        ("armt", MethodConfig::Armt(armt), &llama),
    ] {
        let method = method.init::<B>(model, 4, &device).unwrap();
        let special = SpecialTokens {
            ends: vec![1],
            ..SpecialTokens::default()
        };
        checkpoint::save(folder.path().join(name), &method, None, &special).unwrap();
    }
    // What a published configuration has more of.
    for (name, path) in [("scaled", "llama"), ("turned", "gpt_neox")] {
        let from = folder.path().join(path);
        let to = folder.path().join(name);
        std::fs::create_dir(&to).unwrap();
        let weights = "model.safetensors";
        std::fs::copy(from.join(weights), to.join(weights)).unwrap();
        let config = std::fs::read_to_string(from.join("config.json")).unwrap();
        let more = r#"{"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 1e4},
            "eos_token_id": [1, 2], "pad_token_id": null, "bos_token_id": 0,"#;
        std::fs::write(to.join("config.json"), config.replacen('{', more, 1)).unwrap();
    }
    weights::adapt(&folder.path().join("llama"));
    folder.keep();
    folder
}

/// How many steps or passes WRITE takes.
pub fn steps(method: &MethodConfig) -> usize {
    match method {
        MethodConfig::GradMem(config) => config.write_steps,
        MethodConfig::Rmt(config) => config.write_steps,
        _ => 0,
    }
}

/// Opens a folder as a program does that knows nothing of it.
pub fn open(folder: &Path) -> Result<(), Error> {
    let device = Default::default();
    SpecialTokens::open(folder)?;
    let method = train::open_method::<B>(folder, &device)?;
    // As many steps as a configuration asks for are taken where that ends.
    let steps = steps(&method.config());
    let tokens = Tokens::<B>::new(&[[3, 4, 5]], &device)?;
    let episode = Episode::new(tokens.clone(), tokens, &[[3i64, 4, 5]])?;
    if let AnyMethod::InContext(_) = method {
        weights::forward(&pretrained::load::<B>(folder, &device)?.model)?;
    }
    match steps <= 8 {
        true => method.answers(&episode).map(|_| ()),
        false => Ok(()),
    }
}

pub fn run(count: Count) {
    tensors::hammer_models("config", count, &folder(), open);
}
