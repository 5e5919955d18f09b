"""`python -m vpmoe.megatron`, and contracts that do not hold."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from vpmoe.cases.commands.session import Session

_HERE = __name__


def record_contracts(commands: Session) -> None:
    """Records what the contracts' command prints, and what each kind of broken fact says."""
    from vpmoe.megatron import unpickling
    from vpmoe.megatron.__main__ import main
    from vpmoe.runtime.patches import replaced

    commands.run("all hold", main, [])
    commands.run("as Markdown", main, ["--markdown"])
    commands.call("users", _users)
    commands.call("documented", _documented)
    commands.run("unknown option", main, ["--quiet"])
    commands.module("as a module", "vpmoe.megatron", [])
    held, broken = _contracts()
    for kind, contracts in (("held", held), ("broken", broken)):
        for contract in contracts:
            fact = contract.facts[0]
            commands.call(f"{kind}: {contract.name}", _told, fact)
    with replaced(unpickling, "CONTRACTS", (*held, *broken)):
        commands.run("some do not hold", main, [])
        commands.call("all checked", lambda: _checked(["unpickling", "points"]))
    with _moved("vpmoe.megatron.unpickling"):
        commands.run("an import that fails", main, [])
        commands.call("an import that fails, checked", lambda: _checked(["unpickling"]))
    with replaced(sys.modules["vpmoe.megatron.start"], "CONTRACTS", broken[:2]):
        commands.vpmoe(
            "a training", "pretrain", "--mock-data", "--num-layers", "2", megatron_prints=True
        )
    taken = next(c for c in held if c.name == "takes")
    commands.call("an object taken", lambda: taken.take("example").__name__)
    commands.call("a package that is not there", _needing, "vpmoe_of_nobody")
    commands.call("a package that the lane hides", _needing, "transformer_engine")
    commands.call("a choice that is gone", _widened)


def _needing(package: str) -> list[str]:
    """A contract on a package: it holds where that is missing, and names it where it is broken."""
    from vpmoe.megatron.contract import Contract, Exists
    from vpmoe.runtime import detect_lane

    contract = Contract("needs", "It is relied on.", "See.", (Exists(f"{_HERE}:gone"),), package)
    with detect_lane().activate():
        contract.check()
        # A version is the machine's.
        return [contract.name, str(contract.broken("it is")).partition(" ")[0]]


def _widened() -> None:
    import argparse

    from vpmoe.megatron.start import widen_choices

    widen_choices(argparse.ArgumentParser(), "--gone", "choice")


def example(first: Any, second: Any = None, /, *, named: Any = None) -> Any:
    """What the contracts here are about."""
    reads = getattr(first, "attribute", "text")
    if named:
        called(reads)
    return (first, second, called(reads, named=named))


class Example:
    """What the contracts here are about."""

    def method(self, first: Any, **others: Any) -> Any:
        """Takes anything by name."""
        return called(self, first, **others)


def called(*values: Any, **named: Any) -> Any:
    """What the example calls."""
    return values, named


NUMBER = 3


def _contracts() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Contracts on this module: one of each kind of fact that holds, and each way not to hold."""
    from vpmoe.megatron.contract import (
        Contract,
        Exists,
        MakesTuple,
        OnlyCalls,
        Passes,
        Reads,
        Takes,
    )

    place = f"{_HERE}:example"
    method = f"{_HERE}:Example.method"
    held = {
        "exists": Exists(f"{_HERE}:Example"),
        "takes": Takes(place, ("first", "second"), ("named",)),
        "takes as a method": Takes(method, ("first",), ("any",)),
        "takes as a class": Takes(f"{_HERE}:Example"),
        "reads": Reads(place, ("attribute", "named", "called")),
        "reads where it was": Reads(f"{_HERE}:gone", ("called",), former=method),
        "passes": Passes(place, "called", "named", "named"),
        "makes a tuple": MakesTuple(place, ("first", "second")),
        "only calls": OnlyCalls(place, "named", "called"),
    }
    broken = {
        "no module": Exists("vpmoe.cases.commands.gone:example"),
        "no name": Exists(f"{_HERE}:gone"),
        "no method": Exists(f"{_HERE}:Example.gone"),
        "another order": Takes(place, ("second", "first")),
        "no keyword": Takes(place, (), ("other", "more")),
        "a positional for a keyword": Takes(place, (), ("first",)),
        "no function": Takes(f"{_HERE}:NUMBER"),
        "nothing read": Reads(place, ("other", "more")),
        "nothing read of a number": Reads(f"{_HERE}:NUMBER", ("other",)),
        "nowhere read": Reads(f"{_HERE}:gone", ("called",)),
        "nowhere read, nor before": Reads(f"{_HERE}:gone", ("called",), former=f"{_HERE}:gone"),
        "nothing passed": Passes(place, "called", "named", "reads"),
        "nothing passed by a number": Passes(f"{_HERE}:NUMBER", "called", "named", "named"),
        "no tuple": MakesTuple(place, ("second", "first")),
        "more than a call": OnlyCalls(place, "first", "called"),
    }
    return (
        tuple(_contract(Contract, name, fact) for name, fact in held.items()),
        tuple(_contract(Contract, name, fact) for name, fact in broken.items()),
    )


def _contract(kind: Any, name: str, fact: Any) -> Any:
    return kind(name, "The case relies on it.", "Nothing is to be done.", (fact,))


def _documented() -> list[Any]:
    from vpmoe.megatron.documented import DOCUMENTED, OVERRIDDEN

    return [{name: sorted(names) for name, names in d.items()} for d in (DOCUMENTED, OVERRIDDEN)]


def _told(fact: Any) -> list[str | None]:
    return [fact.words(), fact.problem()]


def _users() -> dict[str, list[str]]:
    """Who imports from each module of the room, but for cases, which come and go."""
    from vpmoe.megatron.document import _users

    return {
        module: sorted(user for user in users if not user.startswith("vpmoe.cases"))
        for module, users in sorted(_users().items())
    }


def _checked(modules: list[str]) -> str:
    from vpmoe.megatron.contracts import check_modules

    check_modules(modules)
    return "they hold"


@contextlib.contextmanager
def _moved(module: str) -> Iterator[None]:
    """A module of the room that cannot be imported, as where Megatron has moved a name."""
    former = sys.modules.pop(module)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules[module] = former
