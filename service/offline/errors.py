"""What can go wrong with an offline run, each with an exit status of its own.

    SampleError
    ├── WrongDigest   4  the model is not the one that was asked for
    ├── OtherJob      5  the place holds another job
    ├── PlaceLost     6  the place cannot be read or written
    ├── DiskFull      7  there is no room left
    ├── WorkerDied    8  a process of ours was killed
    └── DeviceFailed  9  the device does not run the model any more

Mistakes in what was asked for (InvalidValue, StartError) are status 2, as for every verb. Whatever it is,
the shards that are finished are kept.
"""

from typing import ClassVar, Final

EXIT_INCOMPLETE: Final = 1
"""`--check` found a shard that is not what it should be; `--merge` found one that is not there."""


class SampleError(Exception):
    """Root of what ends an offline run. The message is one sentence for the operator."""

    exit_status: ClassVar[int]


class WrongDigest(SampleError):
    """The store's model has another digest than `--digest` names."""

    exit_status = 4


class OtherJob(SampleError):
    """The place holds another job, finished or not; the message names the fields that differ."""

    exit_status = 5


class PlaceLost(SampleError):
    """The place cannot be read or written: read-only, not a folder, a bucket that is gone."""

    exit_status = 6


class DiskFull(SampleError):
    """There is no room left for a file."""

    exit_status = 7


class WorkerDied(SampleError):
    """A process that made shards ended without a word."""

    exit_status = 8


class DeviceFailed(SampleError):
    """The device did not run a microbatch."""

    exit_status = 9
