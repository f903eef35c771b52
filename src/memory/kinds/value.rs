use std::fmt;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::error::Error;
use crate::model::rows::select;

/// The memories of a batch of contexts, and how WRITE went.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use]
pub struct Memory<B: Backend> {
    /// What WRITE changes: `[batch, rows, columns]` for each matrix of the memory.
    fast: Vec<Tensor<B, 3>>,
    /// Each sample's WRITE loss before each of the K steps, in nats a token: K tensors `[batch]`.
    pub losses: Vec<Tensor<B, 1>>,
    /// Each sample's L2 norm of the inner gradient to the first matrix at each step, before clipping: K
    /// tensors `[batch]`.
    pub grad_norms: Vec<Tensor<B, 1>>,
}

impl<B: Backend> Memory<B> {
    /// A memory of prefix vectors alone: `[batch, memory_tokens, d_model]`.
    pub fn from_vectors(vectors: Tensor<B, 3>) -> Self {
        Self::from_fast(vec![vectors])
    }

    /// Of all that WRITE changes, before any step.
    pub(crate) fn from_fast(fast: Vec<Tensor<B, 3>>) -> Self {
        Self::after(fast, Vec::new(), Vec::new())
    }

    /// Of all that WRITE changes, after steps with these losses and gradient norms.
    pub(crate) fn after(
        fast: Vec<Tensor<B, 3>>,
        losses: Vec<Tensor<B, 1>>,
        grad_norms: Vec<Tensor<B, 1>>,
    ) -> Self {
        Self {
            fast,
            losses,
            grad_norms,
        }
    }

    /// Number of memories.
    pub fn len(&self) -> usize {
        self.fast[0].dims()[0]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// M_K, the memory vectors: `[batch, memory_tokens, d_model]`.
    pub fn vectors(&self) -> Tensor<B, 3> {
        self.fast[0].clone()
    }

    /// Each sample's own map between memory and model, the weight `[batch, d_model, d_model]` and the bias
    /// `[batch, 1, d_model]`, with [`MemProj::PerSample`](crate::memory::MemProj::PerSample).
    pub fn projection(&self) -> Option<[Tensor<B, 3>; 2]> {
        match self.fast.as_slice() {
            [_, weight, bias] => Some([weight.clone(), bias.clone()]),
            _ => None,
        }
    }

    /// All that WRITE changes, one tensor `[batch, rows, columns]` for each matrix.
    pub fn fast(&self) -> &[Tensor<B, 3>] {
        &self.fast
    }

    /// The memories of several batches as one. Their losses and norms are kept where all took as many WRITE
    /// steps.
    ///
    /// # Errors
    ///
    /// If there are none, or they differ in shape or in whether they have projections.
    pub fn cat(memories: Vec<Self>) -> Result<Self, Error> {
        let layouts = memories.iter().map(Layout::of).collect::<Vec<_>>();
        let Some(one) = layouts.first() else {
            return Err(Error::Input("there is no memory".into()));
        };
        if let Some(other) = layouts.iter().find(|other| *other != one) {
            return Err(Error::Input(format!(
                "memories of {one} and of {other} do not go together"
            )));
        }
        let parts = (0..memories[0].fast.len()).map(|part| {
            let each = memories.iter().map(|memory| memory.fast[part].clone());
            Tensor::cat(each.collect(), 0)
        });
        let steps = |of: fn(&Self) -> &Vec<Tensor<B, 1>>| -> Vec<Tensor<B, 1>> {
            let steps = of(&memories[0]).len();
            if memories.iter().any(|memory| of(memory).len() != steps) {
                return Vec::new();
            }
            (0..steps)
                .map(|k| Tensor::cat(memories.iter().map(|x| of(x)[k].clone()).collect(), 0))
                .collect()
        };
        Ok(Self::after(
            parts.collect(),
            steps(|memory| &memory.losses),
            steps(|memory| &memory.grad_norms),
        ))
    }

    /// The memories of these indices, in this order, with their losses and norms.
    ///
    /// # Errors
    ///
    /// An index beyond them, or none.
    pub fn select(&self, indices: &[usize]) -> Result<Self, Error> {
        check_indices(indices, self.len())?;
        let fast = self.fast.iter().cloned().map(|x| select(x, indices));
        let of_each = |values: &[Tensor<B, 1>]| {
            let values = values.iter().cloned();
            values.map(|x| select(x, indices)).collect()
        };
        Ok(Self::after(
            fast.collect(),
            of_each(&self.losses),
            of_each(&self.grad_norms),
        ))
    }

    /// Fails on memories of another layout than a model reads.
    pub(crate) fn check(&self, reads: Layout) -> Result<(), Error> {
        if self.is_empty() {
            return Err(Error::Input("there is no memory".into()));
        }
        let found = Layout::of(self);
        let problem = match (found.own_projection, reads.own_projection) {
            _ if found.vectors != reads.vectors => format!(
                "the memory has {} vectors of width {}, but this model reads {} of width {}",
                found.vectors[0], found.vectors[1], reads.vectors[0], reads.vectors[1]
            ),
            (false, true) => {
                "the memory has no projection of its own, but this model reads one".into()
            }
            (true, false) => {
                "the memory has a projection of its own, but this model reads none".into()
            }
            _ => return Ok(()),
        };
        Err(Error::Input(problem))
    }
}

/// What one sample's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// `[memory_tokens, d_model]`
    pub vectors: [usize; 2],
    /// Whether it has a map to the model of its own.
    pub own_projection: bool,
}

impl Layout {
    fn of<B: Backend>(memory: &Memory<B>) -> Self {
        let [_, m, d] = memory.fast[0].dims();
        Self {
            vectors: [m, d],
            own_projection: memory.fast.len() > 1,
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [m, d] = self.vectors;
        let own = match self.own_projection {
            true => " with projections of their own",
            false => "",
        };
        write!(f, "{m} vectors of width {d}{own}")
    }
}

/// Fails unless there are indices, all of them of one of `n` memories.
pub(crate) fn check_indices(indices: &[usize], n: usize) -> Result<(), Error> {
    if let Some(index) = indices.iter().find(|index| **index >= n) {
        return Err(Error::Input(format!(
            "there is no memory {index}: there are {n}, from 0 on"
        )));
    }
    match indices.is_empty() {
        true => Err(Error::Input("no memory is selected".into())),
        false => Ok(()),
    }
}
