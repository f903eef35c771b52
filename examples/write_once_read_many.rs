//! One WRITE, many READs: a context goes into memory vectors once, and a batch of queries is answered
//! from them.
//!
//! `cargo run --release --example write_once_read_many [RUN]` uses a trained run
//! (`gradmem train kv-quick` makes `runs/kv-quick`).

use burn::tensor::{Int, Tensor, TensorData};
use gradmem::Error;
use gradmem::data::KvConfig;
use gradmem::train::Trained;

type B = burn_flex::Flex;

fn main() -> Result<(), Error> {
    let device = Default::default();
    let run = std::env::args().nth(1).unwrap_or("runs/kv-quick".into());
    let gradmem = Trained::<B>::open(run, &device)?.into_gradmem()?;
    let tokenizer = KvConfig::default().tokenizer()?;
    let ids = |text: &str| -> Result<Vec<i64>, Error> {
        Ok(tokenizer.encode(text)?.into_iter().map(i64::from).collect())
    };

    let context = ids("!a:7!!b:2!!c:9!!d:4!|")?;
    let shape = [1, context.len()];
    let context: Tensor<B, 2, Int> = Tensor::from_data(TensorData::new(context, shape), &device);
    let memory = gradmem.write(context)?;
    println!(
        "a context of {} tokens is now {:?} numbers",
        shape[1],
        memory.vectors.dims()
    );

    // Four queries of one memory, in one batch.
    let queries = [ids("?!a:")?, ids("?!b:")?, ids("?!c:")?, ids("?!d:")?].concat();
    let queries = Tensor::from_data(TensorData::new(queries, [4, 4]), &device);
    let logits = gradmem.read(&memory, queries)?; // [4, 5, vocab]; the last row follows the query
    let answers = logits.narrow(1, 4, 1).argmax(2).to_data();
    let answers: Vec<u32> = answers.iter::<i64>().map(|id| id as u32).collect();
    println!("a b c d hold {}", tokenizer.decode(&answers)?);
    Ok(())
}
