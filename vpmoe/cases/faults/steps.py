"""Bugs in what a training meets besides the plain step, and at the length that it is trained at."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

from vpmoe.cases.faults.planting import (
    Planted,
    after,
    arguments,
    fault,
    patched,
    result,
    together,
)
from vpmoe.megatron import points

_CHAIN = "vpmoe.megatron.optimizer"
_NORMUON = "vpmoe.optimizer.normuon"
_EAGER = "vpmoe.model.attention.eager"
# Beyond what every shorter case has.
_FAR = 1024

_skipped = functools.partial(fault, case="skipped_step", steps=3)
_idle = functools.partial(fault, case="idle_weights", steps=2)
_evaluated = functools.partial(fault, case="evaluated", steps=None)
_epochs = functools.partial(fault, case="epochs", steps=None)
_longest = functools.partial(fault, case="longest", steps=None)


# --- a step that is skipped ------------------------------------------------------------------


@_skipped(
    "nan-step-taken",
    "skipped step",
    "weight",
    "an optimizer that steps on NaN, as Megatron's Adam does",
)
def nan_step_taken() -> Planted:
    """The norm is not looked at."""

    def wrap(original: Any) -> Any:
        del original
        return lambda self: super(type(self), self).step_with_ready_grads()

    return patched(_CHAIN, "FiniteChain.step_with_ready_grads", wrap)


@_skipped("infinite-step-taken", "skipped step", "weight", "a check for NaN that infinity passes")
def infinite_step_taken() -> Planted:
    """Infinity counts as finite."""

    def wrap(original: Any) -> Any:
        return types.SimpleNamespace(
            **{**vars(original), "isfinite": lambda number: not original.isnan(number)}
        )

    return patched(_CHAIN, "math", wrap)


@_skipped(
    "state-moved-by-skipped-step",
    "skipped step",
    "kept",
    "momentum that decays before the gradient is looked at",
)
def state_moved_by_skipped_step() -> Planted:
    """A skipped step's momentum decays."""

    def wrap(original: Any) -> Any:
        def step_with_ready_grads(self: Any) -> bool:
            taken = bool(original(self))
            if not taken:
                for state in _states(self):
                    if "momentum_buffer" in state:
                        state["momentum_buffer"].mul_(0.95)
            return taken

        return step_with_ready_grads

    return patched(_CHAIN, "FiniteChain.step_with_ready_grads", wrap)


@_skipped("count-moved-by-skipped-step", "skipped step", "kept", "AdamW counts a step it skips")
def count_moved_by_skipped_step() -> Planted:
    """AdamW's bias correction counts a skipped step."""

    def wrap(original: Any) -> Any:
        def step_with_ready_grads(self: Any) -> bool:
            taken = bool(original(self))
            if not taken:
                for state in _states(self):
                    if "step" in state:
                        state["step"] = state["step"] + 1
            return taken

        return step_with_ready_grads

    return patched(_CHAIN, "FiniteChain.step_with_ready_grads", wrap)


@_skipped("schedule-counts-skipped-step", "skipped step", "schedule", "warm-up goes on regardless")
def schedule_counts_skipped_step() -> Planted:
    """The schedule of learning rates takes a skipped step for one that was taken."""

    def wrap(original: Any) -> Any:
        def train_step(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            if found[1]:
                scheduler = points.TRAIN_STEP.arguments(args, kwargs)["opt_param_scheduler"]
                scheduler.step(increment=2)
            return found

        return train_step

    return patched(*points.TRAIN_STEP.place, wrap)


@_skipped(
    "balancing-moved-by-skipped-step",
    "skipped step",
    "router",
    "Megatron's own: experts are balanced before the gradient is looked at",
)
def balancing_moved_by_skipped_step() -> Planted:
    """The experts' bias keeps what a skipped step did to it."""
    return result(_CHAIN, "_saved_buffers", lambda buffers: ())


@_skipped("skipped-step-not-counted", "skipped step", "schedule", "a skip that nobody is told of")
def skipped_step_not_counted() -> Planted:
    """The chain says that it stepped."""

    def change(found: Any) -> Any:
        return (True, *found[1:])

    return result(_CHAIN, "FiniteChain.step", change)


def _states(chain: Any) -> Iterator[Any]:
    for part in chain.chained_optimizers:
        yield from part.optimizer.state.values()


# --- weights without gradient ----------------------------------------------------------------


@_idle("zero-matrix-is-nan", "idle weights", "mlp", "a norm that is divided by without epsilon")
def zero_matrix_is_nan() -> Planted:
    """Orthogonalising zero gives NaN."""
    return result(_NORMUON, "polar_express", lambda update: _instead_of_zero(update, float("nan")))


@_idle("zero-matrix-steps", "idle weights", "mlp", "rounding errors amplified to a direction")
def zero_matrix_steps() -> Planted:
    """Orthogonalising zero gives some matrix of the usual size."""
    return result(_NORMUON, "polar_express", lambda update: _instead_of_zero(update, 0.1))


def _instead_of_zero(update: Any, value: float) -> Any:
    empty = (update == 0).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    return update.masked_fill(empty, value)


@_idle("idle-matrix-not-decayed", "idle weights", "mlp", "matrices without gradient are left out")
def idle_matrix_not_decayed() -> Planted:
    """A matrix whose gradient is zero is not stepped at all."""

    def change(self: Any, chunk: Any, units: Any, *rest: Any) -> tuple[Any, ...]:
        used = [unit for unit in units if bool(unit.param.grad.any())]
        return (self, chunk, used or units[:1], *rest)

    return arguments(_NORMUON, "NorMuon._update", change)


@_idle(
    "idle-rows-not-decayed",
    "idle weights",
    "embedding",
    "sparse updates of the embedding",
)
def idle_rows_not_decayed() -> Planted:
    """Rows without gradient keep their weights."""

    def wrap(original: Any) -> Any:
        def step_with_ready_grads(self: Any) -> Any:
            kept = []
            for group in self.optimizer.param_groups:
                for weight in group["params"]:
                    if weight.ndim == 2 and "betas" in group:
                        idle = weight.grad.abs().amax(dim=1) == 0
                        kept.append((weight, idle, weight.detach()[idle].clone()))
            found = original(self)
            for weight, idle, rows in kept:
                weight.data[idle] = rows
            return found

        return step_with_ready_grads

    return patched(*points.STEP_READY.place, wrap)


# --- evaluations -----------------------------------------------------------------------------


@_evaluated("evaluates-in-training-mode", "evaluation", "mode", "model.eval() forgotten")
def evaluates_in_training_mode() -> Planted:
    """Modules stay in training mode."""

    def wrap(original: Any) -> Any:
        def evaluate(*args: Any, **kwargs: Any) -> Any:
            chunks = points.EVALUATE.arguments(args, kwargs)["model"]
            for chunk in chunks:
                chunk.eval = lambda: None
            try:
                return original(*args, **kwargs)
            finally:
                for chunk in chunks:
                    del chunk.eval

        return evaluate

    return patched(*points.EVALUATE.place, wrap)


def _after_evaluation(act: Callable[[Any], None]) -> Planted:
    """Acts on the model's chunks after each evaluation."""

    def done(*args: Any) -> None:
        for chunk in points.EVALUATE.arguments(args, {})["model"]:
            act(chunk)

    return after(*points.EVALUATE.place, done)


@_evaluated("stays-in-evaluation-mode", "evaluation", "kept", "model.train() forgotten")
def stays_in_evaluation_mode() -> Planted:
    """The training goes on in evaluation mode, without balancing."""
    return _after_evaluation(lambda chunk: chunk.eval())


@_evaluated(
    "evaluation-balances", "evaluation", "router", "tokens of an evaluation counted for balancing"
)
def evaluation_balances() -> Planted:
    """The next step balances the experts by an evaluation's tokens too."""

    def act(chunk: Any) -> None:
        for module in chunk.modules():
            if getattr(module, "local_tokens_per_expert", None) is not None:
                module.local_tokens_per_expert[0] += 64

    return _after_evaluation(act)


@_evaluated("evaluation-draws", "evaluation", "rng", "an evaluation that moves the generator")
def evaluation_draws() -> Planted:
    """An evaluation draws a random number."""

    def act(chunk: Any) -> None:
        import torch

        del chunk
        torch.rand(1)

    return _after_evaluation(act)


@_evaluated(
    "evaluation-moves-weights", "evaluation", "final_layernorm", "averaged weights that stay"
)
def evaluation_moves_weights() -> Planted:
    """An evaluation leaves another final norm."""

    def act(chunk: Any) -> None:
        for name, weight in chunk.named_parameters():
            if name.endswith("final_layernorm.weight"):
                weight.data.mul_(1.0 + 2.0**-20)

    return _after_evaluation(act)


@_evaluated("evaluation-takes-a-sample", "evaluation", "sample", "one iterator for both splits")
def evaluation_takes_a_sample() -> Planted:
    """An evaluation reads one of the training's micro-batches."""
    iterators: list[Any] = []

    def wrap(original: Any) -> Any:
        def train_step(*args: Any, **kwargs: Any) -> Any:
            iterators[:] = [points.TRAIN_STEP.arguments(args, kwargs)["data_iterator"]]
            return original(*args, **kwargs)

        return train_step

    def act(*args: Any) -> None:
        del args
        # At the end of a training there is none left.
        next(iterators[0], None)

    return together(patched(*points.TRAIN_STEP.place, wrap), after(*points.EVALUATE.place, act))


@_evaluated("trains-on-validation", "evaluation", "batch", "splits exchanged where they are opened")
def trains_on_validation() -> Planted:
    """The training reads the validation split."""

    def wrap(original: Any) -> Any:
        def build(folder: Any, split: str, *rest: Any) -> Any:
            return original(folder, "valid" if split == "train" else split, *rest)

        return build

    return patched("vpmoe.data.dataset", "_build", wrap)


@_evaluated("validation-leaks", "evaluation", "dataset", "rows that are in both splits")
def validation_leaks() -> Planted:
    """The training split has the validation split's documents too."""

    def change(folder: Any, manifest: Any, splits: Any = ("train", "valid")) -> tuple[Any, ...]:
        return folder, manifest, ("train", "valid") if splits == ("train",) else splits

    return arguments("vpmoe.data.documents", "open_shards", change)


@_evaluated("validation-loss-over-all-tokens", "evaluation", "loss", "an evaluation's own divisor")
def validation_loss_over_all_tokens() -> Planted:
    """An evaluation divides by all tokens, supervised or not."""

    def wrap(original: Any) -> Any:
        def span_loss(losses: Any, batch: Any, weights: Any) -> Any:
            loss, tokens, report = original(losses, batch, weights)
            if batch.step is None:
                report["lm loss"][1] = losses.numel()
            return loss, tokens, report

        return span_loss

    return patched("vpmoe.data.loss", "span_loss", wrap)


# --- epochs ----------------------------------------------------------------------------------


@_epochs("epochs-in-one-order", "epochs", "epochs", "documents shuffled once, and repeated")
def epochs_in_one_order() -> Planted:
    """Each epoch has the first one's order of documents."""

    def wrap(original: Any) -> Any:
        def order(documents: Any, num_epochs: int, state: Any, apart: bool) -> Any:
            import numpy as np

            del apart
            return np.tile(original(documents, 1, state, False), num_epochs)

        return order

    return patched(*points.DOCUMENT_ORDER.place, wrap)


@_epochs("sample-lost-at-the-border", "epochs", "epochs", "the last sample of an epoch left out")
def sample_lost_at_the_border() -> Planted:
    """The sample on the border of the last epoch is skipped, and the one before read twice."""

    def wrap(original: Any) -> Any:
        def order(num_samples: int, total_size: int, state: Any) -> Any:
            found = original(num_samples, total_size, state)
            found[found == num_samples - 1] = num_samples - 2
            return found

        return order

    return patched(*points.SAMPLE_ORDER.place, wrap)


@_epochs("last-epoch-mixed-in", "epochs", "epochs", "all samples shuffled together")
def last_epoch_mixed_in() -> Planted:
    """The last epoch's samples are shuffled with all others."""

    def change(num_samples: int, total_size: int, state: Any) -> tuple[Any, ...]:
        del num_samples
        return total_size, total_size, state

    return arguments(*points.SAMPLE_ORDER.place, change)


@_epochs("later-epoch-off-by-one", "epochs", "tokens", "offsets counted from an epoch's start")
def later_epoch_off_by_one() -> Planted:
    """Samples of later epochs begin one token late."""

    def wrap(original: Any) -> Any:
        def pieces(dataset: Any, index: int) -> Any:
            found = list(original(dataset, index))
            documents = len(dataset.dataset.sequence_lengths)
            slot = int(dataset.sample_index[dataset.shuffle_index[index]][0])
            document, start, length = found[0]
            if slot >= documents and start > 0:
                found[0] = (document, start - 1, length)
            return iter(found)

        return pieces

    return patched("vpmoe.data.dataset", "pieces_of_sample", wrap)


# --- long sequences --------------------------------------------------------------------------


@_longest("window-wider-far-out", "length", "self_attention", "a border rounded in a kernel's tile")
def window_wider_far_out() -> Planted:
    """Queries beyond 1,024 see one key more."""

    def wrap(original: Any) -> Any:
        def allowed(length: int, window: int | None, documents: Any, device: Any) -> Any:
            found = original(length, window, documents, device)
            if window is not None and length > _FAR:
                wider = original(length, window + 1, documents, device)
                found[:, _FAR:] = wider[:, _FAR:]
            return found

        return allowed

    return patched(_EAGER, "allowed_keys", wrap)


@_longest("documents-mixed-far-out", "length", "self_attention", "borders that a tile forgets")
def documents_mixed_far_out() -> Planted:
    """Queries beyond 1,024 see other documents."""

    def wrap(original: Any) -> Any:
        def allowed(length: int, window: int | None, documents: Any, device: Any) -> Any:
            found = original(length, window, documents, device)
            if length > _FAR:
                found = found.clone()
                found[:, _FAR:] = original(length, window, None, device)[:, _FAR:]
            return found

        return allowed

    return patched(_EAGER, "allowed_keys", wrap)


@_longest("slopes-end-far-out", "length", "self_attention", "a bias table of 1,024 positions")
def slopes_end_far_out() -> Planted:
    """ALiBi's positions end at 1,024."""
    return _positions_of_alibi(lambda position: position.clamp_max(_FAR))


@_longest("alibi-in-bf16", "length", "self_attention", "a bias in the model's dtype")
def alibi_in_bf16() -> Planted:
    """ALiBi's positions are bf16, exact up to 256."""
    return _positions_of_alibi(lambda position: position.bfloat16().to(position.dtype))


def _positions_of_alibi(change: Callable[[Any], Any]) -> Planted:
    class Torch(types.ModuleType):
        def __init__(self, original: Any) -> None:
            super().__init__("torch")
            self.original = original

        def __getattr__(self, name: str) -> Any:
            return getattr(self.original, name)

        def arange(self, *args: Any, **kwargs: Any) -> Any:
            found = self.original.arange(*args, **kwargs)
            return change(found) if found.is_floating_point() else found

    return patched(_EAGER, "torch", Torch)


@_longest("positions-in-bf16", "length", "self_attention", "positions cast with the model")
def positions_in_bf16() -> Planted:
    """GRAPE-M's positions are bf16, exact up to 256."""

    def change(phi: Any, position_ids: Any, *rest: Any) -> tuple[Any, ...]:
        return (phi, position_ids.bfloat16(), *rest)

    return arguments("vpmoe.model.grape", "rotation_angles", change)


@_longest("balancing-counts-in-bf16", "length", "mlp", "counts beyond 256 in the model's dtype")
def balancing_counts_in_bf16() -> Planted:
    """The balancing loss counts an expert's tokens in bf16."""

    def wrap(original: Any) -> Any:
        def loss(**given: Any) -> Any:
            counts = given["tokens_per_expert"].bfloat16().to(given["probs"].dtype)
            return original(**{**given, "tokens_per_expert": counts})

        return loss

    return patched(*points.BALANCING_LOSS.place, wrap)
