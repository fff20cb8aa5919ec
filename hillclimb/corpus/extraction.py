"""HTML and raw text into plain text."""

from __future__ import annotations

import re

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding
from resiliparse.parse.html import HTMLTree

_DECLARED = re.compile(rb"(?:charset|encoding)\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{2,40})")
_TEMPLATE = re.compile(
    r"<script\b[^>]*\btype\s*=\s*[\"']?text/(?:html|template|x-[\w-]*template)[\"']?[^>]*>(.*?)</script>",
    re.IGNORECASE | re.DOTALL,
)
_BLANKS = re.compile(r"\n{3,}")
_CONTROL = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 127, 0xFEFF])


def decode(data: bytes) -> str:
    """Bytes of a page into text: UTF-8 where it fits, else what is declared, else detected."""
    declared = _DECLARED.search(data[:2048])
    for encoding in ("utf-8", declared.group(1).decode() if declared else "utf-8"):
        try:
            return data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    return data.decode(detect_encoding(data) or "latin-1", "replace")


def html_to_text(html: str) -> str:
    """The main content of a page as plain text (resiliparse).

    Markup that a page keeps in script templates, to be shown by a program, counts as content.
    Pages in which no main content is found give all their text.
    """
    tree = HTMLTree.parse(_TEMPLATE.sub(r"<div>\1</div>", html))
    text = extract_plain_text(tree, main_content=True, links=False, alt_texts=False)
    if len(text.strip()) < 80:
        text = extract_plain_text(tree, main_content=False, links=False, alt_texts=False)
    return str(text)


def normalise(text: str) -> str:
    """One kind of newline, no control characters, no runs of blank lines, no blank ends."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_CONTROL)
    return _BLANKS.sub("\n\n", text).strip() + "\n"
