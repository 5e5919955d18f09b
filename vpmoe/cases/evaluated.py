"""The target of the case `evaluated`: a training with evaluations, which must change nothing of it.

Two trainings on one dataset, the second without evaluations. Beside its golden, laws: the splits
share no row and are all rows together; the model reads the split that it should; an evaluation
leaves everything as it was, bit for bit; its loss is that of the model on its tokens; and the
trainings end with the same state.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.declare import EPSILON
from vpmoe.cases.state import State, differing, surroundings, training_state
from vpmoe.cases.statics import unwrap
from vpmoe.cases.tokens import record_batch
from vpmoe.cases.training import build_files, prepared, train

# Two means of some hundred rounded numbers, added up in another order.
_LOSS_BOUND = 64 * EPSILON
_TEXT = {"training": "train", "evaluation": "valid"}


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Builds the splits, trains with evaluations and without, and compares.

    Args:
        recorder: of this process.
        settings: `preset` (file), `conversations` (JSONL file), `valid_fraction`, `flags` (of
            `vpmoe pretrain`), `evaluation` (flags of the first training alone).

    Raises:
        RuntimeError: a training refused or failed.
    """
    with prepared(recorder, settings) as (flags, folder):
        from vpmoe.cases.observe import observe_training

        data, whole = folder / "data", folder / "whole"
        build_files({**settings, "valid_fraction": 0.0}, whole)
        _check_splits(recorder, data, whole)
        texts = {split: _text_of(data, split) for split in ("train", "valid")}
        seed = settings.get("perturb_seed")
        watch = _Watch(recorder, texts, seed)
        with observe_training(recorder), watch.attached():
            train([*flags, *(str(flag) for flag in settings["evaluation"])])
        evaluated = watch.end()
        plain = _Watch(None, texts, seed)
        with plain.attached():
            train([*flags, "--eval-iters", "0"])
        _compare(recorder, evaluated, plain.end())


def _check_splits(recorder: Recorder, data: Path, whole: Path) -> None:
    """The splits' documents, against those of the same rows in one split."""
    documents = {split: _documents(data, split) for split in ("train", "valid")}
    everything = _documents(whole, "train")
    shared = {row for row, *_ in documents["train"]} & {row for row, *_ in documents["valid"]}
    together = documents["train"] + documents["valid"]
    missing, added = everything - together, together - everything
    recorder.discrete(
        "splits",
        {split: sum(found.values()) for split, found in documents.items()},
        tensor="documents",
        phase="data",
    )
    for law, error in (
        ("no row is in both splits", len(shared)),
        ("the splits are all rows together", sum((missing + added).values())),
    ):
        recorder.invariant("splits", law, float(error), 0.0, phase="data", tensor=law)


def _documents(data: Path, split: str) -> Counter[tuple[str, ...]]:
    """What a split holds: its rows, with the digests of their ids, masks and spans."""
    from vpmoe.data.documents import DocumentStore

    store = DocumentStore(data, split)
    return Counter(
        tuple(str(value) for value in store.record(number).values()) for number in range(len(store))
    )


def _text_of(data: Path, split: str) -> str:
    """A split's tokens, one character each, documents after each other."""
    from vpmoe.data.documents import DocumentStore

    store = DocumentStore(data, split)
    return "".join(_characters(store.read(number)["tokens"]) for number in range(len(store)))


def _characters(tokens: Any) -> str:
    return "".join(map(chr, tokens.tolist()))


@dataclasses.dataclass(frozen=True)
class _End:
    """What a training left: its last step, its state, and the samples of its micro-batches."""

    step: int
    state: State
    samples: Sequence[Sequence[int]]


class _Watch:
    """Watches a training and its evaluations.

    Args:
        recorder: of this process; None records nothing.
        texts: the tokens of each split, as `_text_of` gives them.
        perturb_seed: moves every initial weight by one unit in the last place.
    """

    def __init__(
        self, recorder: Recorder | None, texts: Mapping[str, str], perturb_seed: int | None
    ) -> None:
        self.recorder = recorder
        self.texts = texts
        self.perturb_seed = perturb_seed
        self.step = 0
        self.micro_batch = 0
        self._evaluating = False
        self._batches: list[Any] = []
        self._training_modules: list[str] = []
        self._samples: list[list[int]] = []
        self._found: tuple[Any, Any, Any] | None = None

    def end(self) -> _End:
        """What the training left, which is then forgotten."""
        assert self._found is not None
        state, self._found = training_state(*self._found), None
        return _End(self.step, state, self._samples)

    def attached(self) -> ExitStack:
        """Wraps Megatron's loop and the batches, until the result is closed."""
        import vpmoe.data.batch as data_batch
        from vpmoe.megatron.points import EVALUATE, SETUP, TRAIN_STEP
        from vpmoe.runtime.patches import replaced

        stack = ExitStack()
        for point, wrap in (
            (SETUP, self._wrap_setup),
            (TRAIN_STEP, self._wrap_train_step),
            (EVALUATE, self._wrap_evaluate),
        ):
            stack.enter_context(point.wrapped(wrap))
        wrapped = self._wrap_get_batch(data_batch.get_batch)
        stack.enter_context(replaced(data_batch, "get_batch", wrapped))
        return stack

    def _wrap_setup(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def setup_model_and_optimizer(*args: Any, **kwargs: Any) -> Any:
            from vpmoe.cases.observe import perturb_weights

            model, optimizer, scheduler = self._found = original(*args, **kwargs)
            if self.perturb_seed is not None:
                perturb_weights(model, optimizer, self.perturb_seed)
            return model, optimizer, scheduler

        return setup_model_and_optimizer

    def _wrap_train_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def train_step(*args: Any, **kwargs: Any) -> Any:
            self.step, self.micro_batch = int(kwargs["iteration"]) + 1, 0
            return original(*args, **kwargs)

        return train_step

    def _wrap_get_batch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_batch(*args: Any, **kwargs: Any) -> Any:
            batch = original(*args, **kwargs)
            if self._evaluating:
                self._batches.append(batch)
                self._note_modes()
            else:
                self._samples.append(batch.sample_ids.tolist())
            if self.recorder is not None:
                self._check_text(self.recorder, batch)
                if self._evaluating:
                    record_batch(_Renamed(self.recorder), batch, self.step, self.micro_batch)
            self.micro_batch += 1
            return batch

        return get_batch

    def _note_modes(self) -> None:
        assert self._found is not None
        for chunk in self._found[0]:
            self._training_modules += [n for n, m in chunk.named_modules() if m.training]

    def _check_text(self, recorder: Recorder, batch: Any) -> None:
        """Each piece of a document in a batch is one of its split's."""
        kind = "evaluation" if self._evaluating else "training"
        text = self.texts[_TEXT[kind]]
        foreign = [piece for piece in _pieces(batch) if piece not in text]
        recorder.invariant(
            "valid_batch" if self._evaluating else "batch",
            f"a micro-batch of the {kind} has tokens of its split alone",
            float(len(foreign)),
            0.0,
            step=self.step,
            phase="data",
            tensor="split",
        )

    def _wrap_evaluate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def evaluate(*args: Any, **kwargs: Any) -> Any:
            if self.recorder is None:
                raise RuntimeError("--eval-iters 0, and still Megatron evaluates")
            assert self._found is not None
            model = self._found[0]
            before = {**training_state(*self._found), **surroundings(model)}
            self._evaluating, self.micro_batch = True, 0
            self._batches, self._training_modules = [], []
            try:
                result = original(*args, **kwargs)
            finally:
                self._evaluating = False
            after = {**training_state(*self._found), **surroundings(model)}
            self._record(self.recorder, before, after, result[0])
            return result

        return evaluate

    def _record(
        self, recorder: Recorder, before: State, after: State, losses: Mapping[str, Any]
    ) -> None:
        for name, value in losses.items():
            recorder.curve(self.step, f"valid_{name.replace(' ', '_')}", float(value))
        _record_kept(recorder, before, after, self.step)
        recorder.invariant(
            "evaluation",
            "no module is in training mode while it evaluates",
            float(len(self._training_modules)),
            0.0,
            step=self.step,
            phase="forward",
            tensor="mode",
        )
        expected = self._expected_loss()
        recorder.invariant(
            "evaluation",
            "its loss is the mean over the supervised tokens of its batches",
            abs(float(losses["lm loss"]) - expected) / expected,
            _LOSS_BOUND,
            step=self.step,
            phase="forward",
            tensor="loss",
        )

    def _expected_loss(self) -> float:
        assert self._found is not None
        (chunk,) = self._found[0]
        model = unwrap(chunk)
        total = count = 0.0
        model.eval()
        with torch.no_grad():
            for batch in self._batches:
                losses = model(
                    batch.tokens,
                    batch.position_ids,
                    None,
                    labels=batch.labels,
                    document_ids=batch.document_ids,
                )
                mask = batch.loss_mask > 0
                total += float(losses[mask].double().sum())
                count += int(mask.sum())
        model.train()
        return total / count


class _Renamed(Recorder):
    """Records the batches of evaluations apart from those of the training."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder.rank)
        self._recorder = recorder

    def discrete(self, module: str, value: Any, **place: Any) -> None:
        """Records a JSON value."""
        self._recorder.discrete(f"valid_{module}", value, **place)


def _record_kept(recorder: Recorder, before: State, after: State, step: int) -> None:
    """That an evaluation left everything as it was, one law for each module."""
    changed = Counter(place.module for place in differing(before, after))
    for module in dict.fromkeys(place.module for place in (*before, *after)):
        recorder.invariant(
            module,
            "an evaluation leaves it as it was",
            float(changed[module]),
            0.0,
            step=step,
            phase="forward",
            tensor="kept",
        )


def _compare(recorder: Recorder, evaluated: _End, plain: _End) -> None:
    """That a training with evaluations is the one without."""
    changed = differing(plain.state, evaluated.state)
    found = Counter(place.module for place in changed)
    modules = dict.fromkeys(place.module for place in (*plain.state, *evaluated.state))
    laws: Iterator[tuple[str, float]] = ((module, float(found[module])) for module in modules)
    for module, error in (
        ("samples", float(list(plain.samples) != list(evaluated.samples))),
        *laws,
    ):
        recorder.invariant(
            module,
            "a training with evaluations is the one without",
            error,
            0.0,
            step=evaluated.step,
            phase="optimizer",
            tensor="same_training",
        )


def _pieces(batch: Any) -> Iterator[str]:
    """The documents' parts in a batch, one character a token."""
    for tokens, documents in zip(batch.tokens, batch.document_ids, strict=True):
        for document in documents.unique():
            yield _characters(tokens[documents == document])
