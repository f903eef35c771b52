//! GradMem's memories as files.

use std::path::Path;

use burn::tensor::backend::Backend;

use super::kinds::fingerprint;
use super::{GradMem, Memory, MemoryFile, MemoryFiles, MemoryKind, Origin, WriteObjective};
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

    /// This model's memories as files. The [fingerprint](GradMem::fingerprint), a hash of all weights, is computed once for all
    /// of them.
    pub fn files(&self) -> MemoryFiles<B> {
        let origin = Origin {
            method: GRADMEM.into(),
            model: self.fingerprint(),
            write_steps: self.config.write_steps,
            write_lr: Some(self.config.write_lr),
            tokenizer: None,
        };
        MemoryFiles::new(origin, self.layout(), self.memory.device())
    }

    /// Saves memories as `.safetensors`: [`MemoryFiles::pack`], and [`MemoryFile::save`].
    ///
    /// # Errors
    ///
    /// As these.
    pub fn save_memory(&self, memory: &Memory<B>, path: impl AsRef<Path>) -> Result<(), Error> {
        self.files().pack(memory)?.save(path)
    }

    /// Loads memories that this model wrote: [`MemoryFile::open`], and [`MemoryFiles::unpack`].
    ///
    /// # Errors
    ///
    /// As these.
    pub fn load_memory(&self, path: impl AsRef<Path>) -> Result<Memory<B>, Error> {
        self.files().unpack(&MemoryFile::open(path)?)
    }
}
