//! The model that a subcommand loads: a method with trained weights, and its tokenizer.

use std::path::Path;

use gradmem::Error;
use gradmem::data::{DataConfig, TextTokenizer, tokenizer_fingerprint};
use gradmem::interop::checkpoint::SpecialTokens;
use gradmem::kernels::KernelBackend;
use gradmem::memory::{GradMem, GradMemConfig, MemoryFile, MemoryStart};
use gradmem::method::AnyMethod;
use gradmem::model::AnyLm;
use gradmem::model::generate::GenerateConfig;
use gradmem::report::is_run;
use gradmem::tokenizer::{self, Tokenizer};
use gradmem::train::{Trained, open_method};

use crate::args::{Sampling, by_options};
use crate::input::in_file;

/// A method in a folder, if it is GradMem, for a subcommand that needs it.
pub fn gradmem_of<'a, B: KernelBackend>(
    method: &'a AnyMethod<B>,
    folder: &Path,
    command: &str,
) -> Result<&'a GradMem<B, AnyLm<B>>, Error> {
    match method {
        AnyMethod::GradMem(gradmem) => Ok(gradmem),
        other => Err(Error::Input(format!(
            "{}: is a model of {}: {command} needs one of GradMem",
            folder.display(),
            other.config().name().as_str()
        ))),
    }
}

/// The same method with the number of WRITE steps that `--write-steps` says.
pub fn with_write_steps<B: KernelBackend>(
    method: AnyMethod<B>,
    steps: usize,
) -> Result<AnyMethod<B>, Error> {
    let options = [("write_steps", "--write-steps")];
    let writes = !matches!(method, AnyMethod::InContext(_));
    let method = method.with_write_steps(steps);
    method.map_err(|e| match by_options(e, &options) {
        Error::Input(problem) if writes => {
            Error::Input(format!("--write-steps {steps}: {problem}"))
        }
        other => other,
    })
}

/// A method with trained weights and its tokenizer, from a run, a checkpoint or a pretrained model.
pub struct Model<B: KernelBackend> {
    pub method: AnyMethod<B>,
    pub text: Text,
}

impl<B: KernelBackend> Model<B> {
    /// Opens a run's folder or, if it has no `config.toml`, a checkpoint's.
    pub fn open(folder: &Path, device: &B::Device) -> Result<Self, Error> {
        if is_run(folder)? {
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
            let what = match folder.join("tokenizer.model").exists() {
                true => {
                    "convert its tokenizer.model with transformers \
                     (AutoTokenizer.from_pretrained(folder).save_pretrained(folder))"
                }
                false => "put the one the model was trained with there",
            };
            Error::Input(format!(
                "{} has no tokenizer.json: {what}",
                folder.display()
            ))
        })?;
        let text = Text::Any {
            tokenizer: Box::new(tokenizer),
            ends: SpecialTokens::open(folder)?.ends,
            in_context: matches!(method, AnyMethod::InContext(_)),
        };
        Ok(Self { method, text })
    }

    /// With so many memory vectors in front of a model that has none, for which nothing was trained: they are optimised
    /// for each text. The vectors start as embeddings of tokens, always the same.
    pub fn with_vectors(self, memory_tokens: usize, device: &B::Device) -> Result<Self, Error> {
        let AnyMethod::InContext(bare) = self.method else {
            return Ok(self);
        };
        let config = GradMemConfig::new()
            .with_memory_tokens(memory_tokens)
            .with_memory_start(MemoryStart::Tokens)
            .with_memory_std(0.0);
        let method = AnyMethod::GradMem(config.init(bare.model, 0, device)?);
        let text = match self.text {
            Text::Any {
                tokenizer, ends, ..
            } => Text::Any {
                tokenizer,
                ends,
                in_context: false,
            },
            task => task,
        };
        Ok(Self { method, text })
    }

    /// The same with as many vectors as a file's memories have.
    pub fn with_vectors_of(self, file: &MemoryFile, device: &B::Device) -> Result<Self, Error> {
        match file.origin.method.as_str() {
            "gradmem" if file.kind() == "prefix" => {
                self.with_vectors(file.shape()[1] / file.chunks().max(1), device)
            }
            _ => Ok(self),
        }
    }

    /// The token ids of a context to write, the text of a file, which an error names.
    pub fn encode_file(&self, path: &Path, context: &str) -> Result<Vec<u32>, Error> {
        self.encode_context(context).map_err(|e| in_file(path, e))
    }

    /// The token ids of a context to write.
    ///
    /// # Errors
    ///
    /// If it has nothing that is predicted, or is longer than the model can write.
    pub fn encode_context(&self, context: &str) -> Result<Vec<u32>, Error> {
        let ids = self.text.encode_part(context, Part::Context)?;
        // A tokenizer may begin any text with a token.
        if ids.is_empty() || context.is_empty() {
            return Err(Error::Input("is empty: there is nothing to write".into()));
        }
        if let AnyMethod::GradMem(gradmem) = &self.method
            && ids.len() <= gradmem.config().first_predicted()
        {
            return Err(Error::Input(format!(
                "has one token, and with a memory of kind `{}` nothing predicts the first: there is nothing to write",
                gradmem.config().kind.as_str()
            )));
        }
        match self.method.longest_context()? {
            Some(longest) if ids.len() > longest => Err(Error::Input(format!(
                "has {} tokens, but this model writes {longest} at most: split it into several texts",
                ids.len()
            ))),
            _ => Ok(ids),
        }
    }
}

/// Text to token ids and back.
pub enum Text {
    /// The tokenizer of a run, and its task.
    Task(Box<TextTokenizer>, Box<DataConfig>),
    /// A `tokenizer.json` beside a checkpoint or a pretrained model.
    Any {
        tokenizer: Box<Tokenizer>,
        /// The tokens that end an answer.
        ends: Vec<u32>,
        /// Whether context and question are one prompt.
        in_context: bool,
    },
}

/// What a text is for the model.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Context,
    Question,
}

/// Whether the tokenizer adds special tokens, such as one that begins a text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    With,
    Without,
}

/// The token ids of a text, with a warning of those for what is not in the vocabulary.
fn known(is_unknown: impl Fn(u32) -> bool, ids: Vec<u32>) -> Vec<u32> {
    let unknown = ids.iter().filter(|id| is_unknown(**id)).count();
    if unknown > 0 {
        log::warn!(
            "{unknown} of {} tokens are not in the vocabulary: the model knows nothing of them",
            ids.len()
        );
    }
    ids
}

impl Text {
    /// The token ids of a text. A run's tokenizer has no special tokens to add.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>, Error> {
        match self {
            Self::Task(tokenizer, _) => Ok(known(
                |id| tokenizer.is_unknown(id),
                tokenizer.encode(text)?,
            )),
            Self::Any { tokenizer, .. } => {
                let unknown = tokenizer::unknown(tokenizer);
                let ids = tokenizer::encode(tokenizer, text, specials == Specials::With)?;
                Ok(known(|id| Some(id) == unknown, ids))
            }
        }
    }

    /// The token ids of a context or a question, in the form that the model was trained with. The reference's scripts
    /// let the tokenizer add its special tokens to both.
    pub fn encode_part(&self, text: &str, part: Part) -> Result<Vec<u32>, Error> {
        match self {
            Self::Task(tokenizer, data) => {
                let formed = match part {
                    Part::Context => data.form_context(text),
                    Part::Question => data.form_question(text)?,
                };
                // What is put around a text is around every text of the task.
                if !formed.contains(text.trim()) {
                    log::warn!(
                        "the text is changed into the form of the task's texts, in its white space or its line breaks"
                    );
                }
                let ids = match part {
                    Part::Context => tokenizer.encode(&formed)?,
                    Part::Question => tokenizer.encode_query(&formed)?,
                };
                Ok(known(|id| tokenizer.is_unknown(id), ids))
            }
            Self::Any { in_context, .. } => {
                let specials = match (part, in_context) {
                    (Part::Question, true) => Specials::Without,
                    _ => Specials::With,
                };
                self.encode(text, specials)
            }
        }
    }

    /// The fingerprint of the tokenizer.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Task(tokenizer, _) => tokenizer.fingerprint(),
            Self::Any { tokenizer, .. } => tokenizer_fingerprint(tokenizer),
        }
    }

    /// The text of an answer.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        match self {
            Self::Task(tokenizer, _) => tokenizer.decode_answer(ids),
            Self::Any { tokenizer, .. } => tokenizer::decode(tokenizer, ids),
        }
    }

    /// The text of a prompt and its continuation, decoded together: a token's text may depend on the token
    /// before it.
    pub fn decode_continued(&self, prompt: &[u32], answer: &[u32]) -> Result<String, Error> {
        let ids = [prompt, answer].concat();
        match self {
            Self::Task(tokenizer, _) => tokenizer.decode(&ids),
            Self::Any { .. } => self.decode(&ids),
        }
    }

    /// The tokens that end an answer.
    fn ends(&self) -> Vec<u32> {
        match self {
            Self::Task(tokenizer, _) => vec![tokenizer.end()],
            Self::Any { ends, .. } => ends.clone(),
        }
    }

    /// The settings of generation: the sampling options, and the tokens that end an answer.
    ///
    /// # Errors
    ///
    /// Options of samples without a temperature; values that cannot work.
    pub fn generate_config(&self, sampling: &Sampling) -> Result<GenerateConfig, Error> {
        let of_samples =
            sampling.top_k.is_some() || sampling.top_p != 1.0 || sampling.seed.is_some();
        if sampling.temperature == 0.0 && of_samples {
            let problem =
                "--top-k, --top-p and --seed are for samples: give a --temperature above 0 too";
            return Err(Error::Input(problem.into()));
        }
        let config = GenerateConfig {
            max_tokens: sampling.max_tokens,
            stop: self.ends(),
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            seed: sampling.seed.unwrap_or(0),
            first: 0,
        };
        let options = [
            ("temperature", "--temperature"),
            ("top_k", "--top-k"),
            ("top_p", "--top-p"),
        ];
        config.validate().map_err(|e| by_options(e, &options))?;
        Ok(config)
    }
}
