"""vpMoE's commands, run inside one process: what they print, refuse and write."""
