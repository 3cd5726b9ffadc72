"""Train a GAN and publish its generator: the half of the project that knows torch.

`training.phases` is the alternating game of Goodfellow 2014 and `training.loop` a run of it.
`training.export` turns a finished run into an artifact, `training.importing` a generator trained
elsewhere; `gantrain` (`training.__main__`) is all of that at a prompt. Imports `models`, never `service`.
"""
