//! Memory files.

use std::path::Path;

use gradmem::Error;
use gradmem::episode::Tokens;
use gradmem::memory::{GradMem, GradMemConfig, MemProj};
use gradmem::model::{Llama, LlamaConfig};

use crate::read::{Count, Folder, hammer};
use crate::{B, tensors};

/// A small model that writes memories.
pub fn gradmem(mem_proj: MemProj) -> GradMem<B, Llama<B>> {
    let device = Default::default();
    let model = LlamaConfig::new(11, 4, 1, 1).init::<B>(1, &device).unwrap();
    let config = GradMemConfig::new().with_memory_tokens(2);
    let config = config.with_mem_proj(mem_proj);
    config.init(model, 2, &device).unwrap()
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
    let methods = [MemProj::None, MemProj::PerSample].map(gradmem);
    let names = ["plain", "projected"];
    for (gradmem, name) in methods.iter().zip(names) {
        save(gradmem, &folder.path().join(name));
    }
    folder.keep();
    hammer(
        "memory",
        count,
        &folder,
        |rng, name| vec![(name.into(), tensors::file(rng, &folder.valid[name]))],
        |path, name| {
            let wrote = names.iter().position(|n| *n == name).unwrap();
            open(&methods[wrote], &path.join(name))
        },
    );
}
