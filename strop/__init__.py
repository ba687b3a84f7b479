"""Strop: search, prune, distil and quantize PyTorch models, and get plain PyTorch models back."""

__version__ = '0.1.0'
