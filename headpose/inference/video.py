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
from headpose.inference.pictures import TIMEOUT, WEB, bgr, open_animation
from headpose.readers.images import image_faults

try:  # optional: for films and what is written of them
    import av
except ImportError:
    av = None

URLS = (*WEB, 'rtsp://', 'rtsps://', 'rtmp://')
USUAL_RATE = 25  # frames a second, of a video that names no rate
STILLS = '_pipe', 'image2'  # endings of FFmpeg's names of pictures' formats
JUMP = 0.1  # seconds by which a clock falls back where a piece begins
# FFmpeg's AVFMT_NOTIMESTAMPS and AVFMT_TS_DISCONT.
NO_TIMES, RESTARTS = 0x80, 0x200
MISSING = 0.5  # seconds without pictures at its end: a film is not whole
CLOCK = 90_000  # ticks a second, of the times in a written video
# Sound that browsers play in an MP4; other sound is left out.
SOUND = ('aac', 'mp3', 'opus', 'flac', 'alac', 'ac3', 'eac3')


def is_camera(source):
    """Says whether an input is a camera: its number, or a device's path."""
    return source.isdecimal() or source.startswith('/dev/video')


def is_live(source):
    """Says whether an input is no file: a camera or an address."""
    return is_camera(source) or source.startswith(URLS)


def open_moving(source, fps=None):
    """Returns the `Moving` of an input, or None of a still picture.

    `fps` is the frame rate of a film that has none.
    """
    if is_camera(source):
        return Camera(source)
    if not is_live(source):
        if not os.path.exists(source):
            raise InputError(f'{printable(source)}: no such file')
        # Of many JPEGs, one behind the other, Pillow would read the first.
        if not source.lower().endswith(('.mjpeg', '.mjpg')):
            picture, is_picture = open_animation(source)
            if is_picture:
                return picture and Animation(source, picture)
    try:
        return Film(source, fps)
    except StillError:
        return None


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


class StillError(Exception):
    """What is at an address is a still picture."""


class Film(Moving):
    """A video file by its path, or a stream by an address of `URLS`.

    `fps` is the frame rate of one that has none, as a raw stream of H.264.
    """

    def __init__(self, source, fps=None):
        check_av(source)
        self.source = source
        self.sound_packets = []
        try:
            # FFmpeg takes a clock that falls back by far for one that has
            # run over: here another piece of film begins.
            options = {'correct_ts_overflow': '0'}
            if fps:
                options['framerate'] = str(fps)
            if source.startswith('rtsp'):
                options['rtsp_transport'] = 'tcp'
            self.container = av.open(
                source if source.startswith(URLS) else f'file:{source}',
                timeout=TIMEOUT, options=options)
            if (source.startswith(WEB)
                    and self.container.format.name.endswith(STILLS)):
                raise StillError
            self.video = self.video_stream()
        except (OSError, ValueError, av.FFmpegError) as error:
            raise InputError(f'{printable(source)}: cannot be read as a '
                             f'picture or a video ({reason(error)})') from None
        self.close = self.container.close
        self.sound = self.sound_stream()
        self.rate = float(self.video.average_rate or self.video.guessed_rate
                          or USUAL_RATE)
        self.total = self.video.frames or None
        # FFmpeg's clock may start anywhere: here the first stream's is 0.
        self.start = min(
            (float(stream.start_time * stream.time_base)
             for stream in (self.video, self.sound)
             if stream and stream.start_time is not None), default=0.0)
        # Seconds of the pieces before, in a film of several, one behind the
        # other, whose clocks start again.
        self.offset = 0.0
        # FFmpeg makes times up where a format has none, as the JPEGs of a
        # network camera; a stored film, whose size is known, comes at once.
        has_times = not self.container.format.flags & NO_TIMES
        self.is_untimed = (source.startswith(URLS) and self.container.size < 0
                           and not has_times)
        if not (has_times or self.is_untimed or fps):
            self.notice = (f'{printable(source)}: has no frame rate: '
                           f'{self.rate:g} is taken (--fps)')
        self.clock = None  # its start, at the first frame
        # Threads hold frames back.
        self.video.thread_type = 'SLICE' if self.is_untimed else 'AUTO'

    def video_stream(self):
        """Returns the video's stream; raises ValueError without one."""
        # FFmpeg reads text as a terminal's pictures, and stills as video.
        name = self.container.format.name
        if name != 'tty' and not name.endswith(STILLS):
            for stream in self.container.streams.video:
                if not stream.disposition & stream.disposition.attached_pic:
                    return stream
        raise ValueError('no video in it')

    def sound_stream(self):
        """Returns the sound's stream, or None; notes what is left out."""
        for stream in self.container.streams.audio[:1]:
            codec = stream.codec_context.name
            if codec in SOUND and stream.codec_context.sample_rate:
                return stream
            self.notice = (
                f'{printable(self.source)}: the sound ({codec}) is left out: '
                + ('it begins too late' if codec in SOUND else
                   'browsers do not play it in an MP4'))
        return None

    def __iter__(self):
        """Yields pictures and seconds; raises for damage at the end."""
        count, seconds, damage = 0, -1 / self.rate, []
        for count, frame in enumerate(self.frames(damage), 1):
            before, after = seconds, seconds + 1 / self.rate
            seconds = self.seconds_of(frame, after)
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

    def seconds_of(self, frame, after):
        """Returns a frame's time; `after` is that of one without its own."""
        if self.is_untimed:
            now = time.monotonic()
            self.clock = self.clock or now
            return now - self.clock
        if frame.time is None:
            return after
        return frame.time - self.start + self.offset

    def frames(self, damage):
        """Yields frames; adds packets of sound, and errors to `damage`."""
        for packet in self.packets(damage):
            if packet.stream is self.sound:
                self.sound_packets.append((packet, self.offset))
            elif packet.stream is self.video:
                try:
                    yield from packet.decode()
                except av.FFmpegError as error:  # the next may be whole
                    damage.append(reason(error))

    def packets(self, damage):
        """Yields packets; adds to `damage` why they end before the film."""
        end = 0.0
        try:
            for packet in self.container.demux():
                if packet.pts is not None:  # of any stream
                    end = max(end, float((packet.pts + (packet.duration or 0))
                                         * packet.time_base))
                yield packet
        except av.FFmpegError as error:
            # FFmpeg calls the end of an answer of unknown length an error.
            if not (self.source.startswith(WEB) and self.container.size < 0):
                damage.append(reason(error))
            rest = av.Packet()  # the frames that the decoder holds back
            rest.stream = self.video
            yield rest
        if end < self.length() - MISSING:
            damage.append(f'it ends after {end:.1f} of {self.length():.1f} '
                          'seconds')

    def length(self):
        """Returns the time at which the film ends by its index, or 0."""
        if self.container.format.name == 'avi':  # FFmpeg believes the bytes
            return (self.total or 0) / self.rate
        # FFmpeg estimates it from the bytes where clocks may start again.
        if self.container.format.flags & RESTARTS:
            return 0
        if self.video.duration:
            return float(((self.video.start_time or 0) + self.video.duration)
                         * self.video.time_base)
        return (self.container.duration or 0) / av.time_base


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
        # Threads of slices would be waited for at each picture.
        self.stream.codec_context.thread_type = 'FRAME'
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
