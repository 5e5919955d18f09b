"""Contracts: what vpMoE relies on in megatron-core beside documented names, checked by name.

A contract holds facts about Megatron's code: that a name is there, that a function takes certain
parameters, that it reads an attribute which vpMoE sets. Checking reads signatures and code objects
and runs nothing of Megatron. What vpMoE itself has put in Megatron's place is looked behind.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any


class MegatronChangedError(RuntimeError):
    """The installed megatron-core is not what vpMoE relies on."""


class _ChangedError(Exception):
    """What changed, in words."""


@dataclass(frozen=True)
class Fact(ABC):
    """One thing that must be true of Megatron.

    Attributes:
        target: `module:name`, dots in `name` go into classes.
    """

    target: str

    @property
    def name(self) -> str:
        """The last part of the target."""
        return self.target.rpartition(":")[2].rpartition(".")[2]

    @property
    def place(self) -> str:
        """The target as one dotted path."""
        return self.target.replace(":", ".")

    @abstractmethod
    def words(self) -> str:
        """What must be true, in Markdown."""

    @abstractmethod
    def verify(self, found: Any) -> None:
        """Raises `_ChangedError` where it is not true of what the target names."""

    def find(self) -> Any:
        """What the target names, behind what vpMoE has put there."""
        module, _, path = self.target.partition(":")
        try:
            owner: Any = importlib.import_module(module)
        except ImportError as error:
            raise _ChangedError(f"{module} cannot be imported: {error}") from error
        found = owner
        for part in path.split("."):
            try:
                owner, found = found, getattr(found, part)
            except AttributeError:
                raise _ChangedError(f"{self.place} is gone") from None
        # Not above: declaring a fault names a contract, and needs no torch, which this imports.
        from vpmoe.runtime.patches import original

        return original(owner, self.name, found)

    def problem(self) -> str | None:
        """What is not true, or None."""
        try:
            self.verify(self.find())
        except _ChangedError as error:
            return str(error)
        return None


@dataclass(frozen=True)
class Exists(Fact):
    """The name is there."""

    def words(self) -> str:
        """See `Fact`."""
        return f"`{self.place}` exists"

    def verify(self, found: Any) -> None:
        """See `Fact`."""


@dataclass(frozen=True)
class Takes(Fact):
    """The function, or class, takes these parameters.

    Attributes:
        positional: its first positional parameters, in order, without `self`.
        keywords: parameters that it takes by keyword.
    """

    positional: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()

    def words(self) -> str:
        """See `Fact`."""
        parts = [*self.positional, *(f"{name}=" for name in self.keywords)]
        return f"`{self.place}({', '.join(parts)})`"

    def verify(self, found: Any) -> None:
        """See `Fact`."""
        try:
            parameters = list(inspect.signature(found).parameters.values())
        except (TypeError, ValueError):
            raise _ChangedError(f"{self.place} is no function with a signature") from None
        if parameters and parameters[0].name == "self" and not inspect.isclass(found):
            del parameters[0]
        ordered = [
            p.name
            for p in parameters
            if p.kind
            in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        ]
        first = tuple(ordered[: len(self.positional)])
        if first != self.positional:
            raise _ChangedError(
                f"{self.place} takes ({', '.join(first)}) first, not ({', '.join(self.positional)})"
            )
        named = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
        any_name = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        missing = [name for name in self.keywords if name not in named]
        if missing and not any_name:
            raise _ChangedError(f"{self.place} takes no parameter {', '.join(missing)}")


@dataclass(frozen=True)
class Reads(Fact):
    """The function's code mentions these names: attributes, variables, keywords or strings.

    Attributes:
        names: all of them.
        former: where versions before this one have the function, if elsewhere.
    """

    names: tuple[str, ...] = ()
    former: str | None = None

    def words(self) -> str:
        """See `Fact`."""
        former = "" if self.former is None else f" (before: `{self.former.replace(':', '.')}`)"
        return f"`{self.place}`{former} reads {_listed(self.names)}"

    def find(self) -> Any:
        """See `Fact`; at its former place where the present one is gone."""
        try:
            return super().find()
        except _ChangedError:
            if self.former is None:
                raise
            try:
                return Reads(self.former).find()
            except _ChangedError:
                raise _ChangedError(f"{self.place} is gone") from None

    def verify(self, found: Any) -> None:
        """See `Fact`."""
        code = getattr(inspect.unwrap(found), "__code__", None)
        if code is None:
            raise _ChangedError(f"{self.place} is no function")
        mentioned = set(_mentioned(code))
        missing = [name for name in self.names if name not in mentioned]
        if missing:
            raise _ChangedError(f"{self.place} no longer reads {', '.join(missing)}")


@dataclass(frozen=True)
class Passes(Fact):
    """The function calls `callee` with the keyword `keyword`, and gives it the variable `value`."""

    callee: str = ""
    keyword: str = ""
    value: str = ""

    def words(self) -> str:
        """See `Fact`."""
        return f"`{self.place}` calls `{self.callee}({self.keyword}={self.value})`"

    def verify(self, found: Any) -> None:
        """See `Fact`."""
        for node in ast.walk(_parsed(found, self.place)):
            if isinstance(node, ast.Call) and _name_of(node.func) == self.callee:
                for keyword in node.keywords:
                    if keyword.arg == self.keyword and _name_of(keyword.value) == self.value:
                        return
        raise _ChangedError(
            f"{self.place} no longer calls {self.callee}({self.keyword}={self.value})"
        )


@dataclass(frozen=True)
class MakesTuple(Fact):
    """The function makes a tuple that begins with these variables."""

    names: tuple[str, ...] = ()

    def words(self) -> str:
        """See `Fact`."""
        return f"`{self.place}` makes a tuple that begins with {_listed(self.names)}"

    def verify(self, found: Any) -> None:
        """See `Fact`."""
        for node in ast.walk(_parsed(found, self.place)):
            if isinstance(node, ast.Tuple):
                names = tuple(_name_of(element) for element in node.elts[: len(self.names)])
                if names == self.names:
                    return
        raise _ChangedError(
            f"{self.place} no longer makes a tuple that begins with {', '.join(self.names)}"
        )


@dataclass(frozen=True)
class OnlyCalls(Fact):
    """What the function does where `condition` is true, is one call of `callee`."""

    condition: str = ""
    callee: str = ""

    def words(self) -> str:
        """See `Fact`."""
        return f"`{self.place}` does nothing under `{self.condition}` but `{self.callee}(...)`"

    def verify(self, found: Any) -> None:
        """See `Fact`."""
        uses = [
            node
            for node in ast.walk(_parsed(found, self.place))
            if isinstance(node, ast.Name) and node.id == self.condition
        ]
        guarded = [
            node
            for node in ast.walk(_parsed(found, self.place))
            if isinstance(node, ast.If)
            and _name_of(node.test) == self.condition
            and not node.orelse
            and len(node.body) == 1
            and isinstance(node.body[0], ast.Expr)
            and isinstance(node.body[0].value, ast.Call)
            and _name_of(node.body[0].value.func) == self.callee
        ]
        if len(uses) != 1 or len(guarded) != 1:
            raise _ChangedError(
                f"{self.place} does more, or less, under {self.condition} than to call "
                f"{self.callee}"
            )


@dataclass(frozen=True)
class Contract:
    """What vpMoE relies on for one purpose.

    Attributes:
        name: unique, for messages and the document.
        why: what vpMoE does with it; a sentence.
        remedy: what to do where it does not hold; a sentence.
        facts: all of them are checked.
        needs: a package without which nothing is relied on.
    """

    name: str
    why: str
    remedy: str
    facts: tuple[Fact, ...]
    needs: str | None = None

    def check(self) -> None:
        """Checks every fact.

        Raises:
            MegatronChangedError: one is not true of the installed version; the message says which,
                what vpMoE relied on, and what to do.
        """
        if self.needs is not None and not _installed(self.needs):
            return
        problems = [problem for fact in self.facts if (problem := fact.problem()) is not None]
        if problems:
            raise self.broken("; ".join(problems))

    def broken(self, problem: str) -> MegatronChangedError:
        """The refusal, to raise where a contract is found broken in use."""
        package = "megatron-core" if self.needs is None else self.needs.replace("_", "-")
        version = installed_version(package)
        return MegatronChangedError(
            f"{package} {version} changed what the contract `{self.name}` relies on: {problem}. "
            f"{self.why} {self.remedy} (docs/megatron.md lists the contracts.)"
        )

    def take(self, name: str) -> Any:
        """Checks all of this contract and returns the object that one of its facts names.

        Args:
            name: the last part of the fact's target.

        Returns:
            The object.
        """
        self.check()
        return next(fact for fact in self.facts if fact.name == name).find()


def check_all(contracts: Iterable[Contract]) -> None:
    """Checks every contract before the first is refused.

    Args:
        contracts: what to check.

    Raises:
        MegatronChangedError: some do not hold.
    """
    errors = []
    for contract in contracts:
        try:
            contract.check()
        except MegatronChangedError as error:
            errors.append(str(error))
    if errors:
        raise MegatronChangedError("\n".join(errors))


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # the CPU lane hides it
        return False


def installed_version(package: str = "megatron-core") -> str:
    """The version of an installed package, in words where it has none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(of unknown version)"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _mentioned(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_varnames
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple):  # the keywords of a call
            yield from (word for word in constant if isinstance(word, str))
        elif isinstance(constant, CodeType):
            yield from _mentioned(constant)


def _parsed(function: Any, place: str) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError):
        raise _ChangedError(f"{place} has no source to read") from None


def _name_of(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else None
