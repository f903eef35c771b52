//! Reads what `nn_train` saved, writes a context and asks for its keys: `cargo run --release --example nn_answer`.

mod model;

use burn::module::Module;
use burn::record::DefaultRecorder;
use gradmem::data::KvConfig;
use gradmem::episode::Tokens;
use gradmem::model::generate::GenerateConfig;

type B = burn_flex::Flex;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Default::default();
    let tokenizer = KvConfig::default().tokenizer()?;
    let lm = model::Gpt::<B>::new(tokenizer.vocab_size(), &device);
    let gradmem = model::memory().init(lm, 1, &device)?;
    let gradmem = gradmem.load_file("nn_gpt", &DefaultRecorder::new(), &device)?;

    let context = tokenizer.encode("!a:7!!b:2!!c:9!!d:4!|")?;
    let memory = gradmem.write(&Tokens::new(&[context], &device)?)?;
    let queries = ["?!a:", "?!b:", "?!c:", "?!d:"].map(|query| tokenizer.encode(query));
    let queries = queries.into_iter().collect::<Result<Vec<_>, _>>()?;
    let answers = gradmem
        .reader(&memory)?
        .generate(&queries, &GenerateConfig::greedy(1))?;
    println!("a b c d hold {}", tokenizer.decode(&answers.concat())?);
    Ok(())
}
