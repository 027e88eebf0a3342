"""The socket of the server, bound before the model loads: a port in use is found out at once."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from vllm_engine.errors import ConfigError

_HINTS = {
    errno.EADDRINUSE: "; name another port, or 0 for any free one",
    errno.EACCES: "; ports below 1024 are the administrator's, name one above",
    errno.EADDRNOTAVAIL: "; name an address of this machine, or 0.0.0.0 for all of them",
}
"""What to do about an error of the operating system."""
_NOT_FOR_OTHERS = 0o117
"""Permissions that a Unix socket never has; the process's umask may take the group's, too."""
_BOUND_SOCKETS = Path("/proc/net/unix")


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


@contextlib.contextmanager
def tcp_sockets(host: str, port: int, count: int) -> Iterator[list[socket.socket]]:
    """``bind`` for ``count`` processes: a socket each, among which the system shares out connections evenly.

    One socket in several processes would be asked by whoever wakes up first, and each takes all that it finds. The
    system closes none of these while this process holds it: who connects while its process is started anew waits.
    """
    listeners = [bind(host, port)]
    try:
        if count > 1:
            # Only now: so the first one is refused a port that another server has, whatever that one allows.
            listeners[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for _ in range(1, count):
            other = socket.socket(listeners[0].family, socket.SOCK_STREAM)
            listeners.append(other)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if other.family == socket.AF_INET6:
                other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            other.bind(listeners[0].getsockname())
            other.setblocking(False)
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


@contextlib.contextmanager
def unix_socket(path: str) -> Iterator[socket.socket]:
    """A bound Unix domain socket, not listening yet; its file is gone at the end.

    Those may connect who may write to the file: the user, and the group unless the umask takes it out. The file of a
    server that was killed is replaced.

    Raises:
        ConfigError: naming ``uds`` when the path cannot be had, is no socket, or a server has it.
    """
    path = os.path.abspath(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            _remove_left_over(path)
            before = os.umask(0)
            os.umask(before | _NOT_FOR_OTHERS)
            try:
                listener.bind(path)
            finally:
                os.umask(before)
            made = os.lstat(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"uds: cannot listen on {path}: {reason}", field="uds") from error
        listener.setblocking(False)
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                now = os.lstat(path)
                if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
                    os.unlink(path)
    finally:
        listener.close()


def _remove_left_over(path: str) -> None:
    """Make room for a socket at ``path``. Raises ``ConfigError`` for what is not a dead server's socket."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"uds: {path} is there already, and is no socket", field="uds")
    if _has_owner(path):
        raise ConfigError(f"uds: another server listens on {path}", field="uds")
    os.unlink(path)


def _has_owner(path: str) -> bool:
    """Whether a process has the socket at ``path``, also one that does not listen yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as visitor:
        visitor.settimeout(1)
        try:
            visitor.connect(path)
            return True
        except ConnectionRefusedError:
            pass
        except OSError:  # it is there, and too busy, or not for this user
            return True
    try:
        bound = _BOUND_SOCKETS.read_text(errors="surrogateescape").splitlines()
    except OSError:  # another system than Linux
        return False
    return any(line.partition("/")[2] == path[1:] for line in bound)


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """The URL under which a client on this machine reaches the socket; for a Unix socket, it goes to its path."""
    if listener.family == socket.AF_UNIX:
        return f"{scheme}://localhost"
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
