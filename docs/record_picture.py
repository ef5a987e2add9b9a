"""Make docs/dev.svg: README's worker at a real terminal, refused a file and then granted it.

    python docs/record_picture.py [FILE]        (with the extra `test`)

The worker and its path come from README. The text of the picture is what the terminal showed, without the lines that
`shortened` leaves out, wrapped at COLUMNS. A test makes the picture once more and compares the words.
"""

from __future__ import annotations

import re
import sys
import tempfile
import textwrap
import xml.etree.ElementTree as ET
from pathlib import Path
from xml.sax.saxutils import escape

from record_walk import Terminal, Walk

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
HOME, GREETING = "/home/me", "Good morning"
COLUMNS = 92
FONT, CHARACTER, LINE, MARGIN = 13, 7.83, 18, 16  # pixels; a character of a monospaced font of this size
STYLE = """\
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #24292f;
  white-space: pre }
rect { fill: #f6f8fa; stroke: #d0d7de }
.typed { font-weight: bold }
.good { fill: #116329 }
.bad { fill: #a40e26 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  rect { fill: #0d1117; stroke: #30363d }
  .good { fill: #7ee787 }
  .bad { fill: #ff9492 }
}
"""
COLOURS = (
    ("typed", r"\$ |\w+> ."),
    ("good", r"200 in "),
    ("bad", r"500 in |PermissionError|Requires "),
)


def worker() -> str:
    """The first Python block of README."""
    return README.read_text().partition("```python\n")[2].partition("```")[0]


def recorded(home: Path) -> str:
    """What a terminal shows, from the refusal to the answer."""
    walk = Walk(home, "")
    folder = home / "greeter"
    folder.mkdir()
    (folder / "worker.py").write_text(worker().replace(HOME, str(home)))
    (home / "greeting.txt").write_text(GREETING + "\n")
    refused = Terminal(walk, "sandboxrun dev greeter")
    refused.until("ends")
    refused.type("name=world", "Requires read access", "500", "\n}")
    refused.leave()
    granted = Terminal(walk, f"sandboxrun dev greeter --allow-read={home}/greeting.txt")
    granted.until("ends")
    granted.type("name=world", f"{GREETING}, world!")
    granted.leave()
    return "\n".join(block.strip() for block in re.findall(r"```console\n(.*?)```", walk.page(), re.DOTALL))


def shortened(text: str) -> list[str]:
    """The lines of `text` without the session's password, without what a reply says of an error, and of a traceback without
    Python's own frames and marks, which differ between versions. A reply may come amid the lines of a traceback: it stands
    below them."""
    reply = re.search(r"^(500 in [^\n]*\n)\{.*?\n\}\n", text, re.MULTILINE | re.DOTALL)
    if reply is not None:
        text = text[: reply.start()] + text[reply.end() :]
    text = re.sub(r'^  File "[^"]*/python3[^"]*".*\n(?:    .*\n)*', "", text, flags=re.MULTILINE)
    text = re.sub(r"^ +[~^]+\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"(export REDIS_URL=)\S+", r"\1…", text)
    if reply is not None:
        text = re.sub(r"^(?=\w+> exit$)", f"{reply[1]}{{ … }}\n", text, count=1, flags=re.MULTILINE)
    return text.splitlines()


def svg(lines: list[str]) -> str:
    rows = []
    for line in lines:
        colour = next((name for name, pattern in COLOURS if re.match(pattern, line)), "")
        for part in textwrap.wrap(line, COLUMNS, subsequent_indent="  ", break_on_hyphens=False) or [""]:
            kind = f' class="{colour}"' if colour else ""
            y = MARGIN + FONT + LINE * len(rows)
            rows.append(f'<text{kind} x="{MARGIN}" y="{y}" xml:space="preserve">{escape(part)}</text>')
    width, height = round(2 * MARGIN + COLUMNS * CHARACTER), 2 * MARGIN + LINE * len(rows)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
            "<title>A terminal: a worker is refused a file, is granted it, and answers</title>",
            f"<style>\n{STYLE}</style>",
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="6"/>',
            *rows,
            "</svg>\n",
        ]
    )


def words(picture: str) -> list[str]:
    """The words that a picture shows, in order."""
    elements = ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    return " ".join(element.text or "" for element in elements).split()


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "dev.svg"
    with tempfile.TemporaryDirectory() as name:
        text = recorded(Path(name).resolve())
    target.write_text(svg(shortened(text)))


if __name__ == "__main__":
    main()
