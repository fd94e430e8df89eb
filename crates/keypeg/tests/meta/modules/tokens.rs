//! The tokens of a Rust source file, as far as the search for module cycles needs them: names,
//! signs and delimiters, without comments and without the contents of literals.

/// A token of Rust's grammar, as far as paths need it.
#[derive(Clone, Debug)]
pub(super) enum Token {
    Ident(String),
    Sign(char),
    /// A delimiter's opening sign, and the tokens up to its closing one.
    Group(char, Vec<Self>),
    /// A literal or a lifetime.
    Other,
}

/// Splits a text into tokens, without its comments.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let (tokens, end) = tokens_from(&chars, 0);
    assert_eq!(end, chars.len(), "the delimiters are balanced");
    tokens
}

/// Returns the tokens up to a closing delimiter or the end, and the index of that.
fn tokens_from(chars: &[char], mut index: usize) -> (Vec<Token>, usize) {
    let mut tokens = vec![];
    while let Some(&sign) = chars.get(index) {
        let rest = &chars[index..];
        let is_word = |sign: &char| sign.is_alphanumeric() || *sign == '_';
        let (token, len) = match rest {
            [')' | ']' | '}', ..] => break,
            ['(' | '[' | '{', ..] => {
                let (inner, end) = tokens_from(chars, index + 1);
                (Some(Token::Group(sign, inner)), end + 1 - index)
            }
            ['/', '/', ..] => (None, find(rest, "\n")),
            ['/', '*', ..] => (None, find(rest, "*/") + 2),
            ['"', ..] => (Some(Token::Other), string_len(rest)),
            ['\'', '\\', _, ..] => (Some(Token::Other), 3 + find(&rest[3..], "'") + 1),
            ['\'', _, '\'', ..] => (Some(Token::Other), 3),
            ['\'', ..] => (Some(Token::Other), 1 + find_not(&rest[1..], is_word)),
            [blank, ..] if blank.is_whitespace() => (None, 1),
            [digit, ..] if digit.is_ascii_digit() => (Some(Token::Other), find_not(rest, is_word)),
            [first, ..] if is_word(first) => {
                let len = find_not(rest, is_word);
                let word: String = rest[..len].iter().collect();
                let hashes = find_not(&rest[len..], |sign| *sign == '#');
                let is_raw = word.ends_with('r') && rest.get(len + hashes) == Some(&'"');
                if is_raw && ["r", "br", "cr"].contains(&word.as_str()) {
                    let start = len + hashes + 1;
                    let end = format!("\"{}", "#".repeat(hashes));
                    (Some(Token::Other), start + find(&rest[start..], &end) + 1 + hashes)
                } else {
                    (Some(Token::Ident(word)), len)
                }
            }
            _ => (Some(Token::Sign(sign)), 1),
        };
        tokens.extend(token);
        index += len;
    }
    (tokens, index)
}

/// Returns the index of the first `wanted`, or the length.
fn find(chars: &[char], wanted: &str) -> usize {
    let wanted: Vec<char> = wanted.chars().collect();
    chars.windows(wanted.len()).position(|part| part == wanted).unwrap_or(chars.len())
}

fn find_not(chars: &[char], is_part: impl Fn(&char) -> bool) -> usize {
    chars.iter().position(|sign| !is_part(sign)).unwrap_or(chars.len())
}

/// Returns the length of a string literal with its quotes.
fn string_len(chars: &[char]) -> usize {
    let mut index = 1;
    while let Some(sign) = chars.get(index).filter(|sign| **sign != '"') {
        index += if *sign == '\\' { 2 } else { 1 };
    }
    index + 1
}

pub(super) fn ident(tokens: &[Token], index: usize) -> Option<&str> {
    match tokens.get(index)? {
        Token::Ident(ident) => Some(ident),
        Token::Sign(_) | Token::Group(..) | Token::Other => None,
    }
}

pub(super) fn group(tokens: &[Token], index: usize, opening: char) -> Option<&[Token]> {
    match tokens.get(index)? {
        Token::Group(found, inner) if *found == opening => Some(inner),
        Token::Ident(_) | Token::Sign(_) | Token::Group(..) | Token::Other => None,
    }
}

pub(super) fn is_sign(token: &Token, wanted: char) -> bool {
    matches!(token, Token::Sign(sign) if *sign == wanted)
}

pub(super) fn is_punct(tokens: &[Token], index: usize, sign: char) -> bool {
    tokens.get(index).is_some_and(|token| is_sign(token, sign))
}
