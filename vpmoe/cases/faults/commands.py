"""Bugs in what vpMoE's commands print, refuse and write."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vpmoe.cases.faults.planting import (
    Planted,
    arguments,
    fault,
    keywords,
    patched,
    result,
    skipped,
)

_DATA: dict[str, Any] = {"category": "commands", "case": "commands_data", "steps": None}
_TRAINING: dict[str, Any] = {**_DATA, "case": "commands_training"}
_EXPORT: dict[str, Any] = {**_DATA, "case": "commands_export"}


def _never_two(code: int) -> int:
    return 0 if code == 2 else code


@fault("verify-counts-shards-twice", component="verify", imitates="a generator read twice", **_DATA)
def verify_counts_shards_twice() -> Planted:
    """`vpmoe data verify` counts each shard's documents and tokens two times."""

    def wrap(original: Any) -> Any:
        return lambda folder: (shard for shard in original(folder) for _ in range(2))

    return patched("vpmoe.data.dataset_files", "verify_dataset", wrap)


@fault("display-spans-not-shifted", component="render", imitates="labels taken for tokens", **_DATA)
def display_spans_not_shifted() -> Planted:
    """`render` and `inspect` colour the token before the one that is trained."""
    import numpy as np

    def change(tokenizer: Any, tokens: Any, mask: Any, span: Any) -> tuple[Any, ...]:
        return tokenizer, tokens, mask, np.roll(span, -1)

    return arguments("vpmoe.data.display", "document_text", change)


@fault(
    "duplicates-always-skipped",
    component="build duplicates",
    imitates="an option that is read and not used",
    **_DATA,
)
def duplicates_always_skipped() -> Planted:
    """`--duplicates error` drops later rows as `skip` does."""

    def wrap(original: Any) -> Any:
        def check(self: Any, *args: Any) -> Any:
            self._duplicates = "skip"
            return original(self, *args)

        return check

    return patched("vpmoe.data.build", "_Build._check_ids", wrap)


@fault(
    "time-left-of-what-is-done",
    component="build in a log",
    imitates="done taken for the rest",
    **_DATA,
)
def time_left_of_what_is_done() -> Planted:
    """The progress of a build tells a tenth of the time that is left."""
    return arguments("vpmoe.data.progress", "_clock", lambda seconds: (seconds / 10,))


@fault(
    "encode-special-ignored",
    component="encode control tokens",
    imitates="a flag that never reaches the encoder",
    **_DATA,
)
def encode_special_ignored() -> Planted:
    """`vpmoe tokenizer encode --special` encodes control tokens as text."""
    return keywords("vpmoe.tokenizer.tokenizer", "O200kHarmonyTokenizer.encode", allowed_special=())


@fault("any-vocabulary-accepted", component="tokenizer", imitates="a hash left unchecked", **_DATA)
def any_vocabulary_accepted() -> Planted:
    """`vpmoe tokenizer install` takes a file of any content."""
    return skipped("vpmoe.tokenizer.asset", "_verify")


@fault(
    "data-refusals-end-with-zero",
    component="data",
    imitates="a caught error without an exit code",
    **_DATA,
)
def data_refusals_end_with_zero() -> Planted:
    """`vpmoe data` prints why it refuses, and ends as if it had not."""

    def wrap(original: Any) -> Any:
        def guarded(command: Any) -> Any:
            run = original(command)
            return lambda options: _never_two(run(options))

        return guarded

    return patched("vpmoe.data.cli", "_guarded", wrap)


@fault(
    "preset-key-ignored",
    component="presets",
    imitates="a field that is read under another name",
    **_TRAINING,
)
def preset_key_ignored() -> Planted:
    """A preset's weight decay never becomes a flag."""

    def change(fields: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if name != "weight_decay"}

    return result("vpmoe.config", "_flatten", change)


@fault(
    "preset-overrides-the-user",
    component="pretrain",
    imitates="two lists joined in the other order",
    **_TRAINING,
)
def preset_overrides_the_user() -> Planted:
    """The preset's flags come after the user's, and win."""

    def wrap(original: Any) -> Any:
        def expand(argv: list[str]) -> list[str]:
            found: list[str] = original(argv)
            own = len(argv) - 2 if "--config" in argv else len(argv)
            return found[len(found) - own :] + found[: len(found) - own]

        return expand

    return patched("vpmoe.pretrain", "expand_preset_flags", wrap)


@fault(
    "negative-batch-accepted",
    component="a negative batch",
    imitates="a field that a list of checks has not",
    **_TRAINING,
)
def negative_batch_accepted() -> Planted:
    """Nobody asks whether a preset's batch is positive."""

    def wrap(original: Any) -> Any:
        return tuple(name for name in original if name != "global_batch_size")

    return patched("vpmoe.config_checks", "_POSITIVE", wrap)


@fault(
    "normuon-takes-fp16",
    component="--fp16",
    imitates="a refusal lost in a rewrite",
    **_TRAINING,
)
def normuon_takes_fp16() -> Planted:
    """`--optimizer normuon --fp16` trains."""

    def wrap(original: Any) -> Any:
        return {name: flag for name, flag in original.items() if name != "fp16"}

    return patched("vpmoe.optimizer.arguments", "_REFUSED", wrap)


@fault("data-flags-unchecked", component="refused", imitates="a check not called", **_TRAINING)
def data_flags_unchecked() -> Planted:
    """Flags of the data go to the training as they are."""
    return skipped("vpmoe.arguments", "validate_data_args")


@fault("limits-not-told", component="accepted", imitates="a warning that is lost", **_TRAINING)
def limits_not_told() -> Planted:
    """Nobody is told of a limit that limits nothing."""
    return patched("vpmoe.model.limits", "limits_without_effect", lambda original: lambda args: [])


@fault("active-counts-all", component="params", imitates="idle experts counted in", **_TRAINING)
def active_counts_all() -> Planted:
    """`vpmoe params` says that every token meets all experts."""

    def change(table: Any) -> Any:
        return dataclasses.replace(table, active=table.total)

    return result("vpmoe.model.params", "count_parameters", change)


@fault(
    "shipped-presets-not-found",
    component="presets",
    imitates="a package whose data stayed behind",
    **_TRAINING,
)
def shipped_presets_not_found() -> Planted:
    """`--config configs/vpmoe-tiny.toml` works in a checkout alone."""
    return patched("vpmoe.config", "shipped", lambda original: Path)


@fault(
    "broken-contracts-end-with-zero",
    component="megatron",
    imitates="a count that nobody returns",
    **_TRAINING,
)
def broken_contracts_end_with_zero() -> Planted:
    """`python -m vpmoe.megatron` names what does not hold, and succeeds."""
    return result("vpmoe.megatron.__main__", "_check", lambda code: 0)


@fault(
    "contract-order-unchecked",
    component="another order",
    imitates="parameters compared as sets",
    **_TRAINING,
)
def contract_order_unchecked() -> Planted:
    """A contract holds though a function takes its parameters in another order."""
    return skipped("vpmoe.megatron.contract", "Takes.verify")


@fault(
    "import-bias-forgotten",
    component="export",
    imitates="a buffer that is no parameter",
    **_EXPORT,
)
def import_bias_forgotten() -> Planted:
    """`vpmoe import` leaves the experts' biases at zero."""

    def change(place: Any, tensors: Any) -> tuple[Any, ...]:
        if not place.key.endswith("expert_bias"):
            return place, tensors
        return place, {**tensors, place.key: tensors[place.key] * 0}

    return arguments("vpmoe.export.convert", "_fill", change)


@fault("export-dtype-ignored", component="fp32", imitates="a flag that is not passed on", **_EXPORT)
def export_dtype_ignored() -> Planted:
    """`vpmoe export --dtype fp32` stores what was trained."""
    return keywords("vpmoe.export.convert", "export_checkpoint", fp32=False)


@fault("infinite-weights-exported", component="finite", imitates="a check left out", **_EXPORT)
def infinite_weights_exported() -> Planted:
    """Weights that are not finite are exported and read."""
    return skipped("vpmoe.export.folder", "refuse_non_finite")


@fault(
    "generate-past-a-stop",
    component="generate until a stop",
    imitates="stop tokens of another tokenizer",
    **_EXPORT,
)
def generate_past_a_stop() -> Planted:
    """`vpmoe generate` goes on after the text has ended."""
    return arguments(
        "vpmoe.export.generate",
        "generate",
        lambda model, prompt, count, stop: (model, prompt, count),
    )


@fault(
    "export-refusals-end-with-zero",
    component="export",
    imitates="a caught error without an exit code",
    **_EXPORT,
)
def export_refusals_end_with_zero() -> Planted:
    """`vpmoe export`, `import` and `generate` print why they refuse, and end as if they had not."""

    def wrap(original: Any) -> Any:
        def guarded(name: str, command: Any) -> Any:
            run = original(name, command)
            return lambda options: _never_two(run(options))

        return guarded

    return patched("vpmoe.export.cli", "_guarded", wrap)
