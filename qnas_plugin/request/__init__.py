"""What a user asks for, checked: one model a command, whether it came from options, a TOML file, Python or a host."""

from qnas_plugin.request.export import ExportRequest
from qnas_plugin.request.options import Options, Request
from qnas_plugin.request.profile import ProfileRequest, parse_duration
from qnas_plugin.request.retarget import RetargetRequest
from qnas_plugin.request.train import TrainRequest
from qnas_plugin.request.tune import TuneRequest

__all__ = [
    "ExportRequest",
    "Options",
    "ProfileRequest",
    "Request",
    "RetargetRequest",
    "TrainRequest",
    "TuneRequest",
    "parse_duration",
]
