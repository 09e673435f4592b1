"""Reading and writing what moves: video, animations, cameras.

A `Film`, an `Animation` and a `Camera` each yield pictures, as pictures.py
has them, and their times in seconds; a `Recorder` writes them with these
times.
"""
import contextlib
import time
from fractions import Fraction

import av
import cv2
import numpy as np
from PIL import ImageSequence

from headpose.errors import InputError
from headpose.files import printable
from headpose.inference.pictures import bgr, unreadable, whole_file

URLS = ('http://', 'https://', 'rtsp://', 'rtsps://', 'rtmp://')
USUAL_RATE = 25  # frames a second, of a video that names no rate
PATIENCE = 10  # seconds without a byte after which a stream has ended
CLOCK = 90_000  # ticks a second, of the times in a written video
LOST = 0.01  # share of the frames that a file may have less than it says
# Sound that browsers play in an MP4; other sound is encoded anew.
SOUND = ('aac', 'mp3', 'opus', 'flac', 'alac', 'ac3', 'eac3')


def is_camera(source):
    """Says whether an input is a camera: its number, or a device's path."""
    return source.isdecimal() or source.startswith('/dev/video')


def is_live(source):
    """Says whether an input is no file: a camera or an address."""
    return is_camera(source) or source.startswith(URLS)


def open_moving(source):
    """Opens a camera, an address or a video file.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    return Camera(source) if is_camera(source) else Film(source)


class Animation:
    """An animated GIF, PNG, WebP or AVIF.

    Args:
        path: of the file.
        picture: what `open_picture` returned for it.
    """
    sound, start, heard = None, 0.0, None

    def __init__(self, path, picture):
        self.path = path
        self.picture = picture
        self.total = picture.n_frames
        self.rate = USUAL_RATE

    def __iter__(self):
        """Yields pictures and seconds.

        Raises:
            InputError: the file is damaged from here on.
        """
        seconds = 0.0
        try:
            for picture in ImageSequence.Iterator(self.picture):
                image = bgr(picture)
                yield image, seconds
                # Browsers show what has no duration for a tenth of a second.
                seconds += (picture.info.get('duration') or 100) / 1000
        except (OSError, SyntaxError, ValueError) as error:
            raise unreadable(self.path, error) from None

    def close(self):
        """Closes the file."""
        self.picture.close()


class Camera:
    """A camera, by its number or its device's path.

    Raises:
        InputError: there is none.
    """
    sound, start, heard, total = None, 0.0, None, None

    def __init__(self, source):
        self.capture = cv2.VideoCapture(int(source) if source.isdecimal()
                                        else source)
        if not self.capture.isOpened():
            raise InputError(f'camera {source}: there is none')
        self.rate = self.capture.get(cv2.CAP_PROP_FPS) or USUAL_RATE

    def __iter__(self):
        """Yields pictures and seconds, of the clock: it may drop frames."""
        start = time.monotonic()
        while True:
            ok, image = self.capture.read()
            if not ok:
                return
            yield image, time.monotonic() - start

    def close(self):
        """Lets the camera go."""
        self.capture.release()


class Film:
    """A video file, or an address.

    Args:
        source: path, or an address of `URLS`.

    Raises:
        InputError: it holds no video, or cannot be read.

    Attributes:
        total: number of its frames, or None.
        rate: frames a second, on average.
        sound: its sound, an `av.AudioStream`, or None.
        heard: packets of sound since the frame before.
    """

    def __init__(self, source):
        self.source = source
        self.live = source.startswith(URLS)
        self.heard = []
        self.file = None
        try:
            if self.live:
                self.container = av.open(
                    source, timeout=PATIENCE,
                    options={'rtsp_transport': 'tcp'}
                    if source.startswith('rtsp') else {})
            else:
                self.file = open(source, 'rb')
                self.container = av.open(self.file)
            self.video = self.picture_stream()
        except (OSError, ValueError, av.FFmpegError) as error:
            self.close()
            raise InputError(f'{printable(source)}: cannot be read as a '
                             f'picture or a video ({reason(error)})') from None
        self.video.thread_type = 'AUTO'
        self.sound = next(iter(self.container.streams.audio), None)
        self.rate = float(self.video.average_rate or self.video.guessed_rate
                          or USUAL_RATE)
        self.total = self.video.frames or None
        # FFmpeg's clock may start anywhere: here the first stream's is 0.
        self.start = (self.container.start_time or 0) / av.time_base

    def picture_stream(self):
        """Returns the video's stream.

        Raises:
            ValueError: there is none.
        """
        # FFmpeg reads text as a terminal's pictures, and stills as video.
        name = self.container.format.name
        if name == 'tty' or name.endswith(('_pipe', 'image2')):
            raise ValueError('no video')
        for stream in self.container.streams.video:
            if not stream.disposition & stream.disposition.attached_pic:
                return stream
        raise ValueError('no video in it')

    def __iter__(self):
        """Yields pictures and seconds.

        Raises:
            InputError: nothing can be read, or the video ends before its end
                or lacks frames; what there is has been yielded.
        """
        count, damaged, seconds = 0, None, -1 / self.rate
        frames = self.frames()
        while True:
            try:
                frame = next(frames, None)
                if frame is None:
                    break
                if not isinstance(frame, av.VideoFrame):
                    damaged = damaged or frame
                    continue
            except av.FFmpegError as error:
                damaged = error
                break
            seconds = (frame.time - self.start if frame.time is not None
                       else seconds + 1 / self.rate)
            count += 1
            yield upright(frame), seconds
        self.check_whole(count, seconds, damaged)

    def frames(self):
        """Yields frames, and errors of packets that cannot be decoded."""
        streams = [stream for stream in (self.video, self.sound) if stream]
        for packet in self.container.demux(streams):
            if packet.stream is self.sound:
                self.heard.append(packet)
                continue
            try:
                yield from packet.decode()
            except av.InvalidDataError as error:
                yield error

    def check_whole(self, count, seconds, damaged):
        """Raises InputError unless all of the video has been read."""
        name = printable(self.source)
        if not count:
            raise InputError(f'{name}: no frame can be read'
                             + (f' ({reason(damaged)})' if damaged else ''))
        if self.live:
            return
        # Some containers only estimate the number of their frames, or how
        # long they last.
        lost = (self.total or 0) - count
        missing = ((self.container.duration or 0) / av.time_base - seconds
                   - 1 / self.rate)
        if lost > max(2, LOST * count):
            raise InputError(f'{name}: ends after {count} of {self.total} '
                             'frames; is it damaged?')
        if damaged or (not self.total and not self.sound
                       and missing > max(1, LOST * seconds)):
            raise InputError(f'{name}: {count} frames, to second '
                             f'{seconds:.1f}, can be read; is it damaged?')

    def close(self):
        """Closes the file, and what reads it."""
        if hasattr(self, 'container'):
            self.container.close()
        if self.file:
            self.file.close()


def reason(error):
    """Returns the shortest words for what FFmpeg found."""
    return getattr(error, 'strerror', None) or str(error)


def upright(frame):
    """Returns a frame's BGR pixels, turned as its video says."""
    image = frame.to_ndarray(format='bgr24')
    # Degrees against the clock, as NumPy turns.
    return np.ascontiguousarray(np.rot90(image, frame.rotation // 90))


# --------------------------------------------------------------- recording

class Recorder:
    """Writes an MP4 that a browser plays: H.264, the sound kept.

    Sides that are odd get one row or column more, the last one repeated: the
    format's colours come in squares of two pixels.

    Args:
        path: of the file.
        moving: what is recorded, for its rate and its sound.
    """

    def __init__(self, path, moving):
        self.path = path
        self.moving = moving
        self.container = None  # until the first picture's size is known
        self.last = -1  # ticks: of the picture before
        self.step = round(CLOCK / moving.rate)  # ticks from one to the next

    def open(self, shape):
        """Opens the file for pictures of a shape (H, W, 3)."""
        self.size = [side + side % 2 for side in shape[1::-1]]
        self.container = av.open(f'file:{self.path}', 'w', format='mp4',
                                 options={'movflags': 'faststart'})
        self.stream = self.container.add_stream(
            'libx264',
            rate=Fraction(self.moving.rate).limit_denominator(1001),
            # Where frames refer to later ones, and lie out of their order,
            # FFmpeg takes another one for the last, and its end for the end.
            options={'crf': '20', 'preset': 'veryfast', 'bf': '0'})
        self.stream.width, self.stream.height = self.size
        self.stream.pix_fmt = 'yuv420p'
        self.stream.codec_context.time_base = Fraction(1, CLOCK)
        self.sound = self.moving.sound and Sound(
            self.container, self.moving.sound, self.moving.start)

    def write(self, image, seconds):
        """Writes a picture, and the sound that came before it.

        Args:
            image: BGR; another size than the first's is stretched to it.
            seconds: when it is shown.
        """
        if not self.container:
            self.open(image.shape)
        self.hear()
        height, width = image.shape[:2]
        wide, high = self.size
        if 0 <= wide - width <= 1 and 0 <= high - height <= 1:
            image = cv2.copyMakeBorder(image, 0, high - height, 0,
                                       wide - width, cv2.BORDER_REPLICATE)
        else:
            image = cv2.resize(image, self.size)
        frame = av.VideoFrame.from_ndarray(image, 'bgr24')
        # Two frames of one time are one too many for an MP4.
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

    def hear(self):
        """Writes the sound that has been read so far."""
        while self.sound and self.moving.heard:
            self.sound.write(self.moving.heard.pop(0))

    def close(self):
        """Writes what is left of picture and sound, and the file's index."""
        if not self.container:
            return
        self.hear()
        if self.sound:
            self.sound.finish()
        self.mux(self.stream.encode())
        self.container.close()


@contextlib.contextmanager
def recording(path, moving):
    """Yields a `Recorder`; the file is there, whole, if all goes well.

    Raises:
        InputError: it cannot be written.
    """
    with whole_file(path) as temporary:
        recorder = Recorder(temporary, moving)
        try:
            try:
                yield recorder
            finally:
                recorder.close()
        except av.FFmpegError as error:
            raise OSError(reason(error)) from None


class Sound:
    """Takes sound along: as it is if an MP4 may have it, else as AAC.

    Args:
        container: the output.
        source: `av.AudioStream`.
        start: seconds on its clock when the video begins.
    """

    def __init__(self, container, source, start):
        self.container = container
        self.copied = source.codec_context.name in SOUND
        self.start = Fraction(start).limit_denominator(CLOCK)
        if self.copied:
            self.stream = container.add_stream_from_template(source)
            return
        layout = 'mono' if source.codec_context.channels == 1 else 'stereo'
        self.stream = container.add_stream('aac', rate=source.rate,
                                           layout=layout)
        self.resampler = av.AudioResampler('fltp', layout, source.rate)

    def write(self, packet):
        """Writes a packet; one that is damaged, or only ends, is left out."""
        if packet.dts is None:
            return
        if self.copied:
            ticks = round(self.start / packet.time_base)
            packet.pts -= ticks
            packet.dts -= ticks
            packet.stream = self.stream
            self.container.mux(packet)
            return
        with contextlib.suppress(av.InvalidDataError):
            for frame in packet.decode():
                self.encode(frame)

    def encode(self, frame):
        """Encodes a frame of sound; None ends it."""
        for part in self.resampler.resample(frame):
            self.container.mux(self.stream.encode(part))

    def finish(self):
        """Writes what the encoder still has."""
        if not self.copied:
            self.encode(None)
            self.container.mux(self.stream.encode(None))
