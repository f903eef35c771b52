//! Memories as files, from the library: what is kept, what is refused, and by whom.

use std::collections::HashMap;
use std::path::PathBuf;

use burn::backend::Autodiff;
use burn::optim::GradientsParams;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use gradmem::Error;
use gradmem::data::{KvConfig, tokenizer_fingerprint};
use gradmem::episode::Tokens;
use gradmem::memory::{GradMem, GradMemConfig, MemProj, Memory, MemoryFile, MemoryFloat};
use gradmem::model::generate::GenerateConfig;
use gradmem::model::{AnyLm, CausalLm, LlamaConfig, ModelConfig, cache_bytes, weights};
use gradmem_kernels::KernelBackend;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::shared::values;

const ENTRY: &str = "gradmem_memory";

fn llama() -> LlamaConfig {
    LlamaConfig {
        initializer_range: 0.3,
        ..LlamaConfig::new(40, 16, 2, 2)
    }
}

fn gradmem<B: KernelBackend>(llama: LlamaConfig, proj: MemProj, seed: u64) -> GradMem<B, AnyLm<B>> {
    let device = Default::default();
    let model = ModelConfig::Llama(llama).init::<B>(seed, &device).unwrap();
    GradMemConfig::new()
        .with_memory_tokens(3)
        .with_write_lr(0.5)
        .with_mem_proj(proj)
        .init(model, seed, &device)
        .unwrap()
}

fn contexts<B: Backend>() -> Tokens<B> {
    let ids: [&[u32]; 3] = [&[5, 6, 7, 8, 9], &[9, 8, 7], &[11, 30, 2, 17]];
    Tokens::new(&ids, &Default::default()).unwrap()
}

fn message<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => {
            let text = error.to_string();
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(error.is_user_error(), "{text}");
            text
        }
    }
}

#[test]
fn a_file_gives_back_what_went_in() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.safetensors");
    for proj in [MemProj::None, MemProj::Proj, MemProj::PerSample] {
        let gradmem = gradmem::<Flex>(llama(), proj, 1);
        let memory = gradmem.write(&contexts()).unwrap();
        let mut file = gradmem.files().pack(&memory).unwrap();
        file.origin.tokenizer = Some("abc".into());
        file.samples[1].name = Some("β \"quoted\"\n".into());
        file.samples[1].tokens = Some(3);
        file.samples[2].loss_after = Some(1.0 / 3.0);
        file.samples[2] = file.samples[2].clone().with_hash_of("the text");
        file.save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        file.save(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "the same bytes again");
        assert_eq!(file.to_bytes().unwrap(), bytes);
        let held = MemoryFile::from_bytes(bytes.clone(), "row 7").unwrap();
        assert_eq!(held.samples, file.samples);
        let back = gradmem.files().unpack(&held).unwrap();
        assert_eq!(back.vectors().to_data(), memory.vectors().to_data());
        let cut = MemoryFile::from_bytes(bytes[..bytes.len() - 1].to_vec(), "row 7");
        let problem = message(cut);
        assert!(problem.starts_with("row 7: is not a whole"), "{problem}");

        let opened = MemoryFile::open(&path).unwrap();
        assert_eq!(opened.origin, file.origin);
        assert_eq!(opened.samples, file.samples);
        assert_eq!((opened.shape(), opened.len()), ([3, 3, 16], 3));
        assert_eq!(opened.samples[2].is_of("the text"), Some(true));
        assert_eq!(opened.samples[2].is_of("another"), Some(false));
        assert_eq!(opened.samples[0].is_of("the text"), None);
        let before = values(memory.losses[0].clone());
        assert_eq!(opened.samples[0].loss_before, Some(before[0]));
        let back = gradmem.files().unpack(&opened).unwrap();
        assert_eq!(back.vectors().to_data(), memory.vectors().to_data());
        assert_eq!(back.projection().is_some(), proj == MemProj::PerSample);
        for (back, ours) in back
            .projection()
            .iter()
            .flatten()
            .zip(memory.projection().iter().flatten())
        {
            assert_eq!(back.to_data(), ours.to_data());
        }

        // In half the room.
        let half = file.clone().with_float(MemoryFloat::Bf16);
        half.save(&path).unwrap();
        assert_eq!(half.bytes_each() * 2, file.bytes_each());
        let rounded = gradmem.load_memory(&path).unwrap();
        for (a, b) in values(rounded.vectors())
            .iter()
            .zip(values(memory.vectors()))
        {
            assert!((a - b).abs() <= b.abs() / 256.0, "{a} is not {b} in bf16");
        }

        // The same model of another precision reads it too.
        let f64s = self::gradmem::<NdArray<f64>>(llama(), proj, 1);
        assert_eq!(f64s.fingerprint(), gradmem.fingerprint());
        let there = f64s.files().unpack(&opened).unwrap();
        assert_eq!(values(there.vectors()), values(memory.vectors()));
    }
}

#[test]
fn a_memory_is_found_by_its_name_or_its_index() {
    let gradmem = gradmem::<Flex>(llama(), MemProj::None, 1);
    let mut file = gradmem
        .files()
        .pack(&gradmem.write(&contexts()).unwrap())
        .unwrap();
    file.samples[0].name = Some("1".into());
    file.samples[2].name = Some("b".into());
    assert_eq!(file.index_of("b").unwrap(), 2);
    assert_eq!(file.index_of("2").unwrap(), 2, "no name is 2");
    // The second is called by its index, which is the first's name.
    assert_eq!(file.index_of("1").unwrap(), 1);
    let problem = message(file.index_of("3"));
    assert!(problem.contains(r#"there are "1", "1", "b""#), "{problem}");
    file.samples[0].name = Some("b".into());
    let problem = message(file.index_of("b"));
    assert!(problem.contains("several memories"), "{problem}");
    file.samples.pop();
    message(file.index_of("b"));
}

#[test]
fn only_what_wrote_a_memory_reads_it() {
    let own = gradmem::<Flex>(llama(), MemProj::None, 1);
    let file = own.files().pack(&own.write(&contexts()).unwrap()).unwrap();
    let ours = own.fingerprint();
    // Other weights, and the same weights in a model that computes something else with them.
    let heads = LlamaConfig {
        num_attention_heads: 4,
        num_key_value_heads: Some(4),
        ..llama()
    };
    let turned = LlamaConfig {
        rope_theta: 500.0,
        ..llama()
    };
    for (other, seed) in [(llama(), 2), (heads, 1), (turned, 1)] {
        let other = gradmem::<Flex>(other, MemProj::None, seed);
        let error = message(other.files().unpack(&file));
        assert!(
            error.contains(&ours) && error.contains(&other.fingerprint()),
            "{error}"
        );
    }
    // α and K may differ: they do not matter to who reads.
    let patient = own
        .clone()
        .with_write_steps(9)
        .unwrap()
        .with_write_lr(0.1)
        .unwrap();
    assert!(patient.files().unpack(&file).is_ok());
    // A value that is given as the one that it is without says nothing else.
    let said = LlamaConfig {
        head_dim: Some(llama().hidden_size / llama().num_attention_heads),
        ..llama()
    };
    let said = gradmem::<Flex>(said, MemProj::None, 1);
    assert_eq!(said.fingerprint(), ours);
    // What only matters to random weights does not count.
    let drawn = LlamaConfig {
        initializer_range: 0.02,
        ..llama()
    };
    let blank = GradMemConfig::new().with_memory_tokens(3);
    let blank = blank.blank(
        ModelConfig::Llama(drawn)
            .blank::<Flex>(&Default::default())
            .unwrap(),
        &Default::default(),
    );
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("weights.safetensors");
    let bytes = weights::encode(&weights::parameters(&own), HashMap::new()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let loaded = weights::Tensors::open(&path)
        .unwrap()
        .fill(blank.unwrap())
        .unwrap();
    assert_eq!(loaded.fingerprint(), ours);

    let mut file = file;
    file.check_tokenizer("anything").unwrap();
    let tokenizer = KvConfig::default().tokenizer().unwrap();
    file.origin.tokenizer = Some(tokenizer.fingerprint());
    file.check_tokenizer(&tokenizer_fingerprint(tokenizer.as_tokenizer()))
        .unwrap();
    let error = message(file.check_tokenizer("0123456789abcdef"));
    assert!(
        error.contains("0123456789abcdef") && error.contains(&tokenizer.fingerprint()),
        "{error}"
    );
    let other = KvConfig {
        alphabet: 512,
        ..KvConfig::default()
    }
    .tokenizer()
    .unwrap();
    assert_ne!(other.fingerprint(), tokenizer.fingerprint());
}

type Tensors = Vec<(String, TensorData)>;

/// A file's tensors and its metadata's entry, to be changed.
struct Parts {
    folder: TempDir,
    tensors: Tensors,
    entry: Value,
}

impl Parts {
    fn of(memory: &MemoryFile) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("m.safetensors");
        memory.save(&path).unwrap();
        let file = weights::Tensors::open(&path).unwrap();
        let tensors = file
            .names()
            .map(|name| (name.to_string(), file.get(name).unwrap()));
        Self {
            tensors: tensors.collect(),
            entry: serde_json::from_str(&file.metadata()[ENTRY]).unwrap(),
            folder,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("m.safetensors")
    }

    fn open(&self, entry: &str, tensors: &[(String, TensorData)]) -> Result<MemoryFile, Error> {
        let metadata = HashMap::from([(ENTRY.to_string(), entry.to_string())]);
        std::fs::write(self.path(), weights::encode(tensors, metadata).unwrap()).unwrap();
        MemoryFile::open(self.path())
    }
}

#[test]
fn damaged_and_contradicting_files_are_refused() {
    let gradmem = gradmem::<Flex>(llama(), MemProj::PerSample, 1);
    let memory = gradmem.write(&contexts()).unwrap();
    let parts = Parts::of(&gradmem.files().pack(&memory).unwrap());
    let whole = std::fs::read(parts.path()).unwrap();
    assert!(parts.open(&parts.entry.to_string(), &parts.tensors).is_ok());

    // Cut at every byte of the header, and somewhere in the numbers.
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for len in (0..=header).chain([header + 1, whole.len() / 2, whole.len() - 1]) {
        std::fs::write(parts.path(), &whole[..len]).unwrap();
        let error = message(MemoryFile::open(parts.path()));
        assert!(
            error.contains("not a whole .safetensors file"),
            "{len}: {error}"
        );
    }

    // What the metadata may not say.
    let says = |change: &dyn Fn(&mut Value)| {
        let mut entry = parts.entry.clone();
        change(&mut entry);
        message(parts.open(&entry.to_string(), &parts.tensors))
    };
    let error = says(&|entry| entry["version"] = json!(3));
    assert!(
        error.contains("version 3") && error.contains("versions up to 2"),
        "{error}"
    );
    for wrong in [json!("1"), json!(-1), json!(null), json!(1.5)] {
        assert!(
            says(&|entry| entry["version"] = wrong.clone()).contains("without a format version")
        );
    }
    for key in ["method", "model", "write_steps", "samples"] {
        let error = says(&|entry| drop(entry.as_object_mut().unwrap().remove(key)));
        assert!(error.contains(key), "{error}");
        says(&|entry| entry[key] = json!({"a": 1}));
    }
    says(&|entry| entry["write_steps"] = json!(-1));
    says(&|entry| entry["samples"][0]["tokens"] = json!("three"));
    says(&|entry| entry["samples"][0]["loss_before"] = json!("NaN"));
    let error = says(&|entry| drop(entry["samples"].as_array_mut().unwrap().pop()));
    assert!(
        error.contains("[3, 3, 16]") && error.contains("2 contexts"),
        "{error}"
    );
    for entry in ["", "{", "[]", "7", "null", "\"x\""] {
        message(parts.open(entry, &parts.tensors));
    }
    std::fs::write(
        parts.path(),
        weights::encode(&parts.tensors, HashMap::new()).unwrap(),
    )
    .unwrap();
    assert!(message(MemoryFile::open(parts.path())).contains("is not a memory file"));
    assert!(message(MemoryFile::open(parts.folder.path())).contains("is not a regular file"));

    // What the tensors may not be.
    let entry = parts.entry.to_string();
    let holds = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = parts.tensors.clone();
        change(&mut tensors);
        message(parts.open(&entry, &tensors))
    };
    let zeros = |shape: &[usize]| TensorData::zeros::<f32, _>(shape.to_vec());
    assert!(holds(&|tensors| tensors.clear()).contains("has no tensor `memory`"));
    assert!(holds(&|tensors| drop(tensors.remove(0))).contains("half of a projection"));
    assert!(holds(&|tensors| drop(tensors.remove(2))).contains("half of a projection"));
    let error = holds(&|tensors| tensors.push(("more".into(), zeros(&[1]))));
    assert!(error.contains("`more`"), "{error}");
    for shape in [&[3, 48][..], &[2, 3, 16], &[3, 0, 16], &[3, 3, 0], &[144]] {
        assert!(holds(&|tensors| tensors[0].1 = zeros(shape)).contains("`memory` is"));
    }
    let error = holds(&|tensors| tensors[0].1 = zeros(&[3, 3, 8]));
    assert!(
        error.contains("`projection.weight` is [3, 16, 16], not [3, 8, 8]"),
        "{error}"
    );
    let error = holds(&|tensors| tensors[2].1 = zeros(&[3, 16, 8]));
    assert!(error.contains("projection"), "{error}");
    let error = holds(&|tensors| tensors[0].1 = TensorData::zeros::<i64, _>([3, 3, 16]));
    assert!(error.contains("I64, not floats"), "{error}");
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in 0..3 {
            let error = holds(&|tensors| {
                let shape = tensors[at].1.shape.to_vec();
                let mut values: Vec<f32> = tensors[at].1.iter().collect();
                values[7] = value;
                tensors[at].1 = TensorData::new(values, shape);
            });
            assert!(error.contains("non-finite"), "{error}");
        }
    }

    // A memory of other sizes, of the same model as far as the file says.
    let smaller: Vec<_> = [[3, 2, 16], [3, 1, 16], [3, 16, 16]]
        .iter()
        .zip(&parts.tensors)
        .map(|(shape, (name, _))| (name.clone(), zeros(shape)))
        .collect();
    let file = parts.open(&entry, &smaller).unwrap();
    let error = message(gradmem.files().unpack(&file));
    assert!(
        error.contains("2 vectors of width 16") && error.contains("reads 3"),
        "{error}"
    );
}

/// Fingerprints in files are of this text: another order of its keys would make them those of other models.
#[test]
fn the_settings_in_a_fingerprint_do_not_change() {
    let model = llama().init::<Flex>(0, &Default::default()).unwrap();
    let settings = r#"{"attention_bias":false,"hidden_act":"silu","hidden_size":16,"intermediate_size":64,"max_position_embeddings":1024,"mlp_bias":false,"num_attention_heads":2,"num_hidden_layers":2,"rms_norm_eps":0.00001,"rope_theta":500000.0,"tie_word_embeddings":true,"vocab_size":40}"#;
    assert_eq!(model.settings(), settings);
}

#[test]
fn many_memories_and_queries_at_once_answer_as_one_by_one() {
    type B = Flex;
    let gradmem = gradmem::<B>(llama(), MemProj::None, 1);
    let contexts = contexts::<B>();
    let all = gradmem.write(&contexts).unwrap();
    let rows = (0..3).map(|row| contexts.slice(row..row + 1));
    let each: Vec<Memory<B>> = rows.map(|row| gradmem.write(&row).unwrap()).collect();
    all.check_finite().unwrap();
    let broken = each[0].vectors().mul_scalar(f32::INFINITY);
    let broken = Memory::cat(vec![each[1].clone(), Memory::from_vectors(broken)]).unwrap();
    let problem = broken.check_finite().unwrap_err().to_string();
    assert!(problem.contains("memory 1 of 2"), "{problem}");
    // Finite numbers are, whatever their size.
    let large = each[0].vectors().zeros_like().add_scalar(f32::MAX);
    Memory::from_vectors(large).check_finite().unwrap();
    let near = |a: &[f64], b: &[f64], of: f64| {
        assert_eq!(a.len(), b.len());
        assert!(
            a.iter().zip(b).all(|(a, b)| (a - b).abs() < of),
            "{a:?} {b:?}"
        );
    };

    let queries: Vec<Vec<u32>> = vec![vec![3, 4], vec![5], vec![6, 7, 8]];
    let config = GenerateConfig::greedy(6);
    let asked: Vec<_> = (0..3).flat_map(|_| queries.clone()).collect();
    let together = gradmem
        .reader(&all)
        .unwrap()
        .generate(&asked, &config)
        .unwrap();
    for (row, memory) in each.iter().enumerate() {
        near(
            &values(memory.vectors()),
            &values(all.vectors().narrow(0, row, 1)),
            1e-5,
        );
        let reader = gradmem.reader(memory).unwrap();
        for (at, query) in queries.iter().enumerate() {
            let alone = reader
                .generate(std::slice::from_ref(query), &config)
                .unwrap();
            assert_eq!(alone[0], together[row * 3 + at]);
        }
        let query = |times: usize| {
            let rows = vec![[3, 4]; times];
            Tokens::<B>::new(&rows, &Default::default()).unwrap()
        };
        let many = gradmem.read(&all, &query(3)).unwrap().narrow(0, row, 1);
        near(
            &values(gradmem.read(memory, &query(1)).unwrap()),
            &values(many),
            1e-5,
        );
    }

    // Put together and taken apart again.
    let joined = Memory::cat(each.clone()).unwrap();
    near(&values(joined.vectors()), &values(all.vectors()), 1e-5);
    near(
        &values(joined.losses[1].clone()),
        &values(all.losses[1].clone()),
        1e-5,
    );
    let file = gradmem.files().pack(&all).unwrap();
    let turned = file.select(&[2, 0, 2]).unwrap();
    assert_eq!(turned.samples[1], file.samples[0]);
    let turned = gradmem.files().unpack(&turned).unwrap();
    let chosen = all.select(&[2, 0, 2]).unwrap();
    assert_eq!(values(chosen.vectors()), values(turned.vectors()));
    let (some, each) = (
        values(chosen.losses[1].clone()),
        values(all.losses[1].clone()),
    );
    assert_eq!(some, [each[2], each[0], each[2]]);
    assert!(message(all.select(&[3])).contains("there are 3"));
    message(all.select(&[]));
    let third = values(all.vectors().narrow(0, 2, 1));
    assert_eq!(values(turned.vectors().narrow(0, 0, 1)), third);
    assert_eq!(values(turned.vectors().narrow(0, 2, 1)), third);
    assert!(message(file.select(&[3])).contains("there are 3"));
    let mut short = file.clone();
    short.samples.pop();
    let path = tempfile::tempdir().unwrap();
    let path = path.path().join("m.safetensors");
    assert!(message(short.save(&path)).contains("3 memories, but 2 descriptions"));
    assert!(message(short.select(&[0])).contains("3 memories, but 2 descriptions"));
    assert!(!path.exists());
    message(file.select(&[]));
    message(Memory::<B>::cat(Vec::new()));
    let wider = Memory::from_vectors(Tensor::zeros([1, 3, 8], &Default::default()));
    assert!(message(Memory::cat(vec![all, wider.clone()])).contains("width 8"));
    message(gradmem.files().pack(&wider));
}

#[test]
fn a_memory_leaves_its_graph_and_device() {
    type A = Autodiff<Flex>;
    let device = Default::default();
    let gradmem = gradmem::<A>(llama(), MemProj::PerSample, 1);
    let write = || gradmem.write(&contexts()).unwrap();
    let inner: Memory<Flex> = write().inner();
    // Each written anew: a backward pass uses a graph up.
    let cases = [
        (write(), true),
        (write().to_device(&device), true),
        (write().detach(), false),
        (Memory::from_inner(inner.clone()), false),
    ];
    for (memory, is_tracked) in cases {
        assert_eq!(memory.fast().len(), inner.fast().len());
        for (a, b) in memory.fast().iter().zip(inner.fast()) {
            assert_eq!(values(a.clone()), values(b.clone()));
        }
        assert_eq!(
            values(memory.losses[0].clone()),
            values(inner.losses[0].clone())
        );
        assert_eq!(memory.grad_norms.len(), inner.grad_norms.len());
        let leaf = Tensor::<A, 1>::ones([1], &device).require_grad();
        let loss = memory.vectors().sum() * leaf;
        let gradients = GradientsParams::from_grads(loss.backward(), &gradmem);
        assert_eq!(!gradients.is_empty(), is_tracked);
    }
}

#[test]
fn the_cache_that_a_memory_replaces_is_what_the_model_would_keep() {
    type B = Flex;
    let device = Default::default();
    let prefix = |model: &AnyLm<B>, tokens: usize| {
        let embeds = Tensor::<B, 3>::zeros([1, tokens, 16], &device);
        let prefix = gradmem::model::generate::Reader::new(model, embeds).unwrap();
        prefix.cache_bytes()
    };
    let mamba = gradmem::model::MambaConfig::new(40, 16, 2);
    for config in [ModelConfig::Llama(llama()), ModelConfig::Mamba(mamba)] {
        let model = config.init::<B>(1, &device).unwrap();
        for tokens in [1, 2, 7, 30] {
            assert_eq!(cache_bytes(&model)(tokens), prefix(&model, tokens));
        }
    }
    // Keys and values, of two layers, of width 16, in f32.
    let model = ModelConfig::Llama(llama()).init::<B>(1, &device).unwrap();
    assert_eq!(cache_bytes(&model)(100), 2 * 2 * 16 * 4 * 100);
}
