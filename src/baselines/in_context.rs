//! The whole context in the prompt: the baseline that keeps everything.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::episode::{Tokens, check_contexts};
use crate::error::Error;
use crate::model::CausalLm;
use crate::model::generate::{GenerateConfig, Reader, continue_prompts};
use crate::model::rows::{pick, share};

/// A language model that is given context and query together.
#[derive(Module, Debug)]
pub struct InContext<B: Backend, M> {
    /// The language model.
    pub model: M,
    backend: std::marker::PhantomData<B>,
}

impl<B: Backend, M: CausalLm<B>> InContext<B, M> {
    /// Wraps a model.
    pub fn new(model: M) -> Self {
        Self {
            model,
            backend: std::marker::PhantomData,
        }
    }

    /// Next-token logits of `queries` behind their contexts; each context has as many in a row.
    ///
    /// # Shapes
    ///
    /// - `queries`: `[batch · r, seq]`
    /// - output: `[batch · r, seq + 1, vocab_size]`; row 0 is predicted from the context alone
    ///
    /// # Errors
    ///
    /// An empty context, a token the model does not have, or more tokens than positions.
    pub fn logits(&self, contexts: &Tokens<B>, queries: &Tokens<B>) -> Result<Tensor<B, 3>, Error> {
        self.check(contexts)?;
        let times = share(queries.len(), contexts.len())?;
        let longest = contexts.lengths().max().unwrap_or(0);
        queries.check(&self.model, longest, "query")?;
        // The query follows the context's last token; what fills a prompt comes last, where nothing looks
        // back at it.
        let seq = queries.width();
        let mut prompts = Vec::with_capacity(queries.len());
        let mut answers = Vec::with_capacity(queries.len());
        for (row, query) in queries.rows().enumerate() {
            let context = contexts.row(row / times);
            let mut prompt = [context, query].concat();
            prompt.resize(longest + seq, 0);
            prompts.push(prompt);
            answers.push((context.len() - 1..context.len() + seq).collect());
        }
        let prompts = Tokens::new(&prompts, &contexts.device())?;
        let hidden = self.model.hidden(self.model.embed(prompts.ids()));
        Ok(self.model.logits(pick(hidden, &answers)))
    }

    /// Continues each of the `prompts` `[batch · r]` after its context.
    ///
    /// # Errors
    ///
    /// As [`InContext::logits`], and as
    /// [`generate::continue_prompts`](crate::model::generate::continue_prompts).
    pub fn generate(
        &self,
        contexts: &Tokens<B>,
        prompts: &[Vec<u32>],
        config: &GenerateConfig,
    ) -> Result<Vec<Vec<u32>>, Error> {
        self.check(contexts)?;
        let times = share(prompts.len(), contexts.len())?;
        let prompts = prompts.iter().enumerate();
        let prompts: Vec<Vec<u32>> = prompts
            .map(|(row, prompt)| [contexts.row(row / times), prompt].concat())
            .collect();
        continue_prompts(&self.model, &prompts, config, &contexts.device())
    }

    /// Reads contexts of one length once, for any number of queries.
    ///
    /// # Errors
    ///
    /// As [`InContext::logits`]; also contexts of different lengths.
    pub fn reader(&self, contexts: &Tokens<B>) -> Result<Reader<'_, B, M>, Error> {
        self.check(contexts)?;
        let length = contexts.row(0).len();
        if contexts.lengths().any(|other| other != length) {
            return Err(Error::Input(
                "contexts read together must be of one length".into(),
            ));
        }
        let ids = contexts.ids().narrow(1, 0, length);
        Reader::new(&self.model, self.model.embed(ids))
    }

    fn check(&self, contexts: &Tokens<B>) -> Result<(), Error> {
        check_contexts(contexts)?;
        contexts.check(&self.model, 0, "context")
    }
}
