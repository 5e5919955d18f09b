"""Cases and faults, declared as data in modules that `[tool.golden]` names; see `discovery`."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from validation.config import CaseError, Lane
from validation.files import encode_json, safe_name
from validation.isolation import HIDDEN

ARITHMETICS = ("native", "wide")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a case needs of a machine; it is SKIPPED, with the reason, where something is missing.

    Attributes:
        gpus: CUDA devices.
        modules: importable Python modules.
        paths: files or folders, relative to the repository.
    """

    gpus: int = 0
    modules: Sequence[str] = ()
    paths: Sequence[str] = ()

    def missing(self, root: Path, gpus: int, lane: Lane) -> str | None:
        """Says why the case cannot run here.

        Args:
            root: the repository.
            gpus: CUDA devices of the machine.
            lane: where it would run.

        Returns:
            The reason, or None where it can run.
        """
        if gpus < self.gpus:
            return f"needs {self.gpus} GPU(s), this machine has {gpus}"
        for name in self.modules:
            if not lane.on_gpus and name.partition(".")[0] in HIDDEN:
                return f"needs the Python module {name}, which lane {lane.name} hides"
            if importlib.util.find_spec(name) is None:
                return f"needs the Python module {name}"
        for path in self.paths:
            if not (root / path).exists():
                return f"needs {path}"
        return None


@dataclass(frozen=True, kw_only=True)
class Invariant:
    """A relation between this case's run and another case's, whatever the goldens say.

    Attributes:
        reference: the other case, of the same lane.
        curves: metric, with `*` for any part -> relative tolerance, at the steps that this case
            has. A metric that several ranks record must hold on each.
        events: relative tolerance of the tensors that both cases trace; None leaves them out.
        shards: `phase:module.tensor`, with `*` for any part -> relative tolerance of the tensors
            that this case's ranks share among them, whichever has which; the first pattern that
            fits decides. Some rank must have each tensor of the reference, and ranks that have the
            same one must have the same bits.
    """

    reference: str
    curves: Mapping[str, float]
    events: float | None = None
    shards: Mapping[str, float] = field(default_factory=dict)

    @property
    def declared(self) -> dict[str, Any]:
        """What it demands, as JSON; goldens from before there were shards have no such key."""
        content = asdict(self)
        if not self.shards:
            del content["shards"]
        return content


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that is run and traced.

    Attributes:
        name: letters, digits, `_`, `-`; also the golden's folder.
        description: one sentence.
        lanes: where it runs, as the repository declares them.
        target: `module:function`, called in each process as function(recorder, settings).
        settings: JSON values handed to the target; part of the golden's provenance.
        processes: ranks; more than one get torchrun's environment.
        traced_steps: training steps whose tensors are recorded.
        preload: modules to import, or `module:function` to call, once in the parent process that
            runs are forked from; they must not compute anything, nor use CUDA.
        timeout: seconds after which a run is stopped, which is a FAIL.
        needs: see `Needs`.
        invariant: a relation of its run to another case's, besides its own golden.
        decode: `module:function`, text of a list of token ids, for the reports.
        throughput: `module:function`, called as function(pacer, settings) to train unobserved at
            the pace of `golden bench`, until the pacer stops it.
        paced: settings put over the case's own there; no part of the golden.
        arithmetic: `native`, or `wide`: every sum, product and function of a number is computed in
            fp64 and rounded once, so that records repeat bit for bit on any CPU.
        deterministic: whether two runs of one source tree in one environment must be bit-identical.
        leading: metrics, with `*` for any part, whose smallest change that a golden sees is worked
            out and listed, the most telling one first; without any, every metric whose name has no
            `/`.
        equivalents: name -> settings put over the case's own that change rounding and nothing else
            (another kernel, another order of sums): what a calibration on a GPU reruns.
    """

    name: str
    description: str
    lanes: Sequence[str]
    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    processes: int = 1
    traced_steps: Sequence[int] = ()
    preload: Sequence[str] = ("torch",)
    timeout: float = 900.0
    needs: Needs = field(default_factory=Needs)
    invariant: Invariant | None = None
    decode: str | None = None
    throughput: str | None = None
    paced: Mapping[str, Any] = field(default_factory=dict)
    arithmetic: str = "native"
    deterministic: bool = False
    leading: Sequence[str] = ()
    equivalents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not safe_name(self.name):
            raise CaseError(f"case {self.name!r}: a name of letters, digits, '.', '_' and '-'")
        if isinstance(self.lanes, str) or not self.lanes:
            raise CaseError(f"case {self.name}: lanes {self.lanes!r}: a list of one at least")
        if self.arithmetic not in ARITHMETICS:
            known = ", ".join(ARITHMETICS)
            raise CaseError(f"case {self.name}: arithmetic is {known}, not {self.arithmetic!r}")
        if self.target.count(":") != 1:
            raise CaseError(f"case {self.name}: target {self.target!r} is not module:function")

    @property
    def digest(self) -> str:
        """Of what is run: not of where the adapter is, which a move changes and nothing else."""
        return hashlib.blake2b(encode_json(self.declared), digest_size=8).hexdigest()

    @property
    def declared(self) -> dict[str, Any]:
        """What is run, as JSON."""
        content: dict[str, Any] = {
            "settings": dict(self.settings),
            "processes": self.processes,
            "traced_steps": list(self.traced_steps),
        }
        if self.arithmetic != "native":
            content["arithmetic"] = self.arithmetic
        if self.invariant is not None:
            content["law"] = self.invariant.declared  # the key that goldens have
        return content


def leads(case: Case, metric: str) -> bool:
    """Whether a metric is one of the case's leading ones."""
    if not case.leading:
        return "/" not in metric
    return any(fnmatch.fnmatchcase(metric, pattern) for pattern in case.leading)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A known bug that can be planted at run time.

    Attributes:
        id: letters, digits, `_`, `-`.
        category: such as `window` or `optimizer`.
        component: part of a module's, tensor's or metric's name, or the phase, that a check should
            trace it to.
        imitates: what it is like; a link where there is a public report.
        plant: `module:function`; a context manager entered in the worker around the target.
        case: the cheapest case that shows it.
        no_op: the no-op control, which is the same patch without effect and must pass; as `plant`,
            where dots reach into the function.
        canary_steps: training steps after which it shows; None when only a whole run does.
        lanes: where it applies.
        canary: whether a check may plant it to prove itself, which must be cheap and certain.
        equivalent: why it changes nothing on this lane, if so; its trace must then be equal.
        case_on: lane -> the case that shows it there, where that is another one.
    """

    id: str
    category: str
    component: str
    imitates: str
    plant: str
    case: str
    no_op: str | None = None
    canary_steps: int | None = None
    lanes: Sequence[str] = ("cpu",)
    canary: bool = True
    equivalent: str | None = None
    case_on: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not safe_name(self.id):
            raise CaseError(f"fault {self.id!r}: an id of letters, digits, '.', '_' and '-'")

    def shown_by(self, lane: str) -> str:
        """The cheapest case of a lane that shows it."""
        return self.case_on.get(lane, self.case)


@dataclass(frozen=True, kw_only=True)
class Benign:
    """A change that preserves behaviour, planted like a fault: every check must let it pass.

    Attributes:
        id: letters, digits, `_`, `-`.
        description: what changes, and why it is harmless.
        plant: `module:function`; a context manager entered in the worker around the target.
        case: the case that must pass.
        steps: training steps that it runs; None is the whole case.
        lanes: where it applies.
    """

    id: str
    description: str
    plant: str
    case: str
    steps: int | None = None
    lanes: Sequence[str] = ("cpu",)

    def __post_init__(self) -> None:
        if not safe_name(self.id):
            raise CaseError(f"change {self.id!r}: an id of letters, digits, '.', '_' and '-'")
