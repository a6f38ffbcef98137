//! A browser without script: it keeps a cookie, sends forms, and follows no link by itself.

use std::{collections::BTreeMap, fmt::Write as _};

use shared::testing::nova::{NovaUser, Program};

/// Such a browser.
#[derive(Debug, Clone)]
pub(crate) struct Browser {
    base: String,
    http: reqwest::Client,
    pub(crate) cookie: Option<String>,
}

/// A page, or where to go instead.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) html: String,
}

impl Page {
    /// Where it leads.
    pub(crate) fn location(&self) -> &str {
        self.headers.get("location").map_or("", String::as_str)
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}\n{}", self.location(), self.html);
        self
    }

    #[track_caller]
    pub(crate) fn says(&self, words: &str) {
        assert!(self.html.contains(words), "no {words:?} in:\n{}", self.html);
    }

    #[track_caller]
    pub(crate) fn is_silent_on(&self, words: &str) {
        assert!(!self.html.contains(words), "{words:?} in:\n{}", self.html);
    }

    /// The value of a hidden field of its last form.
    pub(crate) fn hidden(&self, name: &str) -> String {
        let field = format!("name=\"{name}\" value=\"");
        let (_, rest) = self.html.rsplit_once(&field).unwrap_or_else(|| panic!("no {name} in:\n{}", self.html));
        rest.split('"').next().unwrap().to_owned()
    }
}

impl Browser {
    /// The same, where nobody has signed in.
    pub(crate) fn signed_out(&self) -> Self {
        Self { cookie: None, ..self.clone() }
    }

    pub(crate) fn new(api: &Program) -> Self {
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap();
        Self { base: api.url(), http, cookie: None }
    }

    /// A browser in which somebody has signed in.
    pub(crate) async fn signed_in(api: &Program, user: &NovaUser) -> Self {
        let mut browser = Self::new(api);
        browser.sign_in(user.token()).await.expect(303);
        browser
    }

    /// Pastes a token.
    pub(crate) async fn sign_in(&mut self, token: &str) -> Page {
        let page = self.post("/console/sign-in", &[("token", token)]).await;
        if let Some(cookie) = page.headers.get("set-cookie") {
            self.cookie = cookie.split(';').next().map(str::to_owned);
        }
        page
    }

    pub(crate) async fn get(&self, path: &str) -> Page {
        self.send(self.http.get(format!("{}{path}", self.base))).await
    }

    pub(crate) async fn get_from(&self, path: &str, headers: &[(&str, &str)]) -> Page {
        let request = self.http.get(format!("{}{path}", self.base));
        self.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
    }

    pub(crate) async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Page {
        self.post_from(path, &[], fields).await
    }

    pub(crate) async fn post_from(&self, path: &str, headers: &[(&str, &str)], fields: &[(&str, &str)]) -> Page {
        let body = url_encoded(fields);
        let request = self.http.post(format!("{}{path}", self.base)).body(body);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        self.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
    }

    /// Fills in the form of a page, with the hidden fields that it has, and sends it.
    pub(crate) async fn fill_in(&self, page: &Page, fields: &[(&str, &str)]) -> Page {
        let (_, form) = page.html.split_once("id=\"confirm\"").unwrap_or_else(|| panic!("no form:\n{}", page.html));
        let (head, _) = page.html.split_once("id=\"confirm\"").unwrap();
        let (_, action) = head.rsplit_once("action=\"").unwrap();
        let action = action.split('"').next().unwrap().to_owned();
        let form = form.split("</form>").next().unwrap();
        let mut all: Vec<(String, String)> = Vec::new();
        for input in form.split("<input type=\"hidden\" name=\"").skip(1) {
            let (name, rest) = input.split_once("\" value=\"").unwrap();
            all.push((name.to_owned(), unescaped(rest.split('"').next().unwrap())));
        }
        all.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let all: Vec<_> = all.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.post(&action, &all).await
    }

    async fn send(&self, mut request: reqwest::RequestBuilder) -> Page {
        if let Some(cookie) = &self.cookie {
            request = request.header("cookie", format!("other=1; {cookie}"));
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap_or_default().to_owned()))
            .collect();
        Page { status, headers, html: response.text().await.unwrap() }
    }
}

fn unescaped(text: &str) -> String {
    let named = [("&#60;", "<"), ("&#62;", ">"), ("&#34;", "\""), ("&#39;", "'"), ("&#38;", "&")];
    named.iter().fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

fn url_encoded(fields: &[(&str, &str)]) -> String {
    let encode = |text: &str| {
        text.bytes().fold(String::new(), |mut out, byte| {
            if byte.is_ascii_alphanumeric() {
                out.push(char::from(byte));
            } else {
                let _ = write!(out, "%{byte:02X}");
            }
            out
        })
    };
    let pairs = fields.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value)));
    pairs.collect::<Vec<_>>().join("&")
}
