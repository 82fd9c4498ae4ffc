"""Servers of a team, started by hand on loopback: PostgreSQL, a store that speaks S3, MLflow over them, and nginx.

They are Debian's packages postgresql and nginx-light, and `make setup-team`; `missing` says what is not here.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from bestrun.guard import guarded
from support.looks import until
from support.pages import free_port

PASSWORD = "s3cret-0f-the-database"
ADMIN = ("admin", "s3cret-0f-the-admin")  # of MLflow's users
KEY = ("AKIATEAMSTESTS000001", "s3cret-0f-the-bucket")
BUCKET = "team-artifacts"
SECRETS = (PASSWORD, ADMIN[1], KEY[1], "s3cret")


def missing(*programs: str) -> str | None:
    """Why a test of real servers cannot run here: what to install; None where all is here.

    Args:
        programs: of `postgres`, `nginx`, `s3`, `auth`; none: all of them.
    """
    lacking = []
    wanted = programs or ("postgres", "nginx", "s3", "auth")
    if "postgres" in wanted and not postgres_program("initdb"):
        lacking.append("apt-get install postgresql")
    if "nginx" in wanted and not shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        lacking.append("apt-get install nginx-light")
    modules = {"postgres": ["psycopg"], "s3": ["boto3", "moto"], "auth": ["flask_wtf"]}
    if any(importlib.util.find_spec(name) is None for each in wanted for name in modules.get(each, ())):
        lacking.append("make setup-team")
    return f"not installed: {', '.join(lacking)}" if lacking else None


def needs(*programs: str) -> pytest.MarkDecorator:
    """The mark of a test that stands on these servers."""
    reason = missing(*programs)
    return pytest.mark.skipif(reason is not None, reason=reason or "all is here")


def postgres_program(name: str) -> str | None:
    """The newest of Debian's versions of a program of PostgreSQL, or the one of PATH."""
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), key=lambda path: float(path.split("/")[4]))
    return found[-1] if found else shutil.which(name)


class Service:
    """A program in the background that ends with the tests, however they end.

    Attributes:
        port: of 127.0.0.1, where it listens; it stays the same after a restart.
        log: what it has written.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.port = free_port()
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._running = contextlib.ExitStack()

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def answers(self) -> bool:
        """Whether it takes connections."""
        with socket.socket() as connection:
            connection.settimeout(1)
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers."""
        if self._process:
            return
        with open(self.log, "ab") as log:
            options = dict(cwd=self.folder, env=self.environment(), stdout=log, stderr=log)
            self._process = self._running.enter_context(guarded(self.command(), **options))
        try:
            until(lambda: self.answers() or self._process.poll() is not None, timeout=60)  # type: ignore[union-attr]
        finally:
            if not self.answers():
                said = self.log.read_text()[-3000:]
                self.stop()
                pytest.fail(f"{self.name} did not start\n{said}")

    def send(self, number: int) -> None:
        """Send a signal to the program itself, which its guard has started."""
        assert self._process
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                self.send(number)
            self._running.close()
            self._process = None


class Postgres(Service):
    """A cluster of its own with one user, `mlflow`, whose password is asked for. In /tmp: its program is not run as
    root, and must reach it.
    """

    def __init__(self) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="bestrun-postgres-", dir="/tmp")), "postgres")
        self._as = []
        if os.getuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--"]
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        if os.getuid() == 0:
            os.chown(secret, account.pw_uid, account.pw_gid)
        initdb = [*self._as, postgres_program("initdb"), "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"]
        initdb += ["--username=mlflow", f"--pwfile={secret}", "--auth=scram-sha-256", self.folder / "data"]
        done = subprocess.run(initdb, capture_output=True, text=True, cwd=self.folder)
        if done.returncode:
            pytest.fail(f"initdb: {done.stdout}{done.stderr}")

    def command(self) -> list[str]:
        options = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-k", str(self.folder)]
        program = postgres_program("postgres")
        assert program
        return [*self._as, program, "-D", str(self.folder / "data"), "-p", str(self.port), *options]

    def answers(self) -> bool:
        import psycopg

        try:
            self.connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, number: int = signal.SIGINT) -> None:
        """By default at once, not once all clients have gone."""
        super().stop(number)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(self, database: str):  # type: ignore[no-untyped-def]
        import psycopg

        address = dict(host="127.0.0.1", port=self.port, user="mlflow", password=PASSWORD, dbname=database)
        return psycopg.connect(**address, autocommit=True, connect_timeout=5)

    def make_database(self, name: str) -> str:
        """A new, empty database; returns its address with the password."""
        with self.connect("postgres") as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.uri(name)

    def copy_database(self, name: str, template: str) -> str:
        """A new database with all that another has, which nobody uses now."""
        with self.connect("postgres") as connection:
            self._end_connections(connection, template)
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.uri(name)

    def take_rows(self, name: str, path: Path) -> None:
        """Put all rows of an SQLite store with MLflow's tables into a database that has them, too, and no run."""
        tables = ("experiments", "runs", "params", "tags", "metrics", "latest_metrics")
        with contextlib.closing(sqlite3.connect(path)) as source, self.connect(name) as there:
            there.execute("DELETE FROM experiments")
            for table in tables:
                rows = source.execute(f"SELECT * FROM {table}")
                columns = [column[0] for column in rows.description]
                with there.cursor().copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(
                            [bool(value) if key == "is_nan" else value for key, value in zip(columns, row, strict=True)]
                        )
            there.execute("ANALYZE")

    def drop_database(self, name: str) -> None:
        with self.connect("postgres") as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def _end_connections(self, connection, database: str) -> None:  # type: ignore[no-untyped-def]
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
        connection.execute(query, [database])

    def uri(self, name: str, *, password: str | None = PASSWORD, user: str = "mlflow") -> str:
        """The address of a database; without a password it is taken from PGPASSWORD or ~/.pgpass, as libpq has it."""
        account = user if password is None else f"{user}:{password}"
        return f"postgresql://{account}@127.0.0.1:{self.port}/{name}"


class S3(Service):
    """moto's server: buckets in memory, which are gone when it stops. Put support.proxy before it to have it away."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "s3")

    def command(self) -> list[str]:
        return [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(self.port)]

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        super().start()
        self.client().create_bucket(Bucket=BUCKET)

    def client(self):  # type: ignore[no-untyped-def]
        import boto3

        named = dict(endpoint_url=self.uri, region_name="us-east-1")
        return boto3.client("s3", aws_access_key_id=KEY[0], aws_secret_access_key=KEY[1], **named)

    def names(self) -> list[str]:
        """What lies in the bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [each["Key"] for page in pages for each in page.get("Contents", ())]


def s3_environment(uri: str, key: tuple[str, str] = KEY) -> dict[str, str]:
    """What MLflow's and Amazon's libraries take from the environment."""
    return {
        "MLFLOW_S3_ENDPOINT_URL": uri,
        "AWS_ACCESS_KEY_ID": key[0],
        "AWS_SECRET_ACCESS_KEY": key[1],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class Mlflow(Service):
    """`mlflow server`, given all that is secret by its environment.

    Args:
        backend: the address of its database.
        options: its further options.
        extra: variables of its environment.
        users: it has users, and this is what each may do with what others have made: READ, EDIT.
    """

    def __init__(
        self,
        folder: Path,
        backend: str,
        options: list[str],
        extra: Mapping[str, str] | None = None,
        *,
        users: str | None = None,
    ) -> None:
        super().__init__(folder, "mlflow")
        self._backend, self._options, self._extra = backend, options, dict(extra or {})
        if users:
            self._options = [*options, "--app-name", "basic-auth"]
            config = folder / "users.ini"
            config.write_text(
                f"[mlflow]\ndefault_permission = {users}\nadmin_username = admin\nauth_cache_ttl_seconds = 60\n"
                f"database_uri = sqlite:///{folder / 'users.db'}\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            )
            self._extra |= {
                "MLFLOW_AUTH_CONFIG_PATH": str(config),
                "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "s3cret-0f-the-pages",
            }

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        return [*command, "--workers", "1", *self._options]

    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        return clean | quiet | {"MLFLOW_BACKEND_STORE_URI": self._backend} | self._extra

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Its whole group: uvicorn's workers outlive the process that started them; the guard sees to it."""
        super().stop(number)

    def make_user(self, name: str, password: str) -> None:
        from mlflow.server.auth.client import AuthServiceClient

        with environment(MLFLOW_TRACKING_USERNAME=ADMIN[0], MLFLOW_TRACKING_PASSWORD=ADMIN[1]):
            AuthServiceClient(self.uri).create_user(name, password)


class Nginx(Service):
    """nginx before another server: TLS by an authority of its own, a prefix of the path, a token, a limit to a file.

    Args:
        upstream: the port it stands before.
        prefix: of the path, taken away again, such as /mlflow.
        limit: of a request's body, as nginx writes it.
        token: which each request must bring.
    """

    def __init__(
        self,
        folder: Path,
        upstream: int,
        *,
        tls: bool = False,
        prefix: str = "",
        limit: str = "0",
        token: str | None = None,
    ) -> None:
        super().__init__(folder, "nginx")
        self.prefix, self.tls = prefix, tls
        self._upstream, self._limit, self._token = upstream, limit, token
        self.authority = make_certificates(folder) if tls else None
        self._write()

    @property
    def uri(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}{self.prefix}"

    def change(self, **to: str) -> None:
        """Change `limit`, and take it up without closing a connection."""
        self._limit = to["limit"]
        self._write()
        self.send(signal.SIGHUP)

    def command(self) -> list[str]:
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        assert program
        return [program, "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"), "-e", str(self.log)]

    def _write(self) -> None:
        folder = self.folder
        secure = f"ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key;" if self.tls else ""
        refuse = f'if ($http_authorization != "Bearer {self._token}") {{ return 401; }}' if self._token else ""
        places = "".join(
            f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/nginx.pid; worker_processes 1; {'user root;' if os.getuid() == 0 else ''}\n"
            f"events {{ worker_connections 128; }}\nhttp {{ access_log {folder}/access.log;\n{places}"
            f"server {{ listen 127.0.0.1:{self.port}{' ssl' if self.tls else ''}; {secure}\n"
            f"client_max_body_size {self._limit};\n"
            f"location {self.prefix or ''}/ {{ {refuse}\n"
            f"proxy_pass http://127.0.0.1:{self._upstream}/; proxy_set_header Host $http_host;\n"
            "proxy_request_buffering off; proxy_http_version 1.1; } } }\n"
        )


def make_certificates(folder: Path) -> Path:
    """An authority, and a certificate of it for 127.0.0.1 and localhost: server.pem and server.key. Returns the
    authority's certificate.
    """
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for words in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=team -keyout authority.key -out authority.pem "
        "-addext keyUsage=critical,keyCertSign",
        "req -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 2 -extfile names "
        "-out server.pem",
    ):
        subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)
    return folder / "authority.pem"


@contextlib.contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """These variables in this process, as long as the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            if value is None:
                patch.delenv(name, raising=False)
            else:
                patch.setenv(name, value)
        yield


def where_secrets_stand(*places: Path, secrets: tuple[str, ...] = SECRETS) -> list[str]:
    """Files below these places, and running processes' command lines, that hold one of the secrets."""
    wanted = [secret.encode() for secret in secrets]
    files = [path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    files = [path for path in files if path.name != "uncommitted.diff"]  # there the tests' own text has them
    files += [Path(path) for path in glob.glob("/proc/[0-9]*/cmdline")]
    found = []
    for path in files:
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            found += [str(path) for secret in wanted if secret in content]
    return found
