"""tools/analysis/browse_dataset.py."""

import base64
import io
import json
import re

import numpy as np
import pytest
from mmengine.runner import Runner
from PIL import Image

from projects.vop.engine import fit_pixels
from projects.vop.errors import UserError

TOOL = 'tools/analysis/browse_dataset.py'

pytestmark = pytest.mark.usefixtures('read_here')


@pytest.fixture
def config(retrieval_config, video_folder):
    """Of five videos with two captions each in training."""
    config = retrieval_config()
    config.train_dataloader.dataset.update(
        ann_file='train.json', data_root=str(video_folder), data_prefix=dict(video='')
    )
    config.train_dataloader.update(num_workers=0, persistent_workers=False, batch_size=10)
    return config


@pytest.fixture
def browse(run_tool, tmp_path, config):
    """Runs the tool on the config; gives the page."""

    def browse(*arguments):
        config.dump(tmp_path / 'config.py')
        run_tool(TOOL, tmp_path / 'config.py', '--out', tmp_path / 'page.html', *arguments)
        return (tmp_path / 'page.html').read_text()

    return browse


def cards(page):
    return re.findall(r'<article.*?</article>', page, re.DOTALL)


def pictures(card):
    """Mean colours of the frames, which resizing changes little."""
    found = re.findall(r'base64,([^"]+)"/>(\d*)</li>', card)
    images = [Image.open(io.BytesIO(base64.b64decode(jpeg))) for jpeg, _ in found]
    return [np.asarray(image, float).mean((0, 1)) for image in images], [int(n) for _, n in found]


def test_shows_the_first_items_of_a_training(browse, config):
    page = browse('--number', 3)
    fit_pixels(config.train_dataloader, config.model.clip, 'mmaction')
    batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
    assert len(cards(page)) == 3 and 'the first 3 of 10 of train_dataloader' in page
    for card, frames, sample in zip(cards(page), batch['inputs']['imgs'], batch['data_samples']):
        means, numbers = pictures(card)
        assert len(means) == 12 and numbers == sorted(numbers) and numbers[-1] < 20
        np.testing.assert_allclose(means, frames.double().mean((2, 3)), atol=2)
        number = sample.metainfo['video_id'].removesuffix('.mp4')
        caption = re.search(rf'<p class="text" dir="auto">caption (\d) of {number}</p>', card)
        assert f'6 tokens: caption {caption[1]} of {number}<' in card
        assert f'>{number}.mp4</bdi>' in card and '12 frames of 32 x 32' in card
    # A crop keeps half of a picture or more: another seed gives others.
    other = cards(browse('--number', 3, '--cfg-options', 'randomness.seed=1'))
    assert [pictures(card)[1] for card in other] != [pictures(card)[1] for card in cards(page)]


def test_shows_all_captions_of_a_test_and_windows(browse, config, video_folder, tmp_path):
    """As they are written, whatever they are made of."""
    window = dict(captions=['a <b>cat</b>', 'a dog ' * 60], start=0.5, end=1.5)
    (tmp_path / 'some.json').write_text(json.dumps({str(video_folder / '0.mp4'): window}))
    config.test_dataloader.dataset.update(ann_file=str(tmp_path / 'some.json'), data_root='')
    (card,) = cards(browse('--split', 'test'))
    assert '0.5 s to 1.5 s' in card and '4 frames of 32 x 32' in card
    assert all(4 <= number < 12 for number in pictures(card)[1])  # at 8 frames a second
    assert 'a &lt;b&gt;cat&lt;/b&gt;</p>' in card and '77 tokens: a dog a dog' in card


def test_says_which_video_cannot_be_read(browse, config, video_folder, tmp_path):
    (tmp_path / 'broken.mp4').write_bytes(b'no video')
    captions = {str(tmp_path / 'broken.mp4'): ['lost'], str(video_folder / '1.mp4'): ['kept']}
    (tmp_path / 'some.json').write_text(json.dumps(captions))
    config.train_dataloader.dataset.update(ann_file=str(tmp_path / 'some.json'), data_root='')
    page = browse()
    assert page.count('cannot be read') == 1 and len(re.findall('<img', page)) == 12
    assert '>lost</p>' in page and '>kept</p>' in page
    page = browse('--cfg-options', 'train_dataloader.dataset.skip_bad_videos=True')
    assert 'skipped; in its place: ' in page and len(re.findall('<img', page)) == 24
    assert page.count('4 tokens') == 0 and page.count('3 tokens: kept') == 2


def test_wrong_input_ends_it(browse, config, run_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        browse('--number', 0)
    with pytest.raises(UserError, match='nowhere.json'):
        browse('--cfg-options', 'train_dataloader.dataset.ann_file=nowhere.json')
    with pytest.raises(UserError, match='does not train a CLIP on videos with captions'):
        run_tool(TOOL, 'mix/vop_recognizer_kinetics400')
    assert not (tmp_path / 'page.html').exists()
