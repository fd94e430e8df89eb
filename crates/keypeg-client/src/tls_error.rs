//! Why TLS failed, in words, with the next step.
//!
//! Does not know connections: it finds the error of TLS among the causes of another one.

/// Returns the error of TLS among the causes of an error.
pub(crate) fn tls_error<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An I/O error does not name the error inside as its source, but as its content.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| tls_error(inner)) {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// Returns why TLS failed and the next step.
pub(crate) fn explain(error: &rustls::Error) -> String {
    format!("{error}; {}", next_step(error))
}

/// Returns the next step after an error, if an error of TLS is among its causes.
pub fn tls_next_step(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    tls_error(error).map(next_step)
}

fn next_step(error: &rustls::Error) -> &'static str {
    use rustls::AlertDescription as Alert;
    use rustls::CertificateError as Certificate;
    use rustls::{Error, InvalidMessage};
    if let Error::InvalidCertificate(certificate) = error {
        if matches!(certificate, Certificate::UnknownIssuer | Certificate::BadSignature) {
            "this client does not trust the authority of the server's certificate: name the \
             certificate of the authority with --ca-file"
        } else if matches!(
            certificate,
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. }
        ) {
            "use a name of the certificate as the address of the server"
        } else if matches!(
            certificate,
            Certificate::Expired
                | Certificate::ExpiredContext { .. }
                | Certificate::NotValidYet
                | Certificate::NotValidYetContext { .. }
        ) {
            "replace the certificate of the server, or correct the clock of this machine"
        } else {
            "replace the certificate of the server"
        }
    } else if let Error::AlertReceived(alert) = error {
        if matches!(alert, Alert::CertificateRequired | Alert::AccessDenied) {
            "the server requires a client certificate: name one with --client-cert and --client-key"
        } else if matches!(
            alert,
            Alert::CertificateExpired
                | Alert::BadCertificate
                | Alert::UnknownCA
                | Alert::CertificateUnknown
                | Alert::CertificateRevoked
                | Alert::UnsupportedCertificate
                | Alert::DecryptError
        ) {
            "the server refuses the client certificate: use one that is valid now, of an authority \
             that the server trusts (--tls-client-ca)"
        } else {
            "the server refuses the connection"
        }
    } else if matches!(error, Error::InvalidMessage(InvalidMessage::InvalidContentType)) {
        "the server does not speak TLS at this address: use http://"
    } else {
        "client and server do not agree on TLS"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_tls_is_found_within_others() {
        let inner = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let io = std::io::Error::other(std::io::Error::other(inner.clone()));
        assert_eq!(tls_error(&io), Some(&inner));
        assert_eq!(tls_error(&std::io::Error::other("refused")), None);
        assert!(explain(&inner).contains("--ca-file"), "{}", explain(&inner));
    }
}
