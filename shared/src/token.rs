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
    sub: String,
    exp: i64,
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
}

/// Why a token is not accepted, in words for its bearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Past its `exp`.
    #[error("the token has expired")]
    Expired,
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
        validation.leeway = LEEWAY_SECONDS;
        Self { key: DecodingKey::from_secret(secret.expose_secret().as_bytes()), validation }
    }

    /// Whom a token speaks for.
    pub fn identify(&self, token: &str) -> Result<Identity, TokenError> {
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| match error.kind() {
                ErrorKind::ExpiredSignature => TokenError::Expired,
                ErrorKind::InvalidSignature => TokenError::Signature,
                ErrorKind::MissingRequiredClaim(_) => TokenError::Claim,
                ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => TokenError::Algorithm,
                _ => TokenError::Unreadable,
            })?
            .claims;
        let user_id = claims.sub.parse().map_err(|_| TokenError::Subject)?;
        let scope = claims.scope.iter().flat_map(|scope| scope.split_whitespace()).map(str::to_owned).collect();
        Ok(Identity { user_id, scope })
    }
}

/// Signs a token, as an issuer does. `expires_at` is in seconds since 1970; `scope` is words separated by spaces.
pub fn sign(
    secret: &SecretString,
    user_id: UserId,
    expires_at: i64,
    scope: Option<&str>,
) -> Result<String, jsonwebtoken::errors::Error> {
    let claims = Claims { sub: user_id.to_string(), exp: expires_at, scope: scope.map(str::to_owned) };
    let key = EncodingKey::from_secret(secret.expose_secret().as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)
}
