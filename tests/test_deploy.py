"""The files of docs/deploy: nginx before the service, units of systemd, and options that commands there name."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Served
from test_service_retention import code

from panning.client.requests import sent_events
from panning.service.words import Quota

DEPLOY = Path(__file__).resolve().parent.parent / "docs" / "deploy"
NAME = "lab.example"


def needs(*programs: str) -> None:
    """Skip a test where a program is missing."""
    for program in programs:
        if shutil.which(program) is None and not Path("/usr/sbin", program).exists():
            pytest.skip(f"This needs {program}, which is not installed here.")


# --- nginx ---


class Proxy:
    """nginx with the file of docs/deploy, on a socket in a folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self.socket, made = folder / "s", folder / "nginx.conf"
        certificate, key = folder / "pem", folder / "key"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
                   "2", "-subj", f"/CN={NAME}", "-out", certificate, "-keyout", key]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        text = (DEPLOY / "nginx.conf").read_text()
        for old, new in (
            ("443", f"unix:{self.socket}"), (f"/etc/ssl/{NAME}.pem", certificate), (f"/etc/ssl/private/{NAME}.key", key),
            ("127.0.0.1:8750", f"127.0.0.1:{port}"),
        ):  # fmt: skip
            assert old in text
            text = text.replace(old, str(new))
        places = "".join(
            f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        made.write_text(
            f"daemon off; pid {folder}/pid; worker_processes 1; events {{}}\nhttp {{ access_log off; {places}\n{text}}}\n"
        )
        self.process = subprocess.Popen(
            [shutil.which("nginx") or "/usr/sbin/nginx", "-c", made, "-p", folder, "-e", folder / "log"],
            stderr=subprocess.PIPE,
        )
        while not self._answers():
            assert self.process.poll() is None, self.process.communicate()[1]

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as one:
            return one.connect_ex(str(self.socket)) == 0

    def connect(self) -> http.client.HTTPConnection:
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(60)
        plain.connect(str(self.socket))
        connection = http.client.HTTPConnection(NAME)
        connection.sock = trusting.wrap_socket(plain, server_hostname=NAME)
        return connection

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = self.connect()
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("service"), names=[NAME], https=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def proxy(served: Served) -> Iterator[Proxy]:
    needs("nginx", "openssl")
    with tempfile.TemporaryDirectory() as folder:  # a socket's path is short
        made = Proxy(Path(folder), served.port)
        yield made
        made.close()


def test_events_come_through_nginx_as_they_are_told(proxy: Proxy, served: Served) -> None:
    token = served.token(quota=Quota(running=0, queued=1))  # its job waits, and so little is told that no buffer fills
    number, connection = served.submit(token), proxy.connect()
    connection.request("GET", f"/api/v1/jobs/{number}/events", headers={"Authorization": f"Bearer {token}"})
    with connection.getresponse() as answer:
        told = sent_events(answer)
        assert next(told)[2]["state"] == "queued"
        served.ask("POST", f"/api/v1/jobs/{number}/cancel", token)
        assert [values["state"] for _, _, values in told] == ["cancelled"]
    connection.close()


def test_names_origins_and_cookies_hold_behind_nginx(proxy: Proxy, served: Served, token: str) -> None:
    ours = {"Origin": f"https://{NAME}", "X_Panning": "1", "Content_Type": "application/json"}
    shown = json.dumps({"token": token})
    status, headers, _ = proxy.ask("POST", "/session", shown, **ours)
    cookie = headers["Set-Cookie"]
    assert status == 204 and cookie.startswith("__Host-panning=") and "Secure" in cookie
    sent = {"Cookie": cookie.partition(";")[0]}
    assert proxy.ask("GET", "/jobs", **sent)[0] == 200
    assert proxy.ask("DELETE", "/api/v1/jobs/1000000/pin", **sent, **ours)[0] == 404, "it was let in"
    for origin in (f"http://{NAME}", "https://evil.example", f"https://{NAME}:8443"):
        assert proxy.ask("POST", "/session", shown, **{**ours, "Origin": origin})[0] == 403, origin
    with pytest.raises(http.client.RemoteDisconnected):
        proxy.ask("GET", "/healthz", Host="evil.example")
    assert proxy.ask("GET", "/healthz")[0] == 200


def test_a_file_goes_up_and_comes_back_in_parts_through_nginx(proxy: Proxy, served: Served, token: str) -> None:
    content = bytes(range(256)) * 20_000
    sha256 = hashlib.sha256(content).hexdigest()
    status, _, _ = proxy.ask("PUT", f"/api/v1/uploads/{sha256}?kind=data", content, Authorization=f"Bearer {token}")
    assert status == 201
    number = served.submit(token)
    served.until_ended(token, number)
    (served.service.scheduler.folder(number).run / "big.bin").write_bytes(content)
    path, who = f"/api/v1/jobs/{number}/artefacts/{sha256}", f"Bearer {token}"
    assert proxy.ask("GET", path, Authorization=who)[2] == content
    status, headers, part = proxy.ask("GET", path, Authorization=who, Range="bytes=5-9")
    assert (status, part, headers["ETag"]) == (206, content[5:10], f'"{sha256}"')


# --- systemd, and options ---


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    needs("systemd-analyze")
    units = []
    for unit in sorted(DEPLOY.glob("panning*.*")):
        units.append(tmp_path / unit.name)
        units[-1].write_text(unit.read_text().replace("/opt/panning/bin/panning", "/bin/true"))
    found = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    ours = [line for line in found.stderr.splitlines() if "panning" in line]
    assert len(units) == 3 and (found.returncode, ours) == (0, [])


def test_every_option_that_is_named_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    known = {}
    for command in ("serve", "backup"):
        assert code(command, "--help") == 0
        known[command] = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    texts = {path.name: path.read_text() for path in [*DEPLOY.iterdir(), DEPLOY.with_suffix(".md")]}
    texts["Containerfile"] = re.sub(r'[",\[\]]+', "", texts["Containerfile"]).replace("CMD", "panning serve")
    seen = set()
    for name, text in texts.items():
        for command, rest in re.findall(r"panning (serve|backup)\b([^\n'`;&|]*)", text):
            for option in re.findall(r"--[a-z-]+", rest):
                assert option in known[command], (name, option)
                seen.add(option)
    assert {"--root", "--host", "--name", "--https", "--reduce-days"} <= seen
