"""Noise of reruns, and the tolerances that follow from it."""
