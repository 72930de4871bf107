"""The page under visitors: many at once, more samplings than wait, a name that is rebound, a huge upload,
more connections than it holds.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from medsora.app.gate import MAX_CONNECTIONS, MAX_QUEUED
from tests.support.paths import ROOT
from tests.support.reserved_port import reserve_port
from tests.support.tiny_pipeline import write_run

UPLOAD_BYTES = 400 * 10**6
API = "/gradio_api"
FIELDS: dict[str, Any] = {"sampler": "ddim", "steps": 1, "seed": 0, "videos": 1, "label": "", "guidance": 2}
FIELDS |= {"temperature": 1, "top_k": 0, "top_p": 1, "first_frame": None}  # in the order of the tab "Sample"


def visit_page(clients: int, jobs: int) -> int:
    """Ask for `jobs` samplings from `clients` at a time; print what came of them; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="medsora-page-") as folder:
        run, held = write_run(Path(folder) / "mine" / "dit-tiny", steps=(5,)), reserve_port()
        place = f"127.0.0.1:{held.getsockname()[1]}"
        command = [sys.executable, "-u", "-m", "medsora.app", "--model", str(run), "--port"]
        server = subprocess.Popen(
            [*command, place.partition(":")[2]],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        try:
            if not server.stdout.readline().startswith("open "):
                print("the page did not start")
                return 1
            return _visit(place, clients, jobs)
        finally:
            server.kill()
            server.wait()
            held.close()


def _visit(place: str, clients: int, jobs: int) -> int:
    config = json.loads(ask(place, "GET", "/config")[1])
    (sampling,) = [
        one["id"]
        for one in config["dependencies"]
        if len(one["inputs"]) == len(FIELDS) + 1 and len(one["outputs"]) == 3
    ]
    model = "mine/dit-tiny, step 5"
    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda number: join(place, sampling, model, number), range(jobs)))
        waiting = [number for number, (status, _) in enumerate(answers) if status == 200]
        outcomes = Counter(pool.map(lambda number: result(place, number), waiting))
    refused = [text for status, text in answers if status != 200]
    faults = [text for text in refused if "Queue is full" not in text or "\n" in text.strip()]
    print(f"sampling requests: {jobs}, from {clients} at a time")
    print(f"  taken: {len(waiting)}; of these served: {outcomes['served']}")
    print(f"  refused in one line: {len(refused) - len(faults)}")
    print(f"  seconds: {time.monotonic() - began:.0f}")
    faults += [text for text in outcomes if text != "served"]
    if len(waiting) < min(jobs, MAX_QUEUED):
        faults.append(f"only {len(waiting)} were taken")
    for what, expected, answer in (
        ("another Host", 421, ask(place, "GET", "/", host="rebound.example")),
        ("another page's request", 403, ask(place, "GET", "/", origin="http://stranger.example")),
        (f"an upload of {UPLOAD_BYTES // 10**6} MB", 413, upload(place)),
        ("a file of the server", 403, ask(place, "GET", f"{API}/file=/etc/passwd")),
        (f"one connection beside {MAX_CONNECTIONS}", 503, crowd(place)),
        ("the page after all", 200, (ask(place, "GET", "/config")[0], "")),
    ):
        print(f"{what}: {answer[0]}, {answer[1].strip()[:100]}")
        if answer[0] != expected or "\n" in answer[1].strip():
            faults.append(f"{what}: {answer}")
    print(f"faults: {len(faults)}")
    for fault in faults[:20]:
        print(f"  {fault[:300]}")
    return 1 if faults else 0


def ask(
    place: str, method: str, path: str, body: str | None = None, host: str = "", origin: str = ""
) -> tuple[int, str]:
    """Return the status and the text that the page answers with."""
    connection = HTTPConnection(place, timeout=600)
    headers = {
        "Content-Type": "application/json",
        "Host": host or place,
        "Origin": origin or f"http://{place}",
    }
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def join(place: str, function: int, model: str, number: int) -> tuple[int, str]:
    """Ask for one sampling, as the page's button does."""
    data: list[Any] = [model, *(FIELDS | {"seed": number}).values()]
    request = {"data": data, "fn_index": function, "session_hash": f"visitor{number}", "event_data": None}
    return ask(place, "POST", f"{API}/queue/join", json.dumps(request))


def result(place: str, number: int) -> str:
    """Wait for the result of a request; return "served", or the error."""
    reply = ask(place, "GET", f"{API}/queue/data?session_hash=visitor{number}")[1]
    for line in reply.splitlines():
        if line.startswith("data: ") and '"process_completed"' in line:
            output = json.loads(line.removeprefix("data: "))
            return "served" if output["success"] else str(output["output"])
    return f"nothing came of it: {reply[-200:]}"


def crowd(place: str) -> tuple[int, str]:
    """Open as many connections as the page holds, and ask on one more; return the answer to it."""
    host, port = place.split(":")
    with ExitStack() as held:
        for _ in range(MAX_CONNECTIONS):
            held.enter_context(socket.create_connection((host, int(port))))
        return ask(place, "GET", "/")


def upload(place: str) -> tuple[int, str]:
    """Begin to send far too much; return the answer, which comes before all of it is sent."""
    connection = HTTPConnection(place, timeout=600)
    connection.putrequest("POST", f"{API}/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(UPLOAD_BYTES))
    connection.endheaders()
    try:
        for _ in range(UPLOAD_BYTES // 2**20):
            connection.send(bytes(2**20))
    except OSError:
        pass  # the page does not listen to the end
    try:
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, HTTPException) as error:
        return 413, f"the connection was closed ({type(error).__name__})"
