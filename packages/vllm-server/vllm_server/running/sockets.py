"""The socket of the server, bound before the model loads: a port in use is found out at once."""

import errno
import socket

from vllm_engine.errors import ConfigError

_HINTS = {
    errno.EADDRINUSE: "; name another port, or 0 for any free one",
    errno.EACCES: "; ports below 1024 are the administrator's, name one above",
    errno.EADDRNOTAVAIL: "; name an address of this machine, or 0.0.0.0 for all of them",
}
"""What to do about an error of the operating system."""


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket, not listening yet: until the server runs, clients are refused rather than left waiting.

    Raises ``ConfigError`` naming ``host`` or ``port`` when the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else str(error)
        raise ConfigError(f"cannot listen on host {host!r}: {reason}", field="host") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        number = error.errno if isinstance(error, OSError) else None
        field = "host" if number == errno.EADDRNOTAVAIL else "port"
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}{_HINTS.get(number or 0, '')}", field=field
        ) from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """The URL under which a client on this machine reaches the socket."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
