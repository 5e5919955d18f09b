"""Routing of tokens to experts; with dispatch in fused kernels where all are on one rank."""
