use std::fmt;
use std::sync::Arc;

use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::error::Error;
use crate::model::rows::select;
use crate::support::readback::Readback;

/// The memories of a batch of contexts, and how WRITE went.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use]
pub struct Memory<B: Backend> {
    /// What WRITE changes, `[batch, rows, columns]` for each matrix of the memory: once, or for each chunk of the contexts
    /// if READ is given the memories of all.
    parts: Vec<Vec<Tensor<B, 3>>>,
    /// How many of the parts each sample has, the first ones; all have all unless given. What fills the others is a copy
    /// of the sample's last.
    counts: Option<Arc<[usize]>>,
    /// Each sample's WRITE loss before each step (in nats a token, unless the objective is another than
    /// [`Reconstruct`](crate::memory::Reconstruct)): a tensor `[batch]` for each step of each chunk.
    pub losses: Vec<Tensor<B, 1>>,
    /// Each sample's L2 norm of the inner gradient to each matrix at each step, before clipping: as many tensors
    /// `[batch, matrices]`.
    pub grad_norms: Vec<Tensor<B, 2>>,
}

/// A memory with each of its tensors mapped, whatever their ranks.
macro_rules! mapped {
    ($memory:expr, $x:ident => $result:expr) => {{
        let memory = $memory;
        let parts = memory.parts.into_iter();
        Memory {
            parts: parts
                .map(|part| part.into_iter().map(|$x| $result).collect())
                .collect(),
            counts: memory.counts,
            losses: memory.losses.into_iter().map(|$x| $result).collect(),
            grad_norms: memory.grad_norms.into_iter().map(|$x| $result).collect(),
        }
    }};
}

impl<B: AutodiffBackend> Memory<B> {
    /// The same on the inner backend, without a graph: to be read without training.
    pub fn inner(self) -> Memory<B::InnerBackend> {
        mapped!(self, x => x.inner())
    }

    /// Of a memory on the inner backend, as a constant.
    pub fn from_inner(memory: Memory<B::InnerBackend>) -> Self {
        mapped!(memory, x => Tensor::from_inner(x))
    }
}

impl<B: Backend> Memory<B> {
    /// The same on this device.
    pub fn to_device(self, device: &B::Device) -> Self {
        mapped!(self, x => x.to_device(device))
    }

    /// The same as a constant: no gradient passes from it to what wrote it.
    pub fn detach(self) -> Self {
        mapped!(self, x => x.detach())
    }

    /// A memory of prefix vectors alone: `[batch, memory_tokens, d_model]`.
    pub fn from_vectors(vectors: Tensor<B, 3>) -> Self {
        Self::from_fast(vec![vectors])
    }

    /// Of all that WRITE changes, before any step.
    pub(crate) fn from_fast(fast: Vec<Tensor<B, 3>>) -> Self {
        Self::from_parts(vec![fast], None)
    }

    /// Of the memories of several chunks, of which each sample has the first `counts`, or all.
    ///
    /// # Panics
    ///
    /// If there is no part.
    pub(crate) fn from_parts(parts: Vec<Vec<Tensor<B, 3>>>, counts: Option<Arc<[usize]>>) -> Self {
        assert!(!parts.is_empty(), "a memory has a part");
        let all = parts.len();
        let some_have_fewer = |counts: &Arc<[usize]>| counts.iter().any(|count| *count < all);
        Self {
            parts,
            counts: counts.filter(some_have_fewer),
            losses: Vec::new(),
            grad_norms: Vec::new(),
        }
    }

    /// With the losses and gradient norms of the steps that led here.
    pub(crate) fn after(
        mut self,
        losses: Vec<Tensor<B, 1>>,
        grad_norms: Vec<Tensor<B, 2>>,
    ) -> Self {
        (self.losses, self.grad_norms) = (losses, grad_norms);
        self
    }

    /// Each sample's L2 norm of the inner gradient to all matrices at each step, before clipping: as many tensors `[batch]`.
    pub fn inner_norms(&self) -> Vec<Tensor<B, 1>> {
        let steps = self.grad_norms.iter().map(|norms| {
            let norm = match norms.dims() {
                [_, 1] => norms.clone(),
                _ => norms.clone().square().sum_dim(1).sqrt(),
            };
            norm.flatten(0, 1)
        });
        steps.collect()
    }

    /// Fails on a memory that holds non-finite numbers: WRITE itself does not read anything back, so that one with too large
    /// steps is no error. One transfer.
    ///
    /// # Errors
    ///
    /// Which of the memories it is.
    pub fn check_finite(&self) -> Result<(), Error> {
        let mut readback = Readback::new();
        // Scaled so that a sum of finite numbers is finite.
        let sums = self.parts.iter().flatten().map(|matrix| {
            let sizes = matrix.clone().abs().mul_scalar((-64f64).exp2());
            readback.push(sizes.sum_dim(2).sum_dim(1).flatten(0, 2))
        });
        let sums: Vec<_> = sums.collect();
        let values = readback.read();
        let wrong = |row: &usize| sums.iter().any(|slot| !values.of(*slot)[*row].is_finite());
        match (0..self.len()).find(wrong) {
            None => Ok(()),
            Some(row) => Err(Error::Failed(format!(
                "memory {row} of {} holds non-finite numbers: WRITE's steps were too large for it: try a smaller \
                 write_lr or an inner_clip_norm",
                self.len()
            ))),
        }
    }

    /// Number of memories.
    pub fn len(&self) -> usize {
        self.parts[0][0].dims()[0]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// M_K of a prefix, the memory vectors: `[batch, memory_tokens, d_model]`; of several chunks, one behind the other.
    pub fn vectors(&self) -> Tensor<B, 3> {
        let vectors = self.parts.iter().map(|part| part[0].clone());
        cat(vectors.collect(), 1)
    }

    /// Each sample's own map between memory and model, the weight `[batch, d_model, d_model]` and the bias
    /// `[batch, 1, d_model]`, with [`MemProj::PerSample`](crate::memory::MemProj::PerSample).
    pub fn projection(&self) -> Option<[Tensor<B, 3>; 2]> {
        match self.fast() {
            [vectors, weight, bias] => {
                let [batch, _, d] = vectors.dims();
                let fits = weight.dims() == [batch, d, d] && bias.dims() == [batch, 1, d];
                fits.then(|| [weight.clone(), bias.clone()])
            }
            _ => None,
        }
    }

    /// What WRITE changes, one tensor `[batch, rows, columns]` for each matrix: where another step or chunk would begin.
    pub fn fast(&self) -> &[Tensor<B, 3>] {
        &self.parts[self.parts.len() - 1]
    }

    /// What READ is given: the matrices, for each chunk if it is given the memories of all.
    pub fn parts(&self) -> &[Vec<Tensor<B, 3>>] {
        &self.parts
    }

    /// How many of the parts each sample has.
    pub fn counts(&self) -> impl ExactSizeIterator<Item = usize> {
        let (counts, all) = (self.counts.clone(), self.parts.len());
        (0..self.len()).map(move |row| counts.as_ref().map_or(all, |counts| counts[row].min(all)))
    }

    /// For each sample the matrices of the part that `sources` names.
    pub(crate) fn part_of(&self, sources: &[usize]) -> Vec<Tensor<B, 3>> {
        mix(&self.parts, sources)
    }

    /// The samples that have as many parts each, with that number; few parts first.
    pub(crate) fn groups(&self) -> Vec<(usize, Vec<usize>)> {
        let mut groups = std::collections::BTreeMap::<usize, Vec<usize>>::new();
        for (row, count) in self.counts().enumerate() {
            groups.entry(count).or_default().push(row);
        }
        groups.into_iter().collect()
    }

    /// These memories with the parts of later chunks behind them: each sample's own first.
    ///
    /// # Errors
    ///
    /// If they are not of as many samples, or of another shape.
    pub(crate) fn followed_by(self, later: Self) -> Result<Self, Error> {
        if self.len() != later.len() || Shapes::of(&self) != Shapes::of(&later) {
            return Err(Error::Input(format!(
                "{} memories of {} and {} of {} do not follow each other",
                self.len(),
                Shapes::of(&self),
                later.len(),
                Shapes::of(&later)
            )));
        }
        let counts: Vec<usize> = self
            .counts()
            .zip(later.counts())
            .map(|(a, b)| a + b)
            .collect();
        let (before, most) = (self.parts.len(), counts.iter().copied().max().unwrap_or(0));
        // Sample by sample: its own parts, then those that follow; its last one fills the rest.
        let own: Vec<usize> = self.counts().collect();
        let all = [self.parts, later.parts].concat();
        let parts = (0..most).map(|at| {
            let of_row = |row: usize| match at {
                at if at < own[row] => at,
                at => before + at.min(counts[row] - 1) - own[row],
            };
            let sources: Vec<usize> = (0..own.len()).map(of_row).collect();
            mix(&all, &sources)
        });
        let parts = parts.collect();
        Ok(Self::from_parts(parts, Some(counts.into())))
    }

    /// The memories of several batches as one. Their losses and norms are kept where all took as many WRITE
    /// steps.
    ///
    /// # Errors
    ///
    /// If there are none, or they differ in the shapes of their matrices.
    pub fn cat(memories: Vec<Self>) -> Result<Self, Error> {
        let shapes = memories.iter().map(Shapes::of).collect::<Vec<_>>();
        let Some(one) = shapes.first() else {
            return Err(Error::Input("there is no memory".into()));
        };
        if let Some(other) = shapes.iter().find(|other| *other != one) {
            return Err(Error::Input(format!(
                "memories of {one} and of {other} do not go together"
            )));
        }
        let most = memories.iter().map(|memory| memory.parts.len());
        let most = most.max().unwrap_or(1);
        let parts = (0..most).map(|part| {
            let matrices = (0..memories[0].fast().len()).map(|matrix| {
                let each = memories.iter().map(|memory| {
                    let part = part.min(memory.parts.len() - 1);
                    memory.parts[part][matrix].clone()
                });
                cat(each.collect(), 0)
            });
            matrices.collect()
        });
        let counts: Vec<usize> = memories.iter().flat_map(Self::counts).collect();
        let losses = at_each_step(memories.iter().map(|memory| &memory.losses[..]).collect());
        let norms = at_each_step(
            memories
                .iter()
                .map(|memory| &memory.grad_norms[..])
                .collect(),
        );
        Ok(Self::from_parts(parts.collect(), Some(counts.into())).after(losses, norms))
    }

    /// The memories of these indices, in this order, with their losses and norms.
    ///
    /// # Errors
    ///
    /// An index beyond them, or none.
    pub fn select(&self, indices: &[usize]) -> Result<Self, Error> {
        check_indices(indices, self.len())?;
        let all: Vec<usize> = self.counts().collect();
        let counts: Vec<usize> = indices.iter().map(|index| all[*index]).collect();
        let most = counts.iter().copied().max().unwrap_or(1);
        let parts = self.parts[..most].iter().map(|part| {
            let matrices = part.iter().cloned();
            matrices.map(|x| select(x, indices)).collect()
        });
        let losses = self.losses.iter().cloned();
        let norms = self.grad_norms.iter().cloned();
        Ok(
            Self::from_parts(parts.collect(), Some(counts.into())).after(
                losses.map(|x| select(x, indices)).collect(),
                norms.map(|x| select(x, indices)).collect(),
            ),
        )
    }

    /// Fails on memories of another layout than a model reads.
    pub(crate) fn check(&self, reads: &Layout) -> Result<(), Error> {
        if self.is_empty() {
            return Err(Error::Input("there is no memory".into()));
        }
        match reads.problem(&Shapes::of(self), self.parts.len()) {
            None => Ok(()),
            Some(problem) => Err(Error::Input(format!("the memory {problem}"))),
        }
    }
}

/// For each row the matrices of the part that `sources` names.
fn mix<B: Backend>(parts: &[Vec<Tensor<B, 3>>], sources: &[usize]) -> Vec<Tensor<B, 3>> {
    let first = sources.first().copied().unwrap_or(0);
    if sources.iter().all(|source| *source == first) {
        return parts[first].clone();
    }
    let matrices = (0..parts[first].len()).map(|matrix| {
        let rows = sources.iter().enumerate();
        let rows = rows.map(|(row, source)| parts[*source][matrix].clone().narrow(0, row, 1));
        Tensor::cat(rows.collect(), 0)
    });
    matrices.collect()
}

/// The values of several memories at each step; none if they took different numbers of steps.
fn at_each_step<B: Backend, const D: usize>(lists: Vec<&[Tensor<B, D>]>) -> Vec<Tensor<B, D>> {
    let steps = lists[0].len();
    if lists.iter().any(|list| list.len() != steps) {
        return Vec::new();
    }
    let at = |k: usize| cat(lists.iter().map(|list| list[k].clone()).collect(), 0);
    (0..steps).map(at).collect()
}

pub(super) fn cat<B: Backend, const D: usize>(
    mut tensors: Vec<Tensor<B, D>>,
    dim: usize,
) -> Tensor<B, D> {
    match tensors.len() {
        1 => tensors.remove(0),
        _ => Tensor::cat(tensors, dim),
    }
}

/// The rows and columns of each matrix of a memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shapes(pub Vec<[usize; 2]>);

impl Shapes {
    fn of<B: Backend>(memory: &Memory<B>) -> Self {
        let shapes = memory.fast().iter().map(|matrix| {
            let [_, rows, columns] = matrix.dims();
            [rows, columns]
        });
        Self(shapes.collect())
    }
}

impl fmt::Display for Shapes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [[m, d]] => write!(f, "{m} vectors of width {d}"),
            // A square matrix and one row: a sample's own map.
            [[m, d], [a, b], [1, c]] if a == d && b == d && c == d => {
                write!(f, "{m} vectors of width {d} with projections of their own")
            }
            shapes => {
                let floats: usize = shapes.iter().map(|[rows, columns]| rows * columns).sum();
                let [rows, columns] = shapes.first().copied().unwrap_or_default();
                let count = shapes.len();
                write!(
                    f,
                    "{count} matrices, the first {rows} × {columns}, {floats} numbers in all"
                )
            }
        }
    }
}

/// What one sample's memory is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The kind of memory, as it is written in settings and files.
    pub kind: &'static str,
    /// The names of the matrices in files.
    pub names: Vec<String>,
    pub shapes: Shapes,
    /// Whether a memory may have parts of several chunks.
    in_chunks: bool,
}

/// The kind that memory files of the first version are of.
pub(crate) const PREFIX: &str = "prefix";

impl Layout {
    /// Vectors in front of the tokens, with a map of their own or without.
    pub(crate) fn prefix([m, d]: [usize; 2], own_projection: bool) -> Self {
        let all = [
            ("memory", [m, d]),
            ("projection.weight", [d, d]),
            ("projection.bias", [1, d]),
        ];
        let count = if own_projection { all.len() } else { 1 };
        Self::new(
            PREFIX,
            all[..count]
                .iter()
                .map(|(name, shape)| (name.to_string(), *shape)),
        )
    }

    pub(crate) fn new(
        kind: &'static str,
        matrices: impl IntoIterator<Item = (String, [usize; 2])>,
    ) -> Self {
        let (names, shapes) = matrices.into_iter().unzip();
        Self {
            kind,
            names,
            shapes: Shapes(shapes),
            in_chunks: true,
        }
    }

    /// Of a model that writes a context as a whole, and reads no parts of chunks.
    pub(crate) fn of_whole_contexts(mut self) -> Self {
        self.in_chunks = false;
        self
    }

    /// What is wrong with a memory of so many chunks, each of these shapes, behind the words for it.
    pub(crate) fn problem(&self, found: &Shapes, chunks: usize) -> Option<String> {
        if *found == self.shapes {
            return (chunks > 1 && !self.in_chunks)
                .then(|| format!("has parts of {chunks} chunks, but this model reads one"));
        }
        let own = |shapes: &Shapes| shapes.0.len() > 1;
        Some(match (self.kind, found.0.first(), self.shapes.0.first()) {
            (PREFIX, Some([a, b]), Some([m, d])) if [a, b] != [m, d] => {
                format!("has {a} vectors of width {b}, but this model reads {m} of width {d}")
            }
            (PREFIX, ..) if own(&self.shapes) && !own(found) => {
                "has no projection of its own, but this model reads one".into()
            }
            (PREFIX, ..) if own(found) && !own(&self.shapes) => {
                "has a projection of its own, but this model reads none".into()
            }
            _ => format!("is made of {found}, but this model reads {}", self.shapes),
        })
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
