//! Formatted text: what of somebody's HTML may be stored, sent and shown.
//!
//! What comes out holds the elements and attributes that Matrix suggests to clients (`m.room.message`, "msgtypes") and
//! nothing else: no scripts, no styles, no event handlers, links of harmless schemes only, images of the homeserver's
//! media (`mxc:`) only, so that nobody's address is told to a stranger's server by looking at a message. The quote of the
//! answered message that old clients put before a reply (`mx-reply`) goes too. Neither time nor memory grows beyond what
//! an ordinary message takes: HTML that is built to exhaust a parser is dropped.

use ruma_html::{Html, NodeRef, SanitizerConfig};

/// The longest HTML that is looked at, in bytes: as much as a Matrix event can hold.
const MAX_BYTES: usize = 64 * 1024;

/// How many tags may stand in it. A parser copies what is left open into each paragraph that follows: it may make the
/// square of this number of elements.
const MAX_TAGS: usize = 1_000;

/// How deep its elements may be nested: Matrix' own limit.
const MAX_DEPTH: usize = 100;

/// Elements whose content is no text for people.
const WITHOUT_CONTENT: [&str; 10] =
    ["head", "iframe", "noembed", "noframes", "noscript", "script", "style", "template", "textarea", "title"];

/// What a link may lead to.
const LINKS: [&str; 6] = ["https:", "http:", "ftp:", "mailto:", "magnet:", "matrix:"];

/// The HTML with all taken out that must not be there. Empty when nothing is left, or when it is built to exhaust a
/// parser.
pub fn sanitize(html: &str) -> String {
    if html.len() > MAX_BYTES || is_bomb(html) {
        return String::new();
    }
    let config = SanitizerConfig::strict()
        .remove_reply_fallback()
        .remove_elements(WITHOUT_CONTENT)
        // Checked below: the crate looks at the scheme of a link only where no other attribute stands before it
        // (ruma-html 0.8.0), and drops the element with it.
        .allow_schemes([], ruma_html::ListBehavior::Override);
    let parsed = Html::parse(html);
    for node in parsed.children() {
        check_addresses(&node, 0);
    }
    parsed.sanitize_with(&config);
    parsed.to_string()
}

/// More tags, or elements left open, than a message has. Counted without building anything.
fn is_bomb(html: &str) -> bool {
    let (mut tags, mut depth) = (0, 0_usize);
    for rest in html.split('<').skip(1) {
        tags += 1;
        match rest.as_bytes().first() {
            Some(b'/') => depth = depth.saturating_sub(1),
            Some(first) if first.is_ascii_alphabetic() && !is_void(rest) => depth += 1,
            _ => {}
        }
        if tags > MAX_TAGS || depth > MAX_DEPTH {
            return true;
        }
    }
    false
}

/// Whether it begins with the name of an element that has no end, or whose end is often left out.
fn is_void(tag: &str) -> bool {
    let name = tag.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    ["br", "hr", "img", "li", "p", "td", "th", "tr"].iter().any(|void| void.eq_ignore_ascii_case(name))
}

/// Takes addresses away that nobody may be led to.
fn check_addresses(node: &NodeRef, depth: usize) {
    // What is deeper is removed as a whole.
    if depth > MAX_DEPTH {
        return;
    }
    if let Some(element) = node.as_element() {
        let is_image = &*element.name.local == "img";
        element.attrs.borrow_mut().retain(|attribute| match &*attribute.name.local {
            "href" => has_scheme(&attribute.value, &LINKS),
            "src" => is_image && has_scheme(&attribute.value, &["mxc:"]),
            _ => true,
        });
    }
    for child in node.children() {
        check_addresses(&child, depth + 1);
    }
}

fn has_scheme(address: &str, schemes: &[&str]) -> bool {
    schemes.iter().any(|scheme| address.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::sanitize;

    #[test]
    fn what_matrix_suggests_is_kept() {
        for html in [
            "<b>bold</b> <em>and</em> <del>gone</del><br>",
            "<p>a &lt; b &amp; c</p>",
            r#"<a href="https://example.org/?a=1&amp;b=2">there</a>"#,
            r##"<span data-mx-color="#ff0000">red</span>"##,
            r#"<pre><code class="language-rust">fn main() {}</code></pre>"#,
            r#"<img alt="cat" height="2" src="mxc://example.org/abc" width="2">"#,
            "<ul><li>one</li><li>two</li></ul>",
            "<blockquote>said</blockquote>",
        ] {
            assert_eq!(sanitize(html), html);
        }
    }

    #[test]
    fn scripts_styles_and_handlers_go() {
        for (html, left) in [
            ("a<script>alert(1)</script>b", "ab"),
            ("a<style>p { background: url(https://evil) }</style>b", "ab"),
            (r#"<b onclick="alert(1)" style="color: red">x</b>"#, "<b>x</b>"),
            (r#"<svg onload="alert(1)"><circle></svg>x"#, "x"),
            ("<iframe src=\"https://evil\">y</iframe>x", "x"),
            ("<form action=\"https://evil\"><input><button>ok</button></form>", "ok"),
            ("<object data=x></object><embed src=y>x", "x"),
            ("x<!-- <script>alert(1)</script> -->", "x"),
            ("<math><mi//xlink:href=\"data:x,<script>alert(4)</script>\">", ""),
        ] {
            assert_eq!(sanitize(html), left, "{html}");
        }
    }

    #[test]
    fn links_lead_nowhere_harmful_wherever_their_address_stands() {
        for address in [
            "javascript:alert(1)",
            "JavaScript:alert(1)",
            " javascript:alert(1)",
            "java\nscript:x",
            "data:text/html,x",
            "/x",
        ] {
            for html in [
                format!("<a href=\"{address}\">x</a>"),
                format!("<a class=\"z\" href=\"{address}\">x</a>"),
                format!("<a href=\"{address}\" target=\"_blank\">x</a>"),
            ] {
                let left = sanitize(&html);
                assert!(!left.contains("href") && left.contains(">x</a>"), "{html} became {left}");
            }
        }
    }

    #[test]
    fn images_of_other_servers_are_not_fetched() {
        for html in [
            r#"<img src="https://evil/pixel.gif">"#,
            r#"<img alt="a" src="https://evil/pixel.gif">"#,
            r#"<img alt="a" src="//evil/pixel.gif">"#,
            r#"<img src="data:image/png;base64,xx">"#,
            r#"<img srcset="https://evil/pixel.gif 2x" src="mxc://a/b">"#,
            r#"<picture><source srcset="https://evil/x"><img src="https://evil/y"></picture>"#,
            r#"<video poster="https://evil/x" src="https://evil/y"></video>"#,
            r#"<b src="mxc://a/b" background="https://evil">x</b>"#,
        ] {
            let left = sanitize(html);
            assert!(!left.contains("evil") && !left.contains("data:"), "{html} became {left}");
        }
    }

    #[test]
    fn the_quote_before_a_reply_goes() {
        let html = "<mx-reply><blockquote>In reply to <a href=\"https://matrix.to/#/@a:b\">a</a>: secret</blockquote></mx-reply>yes";
        assert_eq!(sanitize(html), "yes");
    }

    #[test]
    fn what_is_left_is_left_alone_when_it_is_sanitised_again() {
        for html in [
            "<b>un<i>closed",
            "<p><table><tr><td>x</p>y",
            "<noscript><p title=\"</noscript><img src=x onerror=alert(1)>\">",
            "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
            "<textarea></textarea><script>x</script>",
            "<svg></p><style><a id=\"</style><img src=1 onerror=alert(1)>\">",
        ] {
            let once = sanitize(html);
            assert_eq!(sanitize(&once), once, "{html}");
            assert!(!once.contains("onerror=") || once.contains("&lt;img"), "{html} became {once}");
        }
    }

    #[test]
    fn html_that_is_built_to_exhaust_a_parser_is_dropped_at_once() {
        let began = Instant::now();
        let formatting: Vec<String> = (0..3_000).map(|n| format!("<b a{n}>")).collect();
        let hidden: Vec<String> = (0..200).map(|n| format!("<b a{n}><object></b></object>")).collect();
        let (formatting, hidden) = (formatting.concat(), hidden.concat());
        for html in [
            "<b>".repeat(20_000),
            "<div>".repeat(12_000),
            format!("{formatting}{}", "<p>".repeat(3_000)),
            format!("{}{}", "<b x></x>".repeat(3_000), "<p>".repeat(5_000)),
            "<".repeat(60_000),
            "<br>".repeat(100_000),
        ] {
            assert_eq!(sanitize(&html), "");
        }
        // Within the limits the parser makes many elements of few: it stays bearable.
        assert!(sanitize(&format!("{hidden}{}", "<p>".repeat(199))).len() < 1 << 20);
        let limit = Duration::from_secs(5);
        assert!(began.elapsed() < limit, "took {:?}", began.elapsed());
    }
}
