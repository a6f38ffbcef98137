//! What clients may say: checked, and made what is stored and sent.

use shared::{
    chat::{Content, MAX_MENTIONS, MAX_WEIGHT, Mentions},
    html,
    ids::UserId,
};

use crate::problem::{ApiError, FieldProblem};

/// The longest key of a reaction, in bytes.
const MAX_KEY_BYTES: usize = 64;

/// What a message is to say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Words<'a> {
    pub(crate) plaintext: &'a str,
    pub(crate) formatted: Option<&'a str>,
    pub(crate) mentions: &'a [UserId],
    pub(crate) mentions_room: bool,
}

impl Words<'_> {
    /// What is stored and sent of it; refused if it could not be sent as it is.
    pub(crate) fn content(self) -> Result<Content, ApiError> {
        if self.plaintext.is_empty() {
            return Err(ApiError::invalid("plaintext", "must not be empty"));
        }
        if self.plaintext.contains('\0') {
            return Err(ApiError::invalid("plaintext", "must not contain the character NUL"));
        }
        if self.mentions.len() > MAX_MENTIONS {
            return Err(ApiError::invalid("mentions", format!("must be at most {MAX_MENTIONS} users")));
        }
        let mut users: Vec<UserId> = Vec::with_capacity(self.mentions.len());
        for user in self.mentions {
            if !users.contains(user) {
                users.push(*user);
            }
        }
        // Before it is sanitised, which takes longer with more.
        check_weight(&self.as_given())?;
        let formatted = self.formatted.map(sanitised).transpose()?;
        let mentions = Mentions { users, room: self.mentions_room };
        let content = Content { text: self.plaintext.to_owned(), formatted, mentions, media: None };
        check_weight(&content)?;
        Ok(content)
    }

    fn as_given(self) -> Content {
        let mentions = Mentions { users: self.mentions.to_vec(), room: self.mentions_room };
        Content { text: self.plaintext.to_owned(), formatted: self.formatted.map(str::to_owned), mentions, media: None }
    }
}

fn sanitised(formatted: &str) -> Result<String, ApiError> {
    if formatted.contains('\0') {
        return Err(ApiError::invalid("formatted", "must not contain the character NUL"));
    }
    let html = html::sanitize(formatted);
    if html.is_empty() {
        return Err(ApiError::invalid("formatted", "holds nothing that may be shown, or far too many tags"));
    }
    Ok(html)
}

fn check_weight(content: &Content) -> Result<(), ApiError> {
    let bytes = content.weight().map_err(|error| ApiError::Internal(error.into()))?;
    if bytes <= MAX_WEIGHT {
        return Ok(());
    }
    let with = if content.is_rich() { " with `formatted` and `mentions`" } else { "" };
    let reason = format!("must be at most {MAX_WEIGHT} bytes as JSON{with}, but is {bytes}");
    Err(ApiError::TooLarge(FieldProblem { field: "plaintext".into(), reason }))
}

/// Refuses what is no emoji and no short word.
pub(crate) fn check_key(key: &str) -> Result<(), ApiError> {
    let bytes = key.len();
    if key.trim().is_empty() || bytes > MAX_KEY_BYTES || key.chars().any(char::is_control) {
        let reason = format!("must be 1 to {MAX_KEY_BYTES} bytes of UTF-8, not only spaces, no control characters");
        return Err(ApiError::invalid("key", reason));
    }
    Ok(())
}
