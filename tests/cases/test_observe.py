"""What an observation refuses."""

from __future__ import annotations

from argparse import Namespace

import pytest

from vpmoe.runtime import detect_lane


def test_a_graph_is_not_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its replays run no hooks: a trace of them would be almost empty, and pass as one."""
    with detect_lane().activate():
        import megatron.training

        from validation.running.recorder import Recorder
        from vpmoe.cases.observe import _Observation

    options = Namespace(cuda_graph_impl="full_iteration")
    monkeypatch.setattr(megatron.training, "get_args", lambda: options)
    setup = _Observation(Recorder.__new__(Recorder), None, False, None).wrap_setup(pytest.fail)
    with pytest.raises(RuntimeError, match="replays of a graph run no hooks"):
        setup()
