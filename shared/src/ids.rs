//! A type for every id, so that no two of them can be mixed up.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_ids {
    ($($(#[$doc:meta])* $name:ident;)+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id: UUID v7, so that ids made later sort later.
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The bare UUID, for a statement's parameter.
            pub const fn as_uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )+};
}

uuid_ids! {
    /// A conversation.
    ConversationId;
    /// A message.
    MessageId;
    /// A reaction to a message.
    ReactionId;
    /// A user of ours: the subject of a token.
    UserId;
    /// An operation of the outbox: the transaction id of its send and the marker in its content.
    OutboxId;
    /// A lane: the conversation's own id for its chat, a call's id for that call's signalling.
    LaneId;
    /// A call.
    CallId;
    /// Something said to set up, change or end a call.
    SignalId;
    /// A worker process. Fresh at every start, so that a predecessor's leases are never taken for its own.
    WorkerId;
    /// Bulk work, or work on Matrix, that an operator asked for.
    TaskId;
}

impl CallId {
    /// The call from Matrix that events of a conversation name so. Whatever the name, and be it a UUID: it must lead to
    /// nothing else that has an id.
    pub fn of_matrix(conversation_id: ConversationId, matrix_call_id: &str) -> Self {
        Self(Uuid::new_v5(&conversation_id.0, matrix_call_id.as_bytes()))
    }
}

impl From<ConversationId> for LaneId {
    /// The chat lane of a conversation.
    fn from(id: ConversationId) -> Self {
        Self(id.0)
    }
}

impl From<CallId> for LaneId {
    /// The lane of a call.
    fn from(id: CallId) -> Self {
        Self(id.0)
    }
}

macro_rules! matrix_ids {
    ($($(#[$doc:meta])* $name:ident;)+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(String);

        impl $name {
            /// The id as Matrix writes it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<String> for $name {
            fn from(id: String) -> Self {
                Self(id)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )+};
}

matrix_ids! {
    /// A Matrix event, as its homeserver named it.
    EventId;
    /// A Matrix room. Opaque: since room version 12 it names no server.
    RoomId;
}

/// A Matrix user, `@localpart:server`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MatrixUserId(String);

impl MatrixUserId {
    /// The Matrix account of one of our users: `@nova-<32 hex digits>:<our server>`.
    pub fn of(user: UserId, server: &str) -> Self {
        Self(format!("@nova-{}:{server}", user.0.simple()))
    }

    /// The id as Matrix writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The user of ours whose account this is: `@nova-<uuid>` of our own server, with hyphens or without. The same name on
    /// another server is somebody else.
    pub fn nova_user(&self, our_server: &str) -> Option<Result<UserId, NotANovaUser>> {
        let (name, server) = self.0.strip_prefix('@')?.split_once(':')?;
        let id = name.strip_prefix("nova-").filter(|_| server == our_server)?;
        let plain = id.len() == 32 || id.len() == 36;
        Some(Uuid::try_parse(id).ok().filter(|_| plain).map(UserId).ok_or(NotANovaUser))
    }

    /// The id under which somebody who is no user of ours appears: the same wherever they do.
    pub fn contact_id(&self) -> UserId {
        UserId(Uuid::new_v5(&CONTACTS, self.0.as_bytes()))
    }

    /// The server's name: all that follows the first colon.
    pub fn server(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, server)| server)
    }
}

/// The namespace of the ids of contacts.
const CONTACTS: Uuid = Uuid::from_u128(0x6c1d_38a2_94f0_4e7b_b1a5_2f6f_0d3e_7c55);

/// A name of our own namespace that holds no user id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must look like @nova-<uuid>:<our server>")]
pub struct NotANovaUser;

/// Why a text is no Matrix user id.
#[derive(Debug, thiserror::Error)]
#[error("must look like @name:server")]
pub struct NotAMatrixUserId;

impl TryFrom<String> for MatrixUserId {
    type Error = NotAMatrixUserId;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MatrixUserId> for String {
    fn from(id: MatrixUserId) -> Self {
        id.0
    }
}

impl FromStr for MatrixUserId {
    type Err = NotAMatrixUserId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, server) = text.strip_prefix('@').and_then(|rest| rest.split_once(':')).ok_or(NotAMatrixUserId)?;
        let printable = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_graphic());
        if printable(name) && printable(server) { Ok(Self(text.to_owned())) } else { Err(NotAMatrixUserId) }
    }
}

impl fmt::Display for MatrixUserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn our_users_are_written_with_plain_hex() -> Result<(), uuid::Error> {
        let user: UserId = "550e8400-e29b-41d4-a716-446655440000".parse()?;
        let matrix = MatrixUserId::of(user, "nova.test");
        assert_eq!(matrix.as_str(), "@nova-550e8400e29b41d4a716446655440000:nova.test");
        assert_eq!(matrix.server(), "nova.test");
        Ok(())
    }

    #[test]
    fn only_names_of_our_own_server_are_users_of_ours() {
        let user: UserId = "550e8400-e29b-41d4-a716-446655440000".parse().unwrap();
        let read = |text: &str| text.parse::<MatrixUserId>().unwrap().nova_user("nova.test");
        assert_eq!(read("@nova-550e8400e29b41d4a716446655440000:nova.test"), Some(Ok(user)));
        assert_eq!(read("@nova-550e8400-e29b-41d4-a716-446655440000:nova.test"), Some(Ok(user)));
        for stranger in ["@nova-550e8400e29b41d4a716446655440000:evil.example", "@bob:nova.test", "@nova:nova.test"] {
            assert_eq!(read(stranger), None, "{stranger}");
        }
        for wrong in ["@nova-:nova.test", "@nova-550e8400:nova.test", "@nova-service:nova.test"] {
            assert_eq!(read(wrong), Some(Err(NotANovaUser)), "{wrong}");
        }
    }

    #[test]
    fn a_call_from_matrix_has_an_id_of_its_own_in_each_conversation_whatever_its_name() {
        let (here, there) = (ConversationId::generate(), ConversationId::generate());
        assert_ne!(CallId::of_matrix(here, &here.to_string()).as_uuid(), here.as_uuid());
        assert_eq!(CallId::of_matrix(here, "1234.abc"), CallId::of_matrix(here, "1234.abc"));
        assert_ne!(CallId::of_matrix(here, "1234.abc"), CallId::of_matrix(there, "1234.abc"));
    }

    #[test]
    fn a_server_name_may_have_a_port() {
        let user: Result<MatrixUserId, _> = "@a:host:8448".parse();
        assert!(user.is_ok_and(|user| user.server() == "host:8448"));
        for wrong in ["", "a:b", "@a", "@:b", "@a:", "@a b:c"] {
            assert!(wrong.parse::<MatrixUserId>().is_err(), "{wrong:?}");
        }
    }
}
