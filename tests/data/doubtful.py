"""A source whose files do to a process what broken files do to decoders."""

import os
import signal
import time

from unfreeze.data.sources.source import Source


class Doubtful(Source):
    """Another source, but reading the rows named in `deeds` goes wrong in other processes."""

    def __init__(self, inner: Source, deeds: dict[int, str]) -> None:
        self.inner, self.deeds, self.home = inner, deeds, os.getpid()
        self.kind, self.where = inner.kind, inner.where
        self.names, self.sizes = inner.names, inner.sizes

    def read(self, row):
        deed = self.deeds.get(row)
        if deed and os.getpid() != self.home:
            self.do(deed)
        return self.inner.read(row)

    def do(self, deed):
        if deed == "exit":
            os._exit(3)
        if deed == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if deed == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if deed == "hang":
            time.sleep(600)
        if deed == "memory":
            bytearray(16 * 2**30)
        if deed == "away":
            raise OSError("the network is away")

    def head(self, row, count):
        return self.inner.head(row, count)

    def fingerprint(self):
        return self.inner.fingerprint()


def doubtful(index, deeds: dict[str, str]):
    """The index, its source's files of these names turned doubtful."""
    rows = {index.source.names.index(name): deed for name, deed in deeds.items()}
    object.__setattr__(index, "source", Doubtful(index.source, rows))
    return index
