//! Small pieces of pages: ids, times, words of state. What comes from elsewhere is escaped here.

use std::fmt::{self, Display, Write as _};

use askama::filters::HtmlSafe;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339, macros::format_description};

/// Text that is HTML already: what comes from elsewhere was escaped on its way in.
#[derive(Debug, Clone)]
pub(super) struct Markup(pub(super) String);

impl Display for Markup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl HtmlSafe for Markup {}

/// Ids longer than this are shown by their beginning and end.
const SHOWN_WHOLE: usize = 20;
const HEAD: usize = 8;
const TAIL: usize = 4;

pub(super) fn escaped(text: impl Display) -> String {
    let mut out = String::new();
    for c in text.to_string().chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // What steers a terminal or turns a line around has no business here.
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

/// Plain text.
pub(super) fn text(text: impl Display) -> Markup {
    Markup(escaped(text))
}

/// No markup at all.
pub(super) fn nothing() -> Markup {
    Markup(String::new())
}

/// Nothing to say.
pub(super) fn dash() -> Markup {
    Markup("<span class=\"none\" aria-label=\"none\">–</span>".to_owned())
}

/// Text, or a dash.
pub(super) fn or_dash(value: Option<impl Display>) -> Markup {
    value.map_or_else(dash, text)
}

/// An id, by its beginning and its end: ids that are made at the same time begin alike. Whoever copies it has all of it.
pub(super) fn id(id: impl Display) -> Markup {
    let whole = escaped(&id);
    let plain = id.to_string();
    if plain.chars().count() <= SHOWN_WHOLE || !plain.is_ascii() {
        return Markup(format!("<code class=\"id\" title=\"{whole}\">{whole}</code>"));
    }
    let (head, rest) = plain.split_at(HEAD);
    let (middle, tail) = rest.split_at(rest.len() - TAIL);
    Markup(format!(
        "<code class=\"id\" title=\"{whole}\">{}<span class=\"m\">{}</span><span class=\"t\">{}</span></code>",
        escaped(head),
        escaped(middle),
        escaped(tail)
    ))
}

/// An id as a whole, where there is room.
pub(super) fn whole_id(id: impl Display) -> Markup {
    let id = escaped(id);
    Markup(format!("<code class=\"whole\">{id}</code>"))
}

/// A link to a page of ours.
pub(super) fn link(to: &str, shown: &Markup) -> Markup {
    Markup(format!("<a href=\"{}\">{}</a>", escaped(to), shown.0))
}

/// A link in words.
pub(super) fn word_link(to: &str, words: &str) -> Markup {
    link(to, &text(words))
}

/// Words in which ids lead to their pages.
pub(super) fn with_links(words: &str) -> Markup {
    let mut out = String::new();
    let of_id = |c: char| c.is_ascii_hexdigit() || c == '-';
    let mut rest = words;
    while !rest.is_empty() {
        let token = &rest[..rest.find(|c| !of_id(c)).unwrap_or(rest.len())];
        let (token, is_id) = match (token.len(), rest.find(of_id)) {
            (36, _) if token.parse::<uuid::Uuid>().is_ok() => (token, true),
            (0, next) => (&rest[..next.unwrap_or(rest.len())], false),
            _ => (token, false),
        };
        if is_id {
            out.push_str(&link(&format!("/console/search?q={token}"), &id(token)).0);
        } else {
            out.push_str(&escaped(token));
        }
        rest = &rest[token.len()..];
    }
    Markup(out)
}

/// What to see first.
pub(super) fn strong(text: impl Display) -> Markup {
    Markup(format!("<strong>{}</strong>", escaped(text)))
}

/// A code such as an error's.
pub(super) fn code(code: impl Display) -> Markup {
    Markup(format!("<code>{}</code>", escaped(code)))
}

/// A code that may be wrapped.
pub(super) fn long_code(code: impl Display) -> Markup {
    Markup(format!("<code class=\"long\">{}</code>", escaped(code)))
}

/// A code, or a dash.
pub(super) fn code_or_dash(value: Option<impl Display>) -> Markup {
    value.map_or_else(dash, code)
}

/// How much a state is to worry about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Busy,
    Warn,
    Bad,
    Quiet,
}

impl Tone {
    pub(super) const fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Busy => "busy",
            Self::Warn => "warn",
            Self::Bad => "bad",
            Self::Quiet => "quiet",
        }
    }
}

/// A state, as a word and a colour.
pub(super) fn chip(tone: Tone, words: impl Display) -> Markup {
    Markup(format!("<span class=\"chip {}\">{}</span>", tone.class(), escaped(words)))
}

/// A time, UTC, to the second. The script adds how long ago.
pub(super) fn at(at: OffsetDateTime) -> Markup {
    let at = at.to_offset(UtcOffset::UTC);
    let exact = at.format(&Rfc3339).unwrap_or_default();
    let shown = second(at);
    let (day, time) = shown.split_once(' ').unwrap_or(("", &shown));
    Markup(format!("<time datetime=\"{exact}\" title=\"{exact}\"><span class=\"day\">{day} </span>{time}</time>"))
}

/// A time to the second, as text.
pub(super) fn second(at: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    at.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}

pub(super) fn at_or(time: Option<OffsetDateTime>, without: &str) -> Markup {
    time.map_or_else(|| text(without), at)
}

/// So many seconds, in the two largest units.
pub(super) fn lasting(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match () {
        () if days > 0 => format!("{days} d {hours} h"),
        () if hours > 0 => format!("{hours} h {minutes} min"),
        () if minutes > 0 => format!("{minutes} min {} s", seconds % 60),
        () => format!("{seconds} s"),
    }
}

/// `1 lane`, `2 lanes`.
pub(super) fn count(n: impl TryInto<i128>, one: &str) -> String {
    let n = n.try_into().unwrap_or(i128::MAX);
    if n == 1 { format!("1 {one}") } else { format!("{} {one}s", grouped(n)) }
}

/// With commas between thousands.
pub(super) fn grouped(n: impl TryInto<i128>) -> String {
    let n = n.try_into().unwrap_or(i128::MAX);
    let digits = n.unsigned_abs().to_string();
    let mut out = String::new();
    if n < 0 {
        out.push('-');
    }
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            out.push(',');
        }
        let _ = write!(out, "{digit}");
    }
    out
}

/// What an operation does, for people.
pub(super) fn kind_in_words(kind: &str) -> String {
    match kind {
        "message" => "a message".to_owned(),
        "edit" => "an edit".to_owned(),
        "redact" => "a redaction".to_owned(),
        "react" => "a reaction".to_owned(),
        "invite" => "an invitation".to_owned(),
        "remove" => "a removal".to_owned(),
        other => match other.strip_prefix("call_") {
            Some(step) => format!("a call's {}", step.replace('_', " ")),
            None => other.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_elsewhere_is_text_and_nothing_else() {
        assert_eq!(escaped("<a href='x'>&\"\u{202e}\n"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\u{fffd}\u{fffd}");
        assert!(!link("/x\"><script>", &text("<b>")).0.contains("<script>"));
        assert!(!id("\"><script>alert(1)</script>aaaaaaaaaaaaaaa").0.contains("<script>"));
    }

    #[test]
    fn an_id_is_short_to_the_eye_and_whole_to_the_clipboard() {
        let shown = id("0197a3c4-1111-7222-8333-444455556666").0;
        let bare = shown.split('<').filter_map(|part| part.split_once('>')).map(|(_, text)| text).collect::<String>();
        assert_eq!(bare, "0197a3c4-1111-7222-8333-444455556666");
    }

    #[test]
    fn ids_within_words_lead_to_their_pages() {
        let id = "0197a3c4-1111-7222-8333-444455556666";
        let shown = with_links(&format!("a <b> is behind message {id} (dead-beef), {id}/{id}-1 – bad")).0;
        assert_eq!(shown.matches("href=\"/console/search?q=0197a3c4-1111").count(), 2, "{shown}");
        assert!(shown.starts_with("a &lt;b&gt; is behind message <a"), "{shown}");
        assert!(shown.ends_with("</a>/0197a3c4-1111-7222-8333-444455556666-1 – bad"), "{shown}");
        assert_eq!(with_links("").0, "");
    }

    #[test]
    fn numbers_and_times_are_read_at_a_glance() {
        assert_eq!((grouped(0), grouped(999), grouped(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
        assert_eq!(
            (lasting(41), lasting(200), lasting(18_720)),
            ("41 s".into(), "3 min 20 s".into(), "5 h 12 min".into())
        );
        assert_eq!((count(1, "lane"), count(10_000, "lane")), ("1 lane".into(), "10,000 lanes".into()));
    }
}
