//! Checks the English of comments: their width, and sentences that are built on "who" or "what".

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process::root;

/// The maximum width of a comment line, including its indentation. rustfmt bounds code, and leaves
/// comments alone.
const WIDTH: usize = 100;

/// Folders of sources, each of which keeps the bound.
const CRATES: [&str; 10] = [
    "core/src",
    "core/tests",
    "kvm-glue/src",
    "vmm/src",
    "loom-tests",
    "oracle",
    "fuzz",
    "benches",
    "xtask/src",
    "lab",
];

/// The maximum share of sentences of a crate that may use one of [`WORDS`], in percent.
const MOST_PERCENT: f64 = 2.0;

/// Words that hide the topic of a sentence when they are its subject or object.
const WORDS: [&str; 6] = ["who", "whom", "whoever", "whose", "what", "whatever"];

/// The minimum length of a sentence that counts, in words.
const SENTENCE: usize = 3;

/// Prints the comment lines that are too wide and the sentences of a crate that has too many of
/// them, and fails if there are any.
pub(crate) fn check() -> Result<()> {
    let mut faults = Vec::new();
    for dir in CRATES {
        let (mut all, mut found) = (0, Vec::new());
        for file in sources(&root().join(dir))? {
            let text =
                fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            let name = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
            faults.extend(wide_lines(&text).into_iter().map(|(line, width)| {
                format!("{name}:{line}: a comment of {width} columns; {WIDTH} are allowed")
            }));
            let sentences = sentences(&text);
            all += sentences.len();
            found.extend(
                sentences
                    .into_iter()
                    .filter(|s| is_indirect(s))
                    .map(|sentence| format!("{name}: {sentence}")),
            );
        }
        let percent = 100.0 * found.len() as f64 / all.max(1) as f64;
        println!(
            "{dir}: {} of {all} sentences are built on who or what: {percent:.1} %",
            found.len()
        );
        if percent > MOST_PERCENT {
            faults.extend(found);
            faults.push(format!(
                "{dir}: {percent:.1} % of such sentences; {MOST_PERCENT} % are allowed"
            ));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{}", faults.join("\n"))
}

/// Returns the Rust files under a directory, sorted.
pub(crate) fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                // Generated sources are built into `target`.
                if path.ends_with("target") {
                    continue;
                }
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.insert(path, ());
            }
        }
    }
    Ok(found.into_keys().collect())
}

/// Returns the text of a comment line without its marker.
fn comment(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("//")?;
    Some(rest.strip_prefix(['/', '!']).unwrap_or(rest).trim())
}

/// Returns the numbers and widths of comment lines that are too wide.
fn wide_lines(text: &str) -> Vec<(usize, usize)> {
    let lines = text.lines().enumerate().filter(|(_, line)| comment(line).is_some());
    lines
        .map(|(n, line)| (n + 1, line.chars().count()))
        .filter(|&(_, width)| width > WIDTH)
        .collect()
}

/// Returns the sentences of all comments.
fn sentences(text: &str) -> Vec<String> {
    let mut paragraphs = vec![String::new()];
    for line in text.lines() {
        match (comment(line), paragraphs.last_mut()) {
            (Some(words), Some(last)) if !words.is_empty() => {
                last.push_str(words);
                last.push(' ');
            }
            _ => paragraphs.push(String::new()),
        }
    }
    let mut sentences = Vec::new();
    for paragraph in paragraphs {
        let mut sentence = Vec::new();
        for word in paragraph.split_whitespace() {
            sentence.push(word);
            if word.ends_with(['.', ':', '!', '?']) {
                sentences.push(sentence.join(" "));
                sentence.clear();
            }
        }
        sentences.push(sentence.join(" "));
    }
    sentences.retain(|s| s.split_whitespace().count() >= SENTENCE);
    sentences
}

/// Returns whether a sentence uses one of [`WORDS`]. Code in backticks does not count.
fn is_indirect(sentence: &str) -> bool {
    let prose = sentence.split('`').step_by(2).collect::<Vec<_>>().join(" ").to_lowercase();
    let mut words = prose.split(|c: char| !c.is_alphanumeric() && c != '\'');
    words.any(|word| WORDS.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
//! Waits until the vCPU has left. Who waits
//! is told.
//!
//! `what` is a name here, and not a word.
fn f() {} // What trails code is not looked at.
/// What it returns: a number.
";

    #[test]
    fn sentences_end_at_paragraphs_and_stops() {
        let found = sentences(TEXT);
        let indirect: Vec<&str> =
            found.iter().filter(|s| is_indirect(s)).map(String::as_str).collect();
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(indirect, ["Who waits is told.", "What it returns:"]);
    }

    #[test]
    fn only_wide_comments_are_found() {
        let wide = format!("    // {}\nlet code = \"{}\";\n", "x".repeat(94), "x".repeat(200));
        assert_eq!(wide_lines(&wide), [(1, 101)]);
        assert_eq!(wide_lines(TEXT), []);
    }
}
