"""The contract between training and service, and the store of published generators.

Holds what both halves must agree on: what an artifact says about itself (`manifest`), how a seed
becomes latents (`sampling`), which pixels prove it (`golden`) and where artifacts live (`store`).
Standard library and NumPy only; imports neither `training` nor `service`.
"""
