"""Neural Compressor's ``quantization.fit`` with the strategy ``linas``, on scikit-learn's digits.

Before: make demo; optimum-cli export onnx --model demo/digits-supernet --task image-classification demo/digits-onnx
"""

import numpy as np
import onnxruntime as ort
from neural_compressor import PostTrainingQuantConfig, quantization
from neural_compressor.config import AccuracyCriterion
from sklearn.datasets import load_digits

from qnas_plugin.hosts.neural_compressor import LinasCriterion

digits = load_digits()
images = ((digits.images[:, None] / 16 - 0.3) / 0.38).astype(np.float32)  # as preprocessor_config.json says
labels = digits.target


class Loader:
    """Calibration data as Neural Compressor takes it: a batch size, and pairs of inputs and labels."""

    batch_size = 16

    def __iter__(self):
        for start in range(0, 128, self.batch_size):
            yield images[start : start + self.batch_size], labels[start : start + self.batch_size]


def accuracy(model):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return float((session.run(None, {"pixel_values": images[1000:]})[0].argmax(-1) == labels[1000:]).mean())


criterion = LinasCriterion(
    "demo/fit",
    objectives=["accuracy", "latency_ms", "size_mb"],
    max_trials=40,
    strategy_kwargs={"population": 20, "hardware": "demo/this-machine.toml"},
)
conf = PostTrainingQuantConfig(
    quant_level=1,  # without it Neural Compressor runs a strategy of its own
    tuning_criterion=criterion,
    accuracy_criterion=AccuracyCriterion(criterion="absolute", tolerable_loss=0.01),
    calibration_sampling_size=[128],
)
model = quantization.fit("demo/digits-onnx/model.onnx", conf, calib_dataloader=Loader(), eval_func=accuracy)
model.save("demo/fit/best.onnx")
print(criterion.result().to_dataframe()[["accuracy", "latency_ms", "size_mb", "recommended"]].to_string())
