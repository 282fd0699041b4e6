"""Adds tune, profile and retarget to ``optimum-cli``, which imports this file at each start.

It imports nothing else, so that a plugin that is broken or half removed cannot break the other commands; the options
are read when one of the three is named.
"""

from argparse import ArgumentParser, Namespace

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo


class _Parser(ArgumentParser):
    """A parser that gets its options when it is used."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        try:
            from qnas_plugin.hosts.optimum import add_options
        except Exception as error:  # whatever is wrong with the installation
            self.exit(1, f"{self.prog}: cannot import qnas_plugin ({error}); repair it with: pip install qnas-plugin\n")
        add_options(self)
        return super().parse_known_args(args, namespace)


class _QnasCommand(BaseOptimumCLICommand):
    """A command of ``qnas``."""

    args: Namespace

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Leaves the options for later."""
        parser.__class__ = _Parser

    def run(self) -> None:
        """Runs the command and exits with its code."""
        from qnas_plugin.hosts.optimum import run

        run(self.COMMAND.name, self.args)


REGISTER_COMMANDS = [
    CommandInfo("tune", "Search the INT8/FP32 precision of a model, and its sub-network, for a CPU.", _QnasCommand),
    CommandInfo("profile", "Make the latency table of a supernet on this machine.", _QnasCommand),
    CommandInfo("retarget", "Turn a finished search into the Pareto set of another CPU.", _QnasCommand),
]
