"""Random faults on the points of two users, on a real SLURM: `python benchmarks/soak.py --points 12 --faults 60`.

Two users (root makes them) sweep in one shared folder, on a small tmpfs if that can be mounted, from one checkout.
The faults are those of benchmarks/faults.py. Afterwards the cluster is whole again and all jobs have ended:

- the state of each point has a reason that one of the faults done to it makes true;
- the same commands bring every point to its end, with the weights and metrics of an undisturbed run of its config.yaml,
  and the table has these metrics beside these settings;
- no job has been ended that no study has submitted.

The first thing that is not so ends the soak with an AssertionError. CI has a short form: tests/study/test_soak.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from analysis import load  # noqa: E402
from benchmarks.faults import LEARNING_RATES, LENGTH, OF_A_POINT, OF_ALL, TRUE_REASONS, Lab, Target, process_of  # noqa: E402
from fovea_detr.runs.folder import RunFolder  # noqa: E402
from fovea_detr.runs.stored import Stored  # noqa: E402
from fovea_detr.study import queue, snapshot  # noqa: E402
from fovea_detr.study.standing import PointStatus  # noqa: E402
from tests.study.conftest import SMALL_JOB, TINY, start_cluster  # noqa: E402
from tests.study.people import USERS, Person, cancel_all, make_users  # noqa: E402

ROUNDS = 6  # of the same commands, until every point has ended
DRAIN_SECONDS_OF_A_POINT = 150.0
MEBIBYTES_OF_A_POINT = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=40, help="of both users together")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak", dir="/tmp") as base:
        for environment in start_cluster(150):
            print(soak(Path(base), environment, options.points, options.faults, options.seed))


def soak(base: Path, environment: Mapping[str, str], points: int, faults: int, seed: int) -> str:
    """-> what was done and found, as a table. AssertionError for the first thing that is not as it should be."""
    os.environ["SLURM_CONF"] = environment["SLURM_CONF"]
    queue.settings.cache_clear()
    with laboratory(base, environment, points, seed) as lab:
        for study in {target.study for target in lab.targets}:
            lab.sweep(study, next(target.owner for target in lab.targets if target.study == study))
        done = inject(lab, faults)
        make_whole(lab)
        before = drained(lab)
        refuse_false_reasons(lab, before, done)
        rounds = finish(lab)
        configurations = compare_with_undisturbed(lab)
    kinds = Counter(name for _, name in done)
    lines = [f"seed {seed}: {points} points, {len(done)} faults, {rounds} rounds until all were done"]
    lines += [f"{name:15} {count:4}" for name, count in sorted(kinds.items())]
    words = Counter(status.state for status in before.values())
    lines += ["states after the faults: " + ", ".join(f"{count} {word}" for word, count in words.items())]
    lines += [f"{points} points have the weights of {configurations} undisturbed runs"]
    return "\n".join(lines)


@contextmanager
def laboratory(base: Path, environment: Mapping[str, str], points: int, seed: int) -> Iterator[Lab]:
    code, shared = base / "code", base / "shared"
    for name in snapshot.listed(ROOT):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, code / name, follow_symlinks=False)
    base.chmod(0o755)
    shared.mkdir()
    size = f"size={100 + MEBIBYTES_OF_A_POINT * points}m"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(shared)], capture_output=True)
    try:
        make_users(shared)
        people = [Person(name, base, environment, code) for name in USERS]
        lab = Lab(base, environment, people, random.Random(seed), points // len(people))
        lab.cluster("restart", "slurmd")  # it has mounts of its own, made at its start
        yield lab
    finally:
        cancel_all(environment)
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(shared)], check=True)


# ---- the faults, and what the states say afterwards ----------------------------------------------------------------


def inject(lab: Lab, count: int) -> list[tuple[Target | None, str]]:
    """Every kind once, in a random order, and again -> the faults that could be done; those of all have no target."""
    done: list[tuple[Target | None, str]] = []
    while len(done) < count:
        kinds = [*OF_A_POINT, *OF_ALL]
        for fault in lab.random.sample(kinds, len(kinds))[: count - len(done)]:
            time.sleep(lab.random.uniform(0, 3))
            lab.resume()
            targets = lab.random.sample(lab.targets, len(lab.targets))
            hit = next((target for target in targets if fault(lab, target)), None)
            if hit is not None:
                done.append((hit if fault in OF_A_POINT else None, fault.__name__))
                where = f" {hit.study.folder.name} seed={hit.seed}" if fault in OF_A_POINT else ""
                print(f"{time.strftime('%H:%M:%S')} {len(done)} {fault.__name__}{where}", flush=True)
    return done


def make_whole(lab: Lab) -> None:
    """The cluster runs, the disk has room, the configuration is the first one."""
    lab.start_accounting()
    lab.set_learning_rate(LEARNING_RATES[0])


def drained(lab: Lab) -> dict[Target, PointStatus]:
    """Wait until no job of a study is in the queue and no process of a run is left -> where the points stand."""
    limit = DRAIN_SECONDS_OF_A_POINT * len(lab.targets)
    end = time.monotonic() + limit
    while True:
        names = {one.name for target in lab.targets for one in target.study.submissions()}
        left = lab.queued(names)
        lab.resume()
        if not left and not any(process_of(target, "fovea_detr.study.job") for target in lab.targets):
            break
        assert time.monotonic() < end, f"still in the queue after {limit:.0f} s:\n{left}"
        time.sleep(1)
    states = {target: target.study.current_states([target.name])[0] for target in lab.targets}
    for target, status in states.items():
        what = f"{target.name}: {status.state} [{status.slurm}], and it has no job"
        assert not status.standing.is_live, f"{what}\n{evidence(lab, target)}"
    return states


def refuse_false_reasons(lab: Lab, states: Mapping[Target, PointStatus], done: list[tuple[Target | None, str]]) -> None:
    """AssertionError for a point that is not done, and whose reason none of the faults done to it makes true."""
    suffered: dict[Target, set[str]] = defaultdict(set)
    for target in states:
        suffered[target] = {name for hit, name in done if hit in (None, target)}
    false = []
    for target, status in states.items():
        text = f"{status.state} {status.reason}"
        causes = {fault for words, faults in TRUE_REASONS.items() if re.search(words, text) for fault in faults}
        if status.state != "done":
            print(f"{target.study.folder.name} seed={target.seed}: {text} [{status.slurm}]", flush=True)
            if not causes & suffered[target]:
                false.append(f"{target.name}: {text}, after {sorted(suffered[target])}\n{evidence(lab, target)}")
    assert not false, "\n".join(false)


def evidence(lab: Lab, target: Target) -> str:
    """What SLURM's accounting, the nodes and the point's logs tell of its latest job."""
    fields = "JobID,JobName,State,ExitCode,Submit,Start,End"
    accounts = lab.ask_slurm("sacct", "-a", "-D", "-X", "-n", "-P", "-j", target.job, "-o", fields)
    logs = [path.read_text(errors="replace")[-1500:] for path in target.submission.log_files(target.name, "*")]
    nodes = Path(lab.environment["FOVEA_SLURM_DIR"], "log").glob("fovea*.log")
    errors = [line for path in nodes for line in path.read_text(errors="replace").splitlines() if "error" in line]
    return "\n".join([accounts, *errors[:30], *logs, str(target.folder.record())])


# ---- the end -------------------------------------------------------------------------------------------------------


def finish(lab: Lab) -> int:
    """Type the owners' commands again until every point is done -> how often."""
    for n in range(ROUNDS):
        left = [target for target in lab.targets if not target.folder.has_result()]
        if not left:
            return n
        groups: dict[tuple[Target, str], list[int]] = {}
        for target in left:
            first = next(one for one in lab.targets if one.study == target.study)
            groups.setdefault((first, learning_rate(target.folder)), []).append(target.seed)
        for (target, rate), seeds in groups.items():
            lab.set_learning_rate(rate)
            print(lab.sweep(target.study, target.owner, ",".join(map(str, seeds))), flush=True)
        drained(lab)
    states = [f"{s.point}: {s.state} {s.reason}" for s in drained(lab).values() if s.state != "done"]
    assert not states, f"not done after {ROUNDS} rounds:\n" + "\n".join(states)
    return ROUNDS


def learning_rate(folder: RunFolder) -> str:
    """As the run in the folder was configured; the first one if it holds none."""
    text = folder.config_text()
    found = Stored(text).config().schedule.lr if text else float(LEARNING_RATES[0])
    return next(rate for rate in LEARNING_RATES if float(rate) == found)


def compare_with_undisturbed(lab: Lab) -> int:
    """AssertionError for a point whose weights or metrics are not those of its config.yaml -> how many of these."""
    references: dict[tuple[int, str], RunFolder] = {}
    table = load(lab.runs).runs.set_index(["study", "run"])
    assert len(table) == len(lab.targets)
    for target in lab.targets:
        rate = learning_rate(target.folder)
        assert Stored(target.folder.config_text() or "").config().seed == target.seed
        reference = references.setdefault((target.seed, rate), undisturbed(lab, target.seed, rate))
        refuse_difference(target.folder, reference)
        row = table.loc[(target.study.folder.name, target.name)]
        expected = {"AP": (reference.result() or {})["last"]["AP"], "seed": target.seed, "lr": float(rate)}
        assert row.filter(expected).to_dict() == {key: expected[key] for key in expected if key in row}, target.name
    assert ("lr" in table) == (len({rate for _, rate in references}) > 1)
    return len(references)


def undisturbed(lab: Lab, seed: int, rate: str) -> RunFolder:
    """The same configuration in one process without SLURM; computed once."""
    study = f"undisturbed-{seed}-{rate}"
    runs = lab.base / "reference"
    if not (runs / study).is_dir():
        lab.set_learning_rate(rate)
        words = [*TINY, *SMALL_JOB, *LENGTH, f"seed={seed}", f"runs={runs}", f"data.cache={lab.base / 'cache'}"]
        command = [sys.executable, "run.py", *words, f"study={study}"]
        done = subprocess.run(command, cwd=lab.code, text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
    (folder,) = (runs / study).glob("*seed=*")
    return RunFolder(folder)


def refuse_difference(folder: RunFolder, reference: RunFolder) -> None:
    """AssertionError if the metrics or the weights at the end of two runs differ by a bit."""
    import torch

    last, expected = (json.dumps((one.result() or {})["last"], sort_keys=True) for one in (folder, reference))
    assert last == expected, f"{folder.path}: {last}, undisturbed {expected}"
    ours, theirs = (torch.load(one.checkpoint_path, weights_only=False)["model"] for one in (folder, reference))
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        assert torch.equal(weights, theirs[name]), f"{folder.path}: {name} differs from an undisturbed run"


if __name__ == "__main__":
    main()
