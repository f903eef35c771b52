//! Memory files.

use std::path::Path;

use gradmem::Error;
use gradmem::episode::Tokens;
use gradmem::memory::{Chunks, GradMem, GradMemConfig, MemProj, MemoryFloat, MemoryKind};
use gradmem::model::{Llama, LlamaConfig};

use crate::read::{Count, Folder, hammer};
use crate::{B, tensors};

/// A small model that writes memories.
pub fn gradmem(mem_proj: MemProj) -> GradMem<B, Llama<B>> {
    init(GradMemConfig::new().with_mem_proj(mem_proj))
}

fn init(config: GradMemConfig) -> GradMem<B, Llama<B>> {
    let device = Default::default();
    let model = LlamaConfig::new(11, 4, 1, 1).init::<B>(1, &device).unwrap();
    let config = config.with_memory_tokens(2);
    config.init(model, 2, &device).unwrap()
}

/// One of each kind, and one whose samples have different numbers of chunks.
fn all() -> Vec<(&'static str, GradMem<B, Llama<B>>)> {
    let kind = |kind| GradMemConfig::new().with_kind(kind);
    vec![
        ("plain", gradmem(MemProj::None)),
        ("projected", gradmem(MemProj::PerSample)),
        ("lora", init(kind(MemoryKind::Lora))),
        ("kv", init(kind(MemoryKind::Kv))),
        (
            "chunks",
            init(GradMemConfig::new().with_chunks(2, Chunks::Concatenated)),
        ),
        ("bytes", gradmem(MemProj::None)),
    ]
}

/// A memory of two contexts as a file.
pub fn save(gradmem: &GradMem<B, Llama<B>>, path: &Path) {
    let contexts = Tokens::<B>::new(&[vec![5, 6, 7], vec![8, 9]], &Default::default()).unwrap();
    let memory = gradmem.write(&contexts).unwrap();
    gradmem.save_memory(&memory, path).unwrap();
}

/// Loads a memory and reads from it.
pub fn open(gradmem: &GradMem<B, Llama<B>>, path: &Path) -> Result<(), Error> {
    let memory = gradmem.load_memory(path)?;
    let queries = Tokens::<B>::new(&[[3, 4], [4, 3]], &Default::default())?;
    match memory.len() {
        2 => gradmem.read(&memory, &queries).map(|_| ()),
        _ => gradmem.reader(&memory).map(|_| ()),
    }
}

pub fn run(count: Count) {
    let mut folder = Folder::new(&[""]);
    let methods = all();
    for (name, gradmem) in &methods {
        let path = folder.path().join(name);
        save(gradmem, &path);
        if *name == "bytes" {
            let file = gradmem::memory::MemoryFile::open(&path).unwrap();
            file.with_float(MemoryFloat::Int8).save(&path).unwrap();
        }
    }
    folder.keep();
    hammer(
        "memory",
        count,
        &folder,
        |rng, name| vec![(name.into(), tensors::file(rng, &folder.valid[name]))],
        |path, name| {
            let wrote = methods.iter().position(|(n, _)| *n == name).unwrap();
            open(&methods[wrote].1, &path.join(name))
        },
    );
}
