use burn::data::dataset::Dataset;

use super::*;
use crate::data::Generated;
use std::collections::HashMap;

fn dataset(task: usize, split: Split, seed: u64) -> Generated<BabiConfig> {
    let config = BabiConfig {
        tasks: vec![task],
        ..BabiConfig::default()
    };
    Generated::new(config, split, seed).unwrap()
}

fn parts(example: &Example) -> (Vec<Vec<&str>>, Vec<&str>, &str) {
    let said = example.context.strip_suffix(". ").unwrap();
    let said = said.split(". ").map(|s| s.split(' ').collect()).collect();
    let [question] = &example.questions[..] else {
        panic!("{example:?}");
    };
    let query = question.query.strip_suffix("? ").unwrap();
    (said, query.split(' ').collect(), &question.target)
}

/// Answers questions of tasks 1, 2, 3 and 5 from the text of the story.
fn read<'a>(said: &[Vec<&'a str>], asked: &[&'a str]) -> &'a str {
    let mut place: HashMap<&str, &str> = HashMap::new();
    let mut holder: HashMap<&str, &str> = HashMap::new();
    let mut been: HashMap<&str, Vec<&str>> = HashMap::new();
    let mut given: Vec<(&str, &str, &str)> = Vec::new();
    for words in said {
        let (who, verb) = (words[0], words[1]);
        let object = || words[1 + words.iter().position(|w| *w == "the").unwrap()];
        match verb {
            "moved" | "went" | "journeyed" | "travelled" => {
                let to = *words.last().unwrap();
                assert_ne!(
                    place.insert(who, to),
                    Some(to),
                    "moves to where he is: {words:?}"
                );
                for (object, _) in holder.iter().filter(|(_, holder)| **holder == who) {
                    been.get_mut(object).unwrap().push(to);
                }
            }
            "got" | "grabbed" | "picked" | "took" => {
                let (object, here) = (object(), place[who]);
                assert!(
                    holder.insert(object, who).is_none(),
                    "held already: {words:?}"
                );
                let been = been.entry(object).or_default();
                match been.last() {
                    None => been.push(here),
                    Some(at) => assert_eq!(*at, here, "is elsewhere: {words:?}"),
                }
            }
            "discarded" | "dropped" | "left" | "put" => {
                assert_eq!(
                    holder.remove(object()),
                    Some(who),
                    "does not hold it: {words:?}"
                );
            }
            "gave" | "handed" | "passed" => {
                let (object, to) = (object(), *words.last().unwrap());
                assert_ne!(who, to);
                assert_eq!(
                    holder.insert(object, to),
                    Some(who),
                    "does not hold it: {words:?}"
                );
                let here = place[who];
                assert_eq!(
                    *place.entry(to).or_insert(here),
                    here,
                    "is elsewhere: {words:?}"
                );
                given.push((who, object, to));
            }
            _ => panic!("{words:?}"),
        }
    }
    let last = |fits: &dyn Fn(&(&'a str, &'a str, &'a str)) -> bool| {
        *given.iter().rev().find(|given| fits(given)).unwrap()
    };
    match *asked {
        ["Where", "is", "the", object] => been[object].last().unwrap(),
        ["Where", "is", who] => place[who],
        ["Where", "was", "the", object, "before", "the", place] => {
            let at = been[object].iter().rposition(|at| *at == place).unwrap();
            been[object][at - 1]
        }
        ["Who", "gave", "the", object] => last(&|g| g.1 == object).0,
        ["Who", "gave", "the", object, "to", to] => last(&|g| (g.1, g.2) == (object, to)).0,
        ["What", "did", from, "give", "to", to] => last(&|g| (g.0, g.2) == (from, to)).1,
        ["Who", "did", from, "give", "the", object, "to"] => {
            last(&|g| (g.0, g.1) == (from, object)).2
        }
        ["Who", "received", "the", object] => last(&|g| g.1 == object).2,
        _ => panic!("{asked:?}"),
    }
}

/// Every place that a fact puts on one side of a place.
fn on_side<'a>(said: &[Vec<&'a str>], side: &str, of: &str) -> Vec<&'a str> {
    let opposite = HashMap::from([
        ("north", "south"),
        ("south", "north"),
        ("east", "west"),
        ("west", "east"),
    ]);
    let next = |words: &Vec<&'a str>| {
        let ["The", a, "is", stated, "of", "the", b] = words[..] else {
            panic!("{words:?}");
        };
        match (
            stated == side && b == of,
            opposite[stated] == side && a == of,
        ) {
            (true, _) => Some(a),
            (_, true) => Some(b),
            _ => None,
        }
    };
    said.iter().filter_map(next).collect()
}

#[test]
fn generated_answers_follow_from_the_text() {
    for task in [1, 2, 3, 5] {
        let mut forms = std::collections::HashSet::new();
        for index in 0..400 {
            let example = dataset(task, Split::Train, 11).get(index).unwrap();
            let (said, asked, answer) = parts(&example);
            assert_eq!(read(&said, &asked), answer, "task {task}: {example:?}");
            forms.insert((asked[0].to_owned(), asked.len(), asked[1] == "received"));
            if task == 1 {
                assert!((2..=10).contains(&said.len()), "{example:?}");
            }
        }
        let expected = if task == 5 { 5 } else { 1 };
        assert_eq!(forms.len(), expected, "task {task}");
    }
}

/// The shares of the published training files, and the age of the facts that are asked for.
#[test]
fn actions_are_as_frequent_and_facts_as_recent_as_in_the_published_stories() {
    for (task, published) in [(2, [0.198, 0.152, 0.0]), (5, [0.169, 0.117, 0.155])] {
        let (mut found, mut all) = ([0.0; 3], 0.0);
        let set = dataset(task, Split::Train, 3);
        for index in 0..2000 {
            let example = set.get(index).unwrap();
            let (said, asked, answer) = parts(&example);
            all += said.len() as f64;
            for words in &said {
                match words[1] {
                    "got" | "grabbed" | "picked" | "took" => found[0] += 1.0,
                    "discarded" | "dropped" | "left" | "put" => found[1] += 1.0,
                    "gave" | "handed" | "passed" => found[2] += 1.0,
                    _ => {}
                }
            }
            // What was said five statements ago is asked for, not what was said before that alone.
            let mut told = said.iter().rev().take(5).flatten();
            assert!(
                task == 2 || told.any(|word| *word == answer),
                "{example:?}, {asked:?}"
            );
        }
        let shares = found.map(|count| count / all);
        for (share, published) in shares.iter().zip(published) {
            let apart = (share - published).abs();
            assert!(
                apart < 0.02,
                "task {task}: {shares:?}, published {published}"
            );
        }
    }
}

#[test]
fn a_story_answers_all_its_questions() {
    for task in [1, 2, 3, 5] {
        let config = BabiConfig {
            tasks: vec![task],
            queries_per_context: 3,
            statements: Some(2),
            ..BabiConfig::default()
        };
        let set = Generated::new(config, Split::Train, 4).unwrap();
        for index in 0..100 {
            let Example {
                context, questions, ..
            } = set.get(index).unwrap();
            let mut different: Vec<_> = questions.iter().map(|q| &q.query).collect();
            different.sort();
            different.dedup();
            assert_eq!(different.len(), 3);
            for question in questions {
                let one = Example::new(context.clone(), vec![question]);
                let (said, asked, answer) = parts(&one);
                assert_eq!(read(&said, &asked), answer, "task {task}: {one:?}");
            }
        }
    }
    let wrong = |change: fn(&mut BabiConfig)| {
        let mut config = BabiConfig::default();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    let error = wrong(|c| (c.tasks, c.queries_per_context) = (vec![1, 2], 4));
    assert!(error.contains("at most 3"), "{error}");
    let error = wrong(|c| (c.train_file, c.queries_per_context) = (Some("a".into()), 2));
    assert!(error.contains("from a file"), "{error}");
}

#[test]
fn generated_directions_have_one_answer() {
    for index in 0..400 {
        let example = dataset(4, Split::Valid, 5).get(index).unwrap();
        let (said, asked, answer) = parts(&example);
        assert_eq!(said.len(), 2);
        let found = match asked[..] {
            ["What", "is", side, "of", "the", place] => on_side(&said, side, place),
            ["What", "is", "the", place, side, "of"] => {
                let sides = ["north", "east", "south", "west"];
                let at = sides.iter().position(|s| *s == side).unwrap();
                on_side(&said, sides[(at + 2) % 4], place)
            }
            _ => panic!("{asked:?}"),
        };
        assert_eq!(found, [answer], "{example:?}");
        // As in the original, the answer is what a fact begins with.
        assert!(said.iter().any(|words| words[1] == answer), "{example:?}");
    }
}

#[test]
fn tasks_take_turns() {
    let mixed = BabiConfig {
        tasks: vec![4, 1],
        ..BabiConfig::default()
    };
    let (train, valid) = mixed.open(0).unwrap();
    assert_eq!((train.len(), valid.len()), (9_000, 999));
    let query = |index| train.get(index).unwrap().unwrap().questions.remove(0).query;
    assert!(query(0).starts_with("What is") && query(1).starts_with("Where is"));
}

/// BABILong has a record for each question, with the story up to it.
#[test]
fn beginnings_of_held_out_stories_are_not_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qa1.jsonl");
    let record = |story: &str| {
        let record = serde_json::json!({ "input": story, "question": "Where? ", "target": "here" });
        format!("{record}\n")
    };
    let stories = [
        "Ann sat. Bob sat. ",         // A longer part of it is held out.
        "Ann sat. Bob sat. Ann ran.", // And of this one.
        "Bob ran. Ann ran. Bob sat.", // A shorter part of it is held out.
        "Bob ran. Bob ran.",
        "Ann sat. Bob sat. Ann ran. Ann sat. ",
        "Bob ran. Ann ran. ",
    ];
    std::fs::write(&path, stories.map(record).concat()).unwrap();
    let config = BabiConfig {
        train_file: Some(path),
        valid_samples: 2,
        ..BabiConfig::default()
    };
    let (train, valid) = config.open(0).unwrap();
    let contexts = |samples: &dyn Dataset<Result<Example, Error>>| -> Vec<String> {
        let all = (0..samples.len()).map(|at| samples.get(at).unwrap().unwrap());
        all.map(|example| example.context).collect()
    };
    assert_eq!(contexts(&*train), ["Bob ran. Bob ran. "]);
    assert_eq!(
        contexts(&*valid),
        ["Ann sat. Bob sat. Ann ran. Ann sat. ", "Bob ran. Ann ran. "]
    );
    assert_eq!(valid.get(0).unwrap().unwrap().questions[0].query, "Where? ");
}

#[test]
fn no_story_is_in_both_splits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qa1.txt");
    let story = |name: &str| {
        format!(
            "1 {name} moved to the office.\n2 Where is {name}?\toffice\t1\n3 {name} sat.\n4 Where is {name}?\toffice\t1\n"
        )
    };
    let write = |names: &[&str]| {
        std::fs::write(
            &path,
            names.iter().map(|name| story(name)).collect::<String>(),
        )
        .unwrap();
    };
    write(&["Ann", "Bob", "Cem"]);
    let mut config = BabiConfig {
        train_file: Some(path.clone()),
        valid_samples: 1,
        ..BabiConfig::default()
    };
    let lens = |config: &BabiConfig| config.open(0).map(|(a, b)| (a.len(), b.len()));
    assert_eq!(lens(&config).unwrap(), (4, 2));
    config.valid_samples = 3;
    assert_eq!(lens(&config).unwrap(), (2, 4));
    config.valid_samples = 5;
    let error = lens(&config).unwrap_err().to_string();
    assert!(
        error.contains("6 questions") && error.contains("data.valid_samples"),
        "{error}"
    );
    write(&["Ann", "Bob", "Cem", "Ann"]);
    config.valid_samples = 2;
    assert_eq!(lens(&config).unwrap(), (4, 2));
    write(&["Ann", "Ann"]);
    let error = lens(&config).unwrap_err().to_string();
    assert!(error.contains("no other story"), "{error}");
    write(&["Ann", "Bob", "Cem"]);
    config.valid_file = config.train_file.clone();
    assert_eq!(lens(&config).unwrap(), (6, 6));
    config.train_file = Some(folder.path().join("none"));
    let error = lens(&config).unwrap_err().to_string();
    assert!(error.contains("tasks_1-20_v1-2") && error.contains("RMT-team/babilong"));
    assert!(error.contains("data.train_file"), "{error}");
}

#[test]
fn no_generated_story_is_in_both_splits() {
    let texts = |split| {
        let stories = dataset(4, split, 3);
        let texts = (0..stories.len()).map(move |at| stories.get(at).unwrap().context);
        texts.collect::<HashSet<String>>()
    };
    let (train, valid) = (texts(Split::Train), texts(Split::Valid));
    assert!(train.is_disjoint(&valid));
    assert!(train.len() > 1_500 && valid.len() > 150);
}

#[test]
fn impossible_settings_are_errors() {
    let with = |tasks: &[usize]| BabiConfig {
        tasks: tasks.into(),
        ..BabiConfig::default()
    };
    for (config, key) in [
        (with(&[]), "tasks"),
        (with(&[0]), "tasks"),
        (with(&[6]), "tasks"),
        (with(&[1, 2, 1]), "only once"),
        (
            BabiConfig {
                valid_samples: 0,
                ..with(&[1])
            },
            "valid_samples",
        ),
        (
            BabiConfig {
                valid_file: Some("x".into()),
                ..with(&[1])
            },
            "data.train_file",
        ),
    ] {
        let error = config.open(0).err().unwrap().to_string();
        assert!(error.contains(key), "{error}");
    }
    let toml = toml::to_string(&BabiConfig::default()).unwrap();
    assert_eq!(
        toml::from_str::<BabiConfig>(&toml).unwrap(),
        BabiConfig::default()
    );
}
