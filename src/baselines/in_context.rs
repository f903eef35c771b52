//! The whole context in the prompt: what a model can do that forgets nothing.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::memory::{Contexts, check_pad};
use crate::model::generate::{GenerateConfig, Prefix, continue_prompts};
use crate::model::rows::{pick, share};
use crate::model::{CausalLm, check_tokens};

/// Settings of the prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[must_use]
pub struct InContextConfig {
    /// The token that fills a batch's shorter contexts on the right; the model never reads it.
    pub pad_token: usize,
}

impl InContextConfig {
    /// The defaults: token 0 fills shorter contexts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the token that fills shorter contexts.
    pub fn with_pad_token(mut self, pad_token: usize) -> Self {
        self.pad_token = pad_token;
        self
    }

    /// Wraps a model.
    ///
    /// # Errors
    ///
    /// If the padding token is none of the model's.
    pub fn init<B: Backend, M: CausalLm<B>>(&self, model: M) -> Result<InContext<B, M>, Error> {
        check_pad(&model, self.pad_token)?;
        Ok(InContext {
            model,
            config: self.clone(),
            backend: std::marker::PhantomData,
        })
    }
}

/// A language model that is given context and query together.
#[derive(Module, Debug)]
pub struct InContext<B: Backend, M> {
    /// The language model.
    pub model: M,
    #[module(skip)]
    config: InContextConfig,
    backend: std::marker::PhantomData<B>,
}

impl<B: Backend, M: CausalLm<B>> InContext<B, M> {
    /// The settings in force.
    pub fn config(&self) -> &InContextConfig {
        &self.config
    }

    /// Next-token logits of `queries` behind their contexts; each context has as many in a row.
    ///
    /// # Shapes
    ///
    /// - `contexts`: token ids `[batch, context_len]`, padded on the right
    /// - `queries`: token ids `[batch · r, seq]`
    /// - output: `[batch · r, seq + 1, vocab_size]`; row 0 is predicted from the context alone
    ///
    /// # Errors
    ///
    /// An empty context, a token the model does not have, or more tokens than positions.
    pub fn logits(
        &self,
        contexts: Tensor<B, 2, Int>,
        queries: Tensor<B, 2, Int>,
    ) -> Result<Tensor<B, 3>, Error> {
        let [rows, seq] = queries.dims();
        let contexts = Contexts::new(&self.model, contexts, self.config.pad_token, 0)?;
        let [batch, width] = contexts.tokens.dims();
        let times = share(rows, batch)?;
        let longest = contexts.lengths.iter().copied().max().unwrap_or(0);
        check_tokens(&self.model, &queries, longest, "query")?;
        let ids = |x: &Tensor<B, 2, Int>| x.to_data().iter::<i64>().collect::<Vec<_>>();
        let (context_ids, query_ids) = (ids(&contexts.tokens), ids(&queries));
        // The query follows the context's last token; what is left over goes to the end, where nothing
        // looks back at it.
        let total = longest + seq;
        let mut prompts = Vec::with_capacity(rows * total);
        let mut answers = Vec::with_capacity(rows);
        for row in 0..rows {
            let sample = row / times;
            let length = contexts.lengths[sample];
            prompts.extend(&context_ids[sample * width..sample * width + length]);
            prompts.extend(&query_ids[row * seq..(row + 1) * seq]);
            prompts.resize((row + 1) * total, self.config.pad_token as i64);
            answers.push((length - 1..length + seq).collect());
        }
        let data = TensorData::new(prompts, [rows, total]);
        let prompts = Tensor::from_data(data, &queries.device());
        let hidden = self.model.hidden(self.model.embed(prompts));
        Ok(self.model.logits(pick(hidden, &answers)))
    }

    /// Goes on from each of the `prompts` `[batch · r]` behind its context.
    ///
    /// # Errors
    ///
    /// As [`InContext::logits`], and as
    /// [`generate::continue_prompts`](crate::model::generate::continue_prompts).
    pub fn generate(
        &self,
        contexts: Tensor<B, 2, Int>,
        prompts: &[Vec<u32>],
        config: &GenerateConfig,
    ) -> Result<Vec<Vec<u32>>, Error> {
        let contexts = Contexts::new(&self.model, contexts, self.config.pad_token, 0)?;
        let [batch, width] = contexts.tokens.dims();
        let times = share(prompts.len(), batch)?;
        let ids: Vec<u32> = contexts.tokens.to_data().iter::<u32>().collect();
        let prompts = prompts.iter().enumerate().map(|(row, prompt)| {
            let sample = row / times.max(1);
            let start = sample * width;
            [&ids[start..start + contexts.lengths[sample]], prompt].concat()
        });
        let prompts: Vec<Vec<u32>> = prompts.collect();
        continue_prompts(&self.model, &prompts, config, &contexts.tokens.device())
    }

    /// Reads one context once, for any number of queries.
    ///
    /// # Errors
    ///
    /// As [`InContext::logits`].
    pub fn reader(&self, context: Tensor<B, 2, Int>) -> Result<Prefix<'_, B, M>, Error> {
        let contexts = Contexts::new(&self.model, context, self.config.pad_token, 0)?;
        let length = contexts.lengths[0];
        if contexts.lengths.iter().any(|other| *other != length) {
            return Err(Error::Input(
                "contexts read together must be of one length".into(),
            ));
        }
        let tokens = contexts.tokens.narrow(1, 0, length);
        Prefix::new(&self.model, self.model.embed(tokens))
    }
}
