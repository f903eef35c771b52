use tokenizers::models::bpe::BPE;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{PaddingParams, PaddingStrategy, TruncationParams};

use super::*;
use crate::data::{KvConfig, TokensConfig};

#[test]
fn key_value_tokens_are_those_of_the_paper() {
    let tokenizer = KvConfig::default().tokenizer().unwrap();
    assert_eq!(tokenizer.vocab_size(), 70);
    let ids = tokenizer.encode("azAZ09!?:|").unwrap();
    assert_eq!(ids, [4, 29, 30, 55, 56, 65, 66, 67, 68, 69]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "azAZ09!?:|");
    assert!(tokenizer.is_mark(66) && !tokenizer.is_mark(4));
    assert_eq!(tokenizer.end(), 69);
    assert_eq!(tokenizer.encode("").unwrap(), [0u32; 0]);
}

#[test]
fn errors_name_the_character_outside_the_alphabet() {
    let tokenizer = KvConfig::default().tokenizer().unwrap();
    for (text, character, at) in [("ab c", "' '", 2), ("aé", "'é'", 1), ("\n", "'\\n'", 0)] {
        let error = tokenizer.encode(text).unwrap_err().to_string();
        assert!(error.contains(character), "{error}");
        assert!(error.contains(&format!("position {at}")), "{error}");
    }
}

fn question(query: &str, target: &str) -> Question {
    Question {
        query: query.into(),
        target: target.into(),
        answers: Vec::new(),
    }
}

/// The token for the unknown is the one that the tokenizer's model names, and it is text.
#[test]
fn an_unknown_word_is_no_right_answer_under_any_name() {
    let words = ["<oov>", "[EOS]", "Ann", "Bob"].map(String::from);
    let vocab = words.into_iter().zip(0..).collect();
    let model = WordLevel::builder().vocab(vocab).unk_token("<oov>".into());
    let mut tokenizer = Tokenizer::new(model.build().unwrap());
    tokenizer.with_pre_tokenizer(Some(WhitespaceSplit {}));
    tokenizer.add_special_tokens(&[tokenizers::AddedToken::from("<oov>", true)]);
    let tokenizer = TextTokenizer::new(tokenizer, None, None).unwrap();
    let ids = tokenizer.encode("Ann Eve").unwrap();
    assert!(!tokenizer.is_unknown(ids[0]) && tokenizer.is_unknown(ids[1]));
    assert_eq!(tokenizer.decode_answer(&ids).unwrap(), "Ann <oov>");
    assert_eq!(tokenizer.as_decoded("Eve").unwrap(), "Eve");
}

#[test]
fn text_that_a_tokenizer_leaves_out_is_an_error() {
    let vocab = [("[EOS]", 0), ("x", 1), ("y", 2)];
    let vocab = vocab.map(|(token, id): (&str, u32)| (token.to_string(), id));
    let bpe = |unknown: Option<&str>| {
        let builder = BPE::builder().vocab_and_merges(vocab.clone(), Vec::new());
        let builder = match unknown {
            Some(name) => builder.unk_token(name.into()),
            None => builder,
        };
        let mut tokenizer = Tokenizer::new(builder.build().unwrap());
        tokenizer.with_pre_tokenizer(Some(WhitespaceSplit {}));
        TextTokenizer::new(tokenizer, None, None).unwrap()
    };
    let tokenizer = bpe(None);
    assert_eq!(tokenizer.encode("x y").unwrap(), [1, 2]);
    for error in [
        tokenizer.encode("x z").unwrap_err(),
        tokenizer.encode_question(&question("x ", "z")).unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(error.contains("'z' at byte 2"), "{error}");
    }
    assert_eq!(tokenizer.as_decoded("xz").unwrap(), "xz");
    assert_eq!(bpe(Some("y")).encode("x z").unwrap(), [1, 2]);
    // Bytes to fall back to, of which there are none.
    let builder = BPE::builder().vocab_and_merges(vocab.clone(), Vec::new());
    let mut falls_back = Tokenizer::new(builder.byte_fallback(true).build().unwrap());
    falls_back.with_pre_tokenizer(Some(WhitespaceSplit {}));
    let falls_back = TextTokenizer::new(falls_back, None, None).unwrap();
    let error = falls_back.encode("x z").unwrap_err().to_string();
    assert!(error.contains("'z' at byte 2"), "{error}");
}

#[test]
fn a_query_and_its_target_may_be_one_word() {
    let texts = ["Paris is in France"].map(String::from);
    for kind in ["words", "bpe"] {
        let config = TokensConfig {
            tokenizer: kind.into(),
            vocab_size: 300,
            ..TokensConfig::default()
        };
        let texts = texts.clone();
        let tokenizer = config.make(move || Ok(texts.clone().into_iter())).unwrap();
        let joined = |query, target| tokenizer.encode_joined(&question(query, target)).unwrap().1;
        assert!(joined("Par", "is"), "{kind}");
        assert!(
            !joined("in ", "France") && !joined("in", " France"),
            "{kind}"
        );
    }
}

#[test]
fn words_of_a_closed_vocabulary_are_numbered_and_others_are_errors() {
    let names = ["[PAD]", "[END]", "10", "1"].map(String::from);
    let tokenizer = TextTokenizer::words(names.clone(), "[END]").unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.end()), (4, 1));
    assert!(tokenizer.is_closed() && tokenizer.is_mark(1));
    let ids = tokenizer.encode(" 10 1\n[PAD] 10 ").unwrap();
    assert_eq!(ids, [2, 3, 0, 2]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "10 1 [PAD] 10");
    assert_eq!(tokenizer.encode_query("10").unwrap(), [2]);
    let asked = tokenizer.encode_question(&question("10", "1 10 [END]"));
    let asked = asked.unwrap();
    assert_eq!((&asked.tokens[..], asked.target), (&[2, 3, 2, 1][..], 1));
    assert_eq!(asked.answers, ["1 10"]);
    let error = tokenizer.encode("10 101 1").unwrap_err().to_string();
    let named = error.contains("\"101\" at position 1");
    assert!(named && error.contains("[PAD] [END] 10 … 1"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, tokenizer.to_json().unwrap()).unwrap();
    tokenizer.check(&path).unwrap();
    assert!(TextTokenizer::words(names.clone(), "2").is_err());
    let twice = names.iter().chain(&names).cloned();
    assert!(TextTokenizer::words(twice, "1").is_err());
}

#[test]
fn target_tokens_are_those_that_contain_its_characters() {
    let texts = || Ok(vec!["who is in Zürich? Ann Ann Zoë Zoë Ann".to_string(); 9].into_iter());
    for (kind, first) in [("characters", "Z"), ("words", "Zoë"), ("bpe", " Zoë")] {
        let config = TokensConfig {
            tokenizer: kind.into(),
            vocab_size: 300,
            ..TokensConfig::default()
        };
        let tokenizer = config.make(texts).unwrap();
        let asked = tokenizer.encode_question(&question("who is in Zürich? ", "Zoë Ann"));
        let asked = asked.unwrap();
        assert_eq!(asked.tokens.last(), Some(&tokenizer.end()), "{kind}");
        let target = &asked.tokens[asked.target..];
        let token = tokenizer
            .as_tokenizer()
            .decode(&target[..1], false)
            .unwrap();
        assert_eq!(token, first, "{kind}");
        let text = tokenizer.decode_answer(target).unwrap();
        assert_eq!(text, "Zoë Ann", "{kind}");
        assert_eq!(asked.answers, ["Zoë Ann"]);
        // A query alone has the same tokens, whatever its target will be.
        let alone = tokenizer.encode_query("who is in Zürich? ").unwrap();
        assert_eq!(alone, asked.tokens[..asked.target], "{kind}");
        let empty = tokenizer.encode_query("").unwrap();
        assert!(empty.is_empty(), "{kind}: {empty:?}");
        let joined = tokenizer.encode_query("who").unwrap();
        assert_eq!(joined, tokenizer.encode("who").unwrap(), "{kind}");
        let query = tokenizer.decode(&asked.tokens[..asked.target]).unwrap();
        assert!(
            query.starts_with("who is in") && !query.contains("Zoë"),
            "{kind}: {query}"
        );
    }
}

#[test]
fn padding_truncation_and_special_names_of_a_file_have_no_effect() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let config = TokensConfig {
        tokenizer: "bpe".into(),
        vocab_size: 300,
        ..TokensConfig::default()
    };
    let made = config
        .make(|| Ok(["some words".to_string()].into_iter()))
        .unwrap();
    let mut file = made.as_tokenizer().clone();
    file.with_padding(Some(PaddingParams {
        strategy: PaddingStrategy::Fixed(20),
        ..PaddingParams::default()
    }));
    let truncation = TruncationParams {
        max_length: 3,
        ..TruncationParams::default()
    };
    file.with_truncation(Some(truncation)).unwrap();
    std::fs::write(&path, file.to_string(false).unwrap()).unwrap();
    let tokenizer = config.open(&path).unwrap();
    assert_eq!(
        tokenizer.encode("some words").unwrap(),
        made.encode("some words").unwrap()
    );
    // The names of special tokens in a text are text.
    let ids = tokenizer.encode("a [PAD] and [EOS]").unwrap();
    assert!(
        !ids.contains(&tokenizer.pad()) && !ids.contains(&tokenizer.end()),
        "{ids:?}"
    );
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a [PAD] and [EOS]");
    // What a file puts around a text goes with it where the tokenizer goes.
    let template = TemplateProcessing::builder()
        .try_single("[BOS] $A")
        .unwrap()
        .special_tokens(vec![("[BOS]", 1)])
        .build()
        .unwrap();
    file.with_post_processor(Some(template));
    assert_eq!(file.encode("a", true).unwrap().get_ids()[0], 1);
    std::fs::write(&path, file.to_string(false).unwrap()).unwrap();
    let ours = config.open(&path).unwrap();
    let ids = tokenizer::encode(ours.as_tokenizer(), "some words", true).unwrap();
    assert_eq!(ids, made.encode("some words").unwrap());
    assert_eq!(ours.fingerprint(), tokenizer.fingerprint());
}

#[test]
fn a_target_without_a_token_and_a_tokenizer_without_an_end_are_errors() {
    let kv = KvConfig::default().tokenizer().unwrap();
    let error = kv.encode_question(&question("?!a:", "")).unwrap_err();
    assert!(
        error.to_string().contains("no token that counts"),
        "{error}"
    );
    let endless = || Tokenizer::new(WordLevel::default());
    let error = TextTokenizer::new(endless(), None, None).unwrap_err();
    assert!(error.to_string().contains("tokens.end"), "{error}");
    let error = TextTokenizer::new(endless(), None, Some("<end>")).unwrap_err();
    assert!(
        error.to_string().contains("`tokens.end` = <end>"),
        "{error}"
    );
}
