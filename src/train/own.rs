//! A resumable training of a method of your own, on data of your own.

use std::fmt;
use std::path::Path;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::Dataset;
use burn::module::AutodiffModule;
use burn::tensor::DType;
use burn::tensor::backend::{AutodiffBackend, Backend};
use gradmem_kernels::Precision;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::config::TrainConfig;
use super::folder::{RunFolder, has_checkpoint, weights_in};
use super::launch::{launch, loaders, settle};
use super::metrics::Measure;
use super::optimizer::AdamW;
use super::options::TrainOptions;
use super::overrides::one_line;
use super::own_settings::{OWN, OwnSettings};
use super::strategy::{Loaders, Outcome};
use super::world::{all_or_none, from_the_first, same};
use crate::data::Batch;
use crate::error::{Error, require};
use crate::method::{Method, MethodName};
use crate::model::weights::Tensors;
use crate::support::fs::hex;

/// A training of any [`Method`], such as [`GradMem`](crate::memory::GradMem) with a model of your own, on any samples. It
/// is [`train`](super::train) without its settings of models and data: schedules, evaluations, a curriculum, the dashboard, and
/// a folder in which it stops and goes on with the result of an uninterrupted training.
///
/// The folder has `training.toml` in place of `config.toml`; `best.safetensors` has the weights with the best
/// validation metric.
///
/// ```no_run
/// # #[cfg(feature = "flex")] {
/// use burn::backend::Autodiff;
/// use gradmem::data::{DataConfig, ExampleBatcher, TokensConfig};
/// use gradmem::train::{TrainOptions, Training, config::TrainConfig};
/// # use gradmem::{memory::GradMemConfig, model::LlamaConfig};
/// # fn main() -> Result<(), gradmem::Error> {
/// type B = Autodiff<burn_flex::Flex>;
///
/// let device = Default::default();
/// let task = DataConfig::default().open(&TokensConfig::default(), 0, None)?; // or any two datasets
/// let batcher = ExampleBatcher::new(task.tokenizer); // or any batcher
/// let lm = LlamaConfig::new(70, 64, 2, 2).init::<B>(0, &device)?; // or any model
/// let config = GradMemConfig::new();
/// let settings = TrainConfig { steps: 1000, lr: 1e-3, ..TrainConfig::default() };
/// let (gradmem, outcome) = Training::<B>::new(settings)
///     .about(&config)?
///     .stage(task.train, task.valid, batcher, &device)
///     .run(config.init(lm, 1, &device)?, "runs/mine", TrainOptions::default())?;
/// println!("{:?} after {} steps", outcome.ending, outcome.state.step);
/// # let _ = gradmem;
/// # Ok(()) }
/// # }
/// ```
pub struct Training<B: AutodiffBackend> {
    settings: OwnSettings,
    stages: Vec<Loaders<B>>,
    measures: Vec<Measure>,
}

impl<B: AutodiffBackend> fmt::Debug for Training<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Training")
            .field("settings", &self.settings)
            .field("stages", &self.stages.len())
            .field("measures", &self.measures)
            .finish()
    }
}

impl<B: AutodiffBackend> Training<B> {
    /// With these settings. `train.curriculum` is not among them: see [`stage`](Self::stage).
    pub fn new(settings: TrainConfig) -> Self {
        Self {
            settings: OwnSettings {
                train: settings,
                about: toml::Table::new(),
            },
            stages: Vec::new(),
            measures: Measure::of(MethodName::GradMem).to_vec(),
        }
    }

    /// Settings of the method, the model or the data, kept in `training.toml`: a training that goes on must have the
    /// same. A further call adds to them.
    ///
    /// # Errors
    ///
    /// If TOML has no way to say them: they must have named fields.
    pub fn about(mut self, settings: &impl Serialize) -> Result<Self, Error> {
        let about = toml::Table::try_from(settings);
        let problem = |e: toml::ser::Error| {
            Error::Input(format!(
                "settings of a training: {}",
                one_line(&e.to_string())
            ))
        };
        self.settings.about.extend(about.map_err(problem)?);
        Ok(self)
    }

    /// Adds a version of the task. The first call's is trained on first; the next one begins when `stop_metric` reaches
    /// `curriculum_value`, and the last one is the task itself.
    ///
    /// A sample depends on its index alone; training takes each once in a round, in an order that depends on `seed`, and
    /// validation takes all, `batch_size` at once.
    pub fn stage<I, C>(
        mut self,
        train: impl Dataset<I> + 'static,
        valid: impl Dataset<I> + 'static,
        batcher: C,
        device: &B::Device,
    ) -> Self
    where
        I: Send + Sync + Clone + fmt::Debug + 'static,
        C: Batcher<B, I, Result<Batch<B>, Error>>
            + Batcher<B::InnerBackend, I, Result<Batch<B::InnerBackend>, Error>>
            + Clone
            + 'static,
    {
        let settings = &self.settings.train;
        let sets = (train, valid);
        let stage = loaders(sets, batcher, settings, true, settings.batch_size, device);
        self.stages.push(stage);
        self
    }

    /// What is shown [default: what GradMem measures]. A method without WRITE has the first three.
    pub fn measures(mut self, measures: &[Measure]) -> Self {
        self.measures = measures.to_vec();
        self
    }

    /// Trains `method` in `folder`: begins there, or goes on from its last checkpoint. Returns the method with its best
    /// weights, or with the last ones if there was no evaluation; of several processes the first one has them.
    ///
    /// # Errors
    ///
    /// Settings, folder and the first batches are checked before anything is written. If the training itself fails, its
    /// last checkpoint stays.
    pub fn run<M>(
        self,
        method: M,
        folder: impl AsRef<Path>,
        options: TrainOptions,
    ) -> Result<(M::InnerModule, Outcome), Error>
    where
        M: Method<B> + AutodiffModule<B> + 'static,
        M::InnerModule: Method<B::InnerBackend>,
    {
        let path = folder.as_ref();
        let world = &*options.world.clone();
        let checked = check(&self.settings.train, &self.measures)
            .and_then(|()| set_precision(&self.settings.train, &method))
            .and_then(|()| first_batches(&self.stages));
        let (data, contexts) = all_or_none(world, checked)?;
        same(world, "settings", &self.settings.to_toml()?)?;
        same(world, "samples", &data)?;
        let mut settings = self.settings;
        let begun = match world.rank() {
            0 => begin(&mut settings, &method, path, contexts, world.size(), &data).map(Some),
            _ => Ok(None),
        };
        let folder = all_or_none(world, begun)?;
        let settled = from_the_first(world, || {
            Ok(vec![(OWN.into(), settings.to_toml()?.into_bytes())])
        })?;
        if let Some((_, bytes)) = settled.first() {
            settings = OwnSettings::parse(&String::from_utf8_lossy(bytes), path)?;
        }
        // The parameters are shared, not copied.
        let shape = method.valid();
        let outcome = launch(
            method,
            self.stages,
            &settings.train,
            &self.measures,
            folder,
            AdamW::plain(&settings.train),
            options,
        )?;
        let best = match world.rank() {
            0 => weights_in(path)
                .and_then(Tensors::open)
                .and_then(|file| file.fill(shape)),
            _ => Ok(shape),
        };
        Ok((all_or_none(world, best)?, outcome))
    }
}

fn check(train: &TrainConfig, measures: &[Measure]) -> Result<(), Error> {
    train.validate().map_err(|e| e.in_section("train"))?;
    let empty = train.curriculum.is_empty();
    let problem =
        "names settings of the command's tasks: give the versions of yours by `Training::stage`";
    require(
        empty,
        "train.curriculum",
        format!("{:?}", train.curriculum),
        problem,
    )?;
    let stops = measures.contains(&train.stop_metric);
    let problem = "is none of the training's measures";
    require(stops, "train.stop_metric", train.stop_metric.key(), problem)
}

/// Sets the process's precision. Whether a device has TF32 is not known of every backend: CUDA's alone are trusted with it.
fn set_precision<B: AutodiffBackend, M: Method<B>>(
    train: &TrainConfig,
    method: &M,
) -> Result<(), Error> {
    let device = method.devices().into_iter().next().unwrap_or_default();
    let set = train.set_precision(|precision| match precision {
        Precision::Bf16 => B::supports_dtype(&device, DType::BF16),
        Precision::Tf32 => B::name(&device).contains("cuda"),
        _ => true,
    });
    set.map_err(|e| e.in_section("train"))
}

/// A hash of the first batches of each version of the task, a line for each, and the longest context in them.
fn first_batches<B: AutodiffBackend>(stages: &[Loaders<B>]) -> Result<(String, usize), Error> {
    if stages.is_empty() {
        return Err(Error::Input(
            "a training needs samples: give them by `Training::stage`".into(),
        ));
    }
    let mut lines = Vec::new();
    let mut longest = 0;
    for (index, (train, valid)) in stages.iter().enumerate() {
        let missing =
            |what: &str| Error::Input(format!("version {index} of the task has no {what} samples"));
        let mut print = Sha256::new();
        let first = train.iter().next().ok_or_else(|| missing("training"))??;
        longest = longest.max(add(&mut print, &first));
        let first = valid.iter().next().ok_or_else(|| missing("validation"))??;
        longest = longest.max(add(&mut print, &first));
        lines.push(hex(&print.finalize()));
    }
    Ok((lines.join("\n"), longest))
}

/// Hashes a batch's tokens and labels, and returns the length of its longest context.
fn add<B: Backend>(print: &mut Sha256, batch: &Batch<B>) -> usize {
    let mut row = |numbers: &mut dyn Iterator<Item = i64>| {
        let bytes: Vec<u8> = numbers.flat_map(i64::to_le_bytes).collect();
        print.update((bytes.len() as u64).to_le_bytes());
        print.update(bytes);
    };
    for tokens in [batch.episode.contexts(), batch.episode.queries()] {
        for tokens in tokens.rows() {
            row(&mut tokens.iter().map(|token| i64::from(*token)));
        }
    }
    for labels in batch.episode.labels().rows() {
        row(&mut labels.iter().copied());
    }
    batch.episode.contexts().width()
}

/// Settles what is left open, and makes the folder or opens that of a training to go on with.
fn begin<B: AutodiffBackend, M: Method<B>>(
    settings: &mut OwnSettings,
    method: &M,
    folder: &Path,
    contexts: usize,
    processes: usize,
    data: &str,
) -> Result<RunFolder, Error> {
    let begun = OwnSettings::open(folder)?;
    let earlier = begun.as_ref().map(|begun| &begun.train);
    let resumes = has_checkpoint(folder, settings.train.eval_every)?;
    settle(
        &mut settings.train,
        method,
        earlier,
        resumes,
        contexts,
        processes,
    )?;
    RunFolder::for_own(folder, settings, data)
}
