//! One WRITE, many READs: a context goes into memory vectors once, and a batch of queries is answered
//! from them.
//!
//! `cargo run --release --example write_once_read_many [RUN]` uses a trained run
//! (`gradmem train kv-quick` makes `runs/kv-quick`).

use gradmem::Error;
use gradmem::data::KvConfig;
use gradmem::episode::Tokens;
use gradmem::train::Trained;

type B = burn_flex::Flex;

fn main() -> Result<(), Error> {
    let device = Default::default();
    let run = std::env::args().nth(1).unwrap_or("runs/kv-quick".into());
    let gradmem = Trained::<B>::open(run, &device)?.into_gradmem()?;
    let tokenizer = KvConfig::default().tokenizer()?;

    let context = tokenizer.encode("!a:7!!b:2!!c:9!!d:4!|")?;
    let memory = gradmem.write(&Tokens::new(&[&context], &device)?)?;
    println!(
        "a context of {} tokens is now {:?} numbers",
        context.len(),
        memory.vectors().dims()
    );

    // Four queries of one memory, in one batch.
    let queries = ["?!a:", "?!b:", "?!c:", "?!d:"].map(|text| tokenizer.encode(text));
    let queries = queries.into_iter().collect::<Result<Vec<_>, _>>()?;
    let logits = gradmem.read(&memory, &Tokens::new(&queries, &device)?)?; // [4, 5, vocab]; the last row follows the query
    let answers = logits.narrow(1, 4, 1).argmax(2).to_data();
    let answers: Vec<u32> = answers.iter::<i64>().map(|id| id as u32).collect();
    println!("a b c d hold {}", tokenizer.decode(&answers)?);
    Ok(())
}
