//! GradMem's memories as files.

use std::path::Path;

use burn::tensor::backend::Backend;

use super::kinds::{fingerprint, pack, unpack};
use super::{GradMem, Memory, MemoryFile, MemoryKind, Origin, WriteObjective};
use crate::error::Error;
use crate::model::CausalLm;

/// The method's name in a file.
const GRADMEM: &str = "gradmem";

impl<B: Backend, M: CausalLm<B>, O: WriteObjective<B, M>> GradMem<B, M, O> {
    /// A short hash of all weights and the model's [settings](CausalLm::settings): a memory can only be read by
    /// the model that wrote it.
    pub fn fingerprint(&self) -> String {
        let mut settings = self.model.settings();
        if self.config.kind == MemoryKind::Lora {
            let scale = self.config.lora_alpha / self.config.lora_rank as f64;
            settings.push_str(&format!(" lora {scale}"));
        }
        fingerprint(self, &settings)
    }

    /// Takes memories out of the backend, to be described further and saved, with the WRITE losses where WRITE began (of contexts in chunks, of the first
    /// chunk).
    ///
    /// # Errors
    ///
    /// If they are of another shape than this model's or hold non-finite numbers.
    pub fn pack(&self, memory: &Memory<B>) -> Result<MemoryFile, Error> {
        let layout = self.layout();
        memory.check(&layout)?;
        let origin = Origin {
            method: GRADMEM.into(),
            model: self.fingerprint(),
            write_steps: self.config.write_steps,
            write_lr: Some(self.config.write_lr),
            tokenizer: None,
        };
        pack(memory, origin, &layout)
    }

    /// Memories that this model wrote, back on its backend.
    ///
    /// # Errors
    ///
    /// If another method or model wrote them, with both fingerprints named, or they are of another shape.
    pub fn unpack(&self, file: &MemoryFile) -> Result<Memory<B>, Error> {
        let device = self.memory.device();
        unpack(
            file,
            [GRADMEM, &self.fingerprint()],
            &self.layout(),
            &device,
        )
    }

    /// Saves memories as `.safetensors`: [`GradMem::pack`], and [`MemoryFile::save`].
    ///
    /// # Errors
    ///
    /// As these.
    pub fn save_memory(&self, memory: &Memory<B>, path: impl AsRef<Path>) -> Result<(), Error> {
        self.pack(memory)?.save(path)
    }

    /// Loads memories that this model wrote: [`MemoryFile::open`], and [`GradMem::unpack`].
    ///
    /// # Errors
    ///
    /// As these.
    pub fn load_memory(&self, path: impl AsRef<Path>) -> Result<Memory<B>, Error> {
        self.unpack(&MemoryFile::open(path)?)
    }
}
