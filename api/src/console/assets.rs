//! The one style sheet, the one script and the icon: part of the program. The first two are named by their content, so
//! that browsers may keep them.

use std::{fmt::Write as _, sync::LazyLock};

use axum::{
    extract::Path,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use sha2::{Digest as _, Sha256};

use crate::problem::ApiError;

const CSS: &str = include_str!("assets/console.css");
const JS: &str = include_str!("assets/console.js");
const ICON: &str = include_str!("assets/icon.svg");

static CSS_NAME: LazyLock<String> = LazyLock::new(|| named("console", CSS, "css"));
static JS_NAME: LazyLock<String> = LazyLock::new(|| named("console", JS, "js"));

/// With the beginning of its hash: another content is another name.
fn named(stem: &str, content: &str, ending: &str) -> String {
    let hash = Sha256::digest(content.as_bytes());
    let hash = hash.iter().take(6).fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    format!("{stem}.{hash}.{ending}")
}

/// The path of the style sheet.
pub(super) fn css() -> String {
    format!("/console/assets/{}", *CSS_NAME)
}

/// The path of the script.
pub(super) fn js() -> String {
    format!("/console/assets/{}", *JS_NAME)
}

pub(super) async fn asset(Path(name): Path<String>) -> Result<Response, ApiError> {
    let for_good = "public, max-age=31536000, immutable";
    let (kind, content, kept) = match name.as_str() {
        name if name == *CSS_NAME => ("text/css; charset=utf-8", CSS, for_good),
        name if name == *JS_NAME => ("text/javascript; charset=utf-8", JS, for_good),
        "icon.svg" => ("image/svg+xml", ICON, "public, max-age=86400"),
        _ => return Err(ApiError::NotFound("file")),
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static(kept)),
    ];
    Ok((StatusCode::OK, headers, content).into_response())
}
