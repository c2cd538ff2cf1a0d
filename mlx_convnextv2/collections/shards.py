"""Shards: how processes that never talk to one another divide a collection among them."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from ..messages import one_line, short

# Each names a file with an entry for each process: mlx.launch's ring backend sets the first, RDMA the second.
_LISTS = ("MLX_HOSTFILE", "MLX_IBV_DEVICES")
_REMEDY = "pass the shard yourself (--shard 2/8)"
# With MPI, its own launchers (Open MPI, MPICH) set rank and size under these names.
_MPI = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of a collection, counted from 1. Every name belongs to exactly one of them.

    Raises:
        ValueError: there is no such shard.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(f"a shard is one of 1/{self.count} to {self.count}/{self.count}, not {self}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that "2/8" means: the second of eight."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        if found is None or int(found[2]) < 1:
            raise ValueError(f"a shard is written like 2/8, the second of eight, not {short(text)}")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of_launch(cls, environment: Mapping[str, str] = os.environ) -> Shard | None:
        """The shard of this process if `mlx.launch` started it among others, by its rank; otherwise None.

        Only environment variables are read: no process waits for another, and none is lost when another dies.

        Raises:
            ValueError: the variables are set but cannot be understood.
        """
        for rank, size in _MPI:
            if "MLX_RANK" not in environment and rank in environment and size in environment:
                return _of_rank(environment[rank], environment[size])
        if "MLX_RANK" not in environment:
            return None
        return _of_rank(environment["MLX_RANK"], _launched(environment))

    def takes(self, name: str) -> bool:
        """Whether a picture of this name belongs to this shard.

        Give the path within the collection's folder, because machines mount the folder in different places. Names that
        differ only in how accents are composed count as one, because file systems differ in that.
        """
        if self.count == 1:
            return True
        import hashlib  # loads OpenSSL

        text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def _of_rank(rank: str, size: str) -> Shard | None:
    if not (rank.isascii() and rank.isdigit() and size.isascii() and size.isdigit() and int(rank) < int(size)):
        raise ValueError(f"the launcher's rank {short(rank)} of {short(size)} is not understood: {_REMEDY}")
    return Shard(int(rank) + 1, int(size)) if int(size) > 1 else None


def _launched(environment: Mapping[str, str]) -> str:
    """How many processes `mlx.launch` has started."""
    if "MLX_WORLD_SIZE" in environment:  # with NCCL
        return environment["MLX_WORLD_SIZE"]
    for variable in _LISTS:
        if path := environment.get(variable):
            try:
                with open(path, encoding="utf-8") as file:
                    text = file.read(1_000_000).strip()
                return str(len(json.loads(text))) if text else "1"  # empty for a ring of one
            except (OSError, ValueError, TypeError) as error:
                raise ValueError(
                    f"{variable} names {short(path)}, which cannot be read ({one_line(error)}): {_REMEDY}"
                ) from None
    raise ValueError(f"MLX_RANK is set, but not of how many processes: {_REMEDY}")
