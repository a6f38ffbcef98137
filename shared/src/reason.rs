//! Why an operator does something, as the trail keeps it: a line for people.

/// The longest, in characters: reasons are shown in lists.
pub const LONGEST: usize = 500;

/// Why a text is no reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoReason {
    /// It says nothing.
    #[error("must say why")]
    Empty,
    /// It is too long, or has more than one line.
    #[error("must be at most {LONGEST} characters on one line")]
    Unfit,
}

/// A reason without the spaces around it.
pub fn parse(text: &str) -> Result<&str, NoReason> {
    let text = text.trim();
    match text.chars().count() {
        0 => Err(NoReason::Empty),
        1..=LONGEST if !text.chars().any(char::is_control) => Ok(text),
        _ => Err(NoReason::Unfit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_that_says_something() {
        assert_eq!(parse("  the limit was raised "), Ok("the limit was raised"));
        assert_eq!(parse(" \n"), Err(NoReason::Empty));
        for unfit in ["two\nlines", &"x".repeat(LONGEST + 1)] {
            assert_eq!(parse(unfit), Err(NoReason::Unfit));
        }
    }
}
