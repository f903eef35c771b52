//! GradMem on a pretrained language model: load a Hugging Face folder, attach a memory, write, read.
//!
//! Usage: `cargo run --release --example pretrained [FOLDER]`, a GPT-2, GPT-NeoX (Pythia), Llama or Mamba
//! with its `tokenizer.json`. Without one, a small random GPT-2 is saved and loaded in its place. The
//! memory is not trained yet (`gradmem train` does that): what matters here is the way.

use gradmem::Error;
use gradmem::data::KvConfig;
use gradmem::episode::Tokens;
use gradmem::memory::GradMemConfig;
use gradmem::model::generate::GenerateConfig;
use gradmem::model::pretrained::{self, SpecialTokens};
use gradmem::model::{Gpt2Config, ModelConfig};
use gradmem::tokenizer;

type B = burn_flex::Flex;

fn main() -> Result<(), Error> {
    let device = Default::default();
    let folder = match std::env::args().nth(1) {
        Some(folder) => folder.into(),
        None => random_model()?,
    };
    let loaded = pretrained::load::<B>(&folder, &device)?;
    let Some(tokenizer) = loaded.tokenizer else {
        return Err(Error::Input(format!(
            "{} has no tokenizer.json",
            folder.display()
        )));
    };
    let encode = |text: &str| tokenizer::encode(&tokenizer, text, false);

    let gradmem = GradMemConfig::new()
        .with_memory_tokens(8)
        .with_write_steps(5)
        .with_write_lr(0.4)
        .init(loaded.model, 1, &device)?;

    let context = encode("!a:1!!b:2!!c:3!|")?;
    let memory = gradmem.write(&Tokens::new(&[&context], &device)?)?;
    for (step, loss) in memory.losses.iter().enumerate() {
        println!(
            "WRITE step {step}: {:.4} nats a token",
            loss.to_data().iter::<f32>().sum::<f32>()
        );
    }

    // The memory is read once; both questions share what is kept of it.
    let reader = gradmem.reader(&memory)?;
    let questions = [encode("?!a:")?, encode("?!c:")?];
    let answers = reader.generate(&questions, &GenerateConfig::greedy(4))?;
    println!(
        "kept of {} tokens: {} bytes",
        context.len(),
        reader.cache_bytes()
    );
    println!("answers: {answers:?}");
    Ok(())
}

fn random_model() -> Result<std::path::PathBuf, Error> {
    let folder = std::env::temp_dir().join("gradmem-random-gpt2");
    let config = ModelConfig::Gpt2(Gpt2Config::new(70, 32, 2, 2));
    let model = config.init::<B>(1, &Default::default())?;
    let tokenizer = KvConfig::default().tokenizer()?;
    let special = SpecialTokens {
        pad: tokenizer.pad(),
        ends: vec![tokenizer.end()],
        ..SpecialTokens::default()
    };
    let text = Some(tokenizer.as_tokenizer());
    pretrained::save(&folder, &model, text, &special)?;
    Ok(folder)
}
