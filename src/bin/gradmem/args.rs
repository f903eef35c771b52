//! What can be typed, and the help that teaches it.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Write a context into a few memory vectors by gradient descent; answer from the memory alone.
///
/// GradMem (arXiv 2603.13875) stores a text in the prefix of a language model by a handful of
/// gradient steps on the text's own reconstruction loss, weights frozen. Afterwards the text is
/// thrown away. The model is trained through those steps, so that they store what will be asked.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    Train(Train),
    Eval(Eval),
    Report(Report),
    Write(Write),
    Read(Read),
    Inspect(Inspect),
    Generate(Generate),
    Export(Export),
    Parity(Parity),
    Preset(Preset),
    Bench(Bench),
}

/// Meta-train a model, or go on with a training that was stopped.
///
/// The same command resumes where the run's last checkpoint stands, with the same result as if it
/// had never stopped. On a terminal a dashboard is shown (q and then s stops and saves); elsewhere one line per
/// log interval. Ctrl-C saves and says how to go on.
#[derive(Parser)]
#[command(after_help = "Examples:
  gradmem train kv-quick
  gradmem train kv-quick --run runs/first-order memory.grad_mode=first
  gradmem train kv-quick method=rmt
  gradmem train kv-quick --seeds 1..3
  gradmem preset kv-quick > mine.toml && gradmem train mine.toml train.seed=2")]
pub struct Train {
    /// A preset's name (see `gradmem preset`) or a .toml file.
    pub preset: String,
    /// Values that override the preset's, such as memory.write_steps=5 or train.seed=2.
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Folder of the run: settings, metrics, checkpoints [default: runs/PRESET, or runs/PRESET-METHOD for
    /// another method than the preset's].
    #[arg(long, value_name = "FOLDER")]
    pub run: Option<PathBuf>,
    /// Train one run for each of these seeds, as in 1,2 or 1..3, each in a folder of its own inside the
    /// run's.
    #[arg(long, value_name = "SEEDS")]
    pub seeds: Option<String>,
    /// Begin with the best weights of this run instead of random ones, or with those of a folder with a
    /// config.json: a Hugging Face model or a checkpoint of the reference implementation.
    #[arg(long, value_name = "FOLDER")]
    pub init_from: Option<PathBuf>,
    /// Take at most so many of a step's contexts at once: less memory, the same gradient to rounding
    /// (short for train.micro_batch=N).
    #[arg(long, value_name = "N")]
    pub micro_batch: Option<usize>,
    /// The way to GradMem's outer gradient (short for train.meta_gradient=…).
    #[arg(long, value_enum)]
    pub meta_gradient: Option<MetaGradient>,
    /// Print lines instead of the dashboard.
    #[arg(long)]
    pub plain: bool,
    #[command(flatten)]
    pub backend: Backend,
}

/// Score a trained run on held-out samples, with any numbers of WRITE steps in one pass.
///
/// The results are printed, and kept in the run's eval.json for `gradmem report`.
#[derive(Parser)]
#[command(after_help = "Examples:
  gradmem eval runs/kv-quick
  gradmem eval runs/kv-quick --write-steps 0..30 --adaptive 30
  gradmem eval runs/kv-quick --generate")]
pub struct Eval {
    /// Folder of the run.
    pub run: PathBuf,
    /// Numbers of WRITE steps: a list of numbers and ranges, as in 0,1,2,5..10
    /// [default: what the run was trained with].
    #[arg(long, value_name = "K")]
    pub write_steps: Option<String>,
    /// Let each sample stop writing by itself after at most CAP steps, when its reconstruction loss stops
    /// falling (30 if none is named). What counts as falling is chosen on contexts of the training set.
    #[arg(long, value_name = "CAP", num_args = 0..=1, default_missing_value = "30")]
    pub adaptive: Option<usize>,
    /// Generate the answers greedily, for a real exact match and F1 over all right answers, and tell the
    /// contexts again from memory; a few answers are shown.
    #[arg(long)]
    pub generate: bool,
    /// Number of contexts [default: all held-out ones].
    #[arg(long)]
    pub samples: Option<usize>,
    /// Print one JSON object a line instead of a table.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub backend: Backend,
}

/// Plot training runs: one HTML page with figures and tables, and the tables in Markdown beside it.
///
/// Runs that differ only in train.seed are seeds of one group. Learning curves come from the runs' logs,
/// also of runs that are still training; what depends on the number of WRITE steps in evaluation comes
/// from `gradmem eval`. The page loads nothing and needs no JavaScript; the same runs make the same page.
#[derive(Parser)]
#[command(after_help = "Examples:
  gradmem report runs
  gradmem report runs/kv-quick runs/kv-quick-rmt -o comparison.html
  gradmem report runs -o report.html --figures figures")]
pub struct Report {
    /// Folders of runs, or folders that hold several.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The page to make; the Markdown gets the same name with .md.
    #[arg(long, short, value_name = "FILE", default_value = "report.html")]
    pub output: PathBuf,
    /// Put each figure into this folder too, as SVG and PNG.
    #[arg(long, value_name = "FOLDER")]
    pub figures: Option<PathBuf>,
}

/// Write texts into a memory file: each becomes a few vectors, from which questions are answered later.
///
/// Several texts become several memories of one file, each called as its file is. A line break at the very
/// end of a text is not part of it. The file names its model, its tokenizer and how well WRITE went; the
/// texts themselves are not in it unless --keep-context is given.
#[derive(Parser)]
#[command(after_help = "Examples:
  gradmem write --model runs/kv-quick notes.txt -o notes.mem.safetensors
  gradmem write --model runs/babi-small stories/*.txt -o stories.mem.safetensors --bf16
  sort notes.txt | gradmem write --model runs/mine - -o sorted.mem.safetensors --name sorted")]
pub struct Write {
    /// The texts, UTF-8; - for standard input.
    #[arg(required = true, value_name = "TEXT")]
    pub contexts: Vec<PathBuf>,
    /// The memory file to make.
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
    #[command(flatten)]
    pub model: ModelFolder,
    /// Number of WRITE steps [default: what the model was trained with].
    #[arg(long, value_name = "K")]
    pub write_steps: Option<usize>,
    /// What the memory is called, if there is one text.
    #[arg(long = "name", value_name = "NAME")]
    pub called: Option<String>,
    /// Keep the texts in the file too.
    #[arg(long)]
    pub keep_context: bool,
    /// Keep the vectors as bf16: half the bytes, 8 bits of precision.
    #[arg(long)]
    pub bf16: bool,
    /// Texts that are written at once.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub batch: usize,
    #[command(flatten)]
    pub backend: Backend,
}

/// Ask a memory file; answers are decoded greedily unless a temperature is given.
///
/// One question to one memory prints the answer. A file of questions, several memories or --json print one
/// JSON object a line, with the memory's name, the question and the answer. A memory is read once, however
/// many the questions are.
#[derive(Parser)]
#[command(after_help = "Examples:
  gradmem read notes.mem.safetensors '?!b:' --model runs/kv-quick
  gradmem read stories.mem.safetensors 'Where is Mary?' --model runs/babi-small --memory mary.txt
  gradmem read notes.mem.safetensors --questions questions.txt --model runs/mine > answers.jsonl")]
pub struct Read {
    /// The memory file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The question, as the model's task asks: 'Where is Mary?' of bAbI, '?!b:' of key-value pairs.
    #[arg(required_unless_present = "questions")]
    pub question: Option<String>,
    /// A file of questions, one a line; - for standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "question")]
    pub questions: Option<PathBuf>,
    /// Ask only the memory of this name, or of this index, from 0.
    #[arg(long, value_name = "NAME")]
    pub memory: Option<String>,
    #[command(flatten)]
    pub model: ModelFolder,
    /// Print JSON in any case.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub sampling: Sampling,
    #[command(flatten)]
    pub backend: Backend,
}

/// Say what is in a memory file; with its context, how well it tells it again.
///
/// Without --context no model is needed.
#[derive(Parser)]
#[command(after_help = "Examples:
  gradmem inspect notes.mem.safetensors
  gradmem inspect notes.mem.safetensors --context notes.txt --model runs/kv-quick")]
pub struct Inspect {
    /// The memory file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The texts that its memories are said to hold, in the file's order.
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    pub context: Vec<PathBuf>,
    #[command(flatten)]
    pub model: OptionalModelFolder,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub backend: Backend,
}

/// Whose memories they are.
#[derive(clap::Args)]
pub struct ModelFolder {
    /// Folder of the trained run or checkpoint whose model writes and reads the memory.
    #[arg(long = "model", value_name = "FOLDER", env = "GRADMEM_MODEL")]
    pub folder: PathBuf,
}

/// The same where it may be left out.
#[derive(clap::Args)]
pub struct OptionalModelFolder {
    /// Folder of the trained run or checkpoint whose model wrote the memory.
    #[arg(long = "model", value_name = "FOLDER", env = "GRADMEM_MODEL")]
    pub folder: Option<PathBuf>,
}

/// Go on with a text, by the language model alone.
#[derive(Parser)]
#[command(after_help = "Examples:
  gradmem generate --model models/gpt2 'Once upon a time'
  gradmem generate --model models/gpt2 'Once upon a time' --temperature 0.8 --top-p 0.95 --seed 3")]
pub struct Generate {
    /// The beginning.
    pub prompt: String,
    /// Folder of a Hugging Face model (config.json, model.safetensors, tokenizer.json), a checkpoint of
    /// the reference implementation or a trained run.
    #[arg(long, value_name = "FOLDER")]
    pub model: PathBuf,
    #[command(flatten)]
    pub sampling: Sampling,
    #[command(flatten)]
    pub backend: Backend,
}

/// How a continuation is chosen.
#[derive(clap::Args)]
pub struct Sampling {
    /// Longest continuation, in tokens.
    #[arg(long, default_value_t = 64)]
    pub max_tokens: usize,
    /// 0 takes the likeliest token each time, 1 samples as the model says.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Sample among the likeliest so many tokens only.
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Sample among the likeliest tokens that together have this probability.
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// Fixes what is sampled.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Write a trained run's best weights as a checkpoint of the reference implementation.
///
/// The folder gets config.json and model.safetensors (and the run's tokenizer.json), as the reference's
/// PyTorch code reads them; of an in-context run, a Hugging Face model.
#[derive(Parser)]
pub struct Export {
    /// Folder of the run.
    pub run: PathBuf,
    /// The folder to make.
    #[arg(long, short, value_name = "FOLDER")]
    pub output: PathBuf,
    #[command(flatten)]
    pub backend: Backend,
}

/// Reproduce another implementation's numbers: losses, logits, memory and every gradient.
///
/// The folder holds config.json, model.safetensors, batch.safetensors and expected.safetensors. Prints
/// max |a - b| / max(0.001, max |b|) for each tensor; the exit status is 0 only if all are within the
/// tolerance.
#[derive(Parser)]
pub struct Parity {
    /// The folder.
    pub folder: PathBuf,
    /// Largest relative error allowed.
    #[arg(long, default_value_t = 1e-4)]
    pub tolerance: f64,
    /// The way to the outer gradient.
    #[arg(long, value_enum, default_value_t = MetaGradient::Auto)]
    pub meta_gradient: MetaGradient,
    #[command(flatten)]
    pub backend: Backend,
}

/// A way to the outer gradient; the numbers are the same to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum MetaGradient {
    /// Unrolled if that fits into half of the free memory, else replay.
    Auto,
    /// One graph over all K steps: fastest.
    Unrolled,
    /// One step's graph at a time: memory does not grow with K.
    Replay,
}

impl From<MetaGradient> for gradmem::memory::MetaGradient {
    fn from(how: MetaGradient) -> Self {
        match how {
            MetaGradient::Auto => Self::Auto,
            MetaGradient::Unrolled => Self::Unrolled,
            MetaGradient::Replay => Self::Replay,
        }
    }
}

/// How the outer gradient passes through WRITE, as `memory.grad_mode` of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum GradMode {
    /// Not at all: M0 is not trained.
    None,
    /// With the inner gradient as a constant.
    First,
    /// In full.
    Second,
}

impl From<GradMode> for gradmem::memory::GradMode {
    fn from(mode: GradMode) -> Self {
        match mode {
            GradMode::None => Self::None,
            GradMode::First => Self::First,
            GradMode::Second => Self::Second,
        }
    }
}

/// List the presets, or print one to copy and edit.
#[derive(Parser)]
pub struct Preset {
    /// The preset to print.
    pub name: Option<String>,
}

/// Time a training step of random contexts, or attention alone.
///
/// The step is K WRITE steps, READ, the outer gradient through both and AdamW, as in
/// benches/torch_baseline.py. Times are medians. One process measures one size, so that its memory is
/// that of this size.
#[derive(Parser)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  gradmem bench --batch 64 --context 64 --steps 2
  gradmem bench attention --seq 1024 --backend cuda --attention reference
  gradmem bench read --model runs/kv-quick --context 512 --queries 1000"
)]
pub struct Bench {
    #[command(subcommand)]
    pub part: Option<BenchPart>,
    #[command(flatten)]
    pub step: StepBench,
}

#[derive(clap::Subcommand)]
pub enum BenchPart {
    Attention(AttentionBench),
    Read(ReadBench),
}

#[derive(clap::Args)]
pub struct StepBench {
    /// Contexts a step.
    #[arg(long, default_value_t = 64)]
    pub batch: usize,
    /// Tokens of a context.
    #[arg(long, default_value_t = 64)]
    pub context: usize,
    /// Tokens of a query with its target, half each.
    #[arg(long, default_value_t = 16)]
    pub query: usize,
    #[arg(long, default_value_t = 4)]
    pub layers: usize,
    #[arg(long, default_value_t = 4)]
    pub heads: usize,
    /// The model's width.
    #[arg(long, default_value_t = 128)]
    pub dim: usize,
    /// Memory vectors.
    #[arg(long, default_value_t = 8)]
    pub memory: usize,
    /// WRITE steps.
    #[arg(long, default_value_t = 2)]
    pub steps: usize,
    /// Queries to each context.
    #[arg(long, default_value_t = 1)]
    pub queries: usize,
    /// How the outer gradient passes through the WRITE steps.
    #[arg(long, value_enum, default_value_t = GradMode::Second)]
    pub grad_mode: GradMode,
    /// The way to the outer gradient.
    #[arg(long, value_enum, default_value_t = MetaGradient::Auto)]
    pub meta_gradient: MetaGradient,
    /// Take at most so many contexts at once, and sum the gradients.
    #[arg(long, value_name = "N")]
    pub micro_batch: Option<usize>,
    /// Time WRITE and READ alone, as at test time: no outer gradient, no optimizer.
    #[arg(long)]
    pub test_time: bool,
    #[arg(long, default_value_t = 70)]
    pub vocab: usize,
    /// Steps that are timed, after --warmup that are not.
    #[arg(long, default_value_t = 5)]
    pub iters: usize,
    #[arg(long, default_value_t = 2)]
    pub warmup: usize,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    #[arg(long, default_value_t = 0.04)]
    pub write_lr: f64,
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub backend: Backend,
}

/// Time many questions to one context: from its memory, with the context in every prompt, and from the
/// key-value cache of a prompt that is read once.
///
/// The model is a run's; if it has fewer positions than the longest prompt, it is given more, which
/// changes its answers and not its speed. Answers are decoded greedily and do not end early. Times are
/// medians, taken in turns.
#[derive(clap::Args)]
pub struct ReadBench {
    #[command(flatten)]
    pub model: ModelFolder,
    /// Tokens of the context.
    #[arg(long, default_value_t = 512)]
    pub context: usize,
    /// Questions.
    #[arg(long, default_value_t = 1000)]
    pub queries: usize,
    /// Tokens of a question.
    #[arg(long, default_value_t = 4)]
    pub query: usize,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 2)]
    pub answer: usize,
    /// Questions at once.
    #[arg(long, default_value_t = 50)]
    pub batch: usize,
    /// Rounds that are timed, after one that is not.
    #[arg(long, default_value_t = 3)]
    pub iters: usize,
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub backend: Backend,
}

/// Time attention's forward, backward and double backward.
#[derive(clap::Args, Clone)]
pub struct AttentionBench {
    /// Tokens.
    #[arg(long, default_value_t = 1024)]
    pub seq: usize,
    #[arg(long, default_value_t = 16)]
    pub batch: usize,
    #[arg(long, default_value_t = 12)]
    pub heads: usize,
    /// Key/value heads [default: as many as heads].
    #[arg(long)]
    pub kv_heads: Option<usize>,
    /// The width of a head.
    #[arg(long, default_value_t = 64)]
    pub dim: usize,
    #[arg(long, value_enum, default_value_t = Float::F32)]
    pub dtype: Float,
    /// Rounds that are timed, after --warmup that are not.
    #[arg(long, default_value_t = 10)]
    pub iters: usize,
    #[arg(long, default_value_t = 3)]
    pub warmup: usize,
    /// Time a square matrix product too, to compare with what the device can do.
    #[arg(long)]
    pub matmul: bool,
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub backend: Backend,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub enum Float {
    F32,
    F16,
    Bf16,
}

#[derive(clap::Args, Clone)]
pub struct Backend {
    /// Where to compute: flex, ndarray (CPU), wgpu, vulkan, metal, cuda (GPU). Others than flex need a
    /// build with the cargo feature of that name.
    #[arg(long = "backend", value_name = "NAME", default_value = "flex")]
    pub name: String,
    /// How attention is computed: by fused kernels, which take memory in proportion to the sequence
    /// [default on GPUs], or by the reference, in plain tensor operations, in proportion to its square.
    #[arg(long, value_name = "HOW")]
    pub attention: Option<Attention>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    Reference,
    Fused,
}
