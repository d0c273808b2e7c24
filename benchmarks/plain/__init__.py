"""The twin: the published formulation (DETR, SMCA) written out plainly, with our parameter names, to compare with.

It was timed against the published code itself, whole training steps of R50, 2 images of 480x640, one thread of a quiet
machine, CPU seconds: 3.49 s of the twin against 3.45 s of the published code (type2), 3.61 against 3.64 (type4). So a
ratio to the twin is a ratio to the published code, to 1 %. Its values are compared in tests/benchmarks/test_plain.py,
and at each of 300 training steps in tests/training/test_trace.py.
"""
