"""Convolution kernels as programs of a small language: what they mean, cost, and how to find them.

After A. Sehgal, "Analyzing the compressibility of CNN kernels with program induction" (2022).
"""
