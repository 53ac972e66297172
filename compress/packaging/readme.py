"""README.txt of a package: what the model takes and gives, how good it is, and how to run one picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from string import Template

from compress.packaging.manifest import decision, preparation
from compress.packaging.samples import Samples
from compress.report import sentences
from compress.report.escape import on_line
from compress.report.records import Outcome, Report

CHECK = """\
CHECK

    sha256sum -c SHA256SUMS        every file matches its checksum
    python verify.py               that, then outputs beside the expected ones, then time (numpy, onnxruntime)
    python verify.py --json        for a program
    python bench.py                how fast each model is, in turns and in a process of its own
    python engine.py models/model.onnx      a TensorRT engine, built, compared and timed on the device that will run it

manifest.json says all of this for a program. report.json says what the model was made from and how each step was measured,
plan.json what was changed, sbom.cdx.json (CycloneDX) what is in here.
"""
FEW = 20
"""Classes that are listed; manifest.json has all."""

PIXELS = """\
The programs below take the picture as raw bytes, $size: what is left
after the size was changed, before values are divided. ImageMagick makes such a file$filter:

    convert photo.jpg $orient$resize$depth picture.raw

Files that you make in here are not listed: 'python verify.py' refuses the folder until they are gone.
"""
PYTHON = """\
Python (pip install numpy onnxruntime):

    import numpy, onnxruntime
    raw = numpy.fromfile("picture.raw", numpy.uint8).reshape($height, $width, $channels)
    mean, std = numpy.float32([$mean]), numpy.float32([$std])
    x = ((raw / numpy.float32(255) - mean) / std).transpose(2, 0, 1)[None]
    session = onnxruntime.InferenceSession("$model")
    print(session.run(None, {session.get_inputs()[0].name: x})[0])
"""
CPP = """\
C++ (ONNX Runtime's release for your system; g++ picture.cpp -lonnxruntime):

    #include <onnxruntime_cxx_api.h>
    #include <cstdint>
    #include <cstdio>
    #include <fstream>
    #include <iterator>
    #include <vector>

    int main() {
      const int64_t C = $channels, H = $height, W = $width, shape[] = {1, C, H, W};
      const float mean[] = {$mean}, deviation[] = {$std};
      std::ifstream file("picture.raw", std::ios::binary);
      std::vector<uint8_t> raw((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
      if (static_cast<int64_t>(raw.size()) != C * H * W) return 2;
      std::vector<float> x(raw.size());
      for (int64_t c = 0; c < C; ++c)
        for (int64_t i = 0; i < H * W; ++i) x[c * H * W + i] = (raw[i * C + c] / 255.0f - mean[c]) / deviation[c];

      Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "picture");
      Ort::Session session(env, "$model", Ort::SessionOptions{});
      Ort::AllocatorWithDefaultOptions allocator;
      auto in = session.GetInputNameAllocated(0, allocator), out = session.GetOutputNameAllocated(0, allocator);
      const char* ins[] = {in.get()};
      const char* outs[] = {out.get()};
      auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
      auto input = Ort::Value::CreateTensor<float>(memory, x.data(), x.size(), shape, 4);
      auto found = session.Run(Ort::RunOptions{}, ins, &input, 1, outs, 1);
      const float* y = found[0].GetTensorData<float>();
      for (size_t i = 0; i < found[0].GetTensorTypeAndShapeInfo().GetElementCount(); ++i) std::printf("%zu %g\\n", i, y[i]);
    }
"""
JAVASCRIPT = """\
JavaScript, in Node or a browser (npm install onnxruntime-web; save as picture.mjs):

    import * as ort from "onnxruntime-web";

    // model: the bytes of $model. raw: those of picture.raw, a Uint8Array.
    export async function run(model, raw) {
      const [C, H, W] = [$channels, $height, $width], mean = [$mean], std = [$std];
      const x = new Float32Array(C * H * W);
      for (let c = 0; c < C; c++)
        for (let i = 0; i < H * W; i++) x[c * H * W + i] = (raw[i * C + c] / 255 - mean[c]) / std[c];
      const session = await ort.InferenceSession.create(model);
      const found = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", x, [1, C, H, W]) });
      return found[session.outputNames[0]].data;
    }

In Node: run(readFileSync("$model"), readFileSync("picture.raw")), with readFileSync of node:fs. In a browser fetch() gives
the bytes of the model, and a canvas those of a picture; leave out the fourth of its values, which is the transparency.
"""


def readme(name: str, report: Report, samples: Samples, outputs: Sequence[int], models: Sequence[str]) -> bytes:
    """The text.

    Args:
        name: of the model.
        report: of the run.
        samples: inputs that travel along, and what is known of them.
        outputs: shape of the first output for one sample.
        models: their paths in the package.
    """
    parts = [
        f"{on_line(name)}: a model that was made smaller, and what is needed to run it and to check it.\n",
        broken(report),
        "".join(f"WARNING: {on_line(one)}\n" for one in sentences.doubtful(report)),
        f"INPUT\n\n{_inputs(samples)}",
        _prepared(samples),
        f"OUTPUT\n\n{_outputs(samples, outputs)}",
        f"QUALITY\n\n{_quality(report)}",
        f"RUN ONE PICTURE\n\n{_programs(samples, models)}",
        CHECK,
    ]
    return "\n".join(part for part in parts if part).encode()


def broken(report: Report) -> str:
    """What has to be said first of a result that does not keep what was asked of it; empty where it does."""
    if report.outcome is Outcome.KEPT:
        return ""
    return f"WARNING: this model broke the contract of its run ({report.outcome.value}).\n{on_line(report.verdict)}\n"


def _inputs(samples: Samples) -> str:
    several = len(samples.inputs[0]) > 1
    rows: list[str] = []
    for number, array in enumerate(samples.inputs[0]):
        shape = "x".join(["batch", *map(str, array.shape[1:])])
        layout = ", channels first (NCHW)" if array.ndim == 4 else ""
        rows.append(f"    {f'{number}: ' if several else ''}{shape}, {array.dtype}{layout}\n")
    return "".join(rows)


def _prepared(samples: Samples) -> str:
    made = preparation(samples)
    if made is None:
        return "How inputs were prepared is not known here; samples/0-input-0.npy is one.\n"
    told = "".join(f"    {number}. {step}\n" for number, step in enumerate(made["steps"], 1))
    return f"PREPROCESSING, with which the quality was measured\n\n{told}"


def _outputs(samples: Samples, outputs: Sequence[int]) -> str:
    said = decision(samples, outputs)
    lines = [f"    {'x'.join(['batch', *map(str, outputs[1:])])}\n"] if outputs else []
    lines += [f"    {said['meaning']}\n"] if said is not None else []
    if samples.classes:
        listed = ", ".join(f"{number} {on_line(one)}" for number, one in enumerate(samples.classes[:FEW]))
        more = f", ... ({len(samples.classes)} in all, in manifest.json)" if len(samples.classes) > FEW else ""
        lines.append(f"    Classes: {listed}{more}\n")
    return "".join(lines) or "    As the model gives it; manifest.json has the shapes.\n"


def _quality(report: Report) -> str:
    found = report.result.quality
    if found is None:
        return "    Not measured.\n"
    beside = ""
    if report.dense.quality is not None and report.dense.quality.metric == found.metric and len(report.stages) > 1:
        lost = sentences.change(report.dense.quality, found)
        beside = f"; the dense model had {sentences.quality(report.dense.quality)}, the change is {lost}"
    lines = [f"    {found.metric} {sentences.quality(found)} on {found.samples:,} test samples{beside}.\n"]
    lines += [
        f"    {export.path} itself: {export.quality.metric} {sentences.quality(export.quality)}.\n"
        for export in report.exports
        if export.quality is not None
    ]
    if (time := report.result.latency) is not None:
        where = f"{time.runtime}, batch {time.batch}, {time.threads} thread{'' if time.threads == 1 else 's'}"
        lines.append(f"    {time.p50_ms:.3g} ms a call on {report.environment.gpu or report.environment.cpu} ({where}).\n")
    return "".join(lines)


def _programs(samples: Samples, models: Sequence[str]) -> str:
    """One picture in three languages, where the input is one."""
    made, shape = preparation(samples), samples.inputs[0][0].shape
    model = next((path for path in models if path.endswith(".onnx")), None)
    if model is None:
        return "The runtime of each format opens its file: manifest.json says which.\n"
    if made is None or len(shape) != 4 or shape[1] not in (1, 3) or len(samples.inputs[0]) > 1 or made["origin"] == "items":
        return _array(model, len(samples.inputs[0]))
    height, width, channels = shape[2], shape[3], shape[1]
    size, space = f"{width}x{height}", "-colorspace Gray -depth 8 gray" if channels == 1 else "-depth 8 rgb"
    cover = f"-resize {size}^ -gravity center -extent {size}" if made["resize"] == "crop" else f"-resize {size}!"
    known = {
        "size": f"{height}x{width} (height x width), {'RGB for each pixel' if channels == 3 else 'one byte for each pixel'}",
        "height": str(height),
        "width": str(width),
        "channels": str(channels),
        "mean": ", ".join(_float(value) for value in samples.mean or ()),
        "std": ", ".join(_float(value) for value in samples.std or ()),
        "model": model,
        "orient": "-auto-orient " if made["upright"] else "",
        "resize": f"{cover} " if made["resize"] is not None else "",
        "depth": space,
        "filter": "" if made["resize"] is None else ",\nwith a filter that comes close to the one that was measured",
    }
    taken = "any picture" if made["resize"] is not None else f"a picture of {size} pixels"
    at_once = f"    python picture.py photo.jpg     takes {taken}, and says what the model decides (numpy, Pillow, onnxruntime)\n"
    first = f"{at_once}\n" if made["origin"] == "files" else ""
    pixels = PIXELS.replace(" picture.raw\n", ":picture.raw\n")
    texts = [Template(text).substitute(known) for text in (pixels, PYTHON, CPP, JAVASCRIPT)]
    return first + "\n".join(texts)


def _float(value: float) -> str:
    """A number that Python, C++ and JavaScript all read as one with a point."""
    text = json.dumps(float(value))
    return text if "e" in text or "." in text else f"{text}.0"


def _array(model: str, inputs: int) -> str:
    arrays = ", ".join(f'numpy.load("samples/0-input-{k}.npy")' for k in range(inputs))
    return (
        "What goes in is no picture of one or three channels but arrays, ready for the model. Python (numpy, onnxruntime);\n"
        "C++ and JavaScript (onnxruntime-web) likewise, with tensors of the shapes above:\n\n"
        "    import numpy, onnxruntime\n"
        f'    session = onnxruntime.InferenceSession("{model}")\n'
        f"    arrays = [{arrays}]\n"
        "    print(session.run(None, {one.name: x for one, x in zip(session.get_inputs(), arrays)})[0])\n"
    )
