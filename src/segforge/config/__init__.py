"""The schema of conf/, with the rules beside what they guard; a wrong key, type, name or combination fails here.

Four primary configs compose it: `network` (the model half: train, export, simplify), `engine` (the engine half:
quantize, build, evaluate, gate, benchmark, predict), `dataset` (download) and `machine` (the machine itself, and
the report).
"""
