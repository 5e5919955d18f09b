"""Every flag that vpMoE adds to Megatron's is documented, and a preset, case or test uses it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vpmoe.data.arguments import add_data_args
from vpmoe.optimizer.arguments import add_optimizer_args
from vpmoe.tokenizer.arguments import add_tokenizer_args


def own_flags() -> Iterator[str]:
    """The flags of all modules of flags."""
    from vpmoe.model.arguments import add_model_args

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--window-size")  # Megatron's, which the model's flags change
    for add in (add_data_args, add_model_args, add_optimizer_args, add_tokenizer_args):
        add(parser)
    for action in parser._actions:
        if action.option_strings != ["--window-size"]:
            yield action.option_strings[0]


@pytest.fixture(scope="module")
def texts(repository: Path) -> dict[str, str]:
    """All documents, and all presets, cases and tests, each as one text."""
    documents = [*(repository / "docs").glob("*.md"), repository / "README.md"]
    uses = [
        *(repository / "configs").glob("*.toml"),
        *(repository / "vpmoe" / "cases").rglob("*.py"),
        *(path for path in (repository / "tests").rglob("*.py") if path != Path(__file__)),
    ]
    return {
        name: "\n".join(path.read_text() for path in paths)
        for name, paths in (("documents", documents), ("uses", uses))
    }


@pytest.mark.parametrize("flag", own_flags())
def test_a_flag_is_documented_and_used(texts: dict[str, str], flag: str) -> None:
    name = flag.removeprefix("--")
    assert re.search(rf"--(\[no-\])?{name}(?![\w-])", texts["documents"]), "no document has it"
    forms = rf"--(no-)?{name}(?![\w-])|\b{name.replace('-', '_')}\b"
    assert re.search(forms, texts["uses"]), "no preset, case or test uses it"
