"""What no case runs: lines, branches and functions of the gated code, and fields never varied."""
