"""Exported files beside `predict`: largest difference of probabilities, milliseconds, int8.

    python benchmarks/export.py --run RUN --images photographs.zip --json export.json

RUN is a classifier, and the images are labelled. Each image is decoded once; then every program
gets it, one image at a time, in turn. Milliseconds are medians without decoding: `pillow + onnx`
and `pillow + openvino` are plain files after Pillow's resize, the others resize inside the file.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import PIL
import torch

import unfreeze
from unfreeze.data.index.index import build_index
from unfreeze.data.sources.open import open_source
from unfreeze.runs.inference import readers_of
from unfreeze.transfer.predictor import load_classifier


def session(path: str, threads: int):
    """An ONNX Runtime session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def programs(run: str, images: str, folder: str, threads: int):
    """Name to a function of a uint8 image: probabilities [C]; and what `--int8` measured."""
    more = {"data": images, "with_preprocessing": True}
    plain = unfreeze.export(run, "onnx", f"{folder}/plain", data=images)
    whole = unfreeze.export(run, "onnx", f"{folder}/onnx", int8=True, **more)
    unfreeze.export(run, "torchscript", f"{folder}/torchscript", **more)
    unfreeze.export(run, "openvino", f"{folder}/openvino", data=images)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    vino = openvino.Core().compile_model(f"{folder}/openvino/model.xml", "CPU", options)
    classifier = load_classifier(run)
    temperature, p = classifier.card.temperature, classifier.preprocess
    a, b = session(f"{plain.out}/model.onnx", threads), session(f"{whole.out}/model.onnx", threads)
    c = session(f"{whole.out}/model-int8.onnx", threads)
    script = torch.jit.load(f"{folder}/torchscript/model.ts")

    def after_pillow(image):
        scores = a.run(None, {"images": p.apply(image)[None].contiguous().numpy()})[0]
        return (torch.from_numpy(scores) / temperature).softmax(dim=1)[0].numpy()

    def openvino_after_pillow(image):
        scores = vino(p.apply(image)[None].contiguous().numpy())[0]
        return (torch.from_numpy(scores.copy()) / temperature).softmax(dim=1)[0].numpy()

    def torchscript(image):
        with torch.inference_mode():
            return script(torch.from_numpy(image)).numpy()

    def predict(image):
        (one,) = classifier.predict([image], probabilities=True)
        return np.array(list(one.probabilities.values()))

    return {
        "predict": predict,
        "pillow + onnx": after_pillow,
        "pillow + openvino": openvino_after_pillow,
        "onnx": lambda image: b.run(None, {"image": image})[0],
        "torchscript": torchscript,
        "onnx int8": lambda image: c.run(None, {"image": image})[0],
    }, whole.int8


def main() -> None:
    """Print and store one line for each program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    index = build_index(open_source(args.images), strange_classes=True)
    chosen = np.unique(np.linspace(0, len(index) - 1, args.count).astype(int))
    images = [np.array(read()) for read in readers_of(index.take(chosen))]
    with tempfile.TemporaryDirectory() as folder:
        run, int8 = programs(args.run, args.images, folder, args.threads)
        for image in images[:3]:
            for program in run.values():
                program(image)
        times = {name: [] for name in run}
        outputs = {name: [] for name in run}
        for image in images:
            for name, program in run.items():
                began = time.perf_counter()
                outputs[name].append(program(image))
                times[name].append(1000 * (time.perf_counter() - began))
    expected = np.array(outputs["predict"])
    rows = {
        name: {
            "milliseconds": statistics.median(times[name]),
            "max_difference": float(np.abs(np.array(outputs[name]) - expected).max()),
        }
        for name in run
    }
    for name, row in rows.items():
        print(f"{name:16} {row['milliseconds']:7.1f} ms   {row['max_difference']:.2g}")
    print(int8)
    if args.json:
        about = {
            "images": len(images),
            "threads": args.threads,
            "machine": platform.processor() or platform.machine(),
            "pillow": PIL.__version__,
            "onnxruntime": onnxruntime.__version__,
            "openvino": openvino.__version__,
            "torch": torch.__version__,
            "programs": rows,
            "int8": vars(int8),
        }
        Path(args.json).write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
