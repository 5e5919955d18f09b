"""Whether this machine can serve a lane: its GPUs, which they are, and its software."""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from typing import Any

from validation.config import Lane


@dataclass(frozen=True)
class Card:
    """A GPU, as NVML knows it."""

    name: str
    capability: str

    def __str__(self) -> str:
        return f"{self.name} ({self.capability})"


def unfit(lane: Lane, gpus: int) -> str | None:
    """Says why this machine cannot serve a lane.

    Args:
        lane: the lane.
        gpus: CUDA devices that a process of this machine may use.

    Returns:
        The reason, or None where it can.
    """
    reason = unfit_gpus(lane, gpus)
    if reason is not None:
        return reason
    for name in lane.modules:
        if not _importable(name):
            return f"lane {lane.name} needs the Python module {name}, which is not installed"
    return None


def unfit_gpus(lane: Lane, gpus: int) -> str | None:
    """Why the GPUs of this machine cannot serve a lane, or None; see `unfit`.

    Cards that nothing describes, for want of NVML, are taken as they are.
    """
    if gpus < lane.gpus:
        return f"lane {lane.name} has {lane.gpus} GPU(s), this machine has {gpus}"
    if not lane.capabilities or not lane.gpus:
        return None
    cards = visible_cards()
    others = [card for card in cards[: lane.gpus] if card.capability not in lane.capabilities]
    if not others:
        return None
    wanted, found = " or ".join(lane.capabilities), ", ".join(map(str, cards[: lane.gpus]))
    return f"lane {lane.name} needs compute capability {wanted}; this machine has {found}"


def visible_cards() -> list[Card]:
    """The cards that CUDA would show to a process, in its order; none where NVML cannot tell.

    CUDA itself is not asked: a process that has initialised it cannot fork runs that use it.
    """
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # pynvml's own class of errors exists only where pynvml does
        return []
    try:
        return _visible(nvml)
    except Exception:  # a driver that knows less than pynvml asks
        return []
    finally:
        nvml.nvmlShutdown()


def _visible(nvml: Any) -> list[Card]:
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    cards = {_text(nvml.nvmlDeviceGetUUID(handle)): _card(nvml, handle) for handle in handles}
    ordered = list(cards.values())
    if os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        # CUDA's own order is the fastest first, which differs only on a machine of unlike cards.
        ordered.sort(key=lambda card: tuple(map(int, card.capability.split("."))), reverse=True)
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return ordered
    visible = []
    for word in (part.strip() for part in chosen.split(",")):
        if word.isdigit() and int(word) < len(ordered):
            visible.append(ordered[int(word)])
            continue
        named = [card for uuid, card in cards.items() if word and uuid.startswith(word)]
        if len(named) != 1:  # CUDA shows what stands before the first that it does not know
            break
        visible += named
    return visible


def _card(nvml: Any, handle: Any) -> Card:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Card(_text(nvml.nvmlDeviceGetName(handle)), f"{major}.{minor}")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # its package is missing, or was made without a spec
        return False
