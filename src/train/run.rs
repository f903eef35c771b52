//! A run of the command: from its settings to the result.

use std::collections::HashSet;
use std::path::Path;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module};
use gradmem_kernels::KernelBackend;
use serde::Serialize;

use super::NOTICE;
use super::base::Base;
use super::config::RunConfig;
use super::evaluation::batch_size;
use super::folder::{CONFIG, RunFolder, TOKENIZER, has_checkpoint};
use super::launch::{launch, loaders, settle, with_files};
use super::metrics::Measure;
use super::optimizer::AdamW;
use super::options::TrainOptions;
use super::overrides::differences;
use super::strategy::Outcome;
use super::trained::{fingerprint, frozen, open_method};
use super::tune;
use super::world::{all_or_none, from_the_first, same};
use crate::data::{DataConfig, ExampleBatcher, Task};
use crate::error::Error;
use crate::memory::{GradMem, GradMemConfig, MemoryKind, MetaGradient, RequireGrad};
use crate::method::{AnyMethod, MethodConfig, MethodName};
use crate::model::{AnyLm, weights};
use crate::support::memory::mib;

/// Trains in `folder`: begins a run, or resumes the one that is there. Of several processes the first one alone reads and
/// writes the folder; all need the data.
///
/// # Errors
///
/// Errors in the settings, the folder or the initial weights are found before anything is written. If the
/// training itself fails, its last checkpoint stays. All processes have the error of one.
pub fn train<B: KernelBackend>(
    config: &RunConfig,
    folder: impl AsRef<Path>,
    options: TrainOptions,
    device: &B::Device,
) -> Result<Outcome, Error> {
    let world = &*options.world;
    let settings = config
        .validate()
        .and_then(|()| {
            let set = config.train.set_precision(|it| B::computes_in(device, it));
            set.map_err(|e| e.in_section("train"))
        })
        .and_then(|()| config.to_toml());
    let settings = all_or_none(world, settings)?;
    let version = concat!("gradmem ", env!("CARGO_PKG_VERSION"));
    same(world, "settings", &format!("{version}\n{settings}"))?;

    let is_first = world.rank() == 0;
    let begun = is_first.then(|| begin::<B>(config, folder.as_ref(), world.size(), device));
    let begun = all_or_none(world, begun.transpose())?;
    let files = from_the_first(world, || match &begun {
        Some(((config, tasks, _), _)) => files(config, tasks),
        None => Ok(Vec::new()),
    })?;
    let (begun, folder) = match begun {
        Some((begun, folder)) => (Ok(begun), Some(folder)),
        None => (with_files(files, |folder| join::<B>(folder, device)), None),
    };
    let (config, tasks, method) = all_or_none(world, begun)?;
    let settings = &config.train;
    same(world, "samples", &prints(&tasks))?;
    let batcher = ExampleBatcher::new(tasks[0].tokenizer.clone());
    let batcher = match settings.micro_batch {
        Some(_) => batcher.by_length(),
        None => batcher,
    };
    let stages = tasks.into_iter().map(|task| {
        let valid_batch = batch_size(&method, &task);
        let sets = (task.train, task.valid);
        loaders(
            sets,
            batcher.clone(),
            settings,
            task.shuffle,
            valid_batch,
            device,
        )
    });
    let stages = stages.collect();
    let measures = Measure::of(config.method);
    let adamw = AdamW::new(settings);
    launch(method, stages, settings, measures, folder, adamw, options)
}

/// The settings of a run, the versions of its task, and its method.
type Begun<B> = (RunConfig, Vec<Task>, AnyMethod<Autodiff<B>>);

/// Begins a run in `folder`, or opens the one that is there, with the method's initial weights.
fn begin<B: KernelBackend>(
    config: &RunConfig,
    folder: &Path,
    processes: usize,
    device: &B::Device,
) -> Result<(Begun<B>, RunFolder), Error> {
    let resumes = has_checkpoint(folder, config.train.eval_every)?;
    let mut config = config.clone();
    let begun = match folder.join(CONFIG).exists() {
        true => Some(RunConfig::open(folder.join(CONFIG))?),
        false => None,
    };
    let begun = begun.as_ref();
    settle_base(&mut config, begun.filter(|_| resumes), folder)?;
    let base = config.base.clone().filter(|_| !resumes);
    let tasks = tasks(&config, folder, base.as_ref())?;
    let mut method = match &config.base {
        Some(base) if resumes && config.keeps_model_elsewhere() => {
            let model = frozen(base, folder, device)?;
            config.method_config().blank_on(model, device)?
        }
        Some(base) if !resumes => {
            let mut base = base.clone();
            let loaded = open_method::<Autodiff<B>>(&base.folder, device)?;
            config.model = loaded.model().config();
            let method = begun_from(&config, loaded, &base.folder, device)?;
            let keeps_elsewhere = config.keeps_model_elsewhere();
            base.fingerprint = keeps_elsewhere.then(|| fingerprint(method.model()));
            config.base = Some(base);
            method
        }
        _ => initialized(&config, device)?,
    };

    if config.find_write_lr {
        (config, method) = with_step_size(config, method, &tasks, begun, device)?;
    }
    let context = tasks.iter().map(|task| task.lengths.context).max();
    let context = context.unwrap_or(0);
    let earlier = begun.map(|begun| &begun.train);
    settle(
        &mut config.train,
        &method,
        earlier,
        resumes,
        context,
        processes,
    )?;
    let tokenizer = &tasks[0].tokenizer;
    let folder = RunFolder::for_training(folder, &config, tokenizer, &prints(&tasks))?;
    if !resumes {
        log_strategy(&config, &method, [config.train.contexts_at_once(), context]);
    }
    Ok(((config, tasks, method), folder))
}

/// What the other processes need of a run that the first one has begun.
fn files(config: &RunConfig, tasks: &[Task]) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let tokenizer = tasks[0].tokenizer.to_json()?;
    let files = [(CONFIG, config.to_toml()?), (TOKENIZER, tokenizer)];
    Ok(files
        .map(|(name, text)| (name.into(), text.into_bytes()))
        .into())
}

/// The run that the first process has begun, from a folder with these files; weights come with its checkpoint.
fn join<B: KernelBackend>(folder: &Path, device: &B::Device) -> Result<Begun<B>, Error> {
    let config = RunConfig::open(folder.join(CONFIG))?;
    let tasks = tasks(&config, folder, None)?;
    let method = config.method_config().blank(&config.model, device)?;
    Ok((config, tasks, method))
}

/// The hashes of the samples, a line for each version of the task.
fn prints(tasks: &[Task]) -> String {
    let prints = tasks.iter().filter_map(|task| task.fingerprint.clone());
    prints.collect::<Vec<_>>().join("\n")
}

/// Where the model of a run comes from, by absolute path. A run that goes on is what it `begun` as: its own weights and
/// settings count, and where they came from stays on record: another folder is no place to go on from.
fn settle_base(
    config: &mut RunConfig,
    begun: Option<&RunConfig>,
    folder: &Path,
) -> Result<(), Error> {
    let keeps_elsewhere = config.keeps_model_elsewhere();
    let Some(base) = &mut config.base else {
        return match begun.and_then(|begun| begun.base.as_ref()) {
            None => Ok(()),
            Some(base) => {
                let from = base.folder.display();
                Err(Error::file(
                    folder,
                    format!("began from {from}: add --from {from}"),
                ))
            }
        };
    };
    if let Ok(absolute) = base.folder.canonicalize() {
        if folder.canonicalize().is_ok_and(|own| own == absolute) {
            let problem = "is the run's own folder: a run cannot begin from itself. Name another one with --run";
            return Err(Error::file(&base.folder, problem));
        }
        if absolute.to_str().is_none() {
            let problem = "is not UTF-8, as the settings of a run (model.from) are: give the folders above it other names";
            return Err(Error::file(absolute, problem));
        }
        base.folder = absolute;
    }
    let Some(begun) = begun else {
        return base.check();
    };
    match base.folder.is_dir() {
        // Whether the head is tied was settled by the folder's weights.
        true => config.model = config.model.clone().with_tied_head(begun.model.tied_head()),
        false => {
            config.model = begun.model.clone();
            config.tokens.tokenizer = begun.tokens.tokenizer.clone();
        }
    }
    if let Some(first) = &begun.base {
        base.fingerprint = first.fingerprint.clone();
        if !keeps_elsewhere {
            let (from, given) = (first.folder.display(), base.folder.display());
            // One that was moved is not there any more.
            if base.folder.is_dir() && first.folder.canonicalize().is_ok_and(|x| x != base.folder) {
                let problem = format!(
                    "began from {from}, not from {given}: add --from {from}, or name another folder with --run"
                );
                return Err(Error::file(folder, problem));
            }
            base.folder = first.folder.clone();
        }
    }
    Ok(())
}

/// Opens the versions of the task, all with one tokenizer: that of the run in `folder`, or else that of the
/// model that it begins with, or else that of the last version, the task itself.
fn tasks(config: &RunConfig, folder: &Path, base: Option<&Base>) -> Result<Vec<Task>, Error> {
    let begun = folder.join(CONFIG).exists();
    let kept = match begun {
        true => Some(folder.join(TOKENIZER)),
        false => base.and_then(Base::tokenizer),
    };
    if let (Some(path), false, Some(file)) = (&kept, begun, config.tokens.file()) {
        config.tokens.open(file)?.check(path)?;
    }
    let kept = kept.map(|path| config.data.kept_tokenizer(&config.tokens, path));
    let kept = kept.transpose()?;
    let open = |data: &DataConfig, made| -> Result<Task, Error> {
        let task = data.open(&config.tokens, config.train.seed, made)?;
        config.check_vocab(&task.tokenizer)?;
        config.check_lengths(&task.lengths)?;
        Ok(task)
    };
    let mut stages = config.stages()?;
    let last = stages.pop().unwrap_or_default();
    let last = open(&last, kept)?;
    let tokenizer = last.tokenizer.as_ref();
    let earlier = stages
        .iter()
        .map(|data| open(data, Some(tokenizer.clone())));
    let mut tasks = earlier.collect::<Result<Vec<_>, _>>()?;
    let held_out = match tasks.is_empty() {
        true => HashSet::new(),
        false => last.held_out()?,
    };
    for (task, part) in tasks.iter().zip(&config.train.curriculum) {
        let known = task.trains_on(&held_out)?;
        if known > 0 {
            log::warn!(
                "train.curriculum, {part:?}: {known} of its training samples have a context that the task itself holds out; \
                 data.valid_file may name samples that none trains on"
            );
        }
    }
    tasks.push(last);
    Ok(tasks)
}

/// With α found: that of the run that `begun` before, or by a line search on the task's training contexts if the run begins.
fn with_step_size<B: KernelBackend>(
    mut config: RunConfig,
    method: AnyMethod<Autodiff<B>>,
    tasks: &[Task],
    begun: Option<&RunConfig>,
    device: &B::Device,
) -> Result<(RunConfig, AnyMethod<Autodiff<B>>), Error> {
    let AnyMethod::GradMem(gradmem) = method else {
        return Ok((config, method));
    };
    let found = match begun {
        Some(begun) => begun.memory.write_lr,
        None => {
            let task = &tasks[tasks.len() - 1];
            let found = tune::search(
                &gradmem.valid(),
                task,
                config.train.contexts_at_once(),
                device,
            )?;
            let lower = found.best().filter(|best| best.loss < found.before);
            let Some(best) = lower else {
                let problem =
                    "no step size lowers the WRITE loss of training contexts: give it as a number";
                return Err(Error::config("memory.write_lr", "auto", problem));
            };
            log::info!(target: NOTICE, "{found}");
            best.write_lr
        }
    };
    config.memory.write_lr = found;
    Ok((config, AnyMethod::GradMem(gradmem.with_write_lr(found)?)))
}

/// Logs the outer-gradient strategy of a run that begins.
fn log_strategy<B: KernelBackend>(
    config: &RunConfig,
    method: &AnyMethod<Autodiff<B>>,
    at_once: [usize; 2],
) {
    if let AnyMethod::GradMem(gradmem) = method {
        let graphs = match config.train.meta_gradient {
            MetaGradient::Replay => 1,
            _ => config.memory.steps_in_a_row(at_once[1]),
        };
        log::info!(
            target: NOTICE,
            "outer gradient: {:?}; a WRITE step's graph takes about {:.0} MiB, and there {}",
            config.train.meta_gradient,
            mib(gradmem.graph_bytes(at_once)),
            match graphs {
                1 => "is one".into(),
                graphs => format!("are {graphs}"),
            },
        );
    }
}

/// The method with the initial weights of the seed.
fn initialized<B: KernelBackend>(
    config: &RunConfig,
    device: &B::Device,
) -> Result<AnyMethod<B>, Error> {
    let section = match config.method {
        MethodName::InContext => "model",
        method => method.section(),
    };
    config
        .method_config()
        .init(&config.model, config.train.seed, device)
        .map_err(|e| e.in_section(section))
}

/// The method with the weights that were loaded from a folder: all of them if that is the same method, or else those of
/// its language model.
fn begun_from<B: KernelBackend>(
    config: &RunConfig,
    loaded: AnyMethod<B>,
    from: &Path,
    device: &B::Device,
) -> Result<AnyMethod<B>, Error> {
    let method = config.method_config();
    if loaded.config().name() != method.name() {
        // What another method froze is trained by this one.
        let model = AnyLm::from(loaded).map(&mut RequireGrad(true));
        return method.attach(model, !config.train.seed, device);
    }
    let blank = method.blank(&config.model, device)?;
    let alike = match (&loaded, &method) {
        (AnyMethod::GradMem(gradmem), MethodConfig::GradMem(ours)) => {
            check_memory(gradmem.config(), ours).and_then(|()| check_adapters(gradmem, &blank))
        }
        (AnyMethod::Rmt(rmt), MethodConfig::Rmt(ours)) => {
            check_alike("rmt", rmt.config(), ours, |key, _| {
                matches!(key, "mem_proj" | "mem_residual")
            })
        }
        (AnyMethod::Armt(armt), MethodConfig::Armt(ours)) => {
            check_alike("armt", armt.config(), ours, |key, _| {
                !matches!(key, "memory_tokens" | "memory_std" | "segment_size")
            })
        }
        _ => Ok(()),
    };
    alike.map_err(|problem| Error::file(from, problem))?;
    let loaded = match (loaded, &method) {
        (AnyMethod::GradMem(gradmem), MethodConfig::GradMem(ours)) => {
            let (stored, tokens) = (gradmem.config().memory_tokens, ours.memory_tokens);
            if tokens < stored && ours.kind != MemoryKind::Lora {
                log::info!(
                    target: NOTICE,
                    "the first {tokens} of the {stored} memory vectors of {} are taken",
                    from.display()
                );
            }
            let gradmem = gradmem.with_first_tokens(tokens).with_inner(ours);
            AnyMethod::GradMem(gradmem.with_write_lora(ours, config.train.seed)?)
        }
        (loaded, _) => loaded,
    };
    weights::transfer(&loaded, blank)
        .map_err(|e| Error::file(from, format!("has other parameters than this run: {e}")))
}

/// Fails where the adapters in WRITE are of other matrices, of the same shapes perhaps, than those of a run that begins with them.
fn check_adapters<B: KernelBackend>(
    theirs: &GradMem<B, AnyLm<B>>,
    ours: &AnyMethod<B>,
) -> Result<(), String> {
    let AnyMethod::GradMem(ours) = ours else {
        return Ok(());
    };
    let paths = |of: &GradMem<B, AnyLm<B>>| of.write_lora.as_ref().map(|x| x.targets().join(", "));
    match (paths(theirs), paths(ours)) {
        (Some(theirs), Some(own)) if theirs != own => Err(format!(
            "has adapters (memory.write_lora_targets) of {theirs}, this run of {own}"
        )),
        _ => Ok(()),
    }
}

/// Fails where the memory of a run that begins with these weights is computed otherwise, though its parameters may have the same shapes.
fn check_memory(theirs: &GradMemConfig, ours: &GradMemConfig) -> Result<(), String> {
    check_alike("memory", theirs, ours, |key, own| match key {
        "kind" | "layers" | "lora_place" | "lora_targets" | "mem_proj" => true,
        "lora_alpha" => ours.kind == MemoryKind::Lora,
        "write_lora_alpha" => theirs.write_lora_rank > 0 && ours.write_lora_rank > 0,
        // What only this run has of these, as of the adapters in WRITE, begins as without it.
        "learned_lr" => !theirs.learned_lr.is_empty(),
        "momentum" => own == "null",
        _ => false,
    })
}

/// Fails if two configurations of a method differ in a setting that `matters`, given its key and the value here.
fn check_alike<C: Serialize>(
    section: &str,
    theirs: &C,
    ours: &C,
    matters: impl Fn(&str, &str) -> bool,
) -> Result<(), String> {
    let json = |config| serde_json::to_value(config).unwrap_or_default();
    let mut found = differences(&json(theirs), &json(ours)).into_iter();
    match found.find(|(key, _, own)| matters(key, own)) {
        Some((key, found, own)) => Err(format!(
            "has {section}.{key} = {found}, unlike this run, where it is {own}: the same weights compute something else"
        )),
        None => Ok(()),
    }
}
