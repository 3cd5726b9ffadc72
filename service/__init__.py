"""The sampling service: latents in, images out, with batching by rows.

NumPy, ONNX Runtime and LitServe; never torch. Imports `models`, never `training`.
"""

__version__ = "0.1.0"
