//! What a message says: its text, and what makes it richer.
//!
//! All of it is sealed as a whole, as one revision's body. A text alone is sealed as it is, anything richer as JSON.

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{ChatError, Turn};
use crate::{
    ids::{MessageId, UserId},
    seal::{KeyRing, Place, SealError},
};

/// How heavy a message may be; see [`Content::weight`]. An edit carries it twice and encryption adds a third, and the
/// event must stay below the 65,536 bytes that Matrix allows.
pub const MAX_WEIGHT: usize = 20 * 1024;

/// How many users a message may mention.
pub const MAX_MENTIONS: usize = 50;

/// What one mention weighs, in bytes: a Matrix user id with what stands around it. Enough for any server name that people
/// use.
const MENTION_WEIGHT: usize = 128;

/// What kind of message it is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum MessageKind {
    /// Words.
    #[default]
    Text,
    /// Words of a program, which programs do not answer.
    Notice,
    /// What its author does, said of them.
    Emote,
    /// A picture.
    Image,
    /// A sound.
    Audio,
    /// A film.
    Video,
    /// Any other file.
    File,
}

impl MessageKind {
    /// As in the database and in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Notice => "notice",
            Self::Emote => "emote",
            Self::Image => "image",
            Self::Audio => "audio",
            Self::Video => "video",
            Self::File => "file",
        }
    }

    /// True for what shows a medium.
    pub const fn has_media(self) -> bool {
        matches!(self, Self::Image | Self::Audio | Self::Video | Self::File)
    }
}

/// What one revision of a message says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// The words, for whoever shows nothing richer.
    pub text: String,
    /// The same as HTML, sanitised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formatted: Option<String>,
    /// Whom it is meant to alert.
    #[serde(default, skip_serializing_if = "Mentions::is_empty")]
    pub mentions: Mentions,
    /// The medium that it shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<Media>,
}

/// Whom a message is meant to alert.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mentions {
    /// These users; what came from Matrix may also mention contacts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<UserId>,
    /// Everybody in the room.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub room: bool,
}

impl Mentions {
    /// True when it is meant to alert nobody in particular.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && !self.room
    }

    /// Those whom the message did not mention before.
    #[must_use]
    pub fn beyond(&self, before: &Self) -> Self {
        let users = self.users.iter().filter(|user| !before.users.contains(user)).copied().collect();
        Self { users, room: self.room && !before.room }
    }
}

/// A medium by reference: where it lies, and what its sender says of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Media {
    /// Where: `mxc://server/id`.
    pub url: String,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// Its type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mimetype: Option<String>,
    /// Its size, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Its width, in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u64>,
    /// Its height, in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u64>,
    /// How long it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// How to decrypt it (`EncryptedFile`), as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<serde_json::Value>,
}

impl Content {
    /// A text alone.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// True for more than a text.
    pub fn is_rich(&self) -> bool {
        self.formatted.is_some() || !self.mentions.is_empty() || self.media.is_some()
    }

    /// What it takes in an event: its texts in bytes as JSON, and so much for each user that it mentions.
    pub fn weight(&self) -> Result<usize, serde_json::Error> {
        let formatted = self.formatted.as_ref().map(serde_json::to_string).transpose()?.unwrap_or_default().len();
        Ok(serde_json::to_string(&self.text)?.len() + formatted + self.mentions.users.len() * MENTION_WEIGHT)
    }

    /// Sealed to its place; and whether as JSON.
    pub fn seal(&self, keys: &KeyRing, place: Place) -> Result<(Vec<u8>, bool), SealError> {
        if !self.is_rich() {
            return Ok((keys.seal(place, &self.text)?, false));
        }
        let json = serde_json::to_string(self).map_err(|_| SealError::Damaged)?;
        Ok((keys.seal_json(place, &json)?, true))
    }

    /// Opens what [`Content::seal`] sealed to this place.
    pub fn open(keys: &KeyRing, place: Place, body: &[u8], rich: bool) -> Result<Self, SealError> {
        if !rich {
            return Ok(Self::plain(keys.open(place, body)?));
        }
        serde_json::from_str(&keys.open_json(place, body)?).map_err(|_| SealError::Damaged)
    }
}

/// Writes one revision of a message, sealed.
pub(crate) async fn write_revision(
    conn: &mut PgConnection,
    turn: &Turn,
    keys: &KeyRing,
    message_id: MessageId,
    revision: i32,
    content: &Content,
) -> Result<(), ChatError> {
    let place = Place { conversation_id: turn.conversation_id, message_id, revision };
    let (body, rich) = content.seal(keys, place)?;
    sqlx::query!(
        r#"
        insert into message_revisions (conversation_id, message_id, revision, body, rich, created_at)
        values ($1, $2, $3, $4, $5, $6)
        "#,
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
        revision,
        body,
        rich,
        turn.at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use super::*;
    use crate::ids::ConversationId;

    fn place() -> Place {
        Place { conversation_id: ConversationId::generate(), message_id: MessageId::generate(), revision: 1 }
    }

    #[test]
    fn content_comes_back_as_it_was_sealed() {
        let keys = KeyRing::parse("k:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=").unwrap();
        let rich = Content {
            text: "hello".into(),
            formatted: Some("<b>hello</b>".into()),
            mentions: Mentions { users: vec![UserId::generate()], room: true },
            media: Some(Media {
                url: "mxc://example.org/abc".into(),
                filename: Some("cat.png".into()),
                mimetype: Some("image/png".into()),
                size: Some(u64::MAX),
                width: None,
                height: Some(3),
                duration_ms: None,
                file: Some(serde_json::json!({"v": "v2"})),
            }),
        };
        for (content, is_rich) in [(Content::plain("{\"text\": 1}"), false), (rich, true)] {
            let place = place();
            let (body, sealed_rich) = content.seal(&keys, place).unwrap();
            assert_eq!(sealed_rich, is_rich);
            assert_eq!(Content::open(&keys, place, &body, sealed_rich).unwrap(), content);
            assert!(Content::open(&keys, place, &body, !sealed_rich).is_err());
        }
    }

    #[test]
    fn only_those_are_newly_mentioned_who_were_not_before() {
        let (one, two) = (UserId::generate(), UserId::generate());
        let before = Mentions { users: vec![one], room: false };
        let now = Mentions { users: vec![one, two], room: true };
        assert_eq!(now.beyond(&before), Mentions { users: vec![two], room: true });
        assert!(before.beyond(&now).is_empty());
    }
}
