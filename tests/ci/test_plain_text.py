"""What a stranger wrote stays text, whatever GitHub makes links of."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import plain_text
import pytest
from plain_text import block, code, word
from verdict_table import parse, render

SCRIPT = Path(plain_text.__file__)

HOSTILE = [
    "@octocat",
    "@github/security-team",
    "fixes #1, closes: #22",
    "GH-7 and gh-8",
    "octocat/hello-world#12",
    "octocat/hello-world@0123456789abcdef0123456789abcdef01234567",
    "https://evil.example/login",
    "http://evil.example",
    "ftp://evil.example",
    "www.evil.example and WWW.evil.example",
    "<https://evil.example>",
    "somebody@evil.example",
    "mailto:somebody@evil.example",
    "[click](https://evil.example 'title') ![x][y]",
    "<img src=x onerror=alert(1)><!-- -->",
    "&#64;octocat &lt;b&gt;",
    "`code` ``` ~~~",
    "a | b",
    "**PASS** __PASS__ ~~FAIL~~",
    "$x^2$ $$",
    "\\@octocat \\\\",
]
# What GitHub looks for before it has decoded entities, and what Markdown and HTML are made of.
_LIVE = re.compile(r"[<>|`*_\[\]()~@\\!:/'\"]|www\.|gh-\d|(?<!&)#|&(?!#\d+;)", re.IGNORECASE)


def inside(text: str) -> str:
    """What stands between the tags of inline code."""
    found = re.fullmatch(r"<code>(.*)</code>", text)
    assert found is not None, text
    return found[1]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_inline_code_holds_nothing_that_lives(hostile: str) -> None:
    shown = inside(code(hostile))
    assert not _LIVE.search(shown), shown
    assert html.unescape(shown).replace("\u200b", "") == hostile
    # E-mail addresses and mentions are looked for among decoded characters, too.
    assert not re.search(r"@\w", html.unescape(shown))


@pytest.mark.parametrize("text", ["tiny_moe", "cpu", "h200-x2", "window-plus-one", "3d", ""])
def test_a_word_that_is_nothing_else_is_shown_as_it_is(text: str) -> None:
    assert word(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "www.evil.example",
        "GH-1",
        "gh-1",
        "deadbeef",
        "0123456789abcdef0123456789abcdef01234567",
        "a._b_.c",
        "A",
        "x_",
    ],
)
def test_a_word_that_could_be_more_is_code(text: str) -> None:
    assert not _LIVE.search(inside(word(text)))


@pytest.mark.parametrize("name", ["www.evil.example", "GH-1", "deadbeef", "a._b_.c"])
def test_names_of_a_verdict_are_words(name: str) -> None:
    case = {"case": name, "verdict": "PASS", "compared": 1, "identical": 1, "seconds": 1}
    found = {"kind": "tolerance", "case": name, "text": "@octocat #1"}
    table = parse(
        {
            "verdict": "PASS",
            "lane": name,
            "seconds": 1,
            "canary": {"fault": name, "caught": True},
            "cases": [case],
            "loosened": [found],
            "verdict_if_accepted": "PASS",
        }
    )
    text = render(table)
    assert text.count(code(name)) == 4
    assert name not in text.replace(code(name), "")
    assert not re.search(r"@\w|#1", text)


@pytest.mark.parametrize("hostile", [*HOSTILE, "a\n````\n@octocat\n`````\n#1", "`" * 9])
def test_a_block_is_not_left(hostile: str) -> None:
    opened, *lines, closed = block(hostile, 1000).splitlines()
    assert opened == f"{closed}text"
    assert set(closed) == {"`"}
    assert all(closed not in line for line in lines)
    assert "\n".join(lines) == hostile


def test_a_block_is_cut_and_has_no_control_characters() -> None:
    sent = b"one\x1b[31m\xff\x00\r\n" + b"x" * 100
    done = subprocess.run(
        [sys.executable, SCRIPT, "--longest", "40"], input=sent, capture_output=True, check=True
    )
    text = done.stdout.decode()
    assert text.endswith("\n````\n\nThe rest is cut.\n")
    assert not set(text) & set("\x1b\x00\r")
