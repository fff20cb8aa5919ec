"""A real PostgreSQL server of this machine."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from dagster_servers import until

USER, PASSWORD = "hillclimb", "s3cret/with:signs"


@dataclass(frozen=True)
class Postgres:
    """A server of the test alone."""

    port: int

    def ask(self, database: str, query: str) -> list[tuple[Any, ...]]:
        where = {"host": "127.0.0.1", "port": self.port, "user": USER, "password": PASSWORD}
        with closing(psycopg2.connect(dbname=database, **where)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall() if cursor.description else []

    def answers(self) -> bool:
        try:
            return bool(self.ask("postgres", "SELECT 1"))
        except psycopg2.OperationalError:
            return False


def programs() -> Path:
    """The newest PostgreSQL of Debian's packages; skips where there is none, except in CI."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: p.parts[-3])
    if not found and "CI" not in os.environ:
        pytest.skip("PostgreSQL (Debian's package postgresql) is not installed")
    assert found, "PostgreSQL is not installed: apt-get install postgresql"
    return found[-1].parent


@contextmanager
def a_postgres() -> Iterator[Postgres]:
    """A server with the databases dagster and mlflow, on a private port, run by an unprivileged
    user, with its data in a folder."""
    binaries, folder = programs(), Path(tempfile.mkdtemp(prefix="hillclimb-pg-"))
    who = pwd.getpwnam("postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name)
    as_user: dict[str, Any] = {"cwd": folder}
    if os.geteuid() == 0:
        as_user |= {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
    (folder / "password").write_text(PASSWORD)
    for path in (folder, folder / "password"):
        os.chown(path, who.pw_uid, who.pw_gid)
    subprocess.run(
        [binaries / "initdb", "-D", "data", "-U", USER, "--pwfile=password", "-E", "UTF8",
         "--auth=scram-sha-256", "--locale=C", "--no-sync"],
        check=True, capture_output=True, **as_user,
    )  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [binaries / "postgres", "-D", "data", "-p", str(port), "-k", folder,
             "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"],
            stdout=log, stderr=log, **as_user,
        )  # fmt: skip
    made = Postgres(port)
    try:
        until(made.answers, 60)
        for database in ("dagster", "mlflow"):
            made.ask("postgres", f"CREATE DATABASE {database}")
        yield made
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        shutil.rmtree(folder)
