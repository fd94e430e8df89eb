//! Text as HTML. No text becomes markup.

use std::fmt::{Arguments, Write};

/// Appends a formatted text.
pub(crate) fn put(html: &mut String, text: Arguments<'_>) {
    html.write_fmt(text).expect("invariant: writing to a string never fails");
}

/// Escapes the characters that are markup.
pub(crate) fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            c => html.push(c),
        }
    }
    html
}

/// Renders paragraphs; text between backticks becomes code.
pub(crate) fn prose(text: &str) -> String {
    let mut html = String::new();
    for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.is_empty()) {
        html.push_str("<p>");
        for (index, part) in paragraph.split('`').enumerate() {
            let part = escaped(part);
            if index % 2 == 1 {
                put(&mut html, format_args!("<code>{part}</code>"));
            } else {
                html.push_str(&part);
            }
        }
        html.push_str("</p>");
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_becomes_markup() {
        assert_eq!(escaped("a<b> & \"c\""), "a&lt;b&gt; &amp; &quot;c&quot;");
        assert_eq!(prose("a `<b>`\n\nc"), "<p>a <code>&lt;b&gt;</code></p><p>c</p>");
        assert_eq!(prose(""), "");
    }
}
