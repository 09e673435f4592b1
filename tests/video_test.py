"""video.py and demo.py's way with it: what moves is read and written."""
import contextlib
import functools
import http.server
import os
import signal
import threading
import time
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image

import demo
from headpose.geometry.pose import rotation_matrix
from headpose.inference import detector, pictures, pipeline, video
from headpose.inference.output import FIELDS
from headpose.inference.video import Film, Recorder
from tests.conftest import Capture, rows

SIZE = (96, 128)  # pixels: height and width of the tests' clips
# Plays a video, and tells the fixture `browser` how it went.
PLAYER = '''<!DOCTYPE html><title>x</title>
<video src="%s" muted autoplay></video><script>
const video = document.querySelector('video');
for (const event of ['ended', 'error'])
  video.addEventListener(event, () => console.log('END ' + JSON.stringify(
      [event, video.readyState, video.videoWidth, video.videoHeight,
       video.duration])));
</script>'''


@pytest.fixture
def run(run):
    """Runs demo.py in this process: returns status, stdout, stderr."""
    return lambda *options: run(demo, '--gpu', '-1', *options)


@pytest.fixture
def call(run, snapshot, tmp_path):
    """Runs demo.py --whole into tmp_path/out."""
    return lambda *options: run('--whole', '--snapshot', snapshot,
                                '--output', tmp_path / 'out', *options)


def picture(number, shape=SIZE):
    """A picture that is different for each number."""
    image = np.full((*shape, 3), 40, np.uint8)
    cv2.circle(image, (20 + 3 * number, 40), 15, (200, 120, 60), -1)
    return image


def write_clip(path, times, shape=SIZE, codec='libx264', sound=None,
               rate=25, faststart=False):
    """Writes pictures at given seconds; returns the path.

    Args:
        sound: codec of a second of noise beside them.
    """
    with av.open(str(path), 'w', options={
            'movflags': 'faststart'} if faststart else {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = shape
        stream.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
        if codec == 'libx264':
            stream.codec_context.time_base = Fraction(1, 90000)
        beside = sound and container.add_stream(sound, rate=8000,
                                                layout='mono')
        for number, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, shape),
                                               'bgr24')
            base = stream.codec_context.time_base or Fraction(1, rate)
            frame.pts, frame.time_base = round(seconds / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            frame = av.AudioFrame.from_ndarray(
                np.random.default_rng(0).integers(
                    -9000, 9000, (1, 8000), np.int16), 's16', 'mono')
            frame.rate, frame.pts = 8000, 0
            for part in av.AudioResampler(
                    beside.format.name, 'mono', 8000,
                    beside.frame_size or None).resample(frame):
                container.mux(beside.encode(part))
            container.mux(beside.encode())
    return path


def read_clip(path):
    """Returns a video's pictures, their seconds, its codec and colours."""
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        frames = list(container.decode(video=0))
        return ([frame.to_ndarray(format='bgr24') for frame in frames],
                [frame.time for frame in frames],
                (codec.name, codec.pix_fmt))


# ------------------------------------------------------------ what is written

def test_video_keeps_times_size_and_every_frame(call, tmp_path):
    """A variable frame rate, as telephones have it."""
    times = [0, 0.04, 0.08, 0.3, 0.34, 1.0, 1.5]
    source = write_clip(tmp_path / 'clip.mp4', times)
    status, out, err = call(source)
    assert status == 0, err
    target = tmp_path / 'out' / 'clip.mp4'
    frames, seconds, kind = read_clip(target)
    np.testing.assert_allclose(seconds, times, atol=1e-3)
    assert frames[0].shape == (*SIZE, 3)
    for number, frame in enumerate(frames):  # in their order
        apart = [abs(frame.astype(int) - picture(other)).mean()
                 for other in range(len(times))]
        assert np.argmin(apart) == number
    # What a browser plays: H.264, 4:2:0, and the index first.
    assert kind == ('h264', 'yuv420p')
    with av.open(str(target)) as container:  # the last as long as one before
        assert container.duration / av.time_base == pytest.approx(2, abs=0.01)
    data = target.read_bytes()
    assert data.index(b'moov') < data.index(b'mdat')
    table = rows(tmp_path / 'out')
    assert [int(row['frame']) for row in table] == list(range(7))
    np.testing.assert_allclose([float(row['seconds']) for row in table],
                               times, atol=1e-3)
    assert {row['track'] for row in table} == {'0'}
    assert {row['drawn'] for row in table} == {'clip.mp4'}
    assert '7 frames, 0 without a face' in out


@pytest.mark.parametrize('shape', [(95, 127), (96, 127), (95, 128)])
def test_odd_sizes_are_padded_not_scaled(call, tmp_path, shape):
    # Colours in each pixel, which allow odd sizes.
    source = tmp_path / 'clip.gif'
    frames = [Image.fromarray(picture(n, shape)[..., ::-1].copy())
              for n in range(3)]
    frames[0].save(source, save_all=True, append_images=frames[1:],
                   duration=100)
    status, _, err = call(source)
    assert status == 0, err
    found, *_ = read_clip(tmp_path / 'out' / 'clip.mp4')
    height, width = shape
    assert found[0].shape[:2] == (height + height % 2, width + width % 2)
    assert abs(found[0][:height, :width].astype(int)
               - picture(0, shape)).mean() < 30  # axes are drawn


@pytest.mark.quick
@pytest.mark.parametrize('rate', [119.997, 0.5, 1e5, 240])
def test_any_frame_rate(tmp_path, rate):
    moving = video.Moving()
    moving.rate = rate
    with video.recording(str(tmp_path / 'x.mp4'), moving) as recorder:
        for number in range(3):
            recorder.write(picture(number), number / 100)
        recorder.write(picture(3), 0.02)  # the same time again
    frames, seconds, _ = read_clip(tmp_path / 'x.mp4')
    np.testing.assert_allclose(seconds, [0, 0.01, 0.02, 0.02], atol=1e-3)


@pytest.mark.parametrize('ending, sound', [('mp4', 'aac'), ('ts', 'aac'),
                                           ('mkv', 'flac')])
def test_the_sound_is_copied(call, tmp_path, ending, sound):
    source = write_clip(tmp_path / f'clip.{ending}',
                        [n / 25 for n in range(25)], sound=sound)
    status, _, err = call(source)
    assert status == 0, err
    with av.open(str(tmp_path / 'out' / 'clip.mp4')) as container:
        stream, = container.streams.audio
        assert stream.codec_context.name == sound
        samples = np.concatenate([
            frame.to_ndarray().astype(float).ravel()
            for frame in container.decode(stream)])
    assert abs(len(samples) / 8000 - 1) < 0.3
    assert np.abs(samples).mean() > 0


def test_sound_that_an_mp4_cannot_hold_is_left_out(call, tmp_path):
    source = write_clip(tmp_path / 'clip.avi', [0, 0.04, 0.08],
                        codec='mjpeg', sound='pcm_s16le')
    status, out, err = call(source)
    assert status == 0, err
    assert f'{source}: the sound (pcm_s16le) is left out' in out
    with av.open(str(tmp_path / 'out' / 'clip.mp4')) as container:
        assert not container.streams.audio


def test_a_film_cut_by_an_edit_list_is_whole(call, tmp_path, real):
    source = real[0].parent / 'cases' / 'trimmed.mp4'
    status, out, err = call(source)
    assert status == 0 and not err
    assert '60 frames' in out and len(rows(tmp_path / 'out')) == 60
    assert len(read_clip(tmp_path / 'out' / 'trimmed.mp4')[0]) == 60


def test_a_browser_plays_the_video(call, tmp_path, browser):
    times = [0, 0.04, 0.08, 0.32, 0.36, 1.0, 1.48]
    source = write_clip(tmp_path / 'clip.mkv', times, codec='mpeg4',
                        sound='flac')
    status, _, err = call(source)
    assert status == 0, err

    def play(path):
        (tmp_path / 'player.html').write_text(PLAYER % path.as_uri())
        return browser(tmp_path / 'player.html')
    (event, state, width, height, seconds), said = play(
        tmp_path / 'out' / 'clip.mp4')
    assert (event, state) == ('ended', 4) and not said  # 4: it has enough
    assert (height, width) == SIZE
    assert seconds == pytest.approx(1.96, abs=0.01)
    # It would say so: this codec is none that it plays.
    other = write_clip(tmp_path / 'other.mp4', [0, 0.04], codec='mpeg4')
    assert play(other)[0][:2] == ['error', 0]


# --------------------------------------------------------------- what is read

def test_animations_are_video(call, tmp_path):
    frames = [Image.fromarray(picture(n)) for n in range(4)]
    for kind in 'gif', 'png', 'webp':
        frames[0].save(tmp_path / f'{kind}.{kind}', save_all=True,
                       append_images=frames[1:], duration=[100, 300, 50, 80])
    status, _, err = call(*(tmp_path / f'{kind}.{kind}'
                            for kind in ('gif', 'png', 'webp')))
    assert status == 0, err
    for kind in 'gif', 'png', 'webp':
        _, seconds, _ = read_clip(tmp_path / 'out' / f'{kind}.mp4')
        np.testing.assert_allclose(seconds, [0, 0.1, 0.4, 0.45], atol=0.01)


def test_a_damaged_animation_is_named(call, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3),
                                              np.uint8)
    first, *others = map(Image.fromarray, noise)
    first.save(tmp_path / 'x.gif', save_all=True, append_images=others)
    data = (tmp_path / 'x.gif').read_bytes()
    (tmp_path / 'x.gif').write_bytes(data[:len(data) // 2])
    status, _, err = call(tmp_path / 'x.gif')
    assert status == 1 and 'x.gif' in err


@pytest.mark.quick
def test_turned_video_is_upright(tmp_path):
    """As telephones record it: the pixels lie, and the file says so."""
    source = write_clip(tmp_path / 'clip.mp4', [0, 0.04])
    data = source.read_bytes()
    one, none = (65536).to_bytes(4, 'big'), bytes(4)
    upright = one + none * 3 + one
    # The track's matrix, of 16.16 numbers: a quarter clockwise.
    turned = (none + one + none + (-65536).to_bytes(4, 'big', signed=True)
              + none)
    at = data.index(upright, data.index(b'tkhd'))
    source.write_bytes(data[:at] + turned + data[at + len(upright):])
    film = Film(str(source))
    image, _ = next(iter(film))
    film.close()
    expected = np.rot90(picture(0), -1)
    assert image.shape == expected.shape
    assert abs(image.astype(int) - expected).mean() < 10


def test_a_damaged_video_is_said_and_what_decodes_is_done(call, tmp_path):
    source = write_clip(tmp_path / 'clip.mp4', [n / 25 for n in range(20)])
    with av.open(str(source)) as container:
        start = list(container.demux(video=0))[10].pos
    data = bytearray(source.read_bytes())
    data[start:start + 4] = b'\xff' * 4  # the size of a part of the frame
    source.write_bytes(data)
    status, _, err = call(source)
    assert status == 1 and f'{source}: only ' in err
    frames, *_ = read_clip(tmp_path / 'out' / 'clip.mp4')
    assert len(rows(tmp_path / 'out')) == len(frames) > 9


@pytest.mark.parametrize('name, content', [
    ('clip.mp4', bytes(500)), ('notes.txt', b'no picture\n' * 99),
    ('x.srt', b'1\n00:00:01,000 --> 00:00:02,000\nhello\n'), ('x', b'')])
def test_what_is_no_video_is_named(call, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    status, _, err = call(tmp_path / name)
    assert status == 1
    assert f'{name}: cannot be read as a picture or a video' in err
    assert not list(tmp_path.glob('out/[!.]*'))


def test_a_missing_camera_is_said(call):
    for camera in '97', '/dev/video97':
        status, _, err = call(camera, '--no_window')
        assert status == 1 and f'camera {camera}: there is none' in err


def test_addresses_are_read(call, tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Says nothing."""

    (tmp_path / 'site').mkdir()
    write_clip(tmp_path / 'site' / 'clip.mp4', [0, 0.04, 0.08])
    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0),
        functools.partial(Handler, directory=tmp_path / 'site'))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{server.server_port}'
    status, _, err = call(f'{address}/clip.mp4?x=1', f'{address}/none.mp4')
    server.shutdown()
    server.server_close()
    assert status == 1 and 'none.mp4: cannot be read' in err
    assert len(read_clip(tmp_path / 'out' / 'clip.mp4')[0]) == 3
    status, _, err = call('rtsp://127.0.0.1:9/live', '--overwrite')
    assert status == 1 and 'rtsp://127.0.0.1:9/live: cannot be read' in err


@pytest.mark.parametrize('camera', ['0', '/dev/video0'])
def test_a_cameras_recording_lasts_as_long_as_it_lasted(monkeypatch, call,
                                                        tmp_path, camera):
    class Slow(Capture):
        """A camera that gives fewer pictures than it claims."""

        def read(self):
            self.count += 1
            time.sleep(0.2)  # the demo takes every one
            clock[0] += 0.5
            return self.count < 6, picture(self.count)

    clock = [100.0]
    monkeypatch.setattr(cv2, 'VideoCapture', Slow)
    monkeypatch.setattr(time, 'monotonic', lambda: clock[0])
    status, _, err = call(camera, '--no_window')
    assert status == 0, err
    _, seconds, _ = read_clip(tmp_path / 'out' / 'camera0.mp4')
    assert seconds[-1] - seconds[0] == pytest.approx(2.0, abs=0.01)


@pytest.mark.quick
def test_a_window_ends_with_its_close_button(monkeypatch):
    shown = {'key': -1, 'visible': 1.0}
    monkeypatch.setattr(cv2, 'imshow', lambda *_: None)
    monkeypatch.setattr(cv2, 'waitKey', lambda _: shown['key'])
    monkeypatch.setattr(cv2, 'getWindowProperty',
                        lambda *_: shown['visible'])
    window = pipeline.Window()
    assert window.show(picture(0))
    shown['visible'] = 0.0
    assert not window.show(picture(0))
    shown.update(visible=1.0, key=ord('q'))
    assert not window.show(picture(0))


# ------------------------------------------------------------- how it may end

@pytest.mark.parametrize('number, expected', [(signal.SIGINT, 130),
                                              (signal.SIGTERM, 143)])
def test_a_signal_keeps_rows_and_a_playable_video(
        call, tmp_path, monkeypatch, number, expected):
    def write(self, image, seconds):
        wrote(self, image, seconds)
        if seconds > 0.2:
            os.kill(os.getpid(), number)
    wrote = Recorder.write
    monkeypatch.setattr(Recorder, 'write', write)
    source = write_clip(tmp_path / 'clip.mp4', [n / 25 for n in range(25)],
                        sound='aac')
    other = write_clip(tmp_path / 'other.mp4', [0])
    status, out, err = call(source, other)
    assert status == expected and err.splitlines()[-1] == 'Interrupted.'
    assert 'damaged' not in out + err
    frames, *_ = read_clip(tmp_path / 'out' / 'clip.mp4')
    assert len(rows(tmp_path / 'out')) == len(frames) == 7
    assert sorted(os.listdir(tmp_path / 'out')) == [
        '.poses.lock', 'clip.mp4', 'poses.csv']


def test_a_video_that_cannot_be_written_ends_nothing_else(
        call, tmp_path, monkeypatch):
    def refuse(self, shape):
        if 'bad' in self.path:
            raise av.FFmpegError(22, 'Invalid argument')
        return opened(self, shape)
    opened = Recorder.open
    monkeypatch.setattr(Recorder, 'open', refuse)
    bad = write_clip(tmp_path / 'bad.mp4', [0, 0.04])
    good = write_clip(tmp_path / 'good.mp4', [0, 0.04])
    status, _, err = call(bad, good)
    assert status == 1 and 'bad.mp4: cannot be written' in err
    assert sorted(os.listdir(tmp_path / 'out')) == [
        '.poses.lock', 'good.mp4', 'poses.csv']
    assert {row['drawn'] for row in rows(tmp_path / 'out')} == {'good.mp4'}


# ------------------------------------------------------------------- persons

def test_each_person_has_a_track(run, snapshot, tmp_path, monkeypatch):
    source = write_clip(tmp_path / 'clip.mp4', [n / 25 for n in range(6)])
    boxes = np.array([[10.0, 10, 40, 40], [70, 20, 110, 60]])

    def detect(image):
        calls.append(image)
        number = len(calls) - 1
        found = boxes + 2 * number
        if number == 2:  # the left one is missed
            found = found[1:]
        if number == 4:  # they come in another order
            found = found[::-1]
        return detector.upright_faces(found, np.ones(len(found)))
    calls = []
    monkeypatch.setattr(detector, 'make_detector', lambda *_, **__: detect)
    status, _, err = run(source, '--snapshot', snapshot, '--smooth', '0.5',
                         '--output', tmp_path / 'out')
    assert status == 0, err
    table = rows(tmp_path / 'out')
    left = [row for row in table if row['track'] == '0']
    right = [row for row in table if row['track'] == '1']
    assert [row['frame'] for row in left] == list('01345')
    assert [row['frame'] for row in right] == list('012345')
    assert all(float(row['x_min']) < 50 for row in left)
    assert set(table[0]) == set(FIELDS)


def test_two_real_faces_are_tracked(real, third_party, run, tmp_path):
    images = [cv2.imread(str(real[0] / 'AFLW2000' / name))
              for name in ('image00013.jpg', 'image00050.jpg')]
    frames = [np.hstack([np.roll(image, 3 * n, 0) for image in images])
              for n in range(6)]
    with av.open(str(tmp_path / 'x.mp4'), 'w') as container:
        stream = container.add_stream('libx264', rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = 'yuv420p'
        for frame in frames:
            container.mux(stream.encode(
                av.VideoFrame.from_ndarray(frame, 'bgr24')))
        container.mux(stream.encode())
    status, _, err = run(
        tmp_path / 'x.mp4', '--snapshot', third_party, '--smooth', '0.3',
        '--output', tmp_path / 'out')
    assert status == 0, err
    table = rows(tmp_path / 'out')
    assert [row['track'] for row in table] == ['0', '1'] * 6
    for track in '01':
        vectors = np.array([
            rotation_matrix([float(row[axis]) for axis in
                             ('yaw', 'pitch', 'roll')])[:, 2]
            for row in table if row['track'] == track])
        assert np.ptp(vectors, axis=0).max() < 0.25


@pytest.mark.parametrize('sound', [None, 'aac'])
def test_pieces_of_film_follow_each_other(call, tmp_path, sound):
    """As `cat a.ts b.ts`, dash cams and streams that restart leave them."""
    times = [number / 25 for number in range(25)]
    piece = write_clip(tmp_path / 'a.ts', times, sound=sound).read_bytes()
    (tmp_path / 'two.ts').write_bytes(piece + piece)
    status, _, err = call(tmp_path / 'two.ts')
    assert status == 0, err
    seconds = [float(row['seconds']) for row in rows(tmp_path / 'out')]
    assert len(seconds) == 50 and (np.diff(seconds) > 0.03).all()
    assert seconds[-1] - seconds[0] == pytest.approx(49 / 25, abs=0.1)
    with av.open(str(tmp_path / 'out' / 'two.mp4')) as container:
        for stream in container.streams:
            assert float(stream.duration * stream.time_base) == pytest.approx(
                2, abs=0.15)
        assert len(container.streams) == (2 if sound else 1)


@pytest.mark.parametrize('first, count, sound', [(3600, 10, None),
                                                 (0, 200, 'aac')])
def test_a_piece_may_fall_back_by_an_hour_or_bring_sound(
        call, tmp_path, first, count, sound):
    """As a recorder leaves them that starts again."""
    late = write_clip(tmp_path / 'late.ts', [
        first + number / 25 for number in range(count)]).read_bytes()
    early = write_clip(tmp_path / 'early.ts', [
        number / 25 for number in range(10)], sound=sound).read_bytes()
    (tmp_path / 'two.ts').write_bytes(late + early)
    status, out, err = call(tmp_path / 'two.ts')
    assert status == 0, err
    seconds = [float(row['seconds']) for row in rows(tmp_path / 'out')]
    assert len(seconds) == count + 10
    np.testing.assert_allclose(np.diff(seconds), 1 / 25, atol=0.01)
    assert (sound is None) == ('two.ts: the sound' not in out)


# ----------------------------------------------------------------- addresses

@pytest.fixture
def serve():
    """Starts HTTP servers of a function of a handler; returns the address."""
    def start(answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                with contextlib.suppress(ConnectionError):
                    answer(self)

            def log_message(self, *_):
                """Says nothing."""

        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f'http://127.0.0.1:{server.server_port}'
    servers = []
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send_head(handler, **headers):
    """Sends an answer's status and headers."""
    handler.send_response(200)
    for name, value in headers.items():
        handler.send_header(name.replace('_', '-'), value)
    handler.end_headers()


def test_pictures_over_http_have_the_clocks_times(call, tmp_path, serve):
    """Network cameras send one JPEG after the other, without times."""
    def answer(handler):
        send_head(handler, Content_Type='multipart/x-mixed-replace; '
                                        'boundary=x')
        for number in range(9):
            data = cv2.imencode('.jpg', picture(number))[1].tobytes()
            handler.wfile.write(
                b'--x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n'
                b'\r\n%s\r\n' % (len(data), data))
            time.sleep(pause)
    pause = 0.3
    status, out, err = call(f'{serve(answer)}/live')
    assert status == 0 and '9 frames' in out, err
    seconds = [float(row['seconds']) for row in rows(tmp_path / 'out')]
    assert seconds[0] == 0
    # FFmpeg looks at the first two before it gives them.
    assert seconds[-1] == pytest.approx(8 * pause, abs=1.5 * pause)
    np.testing.assert_allclose(
        read_clip(tmp_path / 'out' / 'live.mp4')[1], seconds, atol=0.01)


@pytest.mark.parametrize('ending', ['mp4', 'mkv', 'flv', 'avi'])
def test_a_film_that_breaks_off_is_said(call, tmp_path, serve, ending):
    """As a file, and at an address."""
    def answer(handler):
        send_head(handler, Content_Length=len(data))
        handler.wfile.write(data[:len(data) // 2])
    whole, half = tmp_path / f'whole.{ending}', tmp_path / f'half.{ending}'
    write_clip(whole, [n / 25 for n in range(75)], (480, 640), faststart=True,
               codec='mpeg4' if ending == 'avi' else 'libx264')
    data = whole.read_bytes()
    half.write_bytes(data[:len(data) // 2])
    status, _, err = call(half, f'{serve(answer)}/away.{ending}', whole)
    assert status == 1 and '2 inputs could not be used' in err
    assert 'half.' in err and 'away.' in err and 'only ' in err
    done = [row['drawn'] for row in rows(tmp_path / 'out')]
    assert done.count('whole.mp4') == 75
    assert done.count('half.mp4') < 50


@pytest.mark.parametrize('ending', ['mp4', 'mkv', 'ts'])
def test_a_whole_film_may_come_without_its_length(call, tmp_path, serve,
                                                  ending):
    """As from servers that end an answer by hanging up."""
    def answer(handler):
        send_head(handler)
        handler.wfile.write(data)
    whole = write_clip(tmp_path / f'whole.{ending}', [
        n / 25 for n in range(50)], faststart=True)
    data = whole.read_bytes()
    status, _, err = call(f'{serve(answer)}/whole.{ending}')
    assert status == 0, err
    assert len(rows(tmp_path / 'out')) == 50


def test_a_film_is_whole_where_its_sound_or_last_picture_lasts(call,
                                                               tmp_path):
    for name, times, sound in (('sound.mkv', [0, 0.04], 'aac'),
                               ('sound.mp4', [0, 0.04], 'aac'),
                               ('pcm.mkv', [0, 0.04], 'pcm_s16le'),
                               ('slow.mp4', [0, 5, 10], None),
                               ('slow.mkv', [0, 5, 10], None)):
        status, _, err = call(write_clip(tmp_path / name, times, sound=sound),
                              '--overwrite')
        assert status == 0 and not err, err


@pytest.mark.parametrize('ending, codec', [('h264', 'libx264'),
                                           ('mjpeg', 'mjpeg')])
def test_a_raw_stream_has_the_rate_that_is_given(call, tmp_path, ending,
                                                 codec):
    """As a Raspberry Pi's camera leaves it."""
    source = write_clip(tmp_path / f'x.{ending}', [n / 25 for n in range(11)],
                        codec=codec)
    status, out, err = call(source)
    assert status == 0, err
    assert f'{source}: has no frame rate: 25 is taken (--fps)' in out
    status, out, err = call(source, '--fps', '12.5', '--overwrite')
    assert status == 0 and '--fps' not in out, err
    assert float(rows(tmp_path / 'out')[-1]['seconds']) == pytest.approx(0.8)
    timed = write_clip(tmp_path / 'y.mp4', [0, 0.04, 0.08])
    status, out, err = call(timed, '--fps', '12.5', '--overwrite')
    assert status == 0 and '--fps' not in out, err
    assert float(rows(tmp_path / 'out')[-1]['seconds']) == 0.08


def test_a_pictures_address_is_a_picture(call, tmp_path, serve, monkeypatch):
    """Also where it is redirected or has a query; damage is named."""
    def answer(handler):
        if handler.path == '/moved':
            handler.send_response(302)
            handler.send_header('Location', '/photo.jpg?size=2')
            handler.end_headers()
            return
        asked.append(handler.headers['Authorization'])
        send_head(handler, Content_Type='image/jpeg')
        handler.wfile.write(data[:-500] if 'half' in handler.path else data)
    image = np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)
    data = cv2.imencode('.jpg', image)[1].tobytes()
    asked, address = [], serve(answer)
    status, _, err = call(f'{address}/photo.jpg?size=2', f'{address}/moved')
    assert status == 0, err
    assert [row['drawn'] for row in rows(tmp_path / 'out')] == ['photo.jpg',
                                                                'moved.jpg']
    status, out, err = call(f'{address}/x.jpg'.replace('//', '//me:s%2Fx@'),
                            '--overwrite')
    assert status == 0 and 's%2Fx' not in out + err
    assert asked[-1] == 'Basic bWU6cy94'  # me:s/x in base64
    status, _, err = call(f'{address}/half.jpg', '--overwrite')
    assert status == 1 and 'half.jpg: cannot be read as an image' in err
    monkeypatch.setattr(pictures, 'MAX_FILE', len(data) - 1)
    status, _, err = call(f'{address}/photo.jpg', '--overwrite')
    assert status == 1 and 'photo.jpg: has more than ' in err
