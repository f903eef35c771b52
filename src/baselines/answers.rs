use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::episode::Predicted;
use crate::memory::Memory;

/// What a method answers to an episode's queries, with the losses and the memory that belong to it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Answers<B: Backend> {
    /// Mean `−log p` of the labelled tokens, `[1]`; of [smoothed labels](crate::episode::Episode::with_label_smoothing) their
    /// loss.
    pub read_loss: Tensor<B, 1>,
    /// What other losses add to what training minimises, `[1]`. [`Method::gradient`](crate::method::Method::gradient) takes it for a
    /// mean over the tokens of the contexts where it weighs the parts of a batch.
    pub write_term: Option<Tensor<B, 1>>,
    /// The most probable tokens where there are labels.
    pub predicted: Predicted<B>,
    /// What was written, if anything was.
    pub memory: Option<Memory<B>>,
    /// See [`Outer::drift`](crate::memory::Outer::drift).
    pub drift: Option<Tensor<B, 1>>,
}

impl<B: Backend> Answers<B> {
    /// Of a method that writes nothing: the READ loss alone.
    pub fn new(read_loss: Tensor<B, 1>, predicted: Predicted<B>) -> Self {
        Self {
            read_loss,
            write_term: None,
            predicted,
            memory: None,
            drift: None,
        }
    }

    /// What training minimises, `[1]`.
    pub fn loss(&self) -> Tensor<B, 1> {
        match &self.write_term {
            Some(term) => self.read_loss.clone() + term.clone(),
            None => self.read_loss.clone(),
        }
    }
}

impl<B: AutodiffBackend> Answers<B> {
    /// The same without the tape.
    pub fn inner(self) -> Answers<B::InnerBackend> {
        Answers {
            read_loss: self.read_loss.inner(),
            write_term: self.write_term.map(Tensor::inner),
            predicted: self.predicted.inner(),
            memory: self.memory.map(|memory| memory.inner()),
            drift: self.drift.map(Tensor::inner),
        }
    }
}
