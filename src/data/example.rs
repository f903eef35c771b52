/// A context and the questions about it, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The text that WRITE stores in memory.
    pub context: String,
    /// One or more questions, answered from the same memory.
    pub questions: Vec<Question>,
    /// Bytes at the end of the context that are kept when a long context is truncated.
    pub tail: usize,
    /// Which way its pairs are written, if the task writes them both ways.
    pub direction: Option<Direction>,
}

/// Which way a context's pairs are written. Exact match is also measured for each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Direction {
    /// Each key before its value.
    Forward,
    /// Each value before its key.
    Backward,
}

impl Example {
    /// An example whose context may be truncated at its end.
    pub fn new(context: impl Into<String>, questions: Vec<Question>) -> Self {
        Self {
            context: context.into(),
            questions,
            tail: 0,
            direction: None,
        }
    }
}

/// A query and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The text that READ is given.
    pub query: String,
    /// The text that READ has to continue it with.
    pub target: String,
    /// Every text that counts as a right answer, the target included; empty if only the target does.
    pub answers: Vec<String>,
}

/// An [`Example`] in token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The tokens that WRITE stores in memory.
    pub context: Vec<u32>,
    /// The questions about it.
    pub asked: Vec<Asked>,
    /// Number of tokens that truncation removed from the context.
    pub cut: usize,
}

/// A [`Question`] in token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The tokens of the query and the target.
    pub tokens: Vec<u32>,
    /// The index of the first token of the target.
    pub target: usize,
    /// Every text that counts as a right answer.
    pub answers: Vec<String>,
    /// [`Example::direction`]
    pub direction: Option<Direction>,
}

impl Asked {
    /// Nothing more, of a context that has fewer questions than others beside it: a query without a target, whose token is read for
    /// nothing.
    pub(super) fn nothing(&self) -> Self {
        Self {
            tokens: self.tokens[..1].to_vec(),
            target: 1,
            answers: Vec::new(),
            direction: None,
        }
    }

    /// Whether it has no target, as what fills up the questions of a context.
    pub(super) fn is_nothing(&self) -> bool {
        self.target == self.tokens.len()
    }
}
