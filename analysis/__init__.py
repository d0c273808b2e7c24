"""Tables, figures and pages from run folders. Reading and tables never import torch."""

from analysis.study import Study, load

__all__ = ["Study", "load"]
