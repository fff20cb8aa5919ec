"""Object stores through fsspec: no stale listings, patience, errors in one sentence."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import fsspec
from fsspec.utils import get_protocol

PATIENCE = 300.0
"""Seconds for which a store is waited for that has answered this process before."""

T = TypeVar("T")
_LONGEST_PAUSE = 30.0
_answered: set[str] = set()


class ArtifactError(Exception):
    """An artifact or its store is not as it should be; the message names the file and the fix."""


class StoreAway(OSError):
    """The store does not answer now. Another attempt may find it back."""


@dataclass(frozen=True)
class _Kind:
    """What one kind of store needs. Credentials are never options: they come with the machine."""

    driver: str
    extra: str
    container: str
    identity: str
    options: dict[str, Any] = field(default_factory=dict)


_S3 = _Kind(
    "s3fs",
    "s3",
    "bucket",
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run under a role of its own",
)
_GCS = _Kind(
    "gcsfs",
    "gcs",
    "bucket",
    "GOOGLE_APPLICATION_CREDENTIALS, or run under workload identity",
    {"token": "google_default"},
)
_AZURE = _Kind(
    "adlfs",
    "azure",
    "container",
    "AZURE_STORAGE_ACCOUNT_NAME, and run under workload identity or set AZURE_STORAGE_ACCOUNT_KEY",
    {"anon": False},
)
_KINDS = {
    **dict.fromkeys(("s3", "s3a"), _S3),
    **dict.fromkeys(("gs", "gcs"), _GCS),
    **dict.fromkeys(("abfs", "abfss", "az"), _AZURE),
}
_NO_CREDENTIALS = (
    "NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError",
    "ClientAuthenticationError",
)  # fmt: skip
_NETWORK = (
    "aiobotocore", "aiohttp", "asyncio", "azure", "botocore", "fsspec", "gcsfs", "google",
    "requests", "urllib3",
)  # fmt: skip
_FINAL = (
    errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EMFILE,
    errno.ENAMETOOLONG, errno.EMSGSIZE,
)  # fmt: skip


def is_local(uri: str) -> bool:
    """Whether the URI is a path of this machine. Asks no driver and starts no thread."""
    return get_protocol(uri) in ("file", "local")


def is_object_store(uri: str) -> bool:
    """Whether folders there are nothing but parts of names."""
    return get_protocol(uri) in _KINDS


def connect(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path in it.

    Raises:
        ArtifactError: if the scheme is unknown, or the driver or credentials are missing.
    """
    protocol = get_protocol(uri)
    kind = _KINDS.get(protocol)
    try:
        if kind is None:
            return _opened(uri, {})
        set_outside = fsspec.config.conf.get(protocol, {})
        options = {k: v for k, v in kind.options.items() if k not in set_outside}
        return _opened(uri, {"use_listings_cache": False, **options})
    except ImportError as error:
        if kind is None:
            raise
        raise ArtifactError(
            f"{uri} needs the package {kind.driver}: pip install 'hillclimb[{kind.extra}]'"
        ) from error
    except Exception as error:
        if kind is None and isinstance(error, ValueError):
            raise ArtifactError(
                f"{uri} is in a store of the unknown kind {protocol}: "
                "use a folder, s3://, gs:// or abfs://"
            ) from error
        if kind is not None and isinstance(error, ValueError):
            raise ArtifactError(f"no credentials for {uri}: set {kind.identity}") from error
        raise _explained(uri, error) from error


def _opened(uri: str, options: dict[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, path = fsspec.core.url_to_fs(uri, **options)
    return fs, path


def patiently(uri: str, operation: Callable[[], T]) -> T:
    """Do what may be done twice; a store that has answered before is waited for.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ArtifactError: if access is refused.
        StoreAway: if the store has never answered, or not for `PATIENCE` seconds.
    """
    store, until, pause = _store_of(uri), time.monotonic() + PATIENCE, 1.0
    while True:
        try:
            done = operation()
        except FileNotFoundError:
            _answered.add(store)
            raise
        except Exception as error:
            told = _explained(uri, error)
            if not isinstance(told, StoreAway) or store not in _answered:
                raise told from error
            if time.monotonic() + pause > until:
                raise told from error
        else:
            _answered.add(store)
            return done
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def no_container(uri: str) -> ArtifactError:
    """What to say when a write finds nothing to write into."""
    kind = _KINDS.get(get_protocol(uri))
    what = kind.container if kind else "folder"
    return ArtifactError(
        f"the {what} {_store_of(uri)} does not exist: create it, or correct the URI {uri}"
    )


def _store_of(uri: str) -> str:
    """The scheme and the bucket of a URI."""
    return "/".join(uri.split("/")[:3])


def _explained(uri: str, error: Exception) -> Exception:
    """The error to raise instead of a driver's; the error itself where it is not the store's."""
    kind, text = _KINDS.get(get_protocol(uri)), _first_line(error)
    status = _status(error)
    if type(error).__name__ == "ResourceNotFoundError" or status == 404:
        return FileNotFoundError(text)
    if type(error).__name__ in _NO_CREDENTIALS and kind:
        return ArtifactError(f"no credentials for {uri}: set {kind.identity}")
    if isinstance(error, OSError) and error.filename is not None:
        return error
    refused = isinstance(error, PermissionError) or status in (401, 403)
    if refused or (isinstance(error, OSError) and text.startswith("Forbidden")):
        return ArtifactError(
            f"{_store_of(uri)} refuses access to {uri} ({text}): use credentials that are valid "
            "and may list, read, write and delete there"
        )
    if isinstance(error, OSError):
        away = error.errno not in _FINAL and not isinstance(error, _NAMES)
    else:
        network = type(error).__module__.partition(".")[0] in _NETWORK
        away = network and (status is None or status >= 500 or status in (408, 409, 429))
    if not away:
        return error
    return StoreAway(
        f"{_store_of(uri)} does not answer ({text}): check the endpoint and the network, "
        "then ask again"
    )


_NAMES = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _status(error: Exception) -> int | None:
    """The HTTP status that a driver's error carries."""
    for name in ("status_code", "code", "status"):
        value = getattr(error, name, None)
        if isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
            return int(value)
    return None
