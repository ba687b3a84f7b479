"""Quantization: calibration, learned steps, weight-only formats, and the backends that run them."""
