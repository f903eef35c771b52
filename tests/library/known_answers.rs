//! Published answers of published models and tokenizers, where the environment names a folder that has them:
//! GRADMEM_DATA, with models/stories260K, tokenizers/gpt-2 and tokenizers/gpt-neox, each as Hugging Face has it.

use std::path::PathBuf;

use gradmem::model::generate::{GenerateConfig, continue_prompts};
use gradmem::model::pretrained;
use gradmem::tokenizer::{self, Tokenizer};
use sha2::{Digest, Sha256};

type B = burn_flex::Flex;

fn data(path: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("GRADMEM_DATA").map(|folder| PathBuf::from(folder).join(path));
    let found = folder.filter(|folder| folder.exists());
    if found.is_none() {
        eprintln!("skipped: GRADMEM_DATA names no folder with {path}");
    }
    found
}

fn tokenizer(folder: &str, vocab_size: usize) -> Option<Tokenizer> {
    let folder = data(folder)?;
    Some(
        tokenizer::open_folder(folder, vocab_size)
            .unwrap()
            .expect("a tokenizer.json"),
    )
}

/// The text that llama2.c's own test expects of `run stories260K.bin -t 0 -n 200`: 464 characters.
#[test]
fn stories260k_tells_the_story_that_llama2_c_expects() {
    let Some(folder) = data("models/stories260K") else {
        return;
    };
    let device = Default::default();
    let model = pretrained::load::<B>(&folder, &device).unwrap().model;
    let tokenizer = tokenizer("models/stories260K", 512).unwrap();
    // From the token that begins a text; 200 positions, so 199 new tokens and the first.
    let prompt = tokenizer::encode(&tokenizer, "", true).unwrap();
    assert_eq!(prompt, [1]);
    let greedy = GenerateConfig::greedy(200);
    let told = continue_prompts(&model, &[prompt], &greedy).unwrap();
    let text = tokenizer::decode(&tokenizer, &told[0]).unwrap();
    assert!(
        text.starts_with("Once upon a time, there was a little girl"),
        "{text}"
    );
    let text = &text.as_bytes()[..464.min(text.len())];
    let hash: String = Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let expected = "beeb5cb46785efee81a8545300b31e396b595e5ce6f3b77db201545501981d14";
    assert_eq!(hash, expected, "{}", String::from_utf8_lossy(text));
}

/// Ids as `tokenizers` 0.22 for Python has them.
#[test]
fn texts_become_the_ids_of_gpt2_and_of_gpt_neox() {
    const TEXTS: [&str; 3] = [
        "Hello world",
        "  def f(x):\n\treturn x**2  # naïve café 東京 🙂\n\n",
        "It's 1,234.50 o'clock — don't!",
    ];
    const GPT2: [&[u32]; 3] = [
        &[15496, 995],
        &[
            220, 825, 277, 7, 87, 2599, 198, 197, 7783, 2124, 1174, 17, 220, 1303, 41492, 40304,
            10545, 251, 109, 12859, 105, 32485, 628,
        ],
        &[
            1026, 338, 352, 11, 24409, 13, 1120, 267, 6, 15750, 851, 836, 470, 0,
        ],
    ];
    const NEOX: [&[u32]; 3] = [
        &[12092, 1533],
        &[
            50276, 1545, 269, 9, 89, 2262, 187, 186, 2309, 1269, 424, 19, 50276, 4, 36060, 36241,
            209, 12676, 111, 5494, 107, 42908, 535,
        ],
        &[
            1147, 434, 337, 13, 20210, 15, 1235, 258, 8, 13273, 1905, 1053, 626, 2,
        ],
    ];
    for (name, vocab_size, ids) in [("gpt-2", 50257, GPT2), ("gpt-neox", 50432, NEOX)] {
        let Some(tokenizer) = tokenizer(&format!("tokenizers/{name}"), vocab_size) else {
            continue;
        };
        for (text, ids) in TEXTS.iter().zip(ids) {
            assert_eq!(
                tokenizer::encode(&tokenizer, text, true).unwrap(),
                ids,
                "{name}: {text:?}"
            );
            assert_eq!(tokenizer::decode(&tokenizer, ids).unwrap(), *text, "{name}");
        }
    }
}
