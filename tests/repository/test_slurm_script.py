"""The batch script of docs/clusters.md, run with stand-ins for SLURM's commands and for Python."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "clusters.md"
STAND_INS = {
    # Starts four tasks, two on each machine, and ends with the highest of their statuses, as srun does.
    "srun": """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
for task in 0 1 2 3; do SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) "$@" & tasks+=($!); done
highest=0
for task in "${tasks[@]}"; do wait "$task"; status=$?; ((status > highest)) && highest=$status; done
exit $highest
""",
    "scontrol": """#!/bin/bash
if [ "$1" = show ]; then printf 'first\\nsecond\\n'; else echo "$@" >> requeued.txt; fi
""",
    "python": """#!/bin/bash
echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $@" > "task-$RANK.txt"
exit $STATUS
""",
}


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (0, False), (1, False), (2, False)])
def test_the_batch_script(status: int, requeued: bool, tmp_path: Path) -> None:
    """Every task learns its place; an interrupted and saved run is put into the queue again, nothing else."""
    (script,) = re.findall(r"^```\n(#!/bin/bash\n.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    settings = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "4"}
    settings |= {"SLURM_NTASKS_PER_NODE": "2", "STATUS": str(status)}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | settings | {"PATH": path}, check=False
    )
    assert done.returncode == status
    assert (tmp_path / "requeued.txt").is_file() == requeued
    for task in range(4):
        output = (tmp_path / f"task-{task}.txt").read_text()
        assert output.startswith(f"{task} {task % 2} 4 2 first:29500 train_dit.py --config ")
        assert "--time-limit" in output
