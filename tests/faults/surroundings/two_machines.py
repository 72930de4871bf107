"""Two machines: two torchrun agents on the loopback interface, each with a working folder of its own.

Only the folder of the runs is shared. Both stages, sampling and evaluation must give what one machine with as
many processes gives; where one agent is killed, the other must stop, and the same commands resume.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import torch

import evaluate
import sample_ddim
import train_dit
import train_vae
from tests.faults.processes import alone, descendants, finish, kill, start_forks
from tests.faults.scenarios import configure, prepare, script
from tests.support import tiny_training as tiny
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from tests.support.reserved_port import reserve_port

PROCESSES, STEPS = 2, 4
LONGER = 12  # steps of the run that is killed
STOPPED_WITHIN_S = 60.0  # beside the time for which there was no core
VIDEOS = 3


def try_two_machines(options: argparse.Namespace) -> int:
    """Run everything on one machine and on two, and kill one of two; return the exit status."""
    os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="medsora-machines-"))
    try:
        alone(partial(prepare, work))
        if "kill" in options.only:
            print(_kill_one(work, "machine"), flush=True)
            print(_kill_one(work, "agent"), flush=True)
        one, two = (configure(work, name, PROCESSES, vae__path=None) for name in ("one", "two"))
        for script_name, arguments in _commands(one).items() if "commands" in options.only else ():
            finish(start_forks(one, PROCESSES, script(MAINS[script_name], *arguments)))
            _finish(two, script_name)
            print(f"{script_name}: {_compared(script_name, one, two)}", flush=True)
    except AssertionError as error:
        print(f"FAILED: {error}")
        return 1
    finally:
        shutil.rmtree(work)
    print("two machines: the same as one")
    return 0


MAINS = {
    "train_vae": train_vae.main,
    "train_dit": train_dit.main,
    "sample_ddim": sample_ddim.main,
    "evaluate": evaluate.main,
}


def _commands(shared: Path) -> dict[str, tuple[str, ...]]:
    """Return the arguments of each command, by script."""
    run, videos = str(shared / "runs" / "tiny" / "dit-tiny"), str(shared / "videos")
    places = (f"run.dir={shared}/runs", f"cache.dir={shared}/cache")
    config = ("--config", str(shared / "config.yaml"), *places)
    cached = ("cache.latents=disk", "cache.prior=disk")
    sizes = ("--frames", "8", "--size", "32", "--clips", "8", "--batch-size", "1", "--metrics", "motion")
    results = ("--out", str(shared / "results"), "--cache", str(shared / "features"))
    return {
        "train_vae": config,
        "train_dit": (*config, *cached),
        "sample_ddim": ("--model", run, "--out", videos, "--num-videos", str(VIDEOS), "--steps", "2"),
        "evaluate": ("--real", str(shared.parent / "clips"), "--fake", videos, *results, *sizes),
    }


def _start(shared: Path, name: str, arguments: tuple[str, ...]) -> list[subprocess.Popen]:
    """Start a command as on two machines: two launchers that meet at a port."""
    with reserve_port() as held:
        port = held.getsockname()[1]
    agents = []
    for number in range(PROCESSES):
        folder = shared / f"machine-{number}"
        folder.mkdir(exist_ok=True)
        launcher = ("-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1")
        meeting = (
            "--rdzv_backend",
            "c10d",
            "--rdzv_endpoint",
            f"localhost:{port}",
            "--local-addr",
            "127.0.0.1",
        )
        with (folder / "output.txt").open("a") as output:
            agent = subprocess.Popen(
                [sys.executable, *launcher, *meeting, ROOT / f"{name}.py", *arguments],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=output,
            )
        agents.append(agent)
    return agents


def _finish(shared: Path, name: str) -> None:
    agents = _start(shared, name, _commands(shared)[name])
    statuses = [agent.wait(PATIENCE_S) for agent in agents]
    output = (shared / "machine-0" / "output.txt").read_text()
    assert statuses == [0] * PROCESSES, f"ended with {statuses}: {output[-3000:]}"


def _compared(name: str, one: Path, two: Path) -> str:
    """Return what two machines gave in words, or fail by an assertion."""
    if name.startswith("train"):
        run = Path("runs", "tiny", "vae" if name == "train_vae" else "dit-tiny")
        tiny.assert_same_run(one / run, two / run, STEPS)
        return f"the same after {STEPS} steps, to the last bit"
    if name == "sample_ddim":
        made = [sorted((shared / "videos").glob("video-*.mp4")) for shared in (one, two)]
        assert len(made[0]) == len(made[1]) == VIDEOS
        assert [path.read_bytes() for path in made[0]] == [path.read_bytes() for path in made[1]]
        return f"{VIDEOS} videos, byte for byte the same"
    results = [json.loads((shared / "results" / "results.json").read_text()) for shared in (one, two)]
    metrics = [[found[kind] for kind in ("distances", "scores")] for found in results]
    assert metrics[0] == metrics[1], metrics
    return "the same metrics"


def _kill_one(work: Path, what: str) -> str:
    """Kill the second machine, or its agent alone, after a checkpoint; resume; return what was seen."""
    settings = {"train_vae__max_steps": LONGER, "train_vae__eval_every": LONGER}
    one, two = (
        configure(work, f"{name}-{what}", PROCESSES, vae__path=None, **settings) for name in ("one", "two")
    )
    arguments = _commands(one)["train_vae"]
    finish(start_forks(one, PROCESSES, script(train_vae.main, *arguments)))
    run = Path("runs", "tiny", "vae")
    agents = _start(two, "train_vae", _commands(two)["train_vae"])
    began = time.monotonic()
    while not (two / run / "checkpoints" / "step-0000002").is_dir():
        assert agents[0].poll() is None, "it ended before its first checkpoint"
        assert time.monotonic() - began < PATIENCE_S
        time.sleep(0.1)
    agent, workers = agents[0], descendants(agents[0].pid)
    others = descendants(agents[1].pid)
    kill(agents[1].pid) if what == "machine" else agents[1].kill()
    agents[1].wait()
    began, before = time.monotonic(), _waited_s([*workers, agent.pid])
    after = before
    while (status := agent.poll()) is None and time.monotonic() - began < PATIENCE_S:
        after = after | (running := _waited_s([*workers, agent.pid]))
        if running.keys() - {agent.pid}:  # until they have ended, it does nothing but wait for them
            before[agent.pid] = after[agent.pid]
        time.sleep(0.1)
    stopped_s = time.monotonic() - began
    waited_s = after[agent.pid] - before[agent.pid] + max(after[pid] - before[pid] for pid in workers)
    output = (two / "machine-0" / "output.txt").read_text()
    seen = f"stopped after {stopped_s:.1f} s, of which its processes waited {waited_s:.1f} s for a core"
    assert status == 1, f"the other one ended with {status}: {output[-3000:]}"
    assert stopped_s - waited_s < STOPPED_WITHIN_S, f"the other one {seen}: {output[-3000:]}"
    assert "another process of this run is gone" in output or "sent no heartbeat" in output, output[-2000:]
    _finish(two, "train_vae")
    tiny.assert_same_run(one / run, two / run, LONGER)
    orphans = [pid for pid in others if _runs(pid)]
    assert not orphans, f"processes of the killed {what} still run: {orphans}"
    return f"one {what} killed: the other {seen}; resumed to the same, to the last bit"


def _runs(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _waited_s(processes: Sequence[int]) -> dict[int, float]:
    """Return how long the main thread of each process that still runs was ready but had no core."""
    waited = {}
    for pid in processes:
        with suppress(OSError):  # ended
            waited[pid] = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return waited
