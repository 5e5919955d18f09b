"""Ports of the runs' processes: free, of one run only, and out of the system's own range."""

import contextlib
import socket
from pathlib import Path
from unittest.mock import patch

import pytest

from validation.running import ports
from validation.running.ports import reserved_port


def test_a_reserved_port_is_nobody_elses() -> None:
    with contextlib.ExitStack() as stack, patch.object(ports, "_end", lambda: ports._FIRST + 20):
        taken = [stack.enter_context(reserved_port()) for _ in range(8)]
        assert len(set(taken)) == 8
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", taken[0]))


def test_a_port_that_is_listened_on_is_passed_over_and_a_released_one_comes_again() -> None:
    with socket.socket() as listener, reserved_port() as port:
        listener.bind(("127.0.0.1", port))
        with patch.object(ports, "_end", lambda: port + 1), patch.object(ports, "_FIRST", port):
            with pytest.raises(OSError, match=f"no free port of 127.0.0.1 between {port}"):
                reserved_port().__enter__()
            listener.close()
    one = patch.multiple(ports, _end=lambda: port + 1, _FIRST=port)
    with one, reserved_port() as again:
        assert again == port


def test_outgoing_connections_are_given_no_port_of_ours(tmp_path: Path) -> None:
    range_file = tmp_path / "range"
    with patch.object(ports, "_RANGE_FILE", range_file):
        assert ports._end() == 49152
        range_file.write_text("32768\t60999\n")
        assert ports._end() == 32768
        range_file.write_text("1024\t65535\n")  # nothing is left below it
        assert ports._end() == 49152
