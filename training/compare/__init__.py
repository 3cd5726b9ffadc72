"""The objectives beside each other, and the VAE: one pair of networks, one budget of images, one yardstick.

`contenders` says who is trained and what is searched for each, `runs` trains and keeps each finished run,
`table` shows them and says in two sentences what the numbers are. Figures are `training.metrics`.
"""
