//! Records of burn-store: what it writes it reads again, and PyTorch's files load into the models of this crate.
//!
//! `gpt2.pt` and `llama.pt` hold the weights that `made` draws from seed 3, saved by PyTorch 2.15:
//! `torch.save(safetensors.torch.load_file("llama.safetensors"), "llama.pt")`.

use burn_flex::Flex;
use burn_store::{BurnpackStore, ModuleSnapshot, PytorchStore, SafetensorsStore};
use gradmem::episode::Tokens;
use gradmem::memory::{GradMem, GradMemConfig};
use gradmem::model::{AnyLm, Gpt2Config, LlamaConfig, ModelConfig};
use gradmem::model::weights::{parameters, encode};

type Method = GradMem<Flex, AnyLm<Flex>>;

fn models() -> [(&'static str, ModelConfig); 2] {
    [
        ("llama", ModelConfig::Llama(LlamaConfig::new(12, 16, 1, 2))),
        ("gpt2", ModelConfig::Gpt2(Gpt2Config::new(12, 16, 1, 2))),
    ]
}

fn made(model: &ModelConfig, seed: u64) -> Method {
    let device = Default::default();
    let lm = model.init(seed, &device).unwrap();
    let config = GradMemConfig::new().with_memory_tokens(2).with_write_head(true);
    config.init(lm, seed, &device).unwrap()
}

/// A memory of it, which depends on every weight.
fn memory(method: &Method) -> Vec<f32> {
    let contexts = Tokens::new(&[vec![1, 2, 3, 4, 5], vec![6, 7]], &Default::default()).unwrap();
    let memory = method.write(&contexts).unwrap();
    memory.vectors().into_data().to_vec().unwrap()
}

#[test]
fn what_is_written_is_read_again() {
    let folder = std::env::temp_dir().join(format!("records-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for (name, model) in models() {
        let saved = made(&model, 1);
        assert_ne!(memory(&saved), memory(&made(&model, 2)));

        let path = folder.join(format!("{name}.bpk"));
        saved.save_into(&mut BurnpackStore::from_file(&path)).unwrap();
        let mut other = made(&model, 2);
        other.load_from(&mut BurnpackStore::from_file(&path)).unwrap();
        assert_eq!(memory(&other), memory(&saved), "{name}.bpk");

        let path = folder.join(format!("{name}.safetensors"));
        saved.save_into(&mut SafetensorsStore::from_file(&path)).unwrap();
        let mut other = made(&model, 2);
        other.load_from(&mut SafetensorsStore::from_file(&path)).unwrap();
        assert_eq!(memory(&other), memory(&saved), "{name}.safetensors");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn pytorchs_files_load_as_they_are() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for (name, model) in models() {
        let expected = made(&model, 3);
        if let Some(to) = std::env::var_os("WRITE_SAFETENSORS") {
            let bytes = encode(&parameters(&expected), Default::default()).unwrap();
            std::fs::write(std::path::Path::new(&to).join(format!("{name}.safetensors")), bytes).unwrap();
            continue;
        }
        let mut loaded = made(&model, 4);
        let file = folder.join(format!("{name}.pt"));
        // The reference's names, of what is beside the model.
        let mut store = PytorchStore::from_file(file)
            .with_key_remapping("^mem$", "memory.mem")
            .with_key_remapping("^write_head", "objective.write_head");
        let found = loaded.load_from(&mut store).unwrap();
        assert!(found.missing.is_empty() && found.unused.is_empty(), "{found}");
        assert_eq!(memory(&loaded), memory(&expected), "{name}");
    }
}
