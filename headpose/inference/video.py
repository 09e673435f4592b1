"""Reads and writes moving pictures: video, animations, cameras.

A `Film`, an `Animation` and a `Camera` each yield pictures, as pictures.py
has them, and their times in seconds; a `Recorder` writes both.
"""
import contextlib
import math
import os
import threading
import time
from fractions import Fraction

import cv2
import numpy as np
from PIL import ImageSequence

from headpose.errors import InputError
from headpose.files import atomic, printable
from headpose.inference.pictures import bgr, open_animation
from headpose.readers.images import image_faults

try:  # optional: for films and what is written of them
    import av
except ImportError:
    av = None

URLS = ('http://', 'https://', 'rtsp://', 'rtsps://', 'rtmp://')
USUAL_RATE = 25  # frames a second, of a video that names no rate
TIMEOUT = 10  # seconds without a byte after which a stream has ended
JUMP = 0.1  # seconds by which a clock falls back where a piece begins
CLOCK = 90_000  # ticks a second, of the times in a written video
# Sound that browsers play in an MP4; other sound is left out.
SOUND = ('aac', 'mp3', 'opus', 'flac', 'alac', 'ac3', 'eac3')


def is_camera(source):
    """Says whether an input is a camera: its number, or a device's path."""
    return source.isdecimal() or source.startswith('/dev/video')


def is_live(source):
    """Says whether an input is no file: a camera or an address."""
    return is_camera(source) or source.startswith(URLS)


def open_moving(source):
    """Returns the `Moving` of an input, or None of a still picture."""
    if is_camera(source):
        return Camera(source)
    if not is_live(source):
        if not os.path.exists(source):
            raise InputError(f'{printable(source)}: no such file')
        picture, is_picture = open_animation(source)
        if is_picture:
            return picture and Animation(source, picture)
    return Film(source)


def check_av(path):
    """Raises InputError where the package for films is not installed."""
    if not av:
        raise InputError(f'{printable(path)}: needs pip install av')


class Moving:
    """Moving pictures; iterating yields pictures and seconds.

    `close` releases the file or the camera.
    """
    total = None  # number of frames, where it is known
    rate = USUAL_RATE  # frames a second, on average
    sound = None  # an `av.AudioStream`
    notice = None  # a line for the user


class Animation(Moving):
    """An animated GIF, PNG, WebP or AVIF, of `pictures.open_animation`."""

    def __init__(self, path, picture):
        self.path = path
        self.picture = picture
        self.close = picture.close
        self.total = picture.n_frames

    def __iter__(self):
        seconds = 0.0
        frames = ImageSequence.Iterator(self.picture)
        for _ in range(self.total):
            with image_faults(self.path):
                image = bgr(next(frames))
                # Browsers show a frame of no duration for a tenth of a second.
                duration = self.picture.info.get('duration') or 100
            yield image, seconds
            seconds += duration / 1000


class Camera(Moving):
    """A camera, by its number or its device's path.

    Frames that come while one is worked on are dropped.
    """

    def __init__(self, source):
        self.capture = cv2.VideoCapture(int(source) if source.isdecimal()
                                        else source)
        if not self.capture.isOpened():
            raise InputError(f'camera {source}: there is none')
        self.rate = self.capture.get(cv2.CAP_PROP_FPS) or USUAL_RATE
        self.changed = threading.Condition()
        self.newest = None  # (picture, seconds), until it is taken
        self.ended = False
        self.reader = threading.Thread(target=self.read, daemon=True)

    def __iter__(self):
        self.reader.start()
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.newest or self.ended)
                frame, self.newest = self.newest, None
            if not frame:
                return
            yield frame

    def read(self):
        """Keeps the newest frame, until the camera ends or is closed."""
        start = time.monotonic()
        while not self.ended:
            good, image = self.capture.read()
            with self.changed:
                if good:
                    self.newest = image, time.monotonic() - start
                self.ended |= not good
                self.changed.notify()

    def close(self):
        """Releases the camera, after the frame that is being read."""
        self.ended = True
        if self.reader.is_alive():
            self.reader.join()
        self.capture.release()


class Film(Moving):
    """A video file by its path, or a stream by an address of `URLS`."""

    def __init__(self, source):
        check_av(source)
        self.source = source
        self.sound_packets = []
        try:
            rtsp = source.startswith('rtsp')
            self.container = av.open(
                source if source.startswith(URLS) else f'file:{source}',
                timeout=TIMEOUT,
                options={'rtsp_transport': 'tcp'} if rtsp else {})
            self.video = self.video_stream()
        except (OSError, ValueError, av.FFmpegError) as error:
            raise InputError(f'{printable(source)}: cannot be read as a '
                             f'picture or a video ({reason(error)})') from None
        self.close = self.container.close
        self.video.thread_type = 'AUTO'
        self.sound = self.sound_stream()
        self.rate = float(self.video.average_rate or self.video.guessed_rate
                          or USUAL_RATE)
        self.total = self.video.frames or None
        # FFmpeg's clock may start anywhere: here the first stream's is 0.
        self.start = (self.container.start_time or 0) / av.time_base
        # Seconds of the pieces before, in a film of several, one behind the
        # other, whose clocks start again.
        self.offset = 0.0

    def video_stream(self):
        """Returns the video's stream; raises ValueError without one."""
        # FFmpeg reads text as a terminal's pictures, and stills as video.
        name = self.container.format.name
        if name != 'tty' and not name.endswith(('_pipe', 'image2')):
            for stream in self.container.streams.video:
                if not stream.disposition & stream.disposition.attached_pic:
                    return stream
        raise ValueError('no video in it')

    def sound_stream(self):
        """Returns the sound's stream, or None; notes what is left out."""
        for stream in self.container.streams.audio[:1]:
            if (codec := stream.codec_context.name) in SOUND:
                return stream
            self.notice = (f'{printable(self.source)}: the sound ({codec}) is '
                           'left out: browsers do not play it in an MP4')
        return None

    def __iter__(self):
        """Yields pictures and seconds; raises for damage at the end."""
        count, seconds, damage = 0, -1 / self.rate, []
        for count, frame in enumerate(self.frames(damage), 1):
            before, after = seconds, seconds + 1 / self.rate
            seconds = (after if frame.time is None
                       else frame.time - self.start + self.offset)
            if seconds < before - JUMP:  # another piece of film begins
                self.offset += after - seconds
                seconds = after
            # Degrees counterclockwise, as NumPy turns.
            yield np.ascontiguousarray(np.rot90(
                frame.to_ndarray(format='bgr24'), frame.rotation // 90
            )), seconds
        if damage:
            raise InputError(f'{printable(self.source)}: only {count} frames '
                             f'can be read ({damage[0]})')

    def frames(self, damage):
        """Yields frames; adds packets of sound, and errors to `damage`."""
        packets = self.container.demux(
            [stream for stream in (self.video, self.sound) if stream])
        while True:
            try:
                packet = next(packets)
                if packet.stream is self.sound:
                    self.sound_packets.append((packet, self.offset))
                else:
                    yield from packet.decode()
            except StopIteration:
                return
            except av.FFmpegError as error:  # the next packet may be whole
                damage.append(reason(error))


def reason(error):
    """Returns the shortest words for FFmpeg's error."""
    return getattr(error, 'strerror', None) or str(error)


class Recorder:
    """Writes an MP4 that a browser plays: H.264, and a copy of the sound.

    Odd sides get one row or column more, the last one repeated: H.264's
    colours come in squares of two pixels.

    Args:
        path: of the file.
        moving: the `Moving` that is recorded, for its rate and its sound.
    """

    def __init__(self, path, moving):
        self.path = path
        self.moving = moving
        self.container = None  # until the first picture's size is known
        self.sound = None
        self.last = -1  # ticks: of the picture before
        self.heard = -math.inf  # ticks: of the sound before
        self.step = round(CLOCK / moving.rate)  # ticks from one to the next

    def open(self, size):
        """Opens the file for pictures of a size (width, height)."""
        self.size = size
        self.container = av.open(f'file:{self.path}', 'w', format='mp4',
                                 options={'movflags': 'faststart'})
        self.stream = self.container.add_stream(
            'libx264',
            rate=Fraction(self.moving.rate).limit_denominator(1001),
            # With B-frames FFmpeg takes the wrong frame for the last one, and
            # its end for the video's.
            options={'crf': '20', 'preset': 'veryfast', 'bf': '0'})
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt = 'yuv420p'
        self.stream.codec_context.time_base = Fraction(1, CLOCK)
        if self.moving.sound:
            self.sound = self.container.add_stream_from_template(
                self.moving.sound)

    def write(self, image, seconds):
        """Writes a picture, at the first one's size, and the sound before."""
        height, width = image.shape[:2]
        image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2,
                                   cv2.BORDER_REPLICATE)
        if not self.container:
            self.open(image.shape[1::-1])
        if image.shape[1::-1] != self.size:
            image = cv2.resize(image, self.size)
        self.copy_sound()
        frame = av.VideoFrame.from_ndarray(image, 'bgr24')
        # An MP4 has no two frames of one time.
        frame.pts = max(self.last + 1, round(seconds * CLOCK))
        frame.time_base = Fraction(1, CLOCK)
        if self.last >= 0:
            self.step = frame.pts - self.last
        self.last = frame.pts
        self.mux(self.stream.encode(frame))

    def mux(self, packets):
        """Writes packets; the last one lasts as long as the one before."""
        for packet in packets:
            packet.duration = self.step
            self.container.mux(packet)

    def copy_sound(self):
        """Writes the sound that has been read since the last picture."""
        while self.sound and self.moving.sound_packets:
            packet, offset = self.moving.sound_packets.pop(0)
            if packet.dts is not None:  # None is the stream's end, or damage
                ticks = round(Fraction(offset - self.moving.start)
                              / packet.time_base)
                packet.pts += ticks
                packet.dts += ticks
                # Sound and picture of a piece end at different times.
                if packet.dts <= self.heard:
                    continue
                self.heard = packet.dts
                packet.stream = self.sound
                self.container.mux(packet)

    def close(self):
        """Writes the rest of picture and sound, and the file's index."""
        if self.container:
            self.copy_sound()
            self.mux(self.stream.encode())
            self.container.close()


@contextlib.contextmanager
def recording(path, moving):
    """Yields a `Recorder`; the file is written atomically."""
    check_av(path)
    with atomic(path) as temporary:
        recorder = Recorder(temporary, moving)
        try:
            with contextlib.closing(recorder):
                yield recorder
        except av.FFmpegError as error:
            raise OSError(reason(error)) from None
