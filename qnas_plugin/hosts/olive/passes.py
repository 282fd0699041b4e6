"""The pass: an ONNX model and the precision of each of its groups to the mixed INT8/FP32 model."""

from __future__ import annotations

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes import Pass
from olive.passes.onnx.common import get_external_data_config, model_proto_to_olive_model
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from qnas_plugin.commands.olive_config import MAX_GROUPS, group_name
from qnas_plugin.errors import UsageError
from qnas_plugin.hosts.olive.request import lab


class QnasMixedPrecision(Pass):  # type: ignore[misc]
    """Static quantization of some layers: ``group_00``, ``group_01`` ... say of which, in the order of ``qnas show``.

    The variables of a pass must stand before its model is known, so there are as many as a model can have groups;
    ``qnas olive-config`` lists those that a model has as what is searched.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        request = PassConfigParam(type_=dict, required=True, description="Options of qnas tune, without the model.")
        groups = {
            group_name(i): PassConfigParam(type_=str, default_value="int8", description="int8, fp32 or another format.")
            for i in range(MAX_GROUPS)
        }
        return {"request": request, **groups, **get_external_data_config()}

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        builds = lab({**config.request, "model": model.model_path})
        space = builds.network.space
        if len(space) > MAX_GROUPS:
            raise UsageError(f"{model.model_path} has {len(space)} groups, Olive takes {MAX_GROUPS}; lower max_groups")
        values = {variable.name: getattr(config, group_name(i)) for i, variable in enumerate(space.variables)}
        return model_proto_to_olive_model(
            builds.build(space.candidate(values)), resolve_onnx_path(output_model_path), config
        )
