"""Train a GAN and publish its generator: the half of the project that knows torch.

`training.loop` is the alternating game of Goodfellow 2014, `training.export` turns a finished run
into an artifact of the store, `training.importing` a generator trained elsewhere, and `gantrain`
(`training.__main__`) is all three at a prompt. Imports `models`, never `service`.
"""
