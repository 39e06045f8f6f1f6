"""TLS through the two addresses alone: a worker and a console that reach Postgres and Redis through it, or not at all.

The embedded servers are built without TLS, so a door before each of them speaks it: real certificates and real
handshakes, Postgres' own way of beginning one included.
"""

from __future__ import annotations

import datetime
import ipaddress
import selectors
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.acceptance.composed import Site, deployed
from tests.kit.fleet import calls_then_answer

SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # how a Postgres client asks for TLS; "S" is a yes


def make_certificate(folder: Path, name: str) -> Path:
    """A certificate for 127.0.0.1 that vouches for itself, and its key beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    path.with_suffix(".key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


class Door:
    """A door to a server that opens to TLS alone. `passed` counts the connections that were let through."""

    def __init__(self, server: tuple[str, int], certificate: Path) -> None:
        self.server = server
        self.passed = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    def _serve(self) -> None:
        with suppress(OSError):  # the door was closed
            while True:
                threading.Thread(target=self._pass, args=(self._door.accept()[0],), daemon=True).start()

    def _pass(self, outside: socket.socket) -> None:
        with suppress(OSError), outside:  # of a failed handshake the one who came hears, and that is the test's matter
            if outside.recv(len(SSL_REQUEST), socket.MSG_PEEK) == SSL_REQUEST:
                outside.recv(len(SSL_REQUEST))
                outside.sendall(b"S")
            safe = self._context.wrap_socket(outside, server_side=True)
            with safe, socket.create_connection(self.server) as inside:
                self.passed += 1
                _exchange(safe, inside)


def _exchange(safe: ssl.SSLSocket, inside: socket.socket) -> None:
    """Hand on what comes from either side until one has ended."""
    other = {safe: inside, inside: safe}
    with selectors.DefaultSelector() as waiting:
        for side in other:
            waiting.register(side, selectors.EVENT_READ)
        while True:
            ready: list[Any] = [safe] if safe.pending() else [key.fileobj for key, _ in waiting.select()]
            for side in ready:
                piece = side.recv(65536)
                if not piece:
                    return
                other[side].sendall(piece)


@dataclass
class Safe:
    """A deployment whose servers are reached through TLS, by whoever trusts the right authority."""

    site: Site
    postgres: Door
    redis: Door
    authority: Path

    def variables(self, service: str, authority: Path) -> dict[str, str]:
        """The environment of a service, with the addresses as the runbook writes them for TLS."""
        env = self.site.env(service)
        postgres, redis = urlsplit(env["DRANGUE_DATABASE_URL"]), urlsplit(env["DRANGUE_REDIS_URL"])
        return {
            "DRANGUE_DATABASE_URL": postgres._replace(
                netloc=f"{postgres.netloc.rpartition(':')[0]}:{self.postgres.port}",
                query=f"sslmode=verify-full&sslrootcert={authority}",
            ).geturl(),
            "DRANGUE_REDIS_URL": redis._replace(
                scheme="rediss",
                netloc=f"{redis.netloc.rpartition(':')[0]}:{self.redis.port}",
                query=f"ssl_cert_reqs=required&ssl_ca_certs={authority}",
            ).geturl(),
        }


@pytest.fixture(scope="module")
def safe(addresses: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Safe]:
    """A deployment behind two doors; no worker yet."""
    folder = tmp_path_factory.mktemp("tls")
    certificate = make_certificate(folder, "server")
    with deployed(addresses.database_url, folder, calls_then_answer()) as site:
        postgres = urlsplit(site.admin_url)
        doors = [
            Door((postgres.hostname or "", postgres.port or 0), certificate),
            Door(("127.0.0.1", site.ports["6379"]), certificate),
        ]
        yield Safe(site, *doors, certificate)
        for door in doors:
            door.close()


def test_a_fleet_works_through_tls(safe: Safe) -> None:
    """The addresses carry it to psycopg, to redis-py and to Celery's transport; nothing else has to be set."""
    told = safe.variables("console", safe.authority)
    safe.site.extra |= safe.variables("model", safe.authority)
    try:
        with safe.site.up("model") as (worker,):
            worker.waits_to_say("ready")
            safe.site.extra.clear()

            done = safe.site.console(
                "submit", "tester", "go", "--run-id", "safe", "--wait", "60", "--allow-unknown", **told
            )
            assert done.code == 0, (done, worker.said())
            assert "done" in done.out
    finally:
        safe.site.extra.clear()
    assert safe.postgres.passed >= 3
    assert safe.redis.passed >= 5


@pytest.mark.parametrize("away", ["DRANGUE_DATABASE_URL", "DRANGUE_REDIS_URL"])
def test_a_server_that_somebody_else_vouches_for_is_refused(safe: Safe, tmp_path: Path, away: str) -> None:
    """Encryption to an unknown party keeps no secret; it is one line, and nothing is sent."""
    other = make_certificate(tmp_path, "other")
    told = safe.variables("console", safe.authority) | {away: safe.variables("console", other)[away]}
    before = safe.postgres.passed if "DATABASE" in away else safe.redis.passed
    done = safe.site.console("doctor", "--timeout", "1", **told)
    assert done.code != 0
    assert "certificate verify failed" in (done.out + done.err).replace("\n", " "), done
    assert (safe.postgres.passed if "DATABASE" in away else safe.redis.passed) == before


def test_the_doors_open_to_tls_alone(safe: Safe) -> None:
    """Else the fleet above may have come through in clear."""
    before = (safe.redis.passed, safe.postgres.passed)
    with redis.Redis(port=safe.redis.port, retry=None) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(f"postgresql://x@127.0.0.1:{safe.postgres.port}/x?sslmode=disable")
    assert (safe.redis.passed, safe.postgres.passed) == before
