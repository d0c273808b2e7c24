"""Tables, figures and pages from run folders. Reading and tables never import torch."""
