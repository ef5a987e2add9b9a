"""TLS to Redis. Imported only for a URL with TLS, because ssl takes long to import."""

from __future__ import annotations

import socket
import ssl

from sandboxrun.errors import StoreError, UsageError
from sandboxrun.redis.address import certificates_hint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.redis.address import Address


def context(address: Address) -> ssl.SSLContext:
    """Raises UsageError if the file has no certificates."""
    try:
        made = ssl.create_default_context(cafile=address.ca_file or None)
    except OSError as error:
        raise UsageError(
            f"the Redis URL's ssl_ca_certs={address.ca_file} cannot be read as certificates in PEM ({error.strerror})",
            hint=certificates_hint(address),
        ) from error
    if not address.check:
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


def wrap(sock: socket.socket, address: Address, *, seconds: float) -> ssl.SSLSocket:
    """A connected socket, taken over. `seconds`: for the handshake. Raises OSError, StoreError, UsageError."""
    whole = socket.socket(fileno=sock.detach())
    try:
        whole.settimeout(seconds)
        return context(address).wrap_socket(whole, server_hostname=address.host)
    except BaseException as error:
        whole.close()
        if isinstance(error, ssl.SSLCertVerificationError):
            raise untrusted(error, address) from error
        raise


def take_now(sock: ssl.SSLSocket, most: int) -> bytes:
    """At most so many bytes that have come; TLS has no MSG_DONTWAIT. Raises BlockingIOError if there are none."""
    limit = sock.gettimeout()
    sock.settimeout(0)
    try:
        return sock.recv(most)
    except ssl.SSLWantReadError:
        raise BlockingIOError from None
    finally:
        sock.settimeout(limit)


def untrusted(error: ssl.SSLCertVerificationError, address: Address) -> StoreError:
    """Lasting, whatever else of a connection may pass: nothing was sent."""
    return StoreError(
        f"Redis at {address.shown} has a certificate that is not to be trusted ({error.verify_message})",
        hint=certificates_hint(address),
    )
