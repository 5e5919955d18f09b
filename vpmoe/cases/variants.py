"""The target of the cases that train one small model in many ways, in one process group.

Every variant is a training of `vpmoe pretrain` over a few steps, with the preset's layers and a
vocabulary of a few hundred made-up ids, so that a training takes a second. What a variant computes
is compared with another variant's *tensor by tensor*: gradients after reduction and updates of each
parameter, under names that no layout changes, each rank's part with its part of the other's.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.named import Named, named_parts
from vpmoe.cases.presets import variants_of
from vpmoe.cases.statics import gradient_of, norm_of, unwrap
from vpmoe.cases.training import share_cores, train
from vpmoe.runtime.patches import replaced

_SEED = 20
# As long as a case may take.
_PATIENCE = datetime.timedelta(minutes=15)
_EXPERT = re.compile(r"local_experts\.\d+\.")


@dataclass
class Trained:
    """What one training computed.

    Attributes:
        losses: by step, from 1.
        gradients: of each part of a parameter, by step and `Named.key`: after reduction, before
            clipping.
        updates: what the optimizer added to it.
        parts: the parameters' parts.
    """

    losses: dict[int, float] = field(default_factory=dict)
    gradients: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    updates: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    parts: list[Named] = field(default_factory=list)


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Trains every variant, records what it computed, and checks what it must be equal to.

    Args:
        recorder: of this process.
        settings: `preset` (file), `flags` (of every variant), `variants` (see below), `files`
            (name -> JSON that flags find as `{folder}/name`), `perturb_seed` (moves the seed of
            vectors and samples).

            A variant has a `name`; `flags`; `without` (fields of the preset that it leaves out);
            `chunk_bytes` (of the chunked loss); `groups_differ` (each KV group starts from
            frequencies of its own); `unmoved` (vectors that start as the model sets them).

            One that must equal a variant before it has `same_as` (that one's name); `within`
            (relative bounds of `losses`, `gradients` and `updates`, and of gradients that are
            `summed` in another order); `summed` (ends of the names of such parameters); `unlike`
            (parts of the names of those that are not compared); `steps` (how many are compared, if
            not all).
    """
    from vpmoe.runtime import detect_lane

    share_cores()
    seed = _SEED + int(settings.get("perturb_seed") or 0)
    done: dict[str, Trained] = {}
    with tempfile.TemporaryDirectory(prefix="golden-variants-") as folder, meeting_again():
        for name, content in settings.get("files", {}).items():
            (Path(folder) / name).write_text(json.dumps(content), encoding="utf-8")
        flags = dict(variants_of(settings))
        for variant in settings["variants"]:
            name = variant["name"]
            with detect_lane().activate(), _chunks_of(variant.get("chunk_bytes")):
                watch = _Watch(recorder, variant, seed)
                with watch.watching():
                    train([flag.format(folder=folder) for flag in flags[name]])
            done[name] = watch.found
            if "same_as" in variant:
                compare(recorder, name, watch.found, done[variant["same_as"]], variant)
            else:
                record_tensors(recorder, name, watch.found)


def compare(
    recorder: Recorder, name: str, found: Trained, other: Trained, variant: Mapping[str, Any]
) -> None:
    """Holds a training to another one.

    Args:
        recorder: receives an invariant of each step's loss, and two of each parameter, of the
            step that is furthest off; a layer's routed experts have theirs together.
        name: of the training.
        found: it.
        other: what it must equal.
        variant: `same_as`, `within`, `steps` and `unlike` of `run`.
    """
    within, compared = variant["within"], variant.get("steps", math.inf)
    unlike, same = tuple(variant.get("unlike", ())), variant["same_as"]
    parts = {part.key: part for part in found.parts}
    for step, loss in found.losses.items():
        if step <= compared:
            recorder.invariant(
                f"{name}/model",
                f"the loss is that of {same}",
                abs(loss - other.losses[step]) / abs(other.losses[step]),
                within["losses"],
                step=step,
                phase="forward",
                tensor="lm_loss",
            )
    for kind, phase in (("gradients", "reduction"), ("updates", "optimizer")):
        theirs: dict[tuple[int, str], torch.Tensor] = getattr(other, kind)
        errors: dict[str, float] = {}
        last = 0
        for (step, key), value in getattr(found, kind).items():
            if step > compared or any(word in key for word in unlike):
                continue
            expected = theirs.get((step, parts[key].name))
            error = math.inf if expected is None else distance(value, parts[key].cut(expected))
            place, last = _EXPERT.sub("local_experts.", key), max(last, step)
            errors[place] = max(errors.get(place, 0.0), error)
        for key, error in errors.items():
            module, _, tensor = key.rpartition(".")
            summed = kind == "gradients" and key.endswith(tuple(variant.get("summed", ())))
            recorder.invariant(
                f"{name}/{module}",
                f"{kind} are those of {same}",
                error,
                within["summed" if summed else kind],
                step=last,
                phase=phase,
                tensor=f"{tensor}.{'grad' if kind == 'gradients' else 'update'}",
            )


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, relative to the norm; infinite for another shape or NaN."""
    if found.shape != expected.shape:
        return math.inf
    gap, size = norm_of(found.double() - expected.double()), norm_of(expected)
    if math.isnan(gap):
        return math.inf
    return gap / size if size else math.inf if gap else 0.0


def record_tensors(recorder: Recorder, name: str, found: Trained) -> None:
    """Records gradients and updates of traced steps, for the golden to hold.

    A layer's routed experts are one tensor, by their numbers.
    """
    for kind, phase, word in (
        ("gradients", "reduction", "grad"),
        ("updates", "optimizer", "update"),
    ):
        alike: dict[tuple[int, str], list[torch.Tensor]] = {}
        for (step, key), value in getattr(found, kind).items():
            if recorder.wants(step):
                alike.setdefault((step, _EXPERT.sub("local_experts.", key)), []).append(value)
        for (step, key), values in alike.items():
            module, _, tensor = key.rpartition(".")
            recorder.tensor(
                step=step,
                micro_batch=0,
                phase=phase,
                module=f"{name}/{module}",
                tensor=f"{tensor}.{word}",
                value=values[0] if len(values) == 1 else torch.stack(values),
            )


class _Watch:
    """Watches one training.

    Args:
        recorder: of this process.
        variant: see `run`.
        seed: of vectors and samples.
    """

    def __init__(self, recorder: Recorder, variant: Mapping[str, Any], seed: int) -> None:
        self.recorder, self.name, self.seed = recorder, str(variant["name"]), seed
        self.groups_differ = bool(variant.get("groups_differ"))
        self.unmoved = tuple(variant.get("unmoved", ()))
        self.found = Trained()
        self.step = 0
        self._calls: Counter[str] = Counter()
        self._model: list[torch.nn.Module] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """The training's samples come from here, and what it computes goes to `found`."""
        from vpmoe.data import plain
        from vpmoe.megatron import points
        from vpmoe.megatron.moe import observed_metrics

        with ExitStack() as stack:
            provider = "train_valid_test_datasets_provider"
            stack.enter_context(replaced(plain, provider, self._datasets()))
            for point, wrap in (
                (points.SETUP, self._wrap_setup),
                (points.TRAIN_STEP, self._wrap_train_step),
                (points.TRAINING_LOG, self._wrap_training_log),
            ):
                stack.enter_context(point.wrapped(wrap))
            stack.enter_context(observed_metrics(self._record_router_losses))
            yield
        self.recorder.discrete(
            f"{self.name}/model", dict(sorted(self._calls.items())), tensor="calls", step=1
        )

    def _datasets(self) -> Callable[..., Any]:
        def provider(counts: Any, vp_stage: int | None = None) -> tuple[Any, None, None]:
            from megatron.training import get_args

            del vp_stage
            args = get_args()
            return (
                Samples(counts[0], args.seq_length, args.padded_vocab_size, self.seed),
                None,
                None,
            )

        provider.is_distributed = True  # type: ignore[attr-defined]
        return provider

    def _wrap_setup(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def setup_model_and_optimizer(*args: Any, **kwargs: Any) -> Any:
            self._model, optimizer, scheduler = original(*args, **kwargs)
            self.found.parts = list(named_parts([unwrap(chunk) for chunk in self._model]))
            self._move_vectors(optimizer)
            self._count_calls()
            self._watch_optimizer(optimizer)
            return self._model, optimizer, scheduler

        return setup_model_and_optimizer

    def _move_vectors(self, optimizer: Any) -> None:
        """Vectors move away from where they start: many a bug shows in learnt weights alone."""
        with torch.no_grad():
            for part in self.found.parts:
                if part.parameter.ndim == 1 and part.name not in self.unmoved:
                    frequencies = part.name == "grapem.phi"
                    sharded = part.name.endswith("softmax_offset") or (
                        frequencies and self.groups_differ
                    )
                    number = torch.arange(part.parameter.numel(), dtype=torch.float64)
                    if frequencies and not self.groups_differ:
                        number %= _planes()
                    number += part.shard * len(number) if sharded else 0
                    move = (1.0 if frequencies else 0.1) * torch.sin(self.seed * (1 + number))
                    part.parameter.add_(move.to(part.parameter))
        optimizer.reload_model_params()

    def _count_calls(self) -> None:
        def count(module: torch.nn.Module, *_: Any) -> None:
            if self.step == 1:
                self._calls[type(module).__name__] += 1

        for chunk in self._model:
            for module in unwrap(chunk).modules():
                module.register_forward_hook(count)

    def _watch_optimizer(self, optimizer: Any) -> None:
        prepare, step_ready = optimizer.prepare_grads, optimizer.step_with_ready_grads

        def prepare_grads() -> bool:
            found_inf = bool(prepare())
            for part in self.found.parts:
                gradient = gradient_of(part.parameter)
                if gradient is not None:
                    self.found.gradients[self.step, part.key] = part.of(gradient).clone()
            return found_inf

        def step_with_ready_grads() -> bool:
            before = [part.of(part.parameter.detach()).clone() for part in self.found.parts]
            success = bool(step_ready())
            for part, weight in zip(self.found.parts, before, strict=True):
                update = part.of(part.parameter.detach()) - weight
                self.found.updates[self.step, part.key] = update
            return success

        optimizer.prepare_grads = prepare_grads
        optimizer.step_with_ready_grads = step_with_ready_grads

    def _wrap_train_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def train_step(*args: Any, **kwargs: Any) -> Any:
            self.step += 1
            return original(*args, **kwargs)

        return train_step

    def _wrap_training_log(self, original: Callable[..., Any]) -> Callable[..., Any]:
        from vpmoe.megatron.points import TRAINING_LOG

        def training_log(*args: Any, **kwargs: Any) -> Any:
            given = TRAINING_LOG.arguments(args, kwargs)
            curve = self.recorder.curve
            for name, value in given["loss_dict"].items():
                self.found.losses[self.step] = value.float().item()
                curve(self.step, f"{name.replace(' ', '_')}/{self.name}", value.float().item())
            if given["grad_norm"] is not None:
                norm = float(given["grad_norm"])
                curve(self.step, f"grad_norm/{self.name}", norm, "reduction")
            return original(*args, **kwargs)

        return training_log

    def _record_router_losses(self, metrics: Mapping[str, list[float]]) -> None:
        for name, layers in metrics.items():
            for layer, value in enumerate(layers, start=1):
                metric = f"aux_loss/{self.name}/{name}/layer{layer}"
                self.recorder.curve(self.step, metric, value)


def _planes() -> int:
    from megatron.training import get_args

    return int(get_args().kv_channels) // 2


class Samples(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Samples that depend on their index alone: two documents in a row, some tokens unsupervised.

    Args:
        count: of samples.
        length: tokens of each.
        vocabulary: ids.
        seed: of all of them.
    """

    def __init__(self, count: int, length: int, vocabulary: int, seed: int) -> None:
        self.count, self.length, self.vocabulary, self.seed = count, length, vocabulary, seed

    def __len__(self) -> int:
        """Number of samples."""
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """As `vpmoe.data.plain` has it."""
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        # Skewed, so that there is something to learn.
        draws = torch.rand(self.length + 1, generator=generator) ** 2
        tokens = (draws * self.vocabulary).long()
        first = int(torch.randint(self.length // 4, self.length, (1,), generator=generator))
        position = torch.arange(self.length)
        mask = (torch.rand(self.length, generator=generator) < 0.75).float()
        return {
            "tokens": tokens[:-1],
            "labels": tokens[1:],
            "position_ids": torch.where(position < first, position, position - first),
            "document_ids": (position >= first).int(),
            "loss_mask": mask,
            "span_id": mask.long(),
            "sample_id": torch.tensor(index),
        }


@contextlib.contextmanager
def meeting_again() -> Iterator[None]:
    """Lets the ranks of a run form one process group after another, inside.

    torch's own way has the first rank open the port anew for each of them, which the others may
    reach before or after.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        yield
        return
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    first, me = os.environ["RANK"] == "0", os.environ["RANK"]
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, ranks, is_master=first, timeout=_PATIENCE)
    number = itertools.count()
    original = torch.distributed.init_process_group

    def all_at(place: str) -> None:
        store.set(f"{place}/{me}", "")
        store.wait([f"{place}/{rank}" for rank in range(ranks)])

    def init_process_group(*args: Any, **kwargs: Any) -> None:
        place = f"group{next(number)}"
        all_at(place)  # a rank that is late would have the others' connections time out
        original(*args, **{**kwargs, "store": PrefixStore(place, store)})

    with replaced(torch.distributed, "init_process_group", init_process_group):
        yield
    all_at("end")  # the store is on the first rank, which must not end before the others


@contextlib.contextmanager
def _chunks_of(size: int | None) -> Iterator[None]:
    """Lets the chunked loss have chunks of so many bytes of logits."""
    if size is None:
        yield
        return
    from vpmoe.model import cross_entropy

    with replaced(cross_entropy, "_CHUNK_BYTES", size):
        yield
