//! Who is calling: JSON Web Tokens signed with HS256.

use std::collections::HashSet;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use crate::ids::UserId;

/// How far the clocks of the issuer and of this machine may be apart, in seconds.
const LEEWAY_SECONDS: u64 = 5;

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: Option<String>,
    exp: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
}

/// Whom a token speaks for.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The user: `sub`.
    pub user_id: UserId,
    /// What the token allows beside a user's own: the words of `scope`.
    pub scope: HashSet<String>,
    /// When it is no longer accepted, in seconds since 1970.
    pub good_until: i64,
}

/// Why a token is not accepted, in words for its bearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Past its `exp`.
    #[error("the token has expired")]
    Expired,
    /// Before its `nbf`.
    #[error("the token is not valid yet")]
    Early,
    /// Signed by someone else.
    #[error("the token's signature is wrong")]
    Signature,
    /// Signed in another way.
    #[error("the token is not signed with HS256")]
    Algorithm,
    /// Without `sub` or `exp`.
    #[error("the token lacks a claim")]
    Claim,
    /// Whose `sub` is no user.
    #[error("the token's `sub` is not a UUID")]
    Subject,
    /// Not a token.
    #[error("the token cannot be read")]
    Unreadable,
}

/// Reads tokens.
pub struct Tokens {
    key: DecodingKey,
    validation: Validation,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    /// Reads what the secret signed.
    pub fn new(secret: &SecretString) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.required_spec_claims = HashSet::from(["exp".to_owned(), "sub".to_owned()]);
        validation.validate_nbf = true;
        // Whom a token is meant for is not ours to judge: the secret says who may issue one.
        validation.validate_aud = false;
        validation.leeway = LEEWAY_SECONDS;
        Self { key: DecodingKey::from_secret(secret.expose_secret().as_bytes()), validation }
    }

    /// Whom a token speaks for.
    pub fn identify(&self, token: &str) -> Result<Identity, TokenError> {
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| match error.kind() {
                ErrorKind::ExpiredSignature => TokenError::Expired,
                ErrorKind::ImmatureSignature => TokenError::Early,
                ErrorKind::InvalidSignature => TokenError::Signature,
                ErrorKind::MissingRequiredClaim(_) => TokenError::Claim,
                ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => TokenError::Algorithm,
                _ => TokenError::Unreadable,
            })?
            .claims;
        let user_id = claims.sub.ok_or(TokenError::Claim)?.parse().map_err(|_| TokenError::Subject)?;
        let scope = claims.scope.iter().flat_map(|scope| scope.split_whitespace()).map(str::to_owned).collect();
        let good_until = claims.exp.ok_or(TokenError::Claim)?.saturating_add_unsigned(LEEWAY_SECONDS);
        Ok(Identity { user_id, scope, good_until })
    }
}

/// Signs a token, as an issuer does. `expires_at` is in seconds since 1970; `scope` is words separated by spaces.
pub fn sign(
    secret: &SecretString,
    user_id: UserId,
    expires_at: i64,
    scope: Option<&str>,
) -> Result<String, jsonwebtoken::errors::Error> {
    let claims = Claims { sub: Some(user_id.to_string()), exp: Some(expires_at), scope: scope.map(str::to_owned) };
    let key = EncodingKey::from_secret(secret.expose_secret().as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &str = "a secret that is long enough for HS256";
    const USER: &str = "550e8400-e29b-41d4-a716-446655440000";

    fn identify(claims: &Value) -> Result<Identity, TokenError> {
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).unwrap();
        Tokens::new(&SecretString::from(SECRET)).identify(&token)
    }

    #[test]
    fn a_refused_token_says_why() {
        let now = crate::database::unix_time();
        let why = |claims: Value| identify(&claims).map(|_| ()).unwrap_err();
        assert_eq!(why(json!({"sub": USER, "exp": now - 60})), TokenError::Expired);
        assert_eq!(why(json!({"sub": USER, "exp": now + 60, "nbf": now + 30})), TokenError::Early);
        assert_eq!(why(json!({"exp": now + 60})), TokenError::Claim);
        assert_eq!(why(json!({"sub": USER})), TokenError::Claim);
        assert_eq!(why(json!({"sub": "ada", "exp": now + 60})), TokenError::Subject);
    }

    #[test]
    fn an_audience_and_other_claims_are_no_reason_to_refuse_and_a_scope_is_words() {
        let exp = crate::database::unix_time() + 60;
        let claims = json!({"sub": USER, "exp": exp, "aud": "nova", "iss": "x", "scope": "outbox:read  other"});
        let identity = identify(&claims).unwrap();
        assert_eq!(identity.user_id.to_string(), USER);
        assert_eq!(identity.scope, HashSet::from(["outbox:read".to_owned(), "other".to_owned()]));
    }
}
