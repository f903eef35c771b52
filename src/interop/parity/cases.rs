//! The numbers of a case: of each method, and of a language model alone.

use std::path::Path;

use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor, TensorData};
use gradmem_kernels::KernelBackend;

use crate::baselines::armt::Placement;
use crate::baselines::{Answers, Armt, ArmtImplementation, Rmt};
use crate::episode::{Episode, Labels, Tokens};
use crate::error::Error;
use crate::interop::checkpoint::SpecialTokens;
use crate::memory::{GradMem, Memory, MetaGradient};
use crate::model::weights::Tensors;
use crate::model::{AnyLm, CausalLm, unpadded};
use crate::support::fs::read_object;

/// A batch of tokens, and what is expected of it.
pub(super) struct Batch<B: Backend> {
    file: Tensors,
    pad: u32,
    /// Whether norms are over all matrices of a memory.
    all_matrices: bool,
    /// Whether the losses beside READ's are expected.
    auxiliary: bool,
    device: B::Device,
}

impl<B: Backend> Batch<B> {
    /// Opens the batch of a case.
    pub(super) fn open(folder: &Path, device: &B::Device) -> Result<Self, Error> {
        let config = read_object(&folder.join("config.json"))?;
        Ok(Self {
            file: Tensors::open(folder.join("batch.safetensors"))?,
            pad: SpecialTokens::open(folder)?.pad,
            all_matrices: config.contains_key("memory_backend"),
            auxiliary: config.contains_key("step_alignment_weight"),
            device: device.clone(),
        })
    }

    /// A tensor's integers `[rows, width]`, on the host: no device sees what it could not hold.
    fn rows(&self, name: &str) -> Result<Vec<Vec<i64>>, Error> {
        let data = self.file.get(name)?;
        let [_, width] = data.shape.as_slice() else {
            return Err(Error::Input(format!(
                "`{name}` of the batch has {} dimensions, not [batch, seq]",
                data.shape.num_dims()
            )));
        };
        if !matches!(data.dtype, DType::I64 | DType::I32) {
            return Err(Error::Input(format!(
                "`{name}` of the batch holds {:?}, not integers of 64 bits",
                data.dtype
            )));
        }
        let ids: Vec<i64> = data.iter::<i64>().collect();
        Ok(ids.chunks((*width).max(1)).map(<[i64]>::to_vec).collect())
    }

    fn ids(&self, name: &str) -> Result<Vec<Vec<u32>>, Error> {
        let id = |(row, column, id): (usize, usize, i64)| {
            u32::try_from(id).map_err(|_| {
                Error::Input(format!(
                    "row {row} of `{name}` has {id} at {column}, which is no token id"
                ))
            })
        };
        let rows = self.rows(name)?.into_iter().enumerate();
        rows.map(|(row, ids)| {
            let ids = ids.into_iter().enumerate();
            ids.map(|(column, value)| id((row, column, value)))
                .collect()
        })
        .collect()
    }

    /// The labels, as rows of the queries' width.
    fn labels(&self, queries: &Tokens<B>) -> Result<Vec<Vec<i64>>, Error> {
        let labels = self.rows("labels")?;
        let width = labels.first().map_or(0, Vec::len);
        if [labels.len(), width] != [queries.len(), queries.width()] {
            return Err(Error::Input(format!(
                "queries are {:?}, but labels {:?}",
                [queries.len(), queries.width()],
                [labels.len(), width]
            )));
        }
        Ok(labels)
    }

    fn episode(&self) -> Result<Episode<B>, Error> {
        let contexts = self.ids("context_input_ids")?;
        let contexts = contexts.iter().enumerate();
        let contexts = contexts.map(|(at, row)| unpadded(row, at, self.pad));
        let contexts = contexts.collect::<Result<Vec<_>, _>>()?;
        // Padding of queries has no labels; as tokens it changes nothing that is compared.
        let queries = Tokens::new(&self.ids("query_input_ids")?, &self.device)?;
        let labels = self.labels(&queries)?;
        Episode::new(Tokens::new(&contexts, &self.device)?, queries, &labels)
    }
}

/// Numbers, each with its name.
pub(super) type Computed = Vec<(String, TensorData)>;

pub(super) fn gradmem_case<B: KernelBackend + AutodiffBackend>(
    gradmem: &GradMem<B, AnyLm<B>>,
    strategy: MetaGradient,
    batch: &Batch<B>,
) -> Result<(Computed, GradientsParams), Error>
where
    B::InnerBackend: KernelBackend,
{
    let episode = batch.episode()?;
    let (gradients, outer) = gradmem.outer_gradient(&episode, strategy)?;
    let loss = outer.loss();
    let memory = &outer.memory;
    // The first of the reference's branches looks at the vectors alone, later ones at all matrices.
    let counted = match batch.all_matrices {
        true => memory.fast().len(),
        false => 1,
    };
    let start = gradmem.start(1);
    let moved = memory.fast().iter().zip(start);
    let moved: Vec<_> = moved.map(|(end, start)| end.clone() - start).collect();
    let mut computed = vec![
        ("loss".into(), loss.to_data()),
        (
            "logits".into(),
            gradmem.read(memory, episode.queries())?.to_data(),
        ),
        ("stats.target_loss".into(), outer.read_loss.to_data()),
        (
            "stats.mem_norm_mean".into(),
            mean_norm(&memory.fast()[..counted]).to_data(),
        ),
        (
            "stats.delta_mem_norm_mean".into(),
            mean_norm(&moved[..counted]).to_data(),
        ),
    ];
    computed.extend(
        gradmem
            .named_matrices(memory)
            .into_iter()
            .map(|(name, matrix)| (name, matrix.to_data())),
    );
    if batch.auxiliary {
        let terms = gradmem.with_alignment().outer(&episode)?.auxiliary;
        let terms = [
            ("step_alignment", terms.step_alignment),
            ("intermediate_read", terms.intermediate_read),
        ];
        for (name, term) in terms {
            let term = term.map(|term| (format!("stats.{name}_loss"), term.to_data()));
            computed.extend(term);
        }
    }
    if let Some(loss) = memory.losses.last() {
        computed.push(("stats.inner_loss".into(), loss.clone().mean().to_data()));
    }
    // Of the last chunk.
    let steps = memory.grad_norms.len().min(gradmem.config().write_steps);
    let norms = memory.grad_norms[memory.grad_norms.len() - steps..].iter();
    let norms: Vec<Tensor<B, 1>> = norms
        .map(|norms| {
            let squares = norms.clone().narrow(1, 0, counted).square().sum_dim(1);
            squares.sqrt().flatten(0, 1)
        })
        .collect();
    if !norms.is_empty() {
        let norms = Tensor::cat(norms, 0);
        for (name, value) in [
            ("mean", norms.clone().mean()),
            ("max", norms.clone().max()),
            ("min", norms.min()),
        ] {
            computed.push((format!("stats.inner_grad_norm_{name}"), value.to_data()));
        }
    }
    Ok((computed, gradients))
}

/// The mean over samples of the L2 norm of matrices `[batch, rows, columns]`.
fn mean_norm<B: Backend>(matrices: &[Tensor<B, 3>]) -> Tensor<B, 1> {
    let squares = matrices
        .iter()
        .map(|x| x.clone().square().sum_dim(2).sum_dim(1));
    let sum = squares.reduce(|sum, squares| sum + squares);
    sum.unwrap_or_else(|| unreachable!("a memory has matrices"))
        .sqrt()
        .mean()
}

pub(super) fn rmt_case<B: KernelBackend + AutodiffBackend>(
    rmt: &Rmt<B, AnyLm<B>>,
    batch: &Batch<B>,
) -> Result<(Computed, GradientsParams), Error>
where
    B::InnerBackend: KernelBackend,
{
    let episode = batch.episode()?;
    let answers = rmt.outer(&episode)?;
    let loss = answers.loss();
    let gradients = GradientsParams::from_grads(loss.backward(), rmt);
    let memory = written(&answers)?;
    let logits = rmt.read(memory, episode.queries())?;
    let [rows, seq, vocab] = logits.dims();
    // The reference has no row for what is predicted from the memory alone.
    let logits = logits.slice([0..rows, 1..seq, 0..vocab]).to_data();
    let mut computed = vec![
        ("loss".into(), loss.to_data()),
        (
            "logits".into(),
            without_padding(logits, episode.queries(), batch.pad),
        ),
        ("memory".into(), memory.vectors().to_data()),
        ("stats.target_loss".into(), answers.read_loss.to_data()),
        (
            "stats.mem_norm_mean".into(),
            mean_norm(memory.fast()).to_data(),
        ),
    ];
    if rmt.config().write_steps > 1 {
        let first = rmt.clone().with_write_steps(1)?.write(episode.contexts())?;
        let moved = mean_norm(&[memory.vectors() - first.vectors()]).to_data();
        computed.push(("stats.delta_mem_norm_mean".into(), moved));
    }
    if let Some(term) = answers.write_term {
        let loss = term.div_scalar(rmt.config().reconstruction_loss_weight);
        computed.push(("stats.rec_loss".into(), loss.to_data()));
    }
    Ok((computed, gradients))
}

/// The memory that a method answered from.
fn written<B: Backend>(answers: &Answers<B>) -> Result<&Memory<B>, Error> {
    let nothing = || Error::Input("nothing was written".into());
    answers.memory.as_ref().ok_or_else(nothing)
}

pub(super) fn armt_case<B: KernelBackend + AutodiffBackend>(
    armt: &Armt<B, AnyLm<B>>,
    batch: &Batch<B>,
) -> Result<(Computed, GradientsParams), Error>
where
    B::InnerBackend: KernelBackend,
{
    let episode = batch.episode()?;
    let width = batch.rows("context_input_ids")?.first().map_or(0, Vec::len);
    let placement = armt_placement(armt, &episode, width)?;
    let answers = armt.outer_placed(&episode, placement)?;
    let loss = answers.loss();
    let gradients = GradientsParams::from_grads(loss.backward(), armt);
    let memory = written(&answers)?;
    let logits = armt.read(memory, episode.queries())?.to_data();
    let logits = without_padding(logits, episode.queries(), batch.pad);
    let mut computed = vec![
        ("loss".into(), loss.to_data()),
        ("logits".into(), logits),
        ("stats.target_loss".into(), loss.to_data()),
    ];
    let parts: &[&str] = match armt.config().use_denom {
        true => &["W_mem", "z"],
        false => &["W_mem"],
    };
    for (layer, matrices) in memory.fast().chunks(parts.len()).enumerate() {
        for (part, matrix) in parts.iter().zip(matrices) {
            computed.push((format!("memory.{part}.{layer}"), matrix.to_data()));
        }
    }
    Ok((computed, gradients))
}

/// Where the reference puts the memory vectors of a batch whose contexts are padded to `width`. Fails on a batch that it
/// computes otherwise than sample by sample.
fn armt_placement<B: KernelBackend>(
    armt: &Armt<B, AnyLm<B>>,
    episode: &Episode<B>,
    width: usize,
) -> Result<Placement, Error> {
    let config = armt.config();
    let size = config.segment_size.unwrap_or(width);
    let padded = episode.contexts().lengths().any(|length| length < width);
    let problem = match config.implementation {
        ArmtImplementation::Thinking if padded => {
            "its memory vectors look at padding: contexts must be of one length".into()
        }
        ArmtImplementation::Thinking if config.segment_size.is_some() => {
            let query = episode.queries().width();
            match width.is_multiple_of(size) && query <= size {
                true => return Ok(Placement::BehindTokens),
                false => format!(
                    "it cuts contexts and queries as one stream: a segment of {size} must divide the context's {width} \
                     tokens and hold the query's {query}"
                ),
            }
        }
        ArmtImplementation::Thinking => return Ok(Placement::BehindTokens),
        ArmtImplementation::Old if !padded => return Ok(Placement::BehindTokens),
        ArmtImplementation::Old => {
            let last = (width.max(1) - 1) / size.max(1) * size;
            let mut lengths = episode.contexts().lengths();
            if episode.contexts().width() < width || lengths.any(|length| length <= last) {
                "it writes segments of padding alone: every context must have a token in the last segment, and one fill it"
                    .into()
            } else if armt.model.slots().keys_values.is_none() {
                "the model has no attention that could leave padding out: contexts must be of one length".into()
            } else {
                return Ok(Placement::BehindPadding);
            }
        }
    };
    Err(Error::Input(format!(
        "the reference's results depend on how this batch is padded and cut: {problem}"
    )))
}

/// Logits whose rows of padding count for nothing: the reference lets these look at the tokens before
/// them but not at themselves, and nothing reads what comes of it.
fn without_padding<B: Backend>(logits: TensorData, queries: &Tokens<B>, pad: u32) -> TensorData {
    let vocab = logits.shape[2];
    let ids: Vec<u32> = queries.rows().flatten().copied().collect();
    let is_padding = |element: usize| ids[element / vocab] == pad;
    let values = logits.iter::<f64>().enumerate();
    let values = values.map(|(at, value)| if is_padding(at) { UNCOMPARED } else { value });
    TensorData::new(values.collect::<Vec<f64>>(), logits.shape.clone())
}

/// Stands where a number is not compared.
pub(super) const UNCOMPARED: f64 = f64::MAX;

pub(super) fn plain_case<B: KernelBackend + AutodiffBackend>(
    model: &AnyLm<B>,
    batch: &Batch<B>,
) -> Result<(Computed, GradientsParams), Error>
where
    B::InnerBackend: KernelBackend,
{
    let tokens = Tokens::new(&batch.ids("input_ids")?, &batch.device)?;
    tokens.check(model, 0, "row of input_ids")?;
    if tokens.width() < 2 {
        return Err(Error::Input(
            "`input_ids` need at least two tokens: the first predicts the second".into(),
        ));
    }
    // Labels of a plain language model are shifted: row i predicts label i + 1.
    let labels = batch.labels(&tokens)?;
    let labels: Vec<_> = labels.iter().map(|row| &row[1..]).collect();
    let labels = Labels::new(&labels, tokens.width() - 1, &batch.device)?;
    labels.check(model)?;
    let logits = model.logits(model.hidden(model.embed(tokens.ids())));
    let loss = labels.mean_loss(logits.clone());
    let gradients = GradientsParams::from_grads(loss.backward(), model);
    let computed = vec![
        ("loss".into(), loss.to_data()),
        ("logits".into(), logits.to_data()),
    ];
    Ok((computed, gradients))
}
