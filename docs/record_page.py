"""Make docs/page.png: the page of an agent with fifty workers, in Debian's Chromium.

    python docs/record_page.py [FILE]        (with the extra `test`)

One worker is stuck, one crashes and one was refused something. The server and the page are the agent's; its status is one of
tests/support/agent_status.py. Chromium runs as an ordinary user, also if this is root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests/support"))
from agent_status import busy  # noqa: E402

from sandboxrun.describe.page import Page  # noqa: E402
from sandboxrun.host.page import Server, parse_address  # noqa: E402

WIDTH, HEIGHT = 1180, 1160
NOBODY = 65534
CHROMIUM = shutil.which("chromium")


def recorded(width: int = WIDTH, height: int = HEIGHT, *, dark: bool = False, seconds: float = 5) -> bytes:
    """The picture, as PNG. `seconds`: between two statuses, which make a rate."""
    begun = time.monotonic()

    def status():
        passed = time.monotonic() - begun
        return busy(int(passed), clock=time.monotonic(), now=time.time())

    page = Page(status)
    server = Server(parse_address("127.0.0.1:0", "--page", "t", loopback=True), page.routes())
    server.start()
    try:
        page.routes()["/"]("", {})
        time.sleep(seconds)
        return screenshot(f"http://127.0.0.1:{server.port}/?still", width, height, dark=dark)
    finally:
        server.close()


def screenshot(url: str, width: int, height: int, *, dark: bool = False) -> bytes:
    with tempfile.TemporaryDirectory(prefix="page", dir="/tmp") as name:
        home = Path(name)
        if os.geteuid() == 0:
            os.chown(home, NOBODY, NOBODY)
        picture = home / "page.png"
        command = [
            str(CHROMIUM), "--headless", "--no-first-run", "--disable-gpu", "--hide-scrollbars", "--no-proxy-server",
            f"--user-data-dir={home}/profile", f"--window-size={width},{height}", f"--screenshot={picture}",
            *["--blink-settings=preferredColorScheme=0"] * dark, url,
        ]  # fmt: skip
        environment = {"HOME": name, "TMPDIR": name, "PATH": os.environ["PATH"]}
        as_user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        subprocess.run(command, env=environment, cwd=home, check=True, timeout=60, capture_output=True, **as_user)
        return picture.read_bytes()


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "page.png"
    target.write_bytes(recorded())


if __name__ == "__main__":
    main()
