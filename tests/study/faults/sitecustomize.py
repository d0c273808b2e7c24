"""Python imports this first if it is on the job's PYTHONPATH: it makes one rank of a run fail, as FAULT says.

FAULT=raise|memory, FAULT_RANK, FAULT_STEP (training steps of this process before it happens).
FAULT=count: no fault; a byte is added to FAULT_FILE for every step that is taken.
FAULT=slow: a step takes longer than the job has.
"""

import os
import sys
import threading
import time


def _break(trainer: type) -> None:
    step_of_a_run, count = trainer.train_step, 0

    def train_step(*arguments):
        nonlocal count
        count += 1
        if os.environ["FAULT"] == "slow":
            while not arguments[0].stop.number:
                time.sleep(0.01)
            raise sys.modules["fovea_detr.runs.stop"].Stopped(arguments[0].stop.number)
        if os.environ["FAULT"] == "count":
            with open(os.environ["FAULT_FILE"], "a") as file:
                file.write(".")
        elif count > int(os.environ["FAULT_STEP"]):
            if os.environ["FAULT"] == "raise":
                raise RuntimeError("injected failure")
            hoard = bytearray(os.urandom(1 << 20)) * 6000  # 6 GB
            time.sleep(60)
            del hoard
        return step_of_a_run(*arguments)

    trainer.train_step = train_step


def _when_imported() -> None:
    for _ in range(6000):
        module = sys.modules.get("fovea_detr.training.loop")
        if module is not None and hasattr(module, "Trainer"):
            return _break(module.Trainer)
        time.sleep(0.01)


if os.environ.get("FAULT") and os.environ.get("SLURM_PROCID") == os.environ.get("FAULT_RANK"):
    threading.Thread(target=_when_imported, daemon=True).start()
