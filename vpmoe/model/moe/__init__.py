"""Routing and dispatch of tokens to experts that are all on one rank, in fused kernels."""
