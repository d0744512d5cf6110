"""Background work: what happens without a request. One worker process on each host runs it, see `worker.py`."""
