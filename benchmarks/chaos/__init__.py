"""A chaos suite for the harness: what `golden` says and keeps when machines and files fail it.

Each attempt disturbs one command of a scratch repository (`scratch/`, a loop in numpy) or one of
its files, and an oracle then decides whether the verdict was right, whether anything was lost, and
whether the command ended in time and left no process behind. See `docs/chaos.md`.
"""
