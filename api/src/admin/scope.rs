//! What a token has to allow, and who acts.

use std::{collections::HashSet, sync::Arc};

use axum::{
    extract::{FromRequestParts, Request, State as Extract},
    http::request::Parts,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use shared::{ids::UserId, token::Identity};

use crate::{State, auth, problem::ApiError};

/// What a route asks of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// To look: `outbox:read`.
    Read,
    /// To act, and to look: `outbox:operate`.
    Operate,
}

impl Scope {
    /// As in the claim `scope` of a token.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "outbox:read",
            Self::Operate => "outbox:operate",
        }
    }

    /// Whether the words of a token allow it. Who may act may look.
    pub(crate) fn is_in(self, granted: &HashSet<String>) -> bool {
        let granted = |scope: Self| granted.contains(scope.as_str());
        granted(Self::Operate) || (self == Self::Read && granted(Self::Read))
    }
}

/// Who looks and acts: the trail has the `sub` of the token.
#[derive(Debug, Clone)]
pub(crate) struct Operator {
    pub(crate) user_id: UserId,
    pub(crate) may_operate: bool,
}

impl Operator {
    /// Whom a token speaks for, if it allows this.
    pub(crate) fn of(identity: &Identity, scope: Scope) -> Result<Self, ApiError> {
        if !scope.is_in(&identity.scope) {
            return Err(ApiError::MissingScope(scope));
        }
        Ok(Self { user_id: identity.user_id, may_operate: Scope::Operate.is_in(&identity.scope) })
    }

    /// As the trail names who acted.
    pub(crate) fn name(&self) -> String {
        self.user_id.to_string()
    }
}

impl FromRequestParts<Arc<State>> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<State>) -> Result<Self, Self::Rejection> {
        // Every route of operators has its guard, which puts this here.
        parts.extensions.get().cloned().ok_or_else(|| ApiError::Unauthorized("there is no token".to_owned()))
    }
}

/// Lets pass who has the scope of a route.
pub(super) async fn guard(
    Extract((state, scope)): Extract<(Arc<State>, Scope)>,
    mut request: Request,
    next: Next,
) -> Response {
    let operator = auth::identify(&state, request.headers()).and_then(|identity| Operator::of(&identity, scope));
    match operator {
        Ok(operator) => {
            request.extensions_mut().insert(operator);
            next.run(request).await
        }
        Err(refused) => refused.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_act_may_look_and_not_the_other_way_round() {
        let granted = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<HashSet<_>>();
        for (words, read, operate) in [
            (&[][..], false, false),
            (&["outbox:read"], true, false),
            (&["outbox:operate"], true, true),
            (&["outbox", "outbox:reader", "OUTBOX:READ"], false, false),
        ] {
            let granted = granted(words);
            assert_eq!((Scope::Read.is_in(&granted), Scope::Operate.is_in(&granted)), (read, operate), "{words:?}");
        }
    }
}
