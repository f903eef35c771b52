//! Splitting of text into sentences.

use std::ops::Range;

/// Abbreviations whose dot does not end a sentence, in lower case.
const ABBREVIATIONS: [&str; 48] = [
    "mr", "mrs", "ms", "messrs", "dr", "prof", "st", "mt", "ft", "jr", "sr", "gen", "col", "maj",
    "capt", "cmdr", "lt", "sgt", "adm", "rev", "hon", "fr", "gov", "sen", "rep", "pres", "vs",
    "cf", "ca", "approx", "al", "eg", "ie", "viz", "inc", "co", "corp", "ltd", "bros", "dept",
    "univ", "assn", "ave", "blvd", "rd", "est", "vols", "nos",
];

/// Abbreviations whose dot does not end a sentence before a number, in lower case.
const ABBREVIATIONS_BEFORE_NUMBER: [&str; 22] = [
    "no", "vol", "fig", "figs", "eq", "sec", "ch", "art", "op", "pp", "pt", "jan", "feb", "mar",
    "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov",
];

/// Longest word that is looked up, in bytes.
const MAX_WORD: usize = 32;

/// Finds the beginnings of sentences, character by character and in constant memory.
///
/// A sentence ends after `.`, `!`, `?` or `…` and the closing quotes and brackets after it, if white
/// space follows and then no lower-case letter; after `。`, `！` or `？`; and at an empty line. The dot of an
/// initial (`J.`), of letters with dots between them (`U.S.`, `p.m.`, `Ph.D.`) and of a common English
/// abbreviation (`Dr.`, `No. 5`) does not end a sentence.
///
/// Limits: a sentence that ends with such an abbreviation is joined with the next (`… in the U.S. He left.`);
/// an abbreviation that is not in the list ends a sentence if a capital or number follows, and so does a
/// punctuation mark in a name (`Yahoo! Answers`); the end is missed before a reference mark (`so.[3] Then`).
#[derive(Debug, Default)]
pub(crate) struct SentenceSplitter {
    /// Whether a character other than white space was seen.
    started: bool,
    /// The current word.
    word: String,
    boundary: Boundary,
    /// Whether the last character was white space.
    gap: bool,
    /// Line feeds in that white space, at most 2.
    lines: u8,
}

/// What must follow for the sentence to end after the last punctuation mark.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Boundary {
    /// The sentence does not end here.
    #[default]
    None,
    /// White space.
    Space,
    /// White space, then no number.
    SpaceNoNumber,
    /// Anything.
    Anything,
}

impl SentenceSplitter {
    /// Takes the next character of the text; whether a sentence begins with it.
    pub(crate) fn begins(&mut self, c: char) -> bool {
        if c.is_whitespace() {
            self.gap = true;
            self.lines = (self.lines + u8::from(c == '\n')).min(2);
            return false;
        }
        let closing = !self.gap && is_closing(c);
        let ended = match self.boundary {
            Boundary::None => false,
            Boundary::Space => self.gap && !c.is_lowercase(),
            Boundary::SpaceNoNumber => self.gap && !c.is_lowercase() && !c.is_numeric(),
            Boundary::Anything => !closing && !matches!(c, '。' | '！' | '？'),
        };
        let begins = !self.started || self.lines == 2 || ended;
        if begins || self.gap {
            self.word.clear();
        }
        if begins || !closing {
            self.boundary = self.boundary_after(c);
        }
        if self.word.len() < MAX_WORD {
            self.word.push(c);
        }
        (self.started, self.gap, self.lines) = (true, false, 0);
        begins
    }

    fn boundary_after(&self, c: char) -> Boundary {
        match c {
            '!' | '?' | '…' => Boundary::Space,
            '。' | '！' | '？' => Boundary::Anything,
            '.' => {
                let word = self.word.trim_start_matches(|c: char| !c.is_alphanumeric());
                let word = word.to_lowercase();
                match word.as_str() {
                    word if is_initials(word) || ABBREVIATIONS.contains(&word) => Boundary::None,
                    word if ABBREVIATIONS_BEFORE_NUMBER.contains(&word) || word == "dec" => {
                        Boundary::SpaceNoNumber
                    }
                    _ => Boundary::Space,
                }
            }
            _ => Boundary::None,
        }
    }
}

/// Whether a word before a dot is an initial, or letters with dots between them.
fn is_initials(word: &str) -> bool {
    let short = |part: &str| {
        let letters = part.chars().count();
        part.chars().all(char::is_alphabetic) && (1..=2).contains(&letters)
    };
    match word.contains('.') {
        true => word.split('.').all(short),
        false => word.chars().count() == 1 && short(word),
    }
}

/// Closing quotes and brackets.
fn is_closing(c: char) -> bool {
    matches!(
        c,
        '"' | '\'' | ')' | ']' | '}' | '”' | '’' | '»' | '」' | '』' | '）'
    )
}

/// The byte ranges of the sentences of a text, without the white space between them. [`SentenceSplitter`] says
/// what a sentence is.
pub(crate) fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut splitter = SentenceSplitter::default();
    let mut found: Vec<Range<usize>> = Vec::new();
    for (at, c) in text.char_indices() {
        if splitter.begins(c) {
            found.push(at..at);
        }
        if let Some(last) = found.last_mut().filter(|_| !c.is_whitespace()) {
            last.end = at + c.len_utf8();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_at_punctuation_but_not_at_abbreviations() {
        for parts in [
            &["One.", "Two!", "Three?", "Four"][..],
            &[
                "Mr. J. R. Smith of the U.S. Army met Dr. No at 5 p.m. on Sunday.",
                "He left.",
            ],
            &[
                "\"Go!\" he said.",
                "(They went.)",
                "'So.'",
                "It was 3.5 miles.",
            ],
            &["See No. 5 and Fig. 2.", "He said no.", "She agreed."],
            &["Wait...", "What?!", "Yes."],
            &["It was 1066.", "10th-century fields grew."],
            &["He knew e.g. three of them.", "École is French.", "Ça va?"],
        ] {
            let text = parts.join("  ");
            let found: Vec<_> = sentences(&text).into_iter().map(|s| &text[s]).collect();
            assert_eq!(found, parts);
        }
    }

    #[test]
    fn empty_lines_end_a_sentence_and_single_ones_do_not() {
        let of = |text| {
            sentences(text)
                .into_iter()
                .map(|s| &text[s])
                .collect::<Vec<&str>>()
        };
        assert_eq!(
            of(" A title\n \nthen a\nline. "),
            ["A title", "then a\nline."]
        );
        assert_eq!(of("一。二！」三"), ["一。", "二！」", "三"]);
        assert!(of(" \n\n\t").is_empty());
        assert!(of("").is_empty());
    }
}
