//! Folders of `gradmem parity`: a model, a batch, and the numbers that are expected.

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use gradmem::baselines::{ArmtConfig, ArmtImplementation, InContextConfig, RmtConfig};
use gradmem::interop::checkpoint::{self, SpecialTokens};
use gradmem::interop::parity;
use gradmem::memory::{GradMemConfig, MetaGradient};
use gradmem::method::{AnyMethod, MethodConfig};
use gradmem::model::weights::encode;

use crate::read::{Count, Folder};
use crate::{B, configs, tensors, weights};

fn ids(rows: &[[i64; 4]]) -> TensorData {
    let values: Vec<i64> = rows.iter().flatten().copied().collect();
    TensorData::new(values, [rows.len(), 4])
}

/// A case of each method.
fn folder() -> Folder {
    let device = Default::default();
    let mut folder = Folder::new(&["config.json", ".safetensors"]);
    let [_, _, (_, llama), _] = weights::models();
    let gradmem = GradMemConfig::new().with_memory_tokens(2);
    let rmt = RmtConfig {
        memory_tokens: 2,
        ..RmtConfig::default()
    };
    let armt = ArmtConfig::new()
        .with_implementation(ArmtImplementation::Old)
        .with_memory_tokens(2)
        .with_keys(4, 1);
    for (name, method) in [
        ("gradmem", MethodConfig::GradMem(gradmem)),
        ("rmt", MethodConfig::Rmt(rmt)),
        ("armt", MethodConfig::Armt(armt)),
        ("plain", MethodConfig::InContext(InContextConfig::new())),
    ] {
        let method: AnyMethod<B> = method.init(&llama, 4, &device).unwrap();
        let path = folder.path().join(name);
        checkpoint::save(&path, &method, None, &SpecialTokens::default()).unwrap();
        let batch = match name {
            "plain" => vec![
                ("input_ids".to_string(), ids(&[[3, 4, 5, 6], [7, 8, 9, 10]])),
                ("labels".into(), ids(&[[3, 4, 5, 6], [7, 8, -100, -100]])),
            ],
            _ => vec![
                (
                    "context_input_ids".to_string(),
                    ids(&[[3, 4, 5, 6], [7, 8, 0, 0]]),
                ),
                (
                    "query_input_ids".into(),
                    ids(&[[5, 6, 7, 8], [9, 10, 3, 0]]),
                ),
                (
                    "labels".into(),
                    ids(&[[-100, -100, 7, 8], [-100, 10, 3, -100]]),
                ),
            ],
        };
        let write = |file: &str, tensors: &[(String, TensorData)]| {
            let bytes = encode(tensors, HashMap::new()).unwrap();
            std::fs::write(path.join(file), bytes).unwrap();
        };
        write("batch.safetensors", &batch);
        let computed = parity::compute::<B>(&path, MetaGradient::Auto, &device).unwrap();
        let computed: Vec<_> = computed
            .into_iter()
            .map(|(name, data)| (name, data.convert_dtype(DType::F64)))
            .collect();
        write("expected.safetensors", &computed);
    }
    folder.keep();
    folder
}

fn open(folder: &Path) -> Result<(), gradmem::Error> {
    // As many steps as a configuration asks for are taken where that ends.
    let (_, method) = checkpoint::open_config(folder.join("config.json"))?;
    if configs::steps(&method) > 8 {
        return Ok(());
    }
    parity::compare::<B>(folder, MetaGradient::Auto, &Default::default()).map(|_| ())
}

pub fn run(count: Count) {
    tensors::hammer_models("case", count, &folder(), open);
}
