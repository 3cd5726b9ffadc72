"""Mode coverage: recipes trained on 2-D mixtures over several seeds, and what each of them covers.

`recipes` says what is trained and with which settings, `runs` trains it and keeps each finished run,
`table` shows them. The mixtures and their measures are `training.data.mixtures`.
"""
