"""`python -m vpmoe.megatron`: do all contracts hold for the installed megatron-core?"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from vpmoe.megatron.contract import MegatronChangedError, installed_version
from vpmoe.megatron.contracts import MODULES, contracts_of
from vpmoe.megatron.document import rendered
from vpmoe.runtime import detect_lane


def main(argv: Sequence[str] | None = None) -> int:
    """Checks all contracts; returns 1 where one does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m vpmoe.megatron",
        description="Check what vpMoE relies on in megatron-core, by name.",
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print the list of the documents instead"
    )
    options = parser.parse_args(argv)
    with detect_lane().activate(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if options.markdown:
            print(rendered(), end="")
            return 0
        return _check()


def _check() -> int:
    held, broken = 0, 0
    for module in MODULES:
        try:
            contracts = contracts_of(module)
        except MegatronChangedError as error:
            print(f"{module}: {error}", file=sys.stderr)
            broken += 1
            continue
        for contract in contracts:
            try:
                contract.check()
                held += 1
            except MegatronChangedError as error:
                print(f"{module}: {error}", file=sys.stderr)
                broken += 1
    print(f"megatron-core {installed_version()}: {held} contracts hold, {broken} do not")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
