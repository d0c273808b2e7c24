"""Submissions to a stub of SLURM that refuses, forgets or is not there: what is said, and what is recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fovea_detr.runs.folder import RunFolder
from fovea_detr.study import ready
from fovea_detr.study.folder import Study
from tests.study.test_command import ROOT
from tests.study.test_command import sweep as command

SBATCH = """#!/bin/sh
name=$(sed -n 's/^#SBATCH --job-name=//p' "$1"); last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
[ ! -e {folder}/refuse ] || [ ! -s {folder}/queue ] || {{ cat {folder}/refuse >&2; exit 1; }}
room=$(cat {folder}/room); tasks=$((last + 1))
[ $tasks -le $room ] || {{ echo "sbatch: error: AssocMaxSubmitJobLimit" >&2; exit 1; }}
echo $((room - tasks)) > {folder}/room
echo x >> {folder}/calls; id=$(wc -l < {folder}/calls)
for n in $(seq 0 $last); do echo "${{id}}_$n|$name|PENDING|Priority|me" >> {folder}/queue; done
echo Submitted batch job $id
"""
SCONTROL = "#!/bin/sh\necho 'ClusterName = stub'\necho 'MaxArraySize = {size}'\n"


class Stub:
    """A queue in a folder. room: tasks that it takes in all. refuse: its answer to any array but the first."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, room: int = 1000, size: int = 1001) -> None:
        self.folder, self.runs = folder, folder / "runs"
        (folder / "bin").mkdir()
        self.set_room(room)
        for name, text in {
            "sbatch": SBATCH.format(folder=folder),
            "squeue": f"#!/bin/sh\ncat {folder}/queue 2>/dev/null; exit 0\n",
            "sacct": "#!/bin/sh\nexit 1\n",
            "scontrol": SCONTROL.format(size=size),
        }.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}/bin:/usr/bin:/bin")

    def set_room(self, tasks: int) -> None:
        (self.folder / "room").write_text(f"{tasks}\n")

    def sweep(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        return command(self.runs, "experiment=tiny", "study=s", *overrides)

    def sizes(self) -> list[int]:
        """Of the arrays that were taken."""
        return [len(submission.points) for submission in Study(self.runs / "s").submissions() if submission.job]

    def states(self) -> dict[str, str]:
        return {
            path.parent.name[-1]: json.loads(path.read_text())["state"] for path in self.runs.glob("s/*/state.json")
        }


def test_what_fits_is_submitted_and_the_rest_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub(tmp_path, monkeypatch, room=3)
    first = stub.sweep("seed=range(5)")
    assert (first.returncode, first.stderr) == (0, "")
    assert "3 submitted, 2 waiting" in first.stdout
    assert (
        "2 points wait, for SLURM takes no more of your jobs now; the same command submits them later" in first.stdout
    )
    assert stub.sizes() == [2, 1]
    assert stub.states() == {"0": "queued", "1": "queued", "2": "queued", "3": "failed", "4": "failed"}
    stub.set_room(10)
    assert "3 queued, 2 submitted" in stub.sweep("seed=range(5)").stdout
    assert stub.sizes() == [2, 1, 2]


def test_arrays_are_no_larger_than_slurm_allows_and_a_refusal_says_how_many_were_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub(tmp_path, monkeypatch, size=2)
    assert "3 submitted" in stub.sweep("seed=range(3)").stdout
    assert stub.sizes() == [2, 1]
    (tmp_path / "queue").unlink()
    (tmp_path / "refuse").write_text("sbatch: error: Invalid account\n")
    done = stub.sweep("seed=range(5,9)")
    assert done.returncode == 2
    assert (
        done.stderr == "error: 2 points were submitted, the others were not: sbatch: sbatch: error: Invalid account\n"
    )


def test_without_sbatch_no_point_is_called_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Stub(tmp_path, monkeypatch)
    for path in (tmp_path / "bin").iterdir():
        path.unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    done = command(tmp_path / "runs", "experiment=tiny", "study=s", "seed=0,1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: nothing was submitted: there is no sbatch here: this is not a machine of a SLURM cluster\n"
    )
    (record,) = {path.read_text().split('"reason": ')[1] for path in tmp_path.glob("runs/s/*/state.json")}
    assert record.startswith('"not submitted: there is no sbatch here')


def test_where_slurm_does_not_answer_the_next_command_finds_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch's answer is lost on its way, and squeue has none."""
    stub = Stub(tmp_path, monkeypatch)
    sbatch, squeue = tmp_path / "bin/sbatch", tmp_path / "bin/squeue"
    answer, listing = "echo Submitted batch job $id", squeue.read_text()
    sbatch.write_text(sbatch.read_text().replace(answer, "echo 'Socket timed out' >&2; exit 1"))
    squeue.write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    done = stub.sweep("seed=0,1")
    assert done.returncode == 2
    assert done.stderr == (
        "error: sbatch: Socket timed out; whether SLURM took the jobs is not known (squeue: Unable to contact slurm "
        "controller): the same command will find out\n"
    )
    squeue.write_text(listing)
    assert "nothing to submit: 2 queued" in stub.sweep("seed=0,1").stdout
    assert stub.sizes() == [2]


def test_a_job_of_this_name_on_another_cluster_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One home on two clusters: the job can neither be seen nor cancelled from here, and is not submitted again."""
    stub = Stub(tmp_path, monkeypatch)
    stub.sweep("seed=0")
    (tmp_path / "queue").unlink()
    here = tmp_path / "bin/scontrol"
    here.write_text("#!/bin/sh\necho 'ClusterName = other'\n")
    again = stub.sweep("seed=0")
    assert "queued     job 1_0     on stub" in again.stdout
    assert "nothing to submit" in again.stdout
    cancel = [sys.executable, "-m", "fovea_detr.study", "cancel", "s", "--runs", str(stub.runs)]
    done = subprocess.run(cancel, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "cannot be cancelled from here: on stub" in done.stderr


def test_a_queued_point_whose_configuration_was_edited_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub(tmp_path, monkeypatch)
    stub.sweep("seed=0")
    (file,) = stub.runs.glob("s/.submissions/*/0.yaml")
    file.write_text(file.read_text().replace("clip: 0.1", "clip: 0.7"))
    assert "clip: 0.7" in file.read_text()
    done = stub.sweep("seed=0")
    assert (
        "queued     job 1_0     Priority, its job runs the configuration of its submission (schedule.clip: 0.7 -> 0.1)"
        in (done.stdout)
    )


def test_damaged_files_stop_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub(tmp_path, monkeypatch)
    stub.sweep("seed=range(4)")
    by_seed = {path.name[-1]: path for path in stub.runs.glob("s/*seed*")}
    (by_seed["0"] / "state.json").write_text('{"state": "que')
    (by_seed["1"] / "provenance.json").write_text('{"data"')
    (by_seed["2"] / "state.json").write_bytes(b"\xff\xfe")
    with (stub.runs / "s/manifest.jsonl").open("ab") as file:
        file.write(b'{"event": "submi\n[1, 2]\n\xff\xfe\n{"event": "cancelled", "id": "none"}\n')
    (next(stub.runs.glob("s/.submissions/*")) / "3.yaml").write_text("a: [")
    done = stub.sweep("seed=range(4)")
    assert "nothing to submit: 4 queued" in done.stdout, done.stderr


def test_data_that_this_machine_cannot_see_is_refused_before_sbatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub(tmp_path, monkeypatch)
    done = command(stub.runs, "study=s", "data.root=/nowhere/coco")
    assert done.returncode == 2
    assert done.stderr == (
        "error: data.root=/nowhere/coco: there is no such folder on this machine; nothing was submitted\n"
    )
    assert stub.sizes() == []


def test_imagenet_weights_are_fetched_once_at_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert ready.file_name("resnet50") == "resnet50-0676ba61.pth", "of V1, which a run loads"
    assert ready.file_name("convnext_tiny") == "convnext_tiny-983f1562.pth"
    assert not ready.is_cached("resnet50")
    monkeypatch.setattr(ready, "FETCH", "import sys; sys.exit('fovea_detr.errors.WeightsError: no network')")
    with pytest.raises(Exception, match=r"^no network; nothing was submitted$"):
        ready.fetch("resnet50")
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints/resnet50-0676ba61.pth").touch()
    assert ready.is_cached("resnet50")


def plan(tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return command(tmp_path, "hydra.launcher.dry_run=true", *overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["hydra.launcher.gpus_per_node=8", "data.root=/x"], "contradicts cluster.gpus=4: write cluster.gpus=8"),
        (["hydra.launcher.timeout_min=5", "data.root=/x"], "a time limit of 5 min is not longer than the 300 s"),
        (["study=a%A", "experiment=tiny"], "a%A: SLURM replaces %"),
        (["cluster.gpus=4,8", "experiment=tiny"], "`study=g4 cluster.gpus=4` and `study=g8 cluster.gpus=8`"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(tmp_path: Path, overrides: list[str], words: str) -> None:
    done = plan(tmp_path, *overrides)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_plan_counts_the_launchers_limit_the_starts_and_options_without_a_value(tmp_path: Path) -> None:
    told = plan(
        tmp_path, "schedule=500ep", "data.root=/x", "hydra.launcher.timeout_min=600", "cluster.extra.requeue=false"
    )
    assert "at most 40 GPU-hours until the time limit of the first start" in told.stdout
    assert "1 of 1 points are longer than their time limit and are requeued: about 50 starts of 10 h" in told.stdout
    assert "#SBATCH --no-requeue\n" in told.stdout
    assert "--requeue" not in told.stdout
    equal = plan(tmp_path, "data.root=/x", "hydra.launcher.gpus_per_node=4").stdout
    assert "--gpus-per-node=4" in equal
    assert "--gres" not in equal


def test_the_machines_plan_names_what_it_will_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    on_gpus = ["hydra/launcher=submitit_local", "experiment=tiny", "device=cuda"]
    assert ": 2 points at a time, 2 processes a point, on GPU 0,1 and GPU 2,3\n" in (
        plan(tmp_path, *on_gpus, "hydra.launcher.parallel=2").stdout
    )
    assert ": 1 point at a time, 4 processes a point, on GPU 0,1,2,3\n" in plan(tmp_path, *on_gpus).stdout
    assert "choose 1 to 4" in plan(tmp_path, *on_gpus, "hydra.launcher.parallel=5").stderr
    cpu = plan(tmp_path, "hydra/launcher=submitit_local", "experiment=tiny", "hydra.launcher.parallel=3").stdout
    assert ": 3 points at a time, 1 process a point, on the CPU\n" in cpu
    assert "at most" not in cpu


def test_no_state_is_left_of_an_unwritable_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the study that cannot be written, here a folder in its place, is one line."""
    stub = Stub(tmp_path, monkeypatch)
    (stub.runs / "s/manifest.jsonl").mkdir(parents=True)
    done = stub.sweep("seed=0")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not any(RunFolder(path).has_result() for path in stub.runs.glob("s/*seed*"))
    assert os.listdir(stub.runs / "s/manifest.jsonl") == []
