//! Errors in words.

use std::error::Error;

/// An error with all that brought it about, in one line.
///
/// ```
/// use vahti_runtime::error::describe;
/// let error = std::io::Error::other("the disk is full");
/// assert_eq!(describe(&error), "the disk is full");
/// ```
#[must_use]
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{what}")]
    struct Step {
        what: &'static str,
        source: Option<Box<Step>>,
    }

    #[test]
    fn every_cause_is_told_in_order() {
        let innermost = Step { what: "no such file", source: None };
        let middle = Step { what: "cannot open it", source: Some(Box::new(innermost)) };
        let error = Step { what: "no object", source: Some(Box::new(middle)) };
        assert_eq!(describe(&error), "no object: cannot open it: no such file");
    }
}
