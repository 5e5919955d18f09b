"""Every refusal of input names what was wrong, where, and what to do: read off the code itself.

A message begins with the flag, or with the file and what is in it. Refusals of a part of a file
are raised where the file is not known; who calls adds it, as tests of those callers show.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

VPMOE = Path(__file__).resolve().parent.parent / "vpmoe"
ROOMS = ("data", "export", "runtime", "tokenizer")
MODULES = sorted(
    {
        str(path.relative_to(VPMOE))
        for path in (
            *(path for room in ROOMS for path in (VPMOE / room).rglob("*.py")),
            *VPMOE.glob("*/arguments.py"),
            VPMOE / "config.py",
            VPMOE / "config_checks.py",
            VPMOE / "optimizer" / "polar_express.py",
        )
    }
)
REFUSALS = (
    *("ValueError", "SystemExit", "ArgumentTypeError", "PresetError", "FieldError"),
    *("DataError", "CorruptDatasetError", "ExportError", "AssetError", "HarmonyError"),
)

# Raised where neither file nor line is known: these callers add them.
PARTS = {
    "data/encode.py": "data/encode_block.py",
    "data/json_text.py": "data/rows.py",
    "data/openai_chat.py": "data/rows.py",
    "data/row_content.py": "data/rows.py",
    "tokenizer/harmony.py": "data/encode_block.py",
    "tokenizer/harmony_content.py": "data/encode_block.py",
    "tokenizer/harmony_tools.py": "data/encode_block.py",
    "tokenizer/harmony_values.py": "data/encode_block.py",
    "export/architecture.py": "export/folder.py",
    "export/flags.py": "export/convert.py",
    "config_checks.py": "config.py",
}
# The same for some of a module's messages: `config.json`'s keys, a checkpoint's index, a field.
PARTS_WITHIN = {
    "config.py": ("FieldError",),
    "export/checkpoint.py": ("ValueError",),
    "export/folder.py": ("format:", "version:", "tensors", "iteration:", "digest:", "tokenizer."),
}
# Calls that only code can make wrongly, by the start of their messages.
OF_CODE = {
    "data/batch.py": ("this rank has no data iterator",),
    "data/trace.py": ("the traces' hashes differ",),
    "export/convert.py": ("tensor {place.key}",),
    "export/reference.py": ("",),  # token ids and tensors that another program hands in
    "optimizer/polar_express.py": (
        "safety_factor must",
        "iterations must",
        "expected matrices",
        "reduce and partition_dim",
    ),
    "tokenizer/encoder.py": ("quicktok's vocabulary",),
    "tokenizer/tokenizer.py": ("",),  # the library's; `vpmoe tokenizer` hands on text and ids
}
# Begins with what names a place, standard input or a path that is put in, or has a flag.
PLACE = re.compile(
    r".*--[a-z{]|standard input|tensor \{name\}|"
    r"\{(\w+\.)?\w*(path|folder|filename|prefix|source|tracker|origin|where|names?|tokens|flag|"
    r"what|dataset|kd_data)\b|\{str\(path\)"
)
# An imperative, or what is expected in the place of what was found.
REMEDY = re.compile(
    r"\b(use|give|run|pass|set|leave|choose|train|build|export|write|restore|remove|install|keep|"
    r"make|raise|lower|see|need|needs|must|expected|wait|declare|put|unpack|reads|lets|"
    r"unknown key|missing)\b|\{remedy\}",
    re.IGNORECASE,
)
# Hands on a message, and adds the place.
PASSED_ON = re.compile(r"\{(error|refusal)\}(\{counted\})?$")
# What the class adds to every message.
ADDED = {"CorruptDatasetError": "restore the file from a copy, or build the data again"}


def refusals(module: str) -> Iterator[tuple[int, str, str]]:
    """Line, exception and message of each refusal; what is put in is `{expression}`."""
    for node in ast.walk(ast.parse((VPMOE / module).read_text())):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
            continue
        name = ast.unparse(node.exc.func).rpartition(".")[2]
        if name in REFUSALS and node.exc.args:
            yield node.lineno, name, message(node.exc.args[-1])


def message(node: ast.expr) -> str:
    """The text of a message, with `{expression}` for what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.IfExp):
        return f"{message(node.body)}|{message(node.orelse)}"
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
            for part in node.values
            if isinstance(part, ast.Constant | ast.FormattedValue)
        )
    return "{" + ast.unparse(node) + "}"


def is_part(module: str, name: str, text: str) -> bool:
    """Whether a caller puts the place before a message."""
    within = PARTS_WITHIN.get(module, ())
    return module in PARTS or name in within or text.startswith(within or ("\0",))


def is_of_code(module: str, text: str) -> bool:
    """Whether a message is one that no input leads to."""
    return any(text.startswith(start) for start in OF_CODE.get(module, ()))


@pytest.mark.parametrize("module", MODULES)
def test_a_refusal_names_its_place(module: str) -> None:
    found = [
        (line, text)
        for line, name, text in refusals(module)
        if not (is_of_code(module, text) or is_part(module, name, text) or PLACE.match(text))
    ]
    assert found == []


@pytest.mark.parametrize("module", MODULES)
def test_a_refusal_says_what_to_do(module: str) -> None:
    if module in PARTS and module != "config_checks.py":
        return  # one line of a file, or one key, whose right form the message names
    found = [
        (line, text)
        for line, name, text in refusals(module)
        if not is_of_code(module, text)
        and name not in PARTS_WITHIN.get(module, ())
        and not PASSED_ON.search(text)
        and not REMEDY.search(f"{text}; {ADDED.get(name, '')}")
    ]
    assert found == []


@pytest.mark.parametrize("caller", sorted({*PARTS.values(), *PARTS_WITHIN}))
def test_the_caller_adds_the_place(caller: str) -> None:
    """Such a message is put behind a place: `{path}:{line}: {error}`, `{folder}: {error}`."""
    assert any(
        re.match(r"\{[^{}]*(path|folder|where)[^{}]*\}:.*\{(_words\()?error\)?\}", text)
        for _, _, text in refusals(caller)
    )


def test_the_lists_have_no_module_that_is_gone() -> None:
    assert {*PARTS, *PARTS.values(), *PARTS_WITHIN, *OF_CODE} <= set(MODULES)
