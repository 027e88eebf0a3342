"""TLS as a client of one server needs it."""

import ssl


def client_context(*, verify: bool = True) -> ssl.SSLContext:
    """A context for HTTP/1.1 over TLS.

    The certificate is checked against the system's authorities, or those in ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``;
    with ``verify`` false neither it nor the host's name is.

    Raises:
        OSError: the authorities cannot be read.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
