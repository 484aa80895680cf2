"""Run on a GPU what only a GPU shows, and write one Markdown page of it.

First the tests that need a GPU. Then training steps as tools/train.py --amp takes them: forward,
loss, backward and optimizer, of batches that are on the device already. For each CLIP and method
three forms take turns: ours; prompts concatenated to the tokens of frames; and plain CLIP as
open_clip runs it, all of which is trained (Full). Weights and frames are random, which does not
change the time. What does not fit into the minutes is left out, and named.
"""

import argparse
import gc
import itertools
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from projects.vop.engine import open_config
from projects.vop.errors import UserError, exit_on_user_error
from projects.vop.fileio import ROOT, check_writable, write_file
from projects.vop.models import RetrievalRecognizer, open_towers
from projects.vop.registry import MODELS

sys.path.append(str(ROOT))
from benchmarks.encoder import concatenating, matmul_rate, measure  # noqa: E402

CLIPS = ['ViT-B-32-quickgelu', 'ViT-B-16-quickgelu', 'ViT-L-14-quickgelu']
METHODS = ['vop', 'vop_fc']
FORMS = dict(ours='ours', concat='concatenating', full='plain CLIP, Full')
RESULTS = ['passed', 'failed', 'skipped']
HEAD = ['CLIP', 'method', 'form', 'step, ms', 'step: form / ours', 'videos/s', 'share of the rate']
HEAD += ['memory, GiB', 'encoding, videos/s', 'encoding: form / ours']


class Form(nn.Module):
    """An encoder that computes what it does by another function of its inputs."""

    def __init__(self, encoder: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder, self.function = encoder, function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


class Steps:
    """Training steps of a model whose encoders have a form, by the names ``visual`` and ``text``.

    Models and optimizers may be those of other forms, too.
    """

    def __init__(
        self, model: RetrievalRecognizer, optimizer: OptimWrapper, batch: dict, **encoders: Form
    ) -> None:
        self.model, self.optimizer, self.batch = model, optimizer, batch
        self.encoders = dict(visual=model.visual, text=model.text) | encoders

    def take_form(self) -> None:
        for name, encoder in self.encoders.items():
            setattr(self.model, name, encoder)

    def step(self) -> None:
        self.take_form()
        self.model.train_step(self.batch, self.optimizer)

    def encode(self) -> None:
        """Embed the frames, without gradients."""
        self.take_form()
        with torch.no_grad(), self.optimizer.optim_context(self.model):
            self.model.encode_video(self.model.data_preprocessor(self.batch)['inputs']['imgs'])

    def probe(self) -> tuple[int, int, float] | None:
        """Operations, bytes and seconds of a step; None if the memory does not do."""
        gpu = torch.cuda if self.batch['inputs']['imgs'].is_cuda else None
        try:
            with FlopCounterMode(display=False) as counter:
                self.step()  # which makes the state of the optimizer
            states = self.optimizer.optimizer.state.values()
            state = [value for each in states for value in each.values()]
            held = [*self.model.parameters(), *self.model.buffers(), *state]
            size = sum(tensor.nbytes for tensor in held)
            if gpu:
                gpu.reset_peak_memory_stats()
                size -= gpu.memory_allocated()  # of other models, too
            seconds = measure(lambda _: self.step(), ('step',), 1)['step'][0]
            if gpu:
                size += gpu.max_memory_allocated()
            return counter.get_total_flops(), size, seconds
        except torch.cuda.OutOfMemoryError:
            return None
        finally:
            self.optimizer.zero_grad()


def open_forms(clip: str, method: str, args: argparse.Namespace) -> dict[str, Steps]:
    """The forms of a method on a CLIP."""
    towers = open_towers(clip)
    shape = args.batch, args.frames, 3, *towers.visual.image_size
    context, words = towers.text.context_length, towers.text.vocab_size
    text = torch.randint(1, words - 2, (args.batch, context))
    length = min(20, context // 2)
    text[:, length], text[:, length + 1 :] = words - 1, 0  # [EOT], and padding
    inputs = dict(imgs=torch.randint(0, 256, shape, dtype=torch.uint8), text=text)
    batch = dict(inputs={key: value.to(args.device) for key, value in inputs.items()})

    def build(name: str, towers: object) -> tuple[RetrievalRecognizer, OptimWrapper]:
        model = MODELS.build({**open_config(f'{name}_msrvtt').model, 'clip': towers})
        model.to(args.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.2)
        if args.amp:
            return model, AmpOptimWrapper(1.0, args.amp, optimizer=optimizer)
        return model, OptimWrapper(optimizer)

    ours, full = build(method, towers), build('full', open_towers(clip))
    encoder, visual, text = ours[0].visual, full[0].visual, full[0].text
    if encoder.adapters or encoder.cls_update:
        raise UserError(f'{method} has more than prompts, which have no concatenating form.')

    def plain(frames: Tensor) -> Tensor:
        return visual.backbone(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    concat = Form(encoder, partial(concatenating, encoder))
    plain_forms = dict(visual=Form(visual, plain), text=Form(text, text.backbone))
    return dict(
        ours=Steps(*ours, batch),
        concat=Steps(*ours, batch, visual=concat),
        full=Steps(*full, batch, **plain_forms),
    )


def compare(clip: str, method: str, args: argparse.Namespace, end: float) -> list[list[str]] | None:
    """Rows of a CLIP and a method; None if there is no time for them until ``end``."""
    if time.perf_counter() > end:
        return None
    try:
        return _compare(open_forms(clip, method, args), clip, method, args, end)
    except torch.cuda.OutOfMemoryError:  # of what a probe had room for, or of the weights
        return [[clip, method, 'all', 'out of memory', *[''] * (len(HEAD) - 4)]]


def _compare(
    forms: dict[str, Steps], clip: str, method: str, args: argparse.Namespace, end: float
) -> list[list[str]] | None:
    probes = {name: form.probe() for name, form in forms.items()}
    fit = tuple(name for name, probe in probes.items() if probe)
    gc.collect()
    torch.cuda.empty_cache()
    # Rounds of steps and of encoding, which takes less than half of one.
    a_round = 1.5 * sum(probes[name][2] for name in fit)
    rounds = int((end - time.perf_counter()) / a_round) if fit else 2
    if rounds < 2:
        return None
    repeats = min(args.repeats, rounds - 1)
    rates = [matmul_rate(args)]
    steps = measure(lambda name: forms[name].step(), fit, repeats)
    rates.append(matmul_rate(args))
    encoding = measure(lambda name: forms[name].encode(), fit, repeats)

    def against_ours(seconds: dict[str, list[float]], name: str) -> str:
        if 'ours' not in fit:
            return ''
        return f'{statistics.median(a / b for a, b in zip(seconds[name], seconds["ours"])):.2f}x'

    rows = []
    for name, form in FORMS.items():
        row = [clip, method, form]
        if name in fit:
            flops, size, _ = probes[name]
            step, alone = (statistics.median(seconds[name]) for seconds in (steps, encoding))
            row += [f'{1000 * step:.1f}', against_ours(steps, name), f'{args.batch / step:.1f}']
            row += [f'{flops / step / statistics.mean(rates):.0%}']
            row += [f'{size / 2**30:.1f}' if args.device == 'cuda' else 'not measured']
            row += [f'{args.batch / alone:.1f}', against_ours(encoding, name)]
        else:
            row += ['out of memory', *[''] * (len(HEAD) - 4)]
        rows.append(row)
    return rows


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def run_tests(seconds: float) -> tuple[str, bool]:
    """Run the tests that need a GPU; a table of them, and whether none failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, 'tests.xml')
        command = [sys.executable, '-m', 'pytest', '-m', 'gpu', 'tests/test_gpu.py']
        # A group of their own, as they start processes.
        process = subprocess.Popen(
            [*command, '-p', 'no:cacheprovider', '--junitxml', str(report)],
            cwd=ROOT,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
            start_new_session=True,
        )
        stopped = ''
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            stopped = f'They were stopped after {seconds / 60:.1f} minutes, before their end.'
            process.send_signal(signal.SIGINT)  # pytest then writes what it has
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
        finally:  # also of what they have started
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not report.exists():
            ended = f'They did not run: pytest ended with status {process.returncode}.'
            return stopped or ended, False
        cases = list(ElementTree.parse(report).iter('testcase'))
    tests = defaultdict(lambda: dict.fromkeys(RESULTS, 0) | dict(seconds=0.0, why=''))
    for case in cases:
        test = tests[case.get('name').partition('[')[0].removeprefix('test_').replace('_', ' ')]
        bad = next((part for part in case if part.tag in ('failure', 'error', 'skipped')), None)
        result = 'passed' if bad is None else 'skipped' if bad.tag == 'skipped' else 'failed'
        test[result] += 1
        test['seconds'] += float(case.get('time'))
        if bad is not None and (result == 'failed' or not test['why']):
            test['why'] = f'{bad.get("message")}'.splitlines()[0][:120].replace('|', '/')
    rows = [
        [name, *(test[result] for result in RESULTS), f'{test["seconds"]:.0f}', test['why']]
        for name, test in tests.items()
    ]
    text = table(['test', *RESULTS, 's', 'why'], rows)
    failed = stopped or any(test['failed'] for test in tests.values())
    return f'{text}\n\n{stopped}'.strip(), not failed


def device(args: argparse.Namespace) -> str:
    """What is measured, and with which software."""
    versions = f'torch {torch.__version__}, Python {platform.python_version()}'
    if args.device == 'cpu':
        return f'No GPU, but a CPU with {torch.get_num_threads()} threads; {versions}'
    gpu, number = torch.cuda.get_device_properties(0), torch.cuda.device_count()
    versions += f', CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}'
    return f'{number} x {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB; {versions}'


def main() -> None:
    """Write the page; the exit status is 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('--out', default='work_dirs/gpu.md', help='the page (default: %(default)s)')
    add('--minutes', type=float, default=10, help='for all of it (default: %(default)s)')
    add('--methods', nargs='+', default=METHODS, metavar='METHOD')
    add('--clip', nargs='+', default=CLIPS, help='models of open_clip or their JSON files')
    add('--batch', type=int, default=32, help='videos')
    add('--frames', type=int, default=12)
    add('--repeats', type=int, default=7)
    add('--amp', choices=['bfloat16', 'float16'], default='bfloat16', help='on a CPU: float32')
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=['cuda', 'cpu'])
    args = parser.parse_args()
    end = time.perf_counter() + 60 * args.minutes
    args.amp = args.amp if args.device == 'cuda' else None
    check_writable(args.out)
    tests, passed = run_tests(30 * args.minutes)  # half of it, before this process has the GPU
    torch.manual_seed(0)
    init_default_scope('mmaction')
    rows, left_out, rates = [], [], [matmul_rate(args)]
    for clip, method in itertools.product(args.clip, args.methods):
        found = compare(clip, method, args, end)
        rows += found or []
        left_out += [] if found else [f'{method} on {clip}']
        gc.collect()
        torch.cuda.empty_cache()
        rates.append(matmul_rate(args))
        low, high = min(rates) / 1e12, max(rates) / 1e12
        page = f"""{device(args)}.

{tests}

{args.batch} videos of {args.frames} frames a step, on one device, in {args.amp or 'float32'}.
The rate is that of a large matrix product, {low:.2f} to {high:.2f} TFLOP/s; the share is
that of matrix products and attention, without those of an LSTM. Memory is the peak of a step,
with weights and optimizer. Encoding is of frames alone, without gradients.
Plain CLIP reads all slots of a caption, the others those with words.

{table(HEAD, rows)}

Left out, as the time was over: {', '.join(left_out) or 'nothing'}.
"""
        write_file(args.out, page)  # each time, so that it is there whatever comes next
    print(f'{page}\nThis is {args.out}.')
    if not passed:
        sys.exit(1)


if __name__ == '__main__':
    with exit_on_user_error():
        main()
