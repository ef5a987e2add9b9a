"""Fetch a page on request: `{"url": "https://example.com/"}` to status, headers and body.

Which hosts it can reach is decided by `allowNet` of its hash, not here. Bounded in bytes and time.
"""

import base64
import time

import httpx

from sandboxrun import worker

BODY_MAX_BYTES = 256 * 1024
TOTAL_SECONDS = 20
SILENCE_SECONDS = 10
HEADERS_MAX = 64

client = httpx.Client(timeout=SILENCE_SECONDS, trust_env=False, follow_redirects=False)


@worker.handler
def handle(request):
    url = request.data.get("url") if isinstance(request.data, dict) else None
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise worker.BadRequest('data must be {"url": "http://… or https://…"}')
    try:
        with client.stream("GET", url) as response:
            body, truncated = read(response)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise worker.BadRequest(f"url is not valid: {error}") from error
    except httpx.TransportError as error:
        # Refused, unreachable, too slow: code 500, and one line instead of httpx's own story.
        raise ConnectionError(f"{url}: {error or type(error).__name__}") from None
    result = {
        "url": url,
        "status": response.status_code,
        "headers": dict(list(response.headers.items())[:HEADERS_MAX]),
        "truncated": truncated,
    }
    try:
        return {**result, "body": body.decode(response.encoding or "utf-8")}
    except (UnicodeDecodeError, LookupError):
        return {**result, "bodyBase64": base64.b64encode(body).decode()}


def read(response):
    """At most BODY_MAX_BYTES, and whether there was more; what was sent is counted after decompression."""
    body = bytearray()
    deadline = time.monotonic() + TOTAL_SECONDS
    for chunk in response.iter_bytes(16 * 1024):
        body += chunk
        if len(body) > BODY_MAX_BYTES or time.monotonic() > deadline:
            return bytes(body[:BODY_MAX_BYTES]), True
    return bytes(body), False


worker.run()
