//! The logits of Hugging Face models, compared with those of another program: for `tests/differential.sh`, in which the
//! real `transformers` is the other one.
//!
//! Usage: `cargo run --release --example logits FOLDER`
//!
//! Each folder in FOLDER holds a model and `case.safetensors` with `input_ids` `[batch, seq]` and the expected `logits`
//! `[batch, seq, vocab_size]`. Prints one line for each: its name and the largest difference relative to the largest
//! logit, or why the model is refused. The model is saved again in `saved`, if there is a folder of that name in it.

use std::path::{Path, PathBuf};

use burn::tensor::{Int, Tensor};
use gradmem::Error;
use gradmem::model::weights::Tensors;
use gradmem::model::{CausalLm, pretrained};

type B = burn_flex::Flex;

fn main() -> Result<(), Error> {
    let folder = std::env::args()
        .nth(1)
        .ok_or_else(|| Error::Input("name a folder".into()))?;
    let entries = std::fs::read_dir(&folder).map_err(|e| Error::Input(format!("{folder}: {e}")))?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    for path in folders {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match compare(&path) {
            Ok(error) => println!("{name} {error:e}"),
            Err(e) => println!("{name} refused: {e}"),
        }
    }
    Ok(())
}

/// The largest difference, relative to the largest logit.
fn compare(folder: &Path) -> Result<f64, Error> {
    let device = Default::default();
    let loaded = pretrained::load::<B>(folder, &device)?;
    let model = loaded.model;
    let saved = folder.join("saved");
    if saved.is_dir() {
        pretrained::save(&saved, &model, None, &loaded.special)?;
    }
    let case = Tensors::open(folder.join("case.safetensors"))?;
    let ids = case.get("input_ids")?;
    let tokens: Tensor<B, 2, Int> = Tensor::from_data(ids, &device);
    let ours = model.logits(model.hidden(model.embed(tokens))).into_data();
    let theirs = case.get("logits")?;
    if ours.shape != theirs.shape {
        let (ours, theirs) = (ours.shape.as_slice(), theirs.shape.as_slice());
        return Err(Error::Input(format!("logits {ours:?}, not {theirs:?}")));
    }
    let pairs = ours.iter::<f64>().zip(theirs.iter::<f64>());
    // NaN is the largest difference.
    let difference = pairs
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |most, x| if x <= most { most } else { x });
    let largest = theirs.iter::<f64>().map(f64::abs).fold(1e-3, f64::max);
    Ok(difference / largest)
}
