//! Whether a generated answer is right: SQuAD's exact match and F1 (Rajpurkar et al. 2016, section 4).

use std::collections::HashMap;

/// Normalizes a text as SQuAD does: lower case, without punctuation and articles, single spaces between words.
pub fn normalize(text: &str) -> String {
    let lower = text.to_lowercase();
    let kept: String = lower
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    let words = kept
        .split_whitespace()
        .filter(|word| !["a", "an", "the"].contains(word));
    words.collect::<Vec<_>>().join(" ")
}

/// Whether `answer` is one of `right`, all normalized. A right answer that is empty after normalization (an
/// article, a punctuation mark) is compared without normalization.
pub fn exact_match(answer: &str, right: &[String]) -> bool {
    let normal = normalize(answer);
    right.iter().any(|right| match normalize(right) {
        other if other.is_empty() => answer.trim() == right.trim(),
        other => other == normal,
    })
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
