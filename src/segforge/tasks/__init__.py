"""Tasks by name: one folder each, with its metrics; imported only when asked for."""

from importlib import import_module

from segforge.config.rules import TASKS
from segforge.errors import unknown_name
from segforge.tasks.core.base import Task


def task_of(name: str) -> Task:
    """The task of a name; raises `SegforgeError` with the known ones for another."""
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    task: Task = import_module(f"segforge.tasks.{name}").TASK
    return task
