"""Checkpoints of stages: a folder that appears whole or not at all, and is read back only for the same settings."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from strop.compression.stage import IntegerFile
from strop.errors import StoreError
from strop.files import atomic_write, read_json
from strop.pruning import PruneRecord
from strop.report import compression_result as results

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_DONE = 'stage.json'


@dataclass
class Finished:
    """A stage as its checkpoint holds it.

    Args:
        entry: What the result says of it.
        tried: Models that it considered.
        exports: Files that it wrote.
        integers: Quantized models that it made.
        records: What it removed.
        choices: The subnet, after a search.
        side: Short side of the images that its model takes, if the stage changed it.
        folder: The checkpoint.
        documents: Names of further files of it.
    """

    entry: results.Stage
    tried: list[results.Tried]
    exports: list[results.Export]
    integers: list[IntegerFile]
    records: list[Any]
    choices: dict[str, Any] | None
    side: int | None
    folder: Path
    documents: list[str]

    def write(self, folder: Path, digest: str) -> None:
        """Write it down.

        Args:
            folder: Where to.
            digest: Hash of what it was made from: of the recipe (`Recipe.digests`) and of the checkpoint before it.
        """
        content = {
            'digest': digest,
            'entry': asdict(self.entry),
            'tried': [asdict(entry) for entry in self.tried],
            'exports': [asdict(entry) for entry in self.exports],
            'integers': [{**asdict(entry), 'path': entry.path.name} for entry in self.integers],
            'records': [record.to_dict() for record in self.records],
            'choices': self.choices,
            'side': self.side,
            'documents': self.documents,
        }
        atomic_write(folder / _DONE, json.dumps(content, indent=1) + '\n')

    @property
    def mark(self) -> str:
        """A hash of what its checkpoint says, seconds included, so that the same stage made anew has another one."""
        return hashlib.sha256((self.folder / _DONE).read_bytes()).hexdigest()[:16]

    @classmethod
    def read(cls, folder: Path, digest: str) -> Finished | None:
        """Return the stage that a checkpoint holds, if it is of this digest."""
        path = folder / _DONE
        if not path.is_file():
            return None
        content = read_json(path, 'a stage of a compression')
        if content.get('digest') != digest:
            return None
        stage = results.CompressionResult.from_dict({'version': results.VERSION, 'stages': [content['entry']]}).stages[0]
        return cls(
            stage,
            [results.Tried(**entry) for entry in content['tried']],
            [results.Export(**entry) for entry in content['exports']],
            [IntegerFile(**{**entry, 'path': folder / entry['path']}) for entry in content['integers']],
            [PruneRecord.from_dict(record) for record in content['records']],
            content['choices'],
            content.get('side'),
            folder,
            content['documents'],
        )


def remove(folder: Path) -> None:
    """Delete a checkpoint such that one that is half deleted is not taken for a whole one."""
    (folder / _DONE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def locked(folder: Path) -> int | None:
    """Take the lock of a folder, which the kernel gives up when the process ends; None where there is no such lock.

    Raises:
        StoreError: If another process works there.
    """
    if fcntl is None:
        return None
    handle = os.open(folder / '.lock', os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise StoreError(f'Another process is compressing into {folder.parent}. Wait for it, or give another output.') from None
    return handle


__all__ = ['Finished', 'locked', 'remove']
