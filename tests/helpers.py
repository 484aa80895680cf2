"""What several test files use: a small CLIP, small models, processes, annotation files."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import open_clip
import torch
from mmaction.structures import ActionDataSample
from mmengine.config import Config

from projects.vop.models import open_towers
from projects.vop.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]

TINY_CLIP = dict(
    embed_dim=32,
    quick_gelu=True,
    vision_cfg=dict(image_size=32, patch_size=16, layers=3, width=64, head_width=16),
    text_cfg=dict(context_length=77, vocab_size=49408, width=48, heads=4, layers=3),
)


def save_clip(config, path, seed=0):
    """Save random weights of a CLIP, as ``model.clip.pretrained`` takes them."""
    torch.manual_seed(seed)
    towers = open_towers(str(config))
    state = {'logit_scale': towers.logit_scale}
    for name in ('visual', 'text'):
        state |= getattr(towers, name).state_dict(prefix=f'{name}.')
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return str(path)


def make_model(tiny_clip, method='vop', **kwargs):
    """Build the model of a method's config on the tiny CLIP, with 4 frames."""
    torch.manual_seed(0)
    model = Config.fromfile(ROOT / f'configs/_base_/models/{method}.py').model
    model.clip = dict(name=tiny_clip)
    model.visual.num_frames = 4
    if model.visual.get('temporal_layers'):
        model.visual.temporal_layers = 1
    return MODELS.build({**model, **kwargs})


def make_batch(videos=3, captions=1):
    """Make a batch for it; with several captions, each video has one more."""
    generator = torch.Generator().manual_seed(2)
    tokenize = open_clip.get_tokenizer('ViT-B-32')
    return dict(
        inputs=dict(
            imgs=[
                torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
                for _ in range(videos)
            ],
            text=[
                tokenize([f'caption {i} of {v}' for i in range(captions + v)])
                if captions > 1
                else tokenize(f'a caption of video {v}')[0]
                for v in range(videos)
            ],
        ),
        data_samples=[ActionDataSample() for _ in range(videos)],
    )


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])


def run(*command, paths=(), ok=True, **env):
    """Run a command in the checkout; return what it prints.

    ``paths`` come before PYTHONPATH, ``env`` into the environment.
    """
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=dict(
            os.environ,
            PYTHONPATH=os.pathsep.join(map(str, [ROOT, *paths])),
            OMP_NUM_THREADS='1',
            PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]),
            **env,
        ),
    )
    output = done.stdout + done.stderr
    if ok:
        assert done.returncode == 0, output[-3000:]
    return output


# Annotation files in the formats of their owners, and what the converters make of them.

# A clip of LSMDC that is reported as broken.
BROKEN = '0017_Pianist_00.23.28.872-00.23.34.843'


def lsmdc_clip(movie, second):
    return f'{movie}_00.00.{second:02}.000-00.00.{second + 1:02}.500'


def lsmdc_line(clip, sentence):
    times = '00.00.01.000\t00.00.02.500\t00.00.01.000\t00.00.02.500'
    return f'{clip}\t{times}\t{sentence}\n'


def didemo_moments(*videos):
    records = [dict(video=v, description=f' {v} does {i}. ') for i in range(2) for v in videos]
    return json.dumps([dict(record, times=[[0, 1]]) for record in records])


def activitynet_records(*videos):
    times = dict(duration=9.0, timestamps=[[0, 3], [5, 4]])
    return json.dumps({v: dict(times, sentences=[f'{v} begins.', '\n It ends. ']) for v in videos})


def vatex_records(*videos):
    captions = {video: [f'{video} {i}' for i in range(3)] for video in videos}
    return json.dumps([dict(videoID=v, enCap=captions[v], chCap=['猫']) for v in videos])


UP1, UP3, GO1, GO3 = (lsmdc_clip(movie, i) for movie in ('1_Up', '3_Go') for i in (1, 3))
SENTENCES = [
    dict(video_id=f'video{i}', caption=f'{i} says {j}') for i in range(6) for j in range(3)
]

# A small copy of each data set, as its owners format it.
SOURCES = dict(
    msrvtt={
        'MSRVTT_data.json': json.dumps(dict(videos=[], sentences=SENTENCES)),
        'MSRVTT_train.9k.csv': 'video_id\nvideo0\nvideo1\nvideo2\nvideo3\n',
        'MSRVTT_train.7k.csv': 'video_id\nvideo0\nvideo1\n',
        'MSRVTT_JSFUSION_test.csv': 'key,vid_key,video_id,sentence\n'
        'ret0,msr4,video4,"a man, with a comma, talks"\nret1,msr5,video5,a dog\n',
    },
    didemo={
        'train_data.json': didemo_moments('1@N0_a.avi', '2@N0_b.mov'),
        'val_data.json': didemo_moments('3@N0_c.avi'),
        'test_data.json': didemo_moments('4@N0_d.MPG', '5@N0_e'),
    },
    activitynet={
        'train.json': activitynet_records('v_a', 'v_b'),
        'val_1.json': activitynet_records('v_c'),
        'train_ids.json': '["v_a", "v_b", "v_x"]',
        'val_ids.json': '["v_c"]',
    },
    lsmdc={
        'LSMDC16_annos_training.csv': lsmdc_line(UP1, 'SOMEONE says "hi".')
        + lsmdc_line(BROKEN, 'SOMEONE plays.')
        + lsmdc_line(UP3, 'A "quote, open.')
        + lsmdc_line(UP1, ' He waves.'),
        'LSMDC16_annos_val.csv': lsmdc_line(lsmdc_clip('2_It_is', 1), 'It is.'),
        'LSMDC16_challenge_1000_publictect.csv': lsmdc_line(GO1, 'Go.') + lsmdc_line(GO3, 'Go.'),
    },
    msvd={
        'captions_msvd.json': json.dumps({f'-{i}_1_9': [f'{i} a', f'{i} b '] for i in range(5)}),
        'train_list.txt': '-0_1_9\n-1_1_9\n',
        'val_list.txt': '-2_1_9\n',
        'test_list.txt': '-3_1_9\r\n-4_1_9',
    },
    vatex={
        'vatex_training_v1.0.json': vatex_records('a_0_9', 'b_0_9'),
        'vatex_validation_v1.0.json': vatex_records('c_0_9', 'd_0_9', 'e_0_9'),
        'val_list.txt': 'c_0_9\n',
        'test_list.txt': 'd_0_9\n',
    },
)


def _said(*numbers):
    return {f'video{i}.mp4': [f'{i} says {j}' for j in range(3)] for i in numbers}


def _paragraph(*videos):
    return {v: [f'{v} does 0. {v} does 1.'] for v in videos}


# What is made of it: videos and their captions.
WANTED = dict(
    msrvtt=dict(
        train_9k=_said(0, 1, 2, 3),
        train_7k=_said(0, 1),
        test_1k={'video4.mp4': ['a man, with a comma, talks'], 'video5.mp4': ['a dog']},
    ),
    didemo=dict(
        train=_paragraph('1@N0_a.avi', '2@N0_b.mov'),
        val=_paragraph('3@N0_c.avi'),
        test=_paragraph('4@N0_d.MPG', '5@N0_e'),
    ),
    activitynet=dict(
        train={'v_a.mp4': ['v_a begins. It ends.'], 'v_b.mp4': ['v_b begins. It ends.']},
        test={'v_c.mp4': ['v_c begins. It ends.']},
    ),
    lsmdc=dict(
        train={
            f'0017_Pianist/{BROKEN}.avi': ['SOMEONE plays.'],
            f'1_Up/{UP1}.avi': ['SOMEONE says "hi".', 'He waves.'],
            f'1_Up/{UP3}.avi': ['A "quote, open.'],
        },
        val={f'2_It_is/{lsmdc_clip("2_It_is", 1)}.avi': ['It is.']},
        test={f'3_Go/{GO1}.avi': ['Go.'], f'3_Go/{GO3}.avi': ['Go.']},
    ),
    msvd={
        split: {f'-{i}_1_9.avi': [f'{i} a', f'{i} b'] for i in numbers}
        for split, numbers in dict(train=[0, 1], val=[2], test=[3, 4]).items()
    },
    vatex={
        split: {f'{v}_0_9.mp4': [f'{v}_0_9 {i}' for i in range(3)] for v in videos}
        for split, videos in dict(train='ab', val='c', test='d').items()
    },
)
