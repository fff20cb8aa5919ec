"""What an answer of the cluster's API means to the launcher, and what to do about it."""

from __future__ import annotations

import json
from typing import Any

from hillclimb.launcher.kubernetes.kinds import Object

_PASSING = (0, 408, 410, 429)


class ApiAway(Exception):
    """The API gave no answer, or one that another attempt may change."""


class ApiRefused(RuntimeError):
    """The API will not do this; the message is a sentence with the fix."""


class Unknown(ApiRefused):
    """The API does not know who asks (401)."""


class Absent(Exception):
    """404: the object is not there, or, where not `served`, nobody serves such objects."""

    def __init__(self, message: str, served: bool) -> None:
        super().__init__(message)
        self.served = served


class Conflict(Exception):
    """409: something else is there."""


class Invalid(Exception):
    """422: the object may not be so, or not become so."""


def meaning(error: Any, verb: str, path: str) -> Exception:
    """What a status other than success means; `error` is the official client's ApiException."""
    status, answer = int(error.status or 0), _status_of(error)
    said = str(answer.get("message") or error.reason or "").strip() or "no reason given"
    if status == 404:
        return Absent(said, "name" in (answer.get("details") or {}))
    if status == 409 and verb != "GET":
        return Conflict(said)
    if status == 422:
        return Invalid(said)
    if status in _PASSING or status == 409 or status >= 500:
        return ApiAway(f"the cluster's API answers {status}: {said}")
    if status == 401:
        return Unknown(f"the cluster does not know who asks ({said}): renew the credentials")
    if status == 403:
        return ApiRefused(_forbidden(said, verb, path))
    return ApiRefused(f"{verb} {path} is refused with {status}: {said}")


def parsed(answer: bytes) -> Object:
    """The object in a successful answer.

    Raises:
        ApiAway: where it is cut off, or comes from something else than the API.
    """
    try:
        return dict(json.loads(answer))
    except (ValueError, TypeError) as error:
        raise ApiAway("the answer of the cluster's API is broken") from error


def _forbidden(said: str, verb: str, path: str) -> str:
    if "exceeded quota" in said:
        return (
            f"the namespace's ResourceQuota has no room for another object ({said}): delete ended "
            "ones, lower compute.kubernetes.ttl_seconds, or raise the quota"
        )
    if "denied the request" in said:
        return f"an admission rule of the cluster refuses it ({said}): correct compute.kubernetes"
    return f"{verb} {path} is forbidden ({said}): bind the Role of k8s/base to who runs hillclimb"


def _status_of(error: Any) -> Object:
    """The server's Status object; empty where something else has answered."""
    try:
        return dict(json.loads(error.body))
    except (TypeError, ValueError):
        return {}
