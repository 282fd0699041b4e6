"""Every registered task keeps its contract."""

from qnas_plugin import registry
from qnas_plugin.testing.tasks import TaskContract


class TestTasks(TaskContract):
    names = registry.names("tasks")
