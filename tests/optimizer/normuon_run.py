"""Runs of Megatron's `pretrain()` with NorMuon: python normuon_run.py PLAN.json

As `tests/model/megatron_run.py`, whose model, samples and plan these are, with vpMoE's optimizer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "model"))

import megatron_run  # type: ignore[import-not-found]

from vpmoe.runtime import detect_lane
from vpmoe.runtime.patches import replaced


def main(words: list[str]) -> int:
    """Runs the plan with the optimizer's flags added to the model's."""
    with detect_lane().activate():
        import vpmoe.model.arguments as model_arguments
        from vpmoe.optimizer.arguments import add_optimizer_args, validate_optimizer_args
        from vpmoe.optimizer.megatron import install

        install()
        add_model_args = model_arguments.add_model_args
        validate_model_args = model_arguments.validate_model_args

        def add_args(parser: Any) -> Any:
            action = parser._option_string_actions["--optimizer"]
            action.choices = [*action.choices, "normuon"]
            return add_optimizer_args(add_model_args(parser))

        def validate_args(args: Any) -> None:
            validate_model_args(args)
            validate_optimizer_args(args)

        with (
            replaced(model_arguments, "add_model_args", add_args),
            replaced(model_arguments, "validate_model_args", validate_args),
        ):
            return int(megatron_run.main(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
