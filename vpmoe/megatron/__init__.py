"""The one room for Megatron's internals: every patch of megatron-core and every undocumented name.

Outside this package vpMoE imports from Megatron only what `documented` lists. Each module here
says in contracts (`contract.Contract`) what it relies on; they are checked where a training starts
and where they are used, and refuse by name where an upgrade broke one. docs/megatron.md holds the
rule and, generated, the list.

Importing the package imports no Megatron: that must happen inside the lane (`vpmoe.runtime`).
"""
