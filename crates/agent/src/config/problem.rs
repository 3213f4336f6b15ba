//! What is wrong in a configuration, where, and what it may be instead.

use std::fmt;

use vahti_exporters::without_secrets;

/// Where something stands in the file; both count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) line: u64,
    pub(crate) column: u64,
}

impl At {
    /// Where a file begins.
    pub(crate) const START: At = At { line: 1, column: 1 };
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One thing that is wrong. Its text begins with the field's path and goes on
/// with the value and the bound, such as `limits.drain_deadline is 1d, but
/// must be 0s to 10m`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) at: Option<At>,
    pub(crate) text: String,
}

/// Everything that is wrong in one configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) struct InvalidConfig {
    /// What people call the source: a file's path, or a variable's name.
    pub(crate) source_name: String,
    /// One or more, in the order of the file.
    pub(crate) problems: Vec<Problem>,
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            let text = without_secrets(&problem.text);
            match problem.at {
                Some(at) => write!(f, "{}:{at}: {text}", self.source_name)?,
                None => write!(f, "{}: {text}", self.source_name)?,
            }
        }
        Ok(())
    }
}

/// Of the known words the one that was probably meant, if any is close: one
/// begins with the other, or no more than a third of its letters differ.
pub(crate) fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    if given.len() > 64 {
        return None;
    }
    let begins = |word: &&&str| given.starts_with(**word) || word.starts_with(given);
    if given.len() > 2
        && let Some(word) = known.iter().find(begins)
    {
        return Some(word);
    }
    known
        .iter()
        .map(|word| (distance(given, word), *word))
        .filter(|(distance, word)| *distance <= word.len().div_ceil(3))
        .min()
        .map(|(_, word)| word)
}

/// Edit distance, a swap of two neighbours counting once.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let differ = usize::from(a[i - 1] != b[j - 1]);
            let mut best =
                (rows[i - 1][j - 1] + differ).min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// "a", "a or b", "a, b or c".
pub(crate) fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_recognised_and_another_word_is_not() {
        let known = ["sampling", "backpressure", "health", "name"];
        for (given, meant) in [
            ("smapling", Some("sampling")),
            ("back_pressure", Some("backpressure")),
            ("helth", Some("health")),
            ("sampling_rate", Some("sampling")),
            ("back", Some("backpressure")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(given, &known), meant, "{given}");
        }
        assert_eq!(nearest(&"x".repeat(10_000), &known), None);
    }
}
