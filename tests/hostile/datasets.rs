//! Files of samples, and settings.

use std::path::Path;

use gradmem::Error;
use gradmem::data::{
    BabiConfig, DataConfig, JsonlConfig, PhonebookConfig, SquadConfig, SquadVariant, TextConfig,
    TokensConfig,
};
use gradmem::train::config::{RunConfig, presets as named};

use crate::mutate;
use crate::read::{Count, Folder, hammer};

const STORIES: &str = "1 Mary moved to the bathroom.\n2 John went to the hallway.\n\
    3 Where is Mary? \tbathroom\t1\n4 Daniel went back to the hallway.\n\
    5 Where is Daniel? \thallway\t4\n1 John sat.\n2 Zoë sat.\n3 Where is John?\tgarden\t1\n";
const RECORDS: &str = r#"[{"input": "John sat.", "question": "Where is John?", "target": "garden"},
 {"target": "hallway", "input": "Zoë sat. 中文", "question": "Where is Zoë?", "id": 7}]"#;
pub const SQUAD: &str = r#"{"version": "v2.0", "data": [
 {"title": "Mill", "paragraphs": [{"context": "Ünder Dr. Wu the mill grew. In 1905, J. P. Lee bought it. He sold it.",
   "qas": [{"id": "1", "question": " Who bought it? ", "answers": [{"text": "Lee", "answer_start": 43}, {"text": "J. P. Lee", "answer_start": 37}]},
           {"id": "2", "question": "Why?", "answers": [], "is_impossible": true}]}]},
 {"title": "Dam", "paragraphs": [{"context": "The dam is old.", "qas": [{"id": "3", "question": "What is old?", "answers": [{"text": "The dam", "answer_start": 0}]}]}]}]}"#;
const LINES: &str = "\u{feff}{\"id\": 1, \"context\": \"Mary is in the garden. \", \"query\": \"Where is Mary? \", \"target\": \"garden\", \"answers\": [\"the garden\"]}\r\n\n\
    {\"id\": \"b\", \"context\": \"Zoë is in the kitchen. \", \"questions\": [{\"query\": \"Where is Zoë? \", \"target\": \"kitchen\"}]}\n\
    {\"context\": \"Ann\", \"query\": \"\", \"target\": \"x\", \"id\": null}\n";
const TEXT: &str = "Ann has 1 apple. Bob has 2 apples!\nDr. Zoë U.S. has no. 5 apples? \u{201c}Yes.\u{201d} she said.\n\n\
    中文。日本！ Eve went home. Dan went home. Ann went home. Bob has 3 apples. Eve has 4 apples. The end.\n";

fn tokens(kind: &str) -> TokensConfig {
    TokensConfig {
        tokenizer: kind.into(),
        vocab_size: 300,
        ..TokensConfig::default()
    }
}

/// Opens a file as the task that its name says, and takes its samples.
pub fn open(path: &Path) -> Result<(), Error> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let valid = Some(path.to_path_buf());
    let train_file = path.to_path_buf();
    let (data, kind) = match name {
        "stories.txt" | "records.json" | "records.jsonl" => {
            let config = BabiConfig {
                train_file: Some(train_file),
                valid_file: valid.filter(|_| name != "stories.txt"),
                valid_samples: 1,
                ..BabiConfig::default()
            };
            (DataConfig::Babi(config), "words")
        }
        "squad.json" | "short.json" | "cqa.json" => {
            let variant = match name {
                "short.json" => SquadVariant::Short,
                "cqa.json" => SquadVariant::CqA,
                _ => SquadVariant::Plain,
            };
            let config = SquadConfig {
                train_file,
                valid_file: valid,
                variant,
                valid_samples: 1,
            };
            (DataConfig::Squad(config), "bpe")
        }
        "lines.jsonl" => {
            let config = JsonlConfig {
                train_file,
                valid_file: None,
                valid_samples: 1,
            };
            (DataConfig::Jsonl(config), "characters")
        }
        "book.jsonl" => {
            let config = PhonebookConfig {
                train_file: Some(train_file),
                valid_file: valid,
                ..PhonebookConfig::default()
            };
            (DataConfig::Phonebook(config), "words")
        }
        _ => {
            let config = TextConfig {
                path: train_file,
                context_tokens: 6,
                valid_share: 0.3,
                valid_samples: 3,
                ..TextConfig::default()
            };
            (DataConfig::Text(config), "words")
        }
    };
    let task = data.open(&tokens(kind), 1, None)?;
    for at in 0..3 {
        task.train.get(at).transpose()?;
        task.valid.get(at).transpose()?;
    }
    Ok(())
}

pub fn run(count: Count) {
    let mut folder = Folder::new(&[""]);
    let records = "{\"input\": \"John sat.\", \"question\": \"Where is John?\", \"target\": \"garden\"}\n\n\
        {\"input\": \"Zoë sat.\", \"question\": \"Where is Zoë?\", \"target\": \"hallway\"}\n";
    for (name, text) in [
        ("stories.txt", STORIES),
        ("records.json", RECORDS),
        ("records.jsonl", records),
        ("squad.json", SQUAD),
        ("short.json", SQUAD),
        ("cqa.json", SQUAD),
        ("lines.jsonl", LINES),
        ("book.jsonl", LINES),
        ("text.txt", TEXT),
    ] {
        folder.write(name, text);
    }
    hammer(
        "dataset",
        count,
        &folder,
        |rng, name| {
            let valid = &folder.valid[name];
            let bytes = match name.rsplit('.').next() {
                Some("json") => mutate::json_file(rng, valid),
                Some("jsonl") => mutate::by_values(rng, valid, mutate::lines),
                _ => mutate::by_values(rng, valid, mutate::fields),
            };
            vec![(name.into(), bytes)]
        },
        |path, name| open(&path.join(name)),
    );
}

/// Opens settings, and asks them all that can be asked without a file or a model.
pub fn settings(path: &Path) -> Result<(), Error> {
    let config = RunConfig::open(path)?;
    config.stages()?;
    config.differences(&RunConfig::default());
    config.data.describe();
    let again = config.to_toml()?;
    std::fs::write(path, again).unwrap();
    // What was written down is read again.
    RunConfig::open(path).map(|_| ())
}

pub fn presets(count: Count) {
    let mut folder = Folder::new(&[".toml"]);
    for (name, text) in named() {
        folder.write(&format!("{name}.toml"), text);
    }
    hammer(
        "preset",
        count,
        &folder,
        |rng, name| {
            let bytes = mutate::by_values(rng, &folder.valid[name], mutate::toml);
            vec![(name.into(), bytes)]
        },
        |path, name| settings(&path.join(name)),
    );
}
