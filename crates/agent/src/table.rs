//! Text in columns.

use vahti_runtime::event::escape_text;

/// Appends text behind a first column, wrapped at `width` and indented below
/// itself.
pub(crate) fn wrap(out: &mut String, first: &str, text: &str, width: usize) {
    let indent = first.chars().count();
    let text = escape_text(text);
    let mut line = first.to_owned();
    let mut used = indent;
    for word in text.split_whitespace() {
        let len = word.chars().count();
        if used > indent && used + 1 + len > width {
            push_line(out, &line);
            line = " ".repeat(indent);
            used = indent;
        }
        if used > indent {
            line.push(' ');
            used += 1;
        }
        line.push_str(word);
        used += len;
    }
    push_line(out, &line);
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line.trim_end());
    out.push('\n');
}

/// A number with its thousands apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_below_itself() {
        let mut out = String::new();
        wrap(&mut out, "  do: ", "one two three", 14);
        assert_eq!(out, "  do: one two\n      three\n");
    }

    #[test]
    fn thousands_stand_apart() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1_000, "1,000"), (u64::MAX, "18,446,744,073,709,551,615")]
        {
            assert_eq!(grouped(number), text);
        }
    }
}
