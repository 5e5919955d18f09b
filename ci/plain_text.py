"""Text of strangers in Markdown, where it stays text: no link, mention, reference, HTML or markup.

    python ci/plain_text.py [--longest N] <FILE

prints standard input as a block of Markdown. GitHub makes links of bare addresses, of `@name`, of
`#1`, `GH-1` and `owner/repository#1`, and of commit ids; an `@name` also notifies somebody. It does
nothing of the kind in code. Addresses are found before that, so that they are broken besides.
Needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import re
import sys

# What Markdown and HTML understand; an entity stands for the character alone.
_MARKUP = frozenset("&<>\"'|`*_[]()~@#\\!:/")
_ADDRESS = re.compile(r"(?<=www)\.", re.IGNORECASE)
_REFERENCE = re.compile(r"(?<=gh)-(?=\d)", re.IGNORECASE)
# Words that nothing makes a link of: lowercase, and neither a commit id nor gh-1.
_PLAIN = re.compile(r"(?![0-9a-f]{7,}\Z|gh-\d)[a-z0-9]+([_-][a-z0-9]+)*")
# Behind an @, so that no e-mail address is left where entities are read early.
_BREAK = "&#8203;"


def main() -> int:
    """Prints standard input as a block."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--longest", type=int, default=30_000, metavar="N", help="characters")
    options = parser.parse_args()
    print(block(sys.stdin.buffer.read().decode(errors="replace"), options.longest))
    return 0


def code(text: str) -> str:
    """A line of text as inline code, also in a table's cell."""
    return f"<code>{escape(text)}</code>"


def word(text: str) -> str:
    """A name as it is, if it can be taken for nothing else; as inline code otherwise."""
    return text if not text or _PLAIN.fullmatch(text) else code(text)


def block(text: str, longest: int) -> str:
    """Lines of text as a block of code, cut to so many characters."""
    kept = "".join(c for c in text[:longest] if c.isprintable() or c in "\n\t").rstrip("\n")
    fence = "`" * max(4, *(len(run) + 1 for run in re.findall("`+", kept) or [""]))
    cut = ["", "The rest is cut."] if len(text) > longest else []
    return "\n".join([f"{fence}text", kept, fence, *cut])


def escape(text: str) -> str:
    """Text that is neither Markdown, HTML, an address, a mention, a reference nor a cell's end."""
    escaped = "".join(f"&#{ord(c)};" if c in _MARKUP else c for c in text)
    escaped = _ADDRESS.sub("&#46;", escaped)
    escaped = _REFERENCE.sub("&#45;", escaped)
    return escaped.replace("&#64;", f"&#64;{_BREAK}")


if __name__ == "__main__":
    sys.exit(main())
