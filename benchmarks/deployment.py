"""Time both encoders on the CPU: torch, torch.compile, ONNX, and ONNX with weights of 8 bits.

One model is exported, and its forms are timed in turn, in one run, on the same frames and
captions. Weights are random, which does not change the time; the cosine of 8 bits is that of such
weights, so that of a trained model is for tools/deployment/export_onnx.py to say.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from projects.vop.apis import VoPInferencer, export_onnx
from projects.vop.apis.onnx_text import open_session
from projects.vop.engine import open_config

FORMS = ('torch', 'torch.compile', 'ONNX', 'ONNX, 8 bits')
CAPTION = 'a man in a blue shirt cleans the pool behind his house'
HEADER = ['encoder', 'form', 'ms', 'torch takes', 'least cosine with torch', 'MB of the file']


def measure(forms: dict[str, Callable[[], np.ndarray]], repeats: int) -> dict[str, list[float]]:
    """Time each form in turn, so that drift affects all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for name in [*forms] * (1 + repeats):
        start = time.perf_counter()
        forms[name]()
        seconds[name].append(time.perf_counter() - start)
    return {name: each[1:] for name, each in seconds.items()}  # the first round warms up


def main() -> None:
    """Print a Markdown table with a row for each encoder and form."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('--config', default='vop_msrvtt')
    add('--clip', default='ViT-B-32-quickgelu', help='model of open_clip or its JSON file')
    add('--videos', type=int, default=1, help='of a batch')
    add('--texts', type=int, default=1, help='of a batch')
    add('--repeats', type=int, default=9)
    add('--no-compile', action='store_true', help='leave torch.compile out')
    args = parser.parse_args()
    cfg = open_config(args.config)
    cfg.model.clip = dict(name=args.clip)
    torch.manual_seed(0)
    inferencer = VoPInferencer(cfg, None, 'cpu', show_progress=False)
    model = inferencer.model
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = export_onnx(inferencer, folder, int8=True)['video']['shape']
        # Each form with what it is given; torch and its compiled form are given the same.
        frames = torch.randint(0, 256, (args.videos, *shape[1:]), dtype=torch.uint8)
        tokens = inferencer.tokenizer([CAPTION] * args.texts)
        tokens = tokens[:, : model.text.fixed_length or int(model.text.find_end(tokens).max()) + 1]
        print(
            f'{args.config}, {args.clip}; {args.videos} videos of {shape[1]} frames, {args.texts} '
            f'texts of {tokens.shape[1]} tokens, {torch.get_num_threads()} CPU threads, torch '
            f'{torch.__version__}, onnxruntime {onnxruntime.__version__}.'
        )
        print(f'| {" | ".join(HEADER)} |\n| {" | ".join(["---"] * len(HEADER))} |')

        def of_frames(encode: Callable) -> np.ndarray:
            data = model.data_preprocessor(dict(inputs=dict(imgs=frames)))
            return encode(data['inputs']['imgs']).numpy()

        for kind, given, encode, wrap in (
            ('video', frames, model.encode_video, of_frames),
            ('text', tokens, model.encode_text, lambda encode: encode(tokens).numpy()),
        ):
            forms = {'torch': lambda encode=encode, wrap=wrap: wrap(encode)}
            if not args.no_compile:
                compiled = torch.compile(encode)
                forms['torch.compile'] = lambda encode=compiled, wrap=wrap: wrap(encode)
            for form, suffix in zip(FORMS[2:], ('', '_int8')):
                session = open_session(folder / f'{kind}{suffix}.onnx')
                feed = {session.get_inputs()[0].name: given.numpy()}
                forms[form] = lambda session=session, feed=feed: session.run(None, feed)[0]
            with torch.inference_mode():
                outputs = {form: run() for form, run in forms.items()}
                seconds = measure(forms, args.repeats)
            for form in forms:
                ratio = statistics.median(a / b for a, b in zip(seconds['torch'], seconds[form]))
                norms = [np.linalg.norm(outputs[each], axis=1) for each in ('torch', form)]
                cosine = ((outputs['torch'] * outputs[form]).sum(1) / np.prod(norms, 0)).min()
                suffix = {'ONNX': '', 'ONNX, 8 bits': '_int8'}.get(form)
                file = folder / f'{kind}{suffix}.onnx'
                size = '' if suffix is None else f'{file.stat().st_size / 1e6:.0f}'
                ms = 1000 * statistics.median(seconds[form])
                row = [kind, form, f'{ms:.1f}', f'{ratio:.2f}x', f'{cosine:.4f}', size]
                print(f'| {" | ".join(row)} |', flush=True)


if __name__ == '__main__':
    main()
