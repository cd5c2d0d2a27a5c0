//! Where Patroni is asked: a URL, and who asks, which never shows.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;
use url::Url;
use zeroize::Zeroizing;

use super::Secret;

/// A REST endpoint. Shows as its URL without user and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    url: Url,
    /// The value of the header `Authorization`, where the URL names a user (RFC 7617).
    authorization: Option<Secret>,
}

impl Endpoint {
    /// Takes user and password out of a URL.
    pub fn new(mut url: Url) -> Self {
        let authorization = basic(&url);
        // Neither fails for a URL with a host, and there is nothing to take out of another.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        Self { url, authorization }
    }

    pub fn url(&self) -> &Url {
        &self.url
    }

    pub fn authorization(&self) -> Option<&Secret> {
        self.authorization.as_ref()
    }
}

fn basic(url: &Url) -> Option<Secret> {
    let password = url.password().unwrap_or_default();
    if url.username().is_empty() && password.is_empty() {
        return None;
    }
    let mut plain = Zeroizing::new(percent_decode_str(url.username()).collect::<Vec<u8>>());
    plain.push(b':');
    plain.extend(percent_decode_str(password));
    Some(Secret::new(format!("Basic {}", STANDARD.encode(&*plain))))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::new(text.parse().expect("a URL"))
    }

    #[test]
    fn a_user_and_a_password_are_sent_and_never_shown() {
        let table = [
            ("http://a:8008", None),
            ("http://Aladdin:open%20sesame@a:8008", Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")),
            ("http://only@a:8008", Some("Basic b25seTo=")),
        ];
        for (text, expected) in table {
            let endpoint = endpoint(text);
            assert_eq!(endpoint.authorization().map(Secret::expose), expected);
            assert_eq!(endpoint.to_string(), "http://a:8008/");
            assert!(!format!("{endpoint:?}").contains("sesame"));
        }
        assert_ne!(endpoint("http://u:one@a"), endpoint("http://u:two@a"));
    }
}
