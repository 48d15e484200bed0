"""Writes resize.onnx and maps.onnx, which hold what the browser example computes around a model.

    python examples/browser/make_graphs.py       # needs `pip install onnx`

resize.onnx    image, uint8 [1, H, W, 3] -> the same at `sizes`, antialiased as Pillow does it
maps.onnx      probabilities [1, C, h, w] -> mask, uint8 [1, H, W], 255 foreground; and the class ids, int64 [1, H, W]
"""

from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper, save

HERE = Path(__file__).parent
UINT8, INT64, FLOAT = TensorProto.UINT8, TensorProto.INT64, TensorProto.FLOAT


def model(nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray] | None = None) -> ModelProto:
    """Returns a graph as a file; inputs and outputs are (name, type, shape)."""
    kept = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    infos = [[helper.make_tensor_value_info(*entry) for entry in entries] for entries in (inputs, outputs)]
    graph = helper.make_graph(nodes, "graph", *infos, kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


resize = model(
    [helper.make_node("Resize", ["image", "", "", "sizes"], ["resized"], mode="linear", antialias=1)],
    [("image", UINT8, [1, "H", "W", 3]), ("sizes", INT64, [4])],
    [("resized", UINT8, [1, "h", "w", 3])],
)

# roles [2, C] sums the foreground and the background classes; as petseg.predict.segmentation, logarithms are resized
maps = model(
    [
        helper.make_node("Max", ["probabilities", "tiny"], ["positive"]),
        helper.make_node("Log", ["positive"], ["logits"]),
        helper.make_node("Resize", ["logits", "", "", "sizes"], ["class_logits"], mode="linear"),
        helper.make_node("ArgMax", ["class_logits"], ["class_ids"], axis=1, keepdims=0),
        helper.make_node("Einsum", ["roles", "probabilities"], ["sums"], equation="rc,nchw->nrhw"),
        helper.make_node("Max", ["sums", "tiny"], ["positive_sums"]),
        helper.make_node("Log", ["positive_sums"], ["role_logits"]),
        helper.make_node("Resize", ["role_logits", "", "", "role_sizes"], ["sides"], mode="linear"),
        helper.make_node("ArgMax", ["sides"], ["side"], axis=1, keepdims=0),
        helper.make_node("Equal", ["side", "zero"], ["foreground"]),
        helper.make_node("Cast", ["foreground"], ["one"], to=UINT8),
        helper.make_node("Mul", ["one", "white"], ["mask"]),
    ],
    [
        ("probabilities", FLOAT, [1, "C", "h", "w"]),
        ("roles", FLOAT, [2, "C"]),
        ("sizes", INT64, [4]),
        ("role_sizes", INT64, [4]),
    ],
    [("mask", UINT8, [1, "H", "W"]), ("class_ids", INT64, [1, "H", "W"])],
    {
        "tiny": np.array(np.finfo(np.float32).tiny, np.float32),
        "zero": np.array(0, np.int64),
        "white": np.array(255, np.uint8),
    },
)

if __name__ == "__main__":
    save(resize, HERE / "resize.onnx")
    save(maps, HERE / "maps.onnx")
