//! Arguments that several subcommands share.

use std::any::TypeId;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use gradmem::Error;
use serde::de::DeserializeOwned;

#[derive(clap::Args, Clone)]
pub struct Backend {
    /// Backend to compute on: flex, ndarray (CPU), wgpu, vulkan, metal, cuda, rocm (GPU). All but flex need a build
    /// with the cargo feature of that name.
    // The id is not `name`: a subcommand may have an argument of that name.
    #[arg(
        long = "backend",
        id = "backend",
        value_name = "NAME",
        default_value = "flex"
    )]
    pub name: String,
    /// Implementation of attention: fused kernels, whose memory grows linearly with the sequence length
    /// [default on all backends but ndarray], or the reference in tensor operations, whose memory grows with
    /// its square.
    #[arg(long, value_name = "HOW")]
    pub attention: Option<Attention>,
    /// Precision of matrix products [default: f32, exact; in training train.precision]: tf32 rounds the factors to ten bits (CUDA),
    /// bf16 to seven, and attention is in bf16 too; sums are in f32.
    #[arg(long, value_name = "HOW")]
    pub precision: Option<Precision>,
    /// Which of the machine's devices, from 0.
    #[arg(skip)]
    pub device: usize,
}

/// The names of the backends.
pub const BACKENDS: [&str; 7] = ["flex", "ndarray", "wgpu", "vulkan", "metal", "cuda", "rocm"];

impl Backend {
    /// Fails on a name that no backend has.
    pub fn check_name(&self) -> Result<(), Error> {
        let name = self.name.as_str();
        match BACKENDS.contains(&name) {
            true => Ok(()),
            false => Err(Error::Input(format!(
                "unknown backend `{name}`: there are {}",
                BACKENDS.join(", ")
            ))),
        }
    }

    /// Fails where something is said of how a model computes, and none does.
    pub fn check_computes_nothing(&self) -> Result<(), Error> {
        self.check_name()?;
        for (option, is_given) in [
            ("--attention", self.attention.is_some()),
            ("--precision", self.precision.is_some()),
        ] {
            if is_given {
                return Err(Error::Input(format!(
                    "{option} is for what computes with a model, and here nothing does: leave it out"
                )));
            }
        }
        Ok(())
    }
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Tf32,
    Bf16,
}

impl From<Precision> for gradmem::kernels::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Tf32 => Self::Tf32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    Reference,
    Fused,
}

#[derive(clap::Args)]
pub struct ModelFolder {
    /// Folder of the trained run or checkpoint whose model writes and reads the memory.
    #[arg(long = "model", value_name = "FOLDER", env = "GRADMEM_MODEL")]
    pub folder: PathBuf,
}

#[derive(clap::Args)]
pub struct OptionalModelFolder {
    /// Folder of the trained run or checkpoint whose model wrote the memory.
    #[arg(long = "model", value_name = "FOLDER", env = "GRADMEM_MODEL")]
    pub folder: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct Sampling {
    /// Maximum length of an answer or continuation, in tokens.
    #[arg(long, default_value_t = 64)]
    pub max_tokens: usize,
    /// Sampling temperature: 0 decodes greedily, 1 samples from the model's distribution.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Sample from this many of the most probable tokens only [default: all].
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Sample from the most probable tokens whose probabilities add up to this (nucleus sampling).
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// Seed of the samples [default: 0].
    #[arg(long)]
    pub seed: Option<u64>,
}

/// The same error, by the name of the option with which a setting was given. `options` has the settings and their options.
pub fn by_options(e: Error, options: &[(&str, &str)]) -> Error {
    match e {
        Error::Config {
            key,
            value,
            problem,
        } => {
            let option = options.iter().find(|(setting, _)| *setting == key);
            Error::Config {
                key: option.map_or(key, |(_, option)| option.to_string()),
                value,
                problem,
            }
        }
        other => other,
    }
}

/// Fails on the first of these options that is 0.
pub fn at_least_one(options: &[(&str, usize)]) -> Result<(), Error> {
    match options.iter().find(|(_, value)| *value == 0) {
        Some((option, _)) => Err(Error::Input(format!("{option} must be at least 1"))),
        None => Ok(()),
    }
}

/// The same command with options that take what begins like a negative number, so that the option itself says what is wrong with
/// it. Paths and what is no option stay as they are.
pub fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let with = |arg: clap::Arg| {
        let takes_value = arg.get_action().takes_values() && !arg.is_positional();
        let is_path = arg.get_value_parser().type_id() == TypeId::of::<PathBuf>();
        match takes_value && !is_path {
            true => arg.allow_negative_numbers(true),
            false => arg,
        }
    };
    command
        .mut_args(with)
        .mut_subcommands(with_negative_numbers)
}

/// The outer-gradient strategies and what they mean; all give the same numbers up to rounding.
pub const META_GRADIENTS: [(&str, &str); 3] = [
    (
        "auto",
        "Unrolled if its graphs fit into half of the free memory, else replay",
    ),
    (
        "unrolled",
        "One graph over all K steps: fastest, memory grows with K",
    ),
    ("replay", "One graph per step: memory does not grow with K"),
];

/// Takes one of these names, and shows what they mean.
pub fn one_of<const N: usize>(names: [(&'static str, &'static str); N]) -> PossibleValuesParser {
    let value = |(name, help)| PossibleValue::new(name).help(help);
    PossibleValuesParser::new(names.map(value))
}

/// Takes one of these names and gives what settings mean by it.
pub fn setting<T, const N: usize>(
    names: [(&'static str, &'static str); N],
) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    one_of(names).try_map(|name| serde_json::from_value::<T>(name.into()))
}

/// Parses a list of numbers and ranges: `0,1,2,5..8` is 0 1 2 5 6 7 8.
pub fn parse_numbers(option: &str, text: &str, largest: u64) -> Result<Vec<u64>, Error> {
    let longest = 10_000;
    let invalid = || {
        Error::Input(format!(
            "{option} `{text}` is not a list of numbers up to {largest} and rising ranges of at most {longest}, \
             such as 0,1,2,5..10"
        ))
    };
    let number = |text: &str| -> Result<u64, Error> {
        match text.trim().parse() {
            Ok(number) if number <= largest => Ok(number),
            _ => Err(invalid()),
        }
    };
    let mut numbers = Vec::new();
    for part in text.split(',') {
        match part.split_once("..") {
            None => numbers.push(number(part)?),
            Some((from, to)) => {
                let (from, to) = (number(from)?, number(to)?);
                if from > to || to - from > longest {
                    return Err(invalid());
                }
                numbers.extend(from..=to);
            }
        }
    }
    Ok(numbers)
}
