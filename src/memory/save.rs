//! GradMem's memories as files.

use std::path::Path;

use burn::tensor::backend::Backend;

use super::kinds::{fingerprint, pack, unpack};
use super::{GradMem, Memory, MemoryFile, MemoryKind, Origin, Reconstruct, WriteObjective};
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

    /// This model's memories as files, for many of them: the [fingerprint](GradMem::fingerprint), a hash of all weights, is
    /// computed once.
    pub fn files(&self) -> MemoryFiles<'_, B, M, O> {
        MemoryFiles {
            fingerprint: self.fingerprint(),
            gradmem: self,
        }
    }

    /// One memory or batch of them by [`MemoryFiles::pack`].
    ///
    /// # Errors
    ///
    /// As that.
    pub fn pack(&self, memory: &Memory<B>) -> Result<MemoryFile, Error> {
        self.files().pack(memory)
    }

    /// One file by [`MemoryFiles::unpack`].
    ///
    /// # Errors
    ///
    /// As that.
    pub fn unpack(&self, file: &MemoryFile) -> Result<Memory<B>, Error> {
        self.files().unpack(file)
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

/// Puts a model's memories into files and gets them back: [`GradMem::files`].
#[derive(Debug)]
pub struct MemoryFiles<'a, B: Backend, M, O = Reconstruct<B>> {
    gradmem: &'a GradMem<B, M, O>,
    fingerprint: String,
}

impl<B: Backend, M: CausalLm<B>, O: WriteObjective<B, M>> MemoryFiles<'_, B, M, O> {
    /// Takes memories out of the backend, to be described further and saved, with the WRITE losses where WRITE began (of contexts
    /// in chunks, of the first chunk).
    ///
    /// # Errors
    ///
    /// If they are of another shape than this model's or hold non-finite numbers.
    pub fn pack(&self, memory: &Memory<B>) -> Result<MemoryFile, Error> {
        let layout = self.gradmem.layout();
        memory.check(&layout)?;
        let config = self.gradmem.config();
        let origin = Origin {
            method: GRADMEM.into(),
            model: self.fingerprint.clone(),
            write_steps: config.write_steps,
            write_lr: Some(config.write_lr),
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
        let (layout, device) = (self.gradmem.layout(), self.gradmem.memory.device());
        unpack(file, [GRADMEM, &self.fingerprint], &layout, &device)
    }
}
