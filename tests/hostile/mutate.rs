//! Changes valid files: any bytes, JSON and TOML by their values, paths and names in their strings.

use std::ops::Range;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Numbers at which counting, allocating or dividing goes wrong, as they are written.
const NUMBERS: [&str; 40] = [
    "0",
    "-0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "255",
    "256",
    "65536",
    "16777215",
    "16777216",
    "16777217",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740992",
    "4611686018427387904",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "-9223372036854775809",
    "0.0",
    "0.5",
    "-0.5",
    "1.5",
    "64.0",
    "1e308",
    "-1e308",
    "1.7e308",
    "5e-324",
    "1e-320",
    "1e999",
    "NaN",
    "-Infinity",
    "nan",
    "inf",
];

/// Values of every other kind.
const VALUES: [&str; 18] = [
    "null",
    "true",
    "false",
    "[]",
    "{}",
    "[null]",
    "[[]]",
    "[0]",
    "[1, \"a\"]",
    "{\"\": 0}",
    "{\"type\": \"Sequence\"}",
    "\"\"",
    "\" \"",
    "\"auto\"",
    "\"0\"",
    "\"-1\"",
    "\"NaN\"",
    "\"\\ud800\"",
];

/// What may stand in a string: paths out of the folder, characters that end lines or texts, words of other
/// scripts.
const STRINGS: [&str; 24] = [
    "/etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "../../../etc/passwd",
    "../config.json",
    "..",
    ".",
    "/",
    "a/b",
    "a\\\\b",
    "C:\\\\a",
    "\\u0000",
    "a\\nb",
    "a\\r\\nb",
    "\\u001b[31m",
    "\\u2028",
    "é",
    "e\\u0301",
    "中文",
    "👩‍👩‍👧",
    "\\u202e",
    "▁",
    "<0x00>",
    "%s%n",
];

/// One of several.
pub fn pick<'a, T>(rng: &mut ChaCha8Rng, of: &'a [T]) -> &'a T {
    &of[rng.random_range(0..of.len())]
}

/// True once in so many times.
pub fn once_in(rng: &mut ChaCha8Rng, times: usize) -> bool {
    rng.random_range(0..times) == 0
}

/// A place in a text, its end included.
fn place(rng: &mut ChaCha8Rng, len: usize) -> usize {
    rng.random_range(0..=len)
}

/// A short piece of a text.
fn piece(rng: &mut ChaCha8Rng, len: usize) -> Range<usize> {
    let start = place(rng, len);
    let most = match once_in(rng, 4) {
        true => len - start,
        false => (len - start).min(16),
    };
    start..start + place(rng, most)
}

/// Changes bytes, of whatever they are.
pub fn bytes(rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>) {
    let len = bytes.len();
    match rng.random_range(0..10) {
        0..=2 if len > 0 => {
            for _ in 0..rng.random_range(1..=4) {
                bytes[rng.random_range(0..len)] ^= 1 << rng.random_range(0..8);
            }
        }
        3 if len > 0 => bytes[rng.random_range(0..len)] = rng.random(),
        4 => bytes.truncate(place(rng, len)),
        5 => {
            let removed = piece(rng, len);
            bytes.drain(removed);
        }
        6 => {
            let (at, copied) = (place(rng, len), piece(rng, len));
            let copied = bytes[copied].to_vec();
            bytes.splice(at..at, copied);
        }
        7 => {
            let (over, copied) = (piece(rng, len), piece(rng, len));
            let copied = bytes[copied].to_vec();
            bytes.splice(over, copied);
        }
        8 => {
            let at = place(rng, len);
            let odd = pick::<&[u8]>(
                rng,
                &[
                    b"\0",
                    b"\xff",
                    b"\xc3\x28",
                    b"\xed\xa0\x80",
                    b"\xef\xbb\xbf",
                    b"\r",
                    b"\n\n",
                    b"\t",
                    b"\x1b[2J",
                    b"\"",
                    b"{",
                    b"[",
                ],
            );
            bytes.splice(at..at, odd.iter().copied());
        }
        _ => {
            let at = place(rng, len);
            let count = rng.random_range(1..=8);
            let random: Vec<u8> = (0..count).map(|_| rng.random()).collect();
            bytes.splice(at..at, random);
        }
    }
}

/// Nested 10,000 deep.
fn nested(rng: &mut ChaCha8Rng) -> String {
    let depth = *pick(rng, &[20, 100, 126, 127, 128, 10_000]);
    match rng.random_range(0..4) {
        0 => "[".repeat(depth) + &"]".repeat(depth),
        1 => "{\"a\":".repeat(depth) + "1" + &"}".repeat(depth),
        2 => "[".repeat(depth),
        _ => {
            let kind = *pick(
                rng,
                &["normalizers", "pretokenizers", "processors", "decoders"],
            );
            let level = format!("{{\"type\":\"Sequence\",\"{kind}\":[");
            level.repeat(depth) + &"]}".repeat(depth)
        }
    }
}

/// A string between quotes.
fn string(rng: &mut ChaCha8Rng) -> String {
    match rng.random_range(0..12) {
        0 => format!("\"{}\"", "a".repeat(*pick(rng, &[300, 5000, 100_000]))),
        1 => format!("\"{}\"", "é ".repeat(*pick(rng, &[300, 5000]))),
        _ => format!("\"{}\"", pick(rng, &STRINGS)),
    }
}

/// Any value, as JSON and mostly as TOML too.
pub fn value(rng: &mut ChaCha8Rng) -> String {
    match rng.random_range(0..30) {
        0 => nested(rng),
        1..=8 => (*pick(rng, &VALUES)).into(),
        9..=13 => string(rng),
        _ => (*pick(rng, &NUMBERS)).into(),
    }
}

/// A number, as it is written.
pub fn number(rng: &mut ChaCha8Rng) -> &'static str {
    pick::<&str>(rng, &NUMBERS)
}

/// Where the values and members of a JSON text are.
struct Spans {
    values: Vec<Range<usize>>,
    members: Vec<Range<usize>>,
    strings: Vec<Range<usize>>,
    numbers: Vec<Range<usize>>,
}

/// What a scan is in.
struct Open {
    start: usize,
    /// The member that is being read: its start.
    member: Option<usize>,
    object: bool,
}

fn spans(text: &str) -> Spans {
    let mut spans = Spans {
        values: Vec::new(),
        members: Vec::new(),
        strings: Vec::new(),
        numbers: Vec::new(),
    };
    let bytes = text.as_bytes();
    let mut open: Vec<Open> = Vec::new();
    // Whether the next string is a member's name.
    let mut named = false;
    let mut at = 0;
    let end_member = |open: &mut Vec<Open>, spans: &mut Spans, end: usize| {
        if let Some(level) = open.last_mut()
            && let Some(start) = level.member.take()
        {
            spans.members.push(start..end);
        }
    };
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at = (at + 1).min(bytes.len());
                if named {
                    named = false;
                    if let Some(level) = open.last_mut() {
                        level.member = Some(start);
                    }
                } else {
                    spans.values.push(start..at);
                    spans.strings.push(start..at);
                }
            }
            b'{' | b'[' => {
                let object = bytes[at] == b'{';
                open.push(Open {
                    start,
                    member: None,
                    object,
                });
                named = object;
                at += 1;
            }
            b'}' | b']' => {
                end_member(&mut open, &mut spans, at);
                at += 1;
                if let Some(level) = open.pop() {
                    spans.values.push(level.start..at);
                }
                named = false;
            }
            b',' => {
                end_member(&mut open, &mut spans, at);
                named = open.last().is_some_and(|level| level.object);
                at += 1;
            }
            b'-' | b'0'..=b'9' | b'a'..=b'z' => {
                let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
                while at < bytes.len() && is_part(&bytes[at]) {
                    at += 1;
                }
                spans.values.push(start..at);
                if bytes[start] != b't' && bytes[start] != b'f' && bytes[start] != b'n' {
                    spans.numbers.push(start..at);
                }
            }
            _ => at += 1,
        }
    }
    let fits = |range: &Range<usize>| text.get(range.clone()).is_some();
    for ranges in [
        &mut spans.values,
        &mut spans.members,
        &mut spans.strings,
        &mut spans.numbers,
    ] {
        ranges.retain(fits);
    }
    spans
}

/// Changes a JSON text by its values and members.
pub fn json(rng: &mut ChaCha8Rng, text: &mut String) {
    let spans = spans(text);
    if spans.values.is_empty() {
        *text = value(rng);
        return;
    }
    let of = |rng: &mut ChaCha8Rng, ranges: &Vec<Range<usize>>| match ranges.is_empty() {
        true => pick(rng, &spans.values).clone(),
        false => pick(rng, ranges).clone(),
    };
    match rng.random_range(0..14) {
        0..=3 => {
            let at = of(rng, &spans.numbers);
            text.replace_range(at, number(rng));
        }
        4..=6 => {
            let at = of(rng, &spans.values);
            text.replace_range(at, &value(rng));
        }
        7 => {
            let at = of(rng, &spans.strings);
            text.replace_range(at, &string(rng));
        }
        // Another string of the file: a name that is known, at a place that it does not belong to.
        8 => {
            let other = of(rng, &spans.strings);
            let other = text[other].to_string();
            let at = of(rng, &spans.strings);
            text.replace_range(at, &other);
        }
        // Another value of the file.
        9 => {
            let other = of(rng, &spans.values);
            let other: String = text[other].into();
            let at = of(rng, &spans.values);
            text.replace_range(at, &other);
        }
        10 | 11 => {
            let at = of(rng, &spans.members);
            let comma = text[at.end..].starts_with(',');
            text.replace_range(at.start..at.end + usize::from(comma), "");
        }
        12 => {
            let at = of(rng, &spans.members);
            let mut copy = text[at.clone()].to_string();
            if let Some((name, _)) = copy.split_once(':')
                && once_in(rng, 2)
            {
                copy = format!("{name}: {}", value(rng));
            }
            text.insert_str(at.start, &format!("{copy}, "));
        }
        _ => {
            // A part of a string goes, comes twice or becomes something else.
            let at = of(rng, &spans.strings);
            let mut inner = text[at.clone()].trim_matches('"').as_bytes().to_vec();
            bytes(rng, &mut inner);
            let inner = String::from_utf8_lossy(&inner).into_owned();
            text.replace_range(at, &format!("\"{inner}\""));
        }
    }
}

/// Changes a JSON file: mostly by its values, now and then by its bytes.
pub fn json_file(rng: &mut ChaCha8Rng, valid: &[u8]) -> Vec<u8> {
    by_values(rng, valid, json)
}

/// Changes a text by its structure once to three times, or by its bytes.
pub fn by_values(
    rng: &mut ChaCha8Rng,
    valid: &[u8],
    change: impl Fn(&mut ChaCha8Rng, &mut String),
) -> Vec<u8> {
    let mut text = String::from_utf8(valid.into()).unwrap();
    let mut changed = match once_in(rng, 5) {
        true => text.into_bytes(),
        false => {
            for _ in 0..*pick(rng, &[1, 1, 1, 2, 3]) {
                change(rng, &mut text);
            }
            text.into_bytes()
        }
    };
    if changed == valid || once_in(rng, 12) {
        bytes(rng, &mut changed);
    }
    changed
}

/// Changes a TOML text by its lines `key = value` and `[section]`.
pub fn toml(rng: &mut ChaCha8Rng, text: &mut String) {
    let mut lines: Vec<String> = text.lines().map(String::from).collect();
    let settings: Vec<usize> = (0..lines.len())
        .filter(|at| lines[*at].contains('=') || lines[*at].starts_with('['))
        .collect();
    if settings.is_empty() {
        *text = value(rng);
        return;
    }
    let at = *pick(rng, &settings);
    let other = lines[*pick(rng, &settings)].clone();
    match rng.random_range(0..12) {
        0 => {
            lines.remove(at);
        }
        1 => lines.insert(at, other),
        2 => lines.insert(
            at,
            format!("{} = {}", pick(rng, &["a", "\"\"", "a.b"]), value(rng)),
        ),
        3 => lines[at] = other,
        _ => match lines[at].split_once('=') {
            Some((key, old)) => {
                let new = match old.trim().starts_with(|c: char| c.is_ascii_digit()) {
                    true if !once_in(rng, 3) => number(rng).to_string(),
                    _ if once_in(rng, 3) => other.split_once('=').unwrap_or(("", "1")).1.into(),
                    _ => value(rng),
                };
                lines[at] = format!("{key}= {new}");
            }
            None => {
                lines[at] = format!("[{}]", pick(rng, &["a", "model", "[train]", "", "data.a"]))
            }
        },
    }
    *text = lines.join("\n") + "\n";
}

/// Changes lines of JSON, or of anything: one by its values, or which there are.
pub fn lines(rng: &mut ChaCha8Rng, text: &mut String) {
    let mut lines: Vec<String> = text.lines().map(String::from).collect();
    if lines.is_empty() {
        return;
    }
    let at = rng.random_range(0..lines.len());
    match rng.random_range(0..10) {
        0 => {
            lines.remove(at);
        }
        1 => {
            let other = pick(rng, &lines).clone();
            lines.insert(at, other);
        }
        2 => lines.insert(at, String::new()),
        3 => lines.insert(at, value(rng)),
        _ => json(rng, &mut lines[at]),
    }
    *text = lines.join("\n");
    if !once_in(rng, 4) {
        text.push('\n');
    }
}

/// Changes a text of numbered lines with fields between tabs.
pub fn fields(rng: &mut ChaCha8Rng, text: &mut String) {
    let mut lines: Vec<String> = text.lines().map(String::from).collect();
    if lines.is_empty() {
        return;
    }
    let at = rng.random_range(0..lines.len());
    match rng.random_range(0..7) {
        0 => {
            lines.remove(at);
        }
        1 => {
            let other = pick(rng, &lines).clone();
            lines.insert(at, other);
        }
        2 => {
            let rest = lines[at].split_once(' ').map_or("", |(_, rest)| rest);
            lines[at] = format!("{} {rest}", number(rng));
        }
        3 => lines[at] = lines[at].replacen('\t', "", 1),
        4 => lines[at] += *pick(rng, &["\t", "?", "\t\t1", "?\ta\t99"]),
        5 => lines[at] = string(rng).trim_matches('"').into(),
        _ => {
            let mut line = std::mem::take(&mut lines[at]).into_bytes();
            bytes(rng, &mut line);
            lines[at] = String::from_utf8_lossy(&line).into_owned();
        }
    }
    *text = lines.join("\n") + "\n";
}
