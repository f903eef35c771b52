use burn::data::dataset::Dataset;

/// A context and what is asked about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// What is written into memory.
    pub context: String,
    /// One or more questions, answered from the same memory.
    pub questions: Vec<Question>,
}

/// A query and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What READ is given.
    pub query: String,
    /// What it shall go on with.
    pub target: String,
}

/// A data set repeated without end, up to `len` items.
pub struct Cycle<D> {
    dataset: D,
    len: usize,
}

impl<D> Cycle<D> {
    /// `len` items: those of `dataset`, again and again.
    pub fn new(dataset: D, len: usize) -> Self {
        Self { dataset, len }
    }
}

impl<I, D: Dataset<I>> Dataset<I> for Cycle<D> {
    fn get(&self, index: usize) -> Option<I> {
        let items = self.dataset.len();
        match index < self.len && items > 0 {
            true => self.dataset.get(index % items),
            false => None,
        }
    }

    fn len(&self) -> usize {
        self.len
    }
}
