"""The power of the gate: planted bugs that it must catch, changes that it must let pass."""
