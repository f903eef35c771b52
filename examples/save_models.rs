//! Saves a small random model of every type as a Hugging Face folder, with the logits it computes: for
//! `tests/read_by_transformers.sh`, which has the real `transformers` compute the same.
//!
//! Usage: `cargo run --release --example save_models FOLDER`

use std::path::Path;

use gradmem::Error;
use gradmem::model::layers::{RopeScaling, RopeType};
use gradmem::model::{
    CausalLm, Gpt2Config, GptNeoXConfig, LlamaConfig, MambaConfig, ModelConfig, pretrained,
};

use burn::tensor::{Int, Tensor};

type B = burn_flex::Flex;

fn main() -> Result<(), Error> {
    let folder = std::env::args()
        .nth(1)
        .ok_or_else(|| Error::Input("name a folder".into()))?;
    for (name, config) in models() {
        let path = Path::new(&folder).join(name);
        let model = config.init::<B>(7, &Default::default())?;
        pretrained::save(&path, &model, None)?;
        let ids = [[5i64, 9, 2, 11, 30, 7, 7, 1], [31, 4, 4, 8, 16, 3, 0, 2]];
        let tokens: Tensor<B, 2, Int> = Tensor::from_data(ids, &Default::default());
        let logits = model.logits(model.hidden(model.embed(tokens))).to_data();
        let [batch, seq, vocab] = [0, 1, 2].map(|i| logits.shape[i]);
        let values: Vec<f32> = logits.iter::<f32>().collect();
        let rows: Vec<&[f32]> = values.chunks(vocab).collect();
        let rows: Vec<&[&[f32]]> = rows.chunks(seq).collect();
        assert_eq!(rows.len(), batch);
        let case = serde_json::json!({ "input_ids": ids, "logits": rows });
        std::fs::write(path.join("logits.json"), case.to_string())
            .map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
    }
    Ok(())
}

fn models() -> Vec<(&'static str, ModelConfig)> {
    let llama = LlamaConfig {
        initializer_range: 0.2,
        ..LlamaConfig::new(32, 32, 2, 4)
    };
    let llama3 = RopeScaling {
        rope_type: RopeType::Llama3,
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16,
    };
    let gpt2 = Gpt2Config {
        initializer_range: 0.2,
        ..Gpt2Config::new(32, 32, 2, 4)
    };
    let neox = GptNeoXConfig {
        initializer_range: 0.2,
        ..GptNeoXConfig::new(32, 32, 2, 2)
    };
    vec![
        ("gpt2", ModelConfig::Gpt2(gpt2.clone())),
        (
            "gpt2-untied",
            ModelConfig::Gpt2(Gpt2Config {
                tie_word_embeddings: false,
                n_inner: Some(48),
                ..gpt2
            }),
        ),
        ("gpt_neox", ModelConfig::GptNeoX(neox.clone())),
        (
            "gpt_neox-sequential",
            ModelConfig::GptNeoX(GptNeoXConfig {
                use_parallel_residual: false,
                rotary_pct: 0.5,
                tie_word_embeddings: true,
                ..neox
            }),
        ),
        ("llama", ModelConfig::Llama(llama.clone())),
        (
            "llama-gqa-llama3",
            ModelConfig::Llama(LlamaConfig {
                rope_scaling: Some(llama3),
                rope_theta: 100.0,
                attention_bias: true,
                mlp_bias: true,
                ..llama.with_kv_heads(2).with_tied_head(false)
            }),
        ),
        ("mamba", ModelConfig::Mamba(MambaConfig::new(32, 32, 2))),
        (
            "mamba-untied",
            ModelConfig::Mamba(MambaConfig {
                tie_word_embeddings: false,
                use_bias: true,
                conv_kernel: 3,
                ..MambaConfig::new(32, 32, 2)
            }),
        ),
    ]
}
