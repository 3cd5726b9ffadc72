"""The errors of training, drawn once.

    TrainingError
    ├── DataError        a data set is missing, unreadable or not what the run needs
    ├── RunError         a run folder cannot be used, or the run cannot go on
    │   ├── DamagedSnapshot  a snapshot cannot be read
    │   ├── NotFinite    a loss or a gradient is not finite, and no step was taken on it
    │   └── Collapsed    G makes the same few images, and a stop was asked for
    ├── ServiceError     a service that is to be judged cannot be asked
    ├── GraphRefused     a graph breaks a promise of serving; the message says the way out
    └── MissingExtra     a verb needs packages that are not installed

A broken config raises `models.errors.InvalidValue`. Each error takes one message, which is the
sentence that a user reads.
"""


class TrainingError(Exception):
    """Root of all errors that `training` raises for a user's mistake or a run that cannot go on."""


class DataError(TrainingError):
    """A data set is missing, unreadable or not what the run needs."""


class RunError(TrainingError):
    """A run folder cannot be used, or the run cannot go on."""


class DamagedSnapshot(RunError):
    """A snapshot cannot be read: cut off, bits flipped, or never one."""


class NotFinite(RunError):
    """A loss or a gradient is not finite, and no step was taken on it."""


class Collapsed(RunError):
    """G makes the same few images, and the run was to stop then."""


class ServiceError(TrainingError):
    """A service that is to be judged cannot be asked, or does not give what was asked for."""


class GraphRefused(TrainingError):
    """A graph breaks a promise that serving makes. The message says what to change."""


class MissingExtra(TrainingError):
    """A verb needs packages that are not installed. The message names the extra."""
