use burn::data::dataset::Dataset;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::data::{Examples, TokensConfig};

const CONTEXT: &str = " Ünder Dr. Wu the mill grew. In 1905, J. P. Lee bought it. He sold it. ";

fn asked(id: &str, question: &str, answers: &[(&str, usize)]) -> Value {
    let answers: Vec<_> = answers
        .iter()
        .map(|(text, at)| json!({"text": text, "answer_start": at}))
        .collect();
    json!({"id": id, "question": question, "answers": answers})
}

fn article(title: &str, context: &str, qas: &[Value]) -> Value {
    json!({"title": title, "paragraphs": [{"context": context, "qas": qas}]})
}

fn file(folder: &TempDir, articles: &[Value]) -> PathBuf {
    let path = folder.path().join("squad.json");
    let text = json!({"version": "v2.0", "data": articles}).to_string();
    std::fs::write(&path, text).unwrap();
    path
}

fn of_file(path: &Path, variant: SquadVariant) -> Result<Vec<Example>, Error> {
    Ok(examples(&read(path, "train_file")?, variant))
}

fn of(qas: &[Value], variant: SquadVariant) -> Result<Vec<Example>, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, &[article("Mill", CONTEXT, qas)]);
    of_file(&path, variant)
}

#[test]
fn variants_have_their_contexts_and_queries() {
    let answers = [("Lee", 44), ("J. P. Lee", 38), ("Lee", 44)];
    let lee = asked("1", " Who bought it? ", &answers);
    let no = json!({"id": "2", "question": "Why?", "answers": [], "is_impossible": true});
    let whole = CONTEXT.trim();
    for (variant, context, query) in [
        (SquadVariant::Plain, format!("{whole} "), "Who bought it? "),
        (
            SquadVariant::Short,
            "In 1905, J. P. Lee bought it. ".into(),
            "Who bought it? ",
        ),
        (
            SquadVariant::CqA,
            format!("{whole} Who bought it? "),
            "Answer: ",
        ),
        (
            SquadVariant::QcA,
            format!("Who bought it? {whole} "),
            "Answer: ",
        ),
    ] {
        let found = of(&[lee.clone(), no.clone()], variant).unwrap();
        let question = Question {
            query: query.into(),
            target: "Lee".into(),
            answers: vec!["Lee".into(), "J. P. Lee".into()],
        };
        let tail = match variant {
            SquadVariant::CqA => found[0].tail,
            _ => 0,
        };
        let example = Example::new(context, vec![question]);
        assert_eq!(found, [Example { tail, ..example }]);
        assert_eq!(tail > 0, variant == SquadVariant::CqA);
    }
}

#[test]
fn short_contexts_contain_the_whole_answer() {
    for (answer, at, kept) in [
        ("Dr. Wu", 7, "Ünder Dr. Wu the mill grew. "),
        (
            "grew. In",
            23,
            "Ünder Dr. Wu the mill grew. In 1905, J. P. Lee bought it. ",
        ),
        ("it. ", 67, "He sold it.  "),
    ] {
        let found = of(&[asked("1", "?", &[(answer, at)])], SquadVariant::Short).unwrap();
        assert_eq!(found[0].context, kept);
        assert!(found[0].context.contains(answer));
    }
}

#[test]
fn errors_explain_wrong_files() {
    let good = asked("q1", "Who?", &[("Lee", 44)]);
    let mut typo = good.clone();
    typo["answers"][0]["answer_start"] = json!("44");
    let mut lacks = good.clone();
    lacks.as_object_mut().unwrap().remove("question");
    let place = "data[0].paragraphs[0].qas[0]";
    for (qas, words) in [
        (
            vec![good.clone(), good.clone()],
            vec!["\"q1\"", "used before", "\"Mill\""],
        ),
        (
            vec![asked("q2", "?", &[("Lee", 45)])],
            vec!["\"q2\"", "character 45", "found at 44"],
        ),
        (
            vec![asked("q3", "?", &[("Lee", 9999)])],
            vec!["\"q3\"", "character 9999"],
        ),
        (
            vec![asked("q4", "?", &[("Loo", 1)])],
            vec!["\"q4\"", "does not contain it"],
        ),
        (vec![asked("q5", "?", &[("", 1)])], vec!["\"q5\"", "empty"]),
        (
            vec![typo],
            vec![place, ".answers[0].answer_start`", "string \"44\""],
        ),
        (vec![lacks], vec![place, "missing field `question`"]),
    ] {
        let error = of(&qas, SquadVariant::Plain).unwrap_err();
        assert!(error.is_user_error());
        let error = error.to_string();
        assert!(
            !error.contains('\n') && error.contains("squad.json"),
            "{error}"
        );
        for word in words {
            assert!(error.contains(word), "{error}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train-v1.1.json");
    let open = || {
        of_file(&path, SquadVariant::Plain)
            .err()
            .unwrap()
            .to_string()
    };
    let error = open();
    assert!(error.contains("rajpurkar.github.io") && error.contains("data.train_file"));
    std::fs::write(&path, "{\"data\": [\n{]}").unwrap();
    assert!(open().contains("line 2, column 2"), "{}", open());
    std::fs::write(&path, "{}").unwrap();
    assert!(open().contains("missing field `data`"), "{}", open());
}

#[test]
fn whole_articles_are_held_out() {
    let folder = tempfile::tempdir().unwrap();
    let one = |n: usize, context: &str| {
        article(
            &format!("T{n}"),
            context,
            &[asked(&format!("{context}{n}"), "?", &[("c", 0)])],
        )
    };
    let mut articles: Vec<_> = (0..17).map(|n| one(n, &format!("c{n}"))).collect();
    // A held-out title once more, and a held-out context under another title.
    articles.push(one(7, "c again"));
    articles.push(one(16, "c15"));
    let mut config = SquadConfig {
        train_file: file(&folder, &articles),
        ..SquadConfig::default()
    };
    let contexts = |examples: &Examples| -> Vec<String> {
        examples.iter().map(|e| e.unwrap().context).collect()
    };
    let (train, valid) = config.open(0).unwrap();
    assert_eq!(contexts(&valid), ["c7 ", "c15 ", "c again "]);
    assert_eq!(train.len(), 15);
    assert!(
        contexts(&train)
            .iter()
            .all(|c| !contexts(&valid).contains(c))
    );
    config.valid_samples = 2;
    assert_eq!(contexts(&config.open(0).unwrap().1), ["c7 ", "c again "]);
    config.valid_file = Some(config.train_file.clone());
    let (train, valid) = config.open(0).unwrap();
    assert_eq!((train.len(), valid.len()), (19, 2));
    config.valid_file = None;
    file(&folder, &articles[..7]);
    let error = config.open(0).err().unwrap().to_string();
    assert!(
        error.contains("7 articles") && error.contains("data.valid_file"),
        "{error}"
    );
}

#[test]
fn settings_survive_toml_and_are_checked() {
    let config = SquadConfig {
        train_file: "a.json".into(),
        variant: SquadVariant::CqA,
        ..SquadConfig::default()
    };
    let text = toml::to_string(&config).unwrap();
    assert!(text.contains("variant = \"cq_a\""), "{text}");
    assert_eq!(toml::from_str::<SquadConfig>(&text).unwrap(), config);
    let error = SquadConfig::default().open(0).err().unwrap().to_string();
    assert!(
        error.contains("train_file") && error.contains("rajpurkar"),
        "{error}"
    );
}

/// On a published file, if the environment names one: GRADMEM_SQUAD=dev-v2.0.json.
#[test]
fn all_questions_of_a_published_file_are_read_and_target_tokens_contain_the_answers() {
    let Some(path) = std::env::var_os("GRADMEM_SQUAD").map(PathBuf::from) else {
        eprintln!("skipped: GRADMEM_SQUAD names no file");
        return;
    };
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let list = |value: &serde_json::Value, key: &str| value[key].as_array().unwrap().clone();
    let paragraphs = list(&json, "data")
        .into_iter()
        .flat_map(|a| list(&a, "paragraphs"));
    let asked = paragraphs.flat_map(|p| list(&p, "qas"));
    let answerable = asked.filter(|q| q["is_impossible"] != true).count();
    let plain = of_file(&path, SquadVariant::Plain).unwrap();
    let short = of_file(&path, SquadVariant::Short).unwrap();
    assert_eq!((plain.len(), short.len()), (answerable, answerable));
    eprintln!("{answerable} answerable questions");

    let tokens = TokensConfig {
        tokenizer: "bpe".into(),
        vocab_size: 2048,
        ..TokensConfig::default()
    };
    let contexts: Vec<String> = plain
        .iter()
        .map(|example| example.context.clone())
        .collect();
    let tokenizer = tokens.make(|| Ok(contexts.clone().into_iter())).unwrap();
    let variants = [SquadVariant::CqA, SquadVariant::QcA];
    let others = variants.map(|variant| of_file(&path, variant).unwrap());
    for set in [&plain, &short].into_iter().chain(&others) {
        for example in set.iter() {
            let question = &example.questions[0];
            let asked = tokenizer.encode_question(question).unwrap();
            let decoded = tokenizer
                .decode_answer(&asked.tokens[asked.target..])
                .unwrap();
            assert!(
                decoded.contains(&question.target),
                "{decoded:?}: {question:?}"
            );
            assert!(example.context.contains(&question.target), "{question:?}");
        }
    }
    let (mut whole, mut kept) = (0, 0);
    for (plain, short) in plain.iter().zip(short.iter()) {
        let question = &plain.questions[0];
        assert!(question.answers.contains(&question.target));
        assert!(short.context.contains(&question.target), "{short:?}");
        assert!(plain.context.contains(short.context.trim()), "{short:?}");
        (whole, kept) = (whole + plain.context.len(), kept + short.context.len());
    }
    assert!(kept * 3 < whole, "{kept} of {whole} bytes kept");
    let config = SquadConfig {
        train_file: path,
        ..SquadConfig::default()
    };
    let (train, valid) = config.open(0).unwrap();
    assert!(train.len() > 2_000 && valid.len() > 100);
}
