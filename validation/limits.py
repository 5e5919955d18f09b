"""What a file may hold at most that somebody else may have written: traces, goldens, verdicts.

Whoever reads one spends at most some seconds and some hundred megabytes on it, whatever is in it.
The largest traces of vpMoE have an eighth of this. A file beyond a limit is refused by name.
"""

MAX_JSON_BYTES = 64 * 2**20
"""Of a file of JSON."""

MAX_JSON_VALUES = 2_000_000
"""Numbers, texts, lists and objects in a file of JSON: what takes time and memory to parse."""

MAX_BINARY_BYTES = 64 * 2**20
"""Of a file of projections: room for 700,000 tensors."""

MAX_NAME = 1000
"""Characters of the name of a curve, a table, a module, a tensor, a dtype."""

MAX_TOML_BYTES = 4 * 2**20
"""Of a file that declares cases."""
