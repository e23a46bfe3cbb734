"""python scripts/expression_model.py [--package TGZ] [--to FILE]: make dynamicid_core/data/expression.onnx.

Its weights are the facial expression network of the npm package @vladmandic/face-api (MIT), fetched with `npm pack`, or
read from a package downloaded before. The file in the repository was made this way; the same package gives the same
bytes again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import environment
from repository import ROOT, SetupError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto, TensorProto

PACKAGE, VERSION, LICENCE = "@vladmandic/face-api", "1.7.15", "MIT"
PACKAGE_SHA256 = "0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031"
MANIFEST = "package/model/face_expression_model-weights_manifest.json"
WEIGHTS = "package/model/face_expression_model.bin"
TARGET = ROOT / "dynamicid_core" / "data" / "expression.onnx"

# As the network was trained: the picture size, the mean colour to subtract, and the order of classes.
SIZE = 112
MEAN_RGB = (122.782, 117.001, 104.298)
CLASSES = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
BLOCKS, CONVOLUTIONS = 4, 4
# The oldest that the nodes below need, so that any onnxruntime InsightFace accepts can open the file.
OPSET, IR_VERSION = 13, 8


@dataclass(frozen=True, eq=False)
class Weight:
    """A tensor of the package. With a scale, its values are bytes q that stand for (q - zero) * scale."""

    values: NDArray[Any]
    scale: float | None = None
    zero: int = 0


# --- the package -----------------------------------------------------------------------------------------------------


def fetch_package(folder: Path) -> Path:
    """The package's .tgz, by npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise SetupError(f"There is no npm to fetch {PACKAGE} with. Install Node.js, or give the .tgz with --package.")
    name = f"{PACKAGE}@{VERSION}"
    print(f"Downloading {name}.", flush=True)
    if subprocess.run([npm, "pack", "--loglevel=error", name], cwd=folder, stdout=subprocess.DEVNULL).returncode:
        raise SetupError(f"npm could not fetch {name}; what it says is above.")
    return next(folder.glob("*.tgz"))


def read_package(file: Path) -> dict[str, Weight]:
    """The network's tensors by name. Raises SetupError unless it is the exact package this was written for."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != PACKAGE_SHA256:
        raise SetupError(f"{file} is not {PACKAGE} {VERSION}: its SHA-256 is {digest}, not {PACKAGE_SHA256}.")
    with tarfile.open(file) as archive:
        entries = json.loads(read_member(archive, MANIFEST))[0]["weights"]
        return split(entries, read_member(archive, WEIGHTS))


def read_member(archive: tarfile.TarFile, name: str) -> bytes:
    """The content of one file of a package."""
    stream = archive.extractfile(name)
    assert stream is not None, f"{name} is no file"
    return stream.read()


def split(entries: list[dict[str, Any]], data: bytes) -> dict[str, Weight]:
    """The tensors of a TensorFlow.js weight file, which are stored in the manifest's order."""
    import numpy as np

    weights: dict[str, Weight] = {}
    offset = 0
    for entry in entries:
        packing = entry.get("quantization")
        kind = np.dtype("uint8" if packing else "<f4")
        count = int(np.prod(entry["shape"]))
        values = np.frombuffer(data, kind, count, offset).reshape(entry["shape"])
        offset += count * kind.itemsize
        # The manifest's minimum is always a whole number of steps below 0, so nothing is lost by keeping that number.
        zero = round(-packing["min"] / packing["scale"]) if packing else 0
        weights[entry["name"]] = Weight(values, packing and packing["scale"], zero)
    assert offset == len(data), "the manifest describes the whole file"
    return weights


# --- the network -----------------------------------------------------------------------------------------------------


@dataclass
class Graph:
    """Builds an ONNX graph. Methods add nodes and return the names of their outputs."""

    weights: dict[str, Weight]
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: list[TensorProto] = field(default_factory=list)

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One node with one output."""
        from onnx import helper

        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def tensor(self, name: str, values: NDArray[Any]) -> str:
        """A constant."""
        import numpy as np
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def weight(self, name: str, *order: int) -> str:
        """A tensor of the package, its axes in another order. Bytes stay bytes, a quarter of the size of floats."""
        import numpy as np

        weight = self.weights[name]
        stored = self.tensor(name, weight.values.transpose(order) if order else weight.values)
        if weight.scale is None:
            return stored
        scale = self.tensor(f"{name}/scale", np.array(weight.scale, np.float32))
        zero = self.tensor(f"{name}/zero", np.array(weight.zero, np.uint8))
        return self.node("DequantizeLinear", stored, scale, zero)

    def convolution(self, x: str, name: str, stride: int) -> str:
        """3 x 3, or, where the package has it in two parts, 3 x 3 on each channel and then 1 x 1 across them."""
        # TensorFlow's padding: when halving an even size, it all goes to the right and the bottom.
        pads = [1, 1, 1, 1] if stride == 1 else [0, 0, 1, 1]
        step = {"strides": [stride, stride], "pads": pads}
        bias = self.weight(f"{name}/bias")
        if f"{name}/filters" in self.weights:
            return self.node("Conv", x, self.weight(f"{name}/filters", 3, 2, 0, 1), bias, **step)
        channels = self.weights[f"{name}/depthwise_filter"].values.shape[2]
        x = self.node("Conv", x, self.weight(f"{name}/depthwise_filter", 2, 3, 0, 1), group=channels, **step)
        return self.node("Conv", x, self.weight(f"{name}/pointwise_filter", 3, 2, 0, 1), bias)

    def block(self, x: str, name: str) -> str:
        """Halves the size; then each convolution takes, and adds to, the sum of all before it."""
        total = seen = self.node("Relu", self.convolution(x, f"{name}/conv0", stride=2))
        for i in range(1, CONVOLUTIONS):
            total = self.node("Add", total, self.convolution(seen, f"{name}/conv{i}", stride=1))
            seen = self.node("Relu", total)
        return seen


def build(weights: dict[str, Weight]) -> ModelProto:
    """face [N, 3, 112, 112], RGB from 0 to 1 -> probabilities [N, 7]."""
    import numpy as np
    from onnx import TensorProto, checker, helper

    graph = Graph(weights)
    mean = np.array(MEAN_RGB, np.float32).reshape(1, 3, 1, 1) / 255
    x = graph.node("Sub", "face", graph.tensor("mean", mean))
    for i in range(BLOCKS):
        x = graph.block(x, f"dense{i}")
    x = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    x = graph.node("Gemm", x, graph.weight("fc/weights"), graph.weight("fc/bias"))
    graph.nodes.append(helper.make_node("Softmax", [x], ["probabilities"], name="probabilities", axis=1))
    face = helper.make_tensor_value_info("face", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", len(CLASSES)])
    whole = helper.make_graph(graph.nodes, "facial expression", [face], [probabilities], graph.tensors)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    described = {"source": f"npm {PACKAGE} {VERSION}", "licence": LICENCE, "classes": json.dumps(CLASSES)}
    helper.set_model_props(model, described)
    checker.check_model(model, full_check=True)
    return model


# --- the command -----------------------------------------------------------------------------------------------------


def make(package: Path | None, target: Path) -> None:
    """Write the model file."""
    with tempfile.TemporaryDirectory() as folder:
        weights = read_package(package or fetch_package(Path(folder)))
    target.write_bytes(build(weights).SerializeToString(deterministic=True))
    print(f"{target}: {target.stat().st_size / 1000:.0f} KB")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, metavar="TGZ", help="the package, if downloaded before")
    parser.add_argument("--to", type=Path, metavar="FILE", default=TARGET, help="where to write, if elsewhere")
    options = parser.parse_args(arguments)
    if options.package and not options.package.is_file():
        parser.error(f"there is no package {options.package}")
    return options


def main(arguments: list[str]) -> int:
    """Exit code of the command. Runs itself again inside the environment."""
    options = parse(arguments)
    return environment.command(Path(__file__), arguments, lambda: make(options.package, options.to))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
