//! Weights of pretrained models, in one file and in several with an index.

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::{Int, Tensor, TensorData};
use gradmem::Error;
use gradmem::model::weights::{Tensors, encode};
use gradmem::model::{
    AnyLm, CausalLm, Gpt2Config, GptNeoXConfig, LlamaConfig, MambaConfig, ModelConfig, pretrained,
};
use serde_json::{Map, Value, json};

use crate::B;
use crate::read::{Count, Folder};
use crate::tensors::{self, Part, Parts};

/// A small model of each type.
pub fn models() -> [(&'static str, ModelConfig); 4] {
    let gpt2 = Gpt2Config {
        n_positions: 16,
        ..Gpt2Config::new(11, 4, 2, 2)
    };
    let neox = GptNeoXConfig {
        max_position_embeddings: 16,
        rotary_pct: 0.5,
        ..GptNeoXConfig::new(11, 8, 1, 2)
    };
    let llama = LlamaConfig::new(11, 4, 2, 2).with_kv_heads(1);
    let llama = llama.with_tied_head(false).with_max_positions(16);
    let mamba = MambaConfig {
        state_size: 2,
        ..MambaConfig::new(11, 4, 1)
    };
    [
        ("gpt2", ModelConfig::Gpt2(gpt2)),
        ("gpt_neox", ModelConfig::GptNeoX(neox)),
        ("llama", ModelConfig::Llama(llama)),
        ("mamba", ModelConfig::Mamba(mamba)),
    ]
}

/// Reads a few tokens.
pub fn forward(model: &AnyLm<B>) -> Result<(), Error> {
    let last = model.vocab_size().min(11) as i32 - 1;
    let tokens = Tensor::<B, 2, Int>::from_data([[1, 2, last]], &Default::default());
    let fits = last >= 2 && model.max_positions().is_none_or(|positions| positions >= 3);
    if fits {
        model.logits(model.hidden(model.embed(tokens)));
    }
    Ok(())
}

/// A folder with a model in one file, `whole`, and one in several, `parts`.
pub fn folder() -> Folder {
    let mut folder = Folder::new(&[".safetensors", "index.json"]);
    let [gpt2, _, llama, _] = models();
    for (name, config) in [("parts", gpt2.1), ("whole", llama.1)] {
        let model = config.init::<B>(3, &Default::default()).unwrap();
        pretrained::save(folder.path().join(name), &model, None, &Default::default()).unwrap();
    }
    split(&folder.path().join("parts"));
    adapt(&folder.path().join("whole"));
    folder.keep();
    folder
}

/// Puts an adapter of PEFT beside a folder's weights.
pub fn adapt(folder: &Path) {
    let config = json!({
        "peft_type": "LORA", "r": 1, "lora_alpha": 2, "bias": "none", "use_rslora": false, "use_dora": false,
        "modules_to_save": null, "alpha_pattern": {}, "init_lora_weights": true, "target_modules": ["o_proj"],
    });
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let name =
        |part: &str| format!("base_model.model.model.layers.0.self_attn.o_proj.{part}.weight");
    let ones = |shape: [usize; 2]| TensorData::ones::<f32, _>(shape);
    let tensors = [
        (name("lora_A"), ones([1, 4])),
        (name("lora_B"), ones([4, 1])),
    ];
    let bytes = encode(&tensors, HashMap::new()).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), bytes).unwrap();
}

/// Puts a folder's weights into two files with an index.
fn split(folder: &Path) {
    let whole = folder.join("model.safetensors");
    let parts = Parts::of(&std::fs::read(&whole).unwrap());
    let half = parts.tensors.len() / 2;
    let mut map = Map::new();
    for (name, tensors) in [
        ("model-00001-of-00002.safetensors", &parts.tensors[..half]),
        ("model-00002-of-00002.safetensors", &parts.tensors[half..]),
    ] {
        let map_to = |part: &Part| (part.name.clone(), Value::from(name));
        map.extend(tensors.iter().map(map_to));
        let file = Parts {
            metadata: parts.metadata.clone(),
            tensors: tensors.to_vec(),
        };
        std::fs::write(folder.join(name), file.file()).unwrap();
    }
    std::fs::remove_file(whole).unwrap();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    let index_file = folder.join("model.safetensors.index.json");
    std::fs::write(index_file, index.to_string()).unwrap();
}

/// Opens a folder of weights, reads each tensor, and loads the model they are of.
pub fn open(folder: &Path) -> Result<(), Error> {
    let tensors = Tensors::open_folder(folder)?;
    for name in tensors.names() {
        // One that is not ours to read is not the model's fault.
        let _ = tensors.get(name);
    }
    forward(&pretrained::load::<B>(folder, &Default::default())?.model)
}

pub fn run(count: Count) {
    tensors::hammer_models("weights", count, &folder(), open);
}
