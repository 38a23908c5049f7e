"""Checks and times the compiled kernels of kernels/ from Python; scripts/bundle/kernels.py is the command."""
