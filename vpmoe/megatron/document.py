"""The list of contracts in docs/megatron.md, made from the contracts and from who imports them."""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict
from pathlib import Path

import vpmoe
from vpmoe.megatron.contract import Contract
from vpmoe.megatron.contracts import MODULES, contracts_of

_ROOM = "vpmoe.megatron"


def rendered() -> str:
    """The list in Markdown: of each module who uses it, and each contract with its facts."""
    users = _users()
    lines = []
    for module in MODULES:
        text = importlib.import_module(f"{_ROOM}.{module}").__doc__ or ""
        summary = text.strip().partition("\n\n")[0].replace("\n", " ")
        by = ", ".join(f"`{name}`" for name in sorted(users[module]))
        lines += [f"### `{_ROOM}.{module}`", "", f"{summary} Used by {by}.", ""]
        for contract in contracts_of(module):
            lines += _listed(contract)
        lines.append("")
    return "\n".join(lines)


def _listed(contract: Contract) -> list[str]:
    facts = "; ".join(fact.words() for fact in contract.facts)
    if contract.name.startswith("point "):  # they all have one reason, which the summary gives
        return [f"- {facts}"]
    return [f"- **{contract.name}.** {contract.why} {contract.remedy} Relies on: {facts}."]


def _users() -> dict[str, set[str]]:
    """The modules outside the room that import from each module of it."""
    users: defaultdict[str, set[str]] = defaultdict(set)
    root = Path(vpmoe.__file__).parent
    for path in root.rglob("*.py"):
        if path.is_relative_to(root / "megatron"):
            continue
        name = ".".join(("vpmoe", *path.relative_to(root).with_suffix("").parts))
        name = name.removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            if node.module == _ROOM:
                for alias in node.names:
                    users[alias.name].add(name)
            elif node.module.startswith(f"{_ROOM}."):
                users[node.module.removeprefix(f"{_ROOM}.")].add(name)
    return users
