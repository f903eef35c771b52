//! What the commands load: a method with trained weights, and the way from text to its tokens.

use std::path::Path;

use gradmem::Error;
use gradmem::data::{DataConfig, TextTokenizer, tokenizer_fingerprint};
use gradmem::interop::checkpoint::SpecialTokens;
use gradmem::kernels::KernelBackend;
use gradmem::method::AnyMethod;
use gradmem::model::generate::GenerateConfig;
use gradmem::tokenizer::{self, Tokenizer};
use gradmem::train::{Trained, open_method};

use crate::args;

/// A method with trained weights and what it reads: a run, a checkpoint or a pretrained model.
pub struct Model<B: KernelBackend> {
    pub method: AnyMethod<B>,
    pub text: Text,
}

impl<B: KernelBackend> Model<B> {
    pub fn open(folder: &Path, device: &B::Device) -> Result<Self, Error> {
        if folder.join("config.toml").is_file() {
            let Trained {
                method,
                tokenizer,
                config,
                ..
            } = Trained::open(folder, device)?;
            let text = Text::Task(Box::new(tokenizer), Box::new(config.data));
            return Ok(Self { method, text });
        }
        let method = open_method(folder, device)?;
        let vocab_size = method.model().config().vocab_size();
        let tokenizer = tokenizer::open_folder(folder, vocab_size)?.ok_or_else(|| {
            Error::Input(format!(
                "{} has no tokenizer.json: put the one the model was trained with there",
                folder.display()
            ))
        })?;
        let text = Text::Any(Box::new(tokenizer), SpecialTokens::open(folder)?.end);
        Ok(Self { method, text })
    }
}

/// Text to tokens and back.
pub enum Text {
    /// As the run's task does it.
    Task(Box<TextTokenizer>, Box<DataConfig>),
    /// As a `tokenizer.json` says; answers end with the token that the model's `config.json` names.
    Any(Box<Tokenizer>, Option<u32>),
}

impl Text {
    pub fn encode(&self, text: &str, begin: Begin) -> Result<Vec<u32>, Error> {
        match self {
            Self::Task(tokenizer, _) => {
                let ids = tokenizer.encode(text)?;
                let unknown = ids.iter().filter(|id| tokenizer.is_unknown(**id)).count();
                if unknown > 0 {
                    log::warn!(
                        "{unknown} of {} tokens are not in the vocabulary: the model knows nothing of them",
                        ids.len()
                    );
                }
                Ok(ids)
            }
            Self::Any(tokenizer, _) => {
                tokenizer::encode(tokenizer, text, begin == Begin::AsATextDoes)
            }
        }
    }

    /// Tokens of a context or a question, in the form that the model was trained with.
    pub fn encode_as_trained(&self, text: &str) -> Result<Vec<u32>, Error> {
        match self {
            Self::Task(_, data) => self.encode(&data.form(text), Begin::Bare),
            Self::Any(..) => self.encode(text, Begin::Bare),
        }
    }

    /// The tokenizer's.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Task(tokenizer, _) => tokenizer.fingerprint(),
            Self::Any(tokenizer, _) => tokenizer_fingerprint(tokenizer),
        }
    }

    /// The text of an answer.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        match self {
            Self::Task(tokenizer, _) => tokenizer.decode_answer(ids),
            Self::Any(tokenizer, _) => tokenizer::decode(tokenizer, ids),
        }
    }

    /// A prompt and what follows it. They are decoded together: how a token reads may depend on the one
    /// before it.
    pub fn continued(&self, prompt: &[u32], answer: &[u32]) -> Result<String, Error> {
        let ids = [prompt, answer].concat();
        match self {
            Self::Task(tokenizer, _) => tokenizer.decode(&ids),
            Self::Any(..) => self.decode(&ids),
        }
    }

    /// The token that ends an answer, if there is one.
    fn end(&self) -> Option<u32> {
        match self {
            Self::Task(tokenizer, _) => Some(tokenizer.end()),
            Self::Any(_, end) => *end,
        }
    }

    pub fn config(&self, sampling: &args::Sampling) -> Result<GenerateConfig, Error> {
        Ok(GenerateConfig {
            max_tokens: sampling.max_tokens,
            stop: self.end().into_iter().collect(),
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            seed: sampling.seed,
        })
    }
}

/// How a text's tokens begin.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With the text itself: it stands behind something.
    Bare,
    /// With what the tokenizer puts before a text.
    AsATextDoes,
}
