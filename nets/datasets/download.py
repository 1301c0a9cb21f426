"""Download of an official file into a folder: https, hash, progress on a terminal, and resuming after interruptions.

pooch manages the file and its hash. The transfer is implemented here, as pooch's own always restarts: received bytes
stay in NAME.part, and the next try requests the rest.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nets.datasets.catalogue import Remote
from nets.datasets.errors import DataError
from nets.datasets.files import VARIABLE

TIMEOUT = (10, 60)  # seconds to connect, seconds between bytes
CHUNK = 2**16
PARTIAL, RANGE_NOT_SATISFIABLE = 206, 416


def download(remote: Remote, folder: Path) -> Path:
    """The official file in ``folder``, downloaded unless present; raise DataError if that fails."""
    import pooch

    if urlsplit(remote.url).scheme != "https":
        raise DataError(f"{remote.url}: found another scheme, expected https; {remedy(remote)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = pooch.retrieve(
            remote.url,
            known_hash=f"sha256:{remote.sha256}",
            fname=remote.name,
            path=folder,
            downloader=Resumable(remote, folder / f"{remote.name}.part"),
        )
    except OSError as error:  # no space, no permission
        raise DataError(f"{folder}: cannot store {remote.name} there ({error}); {remedy(remote)}") from error
    return Path(path)


def remedy(remote: Remote) -> str:
    """The advice for a file that cannot be downloaded here."""
    return (
        f"get {remote.name} from {remote.url} by other means and put it into a folder given as root= "
        f"or named by {VARIABLE}"
    )


@dataclass(frozen=True)
class Resumable:
    """A downloader for pooch that resumes from ``part``, the bytes of earlier tries."""

    remote: Remote
    part: Path

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> None:
        """Fetch ``url``, check its hash, and move it to ``output_file``; ``part`` is kept only after interruptions."""
        del pooch, check_only
        import requests
        import urllib3

        resumed = self.received_bytes()
        try:
            # a complete part needs only the check of its hash below
            if self.received_bytes() < self.remote.size and not self.fetch(url):
                self.part.unlink(missing_ok=True)
                resumed = 0
                self.fetch(url)
        except requests.HTTPError as error:
            raise DataError(f"{url}: the server answered {error}; try again later, or {remedy(self.remote)}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise DataError(
                f"{url}: no connection, or it broke after {self.received_bytes():,} of {self.remote.size:,} bytes "
                f"({type(error).__name__}: {error}); if this machine is offline, {remedy(self.remote)}; "
                "if not, try again: the received bytes are kept"
            ) from error
        self.check(url, resumed)
        shutil.move(self.part, str(output_file))

    def received_bytes(self) -> int:
        """Number of bytes in ``part``; a part longer than the file is invalid and deleted."""
        size = self.part.stat().st_size if self.part.exists() else 0
        if size > self.remote.size:
            self.part.unlink()
            return 0
        return size

    def fetch(self, url: str) -> bool:
        """Append the missing bytes; False if the server cannot resume here, so that the download must restart."""
        import requests

        received = self.received_bytes()
        # identity: hash and range refer to the file's bytes, not to a compressed stream
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={received}-"} if received else {})
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            hops = [each.url for each in (*response.history, response)]
            if urlsplit(url).scheme == "https" and any(urlsplit(hop).scheme != "https" for hop in hops):
                raise DataError(f"{url}: the server redirects to {hops[-1]}, expected https; {remedy(self.remote)}")
            if received and response.status_code == RANGE_NOT_SATISFIABLE:
                return False
            response.raise_for_status()
            if response.status_code == PARTIAL:
                if not response.headers.get("Content-Range", "").startswith(f"bytes {received}-"):
                    return False
            else:
                received = 0  # the server does not support ranges and sends the whole file
            self.write(response, received)
        return True

    def write(self, response: Any, received: int) -> None:
        """Write a response's body after the first ``received`` bytes of the part, at most to the file's size."""
        import requests
        from tqdm import tqdm

        total = self.remote.size
        # disable=None: a bar on a terminal, nothing in a log
        with (
            self.part.open("ab" if received else "wb") as stream,
            tqdm(total=total, initial=received, unit="B", unit_scale=True, desc=self.remote.name, disable=None) as bar,
        ):
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                received += len(chunk)
                if received > total:
                    stream.truncate(0)
                    raise DataError(
                        f"{response.url}: the server sends more than the file's {total:,} bytes; {remedy(self.remote)}"
                    )
                stream.write(chunk)
                bar.update(len(chunk))
        if received < total:
            raise requests.ConnectionError(f"the answer ended after {received:,} bytes")

    def check(self, url: str, resumed: int) -> None:
        """Raise, and delete the part, unless its hash is the official one."""
        import pooch

        found = pooch.file_hash(str(self.part), alg="sha256")
        if found == self.remote.sha256:
            return
        os.remove(self.part)
        how = f"resumed after {resumed:,} bytes" if resumed else "fetched in one go"
        raise DataError(
            f"{self.part}: found sha256 {found}, {how} from {url}, expected {self.remote.sha256}; the part has been "
            f"deleted: try again, or {remedy(self.remote)}"
        )
