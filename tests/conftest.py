"""Every test sees the same configuration: a developer's conf/local.yaml and COCO_ROOT are switched off."""

from __future__ import annotations

import os

from fovea_detr.config import local

os.environ[local.FILE] = ""
os.environ.pop(local.ROOT, None)
