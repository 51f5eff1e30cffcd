"""Benchmarks: what pruning costs, measured side by side with plain PyTorch on the same machine."""
