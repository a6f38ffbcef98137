//! Sealing: message text is stored as XChaCha20-Poly1305 ciphertext, bound to the row that it belongs to.
//!
//! A sealed text is `1 | key id's length | key id | nonce (24 bytes) | ciphertext and tag`. The ring holds the newest key
//! first: it seals, all of them open. A key is retired by putting a newer one before it; what it sealed stays readable
//! as long as it stays in the ring. What is JSON rather than a text begins with 2, and opens as nothing else.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Generate as _, Payload},
};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::ids::{ConversationId, MessageId};

/// A text. A release that knows no other format takes anything else for damaged, and sends nothing of it.
const TEXT: u8 = 1;
/// JSON.
const STRUCTURE: u8 = 2;
const NONCE_LEN: usize = 24;
const MAX_KEY_ID_LEN: usize = 32;

/// The keys that seal content, newest first.
#[derive(Clone)]
pub struct KeyRing {
    keys: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    id: String,
    cipher: XChaCha20Poly1305,
    /// Keys the fingerprints of requests; derived, so that a fingerprint says nothing about what the cipher sealed.
    fingerprints: Hmac<Sha256>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.id)).finish()
    }
}

/// Why a text is no key ring.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyRingError {
    /// No key at all.
    #[error("must hold at least one key, as <key id>:<base64 of 32 bytes>, newest first, separated by commas")]
    Empty,
    /// An entry without a usable id.
    #[error("key {0} needs an id of 1 to {MAX_KEY_ID_LEN} letters, digits, - or _ before its colon")]
    BadId(usize),
    /// An entry whose key is not 32 bytes of base64.
    #[error("key {0:?} must be the base64 of exactly 32 bytes (for example from `openssl rand -base64 32`)")]
    BadKey(String),
    /// Two entries of one id.
    #[error("key id {0:?} stands twice")]
    Twice(String),
}

/// Why a sealed text could not be opened, or a text not be sealed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SealError {
    /// The key that sealed it is not in the ring.
    #[error("content key {0:?} is not in CONTENT_KEYS")]
    UnknownKey(String),
    /// Not a sealed text, altered, or another row's.
    #[error("sealed content is damaged or belongs to another row")]
    Damaged,
}

/// Which revision of which message a sealed text belongs to. It opens nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The message.
    pub message_id: MessageId,
    /// The revision, from 1.
    pub revision: i32,
}

impl Place {
    fn bytes(&self) -> [u8; 36] {
        let mut bytes = [0; 36];
        bytes[..16].copy_from_slice(self.conversation_id.as_uuid().as_bytes());
        bytes[16..32].copy_from_slice(self.message_id.as_uuid().as_bytes());
        bytes[32..].copy_from_slice(&self.revision.to_be_bytes());
        bytes
    }
}

/// What a sealed text is bound to: its place, and what it is unless that is a text.
fn bound(format: u8, place: Place) -> Vec<u8> {
    let mut bytes = place.bytes().to_vec();
    bytes.extend((format != TEXT).then_some(format));
    bytes
}

impl KeyRing {
    /// Reads `<key id>:<base64 of 32 bytes>[,…]`, newest first.
    pub fn parse(text: &str) -> Result<Self, KeyRingError> {
        let mut keys: Vec<Key> = Vec::new();
        for (n, entry) in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).enumerate() {
            let (id, key) = entry.split_once(':').ok_or(KeyRingError::BadId(n + 1))?;
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if id.is_empty() || id.len() > MAX_KEY_ID_LEN || !id.chars().all(plain) {
                return Err(KeyRingError::BadId(n + 1));
            }
            if keys.iter().any(|known| known.id == id) {
                return Err(KeyRingError::Twice(id.to_owned()));
            }
            let bad = || KeyRingError::BadKey(id.to_owned());
            let bytes = BASE64.decode(key.trim()).map_err(|_| bad())?;
            let cipher = XChaCha20Poly1305::new_from_slice(&bytes).map_err(|_| bad())?;
            let mut derived = Hmac::<Sha256>::new_from_slice(&bytes).map_err(|_| bad())?;
            derived.update(b"matrix-outbox request fingerprints");
            let fingerprints = Hmac::new_from_slice(&derived.finalize().into_bytes()).map_err(|_| bad())?;
            keys.push(Key { id: id.to_owned(), cipher, fingerprints });
        }
        if keys.is_empty() { Err(KeyRingError::Empty) } else { Ok(Self { keys }) }
    }

    /// Seals a text with the newest key.
    pub fn seal(&self, place: Place, text: &str) -> Result<Vec<u8>, SealError> {
        self.seal_as(TEXT, place, text)
    }

    /// Seals JSON with the newest key.
    pub fn seal_json(&self, place: Place, json: &str) -> Result<Vec<u8>, SealError> {
        self.seal_as(STRUCTURE, place, json)
    }

    fn seal_as(&self, format: u8, place: Place, text: &str) -> Result<Vec<u8>, SealError> {
        let Key { id, cipher, .. } = self.keys.first().ok_or(SealError::Damaged)?;
        let nonce = XNonce::generate();
        let payload = Payload { msg: text.as_bytes(), aad: &bound(format, place) };
        let sealed = cipher.encrypt(&nonce, payload).map_err(|_| SealError::Damaged)?;
        let id_len = u8::try_from(id.len()).map_err(|_| SealError::Damaged)?;
        let mut bytes = Vec::with_capacity(2 + id.len() + NONCE_LEN + sealed.len());
        bytes.extend([format, id_len]);
        bytes.extend(id.as_bytes());
        bytes.extend(nonce.as_slice());
        bytes.extend(sealed);
        Ok(bytes)
    }

    /// Opens what [`KeyRing::seal`] sealed for the same place.
    pub fn open(&self, place: Place, bytes: &[u8]) -> Result<String, SealError> {
        self.open_as(TEXT, place, bytes)
    }

    /// Opens what [`KeyRing::seal_json`] sealed for the same place.
    pub fn open_json(&self, place: Place, bytes: &[u8]) -> Result<String, SealError> {
        self.open_as(STRUCTURE, place, bytes)
    }

    fn open_as(&self, format: u8, place: Place, bytes: &[u8]) -> Result<String, SealError> {
        let [found, id_len, rest @ ..] = bytes else { return Err(SealError::Damaged) };
        if *found != format {
            return Err(SealError::Damaged);
        }
        let (id, rest) = rest.split_at_checked(usize::from(*id_len)).ok_or(SealError::Damaged)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN).ok_or(SealError::Damaged)?;
        let id = std::str::from_utf8(id).map_err(|_| SealError::Damaged)?;
        let nonce = XNonce::try_from(nonce).map_err(|_| SealError::Damaged)?;
        let key = self.keys.iter().find(|key| key.id == id).ok_or_else(|| SealError::UnknownKey(id.to_owned()))?;
        let payload = Payload { msg: sealed, aad: &bound(format, place) };
        let text = key.cipher.decrypt(&nonce, payload).map_err(|_| SealError::Damaged)?;
        String::from_utf8(text).map_err(|_| SealError::Damaged)
    }
}

impl KeyRing {
    /// A fingerprint of a request under the newest key: tells two requests apart, and says nothing about either.
    pub fn fingerprint(&self, request: &[u8]) -> Result<Vec<u8>, SealError> {
        let key = self.keys.first().ok_or(SealError::Damaged)?;
        let id_len = u8::try_from(key.id.len()).map_err(|_| SealError::Damaged)?;
        let mut bytes = vec![id_len];
        bytes.extend(key.id.as_bytes());
        bytes.extend(key.fingerprints.clone().chain_update(request).finalize().into_bytes());
        Ok(bytes)
    }

    /// Whether a fingerprint, perhaps made with an older key, is that of a request.
    pub fn is_fingerprint_of(&self, fingerprint: &[u8], request: &[u8]) -> bool {
        let Some((id_len, rest)) = fingerprint.split_first() else { return false };
        let Some((id, mac)) = rest.split_at_checked(usize::from(*id_len)) else { return false };
        self.keys
            .iter()
            .find(|key| key.id.as_bytes() == id)
            .is_some_and(|key| key.fingerprints.clone().chain_update(request).verify_slice(mac).is_ok())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use super::*;

    const OLD: &str = "old:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const NEW: &str = "new:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

    fn place(revision: i32) -> Place {
        Place { conversation_id: ConversationId::generate(), message_id: MessageId::generate(), revision }
    }

    #[test]
    fn a_rotated_key_still_opens() {
        let place = place(1);
        let sealed = KeyRing::parse(OLD).unwrap().seal(place, "hello").unwrap();
        let rotated = KeyRing::parse(&format!("{NEW},{OLD}")).unwrap();
        assert_eq!(rotated.open(place, &sealed).unwrap(), "hello");
        let sealed = rotated.seal(place, "hello").unwrap();
        assert_eq!(KeyRing::parse(OLD).unwrap().open(place, &sealed), Err(SealError::UnknownKey("new".into())));
    }

    #[test]
    fn a_sealed_text_opens_only_in_its_place_and_unaltered() {
        let ring = KeyRing::parse(NEW).unwrap();
        let here = place(1);
        let mut sealed = ring.seal(here, "hello").unwrap();
        assert_eq!(ring.open(Place { revision: 2, ..here }, &sealed), Err(SealError::Damaged));
        assert_eq!(ring.open(place(1), &sealed), Err(SealError::Damaged));
        for n in 0..sealed.len() {
            assert!(ring.open(here, &sealed[..n]).is_err());
        }
        *sealed.last_mut().unwrap() ^= 1;
        assert_eq!(ring.open(here, &sealed), Err(SealError::Damaged));
    }

    #[test]
    fn a_text_never_opens_as_json_nor_json_as_a_text() {
        let ring = KeyRing::parse(NEW).unwrap();
        let here = place(1);
        let (mut text, mut json) = (ring.seal(here, "{}").unwrap(), ring.seal_json(here, "{}").unwrap());
        assert_eq!(ring.open_json(here, &json).unwrap(), "{}");
        assert!(ring.open_json(here, &text).is_err() && ring.open(here, &json).is_err());
        (text[0], json[0]) = (STRUCTURE, TEXT);
        assert!(ring.open_json(here, &text).is_err() && ring.open(here, &json).is_err());
    }

    #[test]
    fn a_fingerprint_tells_requests_apart_and_outlives_a_rotation() {
        let old = KeyRing::parse(OLD).unwrap();
        let rotated = KeyRing::parse(&format!("{NEW},{OLD}")).unwrap();
        let fingerprint = old.fingerprint(b"request").unwrap();
        assert!(rotated.is_fingerprint_of(&fingerprint, b"request"));
        assert!(!rotated.is_fingerprint_of(&fingerprint, b"another"));
        assert!(!KeyRing::parse(NEW).unwrap().is_fingerprint_of(&fingerprint, b"request"));
        assert!(!rotated.is_fingerprint_of(b"", b"request"));
    }

    #[test]
    fn equal_texts_are_sealed_differently() {
        let ring = KeyRing::parse(NEW).unwrap();
        let here = place(1);
        assert_ne!(ring.seal(here, "hello").unwrap(), ring.seal(here, "hello").unwrap());
    }

    #[test]
    fn a_wrong_ring_says_what_is_wrong_and_never_shows_a_key() {
        assert_eq!(KeyRing::parse(" ").err(), Some(KeyRingError::Empty));
        assert_eq!(KeyRing::parse("c2hvcnQ=").err(), Some(KeyRingError::BadId(1)));
        assert_eq!(KeyRing::parse("a:c2hvcnQ=").err(), Some(KeyRingError::BadKey("a".into())));
        assert_eq!(KeyRing::parse(&format!("{NEW},{NEW}")).err(), Some(KeyRingError::Twice("new".into())));
        let shown = format!("{:?}", KeyRing::parse(NEW).unwrap());
        assert_eq!(shown, "[\"new\"]");
    }
}
