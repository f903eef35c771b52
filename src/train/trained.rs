//! Trained runs and checkpoints, opened for use.

use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use gradmem_kernels::KernelBackend;

use super::base::Base;
use super::checkpoint::RunFolder;
use super::config::RunConfig;
use super::folder::{CONFIG, TOKENIZER};
use crate::data::{DataConfig, Task, TextTokenizer};
use crate::error::Error;
use crate::interop::checkpoint;
use crate::memory::{GradMem, kinds};
use crate::method::AnyMethod;
use crate::model::weights::Tensors;
use crate::model::{AnyLm, CausalLm, adapter};
use crate::support::fs::is_file;

/// A trained run, opened with its best weights.
#[derive(Debug)]
#[non_exhaustive]
pub struct Trained<B: Backend> {
    /// The run's settings.
    pub config: RunConfig,
    /// The method and its model, with the best weights.
    pub method: AnyMethod<B>,
    /// The run's tokenizer.
    pub tokenizer: TextTokenizer,
    /// The weights' file as it was when opened: a training in the same folder may replace it.
    pub(super) weights: Tensors,
    path: PathBuf,
    /// Whether the data are others than the run's.
    elsewhere: bool,
    /// The run's own data, if the others are of its training file: they are apart only while that is what it was.
    own_data: Option<DataConfig>,
}

impl<B: KernelBackend> Trained<B> {
    /// Loads the best weights of a run, or the latest weights if there has been no evaluation.
    ///
    /// # Errors
    ///
    /// If the folder is no run, has no weights yet, or they are damaged.
    pub fn open(folder: impl AsRef<Path>, device: &B::Device) -> Result<Self, Error> {
        let folder = RunFolder::open(folder)?;
        let config = folder.config()?;
        let folder = folder.of_run(&config);
        let kept = folder.path().join(TOKENIZER);
        let tokenizer = config.data.kept_tokenizer(&config.tokens, kept)?;
        let weights = folder.best()?;
        if !folder.has_best() {
            log::warn!(
                "{}: has no best weights, so these are its latest",
                folder.path().display()
            );
        }
        if let (Some(step), Some(best)) = (folder.kept_step(), folder.best_step())
            && step != best
        {
            log::warn!(
                "{}: its best weights, which are taken, are those of step {best}",
                folder.path().display()
            );
        }
        let settings = config.method_config();
        let blank = match &config.base {
            Some(base) if config.keeps_model_elsewhere() => {
                settings.blank_on(frozen(base, folder.path(), device)?, device)?
            }
            _ => {
                weights.check_layers(config.model.layers())?;
                settings.blank(&config.model, device)?
            }
        };
        let method = weights.fill_some(blank, |name| folder.keeps(name))?;
        Ok(Self {
            config,
            method,
            tokenizer,
            weights,
            path: folder.path().into(),
            elsewhere: false,
            own_data: None,
        })
    }

    /// The same run on other data of its task: with some settings of `[data]` changed, such as `valid_file=test.txt`.
    ///
    /// # Errors
    ///
    /// The first setting that is unknown, has an invalid value or would be another task; one that holds out what the run was trained on.
    pub fn on_data(mut self, settings: &[String]) -> Result<Self, Error> {
        let settings = settings.iter().map(String::as_str);
        let data = self.config.data_with(settings)?;
        if let (Some((key, own, file)), Some((_, given, other))) =
            (held_out(&self.config.data), held_out(&data))
            && file == other
        {
            if given > own {
                let named = match key {
                    "valid_share" => "valid_path",
                    _ => "valid_file",
                };
                let problem = format!(
                    "the run held out {own} and was trained on the rest: name other samples by data.{named}"
                );
                return Err(Error::config(format!("data.{key}"), given, problem));
            }
            self.own_data
                .get_or_insert_with(|| self.config.data.clone());
        }
        self.config.data = data;
        self.elsewhere = true;
        Ok(self)
    }

    /// The method, if it is GradMem.
    ///
    /// # Errors
    ///
    /// If the run trained another method.
    pub fn into_gradmem(self) -> Result<GradMem<B, AnyLm<B>>, Error> {
        match self.method {
            AnyMethod::GradMem(gradmem) => Ok(gradmem),
            _ => Err(not_gradmem(&self.config)),
        }
    }

    /// The same, borrowed.
    pub(super) fn gradmem(&self) -> Result<&GradMem<B, AnyLm<B>>, Error> {
        match &self.method {
            AnyMethod::GradMem(gradmem) => Ok(gradmem),
            _ => Err(not_gradmem(&self.config)),
        }
    }

    /// The run's task, in the last version of its curriculum.
    ///
    /// # Errors
    ///
    /// If its files are missing or have changed since the run began; after [`Trained::on_data`], if they are missing or too long for the model.
    pub fn task(&self) -> Result<Task, Error> {
        let RunConfig {
            data,
            tokens,
            train,
            ..
        } = &self.config;
        for (key, path) in data.files() {
            if path.is_relative() && !path.exists() {
                let problem = match self.elsewhere && key == "train_file" {
                    true => {
                        "there is no such file from here, and held-out samples are compared with it: name where it is by data.train_file too"
                    }
                    false => {
                        "there is no such file from here; the paths of a run are from the folder in which it began"
                    }
                };
                return Err(Error::config(
                    format!("data.{key}"),
                    path.display(),
                    problem,
                ));
            }
        }
        let open = |data: &DataConfig| data.open(tokens, train.seed, Some(self.tokenizer.clone()));
        let task = open(data)?;
        let own = match &self.own_data {
            Some(own) => open(own)?.fingerprint,
            None if self.elsewhere => None,
            None => task.fingerprint.clone(),
        };
        if let Some(print) = own {
            RunFolder::open(&self.path)?.check_own_data(&print)?;
        }
        if self.elsewhere {
            self.config.check_lengths(&task.lengths)?;
        }
        Ok(task)
    }
}

/// What a task holds out of the end of what it trains on: the setting that says how much, its value, and the file or folder. None where
/// held-out samples are others.
fn held_out(data: &DataConfig) -> Option<(&'static str, f64, PathBuf)> {
    let (key, many) = match data {
        DataConfig::Text(text) => ("valid_share", text.valid_share),
        DataConfig::Jsonl(lines) => ("valid_samples", lines.valid_samples as f64),
        DataConfig::Babi(babi) => ("valid_samples", babi.valid_samples as f64),
        DataConfig::Phonebook(book) => ("valid_samples", book.valid_samples as f64),
        _ => return None,
    };
    match data.files()[..] {
        [(_, file)] => Some((key, many, place(file))),
        _ => None,
    }
}

/// The folder or file that a path leads to.
fn place(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or(path.into())
}

/// The language model of `base`, which a run in `run` did not train and did not keep.
///
/// # Errors
///
/// If the folder is not there any more, or has another model than when the run began.
pub(super) fn frozen<B: KernelBackend>(
    base: &Base,
    run: &Path,
    device: &B::Device,
) -> Result<AnyLm<B>, Error> {
    if !base.folder.is_dir() {
        let problem = format!(
            "has no weights of its language model, which it did not train: they are in {}, which is missing. Put it \
             back, or name where it is now as `from` under [model] in config.toml",
            base.text()
        );
        return Err(Error::file(run, problem));
    }
    let Some(begun) = &base.fingerprint else {
        let problem = "has no `fingerprint` under [model] in config.toml, so its model cannot be told from another";
        return Err(Error::file(run, problem));
    };
    check_chain(base, run)?;
    let model: AnyLm<B> = open_method(&base.folder, device)?.into();
    let found = fingerprint(&model);
    match *begun == found {
        true => Ok(model),
        false => Err(Error::file(
            &base.folder,
            format!(
                "has another model than the one that {} was trained on: its fingerprint is {found}, not {begun}",
                run.display()
            ),
        )),
    }
}

/// Fails if a run's model comes from a run whose model comes from … it.
fn check_chain(base: &Base, run: &Path) -> Result<(), Error> {
    let mut seen = vec![place(run)];
    let mut next = Some(base.clone());
    while let Some(base) = next {
        let folder = place(&base.folder);
        if seen.contains(&folder) {
            let problem =
                "has a model that comes from itself: see `from` under [model] in config.toml";
            return Err(Error::file(run, problem));
        }
        let config = folder.join(CONFIG);
        next = match config.is_file() {
            true => RunConfig::open(config)?.base,
            false => None,
        };
        seen.push(folder);
    }
    Ok(())
}

/// A hash of a model's weights and settings.
pub(super) fn fingerprint<B: KernelBackend>(model: &AnyLm<B>) -> String {
    kinds::fingerprint(model, &model.settings())
}

fn not_gradmem(config: &RunConfig) -> Error {
    let method = config.method.as_str();
    Error::Input(format!("the run trained {method}, not gradmem"))
}

/// Opens the method in a folder: that of a trained run, that of a checkpoint of the reference implementation,
/// or a pretrained language model as the in-context baseline.
///
/// # Errors
///
/// If the folder is none of these, or is damaged.
pub fn open_method<B: KernelBackend>(
    folder: impl AsRef<Path>,
    device: &B::Device,
) -> Result<AnyMethod<B>, Error> {
    let folder = folder.as_ref();
    let (run, checkpoint) = (folder.join(CONFIG), folder.join("config.json"));
    match (is_file(&run)?, is_file(&checkpoint)?) {
        (true, _) => Ok(Trained::open(folder, device)?.method),
        (false, true) => checkpoint::load(folder, device),
        (false, false) if folder.join(adapter::CONFIG).is_file() => Err(Error::file(
            folder,
            "is an adapter of PEFT without its base: put config.json and the weights of the base model beside it",
        )),
        (false, false) => Err(Error::file(
            folder,
            "is not a run folder (it has no config.toml; `gradmem train` makes one) \
             and not a checkpoint (it has no config.json)",
        )),
    }
}
