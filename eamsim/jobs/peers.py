"""The same model in other runtimes, to be timed beside the integer engine: float32 in torch, int8 by their own quantisers elsewhere.

Each function returns a call that takes float32 images [batch, 3, height, width], normalised, and gives logits.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from eamsim.errors import MissingExtra, UserError

FEATURE = "eamsim bench --against"
Call = Callable[[np.ndarray], Any]


def load_peer(name: str, module: nn.Module, images: np.ndarray, threads: int) -> Call:
    """The peer `name` of a timm module: torch, onnxruntime or openvino.

    images: float32 [batch, 3, height, width], of the batch to be timed, from which int8 ranges are taken too. Raises UserError for
    another name, MissingExtra where its package is not installed.
    """
    peers = {"torch": torch_float32, "onnxruntime": onnxruntime_int8, "openvino": openvino_int8}
    if name not in peers:
        raise UserError(f"--against: expected some of {', '.join(peers)} with commas between, got {name!r}")
    with _quiet():
        return peers[name](module, images, threads)


def torch_float32(module: nn.Module, images: np.ndarray, threads: int) -> Call:
    """Eager torch, attention fused."""

    def call(batch: np.ndarray) -> Any:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return module(torch.from_numpy(batch))

    return call


def onnxruntime_int8(module: nn.Module, images: np.ndarray, threads: int) -> Call:
    """ONNX Runtime's static quantisation: QDQ, uint8 activations, int8 weights per channel."""
    try:
        import onnxruntime
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ModuleNotFoundError as error:
        raise MissingExtra("bench", FEATURE) from error

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"images": images}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, quantised = (Path(folder) / name for name in ("plain.onnx", "prepared.onnx", "int8.onnx"))
        torch.onnx.export(module, (torch.from_numpy(images),), plain, input_names=["images"], dynamo=False)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)  # shapes are fixed, and symbolic ones of a Swin are not found
        quantize_static(prepared, quantised, Reader(), per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
        session = onnxruntime.InferenceSession(quantised, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"images": batch})


def openvino_int8(module: nn.Module, images: np.ndarray, threads: int) -> Call:
    """OpenVINO, quantised by NNCF with its transformer scheme."""
    try:
        import nncf  # pyright: ignore[reportMissingImports] (only the extra bench brings it)
        import openvino  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise MissingExtra("bench", FEATURE) from error
    converted = openvino.convert_model(module, example_input=torch.from_numpy(images))
    quantised = nncf.quantize(converted, nncf.Dataset([images]), model_type=nncf.ModelType.TRANSFORMER, subset_size=1)
    compiled = openvino.Core().compile_model(quantised, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"})
    return lambda batch: compiled(batch)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers talk much, on both streams; nothing of it is a result, and standard output is for results."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
