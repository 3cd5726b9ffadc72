"""Images without a server: `ganserve sample` makes large sets, as fast as the device, safe to kill.

    sources.py   which rows: seeds from text or a file, and each row's class and psi
    job.py       what is to be made, and its shards: a pure function of seeds, parameters and format
    formats.py   a shard's rows become its files: images, tar, zip, npy, npz, Parquet
    places.py    where files appear: a local folder, or any fsspec address; never half-written
    records.py   what is done: a receipt a shard, and at last `manifest.json`
    making.py    device, encoding and writing of shards in one process, overlapped
    sampling.py  one run: resume, processes, merge
    checking.py  a whole set, hashed and in part made again
    progress.py  how far it is: a bar, lines or JSON
    command.py   the flags
    errors.py    what can go wrong, each with its exit status

The rows, session and encoder are the endpoint's, so the bytes are, too.
"""
