"""What tests of several files need."""

import json

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
