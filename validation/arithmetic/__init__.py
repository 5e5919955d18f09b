"""How a run's numbers are computed: as torch does, in wide arithmetic, rounded at random."""

from validation.arithmetic.running import arithmetic

__all__ = ["arithmetic"]
