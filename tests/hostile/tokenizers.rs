//! `tokenizer.json`: loaded, and texts to tokens and back, alone and as a task's.

use std::path::Path;

use gradmem::Error;
use gradmem::data::{DataConfig, JsonlConfig, Question, TextTokenizer, TokensConfig};
use gradmem::tokenizer::open_folder;

use crate::mutate;
use crate::read::{Count, Folder, hammer};

/// What is tokenized.
const TEXTS: [&str; 6] = [
    "",
    "Mary went to the garden.",
    "  é e\u{301} Zoë\t\n\n中文 👩‍👩‍👧 <s> [EOS] ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 0123456789",
    "\u{0}\u{ad}\u{200b}\u{feff}ﬁ ½ Ⅷ ㎏ Å",
    "▁▁the ##the Ġthe </w> <0x41>",
];

const LINES: &str = "{\"context\": \"Mary is in the garden. \", \"query\": \"Where is Mary? \", \"target\": \"garden\"}\n\
     {\"context\": \"Zoë is in the kitchen. \", \"query\": \"Where is Zoë? \", \"target\": \"kitchen\"}\n";

/// Tokenizers of the kinds there are: made here, and as well-known models have them.
pub fn folder() -> Folder {
    let mut folder = Folder::new(&[".json"]);
    let texts = || Ok(TEXTS.map(String::from).into_iter());
    for kind in ["words", "characters", "bpe"] {
        let config = TokensConfig {
            tokenizer: kind.into(),
            vocab_size: 280,
            ..TokensConfig::default()
        };
        let json = config.make(texts).unwrap().to_json().unwrap();
        folder.write(&format!("{kind}.json"), json);
    }
    for (name, json) in [
        ("bert.json", include_str!("corpus/valid/bert.json")),
        ("gpt2.json", include_str!("corpus/valid/gpt2.json")),
        ("llama.json", include_str!("corpus/valid/llama.json")),
        ("t5.json", include_str!("corpus/valid/t5.json")),
    ] {
        folder.write(name, json);
    }
    folder.write("lines.jsonl", LINES);
    folder
}

/// Opens a tokenizer in every way there is.
pub fn open(path: &Path) -> Result<(), Error> {
    let config = TokensConfig {
        tokenizer: path.display().to_string(),
        ..TokensConfig::default()
    };
    let tokenizer = config.open(path)?;
    round_trips(&tokenizer)?;
    let lines = path.parent().unwrap().join("lines.jsonl");
    let data = DataConfig::Jsonl(JsonlConfig {
        train_file: lines.clone(),
        valid_file: Some(lines),
        valid_samples: 1,
    });
    let task = data.open(&config, 1, None)?;
    for at in 0..2 {
        task.train.get(at).unwrap()?;
    }
    // As a model's folder has it.
    open_folder(path.parent().unwrap(), 5000).map(|_| ())
}

fn round_trips(tokenizer: &TextTokenizer) -> Result<(), Error> {
    let mut failed = Ok(());
    for text in TEXTS {
        // One text may have no tokens, another may.
        let encoded = tokenizer.encode(text);
        match encoded {
            Ok(ids) => {
                if let Err(error) = tokenizer.decode(&ids) {
                    failed = Err(error);
                }
                if let Err(error) = tokenizer.decode_answer(&ids) {
                    failed = Err(error);
                }
            }
            Err(error) => failed = Err(error),
        }
        let question = Question {
            query: text.into(),
            target: "garden".into(),
            answers: Vec::new(),
        };
        if let Err(error) = tokenizer.encode_question(&question) {
            failed = Err(error);
        }
    }
    for ids in [&[0u32, 1, 2, 3] as &[u32], &[u32::MAX], &[]] {
        if let Err(error) = tokenizer.decode(ids) {
            failed = Err(error);
        }
    }
    tokenizer.vocab_size();
    tokenizer.to_json()?;
    failed
}

pub fn run(count: Count) {
    let folder = folder();
    hammer(
        "tokenizer",
        count,
        &folder,
        |rng, name| {
            let bytes = mutate::json_file(rng, &folder.valid[name]);
            vec![
                (name.into(), bytes.clone()),
                ("tokenizer.json".into(), bytes),
            ]
        },
        |path, name| open(&path.join(name)),
    );
}
