//! `Training`: a method of one's own on data of one's own, stopped and gone on with.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::backend::Autodiff;
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::Dataset;
use burn::tensor::backend::Backend;
use burn::train::Interrupter;
use gradmem::Error;
use gradmem::data::Batch;
use gradmem::episode::{Episode, Tokens};
use gradmem::memory::{GradMem, GradMemConfig};
use gradmem::model::{AnyLm, LlamaConfig, ModelConfig};
use gradmem::train::checkpoint::RunFolder;
use gradmem::train::config::TrainConfig;
use gradmem::train::{Ending, TrainOptions, Training};
use tempfile::TempDir;

type Plain = burn_flex::Flex;
type B = Autodiff<Plain>;

/// Words of three letters, each another function of its index.
#[derive(Clone)]
struct Words {
    letters: [usize; 3],
    len: usize,
    /// The index from which on there is none, whatever the length says.
    end: usize,
    /// Stops the training when this many were asked for.
    stop: Option<(Interrupter, usize)>,
    asked: Arc<AtomicUsize>,
}

impl Words {
    fn new(letters: [usize; 3], len: usize) -> Self {
        Self {
            letters,
            len,
            end: len,
            stop: None,
            asked: Arc::default(),
        }
    }
}

impl Dataset<Vec<u32>> for Words {
    fn get(&self, index: usize) -> Option<Vec<u32>> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        if let Some((interrupter, after)) = &self.stop
            && asked == *after
        {
            interrupter.stop(Some("enough"));
        }
        let word = self.letters.map(|n| (index * n % 7) as u32);
        (index < self.end).then(|| word.to_vec())
    }

    fn len(&self) -> usize {
        self.len
    }
}

#[derive(Clone)]
struct Repeat;

impl<B: Backend> Batcher<B, Vec<u32>, Result<Batch<B>, Error>> for Repeat {
    fn batch(&self, words: Vec<Vec<u32>>, device: &B::Device) -> Result<Batch<B>, Error> {
        let answers: Vec<_> = words.iter().map(|word| ([7], word)).collect();
        Ok(Episode::from_answers(Tokens::new(&words, device)?, &answers)?.into())
    }
}

fn method() -> GradMem<B, AnyLm<B>> {
    let device = Default::default();
    let lm = ModelConfig::Llama(LlamaConfig::new(8, 16, 1, 2));
    let config = GradMemConfig::new().with_write_lr(0.3);
    let lm = lm.init(1, &device).unwrap();
    config.init(lm, 1, &device).unwrap()
}

fn settings() -> TrainConfig {
    TrainConfig {
        steps: 9,
        batch_size: 4,
        lr: 1e-2,
        eval_every: 4,
        log_every: 2,
        ema_decay: Some(0.9),
        curriculum_value: 0.0,
        ..TrainConfig::default()
    }
}

/// Trains in `folder`, on words of two versions; stops when so many samples were made.
fn train(
    settings: TrainConfig,
    about: &GradMemConfig,
    words: [usize; 3],
    folder: &Path,
    stop_after: Option<usize>,
) -> Result<Ending, Error> {
    let device = Default::default();
    let options = TrainOptions {
        plain: true,
        ..TrainOptions::default()
    };
    let mut train = Words::new(words, 30);
    train.stop = stop_after.map(|after| (options.interrupter.clone(), after));
    let valid = Words::new([2, 3, 6], 5);
    let (method_, outcome) = Training::<B>::new(settings)
        .about(about)?
        .stage(train.clone(), valid.clone(), Repeat, &device)
        .stage(train, valid, Repeat, &device)
        .run(method(), folder, options)?;
    if outcome.ending == Ending::Steps {
        // What is returned has the best weights.
        let file = gradmem::model::weights::Tensors::open(folder.join("best.safetensors"))?;
        let found = gradmem::model::weights::parameters(&method_);
        assert!(
            found
                .iter()
                .all(|(name, data)| file.get(name).unwrap() == *data)
        );
    }
    Ok(outcome.ending)
}

#[test]
fn a_training_that_was_stopped_ends_as_one_that_was_not() {
    let about = GradMemConfig::new();
    let [whole, parts] = [(), ()].map(|()| TempDir::new().unwrap());
    let (whole, parts) = (whole.path().join("run"), parts.path().join("run"));
    let ending = train(settings(), &about, [1, 2, 4], &whole, None).unwrap();
    assert_eq!(ending, Ending::Steps);
    // The first batches of both versions are looked at, and then one after another.
    let ending = train(settings(), &about, [1, 2, 4], &parts, Some(25)).unwrap();
    assert_eq!(ending, Ending::Interrupted("enough".into()));
    assert!(
        std::fs::read(whole.join("last.safetensors")).unwrap()
            != std::fs::read(parts.join("last.safetensors")).unwrap()
    );
    let ending = train(settings(), &about, [1, 2, 4], &parts, None).unwrap();
    assert_eq!(ending, Ending::Steps);
    for file in [
        "best.safetensors",
        "metrics.jsonl",
        "training.toml",
        "data.sha256",
    ] {
        let [a, b] = [&whole, &parts].map(|folder| std::fs::read(folder.join(file)).unwrap());
        assert_eq!(a, b, "{file}");
    }
    let text = std::fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    assert!(text.contains(r#""stage":1"#), "{text}");

    // What goes on must be what began.
    let fails = |settings: TrainConfig, about: &GradMemConfig, words| {
        train(settings, about, words, &whole, None)
            .unwrap_err()
            .to_string()
    };
    let other = TrainConfig {
        lr: 0.5,
        ..settings()
    };
    let error = fails(other, &about, [1, 2, 4]);
    assert!(error.contains("train.lr = 0.01, not 0.5"), "{error}");
    let error = fails(settings(), &about.clone().with_write_steps(3), [1, 2, 4]);
    assert!(error.contains("about.write_steps = 2, not 3"), "{error}");
    let error = fails(settings(), &about, [1, 2, 5]);
    assert!(error.contains("other samples"), "{error}");
    // More steps are no other training.
    let longer = TrainConfig {
        steps: 10,
        ..settings()
    };
    assert_eq!(
        train(longer, &about, [1, 2, 4], &whole, None).unwrap(),
        Ending::Steps
    );

    let error = RunFolder::open(&whole).unwrap_err().to_string();
    assert!(error.contains("another program (training.toml)"), "{error}");
}

#[test]
fn a_training_that_does_not_improve_runs_out_of_patience() {
    let folder = TempDir::new().unwrap();
    let about = GradMemConfig::new();
    let settings = TrainConfig {
        lr: 1e-30,
        eval_every: 3,
        steps: 100,
        patience: Some(2),
        ..settings()
    };
    let run = folder.path().join("run");
    let ending = train(settings.clone(), &about, [1, 2, 4], &run, None);
    assert_eq!(ending.unwrap(), Ending::Patience);
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    // Both versions are scored at step 3, and two evaluations bring nothing.
    let last = log.lines().last().unwrap();
    assert!(
        last.contains(r#""step":9,"#) && last.contains("valid"),
        "{log}"
    );
    // It goes on with more.
    let more = TrainConfig {
        patience: Some(3),
        ..settings
    };
    let ending = train(more, &about, [1, 2, 4], &run, None);
    assert_eq!(ending.unwrap(), Ending::Patience);
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert!(
        log.lines().last().unwrap().contains(r#""step":12,"#),
        "{log}"
    );
}

/// Burn's loaders would end there: with short batches, or none for ever.
#[test]
fn a_data_set_that_ends_before_its_length_is_an_error() {
    let folder = TempDir::new().unwrap();
    let device = Default::default();
    for (name, ends) in [
        ("training", [29, 5]),
        ("training", [27, 5]),
        ("validation", [30, 3]),
    ] {
        let [mut train, mut valid] = [30, 5].map(|len| Words::new([1, 2, 4], len));
        [train.end, valid.end] = ends;
        let run = folder.path().join(format!("{name}{}", ends[0]));
        let options = TrainOptions {
            plain: true,
            ..TrainOptions::default()
        };
        let ended = Training::<B>::new(settings())
            .stage(train, valid, Repeat, &device)
            .run(method(), &run, options);
        let error = ended.err().unwrap().to_string();
        assert!(
            error.contains(&format!("the {name} data set gives no sample")),
            "{error}"
        );
    }
}

#[test]
fn what_cannot_be_trained_is_refused_before_anything_is_written() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("run");
    let about = GradMemConfig::new();
    let fails = |settings| {
        train(settings, &about, [1, 2, 4], &path, None)
            .unwrap_err()
            .to_string()
    };
    let curriculum = vec!["pairs=2".to_string()];
    let error = fails(TrainConfig {
        curriculum,
        ..settings()
    });
    assert!(
        error.contains("train.curriculum") && error.contains("Training::stage"),
        "{error}"
    );
    let error = fails(TrainConfig {
        lr: -1.0,
        ..settings()
    });
    assert!(error.contains("train.lr"), "{error}");
    let none = Training::<B>::new(settings()).run(method(), &path, TrainOptions::default());
    let error = none.unwrap_err().to_string();
    assert!(error.contains("needs samples"), "{error}");
    let device = Default::default();
    let empty = Training::<B>::new(settings())
        .stage(
            Words::new([1, 2, 3], 0),
            Words::new([1, 2, 3], 1),
            Repeat,
            &device,
        )
        .run(method(), &path, TrainOptions::default());
    let error = empty.unwrap_err().to_string();
    assert!(error.contains("no training samples"), "{error}");
    assert!(!path.exists());
}
