"""The family keeps what every supernet promises."""

from qnas_plugin.testing.supernets import SupernetContract


class TestTinyCnn(SupernetContract):
    names = ("tiny_cnn",)
