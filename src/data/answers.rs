//! Whether a generated answer is right: SQuAD's exact match and F1 (Rajpurkar et al. 2016, section 4).

use std::collections::HashMap;

use super::source::single_spaces;

/// Normalizes a text as SQuAD does: lower case, without ASCII punctuation and articles, single spaces between words.
pub fn normalize(text: &str) -> String {
    let (mut kept, mut word) = (String::new(), String::new());
    // What is no letter and no number ends a word; so does the text.
    for c in plain(text).chars().chain([' ']) {
        if c.is_alphanumeric() {
            word.push(c);
            continue;
        }
        match word.as_str() {
            "a" | "an" | "the" => kept.push(' '),
            word => kept.push_str(word),
        }
        word.clear();
        kept.push(c);
    }
    single_spaces(&kept)
}

/// The same with articles.
fn plain(text: &str) -> String {
    let lower = text.to_lowercase();
    single_spaces(&lower.replace(|c: char| c.is_ascii_punctuation(), ""))
}

/// Whether `answer` is one of `right`, all normalized. Of a right answer that is an article the articles stay, and of one that
/// is a punctuation mark all: with nothing left, any such answer would be right.
pub fn exact_match(answer: &str, right: &[String]) -> bool {
    let is = |right: &String| match (normalize(right), plain(right)) {
        (normal, _) if !normal.is_empty() => normal == normalize(answer),
        (_, plainly) if !plainly.is_empty() => plainly == plain(answer),
        _ => right.trim() == answer.trim(),
    };
    right.iter().any(is)
}

/// F1 of the normalized words (the harmonic mean of precision and recall), the best over all of `right`.
pub fn f1(answer: &str, right: &[String]) -> f64 {
    let one = |right: &String| {
        if exact_match(answer, std::slice::from_ref(right)) {
            return 1.0;
        }
        let (ours, theirs) = (normalize(answer), normalize(right));
        let mut left: HashMap<&str, usize> = HashMap::new();
        for word in theirs.split(' ') {
            *left.entry(word).or_default() += 1;
        }
        let mut common = 0;
        for word in ours.split(' ') {
            if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
                *count -= 1;
                common += 1;
            }
        }
        let words = |text: &str| text.split(' ').count() as f64;
        match ours.is_empty() || theirs.is_empty() {
            true => 0.0,
            false => 2.0 * f64::from(common) / (words(&ours) + words(&theirs)),
        }
    };
    right.iter().map(one).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn case_articles_punctuation_and_spaces_do_not_matter() {
        assert_eq!(normalize(" The  U.S.,  an Empire! "), "us empire");
        assert!(exact_match("the Norse.", &right(&["Denmark", "Norse"])));
        assert!(!exact_match("Norsemen", &right(&["Norse"])));
        assert!(!exact_match("", &right(&["Norse"])));
        // Values of key-value retrieval may be articles.
        assert!(exact_match("a", &right(&["a"])));
        assert!(!exact_match("the", &right(&["a"])));
        assert!(exact_match("A.", &right(&["a"])) && exact_match("a", &right(&["A"])));
        assert!(exact_match("?", &right(&["?"])) && !exact_match("!", &right(&["?"])));
        // A word ends at any sign.
        assert_eq!(normalize("“The Raven”, the–end"), "“ raven” –end");
        assert_eq!(normalize("“ Raven”"), "“ raven”");
        assert_eq!(normalize("theory of Ana"), "theory of ana");
    }

    #[test]
    fn f1_counts_common_words_once_each() {
        let gold = right(&["10th and 11th centuries", "in the 10th"]);
        assert_eq!(f1("10th and 11th centuries", &gold), 1.0);
        // Two of two words against two of four: 2 · 2 / (2 + 4).
        assert!((f1("10th centuries", &gold[..1]) - 2.0 / 3.0).abs() < 1e-12);
        assert!((f1("10th 10th", &gold[..1]) - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(f1("nothing", &gold), 0.0);
        assert_eq!(f1("", &gold), 0.0);
    }
}
